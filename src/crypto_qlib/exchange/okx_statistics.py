"""OKX's market statistics: current funding, open interest and taker volume over time.

Source: OKX API v5, ``public/funding-rate``, ``rubik/stat/contracts/open-interest-history`` (``[ts, contracts, coins, usd]``)
and ``rubik/stat/taker-volume-contract`` (``[ts, sell, buy]``, ``unit`` 0 = coins); newest first, 100 rows, ``begin`` and
``end`` exclusive in milliseconds. OKX keeps 5-minute rows for about 2 days, hourly ones for 30, daily ones for 180.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_MS
from crypto_qlib.core.errors import DoNotRetry
from crypto_qlib.exchange import okx_parsing as parse
from crypto_qlib.exchange.gateway import FundingQuote, InterestBlock, TakerBlock
from crypto_qlib.exchange.okx_market import OkxMarketData

PERIODS: Final = {"5m": "5m", "15m": "15m", "1h": "1H", "4h": "4H", "1d": "1Dutc"}
"""OKX's ``period`` by our frame."""
RETENTION_NS: Final = {
    "5m": 2 * NS_PER_DAY,
    "15m": 2 * NS_PER_DAY,
    "1h": 30 * NS_PER_DAY,
    "4h": 30 * NS_PER_DAY,
    "1d": 180 * NS_PER_DAY,
}
"""How far back OKX serves these statistics; what was not asked for within it is lost for good."""
_PAGE: Final = 100


class OkxStatistics(OkxMarketData):
    """Read statistics that need no key."""

    async def funding_now(self) -> list[FundingQuote]:
        """Return the rate now expected at the next settlement, of every swap."""
        if not self._instruments:
            await self.instruments()
        rows = await self._session.public("read the funding rates", "publicGetPublicFundingRate", {"instId": "ANY"})
        by_id = {item.inst_id: item.symbol for item in self._instruments.values()}
        now_ns = await self.server_time_ns()
        return [
            FundingQuote(by_id[r["instId"]], now_ns, float(r["fundingRate"]), int(r["fundingTime"]) * NS_PER_MS)
            for r in rows
            if r["instId"] in by_id and r.get("fundingRate") not in (None, "")
        ]

    async def open_interest_history(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> InterestBlock:
        """Return open interest at the instants ``start_ns <= ts < end_ns``, oldest first, as far back as OKX keeps it."""
        endpoint = "publicGetRubikStatContractsOpenInterestHistory"
        rows = await self._statistic(endpoint, f"read the open interest of {symbol}", symbol, frame, (start_ns, end_ns), {})
        return InterestBlock(*_columns(rows, 2, 3))

    async def taker_volume(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> TakerBlock:
        """Return what takers bought and sold per period that opens in ``[start_ns, end_ns)``, base coins, oldest first."""
        endpoint = "publicGetRubikStatTakerVolumeContract"
        what = f"read the taker volume of {symbol}"
        rows = await self._statistic(endpoint, what, symbol, frame, (start_ns, end_ns), {"unit": "0"})
        ts, sell, buy = _columns(rows, 1, 2)
        return TakerBlock(ts, buy, sell)

    async def _statistic(
        self, endpoint: str, what: str, symbol: str, frame: str, span: tuple[int, int], extra: dict[str, str]
    ) -> list[Any]:
        """Page backwards from the end: a page of rows is the newest before ``end``, whatever ``begin`` says."""
        if frame not in PERIODS:
            raise DoNotRetry(f"OKX has no {frame} statistics", f"one of {', '.join(PERIODS)}")
        item = await self._instrument(symbol)
        frame_ms = FRAME_NS[frame] // NS_PER_MS
        first, end = -(-span[0] // NS_PER_MS), -(-span[1] // NS_PER_MS)
        found: dict[int, Any] = {}
        while end > first:
            query = {"instId": item.inst_id, "period": PERIODS[frame], "begin": str(first - 1), "end": str(end)}
            rows = await self._session.public(what, endpoint, query | extra | {"limit": str(_PAGE)})
            fresh = {int(r[0]): r for r in rows if first <= int(r[0]) < end and int(r[0]) % frame_ms == 0}
            if not fresh:
                break
            found |= fresh
            end = min(fresh)
        return [found[t] for t in sorted(found)]


def _columns(rows: list[Any], *positions: int) -> tuple[Any, ...]:
    ts = np.array([int(r[0]) for r in rows], dtype=np.int64) * NS_PER_MS
    return (ts, *(np.array([parse.number(r[k]) for r in rows], dtype=np.float64) for k in positions))

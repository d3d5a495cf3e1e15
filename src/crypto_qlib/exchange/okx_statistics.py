"""OKX's market statistics: current funding; open interest, taker volume and the long/short ratio of accounts over time.

Source: OKX API v5, ``public/funding-rate``, ``rubik/stat/contracts/open-interest-history`` (``[ts, contracts, coins, usd]``),
``rubik/stat/taker-volume-contract`` (``[ts, sell, buy]``, ``unit`` 0 = coins) and
``rubik/stat/contracts/long-short-account-ratio-contract`` (``[ts, ratio]``); newest first, 100 rows, ``begin`` and ``end``
exclusive in milliseconds. Each "can retrieve the latest 1,440 data entries": 5 days of 5 minutes, 60 days of hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_MS
from crypto_qlib.core.errors import DoNotRetry, SkipCycle
from crypto_qlib.core.market import LongShortBlock
from crypto_qlib.exchange import okx_parsing as parse
from crypto_qlib.exchange.gateway import FundingQuote, InterestBlock, TakerBlock
from crypto_qlib.exchange.okx_market import OkxMarketData

PERIODS: Final = {"5m": "5m", "15m": "15m", "1h": "1H", "4h": "4H", "1d": "1Dutc"}
"""OKX's ``period`` by our frame."""
_ENTRIES: Final = 1440
RETENTION_NS: Final = {frame: _ENTRIES * FRAME_NS[frame] for frame in PERIODS}
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
        return InterestBlock(*rows.columns(2, 3))

    async def taker_volume(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> TakerBlock:
        """Return what takers bought and sold per period that opens in ``[start_ns, end_ns)``, base coins, oldest first."""
        endpoint = "publicGetRubikStatTakerVolumeContract"
        what = f"read the taker volume of {symbol}"
        rows = await self._statistic(endpoint, what, symbol, frame, (start_ns, end_ns), {"unit": "0"})
        ts, sell, buy = rows.columns(1, 2)
        return TakerBlock(ts, buy, sell)

    async def long_short_ratio(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> LongShortBlock:
        """Return accounts long per account short at the instants ``start_ns <= ts < end_ns``, oldest first, as far as kept."""
        endpoint = "publicGetRubikStatContractsLongShortAccountRatioContract"
        what = f"read the long/short ratio of {symbol}"
        rows = await self._statistic(endpoint, what, symbol, frame, (start_ns, end_ns), {})
        ts, ratio = rows.columns(1)
        return LongShortBlock(ts, np.where(np.isfinite(ratio) & (ratio > 0.0), ratio, np.nan))

    async def _statistic(
        self, endpoint: str, what: str, symbol: str, frame: str, span: tuple[int, int], extra: dict[str, str]
    ) -> _Rows:
        """Page backwards from the end: a page of rows is the newest before ``end``, whatever ``begin`` says."""
        if frame not in PERIODS:
            raise DoNotRetry(f"OKX has no {frame} statistics", f"one of {', '.join(PERIODS)}")
        item = await self._instrument(symbol)
        frame_ms = FRAME_NS[frame] // NS_PER_MS
        first, end = -(-span[0] // NS_PER_MS), -(-span[1] // NS_PER_MS)
        found = _Rows(what)
        while end > first:
            query = {"instId": item.inst_id, "period": PERIODS[frame], "begin": str(first - 1), "end": str(end)}
            rows = await self._session.public(what, endpoint, query | extra | {"limit": str(_PAGE)})
            oldest = found.add(rows, first, end, frame_ms)
            if oldest is None:
                break
            end = oldest
        return found


class _Rows:
    """Rows of a statistic by their instant (ms), whatever order and how often they came.

    Parameters
    ----------
    what : str
        What was asked, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._rows: dict[int, Any] = {}

    def add(self, rows: list[Any], first: int, end: int, step: int) -> int | None:
        """Keep the rows on the grid in ``[first, end)``; return the oldest of them, ``None`` where there is none.

        Raises
        ------
        SkipCycle
            If a row is no row.
        """
        with self._readable():
            fresh = {int(r[0]): r for r in rows if first <= int(r[0]) < end and int(r[0]) % step == 0}
        self._rows |= fresh
        return min(fresh, default=None)

    def columns(self, *positions: int) -> tuple[Any, ...]:
        """Return the instants (ns) and the columns asked for, oldest first; NaN where OKX left one empty."""
        rows = [self._rows[t] for t in sorted(self._rows)]
        with self._readable():
            ts = np.array([int(r[0]) for r in rows], dtype=np.int64) * NS_PER_MS
            return (ts, *(np.array([parse.number(r[k]) for r in rows], dtype=np.float64) for k in positions))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, LookupError, OverflowError) as e:
            raise SkipCycle(f"could not {self._what}: a row of the answer cannot be read ({e})") from e

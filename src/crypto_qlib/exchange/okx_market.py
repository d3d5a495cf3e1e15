"""OKX's public data through ccxt: instruments, tiers, candles, funding, book.

ccxt signs, sends and throttles; its *implicit* endpoints are called, because its unified answers lose what is needed here
(whether a candle is closed, quote volume, contract multipliers). Every surprise of OKX's contract is noted where it is
handled.
"""

from __future__ import annotations

import asyncio
from typing import Final, Self

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_HOUR, NS_PER_MS
from crypto_qlib.core.errors import DoNotRetry, SkipCycle
from crypto_qlib.core.instrument import Instrument, symbol_from_inst_id
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.exchange import okx_parsing as parse
from crypto_qlib.exchange.gateway import Book, PriceKind, Ticker
from crypto_qlib.exchange.okx_parsing import Row
from crypto_qlib.exchange.okx_session import Connection, OkxSession

BAR_NAMES: Final = {name: name if name.endswith("m") else name.upper() for name in FRAME_NS} | {"1d": "1Dutc"}
"""OKX's ``bar`` by our frame name; plain ``1D`` would open at 16:00 UTC."""

_CANDLES: Final = {
    PriceKind.LAST: ("publicGetMarketCandles", "publicGetMarketHistoryCandles"),
    PriceKind.MARK: ("publicGetMarketMarkPriceCandles", "publicGetMarketHistoryMarkPriceCandles"),
    PriceKind.INDEX: ("publicGetMarketIndexCandles", "publicGetMarketHistoryIndexCandles"),
}
"""(newest 1440 bars, older ones) by price kind."""
_PAGE: Final = "300"
_FUNDING_PAGE: Final = "100"
_HOUR_MS: Final = NS_PER_HOUR // NS_PER_MS


class OkxMarketData:
    """Read what needs no key.

    Parameters
    ----------
    connection : Connection
        Where and as whom to talk.
    """

    def __init__(self, connection: Connection) -> None:
        self._session = OkxSession(connection)
        self._instruments: dict[str, Instrument] = {}
        self._instruments_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release connections."""
        await self._session.close()

    async def server_time_ns(self) -> int:
        """Return the exchange's clock."""
        rows = await self._session.public("read the exchange's clock", "publicGetPublicTime", {})
        return int(rows[0]["ts"]) * NS_PER_MS

    async def instruments(self) -> list[Instrument]:
        """Return all USDT-margined swaps, any state; funding interval from the current schedule where it is known."""
        rows = await self._session.public("list the instruments", "publicGetPublicInstruments", {"instType": "SWAP"})
        hours = await self._funding_hours()
        found = [parse.instrument_from(row, hours.get(str(row["instId"]), 8)) for row in rows if parse.is_usdt_swap(row)]
        self._instruments = {item.symbol: item for item in found}
        return found

    async def tiers(self, symbol: str) -> TierTable:
        """Return the position tiers of ``symbol`` in force now, bounds in contracts."""
        item = await self._instrument(symbol)
        # Queried raw: ccxt's unified answer names these contract bounds "notional".
        query = {"instType": "SWAP", "tdMode": "isolated", "instFamily": item.inst_id.removesuffix("-SWAP")}
        rows = await self._session.public(f"read the tiers of {symbol}", "publicGetPublicPositionTiers", query)
        if not rows:
            raise SkipCycle(f"OKX lists no position tiers of {symbol}")
        return parse.tiers_from(rows)

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        """Return all *closed* bars with ``start_ns <= ts_open < end_ns``, oldest first.

        1. ask the recent endpoint for the page that ends at ``end_ns`` (it alone is sure to hold the newest closed bars);
        2. page backwards through the history endpoint with ``after`` = the oldest open time so far, until the start is
           reached or a page comes back empty; 3. drop unfinished bars (``confirm`` 0) and what lies outside.
        """
        if frame not in BAR_NAMES:
            raise DoNotRetry(f"OKX has no {frame} candles")
        item = await self._instrument(symbol)
        inst_id = item.inst_id.removesuffix("-SWAP") if kind is PriceKind.INDEX else item.inst_id
        what, (recent, history) = f"read {frame} {kind.value} candles of {symbol}", _CANDLES[kind]
        start_ms = -(-start_ns // NS_PER_MS)
        oldest_ms = -(-end_ns // NS_PER_MS)
        by_open: dict[int, list[str]] = {}
        endpoint = recent
        while oldest_ms > start_ms:
            query = {"instId": inst_id, "bar": BAR_NAMES[frame], "after": str(oldest_ms), "limit": _PAGE}
            rows = await self._session.public(what, endpoint, query)
            reached_ms = min([oldest_ms, *(int(row[0]) for row in rows)])
            if endpoint is history and reached_ms == oldest_ms:
                break
            endpoint, oldest_ms = history, reached_ms
            by_open.update((int(row[0]), row) for row in rows if row[-1] == "1" and int(row[0]) >= start_ms)
        return parse.bars_from(list(by_open.values()))

    async def funding_history(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return realised funding with ``start_ns <= ts < end_ns``, as far back as the exchange keeps it (OKX: 3 months)."""
        item = await self._instrument(symbol)
        start_ms, oldest_ms = -(-start_ns // NS_PER_MS), -(-end_ns // NS_PER_MS)
        found: list[Row] = []
        while oldest_ms > start_ms:
            # ccxt's unified call never sends `after` and so cannot reach past the newest 100 settlements.
            query = {"instId": item.inst_id, "after": str(oldest_ms), "limit": _FUNDING_PAGE}
            what = f"read the funding history of {symbol}"
            rows = await self._session.public(what, "publicGetPublicFundingRateHistory", query)
            if not rows:
                break
            found.extend(row for row in rows if int(row["fundingTime"]) >= start_ms)
            oldest_ms = min(oldest_ms - 1, *(int(row["fundingTime"]) for row in rows))
        return parse.funding_from(found)

    async def open_interest(self, symbol: str) -> tuple[int, float]:
        """Return (instant, open interest in base coins)."""
        item = await self._instrument(symbol)
        query = {"instType": "SWAP", "instId": item.inst_id}
        rows = await self._session.public(f"read the open interest of {symbol}", "publicGetPublicOpenInterest", query)
        if not rows:
            raise SkipCycle(f"the open interest of {symbol} is not known")
        return int(rows[0]["ts"]) * NS_PER_MS, float(rows[0]["oiCcy"])

    async def book(self, symbol: str, depth: int = 20) -> Book:
        """Return the order book; sizes in base coins."""
        item = await self._instrument(symbol)
        query = {"instId": item.inst_id, "sz": str(depth)}
        rows = await self._session.public(f"read the book of {symbol}", "publicGetMarketBooks", query)
        if not rows:
            raise SkipCycle(f"OKX has no book of {symbol}")
        sides = []
        for name in ("bids", "asks"):
            levels = [(float(level[0]), float(level[1]) * item.ct_val) for level in rows[0][name]]
            sides.append(np.array(levels, dtype=np.float64).reshape(-1, 2))
        return Book(int(rows[0]["ts"]) * NS_PER_MS, sides[0], sides[1])

    async def tickers(self) -> list[Ticker]:
        """Return the tickers of all live USDT swaps; turnover is base volume (``volCcy24h``) times the last price."""
        if not self._instruments:
            await self.instruments()
        rows = await self._session.public("read the tickers", "publicGetMarketTickers", {"instType": "SWAP"})
        by_id = {item.inst_id: item for item in self._instruments.values()}
        return [_ticker(row, by_id[row["instId"]]) for row in rows if row["instId"] in by_id and row["last"]]

    async def _instrument(self, symbol: str) -> Instrument:
        if symbol not in self._instruments:
            async with self._instruments_lock:
                if symbol not in self._instruments:
                    await self.instruments()
        try:
            return self._instruments[symbol]
        except KeyError:
            raise DoNotRetry(f"OKX lists no USDT swap {symbol}", "check the symbol's name", code="51001") from None

    async def _instrument_of(self, inst_id: str) -> Instrument:
        return await self._instrument(symbol_from_inst_id(inst_id))

    async def _funding_hours(self) -> dict[str, int]:
        rows = await self._session.public("read the funding schedule", "publicGetPublicFundingRate", {"instId": "ANY"})
        spans = {str(r["instId"]): int(r["nextFundingTime"] or 0) - int(r["fundingTime"] or 0) for r in rows}
        return {inst_id: span // _HOUR_MS for inst_id, span in spans.items() if span >= _HOUR_MS}


def _ticker(row: Row, item: Instrument) -> Ticker:
    last = float(row["last"])
    turnover = float(row.get("volCcy24h") or 0.0) * last
    bid, ask = parse.number(row.get("bidPx")), parse.number(row.get("askPx"))
    return Ticker(item.symbol, int(row["ts"]) * NS_PER_MS, last, bid, ask, turnover)

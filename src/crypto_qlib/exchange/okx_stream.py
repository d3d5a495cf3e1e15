"""OKX's public websockets through ccxt.pro: trades and order books of many swaps, in the package's own words.

A stream never ends by itself. When the connection drops, everything in between is lost: a :class:`Dropped` is handed out, so
that whoever counts trades knows that the count has a hole, and the next message comes from a new connection. A silent socket
is treated as dropped after ``silent_s``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ccxt.pro as ccxt_pro
import numpy as np
import numpy.typing as npt
from ccxt import BaseError

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.exchange.gateway import Book
from crypto_qlib.exchange.okx_session import Connection, configure_urls

_LEVELS: Final = 5
"""``books5``: five levels every 100 ms. Source: OKX API v5, order book channels."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class TradeTick:
    """One trade.

    Parameters
    ----------
    symbol, trade_id : str
        Swap and the exchange's id.
    ts_ns : int
        Exchange time.
    price, size : float
        Quote units, and base coins: positive where the taker bought.
    """

    symbol: str
    trade_id: str
    ts_ns: int
    price: float
    size: float


@dataclass(frozen=True, slots=True)
class BookTick:
    """The best levels of one book at one instant."""

    symbol: str
    book: Book


@dataclass(frozen=True, slots=True)
class Dropped:
    """The connection was lost; ``what`` names the stream."""

    what: str
    reason: str


Tick = TradeTick | BookTick | Dropped


class OkxStream:
    """Watch public channels.

    Parameters
    ----------
    connection : Connection
        Where; no key is needed.
    instruments : sequence of Instrument
        Swaps to watch.
    silent_s : float
        A stream without a message for so long counts as dropped.
    """

    def __init__(self, connection: Connection, instruments: Sequence[Instrument], silent_s: float = 60.0) -> None:
        self._client: Any = configure_urls(ccxt_pro.okx({"options": {"defaultType": "swap"}}), connection)
        self._by_name = {i.ccxt_symbol: i for i in instruments}
        self._silent_s = silent_s

    async def close(self) -> None:
        """Release the connections."""
        with suppress(BaseError):
            await self._client.close()

    async def ticks(self) -> AsyncIterator[Tick]:
        """Yield trades and books as they come, until the caller stops."""
        queue: asyncio.Queue[Tick] = asyncio.Queue()
        jobs = [
            asyncio.create_task(self._follow("trades", self._client.watch_trades_for_symbols, self._trades, queue)),
            asyncio.create_task(self._follow("books", self._watch_books, self._books, queue)),
        ]
        try:
            while True:
                yield await queue.get()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _watch_books(self, names: list[str]) -> Any:
        return await self._client.watch_order_book_for_symbols(names, _LEVELS)

    async def _follow(self, what: str, watch: Any, ticks_of: Any, queue: asyncio.Queue[Tick]) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                answer = await asyncio.wait_for(watch(list(self._by_name)), self._silent_s)
            except (BaseError, TimeoutError) as e:
                await queue.put(Dropped(what, type(e).__name__))
                await asyncio.sleep(pause)
                pause = min(2.0 * pause, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            for tick in ticks_of(answer):
                await queue.put(tick)

    def _trades(self, rows: Any) -> list[Tick]:
        found: list[Tick] = []
        for row in rows:
            item = self._by_name[row["symbol"]]
            size = float(row["amount"]) * item.ct_val * (1.0 if row["side"] == "buy" else -1.0)
            found.append(TradeTick(item.symbol, str(row["id"]), int(row["timestamp"]) * NS_PER_MS, float(row["price"]), size))
        return found

    def _books(self, row: Any) -> list[Tick]:
        item = self._by_name[row["symbol"]]
        if not row["bids"] or not row["asks"] or row["timestamp"] is None:
            return []
        sides = [_levels(row[name][:_LEVELS], item.ct_val) for name in ("bids", "asks")]
        return [BookTick(item.symbol, Book(int(row["timestamp"]) * NS_PER_MS, sides[0], sides[1]))]


def _levels(rows: Any, ct_val: float) -> npt.NDArray[np.float64]:
    return np.array([(float(r[0]), float(r[1]) * ct_val) for r in rows], dtype=np.float64).reshape(-1, 2)

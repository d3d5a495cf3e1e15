"""What the websockets said, kept for whoever asks: closed bars, orders, and whether the account wants a look.

Only bars the exchange called final are kept. A bar that was missed while a connection was down is simply not here, and its
symbol is asked for by REST; so a silent, slow or lost socket costs time, never a bar.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final, Protocol

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock
from crypto_qlib.exchange.gateway import OrderReport, PriceKind
from crypto_qlib.exchange.okx_live_stream import AccountTick, CandleTick, Connected, LiveTick, OrderTick
from crypto_qlib.exchange.okx_parsing import bars_from
from crypto_qlib.exchange.okx_stream import Dropped

_BARS_KEPT: Final = 16
_ORDERS_KEPT: Final = 512


class Ticks(Protocol):
    """A stream of pushes."""

    def ticks(self) -> AsyncIterator[LiveTick]:
        """Yield what is pushed, until the caller stops."""
        ...

    def watch(self, instruments: Sequence[Instrument]) -> None:
        """Watch these swaps too, from now on."""
        ...

    async def close(self) -> None:
        """Release the connections."""
        ...


class LiveFeed:
    """Listen to a stream.

    Parameters
    ----------
    stream : Ticks
        What is pushed.
    frame_ns : int
        Bar length.
    """

    def __init__(self, stream: Ticks, frame_ns: int) -> None:
        self._stream = stream
        self._frame_ns = frame_ns
        self._bars: dict[tuple[str, PriceKind], dict[int, tuple[str, ...]]] = {}
        self._orders: dict[str, OrderReport] = {}
        self._news = asyncio.Event()
        self.account_changed = asyncio.Event()
        self.up: set[str] = set()
        self._changes: list[Connected | Dropped] = []

    async def listen(self) -> None:
        """Keep what comes, until cancelled."""
        try:
            async for tick in self._stream.ticks():
                self.note(tick)
        finally:
            await self._stream.close()

    def watch(self, instruments: Sequence[Instrument]) -> None:
        """Hear the bars of these swaps too, from now on."""
        self._stream.watch(instruments)

    def note(self, tick: LiveTick) -> None:
        """Keep one push."""
        match tick:
            case CandleTick(is_final=True):
                bars = self._bars.setdefault((tick.symbol, tick.kind), {})
                bars[tick.ts_open] = tick.row
                while len(bars) > _BARS_KEPT:
                    del bars[min(bars)]
                self._news.set()
            case OrderTick():
                self._orders[tick.report.client_order_id] = tick.report
                while len(self._orders) > _ORDERS_KEPT:
                    del self._orders[next(iter(self._orders))]
                self.account_changed.set()
            case AccountTick():
                self.account_changed.set()
            case Connected():
                self.up.add(tick.what)
                self._changes.append(tick)
                self.account_changed.set()  # whatever was missed in between
            case Dropped():
                self.up.discard(tick.what)
                self._changes.append(tick)
            case _:
                pass

    def take_changes(self) -> list[Connected | Dropped]:
        """Return the connections that came and went since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def order(self, client_order_id: str) -> OrderReport | None:
        """Return the last pushed state of an order, where that was a final one; a state that is not is not worth trusting."""
        report = self._orders.get(client_order_id)
        return report if report is not None and report.status.is_final else None

    def bars(self, symbol: str, kind: PriceKind, start_ns: int, end_ns: int) -> BarBlock | None:
        """Return the closed bars with ``start_ns <= ts_open < end_ns``, or ``None`` where not every one of them was pushed."""
        known = self._bars.get((symbol, kind), {})
        first = -(-start_ns // self._frame_ns) * self._frame_ns
        wanted = range(first, end_ns - self._frame_ns + 1, self._frame_ns)
        if not wanted or any(ts not in known for ts in wanted):
            return None
        return bars_from([known[ts] for ts in wanted])

    def has_bar(self, symbols: Iterable[str], close_ns: int, kinds: Iterable[PriceKind]) -> bool:
        """Return whether the bar that closed at ``close_ns`` was pushed for all of ``symbols`` and ``kinds``."""
        opened, wanted = close_ns - self._frame_ns, tuple(kinds)
        return all(opened in self._bars.get((symbol, kind), {}) for symbol in symbols for kind in wanted)

    async def wait_for_bar(
        self, symbols: Iterable[str], close_ns: int, patience_s: float, kinds: Iterable[PriceKind] = (PriceKind.LAST,)
    ) -> bool:
        """Wait until the bar that closed at ``close_ns`` is there for all, ``patience_s`` at most; return whether it is."""
        names, wanted = tuple(symbols), tuple(kinds)

        async def _all() -> None:
            while not self.has_bar(names, close_ns, wanted):
                self._news.clear()
                await self._news.wait()

        try:
            await asyncio.wait_for(_all(), patience_s)
        except TimeoutError:
            return False
        return True

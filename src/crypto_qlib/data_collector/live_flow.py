"""Minutes of order flow from ticks: volume delta from trades, imbalance and spread from books. Pure: ticks in, rows out.

Per symbol and minute::

    buy, sell        base coins that takers bought and sold; delta = buy - sell
    n_trades         trades
    imbalance        mean over book updates of (bid size - ask size) / (bid size + ask size), the best five levels
    spread_bps       mean over book updates of (ask - bid) / mid
    depth_quote      mean over book updates of the five levels' size on both sides, USDT
    bid_slope        mean over book updates of a side's five levels in USDT a basis point of distance between the mid and the
    ask_slope        farthest of them: a steep book takes much volume for little movement
    effective_bps    mean over trades, by size, of 2 |price - mid| / mid, mid of the last book before the trade
    realised_bps     the same of 2 side (price - mid 5 s later) / mid: what the maker kept (Huang & Stoll 1996); trades whose
                     later mid was not seen while the minute was open are left out
    n_books          book updates
    is_whole         1 where the stream stood all through the minute; else the minute has a hole

A minute is handed out once it is over, with a little patience for late ticks; a trade that came twice counts once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_MINUTE, NS_PER_S, floor_ts
from crypto_qlib.exchange.gateway import Book
from crypto_qlib.exchange.okx_stream import BookTick, Dropped, Tick, TradeTick
from crypto_qlib.store.lake import TIME, Columns

COLUMNS: Final = ("buy", "sell", "n_trades", "imbalance", "spread_bps", "depth_quote", "n_books", "is_whole", "bid_slope",
                  "ask_slope", "effective_bps", "realised_bps")  # fmt: skip
PATIENCE_NS: Final = 5 * NS_PER_S
"""How long after its end a minute still takes late ticks."""
HOLD_NS: Final = 5 * NS_PER_S
"""How long after a trade the mid is looked at again; a book of twice that age says nothing about the trade."""
_MIDS: Final = 16
"""Books kept to find the one before a trade that comes late."""
_BPS: Final = 1e4


@dataclass(slots=True)
class _Minute:
    buy: float = 0.0
    sell: float = 0.0
    n_trades: int = 0
    imbalance: float = 0.0
    spread_bps: float = 0.0
    depth_quote: float = 0.0
    n_books: int = 0
    bid_slope: float = 0.0
    ask_slope: float = 0.0
    effective: float = 0.0
    effective_size: float = 0.0
    realised: float = 0.0
    realised_size: float = 0.0
    seen: set[str] = field(default_factory=set)

    def row(self, *, is_whole: bool) -> tuple[float, ...]:
        n = self.n_books or math.nan
        means = (self.imbalance / n, self.spread_bps / n, self.depth_quote / n)
        slopes = (self.bid_slope / n, self.ask_slope / n)
        spreads = (self.effective / (self.effective_size or math.nan), self.realised / (self.realised_size or math.nan))
        return (self.buy, self.sell, float(self.n_trades), *means, float(self.n_books), float(is_whole), *slopes, *spreads)


@dataclass(slots=True)
class _Quotes:
    """The last mids of a symbol, and the trades that wait for the mid to come."""

    mids: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_MIDS))
    waiting: deque[tuple[int, int, float, float]] = field(default_factory=deque)
    """(minute, time, signed size, price) of each, oldest first."""

    def at(self, ts_ns: int) -> float:
        """Return the mid of the last book not later than ``ts_ns`` (trades and books come on two streams); NaN if too old."""
        for known_ns, mid in reversed(self.mids):
            if known_ns <= ts_ns:
                return mid if ts_ns - known_ns <= 2 * HOLD_NS else math.nan
        return math.nan


class FlowMinutes:
    """Gather ticks into minutes.

    Parameters
    ----------
    symbols : iterable of str
        Swaps watched.
    start_ns : int
        When watching began: both streams count as down until the first tick.
    """

    def __init__(self, symbols: Iterable[str], start_ns: int) -> None:
        self._open: dict[str, dict[int, _Minute]] = {s: {} for s in symbols}
        self._quotes = {s: _Quotes() for s in self._open}
        self._next_ns = floor_ts(start_ns, NS_PER_MINUTE)
        self._broken: set[int] = set()
        self._heard_ns: dict[str, int] = {}
        self._down_since_ns = dict.fromkeys(("trades", "books"), start_ns)

    def take(self, tick: Tick, now_ns: int) -> None:
        """Count one tick; a tick of a minute already handed out is dropped, it changes nothing that was told.

        A stream that was lost has a hole from the last thing heard on it to the next.
        """
        if isinstance(tick, Dropped):
            self._down_since_ns.setdefault(tick.what, self._heard_ns.get(tick.what, self._next_ns))
            return
        what = "trades" if isinstance(tick, TradeTick) else "books"
        if what in self._down_since_ns:
            self._break(self._down_since_ns.pop(what), now_ns)
        self._heard_ns[what] = now_ns
        ts_ns = tick.ts_ns if isinstance(tick, TradeTick) else tick.book.ts_ns
        minute_ns = floor_ts(ts_ns, NS_PER_MINUTE)
        if minute_ns < self._next_ns or tick.symbol not in self._open:
            return
        minutes, quotes = self._open[tick.symbol], self._quotes[tick.symbol]
        minute = minutes.setdefault(minute_ns, _Minute())
        if isinstance(tick, BookTick):
            _count_book(minute, tick.book)
            _count_realised(minutes, quotes, tick.book)
        elif tick.trade_id not in minute.seen:
            minute.seen.add(tick.trade_id)
            minute.n_trades += 1
            minute.buy += max(tick.size, 0.0)
            minute.sell += max(-tick.size, 0.0)
            _count_effective(minute, minute_ns, quotes, tick)

    def _break(self, from_ns: int, to_ns: int) -> None:
        self._broken |= set(range(floor_ts(from_ns, NS_PER_MINUTE), to_ns + 1, NS_PER_MINUTE))

    def finished(self, now_ns: int) -> dict[str, Columns]:
        """Return the rows of every minute that is over at ``now_ns``, by symbol; each is handed out once.

        A minute in which a symbol had neither trade nor book is a row of zeros where the stream stood, and no row at all
        where it had a hole.
        """
        stop = floor_ts(now_ns - PATIENCE_NS, NS_PER_MINUTE)
        minutes = range(self._next_ns, stop, NS_PER_MINUTE)
        for since in self._down_since_ns.values():
            self._break(since, stop - 1)
        rows: dict[str, Columns] = {}
        for symbol, kept in self._open.items():
            told: list[tuple[int, tuple[float, ...]]] = []
            for m in minutes:
                minute, is_whole = kept.pop(m, None), m not in self._broken
                if minute is not None or is_whole:
                    told.append((m, (minute or _Minute()).row(is_whole=is_whole)))
            if told:
                values = np.array([r for _, r in told])
                stamps: Columns = {TIME: np.array([m for m, _ in told], dtype=np.int64)}
                rows[symbol] = stamps | {name: values[:, k] for k, name in enumerate(COLUMNS)}
        self._broken = {m for m in self._broken if m >= stop}
        self._next_ns = max(self._next_ns, stop)
        return rows


def _mid(book: Book) -> float:
    return 0.5 * (float(book.bids[0, 0]) + float(book.asks[0, 0]))


def _count_effective(minute: _Minute, minute_ns: int, quotes: _Quotes, trade: TradeTick) -> None:
    mid = quotes.at(trade.ts_ns)
    if not mid > 0.0:
        return
    size = abs(trade.size)
    minute.effective += size * 2.0 * abs(trade.price / mid - 1.0) * _BPS
    minute.effective_size += size
    quotes.waiting.append((minute_ns, trade.ts_ns, trade.size, trade.price))


def _count_realised(minutes: dict[int, _Minute], quotes: _Quotes, book: Book) -> None:
    """Take the mid of ``book`` for the trades that waited for it, then keep it for the trades to come."""
    middle = _mid(book)
    while quotes.waiting and book.ts_ns - quotes.waiting[0][1] >= HOLD_NS:
        minute_ns, ts_ns, size, price = quotes.waiting.popleft()
        minute = minutes.get(minute_ns)
        if minute is not None and book.ts_ns - ts_ns <= 2 * HOLD_NS and middle > 0.0:
            minute.realised += size * 2.0 * (price / middle - 1.0) * _BPS
            minute.realised_size += abs(size)
    if not quotes.mids or book.ts_ns > quotes.mids[-1][0]:
        quotes.mids.append((book.ts_ns, middle))


def _count_book(minute: _Minute, book: Book) -> None:
    bid, ask = float(book.bids[:, 1].sum()), float(book.asks[:, 1].sum())
    best_bid, best_ask = float(book.bids[0, 0]), float(book.asks[0, 0])
    middle = _mid(book)
    if not (bid + ask > 0.0 and middle > 0.0):
        return
    in_quote = [float((side[:, 0] * side[:, 1]).sum()) for side in (book.bids, book.asks)]
    farthest = [abs(float(side[-1, 0]) / middle - 1.0) * _BPS for side in (book.bids, book.asks)]
    minute.bid_slope += in_quote[0] / farthest[0] if farthest[0] > 0.0 else 0.0
    minute.ask_slope += in_quote[1] / farthest[1] if farthest[1] > 0.0 else 0.0
    minute.n_books += 1
    minute.imbalance += (bid - ask) / (bid + ask)
    minute.spread_bps += (best_ask - best_bid) / middle * _BPS
    minute.depth_quote += in_quote[0] + in_quote[1]

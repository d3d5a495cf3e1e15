"""A market that is not known in advance, as bars of the venue: each observation ends one bar and begins the next.

A bar opens at the prices of an observation, with the live order book; orders fill there. The next observation tells how far the
prices went in between, the bar is completed with it and lived through, and the next one opens. What was observed is part of
the posted row, so that the journal, carried out again, meets the same market.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import orjson

from crypto_qlib.exchange.embedded.live_symbol import LiveSymbol
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.wire import Call, Row
from crypto_qlib.venue.depth import Depth
from crypto_qlib.venue.market_board import FloatArray, VenueBar

OBSERVE: Final = "admin/observe"
LEAST_NS: Final = 2_000_000
"""Shortest bar: the venue stamps what happens inside a millisecond before its close."""
_DEPTH_KEPT: Final = 100


def observation(ts_ns: int, symbols: list[LiveSymbol], funding: dict[str, float], *, with_books: bool) -> Row:
    """Return the row that tells what is known of ``symbols`` now; their extremes begin anew.

    Parameters
    ----------
    funding : dict
        Symbol -> rate of the settlements that are due.
    with_books : bool
        Whether orders are about to trade against the books.
    """
    seen, books = {}, {}
    for live in symbols:
        seen[live.item.symbol] = [*live.last.observed(), *live.mark.observed(), live.volume]
        live.volume = 0.0
        depth = live.depth(_DEPTH_KEPT) if with_books else None
        if depth is not None:
            books[live.item.symbol] = [depth.bids.tolist(), depth.asks.tolist()]
    row: Row = {"ts": ts_ns, "seen": seen}
    return row | ({"books": books} if books else {}) | ({"funding": funding} if funding else {})


class LiveBars:
    """Handler of the operation :data:`OBSERVE`.

    Parameters
    ----------
    window : MarketWindow
        The market: its clock moves with the observations.
    venue : PaperVenue
        The simulated exchange.
    """

    def __init__(self, window: MarketWindow, venue: PaperVenue) -> None:
        self._window = window
        self._venue = venue
        self._symbols = tuple(item.symbol for item in window.source.instruments())
        self._bar: VenueBar | None = None

    def observe(self, call: Call) -> bytes:
        """Complete the bar that is open with what was seen since, live through it, and open the next one."""
        row = call.body[0]
        ts_ns, seen = int(row["ts"]), row["seen"]
        if self._bar is not None:
            self._venue.exchange.complete_bar(self._completed(self._bar, ts_ns, seen))
            self._venue.exchange.end_bar()
        self._window.clock.resume_at(ts_ns)
        self._bar = self._opened(ts_ns, row)
        self._venue.exchange.begin_bar(self._bar)
        return orjson.dumps({"ts": ts_ns})

    def _opened(self, ts_ns: int, row: Row) -> VenueBar:
        """Return the bar that opens now: its inside is not known yet, so it is flat."""
        seen: dict[str, list[float]] = row["seen"]
        last, mark, funding = self._column(seen, 0), self._column(seen, 3), np.full(len(self._symbols), np.nan)
        for symbol, rate in row.get("funding", {}).items():
            funding[self._symbols.index(symbol)] = rate
        known = self._window.trailing_liquidity.at(ts_ns)
        unknown = np.full(len(self._symbols), np.nan)
        return VenueBar(
            ts_ns, LEAST_NS, self._symbols, last, last, last, last, mark, mark, mark, mark, unknown, unknown, funding,
            known.adv, known.sigma_day_bps, {symbol: _depth(sides) for symbol, sides in row.get("books", {}).items()},
        )  # fmt: skip

    def _completed(self, bar: VenueBar, ts_ns: int, seen: dict[str, list[float]]) -> VenueBar:
        """Return the bar with its inside; a symbol that was not looked at again stayed where it was."""

        def told(k: int, opened: FloatArray, worst: Any) -> FloatArray:
            value = self._column(seen, k)
            known: FloatArray = np.where(np.isnan(value), opened, worst(value, opened))
            return known

        closes = lambda value, _opened: value  # noqa: E731 - the latest price closes the bar
        volume = self._column(seen, 6)
        return replace(
            bar, frame_ns=ts_ns - bar.ts_open, volume=volume, quote_volume=volume * bar.open,
            close=told(0, bar.open, closes), high=told(1, bar.open, np.maximum), low=told(2, bar.open, np.minimum),
            mark_close=told(3, bar.mark_open, closes), mark_high=told(4, bar.mark_open, np.maximum),
            mark_low=told(5, bar.mark_open, np.minimum),
        )  # fmt: skip

    def _column(self, seen: dict[str, list[float]], k: int) -> FloatArray:
        values = np.full(len(self._symbols), np.nan)
        for n, symbol in enumerate(self._symbols):
            if symbol in seen:
                values[n] = seen[symbol][k]
        return values


def _depth(sides: list[list[list[float]]]) -> Depth:
    return Depth(*(np.array(side, dtype=np.float64).reshape(-1, 2) for side in sides))

"""What the exchange shows of the market right now: the bar being simulated, and the last known prices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.venue.depth import Depth

FloatArray = npt.NDArray[np.float64]

_FIELDS: Final = (
    "open", "high", "low", "close", "mark_open", "mark_high", "mark_low", "mark_close", "volume", "quote_volume",
    "funding_rate", "adv", "sigma_day_bps",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VenueBar:
    """One bar of the whole market; every array is ``(n_symbols,)`` float64.

    Parameters
    ----------
    ts_open, frame_ns : int
        Open time and length, nanoseconds.
    symbols : tuple of str
        Compact names; a symbol without a price in this bar is NaN or left out.
    open, high, low, close : array
        Last prices, quote units.
    mark_open, mark_high, mark_low, mark_close : array
        Mark prices; NaN = no mark known, last is used.
    volume, quote_volume : array
        Base coins and USDT traded; NaN where unknown.
    funding_rate : array
        Rate settled at the bar's open instant; NaN = no settlement.
    adv : array
        Trailing median daily turnover, USDT, for slippage; NaN where unknown.
    sigma_day_bps : array
        Trailing daily volatility, basis points; NaN where unknown.
    depth : mapping of str to Depth
        Order books recorded at the open instant, where there are any; orders at the open walk them.

    Raises
    ------
    UserError
        If a price is not positive or a high lies below a low, naming symbol and time.
    """

    ts_open: int
    frame_ns: int
    symbols: tuple[str, ...]
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    mark_open: FloatArray
    mark_high: FloatArray
    mark_low: FloatArray
    mark_close: FloatArray
    volume: FloatArray
    quote_volume: FloatArray
    funding_rate: FloatArray
    adv: FloatArray
    sigma_day_bps: FloatArray
    depth: Mapping[str, Depth] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _FIELDS:
            if getattr(self, name).shape != (len(self.symbols),):
                raise ValueError(f"VenueBar.{name} must have shape ({len(self.symbols)},)")
        for stream, low, high, others in (
            ("last", self.low, self.high, (self.open, self.close)),
            ("mark", self.mark_low, self.mark_high, (self.mark_open, self.mark_close)),
        ):
            bad = (low <= 0.0) | (high < low)
            for other in others:
                bad |= (other < low) | (other > high)
            if bad.any():
                at = self.symbols[int(np.argmax(bad))]
                raise UserError(f"{at} at {iso(self.ts_open)}: {stream} prices are not 0 < low <= open, close <= high")

    @property
    def ts_close(self) -> int:
        """Return the close instant, at which the bar is known."""
        return self.ts_open + self.frame_ns


@dataclass(frozen=True, slots=True)
class SymbolBar:
    """One symbol's row of a :class:`VenueBar`; mark prices are last prices where no mark is known."""

    open: float
    high: float
    low: float
    close: float
    mark_open: float
    mark_high: float
    mark_low: float
    mark_close: float
    volume: float
    quote_volume: float
    funding_rate: float
    adv: float
    sigma_day_bps: float


class MarketBoard:
    """Hold the bar being simulated and the last known last and mark price of every symbol."""

    def __init__(self) -> None:
        self.bar: VenueBar | None = None
        self._index: dict[str, int] = {}
        self._index_of: tuple[str, ...] = ()
        self._rows: dict[str, SymbolBar | None] = {}
        self._hidden: set[str] = set()
        self._taken: dict[tuple[str, bool], float] = {}
        self._last: dict[str, float] = {}
        self._mark: dict[str, float] = {}

    def open_bar(self, bar: VenueBar) -> None:
        """Show ``bar``: only its opens are current prices until :meth:`close_bar`."""
        self.bar = bar
        if bar.symbols is not self._index_of:
            self._index = {symbol: k for k, symbol in enumerate(bar.symbols)}
            self._index_of = bar.symbols
        self._rows = {}
        self._hidden.clear()
        self._taken.clear()
        self._remember(bar, bar.open, bar.mark_open)

    def complete_bar(self, bar: VenueBar) -> None:
        """Replace the bar being simulated by what is known of it now that it has passed; its open instant stays."""
        assert self.bar is not None
        if bar.ts_open != self.bar.ts_open or bar.symbols is not self.bar.symbols:
            raise ValueError("a bar is completed by one of the same open time and symbols")
        self.bar = bar
        self._rows = dict.fromkeys(self._hidden)

    def close_bar(self) -> None:
        """Hide the bar; its closes are the current prices."""
        bar = self.bar
        assert bar is not None
        self._remember(bar, bar.close, bar.mark_close)
        self.bar = None
        self._rows = {}

    def row(self, symbol: str) -> SymbolBar | None:
        """Return the symbol's row of the bar being simulated, or ``None`` where it has no price in it."""
        if symbol not in self._rows:
            self._rows[symbol] = self._read(symbol)
        return self._rows[symbol]

    def funding_rate(self, symbol: str) -> float:
        """Return the rate settled at the open of the bar being simulated, whether or not the symbol has a price; else NaN."""
        k = self._index.get(symbol, -1)
        return float(self.bar.funding_rate[k]) if self.bar is not None and k >= 0 else math.nan

    def hide(self, symbol: str) -> None:
        """Show no row of ``symbol`` for the rest of the bar."""
        self._rows[symbol] = None
        self._hidden.add(symbol)

    def depth(self, symbol: str) -> Depth | None:
        """Return the book recorded at the open of the bar being simulated, if there is one."""
        return self.bar.depth.get(symbol) if self.bar is not None else None

    def taken(self, symbol: str, *, buys: bool) -> float:
        """Return the base coins orders took from one side of a recorded book since the bar's open."""
        return self._taken.get((symbol, buys), 0.0)

    def take(self, symbol: str, qty: float, *, buys: bool) -> None:
        """Note that an order took ``qty`` base coins from one side of a recorded book."""
        self._taken[symbol, buys] = self.taken(symbol, buys=buys) + qty

    def last(self, symbol: str) -> float:
        """Return the last price now known; NaN before the first."""
        return self._last.get(symbol, math.nan)

    def mark(self, symbol: str) -> float:
        """Return the mark price now known; NaN before the first."""
        return self._mark.get(symbol, math.nan)

    def _read(self, symbol: str) -> SymbolBar | None:
        bar, k = self.bar, self._index.get(symbol, -1)
        if bar is None or k < 0 or math.isnan(bar.open[k]):
            return None
        values = [float(getattr(bar, name)[k]) for name in _FIELDS]
        if any(map(math.isnan, values[4:8])):
            values[4:8] = values[0:4]
        return SymbolBar(*values)

    def _remember(self, bar: VenueBar, last: FloatArray, mark: FloatArray) -> None:
        known_mark = np.where(np.isnan(mark), last, mark).tolist()
        for symbol, price, mark_price in zip(bar.symbols, last.tolist(), known_mark, strict=True):
            if price == price:  # noqa: PLR0124 - NaN is unequal to itself: no price, keep the older one
                self._last[symbol] = price
                self._mark[symbol] = mark_price

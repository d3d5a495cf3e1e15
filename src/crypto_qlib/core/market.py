"""Market data between rooms: one symbol's bars, a panel of many symbols, and the view cut at a moment.

A bar is named by its **open** time and is known only at its **close**. Panels are time-major ``(n_bars, n_symbols)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.membership import Membership

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PANEL_PRICES = ("open", "high", "low", "close", "mark_open", "mark_high", "mark_low", "mark_close")
"""Price fields of a :class:`MarketPanel`."""
PANEL_FIELDS = (*PANEL_PRICES[:4], "volume", "quote_volume", *PANEL_PRICES[4:], "funding_rate")
"""All ``(n_bars, n_symbols)`` fields of a :class:`MarketPanel`."""


@dataclass(frozen=True, slots=True)
class BarBlock:
    """Consecutive bars of one symbol, oldest first.

    Parameters
    ----------
    ts_open : (n_bars,) int64
        Open times, nanoseconds since the epoch, increasing; gaps are simply absent rows.
    open, high, low, close : (n_bars,) float64
        Prices in quote units.
    volume : (n_bars,) float64
        Base coins; NaN for mark and index candles.
    quote_volume : (n_bars,) float64
        Quote units (USDT); NaN where the source has none.
    """

    ts_open: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    quote_volume: FloatArray

    def __len__(self) -> int:
        return int(self.ts_open.size)

    @staticmethod
    def empty() -> BarBlock:
        """Return a block without bars."""
        none = np.empty(0)
        return BarBlock(np.empty(0, np.int64), none, none, none, none, none, none)


@dataclass(frozen=True, slots=True)
class FundingBlock:
    """Settled funding of one symbol, oldest first.

    Parameters
    ----------
    ts : (n,) int64
        Settlement instants, nanoseconds since the epoch, increasing; intervals may change.
    rate : (n,) float64
        Realised rate of each settlement (fraction of mark notional; > 0: longs pay).
    """

    ts: IntArray
    rate: FloatArray

    def __len__(self) -> int:
        return int(self.ts.size)


@dataclass(frozen=True, slots=True)
class LongShortBlock:
    """How the accounts of one symbol are split, oldest first.

    Parameters
    ----------
    ts : (n,) int64
        Instants, nanoseconds since the epoch, increasing.
    ratio : (n,) float64
        Accounts that are long per account that is short.
    """

    ts: IntArray
    ratio: FloatArray

    def __len__(self) -> int:
        return int(self.ts.size)


@dataclass(frozen=True, slots=True)
class MarketPanel:
    """Aligned bars of many symbols on one regular grid; the input of features, backtest and live alike.

    Parameters
    ----------
    symbols : tuple of str
        Length ``n_symbols``, e.g. ``("BTCUSDT", "ETHUSDT")``.
    frame_ns : int
        Bar length in nanoseconds.
    ts_open : (n_bars,) int64
        Regular grid of open times, step ``frame_ns``.
    open, high, low, close, volume, quote_volume : (n_bars, n_symbols) float64
        NaN where the symbol was not listed or the bar is missing.
    mark_open, mark_high, mark_low, mark_close : (n_bars, n_symbols) float64
        Mark price; equal to last where the venue's mark is not known, see ``has_mark``.
    funding_rate : (n_bars, n_symbols) float64
        Rate settled at the bar's **open** instant; 0.0 where a settlement took place at rate zero, NaN where none took place.
    has_mark : (n_symbols,) bool
        Whether the mark columns are real marks.
    is_member : (n_bars, n_symbols) bool
        Whether the symbol belonged to the universe as known at the bar's close; by default all did, always.
    """

    symbols: tuple[str, ...]
    frame_ns: int
    ts_open: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    quote_volume: FloatArray
    mark_open: FloatArray
    mark_high: FloatArray
    mark_low: FloatArray
    mark_close: FloatArray
    funding_rate: FloatArray
    has_mark: BoolArray
    # Any: panels are built from dictionaries of price columns, which a narrower type would refuse beside it.
    is_member: npt.NDArray[Any] = field(default_factory=lambda: np.ones((0, 0), dtype=np.bool_))

    def __post_init__(self) -> None:
        shape = (self.ts_open.size, len(self.symbols))
        if self.is_member.shape != shape:
            if self.is_member.size:
                raise ValueError(f"MarketPanel.is_member must have shape {shape}, got {self.is_member.shape}")
            object.__setattr__(self, "is_member", np.broadcast_to(np.True_, shape))
        for name in PANEL_FIELDS:
            got = getattr(self, name).shape
            if got != shape:
                raise ValueError(f"MarketPanel.{name} must have shape {shape}, got {got}")
        _refuse_irregular_bars(self.ts_open, self.frame_ns)

    @property
    def n_bars(self) -> int:
        """Return the number of bars."""
        return int(self.ts_open.size)

    def known_until(self, as_of_ns: int) -> MarketPanel:
        """Return the bars that were closed at ``as_of_ns``, as read-only views: the only door for whatever decides.

        Parameters
        ----------
        as_of_ns : int
            Nothing known later than this instant is in the result: the last bar closes at or before it.
        """
        n = int(np.searchsorted(self.ts_open + self.frame_ns, as_of_ns, side="right"))
        return self.rows(0, n)

    def rows(self, start: int, stop: int) -> MarketPanel:
        """Return bars ``start:stop`` as read-only views."""
        cut: dict[str, FloatArray] = {}
        for name in PANEL_FIELDS:
            view = getattr(self, name)[start:stop]
            view.setflags(write=False)
            cut[name] = view
        members = self.is_member[start:stop]
        members.setflags(write=False)
        return MarketPanel(
            self.symbols, self.frame_ns, self.ts_open[start:stop], has_mark=self.has_mark, is_member=members, **cut
        )

    def with_members(self, membership: Membership) -> MarketPanel:
        """Return the same bars with the universe as known at each bar's close; nothing is copied but the mask."""
        return replace(self, is_member=membership.at(self.symbols, self.ts_open + self.frame_ns))


def _refuse_irregular_bars(ts_open: IntArray, frame_ns: int) -> None:
    """Refuse open times that are no regular grid, saying where and how.

    Raises
    ------
    UserError
        Bars out of order, twice, overlapping, or not there.
    """
    steps = np.diff(ts_open)
    bad = np.flatnonzero(steps != frame_ns)
    if not bad.size:
        return
    k = int(bad[0])
    before, after, step = iso(int(ts_open[k])), iso(int(ts_open[k + 1])), int(steps[k])
    if step == 0:
        raise UserError(f"the bar at {after} is there twice", "keep one of the two")
    if step < 0:
        raise UserError(f"the bar at {after} comes after the later bar at {before}", "sort the bars by time")
    if step < frame_ns:
        raise UserError(
            f"the bar at {after} begins before the bar at {before} has ended: the time frames overlap",
            f"give bars of {frame_ns / 1e9:g} s alone",
        )
    raise UserError(f"no bar between {before} and {after}", "keep a missing bar as a row of NaN")

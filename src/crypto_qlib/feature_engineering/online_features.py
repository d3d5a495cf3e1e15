"""The newest row of a live market from what the bars before it left behind: one bar's work a bar, the same bits as a rebuild.

1. The series of the window stand in one array ``(n_symbols, n_series, n_bars)``. A bar moves the window on by one element of
   its memory, which copies nothing: what was bar ``t + 1`` is now bar ``t``, and the last bar of each series is written anew.
2. Only the new bar's series are filled, and only its row is evaluated; rows of earlier bars (a model's context) are kept.
3. That holds only while the past stands still. A late bar, a changed universe, more than one new bar, a correction beside the
   bars: anything but exactly one new bar behind the very bits seen before is a rebuild of the window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from crypto_qlib.core.errors import SkipCycle
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.feature_engineering.bar_series import Cube, FeatureInputs, fill_bars
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame, RowIndex
from crypto_qlib.feature_engineering.feature_generator import (
    BTC_SYMBOL,
    evaluated,
    feature_catalogue,
    lookback_bars,
    reads_macd,
    window_inputs,
)
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.side_data import SideData, side_digest
from crypto_qlib.feature_engineering.wide_series import fill_wide
from crypto_qlib.settings.schema import FeatureSettings

_BARS_BETWEEN_COPIES: Final = 4096
"""Elements of spare memory behind the window, one a bar; then the window is copied to the front of it once."""


@dataclass(frozen=True, slots=True)
class _Window:
    """What the last bar left behind: the panel it saw, its series, the rows it gave, and what was known beside the bars."""

    panel: MarketPanel
    inputs: FeatureInputs
    rows: FeatureFrame
    beside: str


class OnlineFeatures:
    """Rows of the newest bars, bar after bar; each bit-equal to :func:`latest_features` on the same panel.

    Parameters
    ----------
    settings : FeatureSettings
        Which sets.
    bars : int
        Rows of how many bars are wanted, the newest included.

    Attributes
    ----------
    advanced, rebuilt : int
        Bars that were one bar's work, and those the whole window was built anew for.
    """

    def __init__(self, settings: FeatureSettings, bars: int = 1) -> None:
        self._settings = settings
        self._bars = bars
        self._memory = np.empty(0)
        self._offset = 0
        self._last: _Window | None = None
        self.advanced = 0
        self.rebuilt = 0

    def latest(self, panel: MarketPanel, side: SideData | None = None) -> FeatureFrame:
        """Return the rows of the last bars of ``panel``; its grid is those bars, or as many as there are.

        Raises
        ------
        SkipCycle
            If no symbol has a price in the last bar.
        UserError
            As :func:`build_features`.
        """
        n = min(panel.n_bars, lookback_bars(self._settings, panel.frame_ns) + self._bars - 1)
        window = panel.rows(panel.n_bars - n, panel.n_bars)
        last, self._last = self._last, None  # whatever fails on the way leaves nothing half moved
        if n == 0 or not np.isfinite(window.close[-1]).any():
            raise SkipCycle("no symbol has a price in the newest bar")
        beside = side or SideData()
        if last is not None and _is_next(last.panel, window) and last.beside == _digest(beside, last.panel):
            inputs = self._moved(last.inputs, window, beside)
            rows = _joined(last.rows, evaluated(inputs, window, self._settings, 1), n)
            self.advanced += 1
        else:
            built = window_inputs(window, self._settings, beside, max(n - self._bars, 0))
            rows = _tail(evaluated(built, window, self._settings, 1), min(self._bars, n))
            inputs = replace(built, data=self._settled(built.data))
            self.rebuilt += 1
        self._last = _Window(window, inputs, rows, _digest(beside, window))
        return rows

    def _settled(self, data: Cube) -> Cube:
        """Copy the window to the front of memory with room to move behind it."""
        self._memory = np.empty(data.size + _BARS_BETWEEN_COPIES)
        self._memory[: data.size] = data.ravel()
        self._offset = 0
        return self._memory[: data.size].reshape(data.shape)

    def _moved(self, inputs: FeatureInputs, panel: MarketPanel, side: SideData) -> FeatureInputs:
        """Return the inputs one bar on, the new bar's series filled."""
        size, shape, n = inputs.data.size, inputs.data.shape, panel.n_bars
        if self._offset == _BARS_BETWEEN_COPIES:
            self._settled(inputs.data)
        self._offset += 1
        data = self._memory[self._offset : self._offset + size].reshape(shape)
        data[:, :, -1] = np.nan
        order = inputs.rows.order
        is_member = np.ascontiguousarray(panel.is_member.T[order])
        moved = FeatureInputs(
            data, _row_of_last_bar(panel, order), n - 1, panel.frame_ns, panel.ts_open, inputs.names, is_member, side
        )
        macd_from = n - 1 if reads_macd(feature_catalogue(self._settings, panel.frame_ns)) else n
        fill_bars(moved, panel, n - 1, BTC_SYMBOL, macd_from)
        if any(FEATURE_SETS[name].is_wide for name in self._settings.sets):
            fill_wide(moved, panel, n - 1)
        return moved


def _is_next(before: MarketPanel, now: MarketPanel) -> bool:
    """Return whether ``now`` is ``before`` without its first bar and with one new bar behind it, bit for bit."""
    if (now.symbols, now.frame_ns, now.n_bars) != (before.symbols, before.frame_ns, before.n_bars):
        return False
    if not np.array_equal(now.ts_open[:-1], before.ts_open[1:]) or not np.array_equal(now.is_member[:-1], before.is_member[1:]):
        return False
    fields = ((getattr(before, name)[1:], getattr(now, name)[:-1]) for name in PANEL_FIELDS)
    return all(np.array_equal(was.view(np.int64), known.view(np.int64)) for was, known in fields)


def _digest(side: SideData, panel: MarketPanel) -> str:
    """Return a digest of everything that was known beside the bars by the close of the last bar of ``panel``."""
    return side_digest(side, None, int(panel.ts_open[-1]) + panel.frame_ns)


def _row_of_last_bar(panel: MarketPanel, order: np.ndarray) -> RowIndex:
    """Return the rows of the last bar alone: members of the universe with a close."""
    present = np.flatnonzero(np.isfinite(panel.close[-1, order]) & panel.is_member[-1, order])
    row_of = np.full((order.size, panel.n_bars), -1, dtype=np.int32)
    row_of[present, -1] = np.arange(present.size, dtype=np.int32)
    bars = np.full(present.size, panel.n_bars - 1, dtype=np.int32)
    return RowIndex(bars, order[present].astype(np.int32), row_of, order)


def _tail(frame: FeatureFrame, bars: int) -> FeatureFrame:
    """Return the same rows on the grid of the last ``bars`` bars; there are no rows of earlier ones."""
    first = frame.n_bars - bars
    return replace(frame, ts_open=frame.ts_open[first:], row_bar=frame.row_bar - np.int32(first))


def _joined(before: FeatureFrame, new: FeatureFrame, n_bars: int) -> FeatureFrame:
    """Return the rows of ``before`` without its oldest bar, and behind them those of ``new``, the last of ``n_bars`` bars."""
    bars = before.n_bars
    if bars == 1:
        return _tail(new, 1)
    kept = before.row_span(1, bars)
    moved = np.int32(n_bars - bars)
    return replace(
        new,
        values=np.concatenate([before.values[kept], new.values]),
        ts_open=new.ts_open[n_bars - bars :],
        row_bar=np.concatenate([before.row_bar[kept] - np.int32(1), new.row_bar - moved]),
        row_symbol=np.concatenate([before.row_symbol[kept], new.row_symbol]),
    )

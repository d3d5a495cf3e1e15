"""Rows to be scored, with as many bars before them as a windowed model looks back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

NO_ROW = -1
"""Row number of a (bar, symbol) pair that did not trade."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Whole bars of feature rows; the first ``start`` rows are context and get no prediction.

    Parameters
    ----------
    values : (n_rows, n_features) float32
        Features in training order; NaN where unknown.
    bar : (n_rows,) int64
        Number of each row's bar, not decreasing; rows of one bar lie together.
    symbol : (n_rows,) int64
        Index into ``symbols``.
    symbols : tuple of str
        Names.
    ts_open : (n_rows,) int64
        Open time of each row's bar, nanoseconds.
    start : int
        First row to be scored.
    """

    values: Float32Array
    bar: Int64Array
    symbol: Int64Array
    symbols: tuple[str, ...]
    ts_open: Int64Array
    start: int = 0

    @property
    def n_scored(self) -> int:
        """Return the number of rows to be scored."""
        return int(self.bar.size - self.start)

    def of_symbol(self, symbol: int) -> RowBatch:
        """Return the rows of one symbol; those to be scored stay to be scored."""
        keep = np.flatnonzero(self.symbol == symbol)
        start = int(np.searchsorted(keep, self.start))
        return RowBatch(self.values[keep], self.bar[keep], self.symbol[keep], self.symbols, self.ts_open[keep], start)


def batch_of(frame: FeatureFrame, first_bar: int, stop_bar: int, context_bars: int = 0) -> RowBatch:
    """Return bars ``first_bar:stop_bar`` of ``frame`` to be scored, with up to ``context_bars`` bars before them.

    The feature values are a view of the frame's.
    """
    rows = frame.row_span(max(first_bar - context_bars, 0), stop_bar)
    start = frame.row_span(first_bar, stop_bar).start - rows.start
    bar = frame.row_bar[rows].astype(np.int64)
    return RowBatch(frame.values[rows], bar, frame.row_symbol[rows].astype(np.int64), frame.symbols, frame.ts_open[bar], start)


def row_grid(bar: Int64Array, symbol: Int64Array, n_symbols: int) -> tuple[Int32Array, int]:
    """Return (row number of each (bar - first bar, symbol), -1 where there is none; first bar).

    Parameters
    ----------
    bar, symbol : (n_rows,) int64
        As in :class:`RowBatch`.
    n_symbols : int
        Columns of the grid.
    """
    if bar.size == 0:
        return np.full((0, n_symbols), NO_ROW, np.int32), 0
    first = int(bar[0])
    grid = np.full((int(bar[-1]) - first + 1, n_symbols), NO_ROW, np.int32)
    grid[bar - first, symbol] = np.arange(bar.size, dtype=np.int32)
    return grid, first


@njit
def gather_windows(
    values: Float32Array,
    columns: Int64Array,
    grid: Int32Array,
    bar: Int64Array,
    symbol: Int64Array,
    lookback: int,
    centre: Float32Array,
    scale: Float32Array,
    limit: float,
    out: Float32Array,
) -> None:
    """Write the standardised windows of some rows to ``out``; nothing but the batch itself is ever materialised.

    ``out[i, l, f]`` is ``(value - centre) / scale`` of column ``columns[f]``, cut at ``limit``, of the row ``lookback - 1 - l``
    bars before row ``i``; 0 where the value or the row is missing. The last column says whether the row was there (1 or 0).

    Parameters
    ----------
    values : (n_rows, n_features) float32
        Features.
    columns : (n_used,) int64
        Columns used.
    grid : (n_bars, n_symbols) int32
        Row numbers, see :func:`row_grid`.
    bar, symbol : (n_batch,) int64
        Grid coordinates of the rows wanted.
    lookback : int
        Bars in a window.
    centre, scale : (n_used,) float32
        Standardisation, fitted on training rows.
    limit : float
        Largest absolute standardised value.
    out : (n_batch, lookback, n_used + 1) float32
        Filled.
    """
    for i in range(bar.size):
        for k in range(lookback):
            t = bar[i] - lookback + 1 + k
            row = grid[t, symbol[i]] if t >= 0 else NO_ROW
            if row < 0:
                out[i, k, :] = 0.0
                continue
            for f in range(columns.size):
                z = (values[row, columns[f]] - centre[f]) / scale[f]
                # Comparisons with NaN are false: a missing value ends as 0.
                out[i, k, f] = min(max(z, -limit), limit) if abs(z) >= 0.0 else 0.0
            out[i, k, columns.size] = 1.0

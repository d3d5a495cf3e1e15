"""What was known about each symbol at each bar: the border type between feature building and modelling.

Rows are compact: one per (bar, symbol) that really traded. They are ordered by bar, and inside a bar by symbol *name*, which is
the order Qlib wants, so the Qlib frame is a view of the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.market import MarketPanel
from crypto_qlib.settings.schema import FeatureSettings

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What one feature says, how it is computed and from when it is known.

    Parameters
    ----------
    name : str
        Column name, unique over all sets.
    group : str
        Feature set it belongs to (``alpha360``, ``technical``, ``btc_relative``, ``funding``).
    formula : str
        Formula in terms of bar fields; ``t`` is the current bar.
    unit : str
        ``fraction``, ``hours``, ``sigmas`` ...
    lookback_bars : int
        Bars read, the current one included: no older bar changes the value by a bit.
    known_at : str
        Time from which the value is known, in words.
    needs : str
        Optional input without which the feature is all NaN: ``mark``, ``funding``, or empty.
    """

    name: str
    group: str
    formula: str
    unit: str
    lookback_bars: int
    known_at: str = "close of bar t"
    needs: str = ""


@dataclass(frozen=True, slots=True)
class FeatureFrame:
    """Feature rows of many symbols over time.

    Parameters
    ----------
    values : (n_rows, n_features) float32
        C-ordered; NaN where a feature's window is not filled yet.
    names : tuple of str
        Length ``n_features``.
    ts_open : (n_bars,) int64
        Open times of the grid the rows lie on; a row of bar ``t`` is known from ``ts_open[t] + frame_ns`` on.
    frame_ns : int
        Bar length.
    symbols : tuple of str
        The panel's symbols in the panel's order.
    row_bar, row_symbol : (n_rows,) int32
        Bar and symbol (index into ``symbols``) of each row; ``row_bar`` does not decrease.
    settings : FeatureSettings
        What the features were built from.
    """

    values: Float32Array
    names: tuple[str, ...]
    ts_open: Int64Array
    frame_ns: int
    symbols: tuple[str, ...]
    row_bar: Int32Array
    row_symbol: Int32Array
    settings: FeatureSettings

    def __post_init__(self) -> None:
        n_rows = self.row_bar.size
        if self.values.shape != (n_rows, len(self.names)) or self.row_symbol.size != n_rows:
            raise ValueError(
                f"FeatureFrame: values {self.values.shape}, {n_rows} row bars, {self.row_symbol.size} row symbols and "
                f"{len(self.names)} names do not fit"
            )

    @property
    def n_rows(self) -> int:
        """Return the number of rows."""
        return int(self.row_bar.size)

    @property
    def n_bars(self) -> int:
        """Return the number of bars of the grid."""
        return int(self.ts_open.size)

    @property
    def known_at_ns(self) -> Int64Array:
        """Return the instant from which each bar's rows are known (its close), shape ``(n_bars,)``."""
        return self.ts_open + self.frame_ns

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Return where rows exist, shape ``(n_bars, n_symbols)``."""
        result = np.zeros((self.n_bars, len(self.symbols)), dtype=np.bool_)
        result[self.row_bar, self.row_symbol] = True
        return result

    def row_span(self, start_bar: int, stop_bar: int) -> slice:
        """Return the rows of bars ``start_bar:stop_bar``."""
        first, last = np.searchsorted(self.row_bar, (start_bar, stop_bar))
        return slice(int(first), int(last))

    def at_rows(self, grid: Float64Array) -> Float64Array:
        """Return the entries of a ``(n_bars, n_symbols)`` grid at this frame's rows, shape ``(n_rows,)``."""
        return grid[self.row_bar, self.row_symbol]

    def to_grid(self, row_values: Float64Array) -> Float64Array:
        """Return ``(n_rows,)`` values as a ``(n_bars, n_symbols)`` grid, NaN where there is no row."""
        grid = np.full((self.n_bars, len(self.symbols)), np.nan)
        grid[self.row_bar, self.row_symbol] = row_values
        return grid

    def of_symbol(self, column: int) -> FeatureFrame:
        """Return the rows of one symbol, copied."""
        rows = np.flatnonzero(self.row_symbol == column)
        return replace(
            self,
            values=self.values[rows],
            symbols=(self.symbols[column],),
            row_bar=self.row_bar[rows],
            row_symbol=np.zeros(rows.size, dtype=np.int32),
        )


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Which (bar, symbol) pairs get a row.

    Parameters
    ----------
    row_bar, row_symbol : (n_rows,) int32
        As in :class:`FeatureFrame`.
    row_of : (n_symbols, n_bars) int32
        Row number of each pair in *sorted-name* symbol order; -1 where there is none.
    order : (n_symbols,) int64
        Panel position of each symbol in sorted-name order.
    """

    row_bar: Int32Array
    row_symbol: Int32Array
    row_of: Int32Array
    order: Int64Array


def index_rows(panel: MarketPanel, first_bar: int) -> RowIndex:
    """Return the rows of ``panel`` from ``first_bar`` on: every (bar, member of the universe) with a close price."""
    order = np.argsort(np.array(panel.symbols), kind="stable").astype(np.int64)
    present = np.isfinite(panel.close[:, order]) & panel.is_member[:, order]
    present[:first_bar] = False
    row_bar, row_sorted = np.nonzero(present)
    row_of = np.full((len(panel.symbols), panel.n_bars), -1, dtype=np.int32)
    row_of[row_sorted, row_bar] = np.arange(row_bar.size, dtype=np.int32)
    return RowIndex(row_bar.astype(np.int32), order[row_sorted].astype(np.int32), row_of, order)

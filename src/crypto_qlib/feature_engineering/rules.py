"""A feature as data: one operator, its series and windows. Adding a feature is adding a row to a set's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import average_ranks
from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.bar_series import EMA_BARS, SIGNAL_BARS, FeatureInputs
from crypto_qlib.feature_engineering.feature_frame import FeatureSpec, Float32Array
from crypto_qlib.feature_engineering.side_data import KNOWN_FROM
from crypto_qlib.feature_engineering.window_ops import (
    ATR,
    EMA_TO_CLOSE,
    MACD_HISTOGRAM,
    MACD_LINE,
    RSI,
    evaluate,
)

_CLOSE = "close of bar t"
_RECURSIVE = (EMA_TO_CLOSE, RSI, ATR)


@dataclass(frozen=True, slots=True)
class FeatureRule:
    """How one feature is computed, and what it is called.

    Parameters
    ----------
    name : str
        Column name.
    op : int
        Operator of :mod:`window_ops`.
    series, other : int
        Series of :mod:`bar_series`.
    window, second : int
        Window and second window (or lag), bars.
    formula, unit, needs : str
        For the catalogue, see :class:`FeatureSpec`.
    ranked : bool
        Replace the value by its rank across the symbols of the bar, in (-0.5, 0.5), ties averaged.
    scale : float
        The value is multiplied by it (bars into hours).
    reach : int
        Bars the value depends on beyond its windows (a lag of another series, the window behind a ready series).
    """

    name: str
    op: int
    formula: str
    unit: str = "fraction"
    series: int = 0
    other: int = 0
    window: int = 1
    second: int = 0
    needs: str = ""
    ranked: bool = False
    scale: float = 1.0
    reach: int = 0

    @property
    def lookback_bars(self) -> int:
        """Return how many bars the value depends on, the current one included."""
        if self.op in _RECURSIVE:
            return (self.second or EMA_BARS) + 1
        if self.op in (MACD_LINE, MACD_HISTOGRAM):
            return EMA_BARS + (SIGNAL_BARS if self.op == MACD_HISTOGRAM else 0)
        lag = self.second if self.other == self.series and self.second else 0
        return max(self.window, self.second) + 1 + lag + self.reach

    def spec(self, group: str) -> FeatureSpec:
        """Return the catalogue entry."""
        formula = f"rank over symbols of {self.formula}" if self.ranked else self.formula
        unit = "rank" if self.ranked else self.unit
        known_at = (
            f"close of bar t, of what was known by then: {KNOWN_FROM[self.needs]}" if self.needs in KNOWN_FROM else _CLOSE
        )
        return FeatureSpec(self.name, group, formula, unit, self.lookback_bars, known_at, self.needs)

    def code(self) -> tuple[int, int, int, int, int]:
        """Return the row the compiled evaluator reads."""
        return self.op, self.series, self.other, self.window, self.second


@njit
def centred_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ``(rank - 0.5) / n - 0.5`` over present values, ties sharing their mean rank; NaN stays NaN."""
    ranks = average_ranks(values)
    n = max(int(np.sum(~np.isnan(ranks))), 1)
    centred: npt.NDArray[np.float64] = (ranks - 0.5) / n - 0.5
    return centred


@njit
def _fill_plain(
    data: npt.NDArray[np.float64],
    codes: npt.NDArray[np.int64],
    scales: npt.NDArray[np.float64],
    row_of: npt.NDArray[np.int32],
    out: Float32Array,
    columns: npt.NDArray[np.int64],
    span: tuple[int, int, int],
) -> None:
    """Write per-symbol rules of symbols ``span[0]:span[1]`` from bar ``span[2]`` on."""
    for s in range(span[0], span[1]):
        for t in range(span[2], data.shape[2]):
            row = row_of[s, t]
            if row >= 0:
                for j in range(codes.shape[0]):
                    out[row, columns[j]] = evaluate(data[s], t, codes[j]) * scales[j]


@njit
def _fill_ranked(
    data: npt.NDArray[np.float64],
    codes: npt.NDArray[np.int64],
    row_of: npt.NDArray[np.int32],
    out: Float32Array,
    columns: npt.NDArray[np.int64],
    span: tuple[int, int],
) -> None:
    """Write ranked rules of bars ``span[0]:span[1]``; only symbols that have a row at the bar take part."""
    values = np.empty(data.shape[0])
    for t in range(span[0], span[1]):
        for j in range(codes.shape[0]):
            for s in range(data.shape[0]):
                values[s] = evaluate(data[s], t, codes[j]) if row_of[s, t] >= 0 else math.nan
            ranks = centred_ranks(values)
            for s in range(data.shape[0]):
                if row_of[s, t] >= 0:
                    out[row_of[s, t], columns[j]] = ranks[s]


def rule_jobs(
    inputs: FeatureInputs, rules: Sequence[tuple[int, FeatureRule]], out: Float32Array, n_jobs: int
) -> list[tuple[object, tuple[object, ...]]]:
    """Return ``n_jobs`` independent pieces of work per kind that together fill ``out``; run them in any order or thread.

    Parameters
    ----------
    inputs : FeatureInputs
        Series and rows.
    rules : sequence of (column, FeatureRule)
        What to write where.
    out : (n_rows, n_features) float32
        Result, written in place.
    n_jobs : int
        Pieces; 1 for a single bar.
    """
    n_symbols, _, n_bars = inputs.data.shape
    jobs: list[tuple[object, tuple[object, ...]]] = []
    plain = [(c, r) for c, r in rules if not r.ranked]
    if plain:
        codes = np.array([r.code() for _, r in plain], dtype=np.int64)
        scales = np.array([r.scale for _, r in plain])
        columns = np.array([c for c, _ in plain], dtype=np.int64)
        for a, b in pieces(0, n_symbols, n_jobs):
            jobs.append((_fill_plain, (inputs.data, codes, scales, inputs.rows.row_of, out, columns, (a, b, inputs.first_bar))))
    ranked = [(c, r) for c, r in rules if r.ranked]
    if ranked:
        codes = np.array([r.code() for _, r in ranked], dtype=np.int64)
        columns = np.array([c for c, _ in ranked], dtype=np.int64)
        for a, b in pieces(inputs.first_bar, n_bars, n_jobs):
            jobs.append((_fill_ranked, (inputs.data, codes, inputs.rows.row_of, out, columns, (a, b))))
    return jobs


def pieces(start: int, stop: int, n: int) -> list[tuple[int, int]]:
    """Split ``start:stop`` into at most ``n`` non-empty contiguous pieces."""
    edges = np.linspace(start, stop, n + 1).astype(int)
    return [(int(a), int(b)) for a, b in pairwise(edges) if b > a]

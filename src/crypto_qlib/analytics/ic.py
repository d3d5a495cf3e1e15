"""How well scores order outcomes: IC, RankIC, hit ratio, quantile spread, calibration error. Arrays in, numbers out.

Scores and outcomes are time-major ``(n_bars, n_symbols)``; pairs where either is NaN are left out. Outcomes of neighbouring
bars overlap (a 24-bar return shares 23 bars with the next one), so standard errors are Newey-West with the horizon as lag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.inference import newey_west_standard_error
from crypto_qlib.core.jit import njit

FloatArray = npt.NDArray[np.float64]

MIN_CROSS_SECTION: Final = 3
"""Symbols needed in a bar for its correlation to count."""


@dataclass(frozen=True, slots=True)
class IcSummary:
    """Mean of a per-bar correlation with its error.

    Parameters
    ----------
    mean : float
        Mean over bars; NaN without bars.
    standard_error : float
        Newey-West standard error of the mean.
    ir : float
        ``mean / std`` over bars (Qlib's ICIR), not annualised.
    n_bars : int
        Bars that counted.
    """

    mean: float
    standard_error: float
    ir: float
    n_bars: int

    @property
    def t_stat(self) -> float:
        """Return ``mean / standard_error``, NaN where the error is zero or unknown."""
        return self.mean / self.standard_error if self.standard_error > 0.0 else math.nan


@njit
def average_ranks(values: FloatArray) -> FloatArray:
    """Return 1-based ranks, ties sharing their mean rank; NaN is ranked as NaN."""
    result = np.full(values.size, math.nan)
    order = np.argsort(values)
    n = 0
    while n < values.size and not math.isnan(values[order[n]]):
        n += 1
    i = 0
    while i < n:
        j = i
        while j + 1 < n and values[order[j + 1]] == values[order[i]]:
            j += 1
        for k in range(i, j + 1):
            result[order[k]] = 0.5 * (i + j) + 1.0
        i = j + 1
    return result


@njit
def correlation(a: FloatArray, b: FloatArray, min_pairs: int) -> float:
    """Return Pearson's correlation over pairs where both are present; NaN below ``min_pairs`` or without spread."""
    n = 0
    sum_a = 0.0
    sum_b = 0.0
    for k in range(a.size):
        if not math.isnan(a[k]) and not math.isnan(b[k]):
            n += 1
            sum_a += a[k]
            sum_b += b[k]
    if n < max(min_pairs, 1):
        return math.nan
    cov = 0.0
    var_a = 0.0
    var_b = 0.0
    for k in range(a.size):
        if not math.isnan(a[k]) and not math.isnan(b[k]):
            da = a[k] - sum_a / n
            db = b[k] - sum_b / n
            cov += da * db
            var_a += da * da
            var_b += db * db
    scale = math.sqrt(var_a) * math.sqrt(var_b)
    return cov / scale if scale > 0.0 else math.nan


@njit
def _correlate_rows(scores: FloatArray, outcomes: FloatArray, min_pairs: int, ranked: bool) -> FloatArray:
    result = np.empty(scores.shape[0])
    for t in range(scores.shape[0]):
        a = scores[t].copy()
        b = outcomes[t].copy()
        for k in range(a.size):
            if math.isnan(a[k]) or math.isnan(b[k]):
                a[k] = math.nan
                b[k] = math.nan
        if ranked:
            a = average_ranks(a)
            b = average_ranks(b)
        result[t] = correlation(a, b, min_pairs)
    return result


def _rows(values: FloatArray) -> FloatArray:
    return np.ascontiguousarray(values, dtype=np.float64)


def information_coefficients(scores: FloatArray, outcomes: FloatArray) -> FloatArray:
    """Return each bar's Pearson correlation across symbols (IC), shape ``(n_bars,)``; NaN below three pairs."""
    return _correlate_rows(_rows(scores), _rows(outcomes), MIN_CROSS_SECTION, False)


def rank_information_coefficients(scores: FloatArray, outcomes: FloatArray) -> FloatArray:
    """Return each bar's Spearman correlation across symbols (RankIC), shape ``(n_bars,)``; NaN below three pairs."""
    return _correlate_rows(_rows(scores), _rows(outcomes), MIN_CROSS_SECTION, True)


def symbol_coefficients(scores: FloatArray, outcomes: FloatArray, min_bars: int, *, ranked: bool) -> FloatArray:
    """Return each symbol's correlation over time, shape ``(n_symbols,)``; NaN below ``min_bars`` pairs."""
    return _correlate_rows(_rows(scores.T), _rows(outcomes.T), min_bars, ranked)


def summarise(coefficients: FloatArray, lags: int) -> IcSummary:
    """Return mean, Newey-West error with ``lags``, and information ratio of per-bar coefficients (NaN left out)."""
    clean = coefficients[np.isfinite(coefficients)]
    if clean.size == 0:
        return IcSummary(math.nan, math.nan, math.nan, 0)
    spread = float(clean.std(ddof=1)) if clean.size > 1 else 0.0
    mean = float(clean.mean())
    return IcSummary(mean, newey_west_standard_error(clean, lags), mean / spread if spread > 0.0 else math.nan, int(clean.size))


def quantile_spread(scores: FloatArray, outcomes: FloatArray, share: float = 0.2) -> FloatArray:
    """Return each bar's mean outcome of the best ``share`` of symbols minus that of the worst, shape ``(n_bars,)``.

    At least one symbol a side; NaN below three pairs.
    """
    result = np.full(scores.shape[0], np.nan)
    for t in range(scores.shape[0]):
        both = np.isfinite(scores[t]) & np.isfinite(outcomes[t])
        n = int(both.sum())
        if n < MIN_CROSS_SECTION:
            continue
        order = np.argsort(scores[t, both], kind="stable")
        k = max(1, int(n * share))
        ordered = outcomes[t, both][order]
        result[t] = ordered[-k:].mean() - ordered[:k].mean()
    return result


def hit_ratio(scores: FloatArray, outcomes: FloatArray) -> float:
    """Return the share of non-zero pairs whose signs agree; NaN without pairs."""
    both = np.isfinite(scores) & np.isfinite(outcomes) & (scores != 0.0) & (outcomes != 0.0)
    return float(np.mean(np.sign(scores[both]) == np.sign(outcomes[both]))) if both.any() else math.nan


def calibration_error(probability: FloatArray, happened: FloatArray, n_bins: int = 10) -> float:
    """Return the expected calibration error: mean over equal-count bins of ``|mean probability - frequency|``, by count.

    Parameters
    ----------
    probability : (n,) float64
        In [0, 1]; NaN pairs are left out.
    happened : (n,) float64
        1.0 or 0.0.
    n_bins : int
        Equal-count bins.
    """
    both = np.isfinite(probability) & np.isfinite(happened)
    p, y = probability[both], happened[both]
    if p.size == 0:
        return math.nan
    order = np.argsort(p, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(n_bins, p.size)):
        total += part.size * abs(float(p[part].mean() - y[part].mean()))
    return total / p.size

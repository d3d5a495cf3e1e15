"""Statistics of one series over its last ``w`` bars: the bricks of :mod:`window_ops`.

Missing bars are left out; a window with fewer than 3/4 of its bars gives NaN (:func:`min_count`). Every sum runs from the
oldest bar to the newest, so the result depends on the window alone, bit for bit.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit

Matrix = npt.NDArray[np.float64]

LAST_VALID: Final = 38
EVENT_SUM: Final = 39
EVENT_Z: Final = 40
BARS_SINCE: Final = 41


@njit
def min_count(w: int) -> int:
    """Return how many of ``w`` bars must be present: ``ceil(3 w / 4)``."""
    return (3 * w + 3) // 4


@njit
def window_sum(series: Matrix, t: int, w: int) -> tuple[float, int]:
    """Return the sum of present values of ``series[t-w+1 .. t]`` and their count."""
    total = 0.0
    count = 0
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(series[k]):
            total += series[k]
            count += 1
    return total, count


@njit
def window_mean(series: Matrix, t: int, w: int) -> float:
    """Return the mean of the window, NaN if it is not filled."""
    total, count = window_sum(series, t, w)
    return total / count if count >= min_count(w) else math.nan


@njit
def window_moment(series: Matrix, t: int, w: int, mean: float, power: int) -> float:
    """Return the mean of ``(x - mean)^power`` over present values of the window."""
    total = 0.0
    count = 0
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(series[k]):
            total += (series[k] - mean) ** power
            count += 1
    return total / count if count else math.nan


@njit
def window_extreme(series: Matrix, t: int, w: int, sign: float) -> float:
    """Return the largest (``sign`` +1) or smallest (-1) present value; NaN if the window is not filled."""
    best = -math.inf
    count = 0
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(series[k]):
            best = max(best, sign * series[k])
            count += 1
    return sign * best if count >= min_count(w) else math.nan


@njit
def comoments(a: Matrix, b: Matrix, t: int, w: int, lag: int) -> tuple[float, float, float]:
    """Return ``(cov(a_k, b_{k-lag}), var(a), var(b))`` over bars of the window where both are present (ddof 0)."""
    sum_a = 0.0
    sum_b = 0.0
    count = 0
    start = max(lag, t - w + 1)
    for k in range(start, t + 1):
        if not math.isnan(a[k]) and not math.isnan(b[k - lag]):
            sum_a += a[k]
            sum_b += b[k - lag]
            count += 1
    if count < min_count(w):
        return math.nan, math.nan, math.nan
    mean_a = sum_a / count
    mean_b = sum_b / count
    cov = 0.0
    var_a = 0.0
    var_b = 0.0
    for k in range(start, t + 1):
        if not math.isnan(a[k]) and not math.isnan(b[k - lag]):
            cov += (a[k] - mean_a) * (b[k - lag] - mean_b)
            var_a += (a[k] - mean_a) ** 2
            var_b += (b[k - lag] - mean_b) ** 2
    return cov / count, var_a / count, var_b / count


@njit
def ratio(numerator: float, denominator: float) -> float:
    """Return the quotient, NaN for a zero denominator."""
    return numerator / denominator if denominator != 0.0 else math.nan


@njit
def z_score(series: Matrix, t: int, w: int) -> float:
    """Return ``(x[t] - mean) / std`` of the window (population std)."""
    mean = window_mean(series, t, w)
    return ratio(series[t] - mean, math.sqrt(window_moment(series, t, w, mean, 2)))


@njit
def slope(series: Matrix, t: int, w: int) -> float:
    """Return the least-squares slope per bar of the window."""
    n = 0
    sum_k = 0.0
    sum_y = 0.0
    start = max(0, t - w + 1)
    for k in range(start, t + 1):
        if not math.isnan(series[k]):
            n += 1
            sum_k += k - t
            sum_y += series[k]
    if n < min_count(w):
        return math.nan
    cross = 0.0
    square = 0.0
    for k in range(start, t + 1):
        if not math.isnan(series[k]):
            cross += (k - t - sum_k / n) * (series[k] - sum_y / n)
            square += (k - t - sum_k / n) ** 2
    return ratio(cross, square)


@njit
def event_statistic(series: Matrix, t: int, w: int, op: int) -> float:
    """Return a statistic of a series that is NaN between events: last value, sum, z-score of the last, bars since it."""
    total = 0.0
    count = 0
    last = -1
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(series[k]):
            total += series[k]
            count += 1
            last = k
    if last < 0:
        return math.nan
    if op == LAST_VALID:
        return float(series[last])
    if op == EVENT_SUM:
        return total
    if op == BARS_SINCE:
        return float(t + 1 - last)
    std = math.sqrt(window_moment(series, t, w, total / count, 2))
    return ratio(series[last] - total / count, std) if count > 2 else math.nan  # noqa: PLR2004 - a spread needs three

"""Qlib's rolling operators as compiled loops over one series, with Qlib's (that is, pandas') rules for missing values.

Windows hold the last ``n`` values up to and including the current one, fewer at the beginning; missing values are left out; a
window without any value gives NaN (``min_periods=1``), only a count gives 0. Running sums are taken around a value of the
window and made anew every few windows, so that neither a large level nor a long history eats the digits.
Source: Qlib 0.9.7 ``qlib/data/ops.py``, ``qlib/data/_libs/rolling.pyx``; pandas 2 ``rolling``.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from crypto_qlib.core.jit import njit
from crypto_qlib.core.market import FloatArray

MEAN: Final = 0
SUM: Final = 1
VAR: Final = 2
STD: Final = 3
COUNT: Final = 4

MAX: Final = 0
MIN: Final = 1

SLOPE: Final = 0
RSQUARE: Final = 1
RESIDUAL: Final = 2

CORR: Final = 0
COV: Final = 1

NEARLY_ZERO: Final = 2e-5
"""Below this standard deviation Qlib calls a correlation and an R² unknown."""
_WINDOWS_PER_RESTART: Final = 4
_LEAST_STEPS: Final = 64


@njit
def rolling_moment(x: FloatArray, n: int, kind: int) -> FloatArray:
    """Return mean, sum, variance (ddof 1), standard deviation or count of each window; infinities count as missing."""
    out = np.empty(x.size)
    restart = max(n * _WINDOWS_PER_RESTART, _LEAST_STEPS)
    base = 0.0
    total = 0.0
    squares = 0.0
    count = 0
    for t in range(x.size):
        if t % restart == 0:
            base = 0.0
            total = 0.0
            squares = 0.0
            count = 0
            for k in range(max(0, t - n + 1), t + 1):
                if math.isfinite(x[k]):
                    if count == 0:
                        base = x[k]
                    total += x[k] - base
                    squares += (x[k] - base) ** 2
                    count += 1
        else:
            if math.isfinite(x[t]):
                if count == 0:
                    base = x[t]
                    total = 0.0
                    squares = 0.0
                total += x[t] - base
                squares += (x[t] - base) ** 2
                count += 1
            if t >= n and math.isfinite(x[t - n]):
                total -= x[t - n] - base
                squares -= (x[t - n] - base) ** 2
                count -= 1
        out[t] = _moment(base, total, squares, count, kind)
    return out


@njit
def _moment(base: float, total: float, squares: float, count: int, kind: int) -> float:
    if kind == COUNT:
        return float(count)
    if count == 0:
        return math.nan
    if kind == MEAN:
        return base + total / count
    if kind == SUM:
        return base * count + total
    if count == 1:
        return math.nan
    variance = max((squares - total * total / count) / (count - 1), 0.0)
    return math.sqrt(variance) if kind == STD else variance


@njit
def rolling_extreme(x: FloatArray, n: int, kind: int) -> FloatArray:
    """Return the largest or smallest value of each window, by a queue of candidates; infinities count as missing."""
    out = np.empty(x.size)
    sign = 1.0 if kind == MAX else -1.0
    queue = np.empty(x.size, np.int64)
    first = 0
    last = 0
    for t in range(x.size):
        if first < last and queue[first] <= t - n:
            first += 1
        if math.isfinite(x[t]):
            while first < last and sign * x[queue[last - 1]] <= sign * x[t]:
                last -= 1
            queue[last] = t
            last += 1
        out[t] = x[queue[first]] if first < last else math.nan
    return out


@njit
def rolling_index(x: FloatArray, n: int, kind: int) -> FloatArray:
    """Return the place (from 1) of the largest or smallest value of each window, the first of equals.

    As numpy's ``argmax``, a missing value counts as the extreme one.
    """
    out = np.empty(x.size)
    sign = 1.0 if kind == MAX else -1.0
    for t in range(x.size):
        start = max(0, t - n + 1)
        at = start
        has_value = False
        for k in range(start, t + 1):
            has_value = has_value or not math.isnan(x[k])
            if not math.isnan(x[at]) and (math.isnan(x[k]) or sign * x[k] > sign * x[at]):
                at = k
        out[t] = at - start + 1 if has_value else math.nan
    return out


@njit
def rolling_line(x: FloatArray, n: int, kind: int) -> FloatArray:
    """Return slope, R² or last residual of the line through each window, positions 1 to ``n`` as abscissae."""
    out = np.empty(x.size)
    restart = max(n * _WINDOWS_PER_RESTART, _LEAST_STEPS)
    base = 0.0
    count = 0
    sx = 0.0
    sxx = 0.0
    sy = 0.0
    syy = 0.0
    sxy = 0.0
    for t in range(x.size):
        is_anew = t % restart == 0
        if is_anew:
            count, sx, sxx, sy, syy, sxy = 0, 0.0, 0.0, 0.0, 0.0, 0.0
            base = _first_value(x, max(0, t - n + 1), t)
        else:
            # every abscissa moves one to the left; the one that was 1 becomes 0 and leaves
            sxy -= sy
            sxx += count - 2.0 * sx
            sx -= count
            if t >= n and not math.isnan(x[t - n]):
                y = x[t - n] - base
                count -= 1
                sy -= y
                syy -= y * y
        for k in range(max(0, t - n + 1) if is_anew else t, t + 1):
            if not math.isnan(x[k]):
                y = x[k] - base
                place = float(n - (t - k))
                count += 1
                sx += place
                sxx += place * place
                sy += y
                syy += y * y
                sxy += place * y
        out[t] = _line(count, sx, sxx, sy, syy, sxy, n, x[t] - base, kind)
    return out


@njit
def _first_value(x: FloatArray, start: int, stop: int) -> float:
    for k in range(start, stop + 1):
        if math.isfinite(x[k]):
            return float(x[k])
    return 0.0


@njit
def _line(
    count: int, sx: float, sxx: float, sy: float, syy: float, sxy: float, n: int, y: float, kind: int
) -> float:  # fmt: skip
    spread = count * sxx - sx * sx
    if count < 2 or spread <= 0.0:  # noqa: PLR2004 - two points make a line
        return math.nan
    covariance = count * sxy - sx * sy
    if kind == RSQUARE:
        variance = count * syy - sy * sy
        return covariance * covariance / (spread * variance) if variance > 0.0 else math.nan
    slope = covariance / spread
    return slope if kind == SLOPE else y - (slope * (n - sx / count) + sy / count)


@njit
def rolling_pair(x: FloatArray, y: FloatArray, n: int, kind: int) -> FloatArray:
    """Return correlation or covariance (ddof 1) of each window over the places where both are known."""
    out = np.empty(x.size)
    restart = max(n * _WINDOWS_PER_RESTART, _LEAST_STEPS)
    bx = 0.0
    by = 0.0
    count = 0
    sx = 0.0
    sy = 0.0
    sxx = 0.0
    syy = 0.0
    sxy = 0.0
    for t in range(x.size):
        is_anew = t % restart == 0
        if is_anew:
            count, sx, sy, sxx, syy, sxy = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        elif t >= n and math.isfinite(x[t - n]) and math.isfinite(y[t - n]):
            u, v = x[t - n] - bx, y[t - n] - by
            count -= 1
            sx -= u
            sy -= v
            sxx -= u * u
            syy -= v * v
            sxy -= u * v
        for k in range(max(0, t - n + 1) if is_anew else t, t + 1):
            if math.isfinite(x[k]) and math.isfinite(y[k]):
                if count == 0:
                    bx, by, sx, sy, sxx, syy, sxy = x[k], y[k], 0.0, 0.0, 0.0, 0.0, 0.0
                u, v = x[k] - bx, y[k] - by
                count += 1
                sx += u
                sy += v
                sxx += u * u
                syy += v * v
                sxy += u * v
        out[t] = _pair(count, sx, sy, sxx, syy, sxy, kind)
    return out


@njit
def _pair(count: int, sx: float, sy: float, sxx: float, syy: float, sxy: float, kind: int) -> float:
    if count < 2:  # noqa: PLR2004 - ddof 1
        return math.nan
    covariance = (sxy - sx * sy / count) / (count - 1)
    if kind == COV:
        return covariance
    scale = (sxx - sx * sx / count) * (syy - sy * sy / count)
    return covariance * (count - 1) / math.sqrt(scale) if scale > 0.0 else math.nan


@njit
def rolling_quantile(x: FloatArray, n: int, share: float) -> FloatArray:
    """Return the ``share`` quantile of each window, linear between neighbours; infinities count as missing."""
    out = np.empty(x.size)
    held = np.empty(n)
    count = 0
    for t in range(x.size):
        if t >= n and math.isfinite(x[t - n]):
            at = np.searchsorted(held[:count], x[t - n])
            held[at : count - 1] = held[at + 1 : count].copy()
            count -= 1
        if math.isfinite(x[t]):
            at = np.searchsorted(held[:count], x[t])
            held[at + 1 : count + 1] = held[at:count].copy()
            held[at] = x[t]
            count += 1
        if count == 0:
            out[t] = math.nan
            continue
        place = share * (count - 1)
        low = math.floor(place)
        high = min(low + 1, count - 1)
        out[t] = held[low] + (held[high] - held[low]) * (place - low)
    return out


@njit
def rolling_rank(x: FloatArray, n: int) -> FloatArray:
    """Return the rank of the last value of each window as a share of the values there are, equals at their mean rank."""
    out = np.empty(x.size)
    for t in range(x.size):
        if not math.isfinite(x[t]):
            out[t] = math.nan
            continue
        below = 0
        equal = 0
        count = 0
        for k in range(max(0, t - n + 1), t + 1):
            if math.isfinite(x[k]):
                count += 1
                below += x[k] < x[t]
                equal += x[k] == x[t]
        out[t] = (below + (equal + 1) / 2.0) / count
    return out


@njit
def exponential_mean(x: FloatArray, alpha: float) -> FloatArray:
    """Return pandas' ``ewm(alpha).mean()`` (adjusted; a missing value still ages the older ones)."""
    out = np.empty(x.size)
    mean = math.nan
    weight = 1.0
    for t in range(x.size):
        if math.isnan(mean):
            mean = x[t]
            weight = 1.0
        else:
            weight *= 1.0 - alpha
            if not math.isnan(x[t]):
                mean = (weight * mean + x[t]) / (weight + 1.0)
                weight += 1.0
        out[t] = mean
    return out

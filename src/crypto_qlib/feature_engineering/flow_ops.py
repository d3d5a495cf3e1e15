"""Finite-window operators on volume, spread, the cross-section's leaders and side series; evaluated like :mod:`window_ops`."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.bar_series import (
    CLOSE,
    FUNDING,
    HIGH,
    LOG_CLOSE,
    LOW,
    OPEN,
    QUOTE_VOLUME,
    RETURN,
    VOLUME,
)
from crypto_qlib.feature_engineering.window_stats import comoments, min_count, ratio, window_mean, window_moment, window_sum

Matrix = npt.NDArray[np.float64]

FIRST_FLOW_OP: Final = 60
DIFFERENCE: Final = 60
LOG_CHANGE: Final = 61
EVENT_CORRELATION: Final = 62
TO_SETTLEMENT: Final = 63
CORWIN_SCHULTZ: Final = 64
ABDI_RANALDO: Final = 65
ROLL_SPREAD: Final = 66
KYLE: Final = 67
BULK_DELTA: Final = 68
HOUR_RATIO: Final = 69
CONCENTRATION: Final = 70
SUM_RATIO: Final = 71
OI_PRICE_GAP: Final = 72
LIQUIDATION_PRESSURE: Final = 73
VOLUME_TIME: Final = 74
TURNOVER_TO_OI: Final = 75
LOG_VALUE: Final = 76
CUMULATED_Z: Final = 77

_EVENT_PAIRS: Final = 24
"""Pairs an event correlation needs."""
_SQRT_2: Final = math.sqrt(2.0)
_CS: Final = 3.0 - 2.0 * math.sqrt(2.0)


@njit
def _event_correlation(a: Matrix, b: Matrix, t: int, w: int, lag: int) -> float:
    """Return the correlation of ``a[k]`` with ``b[k - lag]`` over bars of the window where both are present."""
    n = 0
    sum_a = 0.0
    sum_b = 0.0
    start = max(lag, t - w + 1)
    for k in range(start, t + 1):
        if not math.isnan(a[k]) and not math.isnan(b[k - lag]):
            n += 1
            sum_a += a[k]
            sum_b += b[k - lag]
    if n < _EVENT_PAIRS:
        return math.nan
    cov = 0.0
    var_a = 0.0
    var_b = 0.0
    for k in range(start, t + 1):
        if not math.isnan(a[k]) and not math.isnan(b[k - lag]):
            cov += (a[k] - sum_a / n) * (b[k - lag] - sum_b / n)
            var_a += (a[k] - sum_a / n) ** 2
            var_b += (b[k - lag] - sum_b / n) ** 2
    return ratio(cov, math.sqrt(var_a) * math.sqrt(var_b))


@njit
def _to_settlement(x: Matrix, t: int, w: int) -> float:
    """Return bars until the next settlement, taking the interval of the last two; NaN without two in the window."""
    last = -1
    before = -1
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(x[FUNDING, k]):
            before = last
            last = k
    if before < 0:
        return math.nan
    interval = last - before
    since = t + 1 - last
    return float((interval - since % interval) % interval)


@njit
def _corwin_schultz(x: Matrix, t: int, w: int) -> float:
    """Return the mean high-low spread estimate over bar pairs, negative ones as zero (Corwin & Schultz 2012)."""
    total = 0.0
    n = 0
    for k in range(max(1, t - w + 1), t + 1):
        h0, l0, h1, l1 = x[HIGH, k - 1], x[LOW, k - 1], x[HIGH, k], x[LOW, k]
        if not (l0 > 0.0 and l1 > 0.0 and h0 > 0.0 and h1 > 0.0):
            continue
        beta = math.log(h0 / l0) ** 2 + math.log(h1 / l1) ** 2
        gamma = math.log(max(h0, h1) / min(l0, l1)) ** 2
        alpha = (math.sqrt(2.0 * beta) - math.sqrt(beta)) / _CS - math.sqrt(gamma / _CS)
        total += max(2.0 * (math.exp(alpha) - 1.0) / (1.0 + math.exp(alpha)), 0.0)
        n += 1
    return total / n if n >= min_count(w) else math.nan


@njit
def _abdi_ranaldo(x: Matrix, t: int, w: int) -> float:
    """Return ``2 sqrt(max(mean((c - m)(c - m')), 0))`` of log close and mid-ranges ``m`` now and next (Abdi & Ranaldo 2017)."""
    total = 0.0
    n = 0
    for k in range(max(1, t - w + 1), t + 1):
        c = x[LOG_CLOSE, k - 1]
        if x[LOW, k - 1] > 0.0 and x[LOW, k] > 0.0:
            here = 0.5 * (math.log(x[HIGH, k - 1]) + math.log(x[LOW, k - 1]))
            after = 0.5 * (math.log(x[HIGH, k]) + math.log(x[LOW, k]))
            if not math.isnan(c) and not math.isnan(here) and not math.isnan(after):
                total += (c - here) * (c - after)
                n += 1
    return 2.0 * math.sqrt(max(total / n, 0.0)) if n >= min_count(w) else math.nan


@njit
def _roll(r: Matrix, t: int, w: int) -> float:
    """Return Roll's (1984) spread ``2 sqrt(max(-cov(r[t], r[t-1]), 0))``."""
    cov, _, _ = comoments(r, r, t, w, 1)
    return 2.0 * math.sqrt(max(-cov, 0.0)) if not math.isnan(cov) else math.nan


@njit
def _bulk_signed(x: Matrix, k: int, std: float) -> float:
    """Return ``volume * (2 Phi(r / std) - 1)``: bulk volume classification (Easley, Lopez de Prado & O'Hara 2012)."""
    return float(x[VOLUME, k] * math.erf(x[RETURN, k] / (std * _SQRT_2)))


@njit
def _bulk_delta(x: Matrix, t: int, w: int) -> float:
    """Return signed volume by bulk classification over ``w`` bars / volume, in [-1, 1]."""
    if t < w:
        return math.nan
    mean = window_mean(x[RETURN], t, w)
    std = math.sqrt(window_moment(x[RETURN], t, w, mean, 2))
    if math.isnan(mean) or std == 0.0:
        return math.nan
    signed = 0.0
    volume = 0.0
    for k in range(t - w + 1, t + 1):
        v = _bulk_signed(x, k, std)
        if not math.isnan(v):
            signed += v
            volume += x[VOLUME, k]
    return ratio(signed, volume)


@njit
def _kyle(x: Matrix, t: int, w: int) -> float:
    """Return log10 of the price impact: ``mean(|r| * turnover) / mean(turnover^2)`` per million USDT."""
    cross = 0.0
    square = 0.0
    n = 0
    for k in range(max(0, t - w + 1), t + 1):
        q = x[QUOTE_VOLUME, k] * 1e-6
        if not math.isnan(x[RETURN, k]) and not math.isnan(q):
            cross += abs(x[RETURN, k]) * q
            square += q * q
            n += 1
    return math.log10(cross / square) if n >= min_count(w) and cross > 0.0 and square > 0.0 else math.nan


@njit
def _hour_ratio(x: Matrix, t: int, w: int, step: int) -> float:
    """Return log(turnover / mean turnover of the same hour on earlier days), ``step`` bars a day, over ``w`` bars."""
    total = 0.0
    n = 0
    for k in range(t - step, max(-1, t - w), -step):
        if not math.isnan(x[QUOTE_VOLUME, k]):
            total += x[QUOTE_VOLUME, k]
            n += 1
    now = x[QUOTE_VOLUME, t]
    return math.log(now * n / total) if n >= 3 and total > 0.0 and now > 0.0 else math.nan  # noqa: PLR2004 - three days


@njit
def _concentration(x: Matrix, t: int, w: int) -> float:
    """Return ``w * sum(q^2) / sum(q)^2``: 1 where turnover is even, ``w`` where one bar has all of it."""
    total, n = window_sum(x[QUOTE_VOLUME], t, w)
    square = window_moment(x[QUOTE_VOLUME], t, w, 0.0, 2) * n
    return n * square / (total * total) if n >= min_count(w) and total > 0.0 else math.nan


@njit
def _volume_time(x: Matrix, t: int, w: int, v: int) -> float:
    """Return bars needed, back from ``t``, to trade ``w`` bars' worth of the mean turnover of ``v`` bars, over ``w``."""
    mean = window_mean(x[QUOTE_VOLUME], t, v)
    if math.isnan(mean) or mean <= 0.0:
        return math.nan
    total = 0.0
    for k in range(t, max(-1, t - v), -1):
        total += x[QUOTE_VOLUME, k] if not math.isnan(x[QUOTE_VOLUME, k]) else 0.0
        if total >= mean * w:
            return float(t - k + 1) / w
    return float(v) / w


@njit
def _oi_price_gap(x: Matrix, t: int, a: int, w: int) -> float:
    """Return log change of open interest minus log change of price over ``w`` bars."""
    if t < w or not (x[a, t] > 0.0 and x[a, t - w] > 0.0):
        return math.nan
    return math.log(x[a, t] / x[a, t - w]) - float(x[LOG_CLOSE, t] - x[LOG_CLOSE, t - w])


@njit
def _liquidation_pressure(x: Matrix, t: int, w: int) -> float:
    """Return lower minus upper shadows weighted by turnover above its mean, over ``w`` bars, in units of the close.

    Forced selling drives the low below the body on unusual turnover; forced buying the high above it.
    """
    mean = window_mean(x[QUOTE_VOLUME], t, w)
    if math.isnan(mean) or mean <= 0.0:
        return math.nan
    total = 0.0
    for k in range(max(0, t - w + 1), t + 1):
        low = min(x[OPEN, k], x[CLOSE, k]) - x[LOW, k]
        high = x[HIGH, k] - max(x[OPEN, k], x[CLOSE, k])
        value = max(x[QUOTE_VOLUME, k] / mean - 1.0, 0.0) * (low - high) / x[CLOSE, k]
        if not math.isnan(value):
            total += value
    return total


@njit
def _cumulated_z(x: Matrix, a: int, t: int, w: int, v: int) -> float:
    """Return the z-score of the last ``w`` bars' sum of an event series against the sums one day apart over ``v`` bars."""
    total = 0.0
    square = 0.0
    n = 0
    newest = math.nan
    for end in range(t, max(w - 2, t - v), -w):
        value = 0.0
        for k in range(end - w + 1, end + 1):
            value += x[a, k] if not math.isnan(x[a, k]) else 0.0
        if n == 0:
            newest = value
        total += value
        square += value * value
        n += 1
    if n < 5:  # noqa: PLR2004 - fewer say nothing about a spread
        return math.nan
    spread = math.sqrt(max(square / n - (total / n) ** 2, 0.0))
    return ratio(newest - total / n, spread) if spread > 1e-12 else math.nan  # noqa: PLR2004 - all equal


@njit
def _sum_ratio(a: Matrix, b: Matrix, t: int, w: int) -> float:
    total, n = window_sum(a, t, w)
    other, m = window_sum(b, t, w)
    return ratio(total, other) if min(n, m) >= min_count(w) else math.nan


@njit
def evaluate_flow(x: Matrix, t: int, rule: npt.NDArray[np.int64]) -> float:  # noqa: PLR0911, PLR0912 - a table of operators
    """Return one rule's value at bar ``t``; see :func:`~crypto_qlib.feature_engineering.window_ops.evaluate`."""
    op, a, b, w, v = rule[0], rule[1], rule[2], rule[3], rule[4]
    if op == DIFFERENCE:
        return float(x[a, t] - x[a, t - w]) if t >= w else math.nan
    if op == LOG_CHANGE:
        return math.log(x[a, t] / x[a, t - w]) if t >= w and x[a, t] > 0.0 and x[a, t - w] > 0.0 else math.nan
    if op == LOG_VALUE:
        return math.log(x[a, t]) if x[a, t] > 0.0 else math.nan
    if op == EVENT_CORRELATION:
        return _event_correlation(x[a], x[b], t, w, v)
    if op == TO_SETTLEMENT:
        return _to_settlement(x, t, w)
    if op == CORWIN_SCHULTZ:
        return _corwin_schultz(x, t, w)
    if op == ABDI_RANALDO:
        return _abdi_ranaldo(x, t, w)
    if op == ROLL_SPREAD:
        return _roll(x[RETURN], t, w)
    if op == KYLE:
        return _kyle(x, t, w)
    if op == BULK_DELTA:
        return _bulk_delta(x, t, w)
    if op == HOUR_RATIO:
        return _hour_ratio(x, t, w, v)
    if op == CONCENTRATION:
        return _concentration(x, t, w)
    if op == SUM_RATIO:
        return _sum_ratio(x[a], x[b], t, w)
    if op == OI_PRICE_GAP:
        return _oi_price_gap(x, t, a, w)
    if op == LIQUIDATION_PRESSURE:
        return _liquidation_pressure(x, t, w)
    if op == VOLUME_TIME:
        return _volume_time(x, t, w, v)
    if op == CUMULATED_Z:
        return _cumulated_z(x, a, t, w, v)
    turnover, n = window_sum(x[VOLUME], t, w)
    return ratio(turnover, x[a, t]) if n >= min_count(w) else math.nan

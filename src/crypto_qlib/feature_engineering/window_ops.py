"""Finite-window operators behind the technical, BTC-relative and funding features.

Each operator computes one number at one bar from the last ``w`` bars alone, oldest to newest, with no running state. That is
why the newest row computed live equals the same row of a batch *bit for bit*, whatever history came before it.

Missing bars are left out; a window with fewer than 3/4 of its bars gives NaN (:func:`min_count`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.bar_series import (
    BTC_RETURN,
    CLOSE,
    EMA_BARS,
    HIGH,
    LOW,
    MACD,
    OPEN,
    QUOTE_VOLUME,
    RETURN,
    SIGNAL_BARS,
    TRUE_RANGE,
    VOLUME,
    ema_at,
)
from crypto_qlib.feature_engineering.flow_ops import FIRST_FLOW_OP, evaluate_flow
from crypto_qlib.feature_engineering.window_stats import (
    BARS_SINCE,
    LAST_VALID,
    comoments,
    event_statistic,
    min_count,
    ratio,
    slope,
    window_extreme,
    window_mean,
    window_moment,
    window_sum,
    z_score,
)

Matrix = npt.NDArray[np.float64]

CHANGE: Final = 0
MEAN_TO_CLOSE: Final = 1
EMA_TO_CLOSE: Final = 2
MACD_LINE: Final = 3
MACD_HISTOGRAM: Final = 4
RSI: Final = 5
BAND_POSITION: Final = 6
BAND_WIDTH: Final = 7
ATR: Final = 8
MEAN_OVER_CLOSE: Final = 9
ROOT_MEAN_SQUARE: Final = 10
RMS_RATIO: Final = 11
PARKINSON: Final = 12
DOWN_SHARE: Final = 13
SKEWNESS: Final = 14
KURTOSIS: Final = 15
MAX_ABS: Final = 16
Z_SCORE: Final = 17
CORRELATION: Final = 18
CHANNEL_POSITION: Final = 19
HIGH_TO_CLOSE: Final = 20
LOW_TO_CLOSE: Final = 21
BODY: Final = 22
UPPER_SHADOW: Final = 23
LOWER_SHADOW: Final = 24
VWAP_DISTANCE: Final = 25
MONEY_FLOW: Final = 26
COMMODITY_CHANNEL: Final = 27
EFFICIENCY: Final = 28
AUTOCORRELATION: Final = 29
SLOPE: Final = 30
LOG_ILLIQUIDITY: Final = 31
SUM: Final = 32
MEAN: Final = 33
BETA: Final = 34
RESIDUAL_SUM: Final = 35
RESIDUAL_VOL: Final = 36
EXCESS_SUM: Final = 37
VALUE: Final = 42
LOG_MEAN: Final = 43
LOG_MEAN_RATIO: Final = 44


@njit
def _rsi(close: Matrix, t: int, n: int, memory: int) -> float:
    """Return Wilder's RSI in [0, 100] over the last ``memory`` bars; 50 where nothing moved."""
    up = 0.0
    down = 0.0
    count = 0
    for k in range(max(1, t - memory + 1), t + 1):
        up *= 1.0 - 1.0 / n
        down *= 1.0 - 1.0 / n
        change = close[k] - close[k - 1]
        if not math.isnan(change):
            up += max(change, 0.0)
            down += max(-change, 0.0)
            count += 1
    if count < n:
        return math.nan
    return 100.0 * up / (up + down) if up + down > 0.0 else 50.0


@njit
def _band(close: Matrix, t: int, w: int, width: bool) -> float:
    """Return Bollinger position ``(close - mean) / (2 std)`` or width ``4 std / mean`` (population std)."""
    mean = window_mean(close, t, w)
    std = math.sqrt(window_moment(close, t, w, mean, 2))
    return 4.0 * std / mean if width else ratio(close[t] - mean, 2.0 * std)


@njit
def _parkinson(x: Matrix, t: int, w: int) -> float:
    """Return ``sqrt(mean(log(high / low)^2) / (4 log 2))``."""
    total = 0.0
    count = 0
    for k in range(max(0, t - w + 1), t + 1):
        if x[LOW, k] > 0.0 and x[HIGH, k] > 0.0:
            total += math.log(x[HIGH, k] / x[LOW, k]) ** 2
            count += 1
    return math.sqrt(total / count / (4.0 * math.log(2.0))) if count >= min_count(w) else math.nan


@njit
def _return_shape(r: Matrix, t: int, w: int, op: int) -> float:
    """Return down share of variance, skewness, excess kurtosis or the largest |r| of the window."""
    total, count = window_sum(r, t, w)
    if count < min_count(w):
        return math.nan
    if op in (SKEWNESS, KURTOSIS):
        mean = total / count
        variance = window_moment(r, t, w, mean, 2)
        if op == SKEWNESS:
            return ratio(window_moment(r, t, w, mean, 3), variance * math.sqrt(variance))
        return ratio(window_moment(r, t, w, mean, 4), variance * variance) - 3.0
    down = 0.0
    square = 0.0
    largest = 0.0
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(r[k]):
            square += r[k] * r[k]
            largest = max(largest, abs(r[k]))
            down += r[k] * r[k] if r[k] < 0.0 else 0.0
    return largest if op == MAX_ABS else ratio(down, square)


@njit
def _candle(x: Matrix, t: int, op: int) -> float:
    """Return body or shadow of the bar as a fraction of its open."""
    high_body = max(x[OPEN, t], x[CLOSE, t])
    low_body = min(x[OPEN, t], x[CLOSE, t])
    if op == BODY:
        return float(x[CLOSE, t] / x[OPEN, t] - 1.0)
    shadow = x[HIGH, t] - high_body if op == UPPER_SHADOW else low_body - x[LOW, t]
    return float(shadow / x[OPEN, t])


@njit
def _vwap_distance(x: Matrix, t: int, w: int) -> float:
    """Return ``close / (sum quote volume / sum volume) - 1``."""
    quote, count = window_sum(x[QUOTE_VOLUME], t, w)
    base, _ = window_sum(x[VOLUME], t, w)
    return x[CLOSE, t] / (quote / base) - 1.0 if count >= min_count(w) and base > 0.0 and quote > 0.0 else math.nan


@njit
def _typical(x: Matrix, k: int) -> float:
    return float((x[HIGH, k] + x[LOW, k] + x[CLOSE, k]) / 3.0)


@njit
def _money_flow(x: Matrix, t: int, w: int) -> float:
    """Return the money flow index in [0, 100] of typical price times volume; 50 without flow."""
    rising = 0.0
    falling = 0.0
    count = 0
    for k in range(max(1, t - w + 1), t + 1):
        change = _typical(x, k) - _typical(x, k - 1)
        flow = _typical(x, k) * x[VOLUME, k]
        if not math.isnan(change) and not math.isnan(flow):
            rising += flow if change > 0.0 else 0.0
            falling += flow if change < 0.0 else 0.0
            count += 1
    if count < min_count(w):
        return math.nan
    return 100.0 * rising / (rising + falling) if rising + falling > 0.0 else 50.0


@njit
def _commodity_channel(x: Matrix, t: int, w: int) -> float:
    """Return the commodity channel index ``(TP - mean TP) / (0.015 * mean |TP - mean TP|)``; 0 where flat."""
    total = 0.0
    count = 0
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(_typical(x, k)):
            total += _typical(x, k)
            count += 1
    if count < min_count(w):
        return math.nan
    mean = total / count
    deviation = 0.0
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(_typical(x, k)):
            deviation += abs(_typical(x, k) - mean)
    return (_typical(x, t) - mean) / (0.015 * deviation / count) if deviation > 0.0 else 0.0


@njit
def _efficiency(r: Matrix, t: int, w: int) -> float:
    """Return ``sum r / sum |r|`` in [-1, 1]."""
    net = 0.0
    path = 0.0
    count = 0
    for k in range(max(0, t - w + 1), t + 1):
        if not math.isnan(r[k]):
            net += r[k]
            path += abs(r[k])
            count += 1
    return ratio(net, path) if count >= min_count(w) else math.nan


@njit
def _log_illiquidity(x: Matrix, t: int, w: int) -> float:
    """Return ``log10(mean(|r| / quote volume in millions))`` (Amihud 2002); NaN without turnover or movement."""
    total = 0.0
    count = 0
    for k in range(max(0, t - w + 1), t + 1):
        if x[QUOTE_VOLUME, k] > 0.0 and not math.isnan(x[RETURN, k]):
            total += abs(x[RETURN, k]) / (x[QUOTE_VOLUME, k] * 1e-6)
            count += 1
    return math.log10(total / count) if count >= min_count(w) and total > 0.0 else math.nan


@njit
def _residual(x: Matrix, t: int, w: int, v: int, op: int) -> float:
    """Return sum over ``w`` bars, or root mean square over ``v``, of ``r - beta * r_btc`` with beta over ``v`` bars."""
    cov, _, var_btc = comoments(x[RETURN], x[BTC_RETURN], t, v, 0)
    beta = ratio(cov, var_btc)
    span = w if op == RESIDUAL_SUM else v
    total = 0.0
    square = 0.0
    count = 0
    for k in range(max(0, t - span + 1), t + 1):
        e = x[RETURN, k] - beta * x[BTC_RETURN, k]
        if not math.isnan(e):
            total += e
            square += e * e
            count += 1
    if count < min_count(span):
        return math.nan
    return total if op == RESIDUAL_SUM else math.sqrt(square / count)


@njit
def _trend(x: Matrix, t: int, op: int, a: int, w: int, v: int) -> float:  # noqa: PLR0911 - a table of operators
    """Evaluate averages and momentum operators; ``v`` is the memory of recursive ones, :data:`EMA_BARS` where it is 0."""
    memory = v if v > 0 else EMA_BARS
    close = x[CLOSE, t]
    if op == CHANGE:
        return x[a, t] / x[a, t - w] - 1.0 if t >= w else math.nan
    if op == MEAN_TO_CLOSE:
        return float(window_mean(x[a], t, w) / close - 1.0)
    if op == EMA_TO_CLOSE:
        return float(ema_at(x[CLOSE], t, 2.0 / (w + 1.0), memory, w) / close - 1.0)
    if op == MACD_LINE:
        return float(x[MACD, t] / close)
    if op == MACD_HISTOGRAM:
        return float((x[MACD, t] - ema_at(x[MACD], t, 2.0 / (w + 1.0), SIGNAL_BARS, w)) / close)
    if op == RSI:
        return _rsi(x[CLOSE], t, w, memory)
    return float(ema_at(x[TRUE_RANGE], t, 1.0 / w, memory, w) / close)


@njit
def _spread(x: Matrix, t: int, op: int, a: int, w: int, v: int) -> float:  # noqa: PLR0911 - a table of operators
    """Evaluate range, volatility and shape operators."""
    if op in (BAND_POSITION, BAND_WIDTH):
        return _band(x[CLOSE], t, w, op == BAND_WIDTH)
    if op == MEAN_OVER_CLOSE:
        return float(window_mean(x[a], t, w) / x[CLOSE, t])
    if op in (ROOT_MEAN_SQUARE, RMS_RATIO):
        _, count = window_sum(x[a], t, w)
        rms = math.sqrt(window_moment(x[a], t, w, 0.0, 2)) if count >= min_count(w) else math.nan
        if op == ROOT_MEAN_SQUARE:
            return rms
        _, count = window_sum(x[a], t, v)
        return ratio(rms, math.sqrt(window_moment(x[a], t, v, 0.0, 2))) if count >= min_count(v) else math.nan
    if op == PARKINSON:
        return _parkinson(x, t, w)
    if op in (CHANNEL_POSITION, HIGH_TO_CLOSE, LOW_TO_CLOSE):
        high = window_extreme(x[HIGH], t, w, 1.0)
        low = window_extreme(x[LOW], t, w, -1.0)
        if op == CHANNEL_POSITION:
            return ratio(x[CLOSE, t] - low, high - low)
        return float((high if op == HIGH_TO_CLOSE else low) / x[CLOSE, t] - 1.0)
    return _return_shape(x[a], t, w, op)


@njit
def _flow(x: Matrix, t: int, op: int, a: int, w: int, v: int) -> float:  # noqa: PLR0911 - a table of operators
    """Evaluate volume, candle and path operators."""
    if op == Z_SCORE:
        return z_score(x[a], t, w)
    if op in (BODY, UPPER_SHADOW, LOWER_SHADOW):
        return _candle(x, t, op)
    if op == VWAP_DISTANCE:
        return _vwap_distance(x, t, w)
    if op == MONEY_FLOW:
        return _money_flow(x, t, w)
    if op == COMMODITY_CHANNEL:
        return _commodity_channel(x, t, w)
    if op == EFFICIENCY:
        return _efficiency(x[a], t, w)
    if op == SLOPE:
        return slope(x[a], t, w)
    if op == LOG_ILLIQUIDITY:
        return _log_illiquidity(x, t, w)
    mean = window_mean(x[a], t, w)
    if op == LOG_MEAN:
        return math.log10(mean) if mean > 0.0 else math.nan
    longer = window_mean(x[a], t, v)
    return math.log(mean / longer) if mean > 0.0 and longer > 0.0 else math.nan


@njit
def _pair(x: Matrix, t: int, op: int, a: int, b: int, w: int, v: int) -> float:
    """Evaluate operators on two series (or one series with itself lagged) and plain sums."""
    if op in (CORRELATION, AUTOCORRELATION):
        cov, var_a, var_b = comoments(x[a], x[b], t, w, v)
        return ratio(cov, math.sqrt(var_a) * math.sqrt(var_b))
    if op == BETA:
        cov, _, var_b = comoments(x[a], x[b], t, w, 0)
        return ratio(cov, var_b)
    if op in (RESIDUAL_SUM, RESIDUAL_VOL):
        return _residual(x, t, w, v, op)
    total, count = window_sum(x[a], t, w)
    if count < min_count(w):
        return math.nan
    if op == EXCESS_SUM:
        other, others = window_sum(x[b], t, w)
        return total - other if others >= min_count(w) else math.nan
    return total if op == SUM else total / count


@njit
def evaluate(x: Matrix, t: int, rule: npt.NDArray[np.int64]) -> float:  # noqa: PLR0911 - a table of operators
    """Return one rule's value at bar ``t`` of one symbol.

    Parameters
    ----------
    x : (N_SERIES, n_bars) float64
        The symbol's series.
    t : int
        Bar.
    rule : (5,) int64
        Operator, first series, second series, window, second window or lag.
    """
    op, a, b, w, v = rule[0], rule[1], rule[2], rule[3], rule[4]
    if op >= FIRST_FLOW_OP:
        return evaluate_flow(x, t, rule)
    if op == VALUE:
        return float(x[a, t])
    if op <= RSI or op == ATR:
        return _trend(x, t, op, a, w, v)
    if op <= MAX_ABS or CHANNEL_POSITION <= op <= LOW_TO_CLOSE:
        return _spread(x, t, op, a, w, v)
    if op in (CORRELATION, AUTOCORRELATION) or SUM <= op <= EXCESS_SUM:
        return _pair(x, t, op, a, b, w, v)
    if LAST_VALID <= op <= BARS_SINCE:
        return event_statistic(x[a], t, w, op)
    return _flow(x, t, op, a, w, v)

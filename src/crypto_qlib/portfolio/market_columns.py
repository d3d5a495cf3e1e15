"""Compute what a decision knows of the market for every bar of a panel at once, from finite windows.

Every value of row ``r`` uses bars ``<= r`` alone, and is worked out from scratch from a window of fixed length in a fixed
order of summation. So the last row computed live from the latest :func:`history_bars` bars equals the row of a computation
over years, bit for bit.

- ``atr``: mean of the true ranges of the last ``ATR_BARS`` bars over the last close; missing bars are left out, fewer than
  half of them give NaN.
- ``close``, ``mark``: last known value, at most ``FILL_BARS`` bars old; else NaN.
- daily figures change at midnight UTC and use the ``DAYS`` complete UTC days before it; a day counts when at least half its
  bars are there. Turnover: median of daily sums. Volatility: root of the mean daily sum of squared log returns. Beta:
  ``sum(r * r_btc) / sum(r_btc^2)``.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.costs import default_half_spread_bps
from crypto_qlib.core.jit import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ATR_BARS: Final = 14
FILL_BARS: Final = 48
DAYS: Final = 30
CORRELATION_BARS: Final = 168
FUNDING_LOOKBACK_NS: Final = 2 * NS_PER_DAY
"""A settled rate older than this is no forecast."""


def history_bars(frame_ns: int) -> int:
    """Return how many bars of ``frame_ns`` up to a decision give the same values as any longer history."""
    return (DAYS + 2) * (NS_PER_DAY // frame_ns) + max(ATR_BARS, FILL_BARS, CORRELATION_BARS) + 1


@njit
def has_nan(values: FloatArray) -> bool:
    """Return whether any element of a 2-d array is NaN."""
    for t in range(values.shape[0]):
        total = 0.0
        for j in range(values.shape[1]):
            total += values[t, j] * 0.0
        if math.isnan(total):
            return True
    return False


@njit
def carried(values: FloatArray, ages: FloatArray) -> FloatArray:
    """Return the last known value of each row and write its age in bars to ``ages`` (infinite past ``FILL_BARS``)."""
    n_bars, n_symbols = values.shape
    result = np.empty((n_bars, n_symbols))
    for t in range(n_bars):
        for j in range(n_symbols):
            if not math.isnan(values[t, j]):
                result[t, j] = values[t, j]
                ages[t, j] = 0.0
            elif t > 0 and ages[t - 1, j] < FILL_BARS:
                result[t, j] = result[t - 1, j]
                ages[t, j] = ages[t - 1, j] + 1.0
            else:
                result[t, j] = math.nan
                ages[t, j] = math.inf
    return result


@njit
def true_range(high: float, low: float, previous_close: float) -> float:
    """Return ``max(high, previous_close) - min(low, previous_close)``; ``high - low`` where the previous close is missing."""
    if math.isnan(previous_close):
        return high - low
    return max(high, previous_close) - min(low, previous_close)


@njit
def atr_fraction(high: FloatArray, low: FloatArray, close: FloatArray, last_close: FloatArray) -> FloatArray:
    """Return the average true range over the last known close, ``(n_bars, n_symbols)``."""
    n_bars, n_symbols = close.shape
    ranges = np.empty((n_bars, n_symbols))
    for t in range(n_bars):
        for j in range(n_symbols):
            previous = close[t - 1, j] if t > 0 else math.nan
            ranges[t, j] = true_range(high[t, j], low[t, j], previous) if not math.isnan(close[t, j]) else math.nan
    result = np.empty((n_bars, n_symbols))
    total = np.empty(n_symbols)
    count = np.empty(n_symbols)
    for t in range(n_bars):
        total[:] = 0.0
        count[:] = 0.0
        for k in range(max(t - ATR_BARS + 1, 0), t + 1):
            for j in range(n_symbols):
                value = ranges[k, j]
                if not math.isnan(value):
                    total[j] += value
                    count[j] += 1.0
        for j in range(n_symbols):
            enough = 2.0 * count[j] >= ATR_BARS
            result[t, j] = total[j] / count[j] / last_close[t, j] if enough else math.nan
    return result


@njit
def log_returns(close: FloatArray) -> FloatArray:
    """Return ``ln(close[t] / close[t - 1])``; NaN where either is missing and in the first row."""
    n_bars, n_symbols = close.shape
    result = np.full((n_bars, n_symbols), np.nan)
    for t in range(1, n_bars):
        for j in range(n_symbols):
            result[t, j] = math.log(close[t, j] / close[t - 1, j])
    return result


@njit
def expected_funding(
    funding_rate: FloatArray, ts_open: IntArray, frame_ns: int, holding_ns: int, default_interval_ns: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return (rate expected per settlement, settlements expected in ``(as_of, as_of + holding]``), each one a bar and symbol.

    The rate is the last settled one (0 where none was settled in the last two days); the interval is the time between the last
    two settlements, else the instrument's default.

    Parameters
    ----------
    funding_rate : (n_bars, n_symbols) float64
        Rate settled at the bar's open, NaN where none.
    default_interval_ns : (n_symbols,) int64
        Interval of each instrument.
    """
    n_bars, n_symbols = funding_rate.shape
    rate = np.zeros((n_bars, n_symbols))
    count = np.zeros((n_bars, n_symbols))
    last = np.full(n_symbols, -1, np.int64)
    previous = np.full(n_symbols, -1, np.int64)
    for t in range(n_bars):
        as_of = ts_open[t] + frame_ns
        for j in range(n_symbols):
            if not math.isnan(funding_rate[t, j]):
                previous[j] = last[j]
                last[j] = t
            if last[j] < 0 or as_of - ts_open[last[j]] > FUNDING_LOOKBACK_NS:
                continue
            settled = ts_open[last[j]]
            interval = default_interval_ns[j]
            if previous[j] >= 0 and as_of - ts_open[previous[j]] <= FUNDING_LOOKBACK_NS:
                interval = settled - ts_open[previous[j]]
            rate[t, j] = funding_rate[last[j], j]
            count[t, j] = (as_of + holding_ns - settled) // interval - (as_of - settled) // interval
    return rate, count


@njit
def daily_sums(
    close: FloatArray, volume: FloatArray, quote_volume: FloatArray, first_row: int, bars_per_day: int, n_days: int, btc: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return per complete UTC day (turnover, sum of squared returns, of products with BTC, of BTC's squares).

    Turnover is NaN for a day that does not count. Unknown quote volume is taken as ``volume * close``. The squared returns are
    scaled from the bars that are there to the whole day.

    Parameters
    ----------
    first_row : int
        Row of the first bar of the first complete day.
    btc : int
        Column of BTC, or -1 where there is none.
    """
    n_symbols = close.shape[1]
    turnover = np.zeros((n_days, n_symbols))
    squares = np.zeros((n_days, n_symbols))
    products = np.zeros((n_days, n_symbols))
    btc_squares = np.zeros((n_days, n_symbols))
    bars = np.zeros(n_symbols)
    moves = np.zeros(n_symbols)
    for d in range(n_days):
        bars[:] = 0.0
        moves[:] = 0.0
        for t in range(first_row + d * bars_per_day, first_row + (d + 1) * bars_per_day):
            market = math.log(close[t, btc] / close[t - 1, btc]) if btc >= 0 and t > 0 else math.nan
            for j in range(n_symbols):
                if math.isnan(close[t, j]):
                    continue
                traded = quote_volume[t, j]
                turnover[d, j] += volume[t, j] * close[t, j] if math.isnan(traded) else traded
                bars[j] += 1.0
                if t == 0 or math.isnan(close[t - 1, j]):
                    continue
                move = math.log(close[t, j] / close[t - 1, j])
                squares[d, j] += move * move
                moves[j] += 1.0
                if not math.isnan(market):
                    products[d, j] += move * market
                    btc_squares[d, j] += market * market
        for j in range(n_symbols):
            if 2.0 * bars[j] < bars_per_day or moves[j] == 0.0:
                turnover[d, j] = math.nan
            else:
                squares[d, j] *= bars_per_day / moves[j]
    return turnover, squares, products, btc_squares


@njit
def daily_figures(
    turnover: FloatArray, squares: FloatArray, products: FloatArray, btc_squares: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (median turnover, daily volatility, beta) known *after* each day, ``(n_days + 1, n_symbols)``; row 0 is NaN."""
    n_days, n_symbols = turnover.shape
    adv = np.full((n_days + 1, n_symbols), np.nan)
    sigma = np.full((n_days + 1, n_symbols), np.nan)
    beta = np.full((n_days + 1, n_symbols), np.nan)
    window = np.empty(DAYS)
    for d in range(1, n_days + 1):
        for j in range(n_symbols):
            n = 0
            total = 0.0
            product = 0.0
            square = 0.0
            for k in range(max(d - DAYS, 0), d):
                if not math.isnan(turnover[k, j]):
                    window[n] = turnover[k, j]
                    n += 1
                    total += squares[k, j]
                    product += products[k, j]
                    square += btc_squares[k, j]
            if n > 0:
                adv[d, j] = np.median(window[:n])
                sigma[d, j] = math.sqrt(total / n)
            if square > 0.0:
                beta[d, j] = product / square
    return adv, sigma, beta


@njit
def half_spreads(adv: FloatArray, tick_size: FloatArray, close: FloatArray, first_rows: IntArray) -> FloatArray:
    """Return the half spread by turnover known at each midnight, basis points, ``(n_days, n_symbols)``.

    Parameters
    ----------
    adv : (n_days, n_symbols) float64
        Turnover known then, NaN where unknown.
    tick_size : (n_symbols,) float64
        Price step.
    close : (n_bars, n_symbols) float64
        Closes; the last one before midnight turns half a tick into basis points, where there is none it counts as nothing.
    first_rows : (n_days,) int64
        Row of the first bar after each midnight.
    """
    result = np.empty(adv.shape)
    for d in range(adv.shape[0]):
        row = first_rows[d]
        for j in range(adv.shape[1]):
            price = close[row - 1, j] if 0 < row <= close.shape[0] else math.nan
            result[d, j] = default_half_spread_bps(adv[d, j], tick_size[j], price if price > 0.0 else math.inf)
    return result

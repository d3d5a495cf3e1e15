"""Compiled label arithmetic: forward returns, outcomes of barrier trades, overlap of label spans.

All arrays are time-major ``(n_bars, n_symbols)``; row ``t`` is decided at the close of bar ``t``, entered at ``open[t + 1]``.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit

FloatArray = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]

NO_END: Final = -1
"""End bar of a label that does not exist."""


def forward_returns(opens: FloatArray, horizon_bars: int) -> FloatArray:
    """Return ``open[t + 1 + N] / open[t + 1] - 1``, shape of ``opens``; NaN in the last ``N + 1`` rows and across gaps at
    either end.
    """  # noqa: D205 - one formula, one sentence
    result = np.full(opens.shape, np.nan)
    n = opens.shape[0] - horizon_bars - 1
    if n > 0:
        result[:n] = opens[1 + horizon_bars :] / opens[1 : 1 + n] - 1.0
    return result


def excess_over_mean(returns: FloatArray) -> FloatArray:
    """Return ``returns`` minus each row's mean over present symbols; NaN stays NaN."""
    present = np.isfinite(returns)
    counts = present.sum(axis=1, keepdims=True)
    total = np.where(present, returns, 0.0).sum(axis=1, keepdims=True)
    excess: FloatArray = returns - total / np.maximum(counts, 1)
    return excess


def funding_over(rates: FloatArray, horizon_bars: int) -> FloatArray:
    """Return the funding a long entered at ``open[t + 1]`` pays until ``open[t + 1 + N]``, a fraction of its notional.

    Settlements at the opens of bars ``t + 2 .. t + 1 + N`` count: the one at the entry's own instant is paid by positions
    carried in, the one at the exit's instant is still paid. Price moves between entry and settlement are neglected.

    Parameters
    ----------
    rates : (n_bars, n_symbols) float64
        Rate settled at each bar's open; NaN where none was.
    horizon_bars : int
        ``N``.
    """
    paid = np.cumsum(np.nan_to_num(rates, nan=0.0), axis=0)
    result = np.full(rates.shape, np.nan)
    n = rates.shape[0] - horizon_bars - 1
    if n > 0:
        result[:n] = paid[1 + horizon_bars :] - paid[1 : 1 + n]
    return result


def net_of_cost(returns: FloatArray, cost: float) -> FloatArray:
    """Return ``sign(r) * max(|r| - cost, 0)``: what the better side keeps, signed by the side; 0 where neither side pays."""
    kept: FloatArray = np.sign(returns) * np.maximum(np.abs(returns) - cost, 0.0)
    return kept


@njit
def trailing_volatility(close: FloatArray, bars: int) -> FloatArray:
    """Return the root mean square of the last ``bars`` one-bar log returns, known at each close, shape of ``close``.

    Missing returns are left out; NaN below a quarter of ``bars`` or where the bar itself is missing.
    """
    result = np.full(close.shape, math.nan)
    for j in range(close.shape[1]):
        for t in range(1, close.shape[0]):
            if math.isnan(close[t, j]):
                continue
            total = 0.0
            count = 0
            for k in range(max(1, t - bars + 1), t + 1):
                step = math.log(close[k, j] / close[k - 1, j])
                if not math.isnan(step):
                    total += step * step
                    count += 1
            if count * 4 >= bars and total > 0.0:
                result[t, j] = math.sqrt(total / count)
    return result


@njit
def barrier_outcome(
    open_: FloatArray, high: FloatArray, low: FloatArray, entry_bar: int, bars: int, side: int, stop: float, take: float
) -> tuple[float, int]:
    """Return (gross return, exit bar) of a trade with stop, take-profit and time exit; (NaN, -1) where it cannot be told.

    The venue's order of events: at each later open a passed stop or take-profit fills at the open; the time exit leaves at
    the open of bar ``entry_bar + bars``; inside a bar the stop comes before the take-profit, and there is no take-profit in
    the entry bar. Source: the bar algorithm of ``crypto_qlib.venue.simulator``; ticks and lots are neglected here.

    Parameters
    ----------
    open_, high, low : (n_bars,) float64
        One symbol's last prices; a missing bar is passed over.
    entry_bar : int
        Entered at its open.
    bars : int
        Time exit.
    side : int
        +1 long, -1 short.
    stop, take : float
        Distances, fractions of the entry price; > 0.
    """
    entry = open_[entry_bar]
    if math.isnan(entry) or entry_bar + bars >= open_.size:
        return math.nan, NO_END
    lower = entry * (1.0 - stop) if side > 0 else entry * (1.0 - take)
    upper = entry * (1.0 + take) if side > 0 else entry * (1.0 + stop)
    for k in range(entry_bar, entry_bar + bars + 1):
        price = open_[k]
        if math.isnan(price):
            continue
        if k > entry_bar and (price <= lower or price >= upper or k == entry_bar + bars):
            return side * (price / entry - 1.0), k
        stop_level = lower if side > 0 else upper
        take_level = upper if side > 0 else lower
        if (low[k] <= stop_level) if side > 0 else (high[k] >= stop_level):
            return side * (stop_level / entry - 1.0), k
        if k > entry_bar and ((high[k] >= take_level) if side > 0 else (low[k] <= take_level)):
            return side * (take_level / entry - 1.0), k
    return math.nan, NO_END


@njit
def barrier_outcomes(
    open_: FloatArray, high: FloatArray, low: FloatArray, stop: FloatArray, take: FloatArray, bars: int, side: int
) -> tuple[FloatArray, Int32Array]:
    """Return (gross return, exit bar) of the trade each row would open; shapes of ``open_``.

    Parameters
    ----------
    open_, high, low : (n_bars, n_symbols) float64
        Last prices.
    stop, take : (n_bars, n_symbols) float64
        Distances known at the row's close; NaN means no trade.
    bars, side
        As in :func:`barrier_outcome`.
    """
    result = np.full(open_.shape, math.nan)
    end = np.full(open_.shape, NO_END, np.int32)
    for j in range(open_.shape[1]):
        prices, highs, lows = open_[:, j].copy(), high[:, j].copy(), low[:, j].copy()
        for t in range(open_.shape[0] - 1):
            if math.isnan(stop[t, j]) or math.isnan(take[t, j]):
                continue
            result[t, j], end[t, j] = barrier_outcome(prices, highs, lows, t + 1, bars, side, stop[t, j], take[t, j])
    return result, end


@njit
def uniqueness(end_bar: Int32Array) -> FloatArray:
    """Return each label's average uniqueness: the mean over its span of ``1 / (labels of the symbol alive at that bar)``.

    A label of row ``t`` lives from bar ``t + 1`` to ``end_bar[t]``, its end left out. Source: Lopez de Prado, Advances in
    Financial Machine Learning (2018), section 4.4.

    Parameters
    ----------
    end_bar : (n_bars, n_symbols) int32
        Bar at whose open the label ends; -1 where there is none.

    Returns
    -------
    (n_bars, n_symbols) float64
        In (0, 1]; NaN where there is no label.
    """
    n_bars, n_symbols = end_bar.shape
    result = np.full((n_bars, n_symbols), math.nan)
    for j in range(n_symbols):
        alive = np.zeros(n_bars + 2, np.int64)
        for t in range(n_bars):
            if end_bar[t, j] >= 0:
                alive[t + 1] += 1
                alive[max(end_bar[t, j], t + 2)] -= 1
        inverse = np.zeros(n_bars + 2)
        running = 0
        for t in range(n_bars + 1):
            running += alive[t]
            inverse[t + 1] = inverse[t] + (1.0 / running if running > 0 else 0.0)
        for t in range(n_bars):
            if end_bar[t, j] >= 0:
                stop = max(end_bar[t, j], t + 2)
                result[t, j] = (inverse[stop] - inverse[t + 1]) / (stop - t - 1)
    return result

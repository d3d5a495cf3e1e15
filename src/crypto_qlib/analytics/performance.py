"""How good was an equity curve? Arrays in, numbers out.

Conventions of the whole file: ``equity`` is sampled once a bar on a regular grid, ``returns[i]`` is the simple return
from sample ``i`` to ``i + 1``; crypto trades around the clock, so a year has ``365 * 24`` hourly periods. Rates are
fractions (0.1 = 10 %), drawdowns and losses are positive numbers. **NaN rule**: non-finite returns are left out; a figure
that needs more samples than there are (two for anything with a spread) or a zero denominator is NaN, never 0 or infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NS_PER_YEAR: Final = 365 * NS_PER_DAY
"""A year of a market that never closes."""
_FLAT: Final = 1e-15
"""Spread of returns below which they count as constant (binary noise of a flat curve)."""


def periods_per_year(frame_ns: int) -> float:
    """Return bars per year of a 24/7 market: 8,760 for hourly bars, 365 for daily ones."""
    return NS_PER_YEAR / frame_ns


def returns_from_equity(equity: FloatArray) -> FloatArray:
    """Return simple returns ``equity[i + 1] / equity[i] - 1``.

    Parameters
    ----------
    equity : (n,) float64
        Account value, USDT.

    Returns
    -------
    (max(n - 1, 0),) float64
        NaN where the earlier sample is not a positive number: after ruin there is nothing to earn a return on.
    """
    before, after = equity[:-1], equity[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(before > 0.0, after / before - 1.0, np.nan)


def _finite(values: FloatArray) -> FloatArray:
    return values[np.isfinite(values)]


def total_return(returns: FloatArray) -> float:
    """Return ``prod(1 + r) - 1``; NaN without returns."""
    clean = _finite(returns)
    return float(np.prod(1.0 + clean) - 1.0) if clean.size else float("nan")


def annual_return(returns: FloatArray, periods: float) -> float:
    """Return the compound growth per year, ``prod(1 + r) ** (periods / n) - 1``.

    A total loss is -1. Short samples extrapolate wildly: read it together with their length.
    """
    clean = _finite(returns)
    if not clean.size:
        return float("nan")
    growth = float(np.prod(1.0 + clean))
    if growth <= 0.0:
        return -1.0
    exponent = np.log(growth) * periods / clean.size
    return float(np.expm1(min(exponent, 700.0)))  # e^700: the largest a float holds


def annual_volatility(returns: FloatArray, periods: float) -> float:
    """Return ``std(r, ddof=1) * sqrt(periods)``; NaN below two returns."""
    clean = _finite(returns)
    return float(np.std(clean, ddof=1) * np.sqrt(periods)) if clean.size > 1 else float("nan")


def sharpe(returns: FloatArray, periods: float) -> float:
    """Return ``mean(r) / std(r, ddof=1) * sqrt(periods)``; no risk-free rate. NaN for a flat curve."""
    clean = _finite(returns)
    if clean.size < 2:  # noqa: PLR2004 - a spread needs two
        return float("nan")
    spread = float(np.std(clean, ddof=1))
    return float(np.mean(clean) / spread * np.sqrt(periods)) if spread > _FLAT else float("nan")


def sortino(returns: FloatArray, periods: float) -> float:
    """Return ``mean(r) / sqrt(mean(min(r, 0)^2)) * sqrt(periods)``; NaN where no return is negative."""
    clean = _finite(returns)
    if clean.size < 2:  # noqa: PLR2004
        return float("nan")
    downside = float(np.sqrt(np.mean(np.minimum(clean, 0.0) ** 2)))
    return float(np.mean(clean) / downside * np.sqrt(periods)) if downside > _FLAT else float("nan")


def drawdown(equity: FloatArray) -> FloatArray:
    """Return ``1 - equity / running peak``, shape ``(n,)``: 0 at a peak, above 1 only where equity is negative."""
    if not equity.size:
        return np.empty(0)
    peak = np.maximum.accumulate(equity)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(peak > 0.0, 1.0 - equity / peak, np.nan)


def max_drawdown(equity: FloatArray) -> float:
    """Return the deepest fall from a peak as a positive fraction of that peak; NaN without samples."""
    depth = _finite(drawdown(equity))
    return float(depth.max()) if depth.size else float("nan")


def longest_drawdown_bars(equity: FloatArray) -> int:
    """Return the most consecutive samples below an earlier peak (a spell still open at the end counts)."""
    longest = current = 0
    for under in drawdown(equity) > 0.0:
        current = current + 1 if under else 0
        longest = max(longest, current)
    return longest


def calmar(equity: FloatArray, periods: float) -> float:
    """Return annual return over max drawdown; NaN where the curve never fell."""
    depth = max_drawdown(equity)
    if not depth > 0.0:
        return float("nan")
    return annual_return(returns_from_equity(equity), periods) / depth


def value_at_risk(returns: FloatArray, level: float = 0.95) -> float:
    """Return the loss per period not exceeded with probability ``level``: ``-quantile(r, 1 - level)``, linear between ranks."""
    clean = _finite(returns)
    return float(-np.quantile(clean, 1.0 - level)) if clean.size else float("nan")


def conditional_value_at_risk(returns: FloatArray, level: float = 0.95) -> float:
    """Return the mean loss of the worst ``1 - level`` of periods: the ``floor((1 - level) * (n - 1)) + 1`` lowest returns."""
    clean = _finite(returns)
    if not clean.size:
        return float("nan")
    worst = int((clean.size - 1) * (1.0 - level)) + 1
    return float(-np.mean(np.partition(clean, worst - 1)[:worst]))


@dataclass(frozen=True, slots=True)
class EquityStatistics:
    """What an equity curve says.

    Parameters
    ----------
    n_bars : int
        Samples of the curve.
    years : float
        Its length in 365-day years.
    total_return, annual_return, annual_volatility : float
        Fractions.
    sharpe, sharpe_daily, sortino, calmar : float
        Annualised ratios without a risk-free rate; ``sharpe_daily`` from the last sample of each UTC day, which
        is fairer where bar returns are autocorrelated.
    max_drawdown : float
        Positive fraction of the peak.
    longest_drawdown_days : float
        Longest time below an earlier peak, days.
    var_95, cvar_95 : float
        Loss per bar, positive fraction.
    final_equity, lowest_equity : float
        USDT.
    """

    n_bars: int
    years: float
    total_return: float
    annual_return: float
    annual_volatility: float
    sharpe: float
    sharpe_daily: float
    sortino: float
    calmar: float
    max_drawdown: float
    longest_drawdown_days: float
    var_95: float
    cvar_95: float
    final_equity: float
    lowest_equity: float


def equity_statistics(ts_ns: IntArray, equity: FloatArray, frame_ns: int) -> EquityStatistics:
    """Return all figures of one equity curve.

    Parameters
    ----------
    ts_ns : (n,) int64
        Instants of the samples, nanoseconds UTC, increasing.
    equity : (n,) float64
        Account value at those instants, USDT.
    frame_ns : int
        Distance of two samples in nanoseconds.
    """
    periods = periods_per_year(frame_ns)
    returns = returns_from_equity(equity)
    daily = last_of_each(ts_ns // NS_PER_DAY, equity)
    return EquityStatistics(
        n_bars=int(equity.size),
        years=equity.size / periods,
        total_return=total_return(returns),
        annual_return=annual_return(returns, periods),
        annual_volatility=annual_volatility(returns, periods),
        sharpe=sharpe(returns, periods),
        sharpe_daily=sharpe(returns_from_equity(daily), periods_per_year(NS_PER_DAY)),
        sortino=sortino(returns, periods),
        calmar=calmar(equity, periods),
        max_drawdown=max_drawdown(equity),
        longest_drawdown_days=longest_drawdown_bars(equity) * frame_ns / NS_PER_DAY,
        var_95=value_at_risk(returns),
        cvar_95=conditional_value_at_risk(returns),
        final_equity=float(equity[-1]) if equity.size else float("nan"),
        lowest_equity=float(np.min(equity)) if equity.size else float("nan"),
    )


def last_of_each(period: IntArray, values: FloatArray) -> FloatArray:
    """Return the last value of each run of equal ``period`` labels, in order (daily closes of an hourly curve)."""
    if not values.size:
        return np.empty(0)
    ends = np.append(np.flatnonzero(np.diff(period)), period.size - 1)
    last: FloatArray = values[ends]
    return last

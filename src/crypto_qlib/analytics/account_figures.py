"""All figures of one account: the very same function for a backtest, a paper session and a live one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crypto_qlib.analytics.account_book import FillBook, PositionBook, attribution, grouped
from crypto_qlib.analytics.inference import bootstrap_mean, probabilistic_sharpe
from crypto_qlib.analytics.performance import (
    FloatArray,
    IntArray,
    equity_statistics,
    max_drawdown,
    returns_from_equity,
    total_return,
)
from crypto_qlib.analytics.trading import AccountSeries, annual_turnover, exposure_statistics, trade_statistics

_BOOTSTRAP_SAMPLES = 300


@dataclass(frozen=True, slots=True)
class AccountHistory:
    """One account over time.

    Parameters
    ----------
    ts_ns : (n + 1,) int64
        The start, then each bar's close.
    equity : (n + 1,) float64
        Account value at those instants, USDT.
    series : AccountSeries
        The account at the ``n`` closes.
    frame_ns : int
        Length of a bar.
    symbols : tuple of str
        Names of the columns.
    holding_bars : float
        Bars a position is held: the mean block of the bootstrap, >= 1.
    """

    ts_ns: IntArray
    equity: FloatArray
    series: AccountSeries
    frame_ns: int
    symbols: Sequence[str]
    holding_bars: float


def account_figures(
    history: AccountHistory,
    fills: FillBook,
    positions: PositionBook,
    funding_amounts: FloatArray,
    benchmarks: Mapping[str, FloatArray],
) -> dict[str, Any]:
    """Return every figure that an account's own books give; fractions and USDT, NaN where a figure cannot be given.

    Parameters
    ----------
    history : AccountHistory
        The account.
    fills, positions : FillBook, PositionBook
        Its executions, and what they were folded into.
    funding_amounts : (n,) float64
        Settlements, received (+) or paid (-), USDT.
    benchmarks : mapping of name to (n + 1,) float64
        Curves on the history's instants.

    Returns
    -------
    dict
        ``returns``, ``benchmarks``, ``trades``, ``exposure``, ``costs``, ``turnover_per_year`` and ``attribution``, whose parts
        and ``unexplained`` (deposits, or what the books do not hold; rounding in a backtest) add up to ``total``.
    """
    returns = returns_from_equity(history.equity)
    parts = attribution(positions)
    total = float(history.equity[-1] - history.equity[0])
    names = np.array([*history.symbols], dtype=object)
    sides = np.where(positions.side > 0.0, "long", "short")
    return {
        "returns": {
            "initial_equity": float(history.equity[0]),
            **asdict(equity_statistics(history.ts_ns, history.equity, history.frame_ns)),
            "mean_return_per_bar": asdict(bootstrap_mean(returns, max(history.holding_bars, 1.0), _BOOTSTRAP_SAMPLES)),
            "probability_sharpe_above_zero": probabilistic_sharpe(returns),
        },
        "benchmarks": {name: benchmark_figures(history.equity, curve) for name, curve in benchmarks.items()},
        "trades": asdict(trade_statistics(positions.closed_in_order())) | {"open_at_end": int((~positions.is_closed).sum())},
        "exposure": asdict(exposure_statistics(history.series)),
        "costs": _costs(fills, parts, funding_amounts),
        "turnover_per_year": annual_turnover(fills.notional, history.series.equity, history.frame_ns),
        "attribution": {
            **parts,
            "total": total,
            "unexplained": total - sum(parts.values()),
            "by_side": grouped(positions, sides),
            "by_exit_kind": grouped(positions, positions.exit_kind),
            "by_symbol": grouped(positions, names[positions.symbol]),
        },
    }


def benchmark_figures(equity: FloatArray, benchmark: FloatArray) -> dict[str, float]:
    """Return a benchmark's return and drawdown, and the account's correlation with it, beta, alpha a bar and excess return.

    Alpha is the mean of the account's returns minus beta times the benchmark's. NaN where a curve does not move.
    """
    theirs, ours = returns_from_equity(benchmark), returns_from_equity(equity)
    both = np.isfinite(theirs) & np.isfinite(ours)
    x, y = theirs[both], ours[both]
    beta = correlation = alpha = float("nan")
    if x.size > 1 and float(np.std(x)) > 0.0 and float(np.std(y)) > 0.0:
        correlation = float(np.corrcoef(x, y)[0, 1])
        beta = correlation * float(np.std(y)) / float(np.std(x))
        alpha = float(np.mean(y) - beta * np.mean(x))
    return {
        "total_return": total_return(theirs),
        "max_drawdown": max_drawdown(benchmark),
        "correlation": correlation,
        "beta": beta,
        "alpha_per_bar": alpha,
        "excess_return": total_return(ours) - total_return(theirs),
    }


def _costs(fills: FillBook, parts: Mapping[str, float], funding: FloatArray) -> dict[str, float]:
    notional = fills.notional
    return {
        "traded_notional": notional,
        "fees": -parts["fees"],
        "funding_received": float(funding[funding > 0.0].sum()),
        "funding_paid": float(-funding[funding < 0.0].sum()),
        "slippage": -parts["slippage"],
        "slippage_bps": -parts["slippage"] / notional * 1e4 if notional > 0.0 else float("nan"),
    }

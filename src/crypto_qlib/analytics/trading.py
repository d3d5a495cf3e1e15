"""How was it traded? Win rate, expectancy, turnover, exposure and leverage from trades and account series.

NaN rule as in :mod:`crypto_qlib.analytics.performance`: what cannot be said is NaN, never 0 or infinity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.performance import periods_per_year

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TradeStatistics:
    """What closed trades say.

    Parameters
    ----------
    count : int
        Closed trades.
    win_rate : float
        Share with a net gain above zero.
    profit_factor : float
        Sum of gains over sum of losses; NaN without a loss.
    expectancy : float
        Mean net PnL of a trade, USDT.
    mean_win, mean_loss : float
        USDT; the loss is a positive number.
    payoff_ratio : float
        ``mean_win / mean_loss``.
    best, worst : float
        Net PnL of the best and the worst trade, USDT.
    longest_losing_streak : int
        Most losing trades in a row, in the order given.
    """

    count: int
    win_rate: float
    profit_factor: float
    expectancy: float
    mean_win: float
    mean_loss: float
    payoff_ratio: float
    best: float
    worst: float
    longest_losing_streak: int


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0.0 else float("nan")


def trade_statistics(net_pnl: FloatArray) -> TradeStatistics:
    """Return the figures of trades in the order they closed.

    Parameters
    ----------
    net_pnl : (n_trades,) float64
        PnL of each trade after fees, funding and penalties, USDT; NaN is left out.
    """
    pnl = net_pnl[np.isfinite(net_pnl)]
    wins, losses = pnl[pnl > 0.0], -pnl[pnl < 0.0]
    mean_win = float(wins.mean()) if wins.size else float("nan")
    mean_loss = float(losses.mean()) if losses.size else float("nan")
    longest = current = 0
    for lost in pnl < 0.0:
        current = current + 1 if lost else 0
        longest = max(longest, current)
    return TradeStatistics(
        count=int(pnl.size),
        win_rate=_ratio(float(wins.size), float(pnl.size)),
        profit_factor=_ratio(float(wins.sum()), float(losses.sum())),
        expectancy=float(pnl.mean()) if pnl.size else float("nan"),
        mean_win=mean_win,
        mean_loss=mean_loss,
        payoff_ratio=_ratio(mean_win, mean_loss),
        best=float(pnl.max()) if pnl.size else float("nan"),
        worst=float(pnl.min()) if pnl.size else float("nan"),
        longest_losing_streak=longest,
    )


@dataclass(frozen=True, slots=True)
class ExposureStatistics:
    """How much of the account was at work.

    Parameters
    ----------
    mean_leverage, max_leverage : float
        Gross notional over equity.
    mean_net, max_abs_net : float
        Signed and largest absolute net notional over equity.
    time_in_market : float
        Share of samples with any position.
    mean_margin_use, max_margin_use : float
        Margin in use over equity.
    mean_open, max_open : float
        Open positions.
    """

    mean_leverage: float
    max_leverage: float
    mean_net: float
    max_abs_net: float
    time_in_market: float
    mean_margin_use: float
    max_margin_use: float
    mean_open: float
    max_open: float


@dataclass(frozen=True, slots=True)
class AccountSeries:
    """The account over time, each ``(n,)`` float64 on one grid.

    Parameters
    ----------
    equity, gross, net, margin : (n,) float64
        USDT; ``gross`` is the sum of absolute notionals, ``net`` of signed ones, ``margin`` what is in use.
    open_count : (n,) float64
        Open positions.
    """

    equity: FloatArray
    gross: FloatArray
    net: FloatArray
    margin: FloatArray
    open_count: FloatArray


def over_equity(amount: FloatArray, equity: FloatArray) -> FloatArray:
    """Return ``amount / equity``, NaN where equity is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(equity > 0.0, amount / equity, np.nan)


def _mean(values: FloatArray) -> float:
    clean = values[np.isfinite(values)]
    return float(clean.mean()) if clean.size else float("nan")


def _max(values: FloatArray) -> float:
    clean = values[np.isfinite(values)]
    return float(clean.max()) if clean.size else float("nan")


def exposure_statistics(series: AccountSeries) -> ExposureStatistics:
    """Return how much of the account was at work over ``series``."""
    leverage = over_equity(series.gross, series.equity)
    net = over_equity(series.net, series.equity)
    margin_use = over_equity(series.margin, series.equity)
    return ExposureStatistics(
        mean_leverage=_mean(leverage),
        max_leverage=_max(leverage),
        mean_net=_mean(net),
        max_abs_net=_max(np.abs(net)),
        time_in_market=_mean((series.open_count > 0).astype(np.float64)),
        mean_margin_use=_mean(margin_use),
        max_margin_use=_max(margin_use),
        mean_open=_mean(series.open_count),
        max_open=_max(series.open_count),
    )


def annual_turnover(traded_notional: float, equity: FloatArray, frame_ns: int) -> float:
    """Return notional bought and sold per year over mean equity (both sides counted); NaN without equity.

    Parameters
    ----------
    traded_notional : float
        Sum of ``|lots| * price`` of all fills, USDT.
    equity : (n,) float64
        Account value once a bar, USDT.
    frame_ns : int
        Bar length, nanoseconds.
    """
    mean_equity = _mean(equity)
    years = equity.size / periods_per_year(frame_ns)
    return _ratio(traded_notional, mean_equity * years)

"""Figures of trades and of the account series."""

from __future__ import annotations

import numpy as np
import pytest

from crypto_qlib.analytics.trading import AccountSeries, annual_turnover, exposure_statistics, trade_statistics
from crypto_qlib.core.clock import NS_PER_HOUR


def test_hand_worked_trade_figures() -> None:
    got = trade_statistics(np.array([10.0, -5.0, -15.0, 0.0, 30.0]))
    assert got.count == 5
    assert got.win_rate == pytest.approx(0.4)  # a zero is not a win
    assert got.profit_factor == pytest.approx(40.0 / 20.0)
    assert got.expectancy == pytest.approx(4.0)
    assert (got.mean_win, got.mean_loss, got.payoff_ratio) == pytest.approx((20.0, 10.0, 2.0))
    assert (got.best, got.worst) == (30.0, -15.0)
    assert got.longest_losing_streak == 2


def test_no_trades_and_no_losses_are_unknown_not_infinite() -> None:
    assert np.isnan(trade_statistics(np.array([])).win_rate)
    only_wins = trade_statistics(np.array([1.0, 2.0]))
    assert np.isnan(only_wins.profit_factor)
    assert only_wins.win_rate == 1.0


def test_leverage_is_gross_over_equity_and_ruined_samples_are_left_out() -> None:
    series = AccountSeries(
        equity=np.array([100.0, 100.0, 0.0, 50.0]),
        gross=np.array([0.0, 200.0, 500.0, 150.0]),
        net=np.array([0.0, -100.0, 0.0, 50.0]),
        margin=np.array([0.0, 40.0, 0.0, 30.0]),
        open_count=np.array([0.0, 2.0, 1.0, 3.0]),
    )
    got = exposure_statistics(series)
    assert got.mean_leverage == pytest.approx((0.0 + 2.0 + 3.0) / 3)
    assert got.max_leverage == 3.0
    assert got.mean_net == pytest.approx((0.0 - 1.0 + 1.0) / 3)
    assert got.max_abs_net == 1.0
    assert got.time_in_market == 0.75
    assert got.max_margin_use == pytest.approx(0.6)
    assert (got.mean_open, got.max_open) == (1.5, 3.0)


def test_turnover_is_traded_notional_per_year_over_mean_equity() -> None:
    # half a year of hours at 1,000 USDT, 5,000 USDT traded: 10 times the account a year
    assert annual_turnover(5_000.0, np.full(4380, 1_000.0), NS_PER_HOUR) == pytest.approx(10.0)
    assert np.isnan(annual_turnover(1.0, np.array([]), NS_PER_HOUR))

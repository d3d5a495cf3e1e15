"""Figures of an equity curve, against hand-worked numbers and against a well-kept library."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.analytics import performance as p
from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import empyrical


def _walk(seed: int, n: int = 2_000, drift: float = 2e-5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 100_000.0 * np.cumprod(1.0 + rng.standard_t(4, n) * 0.004 + drift)


def test_a_year_of_hours_has_8760_periods() -> None:
    assert p.periods_per_year(NS_PER_HOUR) == 8760.0
    assert p.periods_per_year(NS_PER_DAY) == 365.0


@pytest.mark.parametrize(
    ("name", "equity", "expected"),
    [
        ("one fall of a fifth", [100.0, 120.0, 96.0, 130.0], 0.2),  # 96 / 120
        ("never falls", [1.0, 2.0, 3.0], 0.0),
        ("ruin and below counts beyond 100 %", [100.0, -10.0], 1.1),
        ("deepest, not latest", [100.0, 50.0, 90.0, 81.0], 0.5),
    ],
)
def test_max_drawdown_is_the_deepest_fall_from_a_peak(name: str, equity: list[float], expected: float) -> None:
    assert p.max_drawdown(np.array(equity)) == pytest.approx(expected), name


@pytest.mark.parametrize(
    ("name", "equity", "expected"),
    [
        ("two spells, the longer counts", [10, 9, 10, 8, 8, 11], 2),
        ("open at the end counts", [10, 9, 8, 7], 3),
        ("never under water", [1, 1, 2], 0),
    ],
)
def test_longest_drawdown_counts_samples_below_a_peak(name: str, equity: list[float], expected: int) -> None:
    assert p.longest_drawdown_bars(np.array(equity, dtype=float)) == expected, name


def test_hand_worked_ratios_of_three_returns() -> None:
    returns = np.array([0.01, -0.02, 0.04])
    # mean 0.01; deviations 0, -0.03, 0.03; sum of squares 0.0018; variance (n - 1) 0.0009; spread 0.03
    assert p.sharpe(returns, 100.0) == pytest.approx(0.01 / 0.03 * 10.0)
    # downside sqrt(0.0004 / 3)
    assert p.sortino(returns, 100.0) == pytest.approx(0.01 / (0.0004 / 3) ** 0.5 * 10.0)
    assert p.total_return(returns) == pytest.approx(1.01 * 0.98 * 1.04 - 1.0)
    assert p.annual_volatility(returns, 4.0) == pytest.approx(0.06)


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_agrees_with_empyrical(seed: int) -> None:
    equity = _walk(seed)
    returns = p.returns_from_equity(equity)
    periods = 8760.0
    assert p.sharpe(returns, periods) == pytest.approx(empyrical.sharpe_ratio(returns, annualization=8760), rel=1e-9)
    assert p.sortino(returns, periods) == pytest.approx(empyrical.sortino_ratio(returns, annualization=8760), rel=1e-9)
    assert p.max_drawdown(equity) == pytest.approx(-empyrical.max_drawdown(returns), rel=1e-9)
    assert p.annual_volatility(returns, periods) == pytest.approx(
        empyrical.annual_volatility(returns, annualization=8760), rel=1e-9
    )
    assert p.annual_return(returns, periods) == pytest.approx(empyrical.annual_return(returns, annualization=8760), rel=1e-6)
    assert p.calmar(equity, periods) == pytest.approx(empyrical.calmar_ratio(returns, annualization=8760), rel=1e-6)
    assert p.value_at_risk(returns) == pytest.approx(-empyrical.value_at_risk(returns), rel=1e-9)
    assert p.conditional_value_at_risk(returns) == pytest.approx(-empyrical.conditional_value_at_risk(returns), rel=1e-9)


@pytest.mark.parametrize("equity", [[], [100.0]])
def test_too_little_data_gives_nan_and_no_warning(equity: list[float]) -> None:
    got = p.equity_statistics(np.arange(len(equity)) * NS_PER_HOUR, np.array(equity), NS_PER_HOUR)
    for name in ("total_return", "sharpe", "sharpe_daily", "sortino", "calmar", "annual_volatility", "var_95", "cvar_95"):
        assert np.isnan(getattr(got, name)), name


def test_a_flat_curve_has_no_ratio() -> None:
    got = p.equity_statistics(np.arange(100) * NS_PER_HOUR, np.full(100, 5e4), NS_PER_HOUR)
    assert got.total_return == 0.0
    assert got.max_drawdown == 0.0
    assert np.isnan(got.sharpe)
    assert np.isnan(got.sortino)
    assert np.isnan(got.calmar)


def test_after_ruin_there_are_no_returns() -> None:
    returns = p.returns_from_equity(np.array([100.0, 0.0, 50.0, -5.0, 10.0]))
    assert returns[0] == -1.0
    assert np.isnan(returns[1])
    assert returns[2] == pytest.approx(-1.1)
    assert np.isnan(returns[3])
    assert p.annual_return(returns, 8760.0) == pytest.approx(-1.0, abs=0.2)


def test_a_total_loss_is_minus_one_a_year_and_an_absurd_gain_stays_finite() -> None:
    assert p.annual_return(np.array([-1.0]), 8760.0) == -1.0
    assert np.isfinite(p.annual_return(np.array([9.0]), 8760.0))


def test_daily_sharpe_uses_the_last_sample_of_each_utc_day() -> None:
    ts = np.arange(48) * NS_PER_HOUR
    assert p.last_of_each(ts // NS_PER_DAY, np.arange(48.0)).tolist() == [23.0, 47.0]


@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_figures_do_not_depend_on_the_unit_of_money(seed: int, scale: float) -> None:
    equity = _walk(seed, 50)
    ts = np.arange(50) * NS_PER_HOUR
    a, b = p.equity_statistics(ts, equity, NS_PER_HOUR), p.equity_statistics(ts, equity * scale, NS_PER_HOUR)
    assert a.sharpe == pytest.approx(b.sharpe, rel=1e-6)
    assert a.max_drawdown == pytest.approx(b.max_drawdown, rel=1e-9)
    assert 0.0 <= a.max_drawdown < 1.0
    assert a.cvar_95 >= a.var_95 - 1e-12  # the mean of the tail is never milder than its edge

"""Risk of ruin: days, paths by hand, chances that can be worked out, and the bootstrap against a well-kept library."""

from __future__ import annotations

import numpy as np
import pytest
from arch.bootstrap import StationaryBootstrap

from crypto_qlib.analytics.inference import bootstrap_mean
from crypto_qlib.analytics.ruin import DayRows, day_rows, ruin_odds
from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR

EVERY = (0.2, 0.5)


def _days(growth: list[float], low: list[float] | None = None, liquidated: list[bool] | None = None) -> DayRows:
    g = np.array(growth)
    lows = np.minimum(g, 1.0) if low is None else np.array(low)
    return DayRows(
        g, np.maximum(g, 1.0), lows, 1.0 - lows, np.zeros(g.size, bool) if liquidated is None else np.array(liquidated)
    )


def test_hours_become_days_with_their_own_fall() -> None:
    ts = NS_PER_DAY * 100 + NS_PER_HOUR * np.arange(0, 73, 12)
    equity = np.array([100.0, 150.0, 120.0, 60.0, 90.0, 90.0, 90.0])
    got = day_rows(ts, equity, np.array([False, False, True, False, False, False]))
    np.testing.assert_allclose(got.growth, [1.2, 0.75, 1.0])  # a close at midnight belongs to the day it ends
    np.testing.assert_allclose(got.high, [1.5, 1.0, 1.0])
    np.testing.assert_allclose(got.low, [1.0, 0.5, 1.0])
    np.testing.assert_allclose(got.fall, [0.2, 0.5, 0.0])
    assert got.liquidated.tolist() == [False, True, False]


def test_a_lost_account_ends_its_history() -> None:
    ts = NS_PER_DAY * np.arange(5)
    got = day_rows(ts, np.array([100.0, 50.0, -3.0, -3.0, -3.0]), np.zeros(4, bool))
    assert got.growth.tolist() == [0.5, 0.0]
    assert ruin_odds(got, EVERY, 50).drawdown == {0.2: 1.0, 0.5: 1.0}


def test_the_chance_of_one_bad_day_is_the_binomial_one() -> None:
    # one day in fifty liquidates; independent draws over 30 days: 1 - 0.98^30
    days = _days([1.0] * 50, liquidated=[True] + [False] * 49)
    got = ruin_odds(days, EVERY, 30, mean_block_days=1.0, n_samples=20_000)
    assert got.liquidation == pytest.approx(1.0 - 0.98**30, abs=0.01)
    assert got.drawdown == {0.2: 0.0, 0.5: 0.0}
    assert got.loss == 0.0


def test_bad_days_that_come_together_are_drawn_together() -> None:
    # ten losses of 10 % in a row among 200 days: in blocks they add up to -65 %, drawn singly they hardly ever meet
    days = _days([0.9] * 10 + [1.02] * 190)
    apart, together = (ruin_odds(days, EVERY, 30, block, 4_000).drawdown[0.5] for block in (1.0, 20.0))
    assert apart < 0.001
    assert together > 0.05


def test_a_fall_inside_a_day_counts_from_the_highest_value_before() -> None:
    days = _days([1.1, 1.0], low=[1.0, 0.75])  # day 2 dips by a quarter and comes back
    got = ruin_odds(days, (0.24, 0.26), 400, mean_block_days=1.0)
    assert got.drawdown == {0.24: 1.0, 0.26: 0.0}


def test_without_a_day_nothing_is_known() -> None:
    got = ruin_odds(_days([]), EVERY, 30)
    assert np.isnan([got.liquidation, got.loss, got.median_growth, *got.drawdown.values()]).all()


def test_the_block_bootstrap_agrees_with_arch() -> None:
    rng = np.random.default_rng(5)
    x = np.convolve(rng.standard_normal(1_500), np.ones(12) / 12.0, "valid")
    theirs = StationaryBootstrap(24, x, seed=1).apply(np.mean, 1_000)
    ours = bootstrap_mean(x, 24.0, n_samples=1_000)
    assert ours.standard_error == pytest.approx(float(theirs.std(ddof=1)), rel=0.08)
    low, high = np.quantile(theirs, (0.025, 0.975))
    assert (ours.low, ours.high) == pytest.approx((float(low), float(high)), abs=0.15 * (high - low))

"""Standard errors, bootstrap and deflated Sharpe ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crypto_qlib.analytics import inference as i


def _ar1(seed: int, n: int, phi: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.empty(n)
    x[0] = rng.standard_normal() / math.sqrt(1 - phi**2)
    noise = rng.standard_normal(n)
    for t in range(1, n):
        x[t] = phi * x[t - 1] + noise[t]
    return x


def test_on_independent_returns_both_errors_agree_with_the_textbook() -> None:
    x = np.random.default_rng(1).standard_normal(4_000)
    textbook = x.std(ddof=1) / math.sqrt(x.size)
    assert i.newey_west_standard_error(x, 10) == pytest.approx(textbook, rel=0.15)
    assert i.bootstrap_mean(x, 5.0).standard_error == pytest.approx(textbook, rel=0.15)


def test_on_autocorrelated_returns_the_error_grows_to_the_long_run_one() -> None:
    # AR(1) with phi 0.8: the standard error of the mean is 1 / (1 - phi) / sqrt(n) = 5 / sqrt(n), not 1.67 / sqrt(n)
    x = _ar1(2, 8_000, 0.8)
    truth = 5.0 / math.sqrt(x.size)
    assert i.newey_west_standard_error(x, 60) == pytest.approx(truth, rel=0.25)
    assert i.bootstrap_mean(x, 60.0).standard_error == pytest.approx(truth, rel=0.25)


def test_newey_west_by_hand() -> None:
    # x = [1, -1, 1, -1]: g0 = 1, g1 = -3/4; one lag weighs 1/2: (1 + 2 * 0.5 * -0.75) / 4 = 1/16
    assert i.newey_west_standard_error(np.array([1.0, -1.0, 1.0, -1.0]), 1) == pytest.approx(0.25)


def test_bootstrap_is_reproducible_and_covers_its_mean() -> None:
    x = _ar1(3, 500, 0.5)
    a, b = i.bootstrap_mean(x, 24.0, seed=9), i.bootstrap_mean(x, 24.0, seed=9)
    assert a == b
    assert i.bootstrap_mean(x, 24.0, seed=10) != a
    assert a.low < a.mean < a.high


def test_a_constant_series_has_no_error_and_no_z() -> None:
    got = i.bootstrap_mean(np.full(50, 0.5), 5.0)
    assert (got.mean, got.standard_error) == (0.5, 0.0)
    assert math.isnan(got.z)
    assert math.isnan(i.bootstrap_mean(np.array([np.nan]), 5.0).mean)


def test_blocks_shorter_than_a_period_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one period"):
        i.bootstrap_means(np.ones(3), 0.5, 10, 1)


def test_deflated_sharpe_reproduces_the_published_example() -> None:
    # Bailey & Lopez de Prado (2014), section "A numerical example": annual SR 2.5 over 1,250 days, 100 trials whose annual
    # Sharpe ratios have variance 1/2, skewness -3, kurtosis 10. They state the deflated ratio as 0.9004.
    best = i.expected_best_sharpe(100, math.sqrt(0.5 / 250.0))
    assert best == pytest.approx(0.1132, abs=2e-4)


def test_probabilistic_sharpe_of_a_symmetric_series_by_hand() -> None:
    x = np.array([1.0, -1.0] * 50) + 0.1  # mean 0.1, population spread 1, skew 0, kurtosis 1: the variance term is exactly 1
    ratio = 0.1 / x.std(ddof=1)
    want = 0.5 * (1 + math.erf(ratio * math.sqrt(99) / math.sqrt(2)))
    assert i.probabilistic_sharpe(x) == pytest.approx(want, rel=1e-12)
    assert i.deflated_sharpe(x, 1, 0.3) == pytest.approx(want, rel=1e-12)
    assert i.deflated_sharpe(x, 50, 0.3) < want
    assert math.isnan(i.probabilistic_sharpe(np.zeros(10)))


def test_choosing_among_useless_trials_is_told_as_overfitting() -> None:
    found = [i.probability_of_overfitting(np.random.default_rng(seed).normal(size=(600, 20))) for seed in range(12)]
    assert 0.35 < float(np.mean(found)) < 0.65


def test_a_trial_that_is_truly_better_is_not_overfitting() -> None:
    trials = np.random.default_rng(1).normal(size=(600, 20))
    trials[:, 7] += 0.5
    assert i.probability_of_overfitting(trials) == 0.0


@pytest.mark.parametrize(
    ("shape", "n_blocks"),
    [((600, 1), 10), ((600, 5), 9), ((15, 5), 10)],  # no choice; no two halves; too few periods
)
def test_overfitting_needs_a_choice_and_two_halves(shape: tuple[int, int], n_blocks: int) -> None:
    with pytest.raises(ValueError, match="need two trials"):
        i.probability_of_overfitting(np.zeros(shape), n_blocks)


def test_the_sharpe_ratio_of_useless_strategies_spreads_as_told() -> None:
    returns = np.random.default_rng(2).normal(size=(4_000, 250))
    spread = (returns.mean(axis=1) / returns.std(axis=1)).std()
    assert i.null_sharpe_spread(250) == pytest.approx(spread, rel=0.05)
    assert np.isnan(i.null_sharpe_spread(1))


def test_the_best_of_useless_runs_is_not_believed_and_a_good_run_is() -> None:
    rng = np.random.default_rng(4)
    useless = rng.normal(size=(500, 40))
    judged = i.judge_trials(useless)
    assert judged.n_trials == 40
    assert judged.deflated_sharpe < 0.9
    assert i.probabilistic_sharpe(useless[:, judged.best]) > 0.95, "alone it would have looked like skill"
    useless[:, 11] += 0.25
    good = i.judge_trials(useless)
    assert good.best == 11
    assert good.deflated_sharpe > 0.99
    assert good.probability_of_overfitting < 0.05


def test_a_single_run_is_judged_by_its_own_sharpe_ratio() -> None:
    x = np.random.default_rng(6).normal(0.1, 1.0, 300)
    judged = i.judge_trials(x[:, None])
    assert judged.expected_best == 0.0
    assert judged.deflated_sharpe == pytest.approx(i.probabilistic_sharpe(x))
    assert math.isnan(judged.probability_of_overfitting)


@pytest.mark.parametrize("shape", [(2, 3), (10, 0), (10,)])
def test_too_few_periods_or_runs_cannot_be_judged(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        i.judge_trials(np.zeros(shape))

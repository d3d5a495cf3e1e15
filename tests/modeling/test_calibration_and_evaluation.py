"""Calibration on data whose answer is known, and evaluation against scipy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.modeling.calibration import NO_SKILL_RETURN, Calibration, fit_calibration
from crypto_qlib.modeling.evaluate_model import evaluate_model, write_performance
from crypto_qlib.modeling.labels import Labels
from crypto_qlib.modeling.train_model import predict_scores
from tests.modeling.conftest import Trained


def drawn(n: int, slope: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    prediction = rng.normal(0.0, 0.01, n)
    return prediction, slope * prediction + rng.normal(0.0, 0.02, n)


def test_slope_is_recovered() -> None:
    prediction, outcome = drawn(50_000, 0.7)
    fitted = fit_calibration(prediction, outcome, outcome, 1)
    assert fitted.slope == pytest.approx(0.7, abs=0.03)
    assert fitted.uncertainty == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(("horizon", "method"), [(1, "isotonic"), (500, "platt")])
def test_win_probability_matches_the_truth(horizon: int, method: str) -> None:
    # With r = 0.7 p + 0.02 z the chance that sign(p) r > 0 is Phi(0.7 |p| / 0.02).
    prediction, outcome = drawn(60_000, 0.7)
    fitted = fit_calibration(prediction, outcome, outcome, horizon)
    assert fitted.method == method
    expected, win = fitted.apply(np.array([0.001, -0.005, 0.015]))
    truth = stats.norm.cdf(np.abs(expected) / 0.02)
    np.testing.assert_allclose(win, truth, atol=0.03)
    assert np.array_equal(np.sign(expected), [1, -1, 1])


def test_win_curve_never_falls() -> None:
    prediction, outcome = drawn(20_000, 0.1, seed=3)
    fitted = fit_calibration(prediction, outcome, outcome, 1)
    assert np.all(np.diff(fitted.win) >= 0.0)
    assert np.all(np.diff(fitted.knots) > 0.0)


def test_negative_skill_keeps_the_order_and_shrinks_the_size() -> None:
    prediction, outcome = drawn(10_000, -0.5)
    for unit in (1.0, 100.0, 1e-4):  # returns, probabilities less a half, scores of a ranking
        fitted = fit_calibration(unit * prediction, outcome, outcome, 1)
        assert fitted.validation_slope < 0.0
        expected, _ = fitted.apply(unit * prediction)
        assert np.sqrt(np.mean(expected**2)) == pytest.approx(NO_SKILL_RETURN), "too small to pay any cost, in any unit"
        assert np.array_equal(np.argsort(expected), np.argsort(prediction)), "the order is kept"


def test_missing_values_stay_missing_and_flat_predictions_do_not_fail() -> None:
    fitted = fit_calibration(np.zeros(100), np.ones(100), np.ones(100), 1)
    expected, win = fitted.apply(np.array([math.nan, 0.0]))
    assert np.isnan(expected[0])
    assert np.isnan(win[0])
    assert (expected[1], win[1]) == (0.0, 0.5)


def test_json_round_trip_is_exact() -> None:
    prediction, outcome = drawn(5_000, 0.3)
    fitted = fit_calibration(prediction, outcome, outcome, 1)
    assert Calibration.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


HOUR = 3_600 * 10**9


def labels_of(values: np.ndarray, horizon: int = 1) -> Labels:
    ts = np.arange(values.shape[0], dtype=np.int64) * HOUR
    return Labels(
        "forward_return",
        horizon,
        ts,
        HOUR,
        tuple("ABCDE"[: values.shape[1]]),
        values,
        values,
        values,
        values,
        -values,
        values * 0 + 1,
    )


def scores_of(expected: np.ndarray, win: np.ndarray | None = None) -> ScorePanel:
    ts = (np.arange(expected.shape[0], dtype=np.int64) + 1) * HOUR
    chance = np.full_like(expected, 0.5) if win is None else win
    return ScorePanel(ts, tuple("ABCDE"[: expected.shape[1]]), expected, chance, np.full_like(expected, np.nan))


def test_coefficients_equal_scipy() -> None:
    rng = np.random.default_rng(2)
    outcome = rng.normal(0.0, 0.01, (60, 5))
    expected = outcome + rng.normal(0.0, 0.02, (60, 5))
    expected[3, 1] = outcome[7, 2] = np.nan
    expected[9] = 0.5  # no spread: the bar does not count
    got = evaluate_model(scores_of(expected), labels_of(outcome))
    pearson, spearman = [], []
    for e, y in zip(expected, outcome, strict=True):
        ok = np.isfinite(e) & np.isfinite(y)
        if np.ptp(e[ok]) > 0:
            pearson.append(stats.pearsonr(e[ok], y[ok]).statistic)
            spearman.append(stats.spearmanr(e[ok], y[ok]).statistic)
    assert got.ic.mean == pytest.approx(np.mean(pearson))
    assert got.rank_ic.mean == pytest.approx(np.mean(spearman))
    assert got.rank_ic.ir == pytest.approx(np.mean(spearman) / np.std(spearman, ddof=1))
    assert got.ic.n_bars == 59
    ok = np.isfinite(expected[:, 0]) & np.isfinite(outcome[:, 0])
    assert got.symbols[0].rank_ic == pytest.approx(stats.spearmanr(expected[ok, 0], outcome[ok, 0]).statistic)
    assert got.n_pairs == 298


def test_perfect_scores() -> None:
    outcome = np.random.default_rng(0).normal(0.0, 0.01, (80, 5))
    got = evaluate_model(scores_of(outcome, np.ones_like(outcome)), labels_of(outcome))
    assert got.rank_ic.mean == pytest.approx(1.0)
    assert got.hit_ratio == 1.0
    assert got.calibration_error == 0.0
    assert got.return_slope == pytest.approx(1.0)
    spread = np.sort(outcome, axis=1)
    assert got.quantile_spread.mean == pytest.approx(np.mean(spread[:, -1] - spread[:, 0]))


def test_error_of_the_mean_widens_with_overlap() -> None:
    rng = np.random.default_rng(5)
    steps = rng.normal(0.0, 0.01, (600, 5))
    overlapping = np.array([steps[t : t + 24].sum(axis=0) for t in range(570)])
    scores = np.repeat(rng.normal(0.0, 1.0, (19, 5)), 30, axis=0)
    naive = evaluate_model(scores_of(scores), labels_of(overlapping, 1)).rank_ic
    honest = evaluate_model(scores_of(scores), labels_of(overlapping, 24)).rank_ic
    assert honest.mean == naive.mean
    assert honest.standard_error > 1.4 * naive.standard_error


def test_report_is_strict_json_with_stamp(trained: Trained, tmp_path: Path) -> None:
    performance = evaluate_model(predict_scores(trained.model, trained.frame, segment="test"), trained.labels)
    path = write_performance(performance, tmp_path / "r", {"run_id": "abc"})
    assert path.name == "model_performance_report.json"
    content = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert content["run"]["run_id"] == "abc"
    assert content["rank_ic"]["mean"] == performance.rank_ic.mean
    assert len(content["symbols"]) == len(trained.panel.symbols)


def test_scores_without_labels_yet_and_foreign_scores_are_refused(trained: Trained) -> None:
    last = scores_of(np.ones((5, 3)))
    with pytest.raises(UserError, match="no score has a label"):
        evaluate_model(last, labels_of(np.full((5, 3), np.nan)))
    with pytest.raises(UserError, match="different symbols"):
        evaluate_model(last, trained.labels)
    with pytest.raises(UserError, match="different bars"):
        evaluate_model(scores_of(np.ones((9, 3))), labels_of(np.ones((5, 3))))


class TestInterval:
    """Nine in ten outcomes fall inside, for any distribution, in every band of strength."""

    def fitted(self, n: int, seed: int = 0) -> tuple[Calibration, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.normal(0.0, 0.01, n)
        y = x + rng.standard_t(3, n) * (0.01 + 2.0 * np.abs(x))  # fat tails, and wilder where the prediction is strong
        return fit_calibration(x, y, y, 1), x, y

    def test_coverage_on_fresh_data_in_each_band(self) -> None:
        calibration, _, _ = self.fitted(20_000)
        _, x, y = self.fitted(40_000, seed=1)
        expected, _ = calibration.apply(x)
        low, high = calibration.interval(expected)
        inside = (y >= low) & (y <= high)
        band = np.digitize(np.abs(expected), calibration.band_edges)
        assert len(calibration.half_widths) == 3
        assert calibration.half_widths[0] < calibration.half_widths[2]
        for k in range(3):
            assert inside[band == k].mean() == pytest.approx(0.9, abs=0.015)

    def test_few_outcomes_give_no_interval_and_nan_stays_nan(self) -> None:
        calibration, x, _ = self.fitted(100)
        assert np.isnan(calibration.interval(x)[0]).all()
        many, _, _ = self.fitted(5000)
        assert np.isnan(many.interval(np.array([np.nan]))[1]).all()

    def test_it_survives_its_json(self) -> None:
        for n in (100, 5000):
            calibration, _, _ = self.fitted(n)
            again = Calibration.from_json(json.loads(json.dumps(calibration.to_json(), allow_nan=False)))
            assert repr(again) == repr(calibration)

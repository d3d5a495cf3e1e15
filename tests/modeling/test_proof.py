"""Noise must not be found, a planted signal must be, and shuffled labels must teach nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model
from crypto_qlib.modeling.train_model import predict_scores, train_model
from tests.modeling.conftest import Trained, model_settings, train_on
from tests.noise_market import noise_panel

pytestmark = pytest.mark.slow
FAMILIES = ["lightgbm", "linear"]
HORIZON = 4
"""Short, so that the test segment holds about a hundred labels that do not overlap: with few, t values have fat tails."""


def train(seed: int, planted: float, name: str, folder: Path) -> Trained:
    return train_on(
        noise_panel(2000, 12, seed=seed, planted=planted),
        model_settings(name, horizon_bars=HORIZON, embargo_bars=HORIZON),
        folder,
    )


def out_of_sample(done: Trained) -> ModelPerformance:
    return evaluate_model(predict_scores(done.model, done.frame, segment="test"), done.labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_pure_noise_is_not_predictable(name: str, tmp_path: Path) -> None:
    t_stats = []
    for seed in range(4):
        found = out_of_sample(train(seed, 0.0, name, tmp_path))
        t_stats.append(found.rank_ic.t_stat)
        assert abs(found.rank_ic.t_stat) < 3.0, f"seed {seed}"
        assert abs(found.quantile_spread.t_stat) < 3.0, f"seed {seed}: return before costs"
    assert abs(np.mean(t_stats)) < 3.0 / np.sqrt(len(t_stats))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_planted_signal_is_found_and_calibrated(name: str, tmp_path: Path) -> None:
    found = out_of_sample(train(7, 0.15, name, tmp_path))
    assert found.rank_ic.mean > 0.1
    assert found.rank_ic.t_stat > 5.0
    assert found.quantile_spread.t_stat > 4.0
    assert found.hit_ratio > 0.52
    assert 0.4 < found.return_slope < 1.6
    assert found.calibration_error < 0.06


@pytest.mark.parametrize("name", FAMILIES)
def test_shuffled_labels_teach_nothing(name: str, tmp_path: Path) -> None:
    # The market does hold a signal, so one shuffled model can point along it by luck: the mean over shuffles must not.
    done = train(7, 0.15, name, tmp_path / "true")
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mixed = done.labels.values.copy()
        for row in mixed:
            there = np.isfinite(row)
            row[there] = rng.permutation(row[there])
        taught = train_model(done.frame, replace(done.labels, values=mixed), done.settings, tmp_path / "mixed")
        scores = predict_scores(taught, done.frame, segment="test")
        found.append(evaluate_model(scores, done.labels).rank_ic.mean)
    true = out_of_sample(done).rank_ic.mean
    assert abs(np.mean(found)) < 3.0 * np.std(found, ddof=1) / np.sqrt(len(found))
    assert np.mean(found) < true / 2.0

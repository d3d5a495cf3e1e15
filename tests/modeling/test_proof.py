"""Noise must not be found, a planted signal must be, and shuffled labels must teach nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import model_settings, train_on
from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model
from crypto_qlib.modeling.train_model import predict_scores, train_model
from noise_market import noise_panel

pytestmark = pytest.mark.slow
FAMILIES = ["lightgbm", "linear"]


def out_of_sample(seed: int, planted: float, name: str, folder: Path) -> ModelPerformance:
    done = train_on(noise_panel(1400, 16, seed=seed, planted=planted), model_settings(name), folder)
    return evaluate_model(predict_scores(done.model, done.frame, segment="test"), done.labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_pure_noise_is_not_predictable(name: str, tmp_path: Path) -> None:
    t_stats = []
    for seed in range(3):
        found = out_of_sample(seed, 0.0, name, tmp_path)
        t_stats.append(found.rank_ic.t_stat)
        assert abs(found.rank_ic.t_stat) < 3.0, f"seed {seed}"
        assert abs(found.quantile_spread.t_stat) < 3.0, f"seed {seed}: return before costs"
    assert abs(np.mean(t_stats)) < 3.0 / np.sqrt(len(t_stats))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_planted_signal_is_found_and_calibrated(name: str, tmp_path: Path) -> None:
    found = out_of_sample(7, 0.2, name, tmp_path)
    assert found.rank_ic.mean > 0.1
    assert found.rank_ic.t_stat > 4.0
    assert found.quantile_spread.t_stat > 4.0
    assert found.hit_ratio > 0.52
    assert 0.4 < found.return_slope < 1.6
    assert found.calibration_error < 0.06


@pytest.mark.parametrize("name", FAMILIES)
def test_shuffled_labels_teach_nothing(name: str, tmp_path: Path) -> None:
    done = train_on(noise_panel(1400, 16, seed=7, planted=0.2), model_settings(name), tmp_path / "true")
    rng = np.random.default_rng(0)
    mixed = done.labels.values.copy()
    for row in mixed[: done.model.split.valid.stop]:
        there = np.isfinite(row)
        row[there] = rng.permutation(row[there])
    taught = train_model(done.frame, replace(done.labels, values=mixed), done.settings, tmp_path / "mixed")
    found = evaluate_model(predict_scores(taught, done.frame, segment="test"), done.labels)
    assert abs(found.rank_ic.t_stat) < 3.0

"""Noise must not be found, a planted signal must be, and shuffled labels must teach nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model
from crypto_qlib.modeling.train_model import predict_scores, train_model
from tests.modeling.conftest import Trained, model_settings, train_on
from tests.noise_market import noise_panel

pytestmark = pytest.mark.slow
FAMILIES = ["lightgbm", "linear"]
NETWORKS = ["lstm", "gru", "transformer", "tft"]
NET = {
    "lookback_bars": 6, "hidden": 8, "heads": 2, "epochs": 4, "epoch_rows": 4096, "batch_rows": 128, "max_features": 8,
    "learning_rate": 5e-3,
}  # fmt: skip
SEEDS = 4
ALPHA = 0.01
LIMIT = NormalDist().inv_cdf(1.0 - ALPHA / (2 * 2 * (len(FAMILIES) * SEEDS + len(NETWORKS))))
"""Bonferroni: |t| that any of all noise trials' two figures passes with probability :data:`ALPHA` if there is nothing."""
HORIZON = 4
"""Short, so that the test segment holds about a hundred labels that do not overlap: with few, t values have fat tails."""


def train(seed: int, planted: float, name: str, folder: Path, n_bars: int = 2000) -> Trained:
    return train_on(
        noise_panel(n_bars, 12, seed=seed, planted=planted),
        model_settings(name, horizon_bars=HORIZON, embargo_bars=HORIZON, net=NET),
        folder,
    )


def out_of_sample(done: Trained) -> ModelPerformance:
    return evaluate_model(predict_scores(done.model, done.frame, segment="test"), done.labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_pure_noise_is_not_predictable(name: str, tmp_path: Path) -> None:
    t_stats = []
    for seed in range(SEEDS):
        found = out_of_sample(train(seed, 0.0, name, tmp_path))
        t_stats.append(found.rank_ic.t_stat)
        assert abs(found.rank_ic.t_stat) < LIMIT, f"seed {seed}"
        assert abs(found.quantile_spread.t_stat) < LIMIT, f"seed {seed}: return before costs"
    assert abs(np.mean(t_stats)) < 3.0 / np.sqrt(len(t_stats))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_finds_the_planted_signal_and_nothing_in_noise(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the torch extra is not installed")
    found = out_of_sample(train(7, 0.3, name, tmp_path / "planted", 1000))
    assert found.rank_ic.mean > 0.1
    assert found.rank_ic.t_stat > LIMIT
    nothing = out_of_sample(train(7, 0.0, name, tmp_path / "noise", 1000))
    assert abs(nothing.rank_ic.t_stat) < LIMIT
    assert abs(nothing.quantile_spread.t_stat) < LIMIT


@pytest.mark.parametrize("name", [*FAMILIES, "ensemble", "gru", "lstm"])
def test_more_data_finds_more_of_it(name: str, tmp_path: Path) -> None:
    if name in NETWORKS:
        pytest.importorskip("torch", reason="the torch extra is not installed")
    means = {
        n: np.mean([out_of_sample(train(seed, 0.15, name, tmp_path, n)).rank_ic.mean for seed in (1, 2)]) for n in (500, 2000)
    }
    assert means[2000] > means[500]
    assert means[2000] > 0.08


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

"""Combinatorial purged paths: no path is scored by a model that learned from what it is tested on; the figures are spread."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling import purged_paths as module
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.purged_paths import learning_bars, net_sharpe, purged_paths, spread
from crypto_qlib.modeling.qlib_task import windowed_rows
from crypto_qlib.modeling.splits import combinatorial_splits
from crypto_qlib.scheduler.model_shelf import Market, ModelShelf
from crypto_qlib.settings.schema import FeatureSettings
from crypto_qlib.store.paths import Paths
from tests.modeling.conftest import model_settings
from tests.noise_market import noise_panel

SETTINGS = model_settings("linear", horizon_bars=4, embargo_bars=4)


def inputs(planted: float, seed: int = 5) -> tuple[Any, Labels]:
    panel = noise_panel(900, 10, seed=seed, planted=planted)
    return build_features(panel, FeatureSettings(sets=("technical",))), make_labels(panel, SETTINGS)


def test_a_planted_signal_is_found_on_every_path_and_costs_are_paid() -> None:
    frame, labels = inputs(0.3)
    told: list[float] = []
    free = purged_paths(frame, labels, SETTINGS, n_blocks=5, n_test=2, cost=0.0, progress=told.append)
    assert free.n_models == comb(5, 2) == len(told)
    assert sum(told) == pytest.approx(1.0)
    assert len(free.rank_ic) == len(free.sharpe) == comb(4, 1)
    assert min(free.rank_ic) > 0.05
    dear = purged_paths(frame, labels, SETTINGS, n_blocks=5, n_test=2, cost=0.01)
    assert all(a < b for a, b in zip(dear.sharpe, free.sharpe, strict=True))
    assert dear.rank_ic == free.rank_ic


def test_what_was_found_is_kept_for_the_report_of_these_settings_alone(tmp_path: Path) -> None:
    frame, labels = inputs(0.3)
    panel = noise_panel(900, 10, seed=5, planted=0.3)
    shelf = ModelShelf(Paths(tmp_path), SETTINGS)
    assert shelf.kept_paths() is None
    said = shelf.paths(Market(frame, lambda _: labels, panel), 5, 2, 0.001, lambda _: None)
    assert said.lines[0] == "10 models, 4 paths of 5 blocks, 2 tested at a time"
    kept = shelf.kept_paths()
    assert kept is not None
    assert len(kept["rank_ic"]) == 4
    assert kept["until"].startswith("2024-")
    assert ModelShelf(Paths(tmp_path), SETTINGS.model_copy(update={"threads": 2})).kept_paths() == kept, "no other model"
    assert ModelShelf(Paths(tmp_path), SETTINGS.model_copy(update={"seed": 8})).kept_paths() is None


def test_on_noise_the_paths_lie_on_both_sides_of_zero() -> None:
    found = [purged_paths(*inputs(0.0, seed), SETTINGS, n_blocks=5, n_test=2, cost=0.0).rank_ic for seed in range(3)]
    assert abs(np.mean(found)) < 0.03


def test_no_model_learns_from_a_bar_it_is_tested_on_nor_from_its_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, labels = inputs(0.0)
    with_rows = set(frame.row_bar.tolist())
    learned: list[set[int]] = []
    scored: list[set[int]] = []

    class Watched:
        context_bars = 0
        on_score = None

        def fit(self, dataset: Any, reweighter: Any = None) -> None:
            parts = [windowed_rows(dataset, name) for name in ("train", "valid")]
            bars = [set(rows.bar[rows.sample].tolist()) for rows in parts]
            assert max(bars[0]) + labels.horizon_bars < min(bars[1]), "validation comes a purge after training"
            learned.append(bars[0] | bars[1])
            scored.append(set())
            placed = range(*dataset.bin_bars)
            assert set(placed) & with_rows <= bars[0], "bins lie on bars that are learned from"

        def predict_batch(self, batch: Any, threads: int) -> Any:
            scored[-1] |= set(batch.bar.tolist())
            return np.zeros(batch.n_scored)

    monkeypatch.setattr(module, "new_model", lambda _settings: Watched())
    purged_paths(frame, labels, SETTINGS, n_blocks=5, n_test=2, cost=0.0)
    assert len(learned) == comb(5, 2)
    for known, tested in zip(learned, scored, strict=True):
        spans = {bar + k for bar in tested for k in (-labels.horizon_bars, 0, labels.horizon_bars)}
        assert not known & spans
    assert set().union(*scored) == with_rows, "every bar is tested"


def test_what_is_left_after_the_purge_must_be_enough() -> None:
    (split, *_) = combinatorial_splits(150, 3, 2, 8)
    with pytest.raises(UserError, match="too few bars to learn from"):
        learning_bars(split, 8)


def test_figures_by_hand() -> None:
    assert spread((1.0, 3.0, float("nan")))["mean"] == 2.0
    assert spread((1.0, 3.0))["positive"] == 1.0
    assert spread((float("nan"),))["mean"] is None
    _, labels = inputs(0.0)
    assert np.isnan(net_sharpe(np.full(labels.values.shape, np.nan), labels, 0.0))


def test_a_model_per_coin_has_no_paths() -> None:
    frame, labels = inputs(0.0)
    with pytest.raises(UserError, match="one model for all coins"):
        purged_paths(frame, labels, model_settings(per_symbol=True), n_blocks=5, n_test=2, cost=0.0)

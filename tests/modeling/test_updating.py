"""A fitted model goes on learning: the linear family exactly, trees and networks no worse on validation; a lineage is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling.artefact import load_model
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.models.lightgbm_model import LightGBMModel
from crypto_qlib.modeling.registry import list_models
from crypto_qlib.modeling.train_model import predict_scores, train_model
from crypto_qlib.modeling.updating import update_model
from crypto_qlib.scheduler.model_shelf import Market, ModelShelf
from crypto_qlib.settings.model_schema import UpdateSettings
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from crypto_qlib.store.paths import Paths
from tests.modeling.conftest import model_settings
from tests.noise_market import noise_panel

FEATURES = FeatureSettings(sets=("technical",))
LATER = noise_panel(900, 6, seed=8, planted=0.3)
SHORT = {"horizon_bars": 4, "embargo_bars": 4, "min_data_in_leaf": 50, "num_boost_round": 15}
HOW = UpdateSettings(rounds=10)


def until(panel: MarketPanel, n_bars: int) -> MarketPanel:
    fields = {name: getattr(panel, name)[:n_bars] for name in PANEL_FIELDS}
    return replace(panel, ts_open=panel.ts_open[:n_bars], is_member=panel.is_member[:n_bars], **fields)


EARLIER = until(LATER, 600)
FRAME = build_features(LATER, FEATURES)


def grown(settings: ModelSettings, folder: Path, how: UpdateSettings = HOW) -> tuple[object, object]:
    """Train on the earlier market, update on the later one; return both."""
    before = train_model(
        build_features(EARLIER, FEATURES), make_labels(EARLIER, settings), settings, folder / "a", identity="one"
    )
    after = update_model(folder / "a", FRAME, make_labels(LATER, settings), how, folder / "b", identity="two")
    return before, after


@pytest.mark.parametrize(
    ("name", "how"),
    [("lightgbm", HOW), ("lightgbm", UpdateSettings(method="refit")), ("linear", HOW), ("ensemble", HOW)],
    ids=["more trees", "moved leaves", "linear", "ensemble"],
)
def test_an_update_names_its_parent_and_learns_from_newer_bars_only(name: str, how: UpdateSettings, tmp_path: Path) -> None:
    before, after = grown(model_settings(name, **SHORT), tmp_path, how)
    again = load_model(tmp_path / "b")
    assert again.parent == after.parent
    assert (again.parent.identity, again.parent.sha256, again.parent.generation) == ("one", before.sha256, 1)
    assert again.segment_ts["train"][0] == before.segment_ts["train"][1] + LATER.frame_ns, "the bar after the parent's last"
    assert again.parent.trained_until_ns == before.segment_ts["train"][1]
    assert load_model(tmp_path / "a").sha256 == before.sha256, "the parent is left as it was"
    scores = predict_scores(again, FRAME, segment="test")
    np.testing.assert_array_equal(scores.expected_return, predict_scores(after, FRAME, segment="test").expected_return)


def test_a_linear_update_is_the_fit_on_everything_at_once(tmp_path: Path) -> None:
    settings = model_settings("linear", **SHORT)
    _, after = grown(settings, tmp_path)
    whole = train_model(FRAME, make_labels(LATER, settings), settings, tmp_path / "whole")
    # The parent's training ended a purge before its validation; those bars are learned in the update: none is left out.
    assert after.predictor.moments[2] == whole.predictor.moments[2]
    np.testing.assert_allclose(after.predictor.moments[0], whole.predictor.moments[0], rtol=1e-9)
    np.testing.assert_allclose(after.predictor.weights, whole.predictor.weights, rtol=1e-6)


def test_more_trees_stand_behind_those_there_were(tmp_path: Path) -> None:
    before, after = grown(model_settings(**SHORT), tmp_path)
    n = int(before.predictor.diagnostics()["trees"])
    kept = after.predictor.booster
    assert n < kept.current_iteration() <= n + HOW.rounds
    old, new = before.predictor.booster, kept
    rows = FRAME.values[:50]
    np.testing.assert_allclose(new.predict(rows, num_iteration=n), old.predict(rows, num_iteration=n), rtol=1e-12)


def test_an_update_that_does_not_raise_the_validation_ic_changes_no_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LightGBMModel._boosted

    def worse(self: LightGBMModel, *args: object) -> object:
        booster = real(self, *args)  # type: ignore[arg-type]
        if len(args) > 3:
            booster.best_score["valid"]["ic"] = -1.0
        return booster

    monkeypatch.setattr(LightGBMModel, "_boosted", worse)
    before, after = grown(model_settings(**SHORT), tmp_path)
    assert after.sha256 == before.sha256


def test_refitted_leaves_keep_the_splits(tmp_path: Path) -> None:
    before, after = grown(model_settings(**SHORT), tmp_path, UpdateSettings(method="refit", decay=0.5))
    trees = [m.predictor.booster.trees_to_dataframe() for m in (before, after)]
    for column in ("split_feature", "threshold"):
        assert trees[0][column].dropna().tolist() == trees[1][column].dropna().tolist()
    assert before.sha256 != after.sha256


REFUSED = [
    ({"per_symbol": True, "label": "forward_return"}, "one model per coin is not updated"),
    ({"rolling": {"step_bars": 60}}, "a rolling run is not updated"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[r[1] for r in REFUSED])
def test_what_cannot_go_on_is_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        grown(model_settings(**(SHORT | changes)), tmp_path)


def test_without_newer_bars_there_is_nothing_to_learn(tmp_path: Path) -> None:
    settings = model_settings(**SHORT)
    labels = make_labels(LATER, settings)
    train_model(FRAME, labels, settings, tmp_path / "a")
    with pytest.raises(UserError, match="nothing to learn: 0 training bars since"):
        update_model(tmp_path / "a", FRAME, labels, HOW, tmp_path / "b")
    other = build_features(LATER, FeatureSettings(sets=("funding",)))
    with pytest.raises(UserError, match="features the model needs do not exist"):
        update_model(tmp_path / "a", other, labels, HOW, tmp_path / "b")


def test_the_command_makes_a_version_measures_it_and_shows_its_lineage(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    settings = model_settings(**SHORT, tracking="off")
    train_model(
        build_features(EARLIER, FEATURES), make_labels(EARLIER, settings), settings, paths.models / "first", identity="first"
    )
    shelf = ModelShelf(paths, settings)
    market = Market(FRAME, lambda chosen: make_labels(LATER, chosen), LATER)
    told = "\n".join(shelf.updated("first", market).lines)
    assert "update 1 of first, learned 2024-01-" in told
    assert "RankIC" in told
    versions = {v.run_id: v for v in list_models(paths.models)}
    assert len(versions) == 2
    (new,) = set(versions) - {"first"}
    assert versions[new].rank_ic is not None
    page = (paths.models / new / "model_report.html").read_text()
    assert "Update 1 of model first" in page
    assert "By market regime" in page
    assert "update 1 of first, which had learned until 2024-01-" in "\n".join(shelf.shown(new).lines)


@pytest.mark.slow
def test_a_network_goes_on_from_its_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the torch extra is not installed")
    small = {"lookback_bars": 4, "hidden": 8, "heads": 1, "epochs": 2, "epoch_rows": 1024, "batch_rows": 64, "max_features": 6}
    before, after = grown(model_settings("gru", **SHORT, net=small), tmp_path, UpdateSettings(epochs=2))
    assert after.predictor.diagnostics()["epochs"] == 2
    np.testing.assert_array_equal(after.predictor.centre, before.predictor.centre)
    a, b = (dict(m.predictor.net.named_parameters()) for m in (before, after))
    moved = [float((a[k] - b[k]).detach().abs().max()) for k in a]
    assert max(moved) < 0.1, "near where they were, not from nothing"
    frozen = update_model(
        tmp_path / "a",
        FRAME,
        make_labels(LATER, before.settings),
        UpdateSettings(epochs=1, learning_rate_share=1e-9),
        tmp_path / "c",
    )
    c = dict(frozen.predictor.net.named_parameters())
    assert all(float((a[k] - c[k]).detach().abs().max()) < 1e-6 for k in a)

"""Objectives of LightGBM, ensembles, a model per coin, sample weights, and the guard against features that know the label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling.artefact import load_model
from crypto_qlib.modeling.evaluate_model import evaluate_model
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.models.lightgbm_model import GRADES, centred_in_bars, relevance
from crypto_qlib.modeling.models.per_symbol_model import PerSymbolModel
from crypto_qlib.modeling.qlib_task import BarReweighter, make_dataset, segment_arrays
from crypto_qlib.modeling.splits import split_bars
from crypto_qlib.modeling.train_model import Fold, predict_scores, train_model
from crypto_qlib.modeling.training_checks import LEAK_SAMPLE_BARS, check_no_leaky_feature, check_trainable, feature_correlations
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from tests.modeling.conftest import model_settings
from tests.noise_market import noise_panel

PANEL = noise_panel(1000, 8, seed=3, planted=0.3)
FEATURES = FeatureSettings(sets=("technical",))
SHORT = {"horizon_bars": 4, "embargo_bars": 4}


@pytest.fixture(scope="module")
def frame() -> FeatureFrame:
    return build_features(PANEL, FEATURES)


def labels_of(settings: ModelSettings) -> Labels:
    return make_labels(PANEL, settings)


CASES = [
    ("classification of the direction", {"objective": "classification", "label": "direction"}),
    ("ranking within the bar", {"objective": "ranking", "label": "excess_return"}),
    ("barrier outcomes, win probability of the trade", {"label": "triple_barrier", "win_label": "trade"}),
    ("ranks", {"label": "rank"}),
    ("volatility-scaled", {"label": "vol_scaled", "sample_weight": "uniqueness"}),
    ("net of costs", {"label": "net_return"}),
    ("average of two families", {"name": "ensemble"}),
    ("stacked", {"name": "ensemble", "ensemble": {"method": "stack"}}),
    ("weights by regime", {"name": "ensemble", "ensemble": {"method": "regime"}}),
]


@pytest.mark.parametrize(("reason", "changes"), CASES, ids=[c[0] for c in CASES])
def test_every_variant_finds_the_signal_and_survives_its_artefact(
    reason: str, changes: dict[str, object], frame: FeatureFrame, tmp_path: Path
) -> None:
    settings = model_settings(**(SHORT | {"num_boost_round": 15} | changes))
    labels = labels_of(settings)
    model = train_model(frame, labels, settings, tmp_path)
    scores = predict_scores(model, frame, segment="test")
    found = evaluate_model(scores, labels)
    assert found.rank_ic.t_stat > 3.0, reason
    assert 0.0 <= np.nanmin(scores.win_probability) <= np.nanmax(scores.win_probability) <= 1.0
    again = predict_scores(load_model(tmp_path), frame, segment="test")
    np.testing.assert_array_equal(again.expected_return, scores.expected_return)


def test_a_model_per_coin_finds_a_strong_signal_in_each(tmp_path: Path) -> None:
    panel = noise_panel(2000, 4, seed=3, planted=0.6)
    settings = model_settings(**SHORT, per_symbol=True, label="forward_return", min_data_in_leaf=50, num_boost_round=15)
    labels = make_labels(panel, settings)
    model = train_model(build_features(panel, FEATURES), labels, settings, tmp_path)
    scores = predict_scores(load_model(tmp_path), build_features(panel, FEATURES), segment="test")
    assert model.predictor.diagnostics()["models"] == 4
    found = evaluate_model(scores, labels)
    assert all(s.ic > 0.1 for s in found.symbols), "learned on the coin's own history, in time"


def test_win_probability_of_a_trade_pays_costs_and_stops(frame: FeatureFrame, tmp_path: Path) -> None:
    plain = model_settings(**SHORT)
    traded = model_settings(**SHORT, win_label="trade")
    models = [train_model(frame, labels_of(s), s, tmp_path / s.win_label) for s in (plain, traded)]
    assert np.mean(models[1].calibration.win) < np.mean(models[0].calibration.win)


def test_a_coin_without_a_model_gets_no_opinion_and_is_told(
    frame: FeatureFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    young = np.isin(frame.row_symbol, [2]) & (frame.row_bar < 900)
    rows = np.flatnonzero(~young)
    cut = replace(frame, values=frame.values[rows], row_bar=frame.row_bar[rows], row_symbol=frame.row_symbol[rows])
    settings = model_settings(**SHORT, per_symbol=True, min_data_in_leaf=20, num_boost_round=5)
    model = train_model(cut, labels_of(settings), settings, tmp_path)
    assert isinstance(model.predictor, PerSymbolModel)
    assert PANEL.symbols[2] not in model.predictor.members
    reason = load_model(tmp_path).predictor.left_out[PANEL.symbols[2]]  # type: ignore[attr-defined]
    assert reason == "the train segment has no labelled rows"
    assert f"{PANEL.symbols[2]} gets no model of its own and is not traded: {reason}" in caplog.text
    assert model.predictor.diagnostics()["left_out"] == 1.0
    scores = predict_scores(model, cut)
    assert np.isnan(scores.expected_return[:, 2]).all()
    assert np.isfinite(scores.expected_return[500, [0, 1, 3]]).all()


class TestLeakGuard:
    def leaky(self, frame: FeatureFrame, labels: Labels, noise: float) -> FeatureFrame:
        rng = np.random.default_rng(0)
        secret = frame.at_rows(np.nan_to_num(labels.values))
        column = (secret + noise * secret.std() * rng.normal(size=secret.size)).astype(np.float32)
        return replace(frame, values=np.column_stack([frame.values, column]), names=(*frame.names, "TOMORROW"))

    @pytest.mark.parametrize("name", ["lightgbm", "linear"])
    def test_a_feature_built_from_the_label_is_refused_by_name(self, name: str, frame: FeatureFrame, tmp_path: Path) -> None:
        settings = model_settings(name, **SHORT)
        labels = labels_of(settings)
        with pytest.raises(UserError, match=r"leak: .*TOMORROW"):
            train_model(self.leaky(frame, labels, 0.5), labels, settings, tmp_path)

    def test_it_can_be_switched_off(self, frame: FeatureFrame, tmp_path: Path) -> None:
        settings = model_settings(**SHORT, max_feature_ic=1.0, num_boost_round=2)
        labels = labels_of(settings)
        model = train_model(self.leaky(frame, labels, 0.5), labels, settings, tmp_path)
        assert evaluate_model(predict_scores(model, self.leaky(frame, labels, 0.5)), labels).ic.mean > 0.5

    def test_honest_features_pass(self, frame: FeatureFrame) -> None:
        settings = model_settings(**SHORT)
        labels = labels_of(settings)
        train = segment_arrays(make_dataset(frame, labels, split_bars(frame.n_bars, settings)), "train", learning=True)
        check_no_leaky_feature(train.values, train.label, train.bar, train.names, 0.5)

    def test_a_missing_value_leaves_its_row_out(self) -> None:
        values = np.array([[1.0], [2.0], [np.nan], [3.0]], np.float32)
        got = feature_correlations(values, np.array([1.0, 2.0, -99.0, 3.0]), np.zeros(4, np.int64))
        assert got[0] == pytest.approx(1.0)

    def test_a_short_history_is_looked_at_whole(self) -> None:
        bars = np.repeat(np.arange(20), 5)
        label = np.random.default_rng(0).normal(size=100)
        assert bars.max() < LEAK_SAMPLE_BARS
        with pytest.raises(UserError, match="KNOWN"):
            check_no_leaky_feature(label[:, None].astype(np.float32), label, bars, ("KNOWN",), 0.5)

    def test_labels_longer_than_the_split_allows_for_are_refused(self, frame: FeatureFrame, tmp_path: Path) -> None:
        settings = model_settings(**SHORT)
        labels = replace(labels_of(settings), horizon_bars=9)
        with pytest.raises(UserError, match="labels that span 9"):
            train_model(frame, labels, settings, tmp_path, fold=Fold(split_bars(frame.n_bars, settings)))


class TestRanking:
    def test_grades_follow_the_label_within_each_bar(self) -> None:
        label = np.array([0.3, 0.1, 0.2, 9.0, -9.0])
        assert relevance(label, np.array([0, 0, 0, 1, 1])).tolist() == [2 * GRADES // 3, 0, GRADES // 3, GRADES // 2, 0]

    def test_scores_are_centred_in_their_bar(self) -> None:
        got = centred_in_bars(np.array([1.0, 3.0, 10.0]), np.array([0, 0, 1]))
        np.testing.assert_array_equal(got, [-1.0, 1.0, 0.0])


def test_weights_reach_the_rows_they_belong_to(frame: FeatureFrame) -> None:
    settings = model_settings(**SHORT)
    labels = labels_of(settings)
    grid = np.arange(labels.values.size, dtype=np.float64).reshape(labels.values.shape)
    weigher = BarReweighter(labels.ts_open, labels.symbols, grid)
    dataset = make_dataset(frame, labels, split_bars(frame.n_bars, settings))
    train = segment_arrays(dataset, "train", learning=True)
    got = weigher.at(train.bar, train.symbol)
    data = dataset.prepare("train")
    np.testing.assert_array_equal(got, weigher.reweight(data).to_numpy()[np.isfinite(data.iloc[:, -1].to_numpy())])
    first = PANEL.symbols.index(min(PANEL.symbols))
    assert got[0] == grid[train.bar[0], first]


def test_a_constant_label_is_refused() -> None:
    with pytest.raises(UserError, match="constant"):
        check_trainable(np.zeros(100), 10, "two leaves of 5")


REFUSED = [
    ({"name": "linear", "objective": "ranking"}, "is for lightgbm"),
    ({"name": "linear", "per_symbol": True}, "per_symbol needs"),
    ({"net": {"hidden": 10, "heads": 4}}, "must divide"),
    ({"extra_horizons": [0]}, "extra_horizons"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[r[1] for r in REFUSED])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelSettings.model_validate(changes)

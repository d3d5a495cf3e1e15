"""The artefact, its safety, and the equality of live and batch scores."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features, latest_features
from crypto_qlib.modeling.artefact import load_model
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.registry import champion_id, list_models, load_champion, model_folder, promote
from crypto_qlib.modeling.row_batch import batch_of
from crypto_qlib.modeling.train_model import predict_row, predict_scores, train_model
from crypto_qlib.settings.schema import FeatureSettings
from tests.modeling.conftest import SETS, Trained, model_settings, train_on
from tests.noise_market import changed, noise_panel, same_bits, with_other_future


def fields(scores: ScorePanel) -> list[np.ndarray]:
    return [scores.expected_return, scores.win_probability, scores.uncertainty]


def test_scores_are_stamped_with_the_close_of_their_bar(trained: Trained) -> None:
    scores = predict_scores(trained.model, trained.frame)
    assert np.array_equal(scores.as_of_ns, trained.panel.ts_open + trained.panel.frame_ns)
    assert scores.symbols == trained.panel.symbols
    assert np.array_equal(np.isfinite(scores.expected_return), np.isfinite(trained.panel.close))
    inside = scores.win_probability[np.isfinite(scores.win_probability)]
    assert inside.min() >= 0.0
    assert inside.max() <= 1.0


def test_segments_cut_the_same_scores(trained: Trained) -> None:
    every, test = predict_scores(trained.model, trained.frame), predict_scores(trained.model, trained.frame, segment="test")
    start = trained.model.split.test.start
    assert all(same_bits(a[start:], b) for a, b in zip(fields(every), fields(test), strict=True))
    with pytest.raises(UserError, match="unknown segment"):
        predict_scores(trained.model, trained.frame, segment="future")


def test_live_scores_equal_batch_scores_bit_for_bit(trained: Trained) -> None:
    batch = predict_scores(trained.model, trained.frame)
    for t in (0, 130, 500, 899):
        known = trained.panel.known_until(int(batch.as_of_ns[t]))
        live = predict_row(trained.model, latest_features(known, trained.model.feature_settings))
        assert live.as_of_ns == batch.as_of_ns[t]
        assert same_bits(live.expected_return, batch.expected_return[t])
        assert same_bits(live.win_probability, batch.win_probability[t])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_after_as_of_changes_a_score_by_a_bit(trained: Trained, seed: int) -> None:
    cut = int(np.random.default_rng(seed).integers(300, 890))
    other = build_features(with_other_future(trained.panel, cut, seed), SETS)
    a, b = predict_scores(trained.model, trained.frame), predict_scores(trained.model, other)
    assert all(same_bits(x[:cut], y[:cut]) for x, y in zip(fields(a), fields(b), strict=True))
    assert not same_bits(a.expected_return[cut:], b.expected_return[cut:])


def test_nothing_after_the_validation_labels_changes_the_model_by_a_bit(trained: Trained, tmp_path: Path) -> None:
    last_known = trained.model.split.valid.stop + trained.settings.horizon_bars + 1
    again = train_on(with_other_future(trained.panel, last_known, 4), trained.settings, tmp_path)
    assert again.model.sha256 == trained.model.sha256
    assert again.model.calibration == trained.model.calibration


@pytest.mark.slow  # two OpenMP threads spin when the machine is busy
def test_training_again_gives_the_same_bytes_whatever_the_threads(trained: Trained, tmp_path: Path) -> None:
    one = trained.settings.model_copy(update={"threads": 2})
    again = train_model(trained.frame, trained.labels, one, tmp_path)
    batch = batch_of(trained.frame, 0, trained.frame.n_bars)
    raw_a = trained.model.predictor.predict_batch(batch, 1)
    raw_b = again.predictor.predict_batch(batch, 2)
    assert same_bits(raw_a, raw_b)


def test_one_bar_is_scored_in_under_50_ms(trained: Trained) -> None:
    newest = latest_features(trained.panel, SETS)
    predict_row(trained.model, newest)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        predict_row(trained.model, newest)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.05


class TestArtefact:
    def test_round_trip_scores_the_same(self, trained: Trained) -> None:
        back = load_model(trained.folder)
        a, b = predict_scores(trained.model, trained.frame), predict_scores(back, trained.frame)
        assert all(same_bits(x, y) for x, y in zip(fields(a), fields(b), strict=True))
        assert (back.identity, back.split, back.feature_settings) == ("run0", trained.model.split, SETS)

    def test_holds_no_pickle(self, trained: Trained) -> None:
        for path in trained.folder.iterdir():
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as kept:
                    assert {name: kept[name].dtype.kind for name in kept} == {"gram": "f", "cross": "f", "size": "i"}
            else:
                path.read_text()  # raises on binary content
        assert {p.suffix for p in trained.folder.iterdir()} <= {".txt", ".json", ".npz", ""}

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_changed_file_is_refused(self, trained: Trained, tmp_path: Path, which: int) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(trained.folder, copy)
        name = (trained.model.predictor.FILES[0], "model.json")[which]
        (copy / name).write_text((copy / name).read_text().replace("1", "2", 1))
        with pytest.raises(UserError, match="changed since training"):
            load_model(copy)

    def test_an_interrupted_training_leaves_no_model(self, trained: Trained, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(trained.folder, copy)
        (copy / "SHA256SUMS").unlink()
        with pytest.raises(UserError, match="no complete model"):
            load_model(copy)

    def test_sums_must_cover_the_model_file(self, trained: Trained, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(trained.folder, copy)
        sums = (copy / "SHA256SUMS").read_text().splitlines()
        (copy / "SHA256SUMS").write_text("\n".join(line for line in sums if "model.json" in line))
        with pytest.raises(UserError, match="does not cover"):
            load_model(copy)

    def test_features_that_no_longer_exist_are_named(self, trained: Trained) -> None:
        other = build_features(trained.panel, SETS.model_copy(update={"exclude": ("RSI14",)}))
        with pytest.raises(UserError, match="RSI14"):
            predict_scores(trained.model, other)

    def test_features_in_another_order_are_refused(self, trained: Trained) -> None:
        other = build_features(
            trained.panel, SETS.model_copy(update={"sets": ("technical", "alpha360", "btc_relative", "funding")})
        )
        with pytest.raises(UserError, match="columns differ"):
            predict_scores(trained.model, other)

    def test_describes_itself(self, trained: Trained) -> None:
        meta = json.loads((trained.folder / "model.json").read_text())
        assert meta["identity"] == "run0"
        assert meta["feature_names"] == list(trained.frame.names)
        assert set(meta["split"]) == {"train", "valid", "test"}
        assert len(meta["importance"]) == 30


class TestRegistry:
    def test_champion_is_a_pointer_that_moves_at_once(self, trained: Trained, tmp_path: Path) -> None:
        for run_id in ("a1", "b2"):
            shutil.copytree(trained.folder, tmp_path / run_id)
        assert champion_id(tmp_path) is None
        with pytest.raises(UserError, match="no champion"):
            load_champion(tmp_path)
        promote(tmp_path, "a1")
        promote(tmp_path, "b2")
        assert [(m.run_id, m.is_champion) for m in list_models(tmp_path)] == [("a1", False), ("b2", True)]
        assert load_champion(tmp_path).sha256 == trained.model.sha256

    def test_a_damaged_model_is_not_promoted(self, trained: Trained, tmp_path: Path) -> None:
        shutil.copytree(trained.folder, tmp_path / "a1")
        shutil.copytree(trained.folder, tmp_path / "b2")
        promote(tmp_path, "a1")
        (tmp_path / "b2" / trained.model.predictor.FILES[0]).write_text("tree")
        with pytest.raises(UserError):
            promote(tmp_path, "b2")
        assert champion_id(tmp_path) == "a1"

    @pytest.mark.parametrize("run_id", ["", "..", "../x", "champion"])
    def test_run_ids_are_plain_names(self, tmp_path: Path, run_id: str) -> None:
        with pytest.raises(UserError, match="not a model run id"):
            model_folder(tmp_path, run_id)


class TestBadInput:
    @pytest.fixture
    def small(self) -> tuple[FeatureFrame, Labels]:
        panel = noise_panel(400, 6, seed=8)
        return build_features(panel, SETS), make_labels(panel, model_settings())

    @pytest.mark.parametrize("name", ["lightgbm", "linear"])
    def test_constant_label(self, name: str, tmp_path: Path) -> None:
        panel = noise_panel(400, 6, seed=8)
        flat = make_labels(changed(panel, open=np.ones_like(panel.open)), model_settings())
        with pytest.raises(UserError, match="constant"):
            train_model(build_features(panel, FeatureSettings(sets=("technical",))), flat, model_settings(name), tmp_path)

    def test_all_nan_feature(self, tmp_path: Path) -> None:
        panel = noise_panel(400, 6, seed=8)
        blind = changed(panel, funding_rate=np.full(panel.close.shape, np.nan))
        with pytest.raises(UserError, match="no value in the whole training segment for FUNDING"):
            train_model(build_features(blind, SETS), make_labels(blind, model_settings()), model_settings(), tmp_path)

    def test_symbol_without_a_row(self, tmp_path: Path) -> None:
        panel = noise_panel(400, 6, seed=8)
        close = panel.close.copy()
        close[:, 3] = np.nan
        gone = changed(panel, close=close)
        with pytest.raises(UserError, match="no bars at all for C01USDT"):
            train_model(build_features(gone, SETS), make_labels(gone, model_settings()), model_settings(), tmp_path)

    def test_too_few_bars(self, tmp_path: Path) -> None:
        panel = noise_panel(90, 6, seed=8)
        with pytest.raises(UserError, match="too little data"):
            train_model(build_features(panel, SETS), make_labels(panel, model_settings()), model_settings(), tmp_path)

    def test_too_few_rows_for_two_leaves(self, small: tuple[FeatureFrame, Labels], tmp_path: Path) -> None:
        with pytest.raises(UserError, match="two leaves"):
            train_model(*small, model_settings(min_data_in_leaf=5000), tmp_path)

    def test_labels_of_another_panel(self, small: tuple[FeatureFrame, Labels], tmp_path: Path) -> None:
        other = make_labels(noise_panel(410, 6), model_settings())
        with pytest.raises(UserError, match="different bars or symbols"):
            train_model(small[0], other, model_settings(), tmp_path)

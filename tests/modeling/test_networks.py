"""Networks: windows hold the past only, training can be resumed, artefacts run no code, a bar scores alone as in company."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

import torch
from safetensors.torch import save_file

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features, latest_features
from crypto_qlib.modeling.artefact import load_model
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.models.net_model import WEIGHTS_FILE, NetModel, column_correlation
from crypto_qlib.modeling.models.net_training import CHECKPOINT_FILE, NetTrainer, TrainingRows, net_loss
from crypto_qlib.modeling.models.nets import NetShape, build_net
from crypto_qlib.modeling.row_batch import gather_windows, row_grid
from crypto_qlib.modeling.train_model import predict_row, predict_scores, train_model
from crypto_qlib.settings.model_schema import NetSettings
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from tests.noise_market import noise_panel

NETS = ["lstm", "gru", "transformer", pytest.param("tft", marks=pytest.mark.slow)]
SMALL = {"lookback_bars": 6, "hidden": 8, "heads": 2, "epochs": 2, "batch_rows": 64, "epoch_rows": 256, "max_features": 5}
PANEL = noise_panel(420, 6, seed=5, planted=0.2, with_gaps=True)
FEATURES = FeatureSettings(sets=("technical",))


def settings(name: str, **net: object) -> ModelSettings:
    return ModelSettings.model_validate({"name": name, "horizon_bars": 4, "embargo_bars": 4, "net": SMALL | net})


@pytest.fixture(scope="module")
def data() -> tuple[FeatureFrame, Labels]:
    return build_features(PANEL, FEATURES), make_labels(PANEL, settings("lstm"))


class TestWindows:
    VALUES = np.arange(12, dtype=np.float32).reshape(6, 2)
    BAR = np.array([10, 10, 11, 12, 12, 13])
    SYMBOL = np.array([0, 1, 0, 0, 1, 1])

    def window(self, row: int, lookback: int = 3) -> np.ndarray:
        grid, first = row_grid(self.BAR, self.SYMBOL, 2)
        out = np.full((1, lookback, 3), np.nan, np.float32)
        centre, scale = np.zeros(2, np.float32), np.ones(2, np.float32)
        columns = np.arange(2)
        at = slice(row, row + 1)
        gather_windows(self.VALUES, columns, grid, self.BAR[at] - first, self.SYMBOL[at], lookback, centre, scale, 100.0, out)
        return out[0]

    def test_a_window_ends_with_its_own_row(self) -> None:
        np.testing.assert_array_equal(self.window(3), [[0, 1, 1], [4, 5, 1], [6, 7, 1]])

    def test_a_bar_without_a_row_is_zero_and_says_so(self) -> None:
        np.testing.assert_array_equal(self.window(4), [[2, 3, 1], [0, 0, 0], [8, 9, 1]])

    def test_before_the_first_bar_there_is_nothing(self) -> None:
        np.testing.assert_array_equal(self.window(0), [[0, 0, 0], [0, 0, 0], [0, 1, 1]])

    def test_values_are_standardised_cut_and_nan_is_zero(self) -> None:
        values = np.array([[3.0], [np.nan], [1e9]], np.float32)
        grid, _ = row_grid(np.arange(3), np.zeros(3, np.int64), 1)
        out = np.empty((3, 1, 2), np.float32)
        one, two = np.ones(1, np.float32), np.full(1, 2.0, np.float32)
        gather_windows(values, np.zeros(1, np.int64), grid, np.arange(3), np.zeros(3, np.int64), 1, one, two, 5.0, out)
        np.testing.assert_array_equal(out[:, 0, 0], [1.0, 0.0, 5.0])


@pytest.mark.parametrize("name", NETS)
def test_network_survives_its_artefact_and_scores_one_bar_like_many(
    name: str, data: tuple[FeatureFrame, Labels], tmp_path: Path
) -> None:
    frame, labels = data
    model = train_model(frame, labels, settings(name, symbol_embedding=name != "gru"), tmp_path)
    assert not (tmp_path / CHECKPOINT_FILE).exists(), "a finished training leaves no checkpoint"
    again = load_model(tmp_path)
    scores = predict_scores(model, frame)
    np.testing.assert_array_equal(predict_scores(again, frame).expected_return, scores.expected_return)
    for n_bars in (200, 420):  # 420: the last bar, where one symbol is delisted
        panel = PANEL.rows(0, n_bars)
        live = predict_row(again, latest_features(panel, frame.settings, again.context_bars + 1))
        np.testing.assert_array_equal(live.expected_return, scores.expected_return[n_bars - 1])
    assert np.isfinite(scores.expected_return).any()
    assert np.unique(scores.expected_return[np.isfinite(scores.expected_return)]).size > 100


def test_later_rows_change_no_earlier_score(data: tuple[FeatureFrame, Labels], tmp_path: Path) -> None:
    frame, labels = data
    model = train_model(frame, labels, settings("transformer"), tmp_path)
    values = frame.values.copy()
    cut = frame.row_span(300, frame.n_bars)
    values[cut] = np.random.default_rng(1).normal(size=values[cut].shape)
    before, after = (predict_scores(model, f).expected_return for f in (frame, replace(frame, values=values)))
    np.testing.assert_array_equal(after[:300], before[:300])
    assert not np.array_equal(after[300:], before[300:], equal_nan=True)


def test_same_seed_gives_the_same_bits(data: tuple[FeatureFrame, Labels], tmp_path: Path) -> None:
    frame, labels = data
    digests = [train_model(frame, labels, settings("gru"), tmp_path / str(k)).sha256 for k in range(2)]
    assert digests[0] == digests[1]


class TestTraining:
    """On a task with a known answer: the label is the newest value of the first feature."""

    N = 400

    def rows(self) -> tuple[TrainingRows, TrainingRows]:
        label = self.inputs()[:, -1, 0].astype(np.float64)
        rows = np.arange(self.N)
        one = np.ones(self.N)
        return TrainingRows(rows[:300], label[:300], one[:300]), TrainingRows(rows[300:], label[300:], one[300:])

    def inputs(self) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(self.N, 4, 3)).astype(np.float32)

    def gather(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.inputs()[rows]), torch.zeros(rows.size, dtype=torch.long)

    def trainer(self, folder: Path | None, stop_after: int = 10**9, **changes: object) -> NetTrainer:
        torch.manual_seed(0)
        s = NetSettings.model_validate(
            SMALL | {"lookback_bars": 4, "epochs": 6, "patience": 6, "learning_rate": 0.03} | changes
        )
        label = self.rows()[1].label
        calls = []

        def score(predicted: np.ndarray) -> float:
            calls.append(1)
            if len(calls) > stop_after:
                raise KeyboardInterrupt
            return float(np.corrcoef(predicted, label)[0, 1])

        return NetTrainer(build_net("lstm", NetShape(3, 4, 0), s), s, 3, score, checkpoint=folder)

    def test_it_learns_what_there_is_to_learn(self) -> None:
        found = self.trainer(None).fit(*self.rows(), self.gather)
        assert found.best_score > 0.9
        assert found.history[0] < found.best_score

    def test_patience_ends_it_and_the_best_weights_stay(self) -> None:
        scores = iter([0.5, 0.1, 0.2, 0.9])
        trainer = self.trainer(None, patience=2)
        trainer._score = lambda predicted: next(scores)
        found = trainer.fit(*self.rows(), self.gather)
        assert (found.epochs, found.best_epoch, found.best_score) == (3, 1, 0.5)

    def test_a_killed_training_goes_on_to_the_same_weights(self, tmp_path: Path) -> None:
        whole = self.trainer(None)
        whole.fit(*self.rows(), self.gather)
        with pytest.raises(KeyboardInterrupt):
            self.trainer(tmp_path, stop_after=3).fit(*self.rows(), self.gather)
        resumed = self.trainer(tmp_path)
        found = resumed.fit(*self.rows(), self.gather)
        assert found.epochs == 6
        for name, value in whole.net.state_dict().items():
            assert torch.equal(value, resumed.net.state_dict()[name]), name

    def test_a_checkpoint_of_another_network_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.trainer(tmp_path, stop_after=1).fit(*self.rows(), self.gather)
        with pytest.raises(UserError, match="does not fit this training"):
            self.trainer(tmp_path, hidden=16).fit(*self.rows(), self.gather)

    def test_a_diverging_loss_is_said_plainly(self) -> None:
        train, valid = self.rows()
        broken = TrainingRows(train.rows, train.label * np.inf, train.weight)
        with pytest.raises(UserError, match="no longer a number"):
            self.trainer(None).fit(broken, valid, self.gather)

    def test_bfloat16_trains_too(self) -> None:
        assert self.trainer(None, bf16=True).fit(*self.rows(), self.gather).best_score > 0.8

    def test_cuda_that_is_not_there_is_refused(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        with pytest.raises(UserError, match="no CUDA device"):
            self.trainer(None, device="cuda")


def test_multi_task_loss_rewards_the_right_sign_and_the_right_size() -> None:
    label, weight = torch.tensor([1.0, -1.0]), torch.ones(2)
    right = torch.tensor([[1.0, 3.0, -2.0], [-1.0, -3.0, -2.0]])
    wrong_sign, wrong_size = right * torch.tensor([1.0, -1.0, 1.0]), right * torch.tensor([1.0, 1.0, -1.0])
    losses = [float(net_loss(out, label, weight, multi_task=True)) for out in (right, wrong_sign, wrong_size)]
    assert losses[0] < min(losses[1:])
    alone = [float(net_loss(out, label, weight, multi_task=False)) for out in (right, wrong_sign, wrong_size)]
    assert alone[0] == alone[1] == alone[2] == 0.0


def test_column_correlation_leaves_out_missing_rows() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=200)
    values = np.column_stack([label + rng.normal(size=200), -label, np.ones(200), rng.normal(size=200)])
    values[::3, 0] = np.nan
    keep = np.isfinite(values[:, 0])
    got = column_correlation(values, label)
    assert got[0] == pytest.approx(abs(np.corrcoef(values[keep, 0], label[keep])[0, 1]))
    np.testing.assert_allclose(got[1:3], [1.0, 0.0], atol=1e-12)


class TestArtefact:
    def test_weights_of_another_shape_are_refused(self, data: tuple[FeatureFrame, Labels], tmp_path: Path) -> None:
        chosen = settings("lstm")
        train_model(*data, chosen, tmp_path)
        save_file({"x": torch.zeros(1)}, tmp_path / WEIGHTS_FILE)
        with pytest.raises(UserError, match="was changed since training"):
            load_model(tmp_path)
        with pytest.raises(UserError, match="is not a lstm network"):
            NetModel.load(tmp_path, chosen)

    def test_a_pickle_in_place_of_the_weights_runs_nothing(self, data: tuple[FeatureFrame, Labels], tmp_path: Path) -> None:
        chosen = settings("lstm")
        train_model(*data, chosen, tmp_path)
        torch.save({"x": torch.zeros(1)}, tmp_path / WEIGHTS_FILE)
        with pytest.raises(UserError, match="is not a lstm network"):
            NetModel.load(tmp_path, chosen)

    def test_it_says_what_it_was_trained_with(self, data: tuple[FeatureFrame, Labels], tmp_path: Path) -> None:
        train_model(*data, settings("lstm"), tmp_path)
        meta = json.loads((tmp_path / "model.json").read_text())
        assert meta["environment"]["torch"] == torch.__version__.split("+")[0] or meta["environment"]["torch"]
        assert {"epochs", "best_epoch", "validation_ic"} <= set(meta["diagnostics"])

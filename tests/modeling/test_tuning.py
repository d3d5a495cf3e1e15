"""Hyper-parameters are chosen on validation only: no test bar is read, a killed search goes on, poor trials end early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling import tuning
from crypto_qlib.modeling.artefact import load_model
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.splits import split_bars
from crypto_qlib.modeling.train_model import train_model
from crypto_qlib.modeling.tuning import JOURNAL_FILE, tune, until
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from tests.modeling.conftest import model_settings
from tests.noise_market import noise_panel, with_other_future

PANEL = noise_panel(500, 6, seed=4, planted=0.3)
FEATURES = FeatureSettings(sets=("technical",))
SETTINGS = model_settings(horizon_bars=4, embargo_bars=4, num_boost_round=10, min_data_in_leaf=50, tuning={"trials": 7})
FRAME, LABELS = build_features(PANEL, FEATURES), make_labels(PANEL, SETTINGS)
SPLIT = split_bars(FRAME.n_bars, SETTINGS, LABELS.horizon_bars)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuning.Tuned:
    return tune(FRAME, LABELS, SETTINGS, tmp_path_factory.mktemp("whole"), SPLIT)


def test_nothing_of_the_test_segment_changes_the_choice(found: tuning.Tuned, tmp_path: Path) -> None:
    # Labels of validation's last row reach bar valid.stop + horizon: all from there on is replaced.
    other = with_other_future(PANEL, SPLIT.valid.stop + LABELS.horizon_bars + 1, seed=1)
    assert SPLIT.valid.stop + LABELS.horizon_bars + 1 <= SPLIT.test.start + 1
    again = tune(build_features(other, FEATURES), make_labels(other, SETTINGS), SETTINGS, tmp_path, SPLIT)
    assert again == found


def test_the_search_is_given_no_bar_after_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, given = tuning.make_dataset, []

    def watched(frame: FeatureFrame, labels: Labels, *rest: object) -> object:
        given.append((frame.n_bars, labels.values.shape[0]))
        return real(frame, labels, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "make_dataset", watched)
    once = SETTINGS.model_copy(update={"tuning": SETTINGS.tuning.model_copy(update={"trials": 1})})
    tune(FRAME, LABELS, once, tmp_path, SPLIT)
    assert given == [(SPLIT.valid.stop, SPLIT.valid.stop)]
    seen, known = until(FRAME, LABELS, SPLIT.valid.stop)
    assert seen.n_bars == known.values.shape[0] == SPLIT.valid.stop
    assert seen.values.shape[0] == seen.row_bar.size
    assert seen.row_bar.max() == SPLIT.valid.stop - 1


def test_the_first_trial_is_the_settings_as_they_are(found: tuning.Tuned, tmp_path: Path) -> None:
    alone = tune(
        FRAME, LABELS, SETTINGS.model_copy(update={"tuning": SETTINGS.tuning.model_copy(update={"trials": 1})}), tmp_path, SPLIT
    )
    assert alone.parameters == {}
    assert alone.settings.num_leaves == SETTINGS.num_leaves
    assert found.validation_ic >= alone.validation_ic, "the search can only do better on validation"


def test_a_killed_search_goes_on_as_if_it_had_not_been(
    found: tuning.Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = tuning._value, []

    def killed_in_the_third(*args: object) -> float:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "_value", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        tune(FRAME, LABELS, SETTINGS, tmp_path, SPLIT)
    assert tune(FRAME, LABELS, SETTINGS, tmp_path, SPLIT) == found
    assert len(made) == 3 + 5, "two trials were kept, the third was made again"
    assert tune(FRAME, LABELS, SETTINGS, tmp_path, SPLIT) == found
    assert len(made) == 8, "a finished search is only read"


def test_a_model_trained_with_a_search_says_what_it_was_chosen_from(found: tuning.Tuned, tmp_path: Path) -> None:
    model = train_model(FRAME, LABELS, SETTINGS, tmp_path)
    again = load_model(tmp_path)
    assert again.tuned == model.tuned == found
    assert again.settings == found.settings
    assert again.asked == SETTINGS
    assert (tmp_path / JOURNAL_FILE).is_file()


def test_poor_trials_are_ended_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"learning_rate": lambda t: t.suggest_float("learning_rate", 1e-9, 1e-8)}
    good = model_settings(horizon_bars=4, embargo_bars=4, num_boost_round=40, min_data_in_leaf=50, tuning={"trials": 9})
    monkeypatch.setitem(tuning.SPACES, "lightgbm", bad)
    reports: list[float] = []
    real = optuna.Trial.report

    def worse_each_time(trial: optuna.Trial, value: float, step: int) -> None:
        reports.append(value)
        real(trial, value - trial.number, step)

    monkeypatch.setattr(optuna.Trial, "report", worse_each_time)
    got = tune(FRAME, LABELS, good, tmp_path, SPLIT)
    assert got.n_trials == 9
    assert got.n_pruned == 4, "all after those that are never pruned"
    assert reports


def test_a_leak_ends_the_search(tmp_path: Path) -> None:
    secret = FRAME.at_rows(np.nan_to_num(LABELS.values)).astype(np.float32)
    leaky = replace(FRAME, values=np.column_stack([FRAME.values, secret]), names=(*FRAME.names, "TOMORROW"))
    with pytest.raises(UserError, match="leak"):
        tune(leaky, LABELS, SETTINGS, tmp_path, SPLIT)


def test_a_search_in_which_nothing_can_be_trained_says_why(tmp_path: Path) -> None:
    rough = model_settings(horizon_bars=4, embargo_bars=4, min_data_in_leaf=4000, tuning={"trials": 1})
    with pytest.raises(UserError, match="none of 1 trials could be trained: too little data"):
        tune(FRAME, LABELS, rough, tmp_path, SPLIT)


@pytest.mark.parametrize("changes", [{"name": "linear"}, {"per_symbol": True}, {"name": "ensemble"}])
def test_what_has_nothing_to_tune_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"tuning.trials is for"):
        ModelSettings.model_validate(changes | {"tuning": {"trials": 3}})


@pytest.mark.slow
def test_networks_are_tuned_too(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the torch extra is not installed")
    small = {"lookback_bars": 4, "hidden": 8, "heads": 1, "epochs": 2, "epoch_rows": 512, "batch_rows": 64, "max_features": 6}
    chosen = model_settings("gru", horizon_bars=4, embargo_bars=4, net=small, tuning={"trials": 3})
    got = tune(FRAME, LABELS, chosen, tmp_path, SPLIT)
    assert got.n_trials == 3
    assert all(k.startswith("net.") for k in got.parameters)

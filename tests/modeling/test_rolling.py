"""Rolling steps are Qlib's, a rolling run equals its steps one by one, a killed run goes on; combinations never touch."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_files import save_feature_frame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling import rolling
from crypto_qlib.modeling.artefact import load_model
from crypto_qlib.modeling.families import frame_bins
from crypto_qlib.modeling.fold_workers import load_labels, save_labels, train_rolling_on_workers
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.models import lightgbm_model
from crypto_qlib.modeling.models.lightgbm_model import LightGBMModel
from crypto_qlib.modeling.qlib_rolling import rolling_splits, rolling_tasks
from crypto_qlib.modeling.rolling import fold_folder, out_of_sample_scores, train_rolling
from crypto_qlib.modeling.splits import check_no_leak, combinatorial_splits
from crypto_qlib.modeling.train_model import Fold, predict_scores, train_model
from crypto_qlib.settings.schema import FeatureSettings
from tests.modeling.conftest import model_settings
from tests.noise_market import noise_panel

PANEL = noise_panel(700, 6, seed=9, planted=0.3)
SHORT = {"horizon_bars": 4, "embargo_bars": 3, "num_boost_round": 5}


class TestSteps:
    @pytest.mark.parametrize("window", ["expanding", "sliding"])
    def test_by_hand(self, window: str) -> None:
        settings = model_settings(**SHORT, rolling={"step_bars": 50, "window": window})
        splits = rolling_splits(PANEL.ts_open, settings, 4)
        assert [(s.test.start, s.test.stop) for s in splits] == [(560, 610), (610, 660), (660, 700)]
        assert [(s.valid.start, s.valid.stop) for s in splits] == [(420, 553), (470, 603), (520, 653)]
        starts = [0, 0, 0] if window == "expanding" else [0, 50, 100]
        assert [(s.train.start, s.train.stop) for s in splits] == list(zip(starts, [413, 463, 513], strict=True))

    def test_steps_that_fill_the_test_exactly(self) -> None:
        splits = rolling_splits(PANEL.ts_open, model_settings(**SHORT, rolling={"step_bars": 70}), 4)
        assert [(s.test.start, s.test.stop) for s in splits] == [(560, 630), (630, 700)]

    def test_qlib_makes_the_same_tasks_for_any_model_of_its_own(self) -> None:
        stamps = pd.DatetimeIndex(PANEL.ts_open.astype("datetime64[ns]"))
        segments = {"train": (stamps[0], stamps[412]), "valid": (stamps[420], stamps[552]), "test": (stamps[560], stamps[699])}
        task = {"model": {"class": "LGBModel"}, "dataset": {"kwargs": {"segments": segments}}}
        made = rolling_tasks(task, stamps, 50, "expanding")
        assert [t["model"] for t in made] == [{"class": "LGBModel"}] * 3
        assert made[1]["dataset"]["kwargs"]["segments"]["test"] == (stamps[610], stamps[659])
        assert task["dataset"]["kwargs"]["segments"] == segments, "the template is left as it was"

    def test_a_step_too_short_is_refused(self) -> None:
        with pytest.raises(UserError, match="step_bars = 5 is too short"):
            rolling_splits(PANEL.ts_open, model_settings(**SHORT, rolling={"step_bars": 5}))


def test_a_rolling_run_equals_its_steps_one_by_one_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = model_settings(**SHORT, rolling={"step_bars": 50})
    frame, labels = build_features(PANEL, FeatureSettings(sets=("technical",))), make_labels(PANEL, settings)
    run = train_rolling(frame, labels, settings, tmp_path / "whole", identity="r")
    for k, split in enumerate(rolling_splits(frame.ts_open, settings, labels.horizon_bars)):
        alone = train_model(frame, labels, settings, tmp_path / f"alone{k}", identity="r", fold=Fold(split))
        assert alone.sha256 == run.models[k].sha256, "binned by itself or taken from the shared bins: the same bits"
        rows = np.isin(run.scores.as_of_ns, frame.known_at_ns[split.test.start : split.test.stop])
        want = predict_scores(alone, frame, segment="test").expected_return
        np.testing.assert_array_equal(run.scores.expected_return[rows], want)
    assert run.scores.as_of_ns.size == 140
    newest = load_model(tmp_path / "whole")
    assert newest.sha256 == run.newest.sha256
    again = out_of_sample_scores(newest, tmp_path / "whole", frame, "")
    np.testing.assert_array_equal(again.expected_return, run.scores.expected_return)

    trained = []
    real = train_model

    def dies_in_the_second_step(*args: object, **kwargs: object) -> object:
        trained.append(1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(rolling, "train_model", dies_in_the_second_step)
    with pytest.raises(KeyboardInterrupt):
        train_rolling(frame, labels, settings, tmp_path / "killed", identity="r")
    resumed = train_rolling(frame, labels, settings, tmp_path / "killed", identity="r")
    assert len(trained) == 4, "the first step was not trained again"
    np.testing.assert_array_equal(resumed.scores.expected_return, run.scores.expected_return)
    other = train_rolling(frame, labels, settings, tmp_path / "killed", identity="other data")
    assert len(trained) == 7, "steps of another identity are trained anew"
    assert other.newest.identity == "other data"
    assert fold_folder(tmp_path / "killed", 2).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["processes", "dask"])
def test_workers_train_the_same_bits(where: str, tmp_path: Path) -> None:
    settings = model_settings(**SHORT, rolling={"step_bars": 50})
    frame, labels = build_features(PANEL, FeatureSettings(sets=("technical",))), make_labels(PANEL, settings)
    here = train_rolling(frame, labels, settings, tmp_path / "here", identity="r")
    save_feature_frame(frame, tmp_path / "features")
    address, cluster = "", None
    if where == "dask":
        distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
        address = cluster.scheduler_address
    try:
        told: list[float] = []
        shared = model_settings(**SHORT, rolling={"step_bars": 50, "workers": 2, "dask": address})
        there = train_rolling_on_workers(
            tmp_path / "features", labels, shared, tmp_path / "there", identity="r", progress=told.append
        )
    finally:
        if cluster is not None:
            cluster.close()
    assert [m.sha256 for m in there.models] == [m.sha256 for m in here.models]
    np.testing.assert_array_equal(there.scores.expected_return, here.scores.expected_return)
    assert sum(told) == pytest.approx(1.0)
    assert load_model(tmp_path / "there").sha256 == here.newest.sha256


@pytest.mark.slow
def test_no_scheduler_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the dask extra is not installed")
    settings = model_settings(**SHORT, rolling={"step_bars": 50, "dask": "tcp://127.0.0.1:9"})
    save_feature_frame(build_features(PANEL, FeatureSettings(sets=("technical",))), tmp_path / "features")
    with pytest.raises(UserError, match="no Dask scheduler answers"):
        train_rolling_on_workers(tmp_path / "features", make_labels(PANEL, settings), settings, tmp_path / "x")


def test_labels_survive_their_file(tmp_path: Path) -> None:
    labels = make_labels(PANEL, model_settings(**SHORT))
    again = load_labels(save_labels(labels, tmp_path / "labels.npz"))
    assert (again.kind, again.horizon_bars, again.symbols) == (labels.kind, labels.horizon_bars, labels.symbols)
    np.testing.assert_array_equal(again.values, labels.values)
    np.testing.assert_array_equal(again.known_at_ns, labels.known_at_ns)


class TestSharedBins:
    def test_every_step_places_its_bins_on_bars_that_the_first_one_trains_on(self) -> None:
        for window in ("expanding", "sliding"):
            splits = rolling_splits(PANEL.ts_open, model_settings(**SHORT, rolling={"step_bars": 50, "window": window}), 4)
            assert {s.bins for s in splits} == {(0, 413)}

    def test_bins_on_later_bars_than_training_are_a_leak(self) -> None:
        split = rolling_splits(PANEL.ts_open, model_settings(**SHORT, rolling={"step_bars": 50}), 4)[0]
        with pytest.raises(UserError, match="leak: bins are placed on bars up to 500"):
            check_no_leak(replace(split, bins=(0, 500)))

    def test_a_run_bins_its_frame_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = model_settings(**SHORT, rolling={"step_bars": 50})
        frame, labels = build_features(PANEL, FeatureSettings(sets=("technical",))), make_labels(PANEL, settings)
        monkeypatch.setattr(lightgbm_model, "bin_reference", None)  # a step that placed bins by itself would fail
        assert len(train_rolling(frame, labels, settings, tmp_path).models) == 3

    def test_other_bars_or_parameters_are_other_bins(self) -> None:
        frame = build_features(PANEL, FeatureSettings(sets=("technical",)))
        bins = frame_bins(model_settings(), frame, (0, 400))
        params = LightGBMModel(model_settings()).params()
        assert bins.fits((0, 400), params)
        assert bins.fits((0, 400), params | {"num_threads": 8, "num_leaves": 3})
        assert not bins.fits((0, 401), params)
        assert not bins.fits((0, 400), params | {"max_bin": 15})
        assert frame_bins(model_settings("linear"), frame, (0, 400)) is None


class TestCombinatorial:
    @given(st.integers(200, 2000), st.integers(3, 7), st.integers(1, 3), st.integers(1, 20), st.integers(0, 20))
    def test_label_spans_of_train_and_test_never_touch(self, n: int, blocks: int, tested: int, span: int, embargo: int) -> None:
        try:
            splits = combinatorial_splits(n, blocks, min(tested, blocks - 1), span, embargo)
        except UserError:
            return
        assert len(splits) == comb(blocks, min(tested, blocks - 1))
        times_tested = np.zeros(n, dtype=int)
        for split in splits:
            times_tested[split.test] += 1
            span_of = lambda bars: {int(b) + 1 + k for b in bars for k in (0, span)}  # noqa: E731 - ends of the spans
            inside = np.zeros(n + span + 2, dtype=bool)
            for b in split.test:
                inside[b + 1 : b + 2 + span] = True
            assert not any(inside[k] for k in span_of(split.train))
            for block_end in np.flatnonzero(np.diff(split.test) > 1):
                after = split.test[block_end] + 1
                assert not np.isin(np.arange(after, after + span + embargo), split.train).any()
        assert set(times_tested) == {comb(blocks - 1, min(tested, blocks - 1) - 1)}

    def test_blocks_without_room_are_refused(self) -> None:
        with pytest.raises(UserError, match="too little data"):
            combinatorial_splits(100, 10, 2, 5)
        with pytest.raises(UserError, match="is no choice"):
            combinatorial_splits(1000, 3, 3, 5)

"""Qlib users: our handler and models from plain configuration, and a run in Qlib's recorder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import qlib
import yaml
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config
from qlib.workflow import R

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import FundingBlock, MarketPanel
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_data_adapter import recorder_config
from crypto_qlib.feature_engineering.feature_generator import build_features, settings_for_panel
from crypto_qlib.modeling.labels import forward_returns, make_labels
from crypto_qlib.modeling.qlib_task import make_dataset, segment_arrays, windowed_rows
from crypto_qlib.modeling.row_batch import batch_of
from crypto_qlib.modeling.splits import Segment, TimeSplit
from crypto_qlib.modeling.train_model import Fold, train_model
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from crypto_qlib.store.lake import Kind, Lake, Series
from tests.modeling.conftest import Trained
from tests.noise_market import noise_panel

PANEL = noise_panel(400, 6, seed=6, planted=0.2)

TASK = """
model:
  class: LightGBMModel
  module_path: crypto_qlib.modeling.models.lightgbm_model
  kwargs:
    settings: {num_boost_round: 5, min_data_in_leaf: 50, threads: 1, horizon_bars: 6}
dataset:
  class: DatasetH
  module_path: qlib.data.dataset
  kwargs:
    handler:
      class: LakeHandler
      module_path: crypto_qlib.modeling.qlib_task
      kwargs:
        lake: LAKE
        bars: 1h
        features: {sets: [technical, funding]}
        model: {label: forward_return, horizon_bars: 6}
    segments:
      train: ["2024-01-01 00:00", "2024-01-10 00:00"]
      valid: ["2024-01-11 00:00", "2024-01-13 00:00"]
      test: ["2024-01-14 00:00", "2024-01-17 15:00"]
"""


def fill_lake(folder: Path, panel: MarketPanel) -> None:
    lake = Lake(folder)
    for k, symbol in enumerate(panel.symbols):
        rows = {n: getattr(panel, n)[:, k].copy() for n in ("open", "high", "low", "close", "volume", "quote_volume")}
        flag = np.zeros(panel.n_bars, dtype=np.uint16)
        lake.upsert(Series(Kind.CLEAN, "1h", symbol), {"ts": panel.ts_open, **rows, "flag": flag})
        settled = np.isfinite(panel.funding_rate[:, k])
        lake.write_funding(symbol, FundingBlock(panel.ts_open[settled], panel.funding_rate[settled, k]))


def test_handler_and_model_from_yaml(tmp_path: Path) -> None:
    fill_lake(tmp_path, PANEL)
    config = yaml.safe_load(TASK.replace("LAKE", str(tmp_path)))
    dataset = init_instance_by_config(config["dataset"])
    model = init_instance_by_config(config["model"])
    model.fit(dataset)
    predicted = model.predict(dataset, "test")
    assert predicted.index.names == ["datetime", "instrument"]
    assert predicted.notna().all()
    assert len(predicted) == 6 * 88  # 14 January 00:00 .. 17 January 15:00
    rows = segment_arrays(dataset, "train", learning=True)
    truth = pd.DataFrame(forward_returns(PANEL.open, 6), columns=PANEL.symbols)[sorted(PANEL.symbols)]
    np.testing.assert_allclose(rows.label, truth.to_numpy()[:217].ravel())
    assert "BASIS" not in rows.names, "this lake holds no marks"


def test_learning_rows_without_a_label_are_dropped_and_inference_rows_kept(tmp_path: Path) -> None:
    fill_lake(tmp_path, PANEL)
    config = yaml.safe_load(TASK.replace("LAKE", str(tmp_path)))
    dataset = init_instance_by_config(config["dataset"])
    learn, infer = segment_arrays(dataset, "test", learning=True), segment_arrays(dataset, "test", learning=False)
    assert infer.label.size - learn.label.size == 6 * 7, "the last N + 1 bars have no label yet"


@pytest.mark.parametrize("segment", ["train", "valid", "test"])
@pytest.mark.parametrize("learning", [True, False])
def test_rows_read_from_the_frame_are_those_that_qlib_hands_out(segment: str, learning: bool, trained: Trained) -> None:
    ours = make_dataset(trained.frame, trained.labels, trained.model.split)
    stock = DatasetH(ours.handler, ours.segments)
    a, b = (windowed_rows(d, segment, learning=learning) for d in (ours, stock))
    assert a.values.base is not None, "a view, not a copy"
    for field in fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)
    flat = segment_arrays(stock, segment, learning=learning)
    np.testing.assert_array_equal(a.values[a.sample], flat.values)
    np.testing.assert_array_equal(a.label, flat.label)


def test_a_segment_without_rows_is_one_clear_line(tmp_path: Path) -> None:
    fill_lake(tmp_path, PANEL)
    config = yaml.safe_load(
        TASK.replace("LAKE", str(tmp_path)).replace("2024-01-11", "2025-01-11").replace("2024-01-13", "2025-01-13")
    )
    dataset = init_instance_by_config(config["dataset"])
    with pytest.raises(UserError, match="valid segment has no labelled rows"):
        segment_arrays(dataset, "valid", learning=True)


def test_a_segment_that_mixes_a_bare_date_with_a_time_is_scored_whole(trained: Trained) -> None:
    dataset = make_dataset(trained.frame, trained.labels, trained.model.split)
    stamps = pd.DatetimeIndex(trained.frame.ts_open.astype("datetime64[ns]"))
    day = stamps[-40].normalize()
    dataset.segments["test"] = (str(day.date()), str(stamps[-1]))
    scored = trained.model.predictor.predict(dataset)
    times = scored.index.get_level_values(0)
    assert (times.min(), times.max()) == (day, stamps[-1])


QRUN = """
qlib_init:
  provider_uri: LAKE/../qlib
  region: us
  kernels: 1
  exp_manager:
    class: DatabaseExpManager
    module_path: crypto_qlib.data_collector.qlib_data_adapter
    kwargs: {uri: "sqlite:///runs.sqlite", default_exp_name: same}
experiment_name: same
task:
MODEL
  record:
    - class: SignalRecord
      module_path: qlib.workflow.record_temp
"""
SMALL_NET = {"lookback_bars": 4, "hidden": 8, "heads": 1, "epochs": 1, "epoch_rows": 512, "batch_rows": 64, "max_features": 6}
CLASSES = {
    "lightgbm": "crypto_qlib.modeling.models.lightgbm_model.LightGBMModel",
    "linear": "crypto_qlib.modeling.models.linear_model.LinearModel",
    "gru": "crypto_qlib.modeling.models.net_model.NetModel",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightgbm", "linear", "gru"])
def test_qrun_gives_the_predictions_of_train_bit_for_bit(name: str, tmp_path: Path) -> None:
    if name == "gru":
        pytest.importorskip("torch", reason="the torch extra is not installed")
    lake = tmp_path / "lake"
    fill_lake(lake, PANEL)
    changes = {"num_boost_round": 5, "min_data_in_leaf": 50, "threads": 1, "horizon_bars": 6, "label": "forward_return"}
    chosen = ModelSettings.model_validate({"name": name, "net": SMALL_NET} | changes)
    task = yaml.safe_load(TASK.replace("LAKE", str(lake)).replace("2024-01-17 15:00", "2024-01-17 14:00"))
    module, _, class_name = CLASSES[name].rpartition(".")
    settings = {"name": name, "net": SMALL_NET} | changes
    task["model"] = {"class": class_name, "module_path": module, "kwargs": {"settings": settings}}
    indented = "".join(f"  {line}\n" for line in yaml.safe_dump(task).splitlines())
    (tmp_path / "task.yaml").write_text(QRUN.replace("LAKE", str(lake)).replace("MODEL\n", indented))
    (tmp_path / "qlib").mkdir()
    command = [sys.executable, "-m", "qlib.cli.run", "task.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "runs_files" / "same").glob("*/artifacts/pred.pkl")
    theirs = pd.read_pickle(file)["score"]
    qlib.init(provider_uri=str(tmp_path / "qlib"), region="us", kernels=1, logging_level=30,
              exp_manager=recorder_config(tmp_path / "runs.sqlite", "same"))  # fmt: skip
    (recorder,) = R.list_recorders(experiment_name="same").values()
    assert recorder.status == "FINISHED"
    np.testing.assert_array_equal(recorder.load_object("pred.pkl")["score"], theirs)

    panel = load_panel(Lake(lake), tuple(Lake(lake).symbols(Kind.CLEAN, "1h")), "1h")
    wanted, _ = settings_for_panel(panel, FeatureSettings(sets=("technical", "funding")))
    frame, labels = build_features(panel, wanted), make_labels(panel, chosen)
    stamps = pd.DatetimeIndex(frame.ts_open.astype("datetime64[ns]"))
    spans = {k: [int(stamps.get_loc(pd.Timestamp(t))) for t in v] for k, v in task["dataset"]["kwargs"]["segments"].items()}
    split = TimeSplit(*(Segment(k, a, b + 1) for k, (a, b) in spans.items()), chosen.horizon_bars)
    model = train_model(frame, labels, chosen, tmp_path / "model", fold=Fold(split))
    ours = model.predictor.predict_batch(batch_of(frame, split.test.start, split.test.stop, model.context_bars), 1)
    np.testing.assert_array_equal(theirs.to_numpy(), ours)

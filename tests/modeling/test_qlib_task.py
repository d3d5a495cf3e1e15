"""Qlib users: our handler and models from plain configuration, and a run in Qlib's recorder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import FundingBlock, MarketPanel
from crypto_qlib.modeling.labels import forward_returns
from crypto_qlib.modeling.qlib_task import make_dataset, segment_arrays, windowed_rows
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


RECORD = """
import sys
from pathlib import Path
from crypto_qlib.modeling.qlib_task import record_run
database = Path(sys.argv[1])
first = record_run(database, "tests", {"horizon": 24}, {"rank_ic": 0.05, "unknown": float("nan")})
second = record_run(database, "tests", {"horizon": 24}, {"rank_ic": 0.06})
from qlib.workflow import R
recorders = R.list_recorders(experiment_name="tests")
assert set(recorders) == {first, second}, recorders
assert recorders[first].list_metrics() == {"rank_ic": 0.05}
assert recorders[first].list_params()["horizon"] == "24"
"""


@pytest.mark.slow
def test_a_run_is_recorded_in_qlibs_recorder_on_sqlite(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RECORD, str(tmp_path / "store" / "mlflow.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "mlflow.sqlite").stat().st_size > 0
    assert {p.name for p in tmp_path.iterdir()} == {"store"}, "nothing is left in the working folder"


def test_a_segment_that_mixes_a_bare_date_with_a_time_is_scored_whole(trained: Trained) -> None:
    dataset = make_dataset(trained.frame, trained.labels, trained.model.split)
    stamps = pd.DatetimeIndex(trained.frame.ts_open.astype("datetime64[ns]"))
    day = stamps[-40].normalize()
    dataset.segments["test"] = (str(day.date()), str(stamps[-1]))
    scored = trained.model.predictor.predict(dataset)
    times = scored.index.get_level_values(0)
    assert (times.min(), times.max()) == (day, stamps[-1])

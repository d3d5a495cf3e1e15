"""``qrun`` with the example YAML gives the leveraged backtest, recorded in MLflow on SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import crypto_qlib as cq
from crypto_qlib.analytics.account_book import PARTS
from crypto_qlib.backtest.analysis_report import market_kind
from crypto_qlib.backtest.qlib_record import of_market, prediction_grid, score_panel
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.contract_archive import archive_instruments, archive_tiers
from crypto_qlib.modeling.calibration import Calibration
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.lake import Lake
from tests.modeling.test_qlib_task import fill_lake
from tests.noise_market import noise_panel

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "leveraged_backtest.yaml"
PANEL = noise_panel(48, 3, seed=1)
CALIBRATED = Calibration(0.5, 0.5, 0.01, "constant", (0.0,), (0.55,))


def _predicted(stamps: list[str], symbol: str) -> pd.Series:
    index = pd.MultiIndex.from_product([pd.DatetimeIndex(stamps), [symbol]], names=["datetime", "instrument"])
    return pd.Series(np.arange(len(stamps), dtype=float) + 1.0, index=index)


def test_predictions_become_scores_known_at_the_close() -> None:
    first = pd.Timestamp(int(PANEL.ts_open[0]))
    stamps = [str(first + pd.Timedelta(hours=h)) for h in (5, 7)]
    scores = score_panel(prediction_grid(_predicted(stamps, PANEL.symbols[1]), PANEL), PANEL, CALIBRATED)
    assert scores.as_of_ns.tolist() == [int(PANEL.ts_open[t]) + PANEL.frame_ns for t in (5, 7)]
    np.testing.assert_allclose(scores.expected_return[:, 1], [0.5, 1.0])
    np.testing.assert_allclose(scores.win_probability[:, 1], 0.55)
    assert np.isnan(scores.expected_return[:, [0, 2]]).all()
    assert np.isnan(scores.win_probability[:, [0, 2]]).all()


@pytest.mark.parametrize(
    ("reason", "offset", "symbol"),
    [
        ("before the first bar", pd.Timedelta(hours=-1), PANEL.symbols[0]),
        ("after the last bar", pd.Timedelta(hours=48), PANEL.symbols[0]),
        ("between two bars", pd.Timedelta(minutes=30), PANEL.symbols[0]),
        ("a symbol the lake does not have", pd.Timedelta(0), "NOPEUSDT"),
    ],
)
def test_a_prediction_without_a_bar_is_refused(reason: str, offset: pd.Timedelta, symbol: str) -> None:
    stamp = str(pd.Timestamp(int(PANEL.ts_open[0])) + offset)
    with pytest.raises(UserError, match=rf"{symbol} at .*: a prediction without a bar"):
        prediction_grid(_predicted([stamp], symbol), PANEL)


def test_no_prediction_and_an_unknown_market_are_clear_errors() -> None:
    with pytest.raises(UserError, match="test segment has no prediction"):
        score_panel(np.full((48, 3), np.nan), PANEL, CALIBRATED)
    with pytest.raises(UserError, match="unknown market 'okx'"):
        of_market(Settings(), "okx")
    assert [market_kind(of_market(Settings(), kind)) for kind in ("simulated", "replay", "exchange")] == [
        "simulated", "replay", "exchange",
    ]  # fmt: skip


def small_store(folder: Path) -> Path:
    """Fill a lake from a small simulated market with a planted signal and return it."""
    market = cq.simulate(symbols=8, days=40, seed=5, signal_strength=1.0)
    lake = folder / "lake"
    fill_lake(lake, market.panel)
    now_ns = int(market.panel.ts_open[-1]) + market.panel.frame_ns
    archive_instruments(Lake(lake), market.instruments.values(), now_ns)
    for symbol, history in market.tiers.items():
        archive_tiers(Lake(lake), symbol, history.at(now_ns), now_ns)
    return lake


@pytest.mark.slow
def test_qrun_with_the_example_yaml_records_the_leveraged_backtest(tmp_path: Path) -> None:
    lake = small_store(tmp_path)
    spans = {
        "TRAIN_START": "2025-11-25 00:00", "TRAIN_END": "2025-12-14 00:00", "VALID_START": "2025-12-16 00:00",
        "VALID_END": "2025-12-22 00:00", "TEST_START": "2025-12-24 00:00", "TEST_END": "2025-12-31 23:00",
    }  # fmt: skip
    command = [sys.executable, "-m", "qlib.cli.run", str(EXAMPLE)]
    environ = os.environ | spans | {"LAKE": str(lake), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "qlib_runs_files" / "leveraged").glob("*/artifacts/leveraged_backtest")
    figures = json.loads((folder / "multi_asset_performance.json").read_text())
    assert figures["run"]["run_id"] == folder.parents[1].name
    assert figures["trades"]["count"] > 0
    assert sum(figures["attribution"][part] for part in PARTS) == pytest.approx(figures["attribution"]["total"], abs=1e-6)
    assert figures["what_if"]["ruin"]
    assert pq.read_table(folder / "trades.parquet").num_rows == figures["trades"]["count"]
    assert (folder / "report.html").stat().st_size > 1_000_000
    with sqlite3.connect(tmp_path / "qlib_runs.sqlite") as db:
        metrics = dict(db.execute("select key, value from metrics").fetchall())
    assert metrics["total_return"] == pytest.approx(figures["returns"]["total_return"])
    assert metrics["trades"] == figures["trades"]["count"]
    assert {p.name for p in tmp_path.iterdir()} == {"lake", "qlib_runs.sqlite", "qlib_runs_files"}

"""The leveraged backtest as a Qlib record, so that ``qrun`` with a YAML file trades what it trained.

After ``SignalRecord`` has predicted the test segment, this record calibrates the predictions on the *valid* segment (expected
return, win probability), runs the same engine as ``crypto-qlib backtest`` on the bars of the lake and keeps the whole report as
artefacts below ``leveraged_backtest/``, its main figures as metrics.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.workflow.record_temp import RecordTemp, SignalRecord

from crypto_qlib.backtest.analysis_report import PAGE, PERFORMANCE_FILE, write_report
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.report_words import BANNERS
from crypto_qlib.backtest.run_backtest_leveraged import leveraged_inputs, refuse_finer_bars
from crypto_qlib.backtest.what_if import what_if
from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import FloatArray, MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.data_collector.contract_archive import load_instruments, load_tiers
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.universe_history import membership_of_lake
from crypto_qlib.modeling.calibration import Calibration, fit_calibration
from crypto_qlib.modeling.evaluate_model import evaluate_model, rank_ic_series
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.lake import Kind, Lake

_METRICS: Final = {
    "total_return": ("returns", "total_return"),
    "annual_return": ("returns", "annual_return"),
    "sharpe": ("returns", "sharpe"),
    "max_drawdown": ("returns", "max_drawdown"),
    "win_rate": ("trades", "win_rate"),
    "trades": ("trades", "count"),
    "fees": ("costs", "fees"),
    "slippage": ("costs", "slippage"),
    "funding_received": ("costs", "funding_received"),
    "funding_paid": ("costs", "funding_paid"),
    "liquidations": ("liquidations", "count"),
    "max_leverage": ("exposure", "max_leverage"),
}
"""Metric names in the recorder, and where the figures stand in ``multi_asset_performance.json``."""


class LeveragedBacktestRecord(RecordTemp):  # type: ignore[misc]
    """Trade the predictions of a Qlib workflow with leverage, long and short.

    Parameters
    ----------
    lake : str or Path
        Folder of the lake, as for :class:`~crypto_qlib.modeling.qlib_task.LakeHandler`; holds bars, funding, contracts, tiers.
    market : str
        Where the lake's prices come from, said on the report: ``simulated``, ``replay`` or ``exchange``.
    model, dataset : object
        Qlib's model and dataset; ``qrun`` passes them.
    recorder : Recorder
        Qlib's recorder; ``qrun`` passes it.
    symbols : sequence of str, optional
        Symbols of the panel; all cleaned ones by default.
    settings : sequence of str
        ``section.key=value`` as after ``--set``, e.g. ``strategy.max_open=5``; ``data.frame`` is the bar length and
        ``model.horizon_bars`` and ``model.label`` must be those of the handler.
    study : bool
        Also run capacity and ruin.
    """

    artifact_path = "leveraged_backtest"
    depend_cls = SignalRecord

    def __init__(
        self,
        lake: str | Path,
        market: str,
        model: Any = None,
        dataset: Any = None,
        recorder: Any = None,
        symbols: Sequence[str] | None = None,
        settings: Sequence[str] = (),
        study: bool = True,
    ) -> None:
        super().__init__(recorder=recorder)
        self._lake = Lake(Path(lake))
        self._model = model
        self._dataset = dataset
        self._symbols = symbols
        self._settings = of_market(load_settings(None, list(settings), {}), market)
        self._study = study

    def generate(self, **_: Any) -> dict[str, Any]:
        """Run the backtest, record report and metrics, and return the figures.

        Raises
        ------
        UserError
            If the lake, the predictions or the settings do not fit each other.
        """
        predicted = self.load("pred.pkl")
        frame = self._settings.data.frame
        symbols = tuple(self._symbols or self._lake.symbols(Kind.CLEAN, frame))
        panel = load_panel(self._lake, symbols, frame)
        members = membership_of_lake(self._lake)
        if members is not None:  # as the handler: no label and no entry for who did not belong then
            panel = panel.with_members(members)
        labels = make_labels(panel, self._settings.model)
        raw = prediction_grid(predicted.iloc[:, 0], panel)
        scores = score_panel(raw, panel, self._calibrated(panel, labels))
        inputs = self._inputs(panel, scores)
        result = run_backtest(inputs)
        performance = evaluate_model(scores, labels)
        study = what_if(inputs, result) if self._study else None
        identity = {"run_id": self.recorder.id, "experiment_id": self.recorder.experiment_id, "recorded_by": "qlib"}
        with tempfile.TemporaryDirectory() as scratch:
            files = write_report(
                result, panel, self._settings, identity, performance.to_json(), Path(scratch), rank_ic_series(scores, labels),
                study,
            )  # fmt: skip
            self.recorder.save_objects(local_path=scratch, artifact_path=self.get_path())
        metrics = {name: float(files.figures[section][key]) for name, (section, key) in _METRICS.items()}
        self.recorder.log_metrics(**{name: value for name, value in metrics.items() if math.isfinite(value)})
        return files.figures

    def list(self) -> list[str]:
        """Return the artefacts that make this record complete."""
        return [PERFORMANCE_FILE, PAGE]

    def _calibrated(self, panel: MarketPanel, labels: Labels) -> Calibration:
        if self._model is None or self._dataset is None:
            raise UserError("the leveraged backtest calibrates on the valid segment and needs model and dataset")
        raw = prediction_grid(self._model.predict(self._dataset, "valid"), panel)
        rows = np.isfinite(raw)
        return fit_calibration(raw[rows], labels.values[rows], labels.forward_return[rows], labels.horizon_bars)

    def _inputs(self, panel: MarketPanel, scores: ScorePanel) -> BacktestInputs:
        refuse_finer_bars(self._settings)
        end_ns = int(panel.ts_open[-1]) + panel.frame_ns
        instruments = load_instruments(self._lake, panel.symbols, end_ns)
        tiers = load_tiers(self._lake, panel.symbols)
        knows_funding = bool(np.isfinite(panel.funding_rate).any())
        return leveraged_inputs(panel, scores, instruments, tiers, self._settings, require_funding=knows_funding)


def of_market(settings: Settings, market: str) -> Settings:
    """Return settings whose report says that prices come from ``market``.

    Raises
    ------
    UserError
        If there is no such kind of market.
    """
    if market not in BANNERS:
        raise UserError(f"unknown market {market!r}", f"say where the prices come from: {', '.join(BANNERS)}")
    change = {"mode": "live"} if market == "exchange" else {"mode": "embedded", "market": market}
    return settings.model_copy(update={"exchange": settings.exchange.model_copy(update=change)})


def prediction_grid(predicted: pd.Series, panel: MarketPanel) -> FloatArray:
    """Return Qlib's predictions on the panel's grid, ``(n_bars, n_symbols)``, NaN where there is none.

    Parameters
    ----------
    predicted : Series
        Indexed by ``(datetime, instrument)``: naive UTC open times, symbols.
    panel : MarketPanel
        Bars.

    Raises
    ------
    UserError
        If a prediction lies outside the panel's bars or symbols.
    """
    stamps = predicted.index.get_level_values("datetime").to_numpy(dtype="datetime64[ns]").astype(np.int64)
    names = predicted.index.get_level_values("instrument")
    columns = pd.Index(panel.symbols).get_indexer(names)
    rows = (stamps - int(panel.ts_open[0])) // panel.frame_ns
    outside = (columns < 0) | (rows < 0) | (rows >= panel.n_bars)
    outside |= panel.ts_open[np.clip(rows, 0, panel.n_bars - 1)] != stamps
    if outside.any():
        at = int(np.argmax(outside))
        raise UserError(
            f"{names[at]} at {iso(int(stamps[at]))}: a prediction without a bar in the lake",
            "give record and handler the same lake, bars and symbols",
        )
    grid = np.full((panel.n_bars, len(panel.symbols)), np.nan)
    grid[rows, columns] = predicted.to_numpy(np.float64)
    return grid


def score_panel(raw: FloatArray, panel: MarketPanel, calibration: Calibration) -> ScorePanel:
    """Return calibrated scores of the bars that have predictions, known at each bar's close.

    Raises
    ------
    UserError
        If there is no prediction at all.
    """
    used = np.flatnonzero(np.isfinite(raw).any(axis=1))
    if not used.size:
        raise UserError("the test segment has no prediction", "lengthen it, or check the handler's instruments")
    expected, win = calibration.apply(raw[used].ravel())
    shape = (used.size, len(panel.symbols))
    unknown: npt.NDArray[np.bool_] = np.isnan(raw[used])
    uncertainty = np.where(unknown, np.nan, calibration.uncertainty)
    as_of = panel.ts_open[used] + panel.frame_ns
    return ScorePanel(as_of, panel.symbols, expected.reshape(shape), win.reshape(shape), uncertainty)

"""The package in ten lines, for notebooks and scripts.

::

    import crypto_qlib as cq

    data = cq.simulate(symbols=20, days=120, signal_strength=1.0)     # or cq.load_data("candles.parquet")
    features = cq.build_features(data)
    model = cq.train(data, features)
    scores = cq.predict(model, features)
    print(cq.evaluate(data, scores, model))
    result = cq.run_backtest(data, scores)
    cq.plot(result, data)

Every function takes settings as ``section.key=value`` strings or a :class:`Settings` object; what it does is what the
command line does with the same settings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from crypto_qlib.backtest.analysis_report import ReportFiles, write_report
from crypto_qlib.backtest.performance_report import curves
from crypto_qlib.backtest.report_pictures import draw_pnl_curve
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.backtest.run_backtest_leveraged import leveraged_inputs, run_backtest_leveraged
from crypto_qlib.backtest.what_if import what_if
from crypto_qlib.core.clock import NS_PER_DAY, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.membership import membership_of
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.data_collector.cap_rankings import read_ranking_table
from crypto_qlib.data_collector.source_panel import panel_of_source
from crypto_qlib.data_collector.universe_rebuild import PriceTable, rebuild
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.feature_engineering import feature_generator
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.artefact import TrainedModel
from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model
from crypto_qlib.modeling.labels import TradeRule, make_labels
from crypto_qlib.modeling.train_model import predict_scores, train_model
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec
from crypto_qlib.venue.market_source import MarketSource

Options = Settings | Iterable[str]
"""Settings, or strings such as ``"strategy.max_open=5"``."""

_SIMULATED_END = "2026-01-01"


@dataclass(frozen=True, slots=True)
class MarketData:
    """Bars and the contract rules that go with them.

    Parameters
    ----------
    panel : MarketPanel
        Aligned bars, marks and funding.
    instruments, tiers : dict
        Specification and position tiers by symbol.
    is_simulated : bool
        Whether the prices are invented.
    """

    panel: MarketPanel
    instruments: dict[str, Instrument]
    tiers: dict[str, TierHistory]
    is_simulated: bool


def configure(*options: str) -> Settings:
    """Return the default settings with ``section.key=value`` overrides.

    Raises
    ------
    UserError
        If a key is unknown or a value out of range.
    """
    return load_settings(None, options, {})


def simulate(
    symbols: int = 20, days: int = 120, *, seed: int = 20260101, signal_strength: float = 0.0, frame: str = "1h"
) -> MarketData:
    """Return a simulated market: **its prices are invented**.

    Parameters
    ----------
    symbols, days : int
        Size.
    seed : int
        Equal arguments give equal bytes.
    signal_strength : float
        Planted cross-sectional signal in [0, 1]; 0 = nothing to be found.
    frame : str
        Bar length.
    """
    end_ns = parse_utc(_SIMULATED_END)
    market = SimulatedMarket(SimulationSpec(symbols, end_ns - days * NS_PER_DAY, end_ns, seed, signal_strength))
    return _market_data(market, frame)


def load_data(
    candles: str | Path,
    *,
    symbols: Sequence[str] = (),
    start: str = "",
    end: str = "",
    funding: str | Path | None = None,
    mark: str | Path | None = None,
    frame: str = "1h",
) -> MarketData:
    """Return recorded candles (parquet, CSV or feather: symbol, ts, open, high, low, close, volume).

    Parameters
    ----------
    candles, funding, mark : path
        Files; funding and marks are optional.
    symbols : sequence of str
        Columns, e.g. ``["BTCUSDT"]``; by default all in the file.
    start, end : str
        ISO times that bound the bars; empty = all.
    frame : str
        Bar length; coarser than the file's is aggregated.

    All symbols of the file always belong to the universe, which is hindsight where it holds the coins that made it:
    :func:`with_universe` says who belonged when.

    Raises
    ------
    UserError
        If a file is missing, damaged or impossible; it names file and row.
    """
    market = ReplayMarket(Path(candles), Path(funding) if funding else None, Path(mark) if mark else None)
    return _market_data(market, frame, symbols, parse_utc(start) if start else None, parse_utc(end) if end else None)


def with_universe(data: MarketData, caps: str | Path, options: Options = ()) -> MarketData:
    """Return the same bars with the universe as known then: features, labels and trades of a bar are of its members only.

    Parameters
    ----------
    data : MarketData
        Bars of every coin that may have belonged, those that died since included.
    caps : path
        Market caps over time (parquet, CSV or feather: symbol, ts, market_cap and, where known, price); the universe is chosen
        again for each of its times, by the top ``universe.size`` and hysteresis of section ``universe``.

    Raises
    ------
    UserError
        If the table cannot be read, or none of its coins has bars here.
    """
    panel = data.panel
    closes = panel.ts_open + panel.frame_ns
    prices = PriceTable({s: (closes, panel.high[:, j], panel.low[:, j]) for j, s in enumerate(panel.symbols)})
    chosen = rebuild(read_ranking_table(Path(caps)), data.instruments.values(), _settings(options).universe, prices)
    if not chosen:
        raise UserError(
            f"no coin of {caps} has bars here at the time of its market cap", "check symbols and times of both files"
        )
    members = membership_of((s.as_of_ns, s.symbols) for s in chosen).from_the_start()
    return replace(data, panel=panel.with_members(members))


def build_features(data: MarketData, options: Options = ()) -> FeatureFrame:
    """Return the features of every bar; row ``t`` is known at the close of bar ``t``. Section ``features`` is read.

    Feature sets that the data cannot feed (funding without settlements) are left out.
    """
    wanted, _ = feature_generator.settings_for_panel(data.panel, _settings(options).features)
    return feature_generator.build_features(data.panel, wanted)


def train(data: MarketData, features: FeatureFrame, options: Options = (), folder: str | Path | None = None) -> TrainedModel:
    """Train and calibrate a model on the oldest part of the history; section ``model`` is read.

    Parameters
    ----------
    folder : path, optional
        Where the artefact is kept; by default in a temporary folder that goes with the process.
    """
    chosen = _settings(options).model
    rule = TradeRule.of(_settings(options))
    labels = make_labels(data.panel, chosen, rule)
    if folder is not None:
        return train_model(features, labels, chosen, Path(folder), rule=rule)
    with tempfile.TemporaryDirectory() as scratch:
        return train_model(features, labels, chosen, Path(scratch), rule=rule)


def predict(model: TrainedModel, features: FeatureFrame, segment: str = "test") -> ScorePanel:
    """Return the scores of one segment (``train``, ``valid``, ``test``; empty = all)."""
    return predict_scores(model, features, segment=segment)


def evaluate(data: MarketData, scores: ScorePanel, model: TrainedModel) -> ModelPerformance:
    """Return IC, RankIC and the rest, by the label the model was trained on."""
    return evaluate_model(scores, make_labels(data.panel, model.settings, model.rule))


def run_backtest(data: MarketData, scores: ScorePanel, options: Options = ()) -> BacktestResult:
    """Return the leveraged long/short backtest; sections ``strategy`` and ``backtest`` are read.

    Without any settlement in ``data`` funding is left out of the result.
    """
    knows_funding = bool(np.isfinite(data.panel.funding_rate).any())
    return run_backtest_leveraged(
        data.panel, scores, data.instruments, data.tiers, _settings(options), require_funding=knows_funding
    )


def save_report(
    result: BacktestResult,
    data: MarketData,
    folder: str | Path,
    options: Options = (),
    scores: ScorePanel | None = None,
) -> ReportFiles:
    """Write the whole report (pictures, JSON, parquet, one HTML page) into ``folder``.

    With the ``scores`` that were traded (and the options they were traded with) the report also holds what needs more runs of
    the engine: capacity, risk of ruin at each leverage, distance to liquidation.
    """
    identity: dict[str, Any] = {"run_id": "notebook"}
    chosen = _for_market(_settings(options), data)
    study = None
    if scores is not None:
        knows_funding = bool(np.isfinite(data.panel.funding_rate).any())
        inputs = leveraged_inputs(data.panel, scores, data.instruments, data.tiers, chosen, require_funding=knows_funding)
        study = what_if(inputs, result)
    return write_report(result, data.panel, chosen, identity, None, Path(folder), None, study)


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG that a notebook shows by itself.

    Parameters
    ----------
    png : bytes
        The file's content.
    """

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | Path) -> None:
        """Write the picture to ``path``."""
        Path(path).write_bytes(self.png)


def plot(result: BacktestResult, data: MarketData) -> Picture:
    """Return equity against both benchmarks, the drawdown and the number of open positions, as a picture."""
    prices = "simulated prices" if data.is_simulated else "recorded prices, simulated money"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pnl.png"
        draw_pnl_curve(curves(result, data.panel), result, f"Profit and loss  ·  {prices}", "", path)
        return Picture(path.read_bytes())


def _settings(options: Options) -> Settings:
    return options if isinstance(options, Settings) else configure(*options)


def _for_market(chosen: Settings, data: MarketData) -> Settings:
    market = chosen.exchange.model_copy(update={"market": "simulated" if data.is_simulated else "replay"})
    return chosen.model_copy(update={"exchange": market})


def _market_data(
    source: MarketSource, frame: str, symbols: Sequence[str] = (), start_ns: int | None = None, end_ns: int | None = None
) -> MarketData:
    panel = panel_of_source(source, frame, symbols, start_ns, end_ns)
    instruments = {item.symbol: item for item in source.instruments() if item.symbol in panel.symbols}
    return MarketData(panel, instruments, {s: source.tiers(s) for s in panel.symbols}, source.is_simulated)

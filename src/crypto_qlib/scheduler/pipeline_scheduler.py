"""The main job, step by step: universe, data, cleaning, Qlib store, features, model, evaluation, backtest, paper.

1. ``universe``      the top N coins by market cap that have a USDT swap
2. ``data update``   candles, marks, funding, contract rules -> parquet lake (only what is missing is fetched)
3. ``data check``    cleaned bars and a quality report
4. ``features``      Qlib's store, and the features of every bar
5. ``train``         labels and model through Qlib, time-ordered with purge and embargo
6. ``evaluate``      IC and RankIC out of sample
7. ``backtest``      scores -> ``decide()`` -> leveraged long/short backtest -> report
8. ``paper``         the live session on the same model and the same ``decide()``

Every step is keyed by what it is made of (``scheduler.steps``): a second run repeats only what changed, and a run that
was killed goes on where it stopped, to the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from crypto_qlib.backtest.analysis_report import PAGE, summary_lines, write_report
from crypto_qlib.backtest.funding_holes import refuse_funding_holes
from crypto_qlib.backtest.grid import run_grid
from crypto_qlib.backtest.grid_report import grid_lines, write_grid
from crypto_qlib.backtest.grid_runs import grid_runs, parse_axis
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.backtest.run_backtest_leveraged import execution_of, leveraged_inputs
from crypto_qlib.backtest.streaming import run_on_bars_of
from crypto_qlib.backtest.trials import EQUITY_FILE, compare, comparison_lines
from crypto_qlib.backtest.what_if import what_if
from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.data_collector.qlib_data_adapter import update_from_panel
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.feature_engineering.feature_files import load_feature_frame
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.side_loading import load_side, side_identity
from crypto_qlib.live_trading.gap_inputs import LiveSide
from crypto_qlib.live_trading.paper_view import PaperView
from crypto_qlib.live_trading.runner import PaperResult
from crypto_qlib.live_trading.session_report import SESSION_FIGURES
from crypto_qlib.modeling.artefact import SUMS_FILE, TrainedModel, load_model
from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model, rank_ic_series
from crypto_qlib.modeling.fold_workers import train_chosen
from crypto_qlib.modeling.labels import Labels, TradeRule, make_labels, uses_trades
from crypto_qlib.modeling.model_report import report_model
from crypto_qlib.modeling.registry import model_folder
from crypto_qlib.modeling.rolling import model_key, out_of_sample_scores
from crypto_qlib.modeling.splits import split_bars
from crypto_qlib.portfolio.rules import rules_from_settings
from crypto_qlib.scheduler.compile_ahead import CompileAhead
from crypto_qlib.scheduler.data_steps import DataSteps
from crypto_qlib.scheduler.feature_build import built_features
from crypto_qlib.scheduler.feature_study import FeatureStudy
from crypto_qlib.scheduler.gap_report import GapInputs, GapReport, gap_report, write_gap
from crypto_qlib.scheduler.lived_market import lived_market
from crypto_qlib.scheduler.model_shelf import Market, ModelShelf
from crypto_qlib.scheduler.paper_session import SessionInputs, opinion, session_ledger, trade_bars
from crypto_qlib.scheduler.pipeline_results import Said, paper_lines, performance_lines, portfolio_of
from crypto_qlib.scheduler.reporter import Reporter
from crypto_qlib.scheduler.steps import key_of
from crypto_qlib.scheduler.universe_access import digest_of
from crypto_qlib.scheduler.workspace import Workspace
from crypto_qlib.settings.identity import code_identity, identity, settings_identity
from crypto_qlib.settings.load import require_okx_keys
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import SeriesStore


class Pipeline:
    """One workspace's pipeline.

    Parameters
    ----------
    settings : Settings
        All sections.
    secrets : Secrets
        Keys for demo, live and CoinGecko.
    reporter : Reporter
        Shows what is going on.
    show_paper : callable, optional
        Called with a :class:`PaperView` after each bar of a paper session.
    """

    def __init__(
        self, settings: Settings, secrets: Secrets, reporter: Reporter, show_paper: Callable[[PaperView], None] | None = None
    ) -> None:
        self.workspace = Workspace(settings, secrets, reporter)
        self.settings, self.paths = settings, self.workspace.paths
        self._show_paper = show_paper
        self.data = DataSteps(self.workspace)

    # ------------------------------------------------------------------ steps

    def run(self) -> Said:
        """Do all steps in order and return the summary of the whole."""
        began = time.perf_counter()
        self.workspace.is_whole_run = True
        parts: list[str] = [f"market: {self.workspace.access.market_label}"]
        compiled = self.workspace.book.is_current("compiled", code_identity())
        try:
            with CompileAhead(is_wanted=not compiled) as ahead:
                for step in (self.data.universe, self.data.update, self.data.check):
                    parts += step().lines
                if ahead.wait():
                    self.workspace.book.complete("compiled", code_identity(), {})
            parts += self.features().lines
            self._refuse_funding_holes()
            for step in (self.train, self.evaluate, self.backtest):
                parts += step().lines
            if self.settings.live.paper_bars and self.settings.exchange.mode != "live":
                parts += self.paper().lines
        finally:
            self.workspace.access.close()
        parts.append(f"done in {time.perf_counter() - began:.0f} s")
        return Said(tuple(parts))

    def features(self) -> Said:
        """Bring Qlib's store up to date and build the features of every bar."""
        with self.workspace.step("qlib store") as skipped:
            key = key_of(self.data.clean_key(), SeriesStore(self.paths.series).identity(), digest_of(self.data.members))
            if self.workspace.book.is_current("qlib", key, self.paths.qlib) and self.data.is_hot():
                skipped("unchanged")
            else:
                self.data.renew_hot(partial(update_from_panel, self.paths))
                self.workspace.book.complete("qlib", key, {})
        frame = self._features()
        return Said((f"features: {len(frame.names)} for {frame.n_rows:,} rows ({frame.values.nbytes / 2**30:.2f} GiB)",))

    def feature_study(self) -> FeatureStudy:
        """Return the features, the labels and the segments, to look at what the features say."""
        frame = self._features()
        split = split_bars(frame.n_bars, self.settings.model)
        return FeatureStudy(frame, self._labels(), split, self._feature_key(), self.paths.selections)

    def train(self) -> Said:
        """Train and calibrate the model, unless this very model exists; `evaluate` decides whether it becomes champion."""
        model_id = self._train_key()
        folder = model_folder(self.paths.models, model_id)
        with self.workspace.step("train") as skipped:
            if self.workspace.book.is_current("train", model_id, folder / SUMS_FILE):
                skipped("unchanged")
                model = load_model(folder)
            else:
                frame, labels = self._features(), self._labels()
                advance = self.workspace.reporter.progress(f"{self.settings.model.name}, {frame.n_rows:,} rows", 1.0)
                model = train_chosen(
                    self.paths.features, frame, labels, self.settings.model, folder,
                    identity=model_id, rule=TradeRule.of(self.settings), progress=advance,
                )  # fmt: skip
                self.workspace.book.complete("train", model_id, {})
                self.shelf.recorded()
        spans = ", ".join(f"{name} {iso(a)[:10]} to {iso(b)[:10]}" for name, (a, b) in model.segment_ts.items())
        return Said((f"model {model_id}: {self.settings.model.name}, {len(model.feature_names)} features; {spans}",))

    def evaluate(self) -> Said:
        """Measure the model out of sample; write ``model_performance_report.json`` and ``model_report.html`` beside it."""
        with self.workspace.step("evaluate"):
            performance, page = self._reported()
            ruled = self.shelf.consider(self._train_key(), performance, self.market())
        return Said((*performance_lines(performance), f"model report: {page}", *ruled.lines))

    def _reported(self) -> tuple[ModelPerformance, Path]:
        """Write the report of the model these settings trained; return its figures and page."""
        model = self._model()
        folder = model_folder(self.paths.models, self._train_key())
        scores = out_of_sample_scores(model, folder, self._features())
        stamp, market = self._identity(model), self.workspace.access.market_label
        words = {
            "title": f"{model.settings.name} on {model.settings.label}",
            "market": market,
            "paths": self.shelf.kept_paths(),
            "portfolio": portfolio_of(self.paths.reports / stamp["run_id"]),
        }
        return report_model(model, scores, self.data.panel(), self._labels(), folder, stamp, words)

    @property
    def shelf(self) -> ModelShelf:
        """Return the workspace's models."""
        return ModelShelf(self.paths, self.settings.model)

    def market(self) -> Market:
        """Return the features and labels models are judged on."""
        rule = TradeRule.of(self.settings)
        panel = self.data.panel()
        return Market(
            self._features(), lambda chosen: make_labels(panel, chosen, rule), panel, self.workspace.access.market_label
        )

    def backtest(self) -> Said:
        """Trade the scores and write the report, unless this very report exists."""
        model = self._model()
        stamp = self._identity(model)
        folder = self.paths.reports / stamp["run_id"]
        with self.workspace.step("backtest and report") as skipped:
            record = self.workspace.book.record("backtest")
            if record is not None and self.workspace.book.is_current("backtest", stamp["run_id"], folder / PAGE):
                skipped("unchanged")
                return Said(tuple(record.output["lines"]))
            inputs = self._backtest_inputs(model)
            result = self._traded(inputs)
            performance, rolling = self._performance(model)
            study = what_if(inputs, result)
            files = write_report(result, inputs.panel, self.settings, stamp, performance.to_json(), folder, rolling, study)
            lines = tuple(summary_lines(files))
            self.workspace.book.complete("backtest", stamp["run_id"], {"lines": list(lines)})
            self._reported()  # with what the scores earned
        return Said(lines)

    def _traded(self, inputs: BacktestInputs) -> BacktestResult:
        """Return the run, on the bars of ``backtest.execution_frame`` where it is finer than ``data.frame``."""
        frame = self.settings.backtest.execution_frame
        advance = self.workspace.reporter.progress(f"bars of {frame}", 1.0) if frame else lambda _: None
        done = [0.0]

        def tell(n: int, of: int) -> None:
            advance(n / of - done[0])
            done[0] = n / of

        return run_on_bars_of(frame, inputs, self.workspace.lake.root, tell)

    def grid(self, vary: Sequence[str], workers: int = 0, dask: str = "") -> Said:
        """Trade the same scores under every combination of settings and say what the best is worth.

        Parameters
        ----------
        vary : sequence of str
            Axes, ``section.key=value,value`` each.
        workers : int
            Worker processes; 0 = one a core.
        dask : str
            Address of a Dask scheduler; empty = worker processes on this machine.
        """
        axes = [parse_axis(text) for text in vary]
        grid_runs(axes, self.settings, settings_identity)  # a typing error is told before anything is loaded
        model = self._model()
        stamp, data_id = self._identity(model), self.data.collected.data_id

        def run_id_of(varied: Settings) -> str:
            return identity(data_id, varied, model.sha256, varied.model.seed).run_id

        runs = grid_runs(axes, self.settings, run_id_of)
        folder = self.paths.reports / "grid"
        with self.workspace.step("backtest grid"):
            inputs = self._backtest_inputs(model)
            advance = self.workspace.reporter.progress(f"{len(runs):,} runs", float(len(runs)))
            lake = self.workspace.lake.root
            result = run_grid(inputs, axes, runs, folder, n_workers=workers, dask=dask, lake=lake, advance=advance)
            name = key_of(stamp["run_id"], *(f"{a.key}={','.join(a.values)}" for a in axes))
            files = write_grid(result, stamp, folder / name)
        return Said(grid_lines(result, files))

    def compare(self, runs: Sequence[str] = ()) -> Said:
        """Put the reports of several backtests next to each other and say what the best is worth.

        Parameters
        ----------
        runs : sequence of str
            Run ids of this workspace, or report folders; empty = every report in the workspace.

        Raises
        ------
        UserError
            If there are fewer than two, or one of them is no report.
        """
        named = [Path(run) if Path(run).is_dir() else self.paths.reports / run for run in runs]
        folders = named or sorted(path.parent for path in self.paths.reports.glob(f"*/{EQUITY_FILE}"))
        if len(folders) < 2:  # noqa: PLR2004 - nothing to compare
            where = "named" if named else f"in {self.paths.reports}"
            raise UserError(
                f"{len(folders)} report {where}: a comparison needs two", "run `crypto-qlib backtest` with other settings"
            )
        return Said(comparison_lines(compare(folders)))

    def purged_paths(self, n_blocks: int, n_test: int) -> Said:
        """Train these settings on every choice of test blocks and say how the figures are spread over the paths.

        The report of the model these settings trained, where there is one, shows them too.
        """
        market = self.market()
        advance = self.workspace.reporter.progress(f"{self.settings.model.name}, {n_blocks} blocks", 1.0)
        said = self.shelf.paths(market, n_blocks, n_test, TradeRule.of(self.settings).cost, advance)
        if not (model_folder(self.paths.models, self._train_key()) / SUMS_FILE).is_file():
            return said
        return Said((*said.lines, f"model report: {self._reported()[1]}"))

    def paper(self) -> Said:
        """Let the live session trade ``live.paper_bars`` bars on the embedded exchange, or on OKX demo."""
        if not self.workspace.access.is_embedded:
            require_okx_keys(self.settings, self.workspace.secrets)
        model = self._traded_model()
        stamp = self._identity(model)
        with self.workspace.step("paper session"):
            result = self.workspace.access.run(lambda gateway: self._session(gateway, model, stamp))
        if not self.workspace.is_whole_run:
            self.workspace.access.close()
        where = self.paths.reports / stamp["run_id"] if self.workspace.access.is_embedded else self.paths.root
        figures = f"  every figure of the session, as of a backtest: {where / SESSION_FIGURES}"
        return Said((*paper_lines(result, self.workspace.access.market_label), figures))

    def _traded_model(self) -> TrainedModel:
        return self.shelf.trading(self._model, is_embedded=self.workspace.access.is_embedded)

    def session_gap(self, session_id: str, live: LiveSide, span: tuple[int | None, int | None]) -> tuple[Said, GapReport]:
        """Re-simulate a session over ``span`` (start, end; ``None`` = its own) and write what made the difference.

        The model is the one ``model.trades`` names now: a champion promoted since the session's start is another opinion.
        """
        model = self._traded_model()
        panel, instruments, tiers = self.data.panel(), *self.data.contracts()
        if self.workspace.access.is_embedded:
            panel, instruments, tiers = lived_market(panel, instruments, tiers, live, self.settings)
        side = partial(load_side, self.paths, self.workspace.lake, self.settings)
        inputs = GapInputs(
            session_id, live, panel, opinion(model, side), instruments, tiers, rules_from_settings(self.settings),
            execution_of(self.settings.backtest), self.settings.strategy.blacklist,
        )  # fmt: skip
        with self.workspace.step("gap"):
            report = gap_report(inputs, *span)
            page, _ = write_gap(report, self.paths.reports / "gap")
        return Said((*report.lines(), f"  page: {page}")), report

    # ------------------------------------------------------------ data at rest

    # --------------------------------------------------------------- internals

    def _feature_key(self) -> str:
        c, share = self.data.collected, self.settings.model.train_fraction
        side, members = side_identity(self.paths, self.workspace.lake, self.settings), digest_of(self.data.members)
        return key_of(self.data.clean_key(), c.start_ns, c.end_ns, self.settings.features, share, members, side)

    def _train_key(self) -> str:
        rule = asdict(TradeRule.of(self.settings)) if uses_trades(self.settings.model) else None
        return key_of(self._feature_key(), model_key(self.settings.model), rule)

    @cached_property
    def _frame(self) -> FeatureFrame:
        key = self._feature_key()
        with self.workspace.step("features") as skipped:
            if self.workspace.book.is_current("features", key, self.paths.features):
                skipped("unchanged")
                return load_feature_frame(self.paths.features)
            frame = built_features(self.paths, self.workspace.lake, self.settings, self.data.panel(), self.workspace.reporter)
            self.workspace.book.complete("features", key, {})
        return frame

    def _features(self) -> FeatureFrame:
        return self._frame

    def _labels(self) -> Labels:
        return make_labels(self.data.panel(), self.settings.model, TradeRule.of(self.settings))

    def _model(self) -> TrainedModel:
        return load_model(model_folder(self.paths.models, self._train_key()))

    def _scores(self, model: TrainedModel) -> ScorePanel:
        segment = {"test": "test", "valid+test": "", "all": ""}[self.settings.backtest.segment]
        return out_of_sample_scores(model, model_folder(self.paths.models, self._train_key()), self._features(), segment)

    def _performance(self, model: TrainedModel) -> tuple[ModelPerformance, tuple[list[str], list[float]]]:
        """Return the out-of-sample figures, and the RankIC of each bar by the time it became known."""
        folder = model_folder(self.paths.models, self._train_key())
        scores, labels = out_of_sample_scores(model, folder, self._features()), self._labels()
        return evaluate_model(scores, labels), rank_ic_series(scores, labels)

    def _refuse_funding_holes(self) -> None:
        """Say before the training, not after it, that funding is missing in the time the backtest will trade."""
        if self.workspace.access.knows_funding:
            panel = self.data.panel()
            split = split_bars(panel.n_bars, self.settings.model)
            traded = {"test": split.test, "valid+test": split.valid, "all": split.train}[self.settings.backtest.segment]
            refuse_funding_holes(panel, traded.start + 1, panel.n_bars)

    def _identity(self, model: TrainedModel) -> dict[str, Any]:
        return identity(self.data.collected.data_id, self.settings, model.sha256, self.settings.model.seed).stamp()

    def _backtest_inputs(self, model: TrainedModel) -> BacktestInputs:
        instruments, tiers = self.data.contracts()
        knows_funding = self.workspace.access.knows_funding
        if not knows_funding:
            self.workspace.reporter.say("no funding is known of this market: the result leaves it out")
        return leveraged_inputs(
            self.data.panel(), self._scores(model), instruments, tiers, self.settings, require_funding=knows_funding
        )

    async def _session(self, gateway: Gateway, model: TrainedModel, stamp: dict[str, Any]) -> PaperResult:
        instruments, tiers = self.data.contracts()
        ledger = session_ledger(self.settings, self.workspace.secrets, self.paths.reports / stamp["run_id"])
        session_id = f"{self.settings.exchange.mode}-paper"
        live = Paths(self.settings.store.root).live  # of the workspace, whatever the market: where every command looks
        side = partial(load_side, self.paths, self.workspace.lake, self.settings)
        inputs = SessionInputs(
            model, self.data.panel(), instruments, tiers, ledger, session_id, stamp, self.data.members, side, live,
            self.workspace.secrets, self.data.universe_keeper,
        )  # fmt: skip
        step = self.workspace.access.embedded().step if self.workspace.access.is_embedded else None
        return await trade_bars(gateway, self.settings, inputs, step, self._show_paper, self.workspace.access.live_stream)

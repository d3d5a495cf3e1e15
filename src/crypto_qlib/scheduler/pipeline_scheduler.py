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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from crypto_qlib.backtest.analysis_report import PAGE, summary_lines, write_report
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.grid import run_grid
from crypto_qlib.backtest.grid_report import grid_lines, write_grid
from crypto_qlib.backtest.grid_runs import grid_runs, parse_axis
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.run_backtest_leveraged import leveraged_inputs
from crypto_qlib.backtest.trials import EQUITY_FILE, compare, comparison_lines
from crypto_qlib.backtest.what_if import what_if
from crypto_qlib.core.clock import FRAME_NS, SystemClock, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.membership import Membership
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.data_collector.asset_selector import fresh_universe, rule_of, select_universe
from crypto_qlib.data_collector.cap_rankings import import_rankings
from crypto_qlib.data_collector.clean_data import clean
from crypto_qlib.data_collector.contract_archive import load_instruments, load_tiers
from crypto_qlib.data_collector.fetch_okx_data import UpdateReport, clock_skew, update_data
from crypto_qlib.data_collector.fetch_plan import wanted_span
from crypto_qlib.data_collector.lake_status import lake_status, status_lines
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_data_adapter import update_qlib_store
from crypto_qlib.data_collector.quality_report import write_quality_report
from crypto_qlib.data_collector.universe_history import UniverseSnapshot, all_snapshots, changes_lines, universe_snapshots
from crypto_qlib.data_collector.universe_rebuild import rebuild_history
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame, load_feature_frame
from crypto_qlib.feature_engineering.side_loading import load_side, side_identity
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
from crypto_qlib.scheduler.compile_ahead import CompileAhead
from crypto_qlib.scheduler.data_files import DataFiles
from crypto_qlib.scheduler.exchange_access import ExchangeAccess, market_folder
from crypto_qlib.scheduler.external_data import OFFLINE_LINE, external_lines, update_external, wants_external
from crypto_qlib.scheduler.feature_build import built_features
from crypto_qlib.scheduler.feature_study import FeatureStudy
from crypto_qlib.scheduler.model_shelf import Market, ModelShelf
from crypto_qlib.scheduler.paper_session import SessionInputs, trade_bars
from crypto_qlib.scheduler.pipeline_results import (
    Said,
    paper_lines,
    performance_lines,
    quality_lines,
    require_settlements,
    universe_lines,
    update_lines,
)
from crypto_qlib.scheduler.reporter import Reporter
from crypto_qlib.scheduler.steps import StepBook, key_of
from crypto_qlib.scheduler.universe_access import (
    backfill_universe,
    coin_ranking,
    digest_of,
    history_line,
    members_with_bars,
    universe_over_time,
)
from crypto_qlib.scheduler.watched_market import WatchedMarket
from crypto_qlib.settings.identity import code_identity, identity, settings_identity
from crypto_qlib.settings.load import require_okx_keys
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.lake_identity import data_identity
from crypto_qlib.store.paths import Paths, open_folder
from crypto_qlib.store.series_store import SeriesStore


@dataclass(frozen=True, slots=True)
class Collected:
    """What the last data update left in the lake.

    Parameters
    ----------
    now_ns : int
        The exchange's time of the update.
    start_ns, end_ns : int
        Span asked for.
    symbols : tuple of str
        Symbols with candles.
    data_id : str
        Identity of the stored data.
    """

    now_ns: int
    start_ns: int
    end_ns: int
    symbols: tuple[str, ...]
    data_id: str


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
        self.settings = settings
        self._secrets = secrets
        self._reporter = reporter
        self._show_paper = show_paper
        self.paths = Paths(Paths(settings.store.root).ensure().root / market_folder(settings)).ensure()
        place = settings.store.lake
        self._lake = Lake(open_folder(place) / market_folder(settings) if place else self.paths.lake)
        self._book = StepBook(self.paths.steps)
        self._access = ExchangeAccess(settings, secrets)
        self._frame_ns = FRAME_NS[settings.data.frame]
        self._is_whole_run = False

    # ------------------------------------------------------------------ steps

    def run(self) -> Said:
        """Do all steps in order and return the summary of the whole."""
        began = time.perf_counter()
        self._is_whole_run = True
        parts: list[str] = [f"market: {self._access.market_label}"]
        compiled = self._book.is_current("compiled", code_identity())
        try:
            with CompileAhead(is_wanted=not compiled) as ahead:
                for step in (self.universe, self.data_update, self.data_check):
                    parts += step().lines
                if ahead.wait():
                    self._book.complete("compiled", code_identity(), {})
            for step in (self.features, self.train, self.evaluate, self.backtest):
                parts += step().lines
            if self.settings.live.paper_bars and self.settings.exchange.mode != "live":
                parts += self.paper().lines
        finally:
            self._access.close()
        parts.append(f"done in {time.perf_counter() - began:.0f} s")
        return Said(tuple(parts))

    def universe(self) -> Said:
        """Choose the coins, unless the stored choice is still fresh."""
        with self._step("universe"):
            snapshot = self._access.run(self._choose_universe)
            self.__dict__.pop("_members", None)
            past = history_line(self._members, snapshot.as_of_ns, self.settings)
        return Said((*universe_lines(snapshot), *past))

    def universe_import(self, path: Path) -> Said:
        """Take a table of past market caps into the lake and choose the universe again for every time it speaks of."""
        with self._step("import market caps"), self._lake.writing():
            source, added = import_rankings(self._lake, path)
            snapshots = rebuild_history(self._lake, self.settings.universe, self.settings.data.frame)
        self.__dict__.pop("_members", None)
        lines = [f"{path.name}: {added:,} rankings added as {source}; the universe of {len(snapshots):,} past times is known"]
        if not snapshots:
            lines.append("  no contract is known yet: run `crypto-qlib universe` once, then the past is chosen again")
        return Said(tuple(lines))

    def universe_history(self) -> Said:
        """Say who joined and who left the universe, and when."""
        return Said(changes_lines(all_snapshots(self._lake, rule_of(self.settings.universe))))

    def data_update(self, symbols: tuple[str, ...] = ()) -> Said:
        """Fetch what the lake lacks, of the universe or (for collecting only) of ``symbols``."""
        with self._step("data update"):
            report = self._access.run(lambda gateway: self._update_data(gateway, symbols))
            if symbols:
                return Said(update_lines(report))
            kept = members_with_bars(self._lake, self.settings.data.frame, report, self._members)
            data_id = data_identity(self._lake, symbols=kept)
            found = {
                "now_ns": report.now_ns,
                "start_ns": report.span[0],
                "end_ns": report.span[1],
                "symbols": list(kept),
                "data_id": data_id,
            }
            self._book.complete("data", data_id, found)
            self.__dict__.pop("collected", None)
        outside = self.data_external().lines if wants_external(self.settings) else ()
        return Said((*update_lines(report), *outside))

    def data_external(self) -> Said:
        """Ask the external sources what is new; a source that fails is a warning."""
        if not wants_external(self.settings):
            return Said((OFFLINE_LINE,))
        with self._step("external data"):
            coins = [member.base for member in self._universe().members]
            advance = self._reporter.progress("sources", 1.0)
            return Said(external_lines(update_external(self.settings, self._secrets, self.paths, coins, advance)))

    def data_check(self) -> Said:
        """Clean the bars and write the quality report.

        Raises
        ------
        UserError
            If a gap is longer than ``data.max_gap_bars``, or a symbol has no funding settlement at all.
        """
        with self._step("data check") as skipped:
            folder = self.paths.reports / "quality"
            page = folder / "quality.html"
            key = self._clean_key()
            record = self._book.record("clean")
            if record is not None and self._book.is_current("clean", key, page):
                skipped("unchanged")
                return Said(tuple(record.output["lines"]))
            report = clean(self._lake, self.collected.symbols, self.settings.data)
            written = write_quality_report(report, folder, self._access.market_label, self.collected.data_id)
            lines = quality_lines(report, str(written))
            report.raise_if_unfit()
            if self._access.knows_funding:
                require_settlements(report)
            self._book.complete("clean", key, {"lines": list(lines)})
        return Said(lines)

    def features(self) -> Said:
        """Bring Qlib's store up to date and build the features of every bar."""
        with self._step("qlib store") as skipped:
            key = key_of(self._clean_key(), SeriesStore(self.paths.series).identity())
            if self._book.is_current("qlib", key, self.paths.qlib):
                skipped("unchanged")
            else:
                update_qlib_store(self._lake, self.paths, self.collected.symbols, self.settings.data.frame)
                self._book.complete("qlib", key, {})
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
        with self._step("train") as skipped:
            if self._book.is_current("train", model_id, folder / SUMS_FILE):
                skipped("unchanged")
                model = load_model(folder)
            else:
                frame, labels = self._features(), self._labels()
                advance = self._reporter.progress(f"{self.settings.model.name}, {frame.n_rows:,} rows", 1.0)
                model = train_chosen(
                    self.paths.features, frame, labels, self.settings.model, folder,
                    identity=model_id, rule=TradeRule.of(self.settings), progress=advance,
                )  # fmt: skip
                self._book.complete("train", model_id, {})
        spans = ", ".join(f"{name} {iso(a)[:10]} to {iso(b)[:10]}" for name, (a, b) in model.segment_ts.items())
        return Said((f"model {model_id}: {self.settings.model.name}, {len(model.feature_names)} features; {spans}",))

    def evaluate(self) -> Said:
        """Measure the model out of sample; write ``model_performance_report.json`` and ``model_report.html`` beside it."""
        model = self._model()
        folder = model_folder(self.paths.models, self._train_key())
        with self._step("evaluate"):
            scores = out_of_sample_scores(model, folder, self._features())
            stamp = self._identity(model)
            words = {"title": f"{model.settings.name} on {model.settings.label}", "market": self._access.market_label}
            performance, page = report_model(model, scores, self._panel(), self._labels(), folder, stamp, words)
            ruled = self.shelf.consider(self._train_key(), performance, self.market())
        return Said((*performance_lines(performance), f"model report: {page}", *ruled.lines))

    @property
    def shelf(self) -> ModelShelf:
        """Return the workspace's models."""
        return ModelShelf(self.paths, self.settings.model)

    def market(self) -> Market:
        """Return the features and labels models are judged on."""
        rule = TradeRule.of(self.settings)
        return Market(self._features(), lambda chosen: make_labels(self._panel(), chosen, rule))

    def backtest(self) -> Said:
        """Trade the scores and write the report, unless this very report exists."""
        model = self._model()
        stamp = self._identity(model)
        folder = self.paths.reports / stamp["run_id"]
        with self._step("backtest and report") as skipped:
            record = self._book.record("backtest")
            if record is not None and self._book.is_current("backtest", stamp["run_id"], folder / PAGE):
                skipped("unchanged")
                return Said(tuple(record.output["lines"]))
            inputs = self._backtest_inputs(model)
            result = run_backtest(inputs)
            performance, rolling = self._performance(model)
            study = what_if(inputs, result)
            files = write_report(result, inputs.panel, self.settings, stamp, performance.to_json(), folder, rolling, study)
            lines = tuple(summary_lines(files))
            self._book.complete("backtest", stamp["run_id"], {"lines": list(lines)})
        return Said(lines)

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
        stamp, data_id = self._identity(model), self.collected.data_id

        def run_id_of(varied: Settings) -> str:
            return identity(data_id, varied, model.sha256, varied.model.seed).run_id

        runs = grid_runs(axes, self.settings, run_id_of)
        folder = self.paths.reports / "grid"
        with self._step("backtest grid"):
            inputs = self._backtest_inputs(model)
            advance = self._reporter.progress(f"{len(runs):,} runs", float(len(runs)))
            result = run_grid(inputs, axes, runs, folder, n_workers=workers, dask=dask, advance=advance)
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

    def paper(self) -> Said:
        """Let the live session trade ``live.paper_bars`` bars on the embedded exchange, or on OKX demo."""
        if not self._access.is_embedded:
            require_okx_keys(self.settings, self._secrets)
        model = self._model()
        stamp = self._identity(model)
        with self._step("paper session"):
            result = self._access.run(lambda gateway: self._session(gateway, model, stamp))
        if not self._is_whole_run:
            self._access.close()
        where = self.paths.reports / stamp["run_id"] if self._access.is_embedded else self.paths.root
        figures = f"  every figure of the session, as of a backtest: {where / SESSION_FIGURES}"
        return Said((*paper_lines(result, self._access.market_label), figures))

    # ------------------------------------------------------------ data at rest

    def data_watch(self, symbols: tuple[str, ...] = (), rounds: int | None = None, *, stream: bool = True) -> Said:
        """Collect at every bar close, and order flow from the websockets, until stopped or for ``rounds`` closes."""
        log = self.paths.root / "logs" / "data.jsonl"
        with self._step("data watch"):

            async def chosen(gateway: Gateway) -> tuple[str, ...]:
                return symbols or (await self._choose_universe(gateway)).symbols

            market = WatchedMarket(self._access, self._lake, self.settings, log, self._reporter)
            good = self._access.run(lambda gateway: market.watch(gateway, chosen, rounds, with_stream=stream))
        self._access.close()
        return Said((f"{good} rounds brought data; log: {log}",))

    def data_status(self, symbols: tuple[str, ...] = ()) -> Said:
        """Say what the lake holds, series by series."""
        record = self._book.record("data")
        asked_ns = int(record.output["now_ns"]) if record is not None else 0
        now_ns = asked_ns if self._access.is_embedded else SystemClock().now_ns()
        found = lake_status(self._lake, now_ns, symbols or None)
        if not found:
            raise UserError(f"no data in {self.paths.root} yet", "run `crypto-qlib run`, or `crypto-qlib data update`")
        head = f"{self._lake.root}: {len({s.series.symbol for s in found})} symbols from {self._access.market_label}"
        return Said((f"{head}, as of {iso(now_ns)}", *status_lines(found)))

    def data_repair(self, *, again: bool = False) -> Said:
        """Remove files that cannot be read, then fetch what is missing; ``again`` forgets where the exchange had nothing."""
        with self._step("data repair"):
            removed = self._lake.delete_damaged()
            forgotten = self._lake.forget_asked() if again else 0
        said = self.data_update()
        lines = [f"removed {len(removed)} damaged files", *(f"  {path}" for path in removed)]
        return Said((*lines, *([f"asked again in {forgotten} series"] if again else []), *said.lines))

    @property
    def files(self) -> DataFiles:
        """Return what can be done with the files of lake and external series."""
        store = SeriesStore(self.paths.series)
        simulated = self._access.has_simulated_prices
        return DataFiles(self._lake, store, self._reporter, self.settings, self.paths.qlib, is_simulated=simulated)

    @cached_property
    def collected(self) -> Collected:
        """Return what the last data update left.

        Raises
        ------
        UserError
            If no data has been collected yet.
        """
        record = self._book.record("data")
        if record is None:
            raise UserError(f"no data in {self.paths.root} yet", "run `crypto-qlib run`, or `crypto-qlib data update`")
        found = record.output
        return Collected(
            int(found["now_ns"]), int(found["start_ns"]), int(found["end_ns"]), tuple(found["symbols"]), str(found["data_id"])
        )

    # --------------------------------------------------------------- internals

    @contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show a step; the function yielded adds a remark to it. A step run alone stops the exchange it started."""
        with self._reporter.step(name):
            yield lambda remark: self._reporter.say(f"{name}: {remark}")
        if not self._is_whole_run and name in ("universe", "data update"):
            self._access.close()

    async def _choose_universe(self, gateway: Gateway) -> UniverseSnapshot:
        now_ns = await gateway.server_time_ns()
        known = fresh_universe(self._lake, self.settings.universe, now_ns)
        if known is not None:
            return known
        ranking = coin_ranking(self.settings, self._secrets, self._access)
        snapshot = await select_universe(gateway, ranking, self._lake, self.settings.universe, now_ns)
        if self.settings.universe.point_in_time:
            for line in await backfill_universe(gateway, ranking, self._lake, self.settings, now_ns, self._reporter):
                self._reporter.say(line)
        return snapshot

    async def _update_data(self, gateway: Gateway, symbols: tuple[str, ...] = ()) -> UpdateReport:
        """Fetch everybody who belonged to the universe at some time; prices that come in may show that others did."""
        if not self._access.is_embedded and (skew := await clock_skew(gateway, SystemClock())):
            self._reporter.say(skew)
        now_ns = await gateway.server_time_ns()
        if symbols:
            advance = self._reporter.progress("candles, marks, funding", len(symbols))
            return await update_data(gateway, self._lake, symbols, self.settings.data, now_ns, advance, frozenset(symbols))
        start_ns = wanted_span(self.settings.data, now_ns)[0]
        required = frozenset(f"{base}USDT" for base in self.settings.universe.include)
        fetched: tuple[str, ...] = ()
        while True:
            ever = (*self._universe().symbols, *self._members.ever(start_ns, now_ns))
            symbols = tuple(dict.fromkeys((*fetched, *ever)))
            advance = self._reporter.progress("candles, marks, funding", len(symbols))
            report = await update_data(gateway, self._lake, symbols, self.settings.data, now_ns, advance, required)
            if not self.settings.universe.point_in_time:
                return report
            fetched = symbols
            rebuild_history(self._lake, self.settings.universe, self.settings.data.frame)
            self.__dict__.pop("_members", None)
            if set(self._members.ever(start_ns, now_ns)) <= set(fetched):
                return report

    def _universe(self) -> UniverseSnapshot:
        kept = universe_snapshots(self._lake)
        if not kept:
            raise UserError("no universe has been chosen yet", "run `crypto-qlib universe`")
        return kept[-1]

    def _panel(self) -> MarketPanel:
        c = self.collected
        return load_panel(self._lake, c.symbols, self.settings.data.frame, c.start_ns, c.end_ns).with_members(self._members)

    @cached_property
    def _members(self) -> Membership:
        """Return who belongs to the universe when; everybody chosen last, always, where the past is not asked for."""
        return universe_over_time(self._lake, self._universe(), self.settings.universe)

    def _contracts(self) -> tuple[dict[str, Instrument], dict[str, TierHistory]]:
        c = self.collected
        return load_instruments(self._lake, c.symbols, c.now_ns), load_tiers(self._lake, c.symbols)

    def _clean_key(self) -> str:
        return key_of(self.collected.data_id, self.collected.symbols, self.settings.data, code_identity())

    def _feature_key(self) -> str:
        c, share = self.collected, self.settings.model.train_fraction
        side, members = side_identity(self.paths, self.settings), digest_of(self._members)
        return key_of(self._clean_key(), c.start_ns, c.end_ns, self.settings.features, share, members, side)

    def _train_key(self) -> str:
        rule = asdict(TradeRule.of(self.settings)) if uses_trades(self.settings.model) else None
        return key_of(self._feature_key(), model_key(self.settings.model), rule)

    @cached_property
    def _frame(self) -> FeatureFrame:
        key = self._feature_key()
        with self._step("features") as skipped:
            if self._book.is_current("features", key, self.paths.features):
                skipped("unchanged")
                return load_feature_frame(self.paths.features)
            frame = built_features(self.paths, self.settings, self._panel(), self._reporter)
            self._book.complete("features", key, {})
        return frame

    def _features(self) -> FeatureFrame:
        return self._frame

    def _labels(self) -> Labels:
        return make_labels(self._panel(), self.settings.model, TradeRule.of(self.settings))

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

    def _identity(self, model: TrainedModel) -> dict[str, Any]:
        return identity(self.collected.data_id, self.settings, model.sha256, self.settings.model.seed).stamp()

    def _backtest_inputs(self, model: TrainedModel) -> BacktestInputs:
        instruments, tiers = self._contracts()
        knows_funding = self._access.knows_funding
        if not knows_funding:
            self._reporter.say("no funding is known of this market: the result leaves it out")
        return leveraged_inputs(
            self._panel(), self._scores(model), instruments, tiers, self.settings, require_funding=knows_funding
        )

    async def _session(self, gateway: Gateway, model: TrainedModel, stamp: dict[str, Any]) -> PaperResult:
        instruments, tiers = self._contracts()
        ledger = self._session_ledger(stamp["run_id"])
        session_id = f"{self.settings.exchange.mode}-paper"
        side = partial(load_side, self.paths, self.settings, self.collected.symbols)
        inputs = SessionInputs(
            model, self._panel(), instruments, tiers, ledger, session_id, stamp, self._members, side, self.paths.live
        )
        step = self._access.embedded().step if self._access.is_embedded else None
        return await trade_bars(gateway, self.settings, inputs, step, self._show_paper)

    def _session_ledger(self, run_id: str) -> Path:
        """Return the ledger's file: one for the account, but of the embedded exchange one for each run."""
        if not self._access.is_embedded:
            return self.paths.ledger
        return self.paths.reports / run_id / "paper_ledger.sqlite"

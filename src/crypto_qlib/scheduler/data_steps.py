"""The steps that collect: the universe, the lake, the external series, the quality report; and what is read from them.

Every other step asks here for the panel, the members and the contracts of what was collected last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from crypto_qlib.core.clock import SystemClock, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.membership import Membership
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.data_collector.asset_selector import fresh_universe, rule_of, select_universe
from crypto_qlib.data_collector.cap_rankings import import_rankings
from crypto_qlib.data_collector.clean_data import clean
from crypto_qlib.data_collector.contract_archive import load_instruments, load_tiers
from crypto_qlib.data_collector.fetch_okx_data import UpdateReport, clock_skew, update_data
from crypto_qlib.data_collector.fetch_plan import wanted_span
from crypto_qlib.data_collector.hot_panel import HotPanel
from crypto_qlib.data_collector.lake_status import lake_status, status_lines
from crypto_qlib.data_collector.quality_report import write_quality_report
from crypto_qlib.data_collector.universe_history import UniverseSnapshot, all_snapshots, changes_lines, universe_snapshots
from crypto_qlib.data_collector.universe_rebuild import rebuild_history
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.scheduler.data_files import DataFiles
from crypto_qlib.scheduler.external_data import (
    OFFLINE_LINE,
    SIMULATED_LINE,
    World,
    external_lines,
    real_world,
    update_external,
    wants_external,
)
from crypto_qlib.scheduler.pipeline_results import (
    Said,
    quality_lines,
    require_settlements,
    universe_lines,
    update_lines,
)
from crypto_qlib.scheduler.steps import key_of
from crypto_qlib.scheduler.universe_access import (
    backfill_universe,
    coin_ranking,
    history_line,
    members_with_bars,
    universe_over_time,
)
from crypto_qlib.scheduler.universe_keeper import UniverseKeeper
from crypto_qlib.scheduler.watched_market import WatchedMarket
from crypto_qlib.scheduler.workspace import Workspace
from crypto_qlib.settings.identity import code_identity
from crypto_qlib.store.lake_identity import data_identity
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


class DataSteps:
    """Collect and check the data of one workspace, and hand them out.

    Parameters
    ----------
    space : Workspace
        Settings, folders, lake, exchange.
    """

    def __init__(self, space: Workspace) -> None:
        self._settings, self._secrets, self._reporter = space.settings, space.secrets, space.reporter
        self._paths, self._lake, self._book, self._access = space.paths, space.lake, space.book, space.access
        self._step, self._one_exchange = space.step, space.one_exchange

    def universe(self) -> Said:
        """Choose the coins, unless the stored choice is still fresh."""
        with self._step("universe"):
            snapshot = self._access.run(self._choose_universe)
            self.__dict__.pop("members", None)
            past = history_line(self.members, snapshot.as_of_ns, self._settings)
        return Said((*universe_lines(snapshot), *past))

    def universe_keeper(self, gateway: Gateway) -> UniverseKeeper:
        """Return what keeps the universe of a running session current, by the same rule and from the same source."""
        ranking = coin_ranking(self._settings, self._secrets, self._access)
        keeps = not self._access.is_embedded
        return UniverseKeeper(
            gateway, ranking, self._lake, self._settings.universe, self.members, self.newest_universe(), keeps=keeps
        )

    def universe_import(self, path: Path) -> Said:
        """Take a table of past market caps into the lake and choose the universe again for every time it speaks of."""
        with self._step("import market caps"), self._lake.writing():
            source, added = import_rankings(self._lake, path)
            snapshots = rebuild_history(self._lake, self._settings.universe, self._settings.data.frame)
        self.__dict__.pop("members", None)
        lines = [f"{path.name}: {added:,} rankings added as {source}; the universe of {len(snapshots):,} past times is known"]
        if not snapshots:
            lines.append("  no contract is known yet: run `crypto-qlib universe` once, then the past is chosen again")
        return Said(tuple(lines))

    def universe_history(self) -> Said:
        """Say who joined and who left the universe, and when."""
        return Said(changes_lines(all_snapshots(self._lake, rule_of(self._settings.universe))))

    def update(self, symbols: tuple[str, ...] = ()) -> Said:
        """Fetch what the lake lacks, of the universe or (for collecting only) of ``symbols``, and the external series.

        The universe is chosen first where none ever was.
        """
        with self._one_exchange():
            first = () if symbols or universe_snapshots(self._lake) else self.universe().lines
            said = self._update(symbols)
            outside = self.external().lines if wants_external(self._settings) and not symbols else ()
        return Said((*first, *said.lines, *outside))

    def _update(self, symbols: tuple[str, ...]) -> Said:
        with self._step("data update"):
            report = self._access.run(lambda gateway: self._update_data(gateway, symbols))
            if symbols:
                return Said(update_lines(report))
            kept = members_with_bars(self._lake, self._settings.data.frame, report, self.members)
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
        return Said(update_lines(report))

    def external(self) -> Said:
        """Ask the external sources what is new; a source that fails is a warning."""
        if not wants_external(self._settings):
            return Said((OFFLINE_LINE,))
        with self._step("external data"):
            coins = [member.base for member in self.newest_universe().members]
            advance = self._reporter.progress("sources", 1.0)
            is_simulated = self._access.has_simulated_prices and self._settings.external.when != "always"
            world = self._access.run(self._simulated_world) if is_simulated else real_world()
            updates = update_external(self._settings, self._secrets, self._paths, coins, world, advance)
            return Said(((SIMULATED_LINE,) if is_simulated else ()) + external_lines(updates))

    async def _simulated_world(self, gateway: Gateway) -> World:
        return World(self._access.base_url, await gateway.server_time_ns())

    def check(self) -> Said:
        """Clean the bars and write the quality report.

        Raises
        ------
        UserError
            If a gap is longer than ``data.max_gap_bars``, or a symbol has no funding settlement at all.
        """
        with self._step("data check") as skipped:
            folder = self._paths.reports / "quality"
            page = folder / "quality.html"
            key = self.clean_key()
            record = self._book.record("clean")
            if record is not None and self._book.is_current("clean", key, page):
                skipped("unchanged")
                return Said(tuple(record.output["lines"]))
            report = clean(self._lake, self.collected.symbols, self._settings.data)
            written = write_quality_report(report, folder, self._access.market_label, self.collected.data_id)
            lines = quality_lines(report, str(written))
            report.raise_if_unfit()
            if self._access.knows_funding:
                require_settlements(report)
            self._book.complete("clean", key, {"lines": list(lines)})
        return Said(lines)

    def watch(self, symbols: tuple[str, ...] = (), rounds: int | None = None, *, stream: bool = True) -> Said:
        """Collect at every bar close, and order flow from the websockets, until stopped or for ``rounds`` closes."""
        log = self._paths.root / "logs" / "data.jsonl"
        with self._step("data watch"):

            async def chosen(gateway: Gateway) -> tuple[str, ...]:
                return symbols or (await self._choose_universe(gateway)).symbols

            market = WatchedMarket(self._access, self._lake, self._settings, self._paths, log, self._reporter)
            good = self._access.run(lambda gateway: market.watch(gateway, chosen, rounds, with_stream=stream))
        self._access.close()
        return Said((f"{good} rounds brought data; log: {log}",))

    def status(self, symbols: tuple[str, ...] = ()) -> Said:
        """Say what the lake holds, series by series."""
        record = self._book.record("data")
        asked_ns = int(record.output["now_ns"]) if record is not None else 0
        now_ns = asked_ns if self._access.is_embedded else SystemClock().now_ns()
        found = lake_status(self._lake, now_ns, symbols or None)
        if not found:
            raise UserError(f"no data in {self._paths.root} yet", "run `crypto-qlib run`, or `crypto-qlib data update`")
        head = f"{self._lake.root}: {len({s.series.symbol for s in found})} symbols from {self._access.market_label}"
        return Said((f"{head}, as of {iso(now_ns)}", *status_lines(found)))

    def repair(self, *, again: bool = False) -> Said:
        """Remove files that cannot be read, then fetch what is missing; ``again`` forgets where the exchange had nothing."""
        with self._step("data repair"):
            removed = self._lake.delete_damaged()
            forgotten = self._lake.forget_asked() if again else 0
        said = self.update()
        lines = [f"removed {len(removed)} damaged files", *(f"  {path}" for path in removed)]
        return Said((*lines, *([f"asked again in {forgotten} series"] if again else []), *said.lines))

    @property
    def files(self) -> DataFiles:
        """Return what can be done with the files of lake and external series."""
        store = SeriesStore(self._paths.series)
        simulated = self._access.has_simulated_prices
        return DataFiles(self._lake, store, self._reporter, self._settings, self._paths, is_simulated=simulated)

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
            raise UserError(f"no data in {self._paths.root} yet", "run `crypto-qlib run`, or `crypto-qlib data update`")
        found = record.output
        return Collected(
            int(found["now_ns"]), int(found["start_ns"]), int(found["end_ns"]), tuple(found["symbols"]), str(found["data_id"])
        )

    async def _choose_universe(self, gateway: Gateway) -> UniverseSnapshot:
        now_ns = await gateway.server_time_ns()
        known = fresh_universe(self._lake, self._settings.universe, now_ns)
        if known is not None:
            return known
        ranking = coin_ranking(self._settings, self._secrets, self._access)
        snapshot = await select_universe(gateway, ranking, self._lake, self._settings.universe, now_ns)
        if self._settings.universe.point_in_time:
            for line in await backfill_universe(gateway, ranking, self._lake, self._settings, now_ns, self._reporter):
                self._reporter.say(line)
        return snapshot

    async def _update_data(self, gateway: Gateway, symbols: tuple[str, ...] = ()) -> UpdateReport:
        """Fetch everybody who belonged to the universe at some time; prices that come in may show that others did."""
        if not self._access.is_embedded and (skew := await clock_skew(gateway, SystemClock())):
            self._reporter.say(skew)
        now_ns = await gateway.server_time_ns()
        if symbols:
            advance = self._reporter.progress("candles, marks, funding", len(symbols))
            return await update_data(gateway, self._lake, symbols, self._settings.data, now_ns, advance, frozenset(symbols))
        start_ns = wanted_span(self._settings.data, now_ns)[0]
        required = frozenset(f"{base}USDT" for base in self._settings.universe.include)
        fetched: tuple[str, ...] = ()
        while True:
            ever = (*self.newest_universe().symbols, *self.members.ever(start_ns, now_ns))
            symbols = tuple(dict.fromkeys((*fetched, *ever)))
            advance = self._reporter.progress("candles, marks, funding", len(symbols))
            report = await update_data(gateway, self._lake, symbols, self._settings.data, now_ns, advance, required)
            if not self._settings.universe.point_in_time:
                return report
            fetched = symbols
            rebuild_history(self._lake, self._settings.universe, self._settings.data.frame)
            self.__dict__.pop("members", None)
            if set(self.members.ever(start_ns, now_ns)) <= set(fetched):
                return report

    def newest_universe(self) -> UniverseSnapshot:
        """Return the universe chosen last.

        Raises
        ------
        UserError
            If none has been chosen yet.
        """
        kept = universe_snapshots(self._lake)
        if not kept:
            raise UserError("no universe has been chosen yet", "run `crypto-qlib universe`")
        return kept[-1]

    def panel(self) -> MarketPanel:
        """Return the cleaned bars of the span collected, with the mask of who belonged to the universe at each close."""
        c = self.collected
        return self.hot.serve(c.symbols, c.start_ns, c.end_ns).with_members(self.members)

    @property
    def hot(self) -> HotPanel:
        """Return the cleaned bars as mapped memory."""
        frame = self._settings.data.frame
        return HotPanel(self._lake, self._paths.panels / frame, frame)

    def is_hot(self) -> bool:
        """Return whether :meth:`panel` comes from mapped memory."""
        c = self.collected
        return self.hot.is_current(c.symbols, c.start_ns, c.end_ns)

    def renew_hot(self, write_qlib: Callable[[MarketPanel], object]) -> int:
        """Bring mapped panel and Qlib's store in line with the lake, see :meth:`HotPanel.renew`."""
        c, members = self.collected, self.members
        return self.hot.renew(
            c.symbols, c.start_ns, c.end_ns, self._paths.qlib, lambda panel: write_qlib(panel.with_members(members))
        )

    @cached_property
    def members(self) -> Membership:
        """Return who belongs to the universe when; everybody chosen last, always, where the past is not asked for."""
        return universe_over_time(self._lake, self.newest_universe(), self._settings.universe)

    def contracts(self) -> tuple[dict[str, Instrument], dict[str, TierHistory]]:
        """Return the contracts as listed at the last update, and their position tiers over time."""
        c = self.collected
        return load_instruments(self._lake, c.symbols, c.now_ns), load_tiers(self._lake, c.symbols)

    def clean_key(self) -> str:
        """Return the key of the cleaned bars: what was collected, of whom, by which rules and code."""
        return key_of(self.collected.data_id, self.collected.symbols, self._settings.data, code_identity())

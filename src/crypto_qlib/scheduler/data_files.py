"""What a person does with the files of a workspace: verify and compact the lake, bring history in, take it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crypto_qlib.core.clock import SystemClock
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.history_files import files_below, read_file
from crypto_qlib.data_collector.hot_panel import HotPanel
from crypto_qlib.data_collector.hot_store import hot_bins_that_differ
from crypto_qlib.data_collector.import_export import Format, export_history, export_series, import_files
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_store import MARKET, bins_that_differ
from crypto_qlib.data_collector.series_files import is_series_file
from crypto_qlib.scheduler.pipeline_results import Said
from crypto_qlib.scheduler.reporter import Reporter
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.lake import EVENT, Kind, Lake
from crypto_qlib.store.lake_identity import changed_behind_our_back, checksums
from crypto_qlib.store.panel_store import PanelStore
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import SeriesStore

EXTERNAL = "series"
"""The kind that stands for all external series."""
_BRING_UP = "run `crypto-qlib features build` to bring it up to date"


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of one workspace.

    Parameters
    ----------
    lake : Lake
        History of swaps.
    series : SeriesStore
        External series.
    reporter : Reporter
        Shows what is going on.
    settings : Settings
        All sections.
    paths : Paths
        Where Qlib's store and the hot store lie.
    is_simulated : bool
        Whether the workspace's market invents its prices.
    """

    lake: Lake
    series: SeriesStore
    reporter: Reporter
    settings: Settings
    paths: Paths
    is_simulated: bool

    def verify(self) -> Said:
        """Read every file of the lake.

        Raises
        ------
        UserError
            If one is damaged, or changed behind our back.
        """
        with self.reporter.step("data verify"):
            damaged, changed = self.lake.damaged(), changed_behind_our_back(self.lake)
            said = f"{len(checksums(self.lake)):,} files read, {len(damaged)} damaged, {len(changed)} changed by the disk"
        if damaged or changed:
            raise UserError(f"{said}, such as {(*damaged, *changed)[0]}", "run `crypto-qlib data repair`")
        return Said((f"lake: {said}", *self._verify_qlib()))

    def _verify_qlib(self) -> tuple[str, ...]:
        """Compare Qlib's store, if there is one, with the cleaned bars of the lake it lists, bit by bit."""
        frame = self.settings.data.frame
        root = self.paths.qlib
        listed = root / "instruments" / f"{MARKET}.txt"
        if not listed.is_file():
            return ()
        names = [line.partition("\t")[0] for line in listed.read_text().splitlines()]
        clean = set(self.lake.symbols(Kind.CLEAN, frame))
        if not names or not set(names) <= clean:
            return (f"Qlib store: it lists symbols the lake has no cleaned {frame} bars of; {_BRING_UP}",)
        panel = load_panel(self.lake, names, frame)
        hot = HotPanel(self.lake, self.paths.panels / frame, frame)
        appended = hot.appended_rows(panel)
        bad = bins_that_differ(root, panel) if appended is None else hot_bins_that_differ(PanelStore.open(hot.folder), root)
        if bad:
            return (f"Qlib store: {len(bad)} files are not what the lake says, such as {bad[0]}; {_BRING_UP}",)
        more = f", and {appended:,} newer ones as collected" if appended else ""
        return (f"Qlib store: equal to the lake's cleaned {frame} bars, {len(names)} symbols{more}",)

    def compact(self) -> Said:
        """Merge what was appended into the month files, and write files of older schema versions anew."""
        with self.reporter.step("data compact"), self.lake.writing():
            months, old = self.lake.compact(), self.lake.migrate()
        return Said((f"lake: parts of {months} month files merged, {old} files of an older schema version written anew",))

    def bring_in(self, place: Path, frame: str = "", kind: str = "") -> Said:
        """Import a file or a folder.

        Raises
        ------
        UserError
            If a file cannot be understood, or holds prices for a market that makes its own.
        """
        if self.is_simulated and not all(is_series_file(read_file(path)) for path in files_below(place)):
            raise UserError(
                "the simulated market makes its own prices: imported ones would never be traded",
                "replay the file (exchange.market=replay, exchange.replay_path=FILE), or set exchange.mode=demo",
            )
        with self.reporter.step("data import"):
            advance = self.reporter.progress("files", 1.0)
            wanted = Kind(kind) if kind else None
            done = import_files(place, self.lake, self.series, SystemClock().now_ns(), frame, wanted, advance)
        lines: list[str] = []
        for one in done:
            lines.append(f"{one.path}: {one.what}: {one.added:,} new rows, {one.corrected:,} corrected")
            lines += [f"  {note}" for note in one.notes]
        return Said(tuple(lines))

    def take_out(
        self,
        folder: Path,
        kind: str,
        frame: str,
        file_format: Format,
        symbols: Sequence[str],
        layout: Literal["table", "freqtrade"],
    ) -> Said:
        """Export history of one kind and frame, or all external series.

        Raises
        ------
        UserError
            If there is nothing to export.
        """
        with self.reporter.step("data export"):
            if kind == EXTERNAL:
                return Said((str(export_series(self.series, folder, file_format)),))
            which = Kind(kind)
            at = EVENT if which is Kind.FUNDING else frame or self.settings.data.frame
            files = export_history(self.lake, folder, (which, at), file_format, symbols, layout=layout)
        return Said(tuple(str(path) for path in files))

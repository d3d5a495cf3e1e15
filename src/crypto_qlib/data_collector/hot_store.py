"""The hot store: a bar is durable once, and at once visible to features, engine, live session and Qlib.

::

    bar ──> log (one write, one fsync) ──> panel (mapped memory) ·····> Qlib's bins, calendar, instruments, now and then

1. A bar, or a correction of one, is a log record: its row and every field of every symbol. When :meth:`HotStore.append`
   returns, it is on disk.
2. The bar is then written into the panel, where readers of any process see it. So does Qlib: its providers
   (:mod:`.qlib_hot`) take the bars its files lack from the panel.
3. Qlib's files follow in one go: every 256 bars, at the end of each UTC day, when a bar is corrected, at the close. A value's
   place follows from its bar alone, so doing it twice changes nothing.
4. At the next opening whatever is in the log is put to its place in the panel again, and Qlib's files are checked against the
   panel and mended: a kill anywhere, or a power cut, ends in the same bytes as if it had not been. When the log has grown,
   everything is synced and the log is cleared.

The lake stays the archive; :func:`build_hot_store` makes the hot store from it, or brings it up to date.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, FloatArray, MarketPanel
from crypto_qlib.data_collector.qlib_bins import QlibBins, write_instruments
from crypto_qlib.data_collector.qlib_store import FIELDS, bins_that_differ, freq_of, whole_days, write_qlib_store
from crypto_qlib.data_collector.qlib_tail import remember_hot_panel
from crypto_qlib.store.append_log import AppendLog
from crypto_qlib.store.hold import held
from crypto_qlib.store.panel_store import Layout, PanelStore, swap_in

LOG_LIMIT: Final = 16 * 2**20
"""Bytes of log after which everything is synced and the log is cleared."""
FLUSH_BARS: Final = 256
"""Bars after which Qlib's files are brought up to the panel."""
_MAX_GAP_BARS: Final = 100_000
_OTHER_FILES: Final = 256
"""Descriptors left for everything else in the process."""
_STEP: Final = 65_536
_PATIENCE_S: Final = 20.0
"""A collector holds the store for as long as it takes to append a bar."""


class HotStore:
    """Append bars to a panel store and to Qlib's store in one step; one writer at a time.

    Parameters
    ----------
    folder : Path
        Folder of the panel store; the log lies in it.
    qlib_root : Path
        Qlib's store (``Paths.qlib``).
    flush_bars : int
        Bars after which Qlib's files are brought up to the panel.

    Raises
    ------
    UserError
        If there is no store, another process writes to it, or it cannot be written.
    """

    def __init__(self, folder: Path, qlib_root: Path, flush_bars: int = FLUSH_BARS) -> None:
        self._flush_bars = flush_bars
        self._holding = ExitStack()
        self._holding.enter_context(held(lock_of(folder)))
        with ExitStack() as undo:
            undo.push(self._holding)
            self.panel = PanelStore.open(folder, is_writable=True)
            self._log = AppendLog(folder / "log")
            undo.pop_all()
        self._qlib_root = qlib_root
        self._recover()
        layout = self.panel.layout
        self._skipped = int(-layout.origin_ns % NS_PER_DAY // layout.frame_ns)
        self._bins = QlibBins(qlib_root, freq_of(self.panel.market_panel(0, 0)))
        self._day_bins = None if layout.frame_ns == NS_PER_DAY else QlibBins(qlib_root, "day")
        _allow_open_files(len(self._all_bins()) * len(layout.symbols) * len(FIELDS))
        for bins in self._all_bins():
            bins.hold(layout.symbols)
        remember_hot_panel(qlib_root, freq_of(self.panel.market_panel(0, 0)), folder)
        self._flushed = len(self.panel)
        self._flushed_days = self._whole_days()

    def _recover(self) -> None:
        records = [_unpacked(record) for record in self._log.records()]
        for row, values in records:
            if values.shape[1] == len(self.panel.layout.symbols):  # else symbols have joined since: all was synced then
                self._write_panel(row, values)
        if records:
            write_qlib_store(self._qlib_root, self.panel.market_panel())

    def _all_bins(self) -> list[QlibBins]:
        return [self._bins] if self._day_bins is None else [self._bins, self._day_bins]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, ts_open: int, bar: Mapping[str, FloatArray]) -> None:
        """Make one bar durable and visible; a bar that exists is corrected.

        Parameters
        ----------
        ts_open : int
            Open time, ns, on the store's grid.
        bar : mapping of (n_symbols,) float64
            Fields of the panel; NaN where a symbol has no bar. Fields not given are NaN (mark prices: the last prices).

        Raises
        ------
        UserError
            If the time is not on the grid, lies before the store's first bar or far beyond its last, or the disk fails.
        """
        row = self._row(ts_open)
        n = len(self.panel.layout.symbols)
        values = np.full((len(PANEL_FIELDS), n), np.nan)
        for k, name in enumerate(PANEL_FIELDS):
            known = bar.get(name, bar.get(name.removeprefix("mark_")) if name.startswith("mark_") else None)
            if known is not None:
                values[k] = known
        self._log.append(np.int64(row).tobytes() + values.astype("<f8").tobytes())
        self._apply(row, values)
        if self._log.size > LOG_LIMIT:
            self.checkpoint()

    def _row(self, ts_open: int) -> int:
        layout = self.panel.layout
        row, off = divmod(ts_open - layout.origin_ns, layout.frame_ns)
        if off or row < 0:
            raise UserError(f"{iso(ts_open)} is not on the grid of the store, which begins at {iso(layout.origin_ns)}", _HINT)
        if row > len(self.panel) + _MAX_GAP_BARS:
            raise UserError(f"{iso(ts_open)} is {row - len(self.panel):,} bars beyond the last one", _HINT)
        return int(row)

    def _write_panel(self, row: int, values: FloatArray) -> None:
        self.panel.write_rows(row, {name: values[k : k + 1] for k, name in enumerate(PANEL_FIELDS)})

    def _apply(self, row: int, values: FloatArray) -> None:
        """Put a bar to its place in the panel, and in Qlib's files where they must not lag."""
        is_correction = row < len(self.panel)
        self._write_panel(row, values)
        if is_correction:
            self.flush()
            self._correct(row)
        elif len(self.panel) - self._flushed >= self._flush_bars or self._whole_days() > self._flushed_days:
            self.flush()

    def flush(self) -> None:
        """Bring Qlib's files up to the panel: bins first, then calendars, then instruments."""
        n, n_days = len(self.panel), self._whole_days()
        if n > self._flushed:
            self._extend(self._bins, self.panel.market_panel, self._flushed, n)
            if self._day_bins is not None and n_days > self._flushed_days:
                self._extend(self._day_bins, self._days, self._flushed_days, n_days)
        self._announce(n, n_days)
        self._flushed, self._flushed_days = n, n_days

    def _extend(self, bins: QlibBins, bars: Callable[[int, int], MarketPanel], start: int, stop: int) -> None:
        """Append bars ``start:stop``, and what instruments that trade in them have missed before."""
        first = min(bins.lacking_from(bars(start, stop), start), start)
        first = max(first - 1, 0)
        bins.write(bars(first, stop), first)

    def _correct(self, row: int) -> None:
        self._correct_bins(self._bins, self.panel.market_panel, row, len(self.panel))
        day, n_days = (row - self._skipped) // self._per_day, self._whole_days()
        if self._day_bins is not None and 0 <= day < n_days:
            self._correct_bins(self._day_bins, self._days, day, n_days)
        self._announce(len(self.panel), n_days)

    def _correct_bins(self, bins: QlibBins, bars: Callable[[int, int], MarketPanel], row: int, n: int) -> None:
        last = bars(max(row - 1, 0), row + 1)
        moved = [j for j in range(len(last.symbols)) if bins.must_rebuild(last, j, row)]
        whole = bars(0, n) if moved else last
        for j in moved:
            bins.rebuild(whole, j)
            bins.hold([last.symbols[j]])
        self._extend(bins, bars, row, row + 1)
        bins.correct(last, row)
        if row + 1 < n:  # the change of the bar after it
            bins.correct(bars(row, row + 2), row + 1)

    @property
    def _per_day(self) -> int:
        return NS_PER_DAY // self.panel.layout.frame_ns

    def _whole_days(self) -> int:
        return max((len(self.panel) - self._skipped) // self._per_day, 0) if self._day_bins is not None else 0

    def _days(self, first: int, stop: int) -> MarketPanel:
        at = self._skipped
        return whole_days(self.panel.market_panel(at + first * self._per_day, at + stop * self._per_day))

    def _announce(self, n: int, n_days: int) -> None:
        """Extend the calendars and the listing spans: after the bins, so that no bar is announced that is not there."""
        layout = self.panel.layout
        last = self.panel.market_panel(max(n - 1, 0), n)
        if n:
            self._bins.write_calendars(last, n)
        if self._day_bins is not None and n_days:
            self._day_bins.write_calendars(self._days(n_days - 1, n_days), n_days)
        rows = {s: span for s in layout.symbols if (span := self._bins.span(s)) is not None}
        origin, step = layout.origin_ns, layout.frame_ns
        times = {s: (origin + step * first, origin + step * end) for s, (first, end) in rows.items()}
        write_instruments(self._qlib_root, last, times)

    def checkpoint(self) -> None:
        """Make panel and bins durable, then clear the log."""
        self.flush()
        self.panel.sync()
        for bins in self._all_bins():
            bins.sync()
        self._log.clear()

    def close(self) -> None:
        """Sync everything and let go of the store."""
        self.checkpoint()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the store without syncing, as a killed process would; the log brings it up to date at the next opening."""
        self._log.close()
        for bins in self._all_bins():
            bins.close()
        self._holding.close()


_HINT: Final = "run `crypto-qlib data update`"


def build_hot_store(
    folder: Path,
    qlib_root: Path,
    panel: MarketPanel,
    dtype: str = "<f8",
    vouched_rows: int | None = None,
    write_qlib: Callable[[MarketPanel], object] | None = None,
) -> int:
    """Bring panel store and Qlib's store in line with ``panel``, and return how many rows had to be written.

    Rows the store already holds exactly are not written again. Rows nobody has vouched for are written in place and those after
    the panel's last are forgotten; where older history has changed or symbols are others, the store is built anew and swapped
    in, so that whoever reads the old one keeps what they have.

    Parameters
    ----------
    folder, qlib_root : Path
        Panel store and Qlib's store.
    panel : MarketPanel
        All history there is.
    dtype : str
        Of a store built anew.
    vouched_rows : int, optional
        Rows that may not change under a reader; by default all.
    write_qlib : callable, optional
        Writes the panel to Qlib's store; by default :func:`~crypto_qlib.data_collector.qlib_store.write_qlib_store`.

    Raises
    ------
    HeldElsewhere
        If another process goes on writing to the store.
    UserError
        If a store cannot be written.
    """
    with held(lock_of(folder), _PATIENCE_S):
        kept = _rows_in_common(folder, panel, dtype, vouched_rows)
        if kept < 0:
            layout = Layout(
                panel.frame_ns,
                int(panel.ts_open[0]) if panel.n_bars else 0,
                panel.symbols,
                dtype=dtype,
                has_mark=tuple(bool(m) for m in panel.has_mark),
            )
            fresh = folder.with_name(f"{folder.name}.new")
            _fill(PanelStore.create(fresh, layout), panel, 0)
            swap_in(fresh, folder)
        else:
            store = PanelStore.open(folder, is_writable=True)
            store.truncate(kept)
            _fill(store, panel, kept)
        if write_qlib is None:
            write_qlib_store(qlib_root, panel)
        else:
            write_qlib(panel)
        remember_hot_panel(qlib_root, freq_of(panel), folder)
        (folder / "log").unlink(missing_ok=True)
    return panel.n_bars - max(kept, 0)


def _rows_in_common(folder: Path, panel: MarketPanel, dtype: str, vouched_rows: int | None) -> int:
    """Return how many rows store and ``panel`` have in common, -1 if the store cannot be continued with it."""
    try:
        store = PanelStore.open(folder)
    except UserError:
        return -1
    layout, n = store.layout, len(store)
    is_same = (layout.symbols, layout.frame_ns, layout.dtype) == (panel.symbols, panel.frame_ns, dtype)
    is_same &= layout.has_mark == tuple(bool(m) for m in panel.has_mark)
    if not is_same or not panel.n_bars or layout.origin_ns != panel.ts_open[0]:
        return -1
    kept = common_rows(store, panel)
    return kept if kept >= (n if vouched_rows is None else min(vouched_rows, n)) else -1


def common_rows(store: PanelStore, panel: MarketPanel, start: int = 0) -> int:
    """Return how many rows of ``panel``, from its first on, the store holds exactly from its row ``start`` on."""
    n = min(len(store) - start, panel.n_bars)
    for a in range(0, n, _STEP):
        b = min(a + _STEP, n)
        is_same = np.ones(b - a, np.bool_)
        for name in PANEL_FIELDS:
            kept = store.field(name, start + a, start + b)
            wanted = getattr(panel, name)[a:b].astype(store.layout.dtype)
            if not np.array_equal(kept, wanted, equal_nan=True):
                is_same &= ((kept == wanted) | (np.isnan(kept) & np.isnan(wanted))).all(axis=1)
        if not is_same.all():
            return a + int(np.argmin(is_same))
    return n


def _allow_open_files(more: int) -> None:
    """Raise this process's limit of open files (1,024 on many systems) so that one descriptor a bin fits.

    Raises
    ------
    UserError
        If the system does not allow so many.
    """
    wanted = more + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, -1) or soft >= wanted:
        return
    if hard not in (resource.RLIM_INFINITY, -1) and hard < wanted:
        raise UserError(
            f"{wanted:,} open files are needed, the system allows {hard:,}", "raise it: ulimit -Hn, or fewer symbols"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def lock_of(folder: Path) -> Path:
    """Return the folder whose lock is the store's: not the store's own, which is swapped when it is built anew."""
    return folder.with_name(f"{folder.name}.hold")


def _unpacked(record: bytes) -> tuple[int, FloatArray]:
    return int(np.frombuffer(record, "<i8", 1)[0]), np.frombuffer(record, "<f8", offset=8).reshape(len(PANEL_FIELDS), -1)


def _fill(store: PanelStore, panel: MarketPanel, start: int) -> None:
    for a in range(start, panel.n_bars, _STEP):
        store.write_rows(a, {n: getattr(panel, n)[a : a + _STEP] for n in PANEL_FIELDS})
    store.sync()


def hot_bins_that_differ(store: PanelStore, qlib_root: Path) -> list[Path]:
    """Return the bin files that do not hold exactly what the panel store says; empty = both are sound."""
    return bins_that_differ(qlib_root, store.market_panel())

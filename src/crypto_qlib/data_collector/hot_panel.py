"""The cleaned bars as mapped memory: served only while they are what the lake says.

1. :meth:`HotPanel.renew` loads the lake, brings the panel store in line with it and vouches for the rows: a record beside the
   store holds the stamp of the lake's files (:mod:`~crypto_qlib.store.lake_stamp`), whom and which span was asked for, and a
   checksum of the rows.
2. :meth:`HotPanel.serve` takes the stamp again. If it is the record's, nobody has written to those files since, and the rows
   are copied from the map and summed again: a tenth of a second where 2,400 month files take more than one.
3. Anything else - another stamp, span, symbol or release, a row that changed, a store that is just being written - is read from
   the lake. Where the lake still says the same, the record is renewed; a record is never written without that comparison.

Rows beyond those vouched for are bars a collector has appended since (:mod:`.hot_follow`); they are never served here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, floor_ts
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, IntArray, MarketPanel
from crypto_qlib.data_collector.hot_store import build_hot_store, common_rows
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.settings.identity import code_identity
from crypto_qlib.store.lake import EVENT, Kind, Lake, Series
from crypto_qlib.store.lake_stamp import lake_stamp
from crypto_qlib.store.panel_store import PanelStore
from crypto_qlib.store.parquet_file import write_atomic

_COPIED_BYTES: Final = 2**30
"""Larger panels are handed out as maps: a copy would have to fit in memory."""


@dataclass(frozen=True, slots=True)
class Record:
    """What has been vouched for.

    Parameters
    ----------
    stamp : str
        Of the lake's files and of this package's code.
    symbols : tuple of str
        Columns asked for.
    start_ns, end_ns : int
        Span asked for.
    has_mark : tuple of bool
        Of each symbol, in that span.
    origin_ns : int
        Open time of the first row served.
    rows : int
        Rows served.
    checksum : str
        Of their values.
    """

    stamp: str
    symbols: tuple[str, ...]
    start_ns: int
    end_ns: int
    has_mark: tuple[bool, ...] = ()
    origin_ns: int = 0
    rows: int = 0
    checksum: str = ""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the record in ``path``, or ``None`` where there is none that can be read."""
        try:
            found = json.loads(path.read_text())
            return cls(**{**found, **{n: tuple(found[n]) for n in ("symbols", "has_mark")}})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def is_of(self, asked: Record) -> bool:
        """Return whether this record answers what ``asked`` names."""
        return bool(self.stamp) and (self.stamp, self.symbols, self.start_ns, self.end_ns) == (
            asked.stamp, asked.symbols, asked.start_ns, asked.end_ns,
        )  # fmt: skip


class HotPanel:
    """The panel of one frame.

    Parameters
    ----------
    lake : Lake
        The archive.
    folder : Path
        Folder of the panel store (``Paths.panels / frame``).
    frame : str
        Bar length.
    """

    def __init__(self, lake: Lake, folder: Path, frame: str) -> None:
        self._lake = lake
        self._frame = frame
        self.folder = folder
        self._record = folder.with_name(f"{folder.name}.vouched.json")

    @property
    def vouched_end_ns(self) -> int | None:
        """Return the close of the last row vouched for, or ``None``."""
        record = Record.read(self._record)
        return None if record is None else record.origin_ns + record.rows * FRAME_NS[self._frame]

    def serve(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> MarketPanel:
        """Return what :func:`~crypto_qlib.data_collector.panel.load_panel` returns, bit for bit.

        Raises
        ------
        UserError
            As :func:`load_panel` does.
        """
        asked = self._asked(symbols, start_ns, end_ns)
        found = self._mapped(asked)
        if found is not None:
            return found
        panel = load_panel(self._lake, symbols, self._frame, start_ns, end_ns)
        self._vouch(asked, panel)
        return panel

    def is_current(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> bool:
        """Return whether this very panel would be served from the map."""
        return self._mapped(self._asked(symbols, start_ns, end_ns)) is not None

    def renew(
        self, symbols: Sequence[str], start_ns: int, end_ns: int, qlib_root: Path, write_qlib: Callable[[MarketPanel], object]
    ) -> int:
        """Bring the store and Qlib's files in line with the lake; return how many rows had to be written.

        Parameters
        ----------
        symbols : sequence of str
            Columns.
        start_ns, end_ns : int
            The span that will be asked for; the store holds all history.
        qlib_root : Path
            Qlib's store.
        write_qlib : callable
            Writes the panel of all history to it; called while the store is held.

        Raises
        ------
        HeldElsewhere
            If another process goes on writing to the store.
        UserError
            If the lake has no bars or a store cannot be written.
        """
        asked = self._asked(symbols, start_ns, end_ns)
        whole = load_panel(self._lake, symbols, self._frame)
        vouched = self._vouched_rows()
        self._record.unlink(missing_ok=True)
        written = build_hot_store(self.folder, qlib_root, whole, vouched_rows=vouched, write_qlib=write_qlib)
        is_all = np.array_equal(whole.ts_open, _grid(asked, whole.frame_ns))
        self._vouch(asked, whole if is_all else load_panel(self._lake, symbols, self._frame, start_ns, end_ns))
        return written

    def appended_rows(self, panel: MarketPanel) -> int | None:
        """Return how many bars a collector has appended to ``panel`` (all cleaned history).

        ``None`` where there is no store, or it does not hold exactly that history.
        """
        store = self._open()
        if store is None or set(store.layout.symbols) != set(panel.symbols) or store.layout.origin_ns != panel.ts_open[0]:
            return None
        columns = [panel.symbols.index(s) for s in store.layout.symbols]
        fields: dict[str, Any] = {n: getattr(panel, n)[:, columns] for n in PANEL_FIELDS}
        wanted = replace(panel, symbols=store.layout.symbols, has_mark=panel.has_mark[columns], **fields)
        return len(store) - panel.n_bars if common_rows(store, wanted) == panel.n_bars else None

    def _asked(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> Record:
        series = [Series(k, self._frame, s) for s in symbols for k in (Kind.CLEAN, Kind.MARK)]
        stamp = lake_stamp(self._lake, [*series, *(Series(Kind.FUNDING, EVENT, s) for s in symbols)])
        return Record(f"{stamp} {code_identity()}" if stamp else "", tuple(symbols), start_ns, end_ns)

    def _open(self) -> PanelStore | None:
        try:
            return PanelStore.open(self.folder)
        except UserError:
            return None  # none yet, or it is being swapped: the lake has everything

    def _vouched_rows(self) -> int | None:
        record, store = Record.read(self._record), self._open()
        if record is None or store is None:
            return None
        return (record.origin_ns - store.layout.origin_ns) // store.layout.frame_ns + record.rows

    def _mapped(self, asked: Record) -> MarketPanel | None:
        record = Record.read(self._record)
        if record is None or not record.is_of(asked):
            return None
        store = self._open()
        if store is None or store.layout.symbols != asked.symbols:
            return None
        start = (record.origin_ns - store.layout.origin_ns) // store.layout.frame_ns
        if start < 0 or start + record.rows > len(store):
            return None
        found = _taken(store, start, record.rows)
        is_untouched = _checksum(found) == record.checksum and Record.read(self._record) == record
        return _padded(found, asked, record) if is_untouched else None

    def _vouch(self, asked: Record, panel: MarketPanel) -> None:
        """Write the record for ``panel``, just read from the lake, if the store holds exactly its rows."""
        store = self._open()
        if store is None or not asked.stamp or store.layout.symbols != panel.symbols or not len(store):
            return
        layout = store.layout
        lead = max((layout.origin_ns - int(panel.ts_open[0])) // layout.frame_ns, 0)
        start = max((int(panel.ts_open[0]) - layout.origin_ns) // layout.frame_ns, 0)
        rows = min(len(store) - start, panel.n_bars - lead)
        if rows <= 0 or common_rows(store, panel.rows(lead, lead + rows), start) < rows:
            return
        record = replace(
            asked,
            has_mark=tuple(bool(m) for m in panel.has_mark),
            origin_ns=layout.origin_ns + start * layout.frame_ns,
            rows=rows,
            checksum=_checksum(_taken(store, start, rows)),
        )
        # The rows before the store's first and after its last are NaN when served: vouch only if the lake says so too.
        served = _padded(_taken(store, start, rows), asked, record)
        if _same(served, panel):
            write_atomic(self._record, json.dumps(asdict(record), sort_keys=True).encode())


def _taken(store: PanelStore, start: int, rows: int) -> MarketPanel:
    """Return rows of the store: copied, so that no writer changes them under a reader, where they fit in memory."""
    panel = store.market_panel(start, start + rows)
    if panel.close.nbytes * len(PANEL_FIELDS) > _COPIED_BYTES:
        return panel
    copied: dict[str, Any] = {n: np.ascontiguousarray(getattr(panel, n)) for n in PANEL_FIELDS}
    return replace(panel, **copied)


def _padded(panel: MarketPanel, asked: Record, record: Record) -> MarketPanel:
    """Return ``panel`` on the grid asked for, NaN where the store has no row, with the marks' flags of the record."""
    frame_ns = panel.frame_ns
    grid = _grid(asked, frame_ns)
    lead = (record.origin_ns - int(grid[0])) // frame_ns
    has_mark = np.array(record.has_mark, np.bool_)
    if lead == 0 and grid.size == panel.n_bars:
        return replace(panel, has_mark=has_mark)
    fields = {n: np.full((grid.size, len(panel.symbols)), np.nan) for n in PANEL_FIELDS}
    for name, values in fields.items():
        values[lead : lead + panel.n_bars] = getattr(panel, name)
    return MarketPanel(panel.symbols, frame_ns, grid, has_mark=has_mark, **fields)


def _grid(asked: Record, frame_ns: int) -> IntArray:
    """Return the open times :func:`load_panel` gives for the span asked for."""
    first, last = -(-asked.start_ns // frame_ns) * frame_ns, floor_ts(asked.end_ns - 1, frame_ns)
    return first + frame_ns * np.arange((last - first) // frame_ns + 1, dtype=np.int64)


def _same(a: MarketPanel, b: MarketPanel) -> bool:
    is_same = a.symbols == b.symbols and np.array_equal(a.ts_open, b.ts_open) and np.array_equal(a.has_mark, b.has_mark)
    return is_same and all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in PANEL_FIELDS)


def _checksum(panel: MarketPanel) -> str:
    """Return the sum of all bits of each field as 64-bit words, modulo 2^64: any single change of a value changes it."""
    sums = (int(np.add.reduce(getattr(panel, n).view(np.uint64), axis=None)) for n in PANEL_FIELDS)
    return " ".join(f"{s:016x}" for s in sums)

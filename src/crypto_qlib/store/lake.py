"""The lake: market history as parquet files by kind, frame, symbol and month.

::

    lake/candles/1h/BTCUSDT/2025-01.parquet     raw bars (last price), exactly as the exchange gave them
    lake/mark/1h/BTCUSDT/2025-01.parquet        mark-price bars
    lake/clean/1h/BTCUSDT/2025-01.parquet       cleaned bars and why each was touched (``flag``)
    lake/funding/event/BTCUSDT/2025-01.parquet  settlements
    lake/open_interest/event/BTCUSDT/...        snapshots
    lake/index/1h/...                           index-price bars
    lake/open_interest_history/1h/..., lake/taker_volume/1h/..., lake/long_short_ratio/1h/...   the exchange keeps weeks
    lake/funding_quotes/event/..., lake/order_flow/1m/...                            what only a running collector sees
    lake/gaps/ledger.parquet, lake/corrections/...                                   what is missing; what was first said
    lake/universe/20250101T000000Z.parquet      one file a snapshot
    lake/instruments/versions.parquet, lake/tiers/BTCUSDT.parquet   versions with the time each was first seen

Rows that come after all others may be appended as a file of their own (``2025-01.parts/``) until the month is compacted.

The two shapes are the **series** (rows keyed by time, month files, upserted) and the **document** (replaced whole).
A file's bytes depend on its rows alone, so any order of fetches, overlaps and kills that ends with the same rows ends with
the same bytes; where two writes disagree on a row, the later write wins (the exchange's corrections).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock, FundingBlock, IntArray
from crypto_qlib.store.coverage import Range, read_ranges, write_ranges
from crypto_qlib.store.hold import held
from crypto_qlib.store.month_parts import drop_parts, is_part, last_instant, month_path_of, part_path, parts_of
from crypto_qlib.store.parquet_file import (
    SCHEMA_VERSION,
    encode,
    is_scratch,
    read_meta,
    read_table,
    schema_version,
    write_atomic,
)

Columns = dict[str, npt.NDArray[Any]]


class Kind(StrEnum):
    """What a lake file holds."""

    CANDLES = "candles"
    MARK = "mark"
    INDEX = "index"
    CLEAN = "clean"
    FUNDING = "funding"
    OPEN_INTEREST = "open_interest"
    INTEREST_HISTORY = "open_interest_history"
    TAKER_VOLUME = "taker_volume"
    LONG_SHORT = "long_short_ratio"
    FUNDING_QUOTES = "funding_quotes"
    ORDER_FLOW = "order_flow"
    GAPS = "gaps"
    CORRECTIONS = "corrections"
    UNIVERSE = "universe"
    UNIVERSE_HISTORY = "universe_history"
    MARKET_CAPS = "market_caps"
    CAP_CHARTS = "cap_charts"
    INSTRUMENTS = "instruments"
    TIERS = "tiers"


EVENT: Final = "event"
"""The ``frame`` of series that are not bars."""
TIME: Final = "ts"
"""Key column of every series, nanoseconds since the epoch."""

_PRICES = ("open", "high", "low", "close")
_BAR = (*_PRICES, "volume", "quote_volume")
_VALUES: Final[dict[Kind, dict[str, pa.DataType]]] = {
    Kind.CANDLES: dict.fromkeys(_BAR, pa.float64()),
    Kind.MARK: dict.fromkeys(_PRICES, pa.float64()),
    Kind.INDEX: dict.fromkeys(_PRICES, pa.float64()),
    Kind.CLEAN: {**dict.fromkeys(_BAR, pa.float64()), "flag": pa.uint16()},
    Kind.FUNDING: {"rate": pa.float64()},
    Kind.OPEN_INTEREST: {"open_interest": pa.float64()},
    Kind.INTEREST_HISTORY: dict.fromkeys(("open_interest", "open_interest_usd"), pa.float64()),
    Kind.TAKER_VOLUME: dict.fromkeys(("buy", "sell"), pa.float64()),
    Kind.LONG_SHORT: {"ratio": pa.float64()},
    Kind.FUNDING_QUOTES: {"rate": pa.float64(), "settles_ns": pa.int64()},
    Kind.ORDER_FLOW: dict.fromkeys(
        ("buy", "sell", "n_trades", "imbalance", "spread_bps", "depth_quote", "n_books", "is_whole", "bid_slope", "ask_slope",
         "effective_bps", "realised_bps"), pa.float64()
    ),
}  # fmt: skip
"""Value columns of each kind of series."""
_LATER: Final = {Kind.ORDER_FLOW: frozenset(("bid_slope", "ask_slope", "effective_bps", "realised_bps"))}
"""Columns a kind was given after files of it had been written: NaN in a file without them."""


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """Name one series of the lake.

    Parameters
    ----------
    kind : Kind
        What it holds.
    frame : str
        Bar length (``1h``), or ``event`` where rows are not bars.
    symbol : str
        Compact name, e.g. ``BTCUSDT``.
    """

    kind: Kind
    frame: str
    symbol: str


@dataclass(frozen=True, slots=True)
class Upsert:
    """What a write did: rows that are new, and rows whose value the source has corrected."""

    added: int
    corrected: int


class Lake:
    """Read and write market history below one folder.

    Parameters
    ----------
    root : Path
        The lake's folder (``Paths.lake``), or an object store's (:func:`~crypto_qlib.store.paths.open_folder`); created by
        the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, series: Series) -> Path:
        """Return the folder of ``series``.

        Raises
        ------
        UserError
            If the symbol cannot be a file name.
        """
        if not series.symbol.replace("_", "").isalnum():
            raise UserError(f"{series.symbol!r} is not a symbol like BTCUSDT")
        return self.root / series.kind / series.frame / series.symbol

    def months(self, series: Series) -> list[Path]:
        """Return the month files of ``series``, oldest first."""
        return sorted((p for p in self.folder(series).glob("*.parquet") if not is_scratch(p)), key=str)

    def symbols(self, kind: Kind, frame: str = EVENT) -> tuple[str, ...]:
        """Return the symbols that have rows of ``kind`` at ``frame``, in alphabetical order."""
        folder = self.root / kind / frame
        if not folder.is_dir():
            return ()
        return tuple(sorted(p.name for p in folder.iterdir() if self.months(Series(kind, frame, p.name))))

    def append(self, series: Series, rows: Columns) -> Upsert:
        """Add ``rows`` as :meth:`upsert` does; rows after all others go to a file of their own, and nothing is written again.

        A month file with its parts reads like one file; :meth:`compact` makes it one, of the bytes :meth:`upsert` would write.
        """
        added = corrected = 0
        for month, part in _by_month(_in_order(rows)):
            path = self.folder(series) / f"{month}.parquet"
            if path.exists() and part[TIME][0] > last_instant((path, *parts_of(path))[-1], TIME):
                write_atomic(part_path(path, int(part[TIME][0])), encode(_table(series.kind, part)))
                done = Upsert(part[TIME].size, 0)
            else:
                done = self.upsert(series, part)
            added, corrected = added + done.added, corrected + done.corrected
        return Upsert(added, corrected)

    def compact(self) -> int:
        """Merge the parts of every month file into it; return how many month files had parts.

        A kill in between leaves rows in both places; they are the same, and the next call ends the work.
        """
        with_parts = sorted({month_path_of(p) for p in self.root.rglob("*.parquet") if is_part(p)}, key=str)
        for path in with_parts:
            kind = Kind(path.parent.parent.parent.name)
            write_atomic(path, encode(_table(kind, self._read_month(kind, path))))
            drop_parts(path)
        return len(with_parts)

    def upsert(self, series: Series, rows: Columns) -> Upsert:
        """Merge ``rows`` into ``series``; a row of an instant that exists replaces it.

        Parameters
        ----------
        series : Series
            Where to.
        rows : dict of arrays
            ``ts`` (int64 ns) and every value column of the kind, equally long, any order.

        Raises
        ------
        UserError
            If a file of the series is damaged or cannot be written.
        """
        added = corrected = 0
        for month, part in _by_month(_in_order(rows)):
            path = self.folder(series) / f"{month}.parquet"
            old = self._read_month(series.kind, path) if path.exists() else None
            merged = part if old is None else _in_order({k: np.concatenate((old[k], part[k])) for k in part})
            grown = merged[TIME].size - (0 if old is None else old[TIME].size)
            added += grown
            if old is not None:
                corrected += _count_changes(old, part)
            write_atomic(path, encode(_table(series.kind, merged)))
            drop_parts(path)
        return Upsert(added, corrected)

    def replace(self, series: Series, rows: Columns) -> bool:
        """Make ``rows`` all there is of ``series``; return whether any file changed.

        Month files whose rows stay the same are not touched.
        """
        parts = dict(_by_month(_in_order(rows)))
        is_changed = False
        for path in self.months(series):
            is_changed |= drop_parts(path)
            if path.stem not in parts:
                path.unlink()
                is_changed = True
        for month, part in parts.items():
            is_changed |= write_atomic(self.folder(series) / f"{month}.parquet", encode(_table(series.kind, part)))
        return is_changed

    def read(
        self, series: Series, start_ns: int | None = None, end_ns: int | None = None, columns: Sequence[str] | None = None
    ) -> Columns:
        """Return the rows of ``series`` with ``start_ns <= ts < end_ns``, oldest first; only the files needed are opened.

        Parameters
        ----------
        series : Series
            Which series; one that does not exist has no rows.
        start_ns, end_ns : int, optional
            Limits in nanoseconds since the epoch; open where not given.
        columns : sequence of str, optional
            Value columns to read; ``ts`` always comes along.

        Raises
        ------
        UserError
            If a file is damaged, naming it.
        """
        names = list(_VALUES[series.kind]) if columns is None else list(columns)
        low = "" if start_ns is None else _month(start_ns)
        high = "9999-99" if end_ns is None else _month(end_ns)
        parts = [self._read_month(series.kind, p, names) for p in self.months(series) if low <= p.stem <= high]
        if not parts:
            empty = {n: np.empty(0, _VALUES[series.kind][n].to_pandas_dtype()) for n in names}
            return {TIME: np.empty(0, np.int64), **empty}
        rows = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        ts = rows[TIME]
        a = 0 if start_ns is None else int(np.searchsorted(ts, start_ns))
        b = ts.size if end_ns is None else int(np.searchsorted(ts, end_ns))
        return rows if (a, b) == (0, ts.size) else {k: v[a:b] for k, v in rows.items()}

    def _read_month(self, kind: Kind, path: Path, names: Sequence[str] | None = None) -> Columns:
        """Return the rows of a month file and of the parts appended to it since."""
        files = [self._read_file(kind, p, names) for p in (path, *parts_of(path))]
        return files[0] if len(files) == 1 else _in_order({k: np.concatenate([f[k] for f in files]) for k in files[0]})

    def _read_file(self, kind: Kind, path: Path, names: Sequence[str] | None = None) -> Columns:
        table = read_table(path, (TIME, *(_VALUES[kind] if names is None else names)))
        rows: Columns = {n: table.column(n).to_numpy() for n in table.column_names if n != TIME}
        for name in _LATER.get(kind, frozenset()) & (set(_VALUES[kind] if names is None else names) - set(rows)):
            rows[name] = np.full(table.num_rows, np.nan)
        return {TIME: table.column(TIME).cast(pa.int64()).to_numpy(), **rows}

    def span(self, series: Series) -> Range | None:
        """Return the first and last instant of ``series``, or ``None`` if it has no rows."""
        months = self.months(series)
        if not months:
            return None
        first = self._read_month(series.kind, months[0], ())[TIME]
        last = first if len(months) == 1 else self._read_month(series.kind, months[-1], ())[TIME]
        return int(first[0]), int(last[-1])

    def write_bars(self, kind: Kind, frame: str, symbol: str, block: BarBlock) -> Upsert:
        """Merge bars into ``candles`` or ``mark``, see :meth:`upsert`."""
        rows: Columns = {TIME: block.ts_open, **{n: getattr(block, n) for n in _VALUES[kind]}}
        return self.upsert(Series(kind, frame, symbol), rows)

    def read_bars(
        self, kind: Kind, frame: str, symbol: str, start_ns: int | None = None, end_ns: int | None = None
    ) -> BarBlock:
        """Return bars of ``candles``, ``clean`` or ``mark`` (volumes NaN) with ``start_ns <= ts_open < end_ns``."""
        names = [n for n in _VALUES[kind] if n in _BAR]
        rows = self.read(Series(kind, frame, symbol), start_ns, end_ns, names)
        absent = np.full(rows[TIME].size, np.nan)
        return BarBlock(rows[TIME], *(rows.get(n, absent) for n in _BAR))

    def write_funding(self, symbol: str, block: FundingBlock) -> Upsert:
        """Merge settlements, see :meth:`upsert`."""
        return self.upsert(Series(Kind.FUNDING, EVENT, symbol), {TIME: block.ts, "rate": block.rate})

    def read_funding(self, symbol: str, start_ns: int | None = None, end_ns: int | None = None) -> FundingBlock:
        """Return the settlements with ``start_ns <= ts < end_ns``."""
        rows = self.read(Series(Kind.FUNDING, EVENT, symbol), start_ns, end_ns)
        return FundingBlock(rows[TIME], rows["rate"])

    def asked(self, series: Series) -> list[Range]:
        """Return the ranges in which the source is known to have no more than what is stored."""
        return read_ranges(self.folder(series) / "asked.json")

    def remember_asked(self, series: Series, ranges: Sequence[Range]) -> None:
        """Add ``ranges`` to :meth:`asked`; call it only after the rows of the same answer are stored."""
        known = self.asked(series)
        write_ranges(self.folder(series) / "asked.json", [*known, *ranges])

    def write_document(self, kind: Kind, name: str, table: pa.Table, meta: Mapping[str, Any] | None = None) -> bool:
        """Replace the document ``kind/name`` by ``table``; return whether it changed."""
        return write_atomic(self.root / kind / f"{name}.parquet", encode(table, meta))

    def read_document(self, kind: Kind, name: str) -> tuple[pa.Table, dict[str, Any]] | None:
        """Return the rows and the meta facts of the document ``kind/name``, or ``None`` if there is none."""
        path = self.root / kind / f"{name}.parquet"
        return (read_table(path), read_meta(path)) if path.exists() else None

    def documents(self, kind: Kind) -> tuple[str, ...]:
        """Return the names of the documents of ``kind``, in alphabetical order."""
        return tuple(sorted(p.stem for p in (self.root / kind).glob("*.parquet") if not is_scratch(p)))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lake for writing: one writer at a time, and what killed writers left behind is swept away.

        Raises
        ------
        UserError
            If another process holds the lake, or the folder is not writable.
        """
        with held(self.root):
            yield

    def migrate(self) -> int:
        """Write every file of an older schema version in the current one; return how many there were."""
        old = [p for p in self._files() if schema_version(p) != SCHEMA_VERSION]
        for path in old:
            write_atomic(path, encode(read_table(path), read_meta(path) or None))
        return len(old)

    def _files(self) -> list[Path]:
        return sorted((p for p in self.root.rglob("*.parquet") if not is_scratch(p)), key=str)

    def forget_asked(self) -> int:
        """Forget where sources had nothing, so that every hole is asked for again; return in how many series."""
        with self.writing():
            notes = sorted(self.root.rglob("asked.json"), key=str)
            for path in notes:
                path.unlink()
        return len(notes)

    def damaged(self) -> list[Path]:
        """Read every file whole and return those that are damaged."""
        found: list[Path] = []
        for path in self._files():
            try:
                read_table(path)
            except UserError:
                found.append(path)
        return found

    def delete_damaged(self) -> list[Path]:
        """Delete damaged files and what was remembered of their series, so that the next update fetches them again."""
        with self.writing():
            found = self.damaged()
            for path in found:
                path.unlink()
                (month_path_of(path).parent / "asked.json").unlink(missing_ok=True)
        return found


def _month(ts_ns: int) -> str:
    return str(np.datetime64(ts_ns, "ns").astype("datetime64[M]"))


def _in_order(rows: Columns) -> Columns:
    """Return ``rows`` sorted by time, the last of equal instants kept."""
    ts = rows[TIME]
    if ts.size < 2 or bool(np.all(ts[1:] > ts[:-1])):  # noqa: PLR2004 - one row is in order
        return rows
    order = np.argsort(ts, kind="stable")
    sorted_ts = ts[order]
    is_last = np.append(sorted_ts[1:] != sorted_ts[:-1], True)
    keep = order[is_last]
    return {k: v[keep] for k, v in rows.items()}


def _by_month(rows: Columns) -> Iterator[tuple[str, Columns]]:
    months = rows[TIME].astype("datetime64[ns]").astype("datetime64[M]")
    cuts = np.concatenate(([0], np.flatnonzero(months[1:] != months[:-1]) + 1, [months.size]))
    for a, b in pairwise(cuts):
        if a < b:
            yield str(months[a]), {k: v[a:b] for k, v in rows.items()}


def _table(kind: Kind, rows: Columns) -> pa.Table:
    values = _VALUES[kind]
    fields = [pa.field(TIME, pa.timestamp("ns", tz="UTC")), *(pa.field(n, t) for n, t in values.items())]
    arrays = [pa.array(rows[TIME], pa.timestamp("ns", tz="UTC"))]
    arrays += [pa.array(np.ascontiguousarray(rows[n]), t) for n, t in values.items()]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _count_changes(old: Columns, new: Columns) -> int:
    _, at_old, at_new = np.intersect1d(old[TIME], new[TIME], assume_unique=True, return_indices=True)
    is_changed = np.zeros(at_old.size, dtype=np.bool_)
    for name in new:
        a, b = old[name][at_old], new[name][at_new]
        is_changed |= (a != b) & ~((a != a) & (b != b))  # noqa: PLR0124 - NaN equals NaN here
    return int(is_changed.sum())


def event_rows(ts_ns: int, **values: float) -> Columns:
    """Return one row of an event series, e.g. ``event_rows(ts, open_interest=12.5)``."""
    return {TIME: np.array([ts_ns], np.int64), **{k: np.array([v], np.float64) for k, v in values.items()}}


def read_times(lake: Lake, series: Series, start_ns: int | None = None, end_ns: int | None = None) -> IntArray:
    """Return only the instants of ``series`` inside the limits, oldest first."""
    return np.asarray(lake.read(series, start_ns, end_ns, ())[TIME], dtype=np.int64)

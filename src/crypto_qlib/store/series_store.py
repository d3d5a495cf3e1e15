"""The bitemporal store: what happened beside the market, with the time of each event and the time we could have known it.

::

    series/fear_greed/MARKET/2025.parquet           event, known, value; one file a year of event time
    series/active_addresses/BTC/2025.parquet
    series/fear_greed.polled                        when the source was last asked with success

A file's bytes depend on the observations alone, so any order of fetches, overlaps, kills and repeats ends in the same bytes.
(Only a value that was changed and changed back must be seen in that order.) Three rules keep the past honest:

1. A value that contradicts the one stored for its event is a *correction*: it counts from the moment it was seen, beside the
   first value, which stays.
2. A value that was due and not there when the source was last asked counts from the moment it was seen.
3. Nothing may be known before its event, or later than the moment it was seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.store.hold import held
from crypto_qlib.store.observations import AsOf, Observations, in_canonical_order, join_as_of, known_at
from crypto_qlib.store.parquet_file import encode, is_scratch, read_table, write_atomic

MARKET: Final = "MARKET"
"""The ``symbol`` of series that are about the whole market."""

BoolArray = npt.NDArray[np.bool_]

_COLUMNS: Final = ("event_ns", "known_ns", "value")
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_TIME: Final = pa.timestamp("ns", tz="UTC")
_SCHEMA: Final = pa.schema([("event", _TIME), ("known", _TIME), ("value", pa.float64())])


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an append did: events that are new, and events whose value the source has corrected."""

    added: int
    corrected: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a source said at one moment about one series.

    Parameters
    ----------
    event_ns : (n,) int64
        Distinct events, any order.
    value : (n,) float64
        Their values now.
    usually_known_ns : (n,) int64
        When each value is published as a rule, an upper estimate; cut to ``seen_ns``.
    seen_ns : int
        When the source was asked.
    last_poll_ns : int, optional
        When it was asked before: what was due by then and was not there is late, and counts from ``seen_ns``.
    is_archive : bool
        Whether the values may be old news (a file): one that equals any value ever stored for its event adds nothing.
    """

    event_ns: IntArray
    value: FloatArray
    usually_known_ns: IntArray
    seen_ns: int
    last_poll_ns: int | None = None
    is_archive: bool = False


class SeriesStore:
    """Keep series with the time of each event and the time it became known.

    Parameters
    ----------
    root : Path
        Folder (``Paths.series``); created by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def append(self, series: str, symbol: str, rows: Observations, seen_ns: int) -> Recorded:
        """Add observations whose known times are facts (vintages of an archive, another store); repeats add nothing.

        Parameters
        ----------
        series, symbol : str
            Which series, e.g. ``("fear_greed", MARKET)`` or ``("active_addresses", "BTC")``.
        rows : Observations
            Any order. Where two claim one event and one known time, the one stored stays.
        seen_ns : int
            Now; nothing may be known later.

        Raises
        ------
        UserError
            If a row would be known before its event or after ``seen_ns``, or a file cannot be read or written.
        """
        folder = self._folder(series, symbol)
        _refuse_impossible(rows, f"{series} of {symbol}", seen_ns)
        added = corrected = 0
        years = _years(rows.event_ns)
        for year in np.unique(years):
            path = folder / f"{year}.parquet"
            old = _read(path) if path.exists() else Observations.empty()
            merged = _union(old, rows.take(years == year))
            write_atomic(path, encode(_table(merged)))
            fresh = np.unique(merged.event_ns).size - np.unique(old.event_ns).size
            added += fresh
            corrected += max(len(merged) - len(old) - fresh, 0)
        return Recorded(added, corrected)

    def observe(self, series: str, symbol: str, seen: Seen) -> Recorded:
        """Add what a source says now, each value dated to when it became known.

        A new event counts from its usual time of publication; one that was due at the last poll and not there counts from now.
        A value that contradicts the newest stored one is a correction and counts from now, beside the first.

        Parameters
        ----------
        series, symbol : str
            Which series.
        seen : Seen
            The answer.

        Raises
        ------
        UserError
            As :meth:`append`.
        """
        old = self.read(series, symbol)
        return self.append(series, symbol, dated(old, seen), seen.seen_ns)

    def read(self, series: str, symbol: str = MARKET) -> Observations:
        """Return every observation ever made, corrections beside first values; none if the series does not exist.

        Raises
        ------
        UserError
            If a file is damaged, naming it.
        """
        paths = sorted(p for p in self._folder(series, symbol).glob("*.parquet") if not is_scratch(p))
        parts = [_read(p) for p in paths]
        if not parts:
            return Observations.empty()
        return Observations(*(np.concatenate([getattr(p, n) for p in parts]) for n in _COLUMNS))

    def as_known_at(self, series: str, symbol: str, as_of_ns: int) -> Observations:
        """Return one observation an event, oldest first: the last one known at ``as_of_ns``; nothing later is in it."""
        return known_at(self.read(series, symbol), as_of_ns)

    def on_bars(self, series: str, symbols: Sequence[str], ts_close: IntArray, max_age_ns: int | None = None) -> AsOf:
        """Return the series as it was known at each bar's close, one column a symbol.

        Parameters
        ----------
        series : str
            Which series.
        symbols : sequence of str
            Columns, e.g. ``("BTC", "ETH")`` or ``(MARKET,)``.
        ts_close : (n_bars,) int64
            Closes of the bars: a value known at that very instant counts.
        max_age_ns : int, optional
            How long a value is carried on, see :func:`~crypto_qlib.store.observations.join_as_of`.

        Returns
        -------
        AsOf
            Arrays of shape ``(n_bars, n_symbols)``; NaN and -1 where nothing was known.
        """
        columns = [join_as_of(self.read(series, s), ts_close, max_age_ns) for s in symbols]
        shape = (ts_close.size, 0)
        return AsOf(
            np.column_stack([c.value for c in columns]) if columns else np.empty(shape),
            np.column_stack([c.age_ns for c in columns]) if columns else np.empty(shape, np.int64),
            np.column_stack([c.event_ns for c in columns]) if columns else np.empty(shape, np.int64),
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store for writing: one writer at a time.

        Raises
        ------
        UserError
            If another process holds it, or the folder is not writable.
        """
        with held(self.root):
            yield

    def names(self) -> tuple[str, ...]:
        """Return the series there are, in alphabetical order."""
        if not self.root.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.root.iterdir() if p.is_dir() and self.symbols(p.name)))

    def symbols(self, series: str) -> tuple[str, ...]:
        """Return the symbols ``series`` has observations of, in alphabetical order."""
        return tuple(sorted({p.parent.name for p in (self.root / series).glob("*/*.parquet") if not is_scratch(p)}))

    def identity(self) -> str:
        """Return a hash of every observation there is, 16 hex digits; empty if there is none."""
        digest = hashlib.sha256()
        paths = sorted((p for p in self.root.glob("*/*/*.parquet") if not is_scratch(p)), key=str)
        for path in paths:
            digest.update(f"{path.relative_to(self.root).as_posix()} ".encode() + path.read_bytes())
        return digest.hexdigest()[:16] if paths else ""

    def last_poll_ns(self, source: str) -> int | None:
        """Return when ``source`` was last asked with success, or ``None`` if it never was."""
        path = self.root / f"{source}.polled"
        try:
            return int(path.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def remember_poll(self, source: str, seen_ns: int) -> None:
        """Remember that ``source`` was asked at ``seen_ns``; call it only after its answer is stored."""
        write_atomic(self.root / f"{source}.polled", str(seen_ns).encode())

    def _folder(self, series: str, symbol: str) -> Path:
        for name in (series, symbol):
            if not name or not set(name) <= _NAME:
                raise UserError(f"{name!r} cannot name a series or symbol", "use letters, digits and underscores")
        return self.root / series / symbol


def _refuse_impossible(rows: Observations, what: str, seen_ns: int) -> None:
    if not len(rows):
        return
    if int((rows.known_ns - rows.event_ns).min()) < 0:
        at = int(np.argmin(rows.known_ns - rows.event_ns))
        raise UserError(f"{what}: the value of {iso(int(rows.event_ns[at]))} cannot be known before its event")
    if int(rows.known_ns.max()) > seen_ns:
        raise UserError(
            f"{what}: a value is said to be known from {iso(int(rows.known_ns.max()))}, after it was seen at {iso(seen_ns)}",
            "check this machine's clock",
        )


def dated(old: Observations, seen: Seen) -> Observations:
    """Return the observations that ``seen`` adds to ``old``, see :meth:`SeriesStore.observe`."""
    event, value = seen.event_ns, seen.value
    now = np.full(event.size, seen.seen_ns, np.int64)
    usual = np.minimum(np.maximum(seen.usually_known_ns, event), now)
    # Events before the first stored one were never asked for: a longer history is no late news.
    oldest = old.event_ns[0] if len(old) else np.iinfo(np.int64).max
    was_due = (usual <= (-1 if seen.last_poll_ns is None else seen.last_poll_ns)) & (event > oldest)
    newest = known_at(old, np.iinfo(np.int64).max)
    at = np.searchsorted(newest.event_ns, event)
    is_old_event = np.append(newest.event_ns, -1)[at] == event
    is_said = is_old_event & _equal(value, np.append(newest.value, np.nan)[at])
    if seen.is_archive:
        is_said |= is_old_event & _is_among(old, event, value)
    known = np.where(is_old_event | was_due, now, usual)
    return Observations(event, known, value).take(~is_said)


def _equal(a: FloatArray, b: FloatArray) -> BoolArray:
    same: BoolArray = (a == b) | (np.isnan(a) & np.isnan(b))
    return same


def _is_among(old: Observations, event: IntArray, value: FloatArray) -> BoolArray:
    stored = set(zip(old.event_ns.tolist(), old.value.tolist(), strict=True))
    return np.array([pair in stored for pair in zip(event.tolist(), value.tolist(), strict=True)], np.bool_)


def _union(old: Observations, new: Observations) -> Observations:
    """Return both in canonical order; of two rows of one event and known time the older (else the first) stays."""
    both = Observations(*(np.concatenate((getattr(old, n), getattr(new, n))) for n in _COLUMNS))
    order = np.lexsort((np.arange(len(both)), both.known_ns, both.event_ns))
    both = both.take(order)
    is_repeat = (both.event_ns[1:] == both.event_ns[:-1]) & (both.known_ns[1:] == both.known_ns[:-1])
    return in_canonical_order(both.take(~np.append(False, is_repeat)[: len(both)]))


def _years(event_ns: IntArray) -> IntArray:
    return event_ns.astype("datetime64[ns]").astype("datetime64[Y]").astype(np.int64) + 1970


def _table(rows: Observations) -> pa.Table:
    return pa.Table.from_arrays(
        [pa.array(rows.event_ns, _TIME), pa.array(rows.known_ns, _TIME), pa.array(rows.value)], schema=_SCHEMA
    )


def _read(path: Path) -> Observations:
    table = read_table(path, _SCHEMA.names)
    event, known = (table.column(n).cast(pa.int64()).to_numpy() for n in ("event", "known"))
    return Observations(event, known, table.column("value").to_numpy())

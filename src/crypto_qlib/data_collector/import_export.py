"""Bring history in from files, and take it out: what went out comes in again to the same bytes.

Exports are tables (``symbol, ts, open ...``, one file a kind and frame) or freqtrade's (one file a symbol), as parquet, CSV or
feather; numbers keep every digit in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from crypto_qlib.core.clock import FRAME_NS, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.history_files import PRICES, files_below, pieces_of, read_file, unified_symbol
from crypto_qlib.data_collector.series_files import import_series, is_series_file, series_table
from crypto_qlib.store.lake import EVENT, TIME, Kind, Lake, Series
from crypto_qlib.store.series_store import SeriesStore

Format = Literal["parquet", "csv", "feather"]
_MS: Final = pa.timestamp("ms", tz="UTC")
_FREQTRADE_NAMES: Final = {Kind.CANDLES: "futures", Kind.MARK: "mark", Kind.FUNDING: "funding_rate"}
_KNOWN: Final = {"symbol", "ts", "date", *PRICES, "volume", "quote_volume", "funding_rate", "rate"}


@dataclass(frozen=True, slots=True)
class Imported:
    """What one file brought.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What it holds, in words.
    added, corrected : int
        New rows, and rows whose stored values it contradicts.
    notes : tuple of str
        What was left out.
    """

    path: Path
    what: str
    added: int
    corrected: int
    notes: tuple[str, ...] = ()


def import_files(
    place: Path,
    lake: Lake,
    store: SeriesStore,
    now_ns: int,
    frame: str = "",
    kind: Kind | None = None,
    progress: Callable[[float], None] = lambda _share: None,
) -> tuple[Imported, ...]:
    """Import ``place``, a file or a folder; a file is read whole before anything of it is stored.

    Parameters
    ----------
    place : Path
        File or folder.
    lake, store : Lake, SeriesStore
        Where history of swaps and external series go.
    now_ns : int
        Now: bars that end later, and values known later, are left out.
    frame : str
        Bar length of files that do not tell.
    kind : Kind, optional
        What bars are, where the file does not tell.
    progress : callable
        Called with the share done since the last call; all calls add up to 1.

    Raises
    ------
    UserError
        If a file cannot be read or understood; files before it stay imported, and importing again changes nothing.
    """
    paths = files_below(place)
    done: list[Imported] = []
    with lake.writing(), store.writing():
        for path in paths:
            table = read_file(path)
            if is_series_file(table):
                recorded, notes = import_series(path, table, store, now_ns)
                done.append(Imported(path, "external series", recorded.added, recorded.corrected, notes))
            else:
                done.append(_import_history(path, table, lake, now_ns, frame, kind))
            progress(1.0 / len(paths))
    return tuple(done)


def _import_history(path: Path, table: pa.Table, lake: Lake, now_ns: int, frame: str, kind: Kind | None) -> Imported:
    pieces = list(pieces_of(path, table, frame, kind))
    added = corrected = n_late = n_twice = 0
    for piece in pieces:
        length = FRAME_NS.get(piece.series.frame, 0)
        over = piece.rows[TIME] + length <= now_ns
        rows = piece.rows if over.all() else {n: v[over] for n, v in piece.rows.items()}
        n_late += int((~over).sum())
        n_twice += rows[TIME].size - np.unique(rows[TIME]).size
        done = lake.upsert(piece.series, rows)
        added, corrected = added + done.added, corrected + done.corrected
    notes = [f"{n_late} rows that are not over yet left out"] if n_late else []
    notes += [f"{n_twice} rows stand twice in the file; the later one was taken"] if n_twice else []
    unused = [n for n in table.schema.names if n not in _KNOWN]
    notes += [f"columns that have no place in the lake left out: {', '.join(unused)}"] if unused else []
    kinds = sorted({f"{p.series.kind} {p.series.frame}" for p in pieces})
    return Imported(path, f"{', '.join(kinds) or 'nothing'} of {len(pieces)} symbols", added, corrected, tuple(notes))


def export_history(
    lake: Lake,
    folder: Path,
    series: tuple[Kind, str],
    file_format: Format = "parquet",
    symbols: Sequence[str] = (),
    span: tuple[int | None, int | None] = (None, None),
    layout: Literal["table", "freqtrade"] = "table",
) -> tuple[Path, ...]:
    """Write one kind and frame of the lake to ``folder`` and return the files.

    Parameters
    ----------
    lake : Lake
        The lake.
    folder : Path
        Where to; created.
    series : (Kind, str)
        Kind and frame; settlements have the frame ``event``.
    file_format : str
        ``parquet``, ``csv`` or ``feather``.
    symbols : sequence of str
        Compact names; all by default.
    span : (int, int)
        Half-open span, ns; open where ``None``.
    layout : str
        ``table`` or ``freqtrade``.

    Raises
    ------
    UserError
        If there is nothing to export, or freqtrade has no such file.
    """
    kind, frame = series
    names = tuple(symbols) or lake.symbols(kind, frame)
    tables = {s: _table_of(lake, Series(kind, frame, s), span) for s in names}
    tables = {s: t for s, t in tables.items() if t.num_rows}
    if not tables:
        window = "".join(f" {word} {iso(t)}" for word, t in zip(("from", "to"), span, strict=True) if t is not None)
        raise UserError(f"the lake has no {kind} {frame}{window} to export", "run `crypto-qlib data status` to see what it has")
    if layout == "table":
        whole = pa.concat_tables(
            [t.add_column(0, "symbol", pa.array([unified_symbol(s)] * t.num_rows)) for s, t in tables.items()]
        )
        return (_write(whole, folder / f"{kind}{'' if frame == EVENT else f'_{frame}'}.{file_format}", file_format),)
    if kind not in _FREQTRADE_NAMES:
        raise UserError(f"freqtrade has no files of {kind}", "use --layout table")
    return tuple(
        _write(_as_freqtrade(t, kind), folder / _freqtrade_name(s, kind, frame, file_format), file_format)
        for s, t in tables.items()
    )


def export_series(store: SeriesStore, folder: Path, file_format: Format = "parquet") -> Path:
    """Write all external series with their vintages to one file and return it.

    Raises
    ------
    UserError
        If there is none.
    """
    table = series_table(store)
    if not table.num_rows:
        raise UserError("there is no external series to export", "run `crypto-qlib data external`")
    return _write(table, folder / f"series.{file_format}", file_format)


def _table_of(lake: Lake, series: Series, span: tuple[int | None, int | None]) -> pa.Table:
    rows = lake.read(series, *span)
    columns = {n: rows[n] for n in rows if n != TIME}
    if series.kind is Kind.FUNDING:
        columns = {"funding_rate": columns["rate"]}
    exact = bool((rows[TIME] % 1_000_000 == 0).all())
    times = pa.array(rows[TIME], pa.timestamp("ns", tz="UTC"))
    return pa.table({TIME: times.cast(_MS) if exact else times, **columns})


def _as_freqtrade(table: pa.Table, kind: Kind) -> pa.Table:
    zeros = np.zeros(table.num_rows)
    if kind is Kind.FUNDING:  # the rate stands in `open`
        values = {"open": table.column("funding_rate"), **dict.fromkeys(("high", "low", "close", "volume"), zeros)}
    else:
        values = {n: table.column(n) for n in PRICES} | {"volume": table.column("volume") if kind is Kind.CANDLES else zeros}
    return pa.table({"date": table.column(TIME), **values})


def _freqtrade_name(symbol: str, kind: Kind, frame: str, file_format: str) -> str:
    pair = unified_symbol(symbol).replace("/", "_").replace(":", "_")
    return f"{pair}-{'8h' if frame == EVENT else frame}-{_FREQTRADE_NAMES[kind]}.{file_format}"


def _write(table: pa.Table, path: Path, file_format: Format) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if file_format == "parquet":
            pyarrow.parquet.write_table(table, path, compression="zstd")
        elif file_format == "feather":
            pyarrow.feather.write_feather(table, path, compression="lz4")
        else:
            pyarrow.csv.write_csv(table, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}", "choose another folder") from e
    return path

"""Read market history from a parquet, CSV or feather file, or a folder of such files, and refuse what is defective.

One file may hold many symbols (a column ``symbol``), or one (its name says which: ``BTCUSDT.parquet``,
``BTC_USDT_USDT-1h-futures.feather``, or ``BTCUSDT/2025-01.parquet`` as in our own lake). Times are taken from ``ts``,
``date``, ``open_time``, ``timestamp`` or ``datetime``: dates (naive ones are UTC), ISO text, or epoch seconds, ms, us, ns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, feather, parquet

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SUFFIXES: Final = (".parquet", ".csv", ".feather", ".arrow")
_TIME_NAMES: Final = ("ts", "date", "open_time", "timestamp", "datetime", "ts_open")
_SYMBOL_NAMES: Final = ("symbol", "base", "inst_id", "pair")
_MONTH_FILE: Final = re.compile(r"\d{4}(-\d{2}){0,2}")
_QUOTED_NAME: Final = re.compile(r"([A-Z0-9]+?)[-/_]?USDT(?:[:_-](?:USDT|SWAP))?")
_SECOND_LIMIT, _MILLI_LIMIT, _MICRO_LIMIT = 10**11, 10**14, 10**17
"""Epoch numbers below these are seconds, milliseconds, microseconds; above, nanoseconds."""


@dataclass(frozen=True, slots=True)
class SymbolRows:
    """One symbol's rows of one kind of file, in time order.

    Parameters
    ----------
    base : str
        Base coin, e.g. ``BTC`` or ``1000PEPE``.
    ts : (n,) int64
        Nanoseconds since the epoch, strictly increasing.
    columns : dict of (n,) float64
        The columns asked for; optional ones only where the file has them.
    """

    base: str
    ts: IntArray
    columns: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which columns to read.

    Parameters
    ----------
    what : str
        What the file holds, for messages, e.g. ``candles``.
    required : tuple of tuple of str
        One entry a column: its names, the first being ours.
    optional : tuple of str
        Columns taken where present.
    """

    what: str
    required: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()


def base_coin(name: str, where: str) -> str:
    """Return the base coin of ``BTC/USDT:USDT``, ``BTC-USDT-SWAP``, ``BTC_USDT``, ``BTCUSDT`` or plain ``BTC``.

    Raises
    ------
    UserError
        If the name is quoted in another coin than USDT or is no symbol at all; ``where`` names the file.
    """
    text = name.strip().upper()
    match = _QUOTED_NAME.fullmatch(text) or re.fullmatch(r"([A-Z0-9]+)", text)
    if match is None:
        raise UserError(f"{where}: {name!r} is not a USDT swap", "write symbols as BTC/USDT:USDT, BTC-USDT-SWAP or BTCUSDT")
    return match.group(1)


def read_rows(path: Path, wanted: Wanted) -> list[SymbolRows]:
    """Return the rows of every symbol in ``path``, by base coin.

    Raises
    ------
    UserError
        If the file is missing, damaged, lacks a column, or has values that are no numbers, times out of order or twice.
    """
    parts: dict[str, list[SymbolRows]] = {}
    for file in _files(path, wanted.what):
        for rows in _read_file(file, wanted):
            parts.setdefault(rows.base, []).append(rows)
    return [_joined(base, parts[base], path) for base in sorted(parts)]


def _files(path: Path, what: str) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            raise UserError(f"{path}: {what} are read from {', '.join(_SUFFIXES)}, not {path.suffix or 'files without suffix'}")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder of {what}", "check the path; it is relative to where you started")
    found = sorted(
        p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _SUFFIXES and not p.name.startswith((".", "_"))
    )
    if not found:
        raise UserError(f"{path}: the folder has no {what} ({', '.join(_SUFFIXES)})")
    return found


def _read_table(path: Path) -> pa.Table:
    try:
        match path.suffix.lower():
            case ".parquet":
                return parquet.read_table(path, partitioning=None)
            case ".csv":
                return csv.read_csv(path)
            case _:
                return feather.read_table(path)
    except (pa.ArrowException, OSError) as e:
        raise UserError(
            f"{path}: cannot be read: {str(e).splitlines()[0]}", "the file is damaged or not what its name says"
        ) from e


def _read_file(path: Path, wanted: Wanted) -> list[SymbolRows]:
    table = _read_table(path)
    if table.num_rows == 0:
        raise UserError(f"{path}: the file has no rows")
    columns = {names[0]: _numbers(path, table, _column(path, table, names), names[0]) for names in wanted.required}
    columns |= {n: _numbers(path, table, n, n) for n in wanted.optional if n in table.column_names}
    ts = _times(path, table, _column(path, table, _TIME_NAMES))
    names, codes = _symbols(path, table)
    order = np.argsort(codes, kind="stable") if np.any(np.diff(codes) < 0) else np.arange(codes.size)
    _refuse_disorder(path, names, codes[order], ts[order], order)
    borders = np.searchsorted(codes[order], np.arange(len(names) + 1))
    rows = []
    for k, name in enumerate(names):
        pick = order[borders[k] : borders[k + 1]]
        rows.append(SymbolRows(base_coin(name, str(path)), ts[pick], {c: v[pick] for c, v in columns.items()}))
    return rows


def _column(path: Path, table: pa.Table, names: Sequence[str]) -> str:
    """Return the first of ``names`` that the table has."""
    present = next((n for n in names if n in table.column_names), None)
    if present is None:
        raise UserError(f"{path}: the column {names[0]!r} is missing", f"found: {', '.join(table.column_names)}")
    return present


def _numbers(path: Path, table: pa.Table, column: str, name: str) -> FloatArray:
    try:
        values: FloatArray = table[column].cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise UserError(f"{path}: the column {name!r} is not numeric", str(e).splitlines()[0]) from e
    return values


def _times(path: Path, table: pa.Table, column: str) -> IntArray:
    values = table[column]
    if values.null_count:
        raise UserError(f"{path}: row {int(np.argmax(values.is_null().to_numpy())) + 1} has no time ({column})")
    try:
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            zoned = pc.replace_substring_regex(values, r"(Z|\+00:?00)$", "")
            values = zoned.cast(pa.timestamp("ns"))
        if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
            stamps: IntArray = values.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy()
            return stamps
        epoch: IntArray = values.cast(pa.int64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise UserError(f"{path}: the column {column!r} holds no times", str(e).splitlines()[0]) from e
    largest = int(np.max(np.abs(epoch)))
    scale = next(
        (s for limit, s in ((_SECOND_LIMIT, 10**9), (_MILLI_LIMIT, 10**6), (_MICRO_LIMIT, 10**3)) if largest < limit), 1
    )
    return epoch * scale


def _symbols(path: Path, table: pa.Table) -> tuple[list[str], IntArray]:
    """Return the names and each row's index into them; from the file's name where there is no such column."""
    column = next((n for n in _SYMBOL_NAMES if n in table.column_names), None)
    if column is None:
        name = path.parent.name if _MONTH_FILE.fullmatch(path.stem) else re.split(r"-\d+[mhd]\b", path.stem)[0]
        return [name], np.zeros(table.num_rows, np.int64)
    values = table[column].combine_chunks()
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    if values.null_count:
        raise UserError(f"{path}: row {int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) + 1} has no {column}")
    return [str(v) for v in values.dictionary.to_pylist()], values.indices.to_numpy().astype(np.int64)


def _refuse_disorder(path: Path, names: Sequence[str], codes: IntArray, ts: IntArray, order: IntArray) -> None:
    bad = np.flatnonzero((np.diff(codes) == 0) & (np.diff(ts) <= 0)) + 1
    if bad.size:
        k = int(bad[0])
        kind = "is there twice" if ts[k] == ts[k - 1] else "comes after a later one"
        raise UserError(
            f"{path}: {names[codes[k]]} row {int(order[k]) + 1} ({iso(int(ts[k]))}) {kind}",
            "sort each symbol by time, without duplicates",
        )


def _joined(base: str, parts: list[SymbolRows], path: Path) -> SymbolRows:
    """Return one symbol's rows from several files, in time order."""
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda p: int(p.ts[0]))
    ts = np.concatenate([p.ts for p in parts])
    bad = np.flatnonzero(np.diff(ts) <= 0)
    if bad.size:
        raise UserError(f"{path}: two files hold {base} at {iso(int(ts[bad[0] + 1]))}", "name one folder of one bar length")
    shared = set.intersection(*(set(p.columns) for p in parts))
    columns: dict[str, Any] = {name: np.concatenate([p.columns[name] for p in parts]) for name in sorted(shared)}
    return SymbolRows(base, ts, columns)

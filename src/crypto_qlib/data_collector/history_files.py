"""Files people bring: parquet, CSV and feather, ours and freqtrade's, read into series of the lake or of the external store.

======================================================  =====================================================
columns                                                 what it is
======================================================  =====================================================
symbol, ts, open, high, low, close[, volume, ...]       candles; mark candles where there is no volume
date, open, high, low, close, volume                    freqtrade's, symbol, frame and kind from the file's name
symbol, ts, funding_rate (or rate)                      settlements
ts, fear_greed                                          Fear & Greed index
symbol = QQQ, ts, open ... volume                       hours or days of the stock index
asset, ts, AdrActCnt, TxCnt ...                         Coin Metrics' daily metrics
series, symbol, event, known, value                     external series with their vintages
======================================================  =====================================================

A time may be called ``ts``, ``date``, ``time``, ``timestamp``, ``datetime`` or ``open_time``; whole numbers are seconds,
milli-, micro- or nanoseconds by their size. Symbols are ccxt's (``BTC/USDT:USDT``) or compact (``BTCUSDT``).
Source: freqtrade ``data/history/datahandlers`` (names, columns; a funding file has the rate in ``open``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from crypto_qlib.core.clock import FRAME_NS
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import IntArray
from crypto_qlib.store.lake import EVENT, TIME, Columns, Kind, Series

SUFFIXES: Final = (".parquet", ".csv", ".feather")
TIME_NAMES: Final = ("ts", "date", "time", "timestamp", "datetime", "open_time")
PRICES: Final = ("open", "high", "low", "close")
_FREQTRADE: Final = re.compile(r"(?P<base>[A-Za-z0-9]+)_(?P<quote>[A-Z]+)_(?P=quote)-(?P<frame>\d+[mhd])-(?P<kind>[a-z_]+)$")
_FREQTRADE_SPOT: Final = re.compile(r"[A-Za-z0-9]+_[A-Z]+-\d+[mhd]$")
_FREQTRADE_KINDS: Final = {"futures": Kind.CANDLES, "mark": Kind.MARK, "funding_rate": Kind.FUNDING}
_SWAP: Final = re.compile(r"(?P<base>[A-Za-z0-9]+)/(?P<quote>[A-Z]+):(?P=quote)$")
_UNITS: Final = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3))
"""Largest value of a time in seconds, milli-, microseconds, and what makes nanoseconds of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one lake series found in a file."""

    series: Series
    rows: Columns


def read_file(path: Path) -> pa.Table:
    """Return the table in ``path``.

    Raises
    ------
    UserError
        If it is none of the formats, or damaged.
    """
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        if path.suffix == ".feather":
            return pyarrow.feather.read_table(path, memory_map=False)
        if path.suffix == ".csv":
            return pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"cannot read {path}: {str(e).splitlines()[0]}", "is it whole, and what its name says it is?") from e
    raise UserError(f"cannot read {path}: not one of {', '.join(SUFFIXES)}")


def files_below(place: Path) -> list[Path]:
    """Return ``place``, or all files of the formats below it, in alphabetical order.

    Raises
    ------
    UserError
        If there is nothing.
    """
    if place.is_file():
        return [place]
    found = sorted(p for p in place.rglob("*") if p.suffix in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise UserError(f"there is no file to import at {place}", f"name a file or folder of {', '.join(SUFFIXES)}")
    return found


def times_of(path: Path, table: pa.Table) -> IntArray:
    """Return the time column of ``table`` in ns since the epoch, naive times read as UTC.

    Raises
    ------
    UserError
        If there is none, a time is missing, or they are not times.
    """
    name = next((n for n in TIME_NAMES if n in table.schema.names), None)
    if name is None:
        raise UserError(
            f"{path} has no time column", f"call it {', '.join(TIME_NAMES)}; it has {', '.join(table.schema.names)}"
        )
    column = table.column(name)
    if column.null_count:
        raise UserError(f"{path}: {column.null_count} rows have no {name}")
    if pa.types.is_integer(column.type):
        values: IntArray = column.to_numpy().astype(np.int64)
        scale = next((f for limit, f in _UNITS if values.size and abs(int(values.max())) < limit), 1)
        return values * scale
    try:
        stamps = column.cast(pa.timestamp("ns", tz="UTC"), safe=False).cast(pa.int64())
    except pa.ArrowException as e:
        raise UserError(f"{path}: {name} holds no times: {str(e).splitlines()[0]}") from e
    return np.asarray(stamps.to_numpy(), np.int64)


def compact_symbol(path: Path, name: str) -> str:
    """Return ``BTCUSDT`` for ``BTC/USDT:USDT`` or ``BTCUSDT``.

    Raises
    ------
    UserError
        For a spot pair, whose prices are not a swap's, and for what is no symbol.
    """
    found = _SWAP.match(name)
    if found is not None:
        return f"{found['base']}{found['quote']}".upper()
    if "/" in name:
        raise UserError(f"{path}: {name} is a spot pair", "the lake holds perpetual swaps, such as BTC/USDT:USDT")
    if not name.isalnum():
        raise UserError(f"{path}: {name!r} is not a symbol like BTC/USDT:USDT or BTCUSDT")
    return name.upper()


def unified_symbol(symbol: str) -> str:
    """Return ccxt's name of a swap, ``BTC/USDT:USDT``, for its compact one."""
    quote = next((q for q in ("USDT", "USDC", "USD") if symbol.endswith(q) and len(symbol) > len(q)), "USDT")
    return f"{symbol.removesuffix(quote)}/{quote}:{quote}"


def pieces_of(path: Path, table: pa.Table, frame: str = "", kind: Kind | None = None) -> Iterator[Piece]:
    """Yield the lake series in ``table``.

    Parameters
    ----------
    path : Path
        The file, for its name and for messages.
    table : pyarrow.Table
        Its rows.
    frame : str
        Bar length; empty = from the name, else from the distance of the bars.
    kind : Kind, optional
        ``CANDLES`` or ``MARK``; by default from the name or from whether there is a volume.

    Raises
    ------
    UserError
        If the table is no history of swaps, or its bars do not lie on the grid of the frame.
    """
    names = table.schema.names
    freqtrade = _FREQTRADE.match(path.stem)
    if freqtrade is not None and "symbol" not in names:
        yield from _of_freqtrade(path, table, freqtrade)
        return
    if "symbol" not in names:
        spot = _FREQTRADE_SPOT.match(path.stem)
        hint = "the lake holds perpetual swaps" if spot else "add a column `symbol`, or use freqtrade's file names"
        raise UserError(f"{path} does not say which swap it is about", hint)
    ts = times_of(path, table)
    rate = next((n for n in ("funding_rate", "rate") if n in names), None)
    if rate is None and not set(PRICES) <= set(names):
        raise UserError(f"{path} has neither open, high, low, close nor funding_rate", f"it has {', '.join(names)}")
    symbols = table.column("symbol").cast(pa.string())
    for name in pc.unique(symbols).to_pylist():
        if name is None:
            raise UserError(f"{path}: some rows have no symbol")
        at = pc.equal(symbols, name).to_numpy()
        symbol, part, times = compact_symbol(path, name), table.filter(pa.array(at)), ts[at]
        if rate is not None:
            yield Piece(Series(Kind.FUNDING, EVENT, symbol), {TIME: times, "rate": _numbers(path, part, rate)})
        else:
            yield _bars(path, part, times, symbol, frame, kind)


def _of_freqtrade(path: Path, table: pa.Table, name: re.Match[str]) -> Iterator[Piece]:
    kind = _FREQTRADE_KINDS.get(name["kind"])
    if kind is None:
        raise UserError(f"{path}: freqtrade's {name['kind']} files have no place in the lake")
    symbol, times = f"{name['base']}{name['quote']}".upper(), times_of(path, table)
    if kind is Kind.FUNDING:
        yield Piece(Series(Kind.FUNDING, EVENT, symbol), {TIME: times, "rate": _numbers(path, table, "open")})
    else:
        yield _bars(path, table, times, symbol, name["frame"], kind)


def _bars(path: Path, table: pa.Table, ts: IntArray, symbol: str, frame: str, kind: Kind | None) -> Piece:
    names = table.schema.names
    frame = frame or _frame_of(path, ts)
    if frame not in FRAME_NS:
        raise UserError(f"{path}: bars of {frame} have no place in the lake", f"there are {', '.join(FRAME_NS)}")
    off = int((ts % FRAME_NS[frame] != 0).sum())
    if off:
        raise UserError(f"{path}: {off} bars of {symbol} do not open on the grid of {frame}", "give the right --frame")
    if kind is None:
        kind = Kind.CANDLES if "volume" in names else Kind.MARK
    rows: Columns = {TIME: ts, **{n: _numbers(path, table, n) for n in PRICES}}
    if kind is Kind.CANDLES:
        absent = np.full(ts.size, np.nan)
        rows |= {n: _numbers(path, table, n) if n in names else absent for n in ("volume", "quote_volume")}
    return Piece(Series(kind, frame, symbol), rows)


def _frame_of(path: Path, ts: IntArray) -> str:
    """Return the bar length the file's name ends with (``..._1h``), else the commonest distance of its bars."""
    named = path.stem.rpartition("_")[2]
    if named in FRAME_NS:
        return named
    steps = np.diff(np.sort(ts))
    steps = steps[steps > 0]
    if not steps.size:
        raise UserError(f"{path}: the length of its bars cannot be told", "give --frame")
    lengths, counts = np.unique(steps, return_counts=True)
    commonest = int(lengths[np.argmax(counts)])
    return next((name for name, ns in FRAME_NS.items() if ns == commonest), f"{commonest // 10**9} s")


def _numbers(path: Path, table: pa.Table, name: str) -> Any:
    try:
        return table.column(name).cast(pa.float64()).to_numpy()
    except pa.ArrowException as e:
        raise UserError(f"{path}: {name} holds something that is no number: {str(e).splitlines()[0]}") from e

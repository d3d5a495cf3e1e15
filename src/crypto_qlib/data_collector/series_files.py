"""External series people bring: Fear & Greed, stock index, Coin Metrics' metrics, and our own export with its vintages.

Values of a file count as known by the same rules as if their source had been asked: a past value from when it is usually
published. What contradicts a stored value counts from the import on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.external_catalogue import BAR_FIELDS
from crypto_qlib.data_collector.history_files import PRICES, times_of
from crypto_qlib.data_collector.sources.alternative_me import PUBLISHED_AFTER_NS
from crypto_qlib.data_collector.sources.alternative_me import SERIES as FEAR_GREED
from crypto_qlib.data_collector.sources.coinmetrics import COMPLETE_AFTER_NS, METRICS
from crypto_qlib.data_collector.sources.source import Answer
from crypto_qlib.data_collector.sources.yahoo import StockBars, dated_bars
from crypto_qlib.store.observations import Observations
from crypto_qlib.store.series_store import MARKET, Recorded, Seen, SeriesStore

VINTAGES = ("series", "symbol", "event", "known", "value")
"""Columns of an export of external series."""
_STOCKS = {"QQQ": "qqq", "^NDX": "ndx", "NDX": "ndx", "NQ=F": "nq", "NQ": "nq"}


def is_series_file(table: pa.Table) -> bool:
    """Return whether ``table`` holds external series rather than history of swaps."""
    names = set(table.schema.names)
    if names >= set(VINTAGES) or FEAR_GREED in names or ("asset" in names and names & set(METRICS)):
        return True
    return "symbol" in names and set(PRICES) <= names and bool(table.num_rows) and _stock_of(table) is not None


def _stock_of(table: pa.Table) -> str | None:
    first = str(table.column("symbol")[0].as_py())
    return _STOCKS.get(first)


def import_series(path: Path, table: pa.Table, store: SeriesStore, now_ns: int) -> tuple[Recorded, tuple[str, ...]]:
    """Add the series in ``table`` to ``store``; return what was new, and notes.

    Raises
    ------
    UserError
        If a row cannot be read, or lies in the future.
    """
    if set(VINTAGES) <= set(table.schema.names):
        return _import_vintages(path, table, store, now_ns), ()
    answers, notes = _answers(path, table, now_ns)
    done = Recorded(0, 0)
    for a in answers:
        seen = Seen(a.event_ns, a.value, a.usually_known_ns, now_ns, is_archive=True)
        got = store.observe(a.series, a.symbol, seen)
        done = Recorded(done.added + got.added, done.corrected + got.corrected)
    return done, notes


def _import_vintages(path: Path, table: pa.Table, store: SeriesStore, now_ns: int) -> Recorded:
    try:
        event, known = (
            table.column(n).cast(pa.timestamp("ns", tz="UTC"), safe=False).cast(pa.int64()).to_numpy()
            for n in ("event", "known")
        )
        value = table.column("value").cast(pa.float64()).to_numpy()
    except pa.ArrowException as e:
        raise UserError(f"{path} is no export of external series: {str(e).splitlines()[0]}") from e
    keys = np.array(
        [f"{a}\0{b}" for a, b in zip(table.column("series").to_pylist(), table.column("symbol").to_pylist(), strict=True)]
    )
    done = Recorded(0, 0)
    for key in np.unique(keys):
        series, _, symbol = str(key).partition("\0")
        at = keys == key
        got = store.append(series, symbol, Observations(event[at], known[at], value[at]), now_ns)
        done = Recorded(done.added + got.added, done.corrected + got.corrected)
    return done


def _answers(path: Path, table: pa.Table, now_ns: int) -> tuple[list[Answer], tuple[str, ...]]:
    ts = times_of(path, table)
    names = table.schema.names
    if FEAR_GREED in names:
        known = ts + PUBLISHED_AFTER_NS
        return [Answer(FEAR_GREED, MARKET, ts, _column(table, FEAR_GREED), known)], ()
    if "asset" in names:
        return _on_chain(table, ts, now_ns), _left_out(table, {*METRICS, "asset"})
    bars = StockBars(ts, {n: _column(table, n) if n in names else np.full(ts.size, np.nan) for n in BAR_FIELDS})
    stem = str(_stock_of(table))
    frame = "1d" if bool((ts % NS_PER_DAY == 0).all()) else "1h"
    answers, n_outside = dated_bars(stem, frame, bars, now_ns)
    notes = (f"{n_outside} bars without a price or outside any session left out",) if n_outside else ()
    return answers, notes


def _on_chain(table: pa.Table, ts: np.ndarray[tuple[int], np.dtype[np.int64]], now_ns: int) -> list[Answer]:
    coins = np.array([str(a).upper() for a in table.column("asset").to_pylist()])
    answers: list[Answer] = []
    for metric, series in METRICS.items():
        if metric not in table.schema.names:
            continue
        values = _column(table, metric)
        for coin in np.unique(coins):
            at = (coins == coin) & np.isfinite(values) & (ts + NS_PER_DAY <= now_ns)
            if at.any():
                known = ts[at] + NS_PER_DAY + COMPLETE_AFTER_NS
                answers.append(Answer(series, str(coin), ts[at], values[at], known))
    return answers


def _left_out(table: pa.Table, used: set[str]) -> tuple[str, ...]:
    unused = [n for n in table.schema.names if n not in used and n != "ts"]
    return (f"columns without a series in the catalogue left out: {', '.join(unused)}",) if unused else ()


def _column(table: pa.Table, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy(), np.float64)


def series_table(store: SeriesStore) -> pa.Table:
    """Return every observation of every series with its vintages, as :func:`import_series` reads it."""
    time = pa.timestamp("ns", tz="UTC")
    schema = pa.schema(
        [("series", pa.string()), ("symbol", pa.string()), ("event", time), ("known", time), ("value", pa.float64())]
    )
    parts = [pa.Table.from_arrays([pa.array([], t) for t in schema.types], schema=schema)]
    for name in store.names():
        for symbol in store.symbols(name):
            rows = store.read(name, symbol)
            texts = [pa.array([t] * len(rows), pa.string()) for t in (name, symbol)]
            times = [pa.array(t, time) for t in (rows.event_ns, rows.known_ns)]
            parts.append(pa.Table.from_arrays([*texts, *times, pa.array(rows.value)], schema=schema))
    return pa.concat_tables(parts)

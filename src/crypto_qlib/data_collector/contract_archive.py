"""Contract specifications and position tiers over time: the exchange forgets them at once, the lake does not.

Each change the collector sees becomes a version with ``valid_from_ns``. The first version of a symbol is taken to hold since
its listing: nothing older can be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument, InstrumentState
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.store.lake import Kind, Lake

_DOCUMENT: Final = "versions"
_FIELDS: Final = tuple(f.name for f in fields(Instrument))
_TYPES: Final[dict[str, pa.DataType]] = {
    **dict.fromkeys(("symbol", "inst_id", "base", "settle", "state"), pa.string()),
    **dict.fromkeys(("funding_interval_h", "listed_ns", "delisted_ns", "valid_from_ns"), pa.int64()),
}
_TIER_COLUMNS: Final = ("max_contracts", "mmr", "imr", "max_leverage")


def instrument_versions(lake: Lake) -> dict[str, tuple[Instrument, ...]]:
    """Return every known version of every instrument by symbol, oldest first; empty if none was ever fetched."""
    found = lake.read_document(Kind.INSTRUMENTS, _DOCUMENT)
    if found is None:
        return {}
    versions: dict[str, list[Instrument]] = {}
    for row in found[0].to_pylist():
        versions.setdefault(row["symbol"], []).append(Instrument(**{**row, "state": InstrumentState(row["state"])}))
    return {symbol: tuple(sorted(v, key=lambda i: i.valid_from_ns)) for symbol, v in versions.items()}


def load_instruments(lake: Lake, symbols: Sequence[str], as_of_ns: int | None = None) -> dict[str, Instrument]:
    """Return the specification of each symbol in force at ``as_of_ns`` (default: the newest).

    Raises
    ------
    UserError
        If the lake has never seen a symbol.
    """
    known = instrument_versions(lake)
    unknown = [s for s in symbols if s not in known]
    if unknown:
        raise UserError(f"no contract specification of {', '.join(unknown)} in the lake", "run `crypto-qlib data update`")
    return {s: _in_force(known[s], as_of_ns) for s in symbols}


def _in_force(versions: Sequence[Instrument], as_of_ns: int | None) -> Instrument:
    if as_of_ns is None:
        return versions[-1]
    return next((v for v in reversed(versions) if v.valid_from_ns <= as_of_ns), versions[0])


def archive_instruments(lake: Lake, seen: Iterable[Instrument], now_ns: int) -> dict[str, Instrument]:
    """Keep the specifications seen now and return the newest version of every symbol ever seen.

    A symbol that is no longer listed becomes ``EXPIRED`` with ``delisted_ns`` = now: it died at some time between this
    look and the last one.

    Parameters
    ----------
    lake : Lake
        Where versions are kept.
    seen : iterable of Instrument
        The exchange's whole list.
    now_ns : int
        When it was seen.
    """
    versions = instrument_versions(lake)
    current = {i.symbol: i for i in seen}
    for symbol, instrument in current.items():
        past = versions.get(symbol, ())
        if not past:
            versions[symbol] = (replace(instrument, valid_from_ns=min(instrument.listed_ns, instrument.valid_from_ns)),)
        elif replace(instrument, valid_from_ns=past[-1].valid_from_ns) != past[-1]:
            versions[symbol] = (*past, replace(instrument, valid_from_ns=now_ns))
    for symbol, past in versions.items():
        if symbol not in current and past[-1].state is not InstrumentState.EXPIRED:
            gone = replace(
                past[-1],
                state=InstrumentState.EXPIRED,
                delisted_ns=now_ns if past[-1].delisted_ns is None else past[-1].delisted_ns,
                valid_from_ns=now_ns,
            )
            versions[symbol] = (*past, gone)
    rows = [{n: getattr(v, n) for n in _FIELDS} for s in sorted(versions) for v in versions[s]]
    lake.write_document(Kind.INSTRUMENTS, _DOCUMENT, _table(rows))
    return {s: v[-1] for s, v in versions.items()}


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([pa.field(n, _TYPES.get(n, pa.float64())) for n in _FIELDS])
    return pa.Table.from_pylist([{**r, "state": str(r["state"])} for r in rows], schema=schema)


def archive_tiers(lake: Lake, symbol: str, seen: TierTable, now_ns: int) -> bool:
    """Keep the tiers of ``symbol`` as seen now; return whether they are a new version."""
    past = _tier_tables(lake, symbol)
    if past and all(np.array_equal(getattr(seen, c), getattr(past[-1], c)) for c in _TIER_COLUMNS):
        return False
    tables = [*past, replace(seen, valid_from_ns=now_ns if past else 0)]
    columns = {c: np.concatenate([getattr(t, c) for t in tables]) for c in _TIER_COLUMNS}
    valid_from = np.repeat([t.valid_from_ns for t in tables], [t.max_contracts.size for t in tables])
    return lake.write_document(Kind.TIERS, symbol, pa.table({"valid_from_ns": valid_from.astype(np.int64), **columns}))


def load_tiers(lake: Lake, symbols: Sequence[str]) -> dict[str, TierHistory]:
    """Return the position tiers of each symbol over time.

    Raises
    ------
    UserError
        If the lake has no tiers of a symbol.
    """
    tables = {s: _tier_tables(lake, s) for s in symbols}
    unknown = [s for s, t in tables.items() if not t]
    if unknown:
        raise UserError(f"no position tiers of {', '.join(unknown)} in the lake", "run `crypto-qlib data update`")
    return {s: TierHistory(t) for s, t in tables.items()}


def _tier_tables(lake: Lake, symbol: str) -> list[TierTable]:
    found = lake.read_document(Kind.TIERS, symbol)
    if found is None:
        return []
    rows = {c: found[0].column(c).to_numpy() for c in found[0].column_names}
    starts = rows["valid_from_ns"]
    tables: list[TierTable] = []
    for start in np.unique(starts):
        part = {c: rows[c][starts == start] for c in _TIER_COLUMNS}
        tables.append(TierTable(valid_from_ns=int(start), **part))
    return tables

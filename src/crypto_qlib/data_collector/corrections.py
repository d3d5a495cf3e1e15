"""What the exchange said first and changed later: the first value is kept beside the newest one.

``lake/corrections/<kind>-<frame>-<symbol>.parquet``: ts, column, old, new, seen_ns. Series always hold the newest value;
research that must not know a correction before it was made reads the value of the time from here.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from crypto_qlib.store.lake import TIME, Columns, Kind, Lake, Series

_SCHEMA: Final = pa.schema(
    [("ts", pa.int64()), ("column", pa.string()), ("old", pa.float64()), ("new", pa.float64()), ("seen_ns", pa.int64())]
)


def _name(series: Series) -> str:
    return f"{series.kind}-{series.frame}-{series.symbol}"


def keep_corrections(lake: Lake, series: Series, rows: Columns, seen_ns: int) -> int:
    """Note every value in ``rows`` that differs from the stored one, and return how many do; call it before storing ``rows``.

    A run that is killed in between notes the same corrections again, which changes nothing.
    """
    times = rows[TIME]
    if not times.size:
        return 0
    stored = lake.read(series, int(times[0]), int(times[-1]) + 1)
    _, at_old, at_new = np.intersect1d(stored[TIME], times, return_indices=True)
    found: list[dict[str, object]] = []
    for name in rows:
        if name == TIME:
            continue
        old, new = stored[name][at_old], rows[name][at_new]
        changed = np.flatnonzero((old != new) & ~(np.isnan(old) & np.isnan(new)))
        found += [
            {"ts": int(times[at_new[k]]), "column": name, "old": float(old[k]), "new": float(new[k]), "seen_ns": seen_ns}
            for k in changed.tolist()
        ]
    if found:
        known = read_corrections(lake, series)
        have = {(r["ts"], r["column"], repr(r["old"]), repr(r["new"])) for r in known.to_pylist()}
        fresh = [r for r in found if (r["ts"], r["column"], repr(r["old"]), repr(r["new"])) not in have]
        if fresh:
            table = pa.concat_tables([known, pa.Table.from_pylist(fresh, schema=_SCHEMA)])
            lake.write_document(Kind.CORRECTIONS, _name(series), table)
    return len(found)


def read_corrections(lake: Lake, series: Series) -> pa.Table:
    """Return the corrections of ``series`` in the order seen; empty where there is none."""
    found = lake.read_document(Kind.CORRECTIONS, _name(series))
    return _SCHEMA.empty_table() if found is None else found[0].cast(_SCHEMA)

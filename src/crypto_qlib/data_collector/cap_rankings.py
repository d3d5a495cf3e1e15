"""Rankings over time: what each source said of coins' prices and market caps, and from when that was known.

::

    lake/market_caps/<source>.parquet     known_ns, coin_id, symbol, name, price, market_cap

One document a source; one *ranking* is all of its rows of one ``known_ns``, complete in itself: a coin that is not in a
source's newest ranking has dropped out of it. Nothing is ever removed, so that a universe can be chosen again as of any time,
with the coins that have died since.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.market_caps import Coin
from crypto_qlib.store.lake import Kind, Lake

_TEXTS: Final = ("coin_id", "symbol", "name")
_NUMBERS: Final = ("price", "market_cap")
_SCHEMA: Final = pa.schema(
    [("known_ns", pa.int64()), *((n, pa.string()) for n in _TEXTS), *((n, pa.float64()) for n in _NUMBERS)]
)
_IMPORTED: Final[dict[str, tuple[str, ...]]] = {
    "symbol": ("symbol", "base", "ticker"),
    "ts": ("ts", "date", "timestamp", "datetime"),
    "market_cap": ("market_cap", "market_cap_usd", "cap"),
    "price": ("price", "price_usd", "close_usd", "close"),
    "name": ("name",),
    "coin_id": ("coin_id", "id", "slug"),
}
_REQUIRED: Final = ("symbol", "ts", "market_cap")


@dataclass(frozen=True, slots=True)
class Ranking:
    """All coins a source ranked at one time.

    Parameters
    ----------
    known_ns : int
        Instant from which it was known.
    source : str
        Name of its document.
    coins : tuple of Coin
        Largest market cap first.
    """

    known_ns: int
    source: str
    coins: tuple[Coin, ...]


def source_name(text: str) -> str:
    """Return ``text`` as a document's name."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"


def keep_rankings(lake: Lake, source: str, rankings: Iterable[tuple[int, Sequence[Coin]]]) -> int:
    """Add ``(known_ns, coins)`` to the document of ``source`` and return how many rankings are new.

    A ranking of a time that is there already is left as it was first told: what was known then does not change.
    """
    known = _read(lake, source)
    times = set(known.column("known_ns").to_pylist())
    rows: list[dict[str, Any]] = []
    added = 0
    for known_ns, coins in rankings:
        if known_ns in times or not coins:
            continue
        times.add(known_ns)
        added += 1
        rows += [{"known_ns": known_ns, **{n: getattr(c, n) for n in (*_TEXTS, *_NUMBERS)}} for c in coins]
    if added:
        table = pa.concat_tables([known, pa.Table.from_pylist(rows, schema=_SCHEMA)])
        order = [("known_ns", "ascending"), ("market_cap", "descending"), ("coin_id", "ascending")]
        lake.write_document(Kind.MARKET_CAPS, source_name(source), table.sort_by(order), {"source": source})
    return added


def _read(lake: Lake, source: str) -> pa.Table:
    found = lake.read_document(Kind.MARKET_CAPS, source_name(source))
    return _SCHEMA.empty_table() if found is None else found[0].cast(_SCHEMA)


def read_rankings(lake: Lake, source: str) -> list[Ranking]:
    """Return every ranking of ``source``, oldest first."""
    table = _read(lake, source)
    known = table.column("known_ns").to_numpy()
    cuts = np.concatenate(([0], np.flatnonzero(np.diff(known)) + 1, [known.size])) if known.size else np.array([0])
    texts = {n: table.column(n).to_pylist() for n in _TEXTS}
    price, cap = (table.column(n).to_numpy() for n in _NUMBERS)
    found: list[Ranking] = []
    for a, b in pairwise(cuts.tolist()):
        coins = [
            Coin(texts["coin_id"][k], texts["symbol"][k], texts["name"][k], float(price[k]), float(cap[k])) for k in range(a, b)
        ]
        found.append(Ranking(int(known[a]), source, tuple(coins)))
    return found


def ranking_sources(lake: Lake) -> tuple[str, ...]:
    """Return the names of the sources there are rankings of."""
    return lake.documents(Kind.MARKET_CAPS)


def merged_rankings(lake: Lake, preferred: Sequence[str] = (), quiet_ns: int = 7 * NS_PER_DAY) -> list[Ranking]:
    """Return the rankings of all sources in order of time, each instant served by the best source that was alive then.

    Parameters
    ----------
    lake : Lake
        Where they lie.
    preferred : sequence of str
        Sources, best first; all others come after these in alphabetical order.
    quiet_ns : int
        A source is passed over while a better one has told something within this time before.
    """
    names = [*(source_name(p) for p in preferred), *ranking_sources(lake)]
    ordered = [n for n in dict.fromkeys(names) if n in ranking_sources(lake)]
    kept: list[Ranking] = []
    better = np.empty(0, np.int64)
    for name in ordered:
        rankings = read_rankings(lake, name)
        times = np.array([r.known_ns for r in rankings], dtype=np.int64)
        before = np.searchsorted(better, times, side="right") - 1
        is_covered = (before >= 0) & (times - better[before] <= quiet_ns) if better.size else np.zeros(times.size, np.bool_)
        kept += [r for r, covered in zip(rankings, is_covered, strict=True) if not covered]
        better = np.sort(np.concatenate((better, times)))
    return sorted(kept, key=lambda r: r.known_ns)


def import_rankings(lake: Lake, path: Path, known_after_ns: int = NS_PER_DAY) -> tuple[str, int]:
    """Read a table of market caps into the lake and return (source, new rankings).

    Parameters
    ----------
    lake : Lake
        Where to.
    path : Path
        Parquet, feather or CSV with columns ``symbol`` (or ``base``), ``ts`` (or ``date``), ``market_cap`` (or
        ``market_cap_usd``) and, where known, ``price`` (``price_usd``, ``close_usd``), ``name`` and ``coin_id``.
    known_after_ns : int
        How long after its stamp a row was known; a daily figure stamped at midnight is known when its day is over.

    Raises
    ------
    UserError
        If the file is missing or damaged, lacks a column, or holds no usable row.
    """
    found = read_ranking_table(path, known_after_ns)
    source = source_name(path.stem)
    return source, keep_rankings(lake, source, [(r.known_ns, r.coins) for r in found])


def read_ranking_table(path: Path, known_after_ns: int = NS_PER_DAY) -> list[Ranking]:
    """Return the rankings of a table of market caps, oldest first; columns and errors as in :func:`import_rankings`."""
    raw, names = _read_table(path)
    rankings: dict[int, list[Coin]] = {}
    for known_ns, coin in _coins_of(raw, names, path, known_after_ns):
        rankings.setdefault(known_ns, []).append(coin)
    if not rankings:
        raise UserError(f"{path} has no row with a market cap above zero", "check its columns")
    by_cap = {t: tuple(sorted(coins, key=lambda c: (-c.market_cap, c.coin_id))) for t, coins in sorted(rankings.items())}
    return [Ranking(t, source_name(path.stem), coins) for t, coins in by_cap.items()]


def _read_table(path: Path) -> tuple[Any, dict[str, str]]:
    """Return the table and the file's name for each column of ours; empty where it has none."""
    import pandas as pd  # noqa: PLC0415 - heavy, only for imports of foreign tables

    readers: dict[str, Any] = {".parquet": pd.read_parquet, ".feather": pd.read_feather, ".csv": pd.read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise UserError(f"{path} is no parquet, feather or CSV file of market caps", "name a file with symbol, ts, market_cap")
    try:
        raw = reader(path)
    except (ValueError, OSError, pa.ArrowException) as e:
        raise UserError(f"{path} cannot be read: {str(e).splitlines()[0]}", "check that it is what its name says") from e
    names = {ours: next((n for n in theirs if n in raw.columns), "") for ours, theirs in _IMPORTED.items()}
    absent = [n for n in _REQUIRED if not names[n]]
    if absent:
        raise UserError(f"{path} has no column {absent[0]}", f"its columns are {', '.join(map(str, raw.columns[:12]))}")
    return raw, names


def _coins_of(raw: Any, names: dict[str, str], path: Path, known_after_ns: int) -> Iterator[tuple[int, Coin]]:
    """Yield (instant from which it was known, coin) for every row with a market cap above zero."""
    import pandas as pd  # noqa: PLC0415

    try:
        stamps = pd.to_datetime(raw[names["ts"]], utc=True).dt.as_unit("ns").astype("int64").to_numpy()
        caps = raw[names["market_cap"]].to_numpy(float)
        prices = raw[names["price"]].to_numpy(float) if names["price"] else np.full(len(raw), np.nan)
    except (ValueError, TypeError) as e:
        raise UserError(f"{path}: {str(e).splitlines()[0]}", "write ISO dates and plain numbers") from e
    tickers = raw[names["symbol"]].astype(str).str.upper().tolist()
    full = raw[names["name"]].astype(str).tolist() if names["name"] else tickers
    ids = raw[names["coin_id"]].astype(str).tolist() if names["coin_id"] else [t.lower() for t in tickers]
    for k in np.flatnonzero(caps > 0.0).tolist():
        yield int(stamps[k]) + known_after_ns, Coin(ids[k], tickers[k], full[k], float(prices[k]), float(caps[k]))

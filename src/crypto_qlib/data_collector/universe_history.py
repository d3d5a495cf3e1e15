"""Universe snapshots, point in time: who was in the universe *as known then*.

Two kinds are kept apart: snapshots **taken** at the time itself (one file each, never changed), and the **rebuilt** history
from before the first of them (:mod:`.universe_rebuild`, one file, derived from rankings). Where both speak, the taken ones do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import pyarrow as pa

from crypto_qlib.core.clock import NS_PER_S, iso, utc
from crypto_qlib.core.membership import Membership, membership_of
from crypto_qlib.store.lake import Kind, Lake

_HISTORY: Final = "rebuilt"
_COLUMNS: Final = {"symbol": pa.string(), "base": pa.string(), "rank": pa.int32(), "market_cap": pa.float64()}


@dataclass(frozen=True, slots=True)
class UniverseMember:
    """One coin of the universe.

    Parameters
    ----------
    symbol, base : str
        The swap (``BTCUSDT``) and its coin (``BTC``).
    rank : int
        Place among the coins that qualify, from 1.
    market_cap : float
        USD; NaN where the ranking is by turnover.
    """

    symbol: str
    base: str
    rank: int
    market_cap: float = math.nan


@dataclass(frozen=True, slots=True)
class UniverseSnapshot:
    """The universe as chosen at one instant.

    Parameters
    ----------
    as_of_ns : int
        When it was chosen; it may be used from then on and not before.
    members : tuple of UniverseMember
        By rank.
    source : str
        Where the ranking came from.
    rule : str
        The settings it was chosen by, see :func:`~crypto_qlib.data_collector.asset_selector.rule_of`.
    notes : tuple of str
        What a person should know: fall-backs, coins refused and why.
    """

    as_of_ns: int
    members: tuple[UniverseMember, ...]
    source: str
    rule: str = ""
    notes: tuple[str, ...] = ()

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the members' symbols by rank."""
        return tuple(m.symbol for m in self.members)


def _name(ts_ns: int) -> str:
    return utc(ts_ns).strftime("%Y%m%dT%H%M%SZ")


def keep_snapshot(lake: Lake, snapshot: UniverseSnapshot) -> None:
    """Write ``snapshot`` into the lake (one file, named by its time).

    Raises
    ------
    UserError
        If the lake cannot be written.
    """
    table = pa.Table.from_pylist(
        [{c: getattr(m, c) for c in _COLUMNS} for m in snapshot.members], schema=pa.schema(list(_COLUMNS.items()))
    )
    meta = {"as_of_ns": snapshot.as_of_ns, "source": snapshot.source, "rule": snapshot.rule, "notes": list(snapshot.notes)}
    lake.write_document(Kind.UNIVERSE, _name(snapshot.as_of_ns), table, meta)


def universe_at(lake: Lake, ts_ns: int) -> UniverseSnapshot | None:
    """Return the newest snapshot taken at or before ``ts_ns``, or ``None`` if there is none.

    Raises
    ------
    UserError
        If its file is damaged.
    """
    names = [n for n in lake.documents(Kind.UNIVERSE) if n <= _name(ts_ns)]
    for name in reversed(names):
        snapshot = _read(lake, name)
        if snapshot.as_of_ns <= ts_ns:  # names are cut to whole seconds
            return snapshot
    return None


def universe_snapshots(lake: Lake) -> tuple[UniverseSnapshot, ...]:
    """Return every snapshot, oldest first."""
    return tuple(_read(lake, name) for name in lake.documents(Kind.UNIVERSE))


def _read(lake: Lake, name: str) -> UniverseSnapshot:
    found = lake.read_document(Kind.UNIVERSE, name)
    if found is None:
        raise FileNotFoundError(name)
    table, meta = found
    members = tuple(UniverseMember(**row) for row in table.to_pylist())
    return UniverseSnapshot(int(meta["as_of_ns"]), members, meta["source"], meta["rule"], tuple(meta["notes"]))


def keep_history(lake: Lake, snapshots: Sequence[UniverseSnapshot]) -> bool:
    """Replace the rebuilt history by ``snapshots`` (oldest first) and return whether it changed."""
    rows = [
        {"as_of_ns": s.as_of_ns, "source": s.source, **{c: getattr(m, c) for c in _COLUMNS}}
        for s in snapshots
        for m in s.members
    ]
    schema = pa.schema([("as_of_ns", pa.int64()), ("source", pa.string()), *_COLUMNS.items()])
    notes = {str(s.as_of_ns): list(s.notes) for s in snapshots if s.notes}
    meta = {"rule": snapshots[0].rule if snapshots else "", "notes": notes}
    return lake.write_document(Kind.UNIVERSE_HISTORY, _HISTORY, pa.Table.from_pylist(rows, schema=schema), meta)


def rebuilt_history(lake: Lake) -> tuple[UniverseSnapshot, ...]:
    """Return the rebuilt history, oldest first; empty where there is none."""
    found = lake.read_document(Kind.UNIVERSE_HISTORY, _HISTORY)
    if found is None:
        return ()
    table, meta = found
    members: dict[int, list[UniverseMember]] = {}
    sources: dict[int, str] = {}
    for row in table.to_pylist():
        as_of = int(row["as_of_ns"])
        sources[as_of] = str(row["source"])
        members.setdefault(as_of, []).append(UniverseMember(**{c: row[c] for c in _COLUMNS}))
    notes = meta["notes"]
    return tuple(
        UniverseSnapshot(t, tuple(m), sources[t], str(meta["rule"]), tuple(notes.get(str(t), ()))) for t, m in members.items()
    )


def all_snapshots(lake: Lake, rule: str) -> tuple[UniverseSnapshot, ...]:
    """Return the whole history under one rule: rebuilt ones from before the first snapshot taken, then those taken."""
    taken = [s for s in universe_snapshots(lake) if s.rule == rule]
    first = taken[0].as_of_ns if taken else None
    before = [s for s in rebuilt_history(lake) if s.rule == rule and (first is None or s.as_of_ns < first)]
    return (*before, *taken)


def load_membership(lake: Lake, rule: str) -> Membership:
    """Return who belonged to the universe when, by the settings of ``rule``; empty where nothing is known."""
    return membership_of((s.as_of_ns, s.symbols) for s in all_snapshots(lake, rule))


def membership_of_lake(lake: Lake) -> Membership | None:
    """Return who belonged when, by the settings the universe was chosen with last; ``None`` if none was ever chosen.

    The first universe known stands in for the time before it. Where the settings ask for no history
    (``universe.point_in_time=false``) the universe chosen last stands in for all of it.
    """
    taken = universe_snapshots(lake)
    if not taken:
        return None
    newest = taken[-1]
    if json.loads(newest.rule or "{}").get("point_in_time", True):
        known = load_membership(lake, newest.rule)
        return known.from_the_start()
    return membership_of([(newest.as_of_ns, newest.symbols)]).from_the_start()


def describe(snapshot: UniverseSnapshot) -> str:
    """Return one line for people: how many coins, from where, when."""
    age = iso(snapshot.as_of_ns // NS_PER_S * NS_PER_S)
    return f"{len(snapshot.members)} coins by {snapshot.source} at {age}"


def changes_lines(snapshots: Sequence[UniverseSnapshot]) -> tuple[str, ...]:
    """Return one line for people per time at which somebody joined or left; the first line tells the span."""
    if not snapshots:
        return ("no universe is known of any time under these settings: run `crypto-qlib universe`",)
    first, last = snapshots[0], snapshots[-1]
    lines = [f"{len(snapshots):,} universes from {iso(first.as_of_ns)} to {iso(last.as_of_ns)}"]
    for before, after in pairwise(snapshots):
        joined = sorted({m.base for m in after.members} - {m.base for m in before.members})
        left = sorted({m.base for m in before.members} - {m.base for m in after.members})
        if joined or left:
            told = "".join(f"  + {b}" for b in joined) + "".join(f"  - {b}" for b in left)
            lines.append(f"  {iso(after.as_of_ns)[:10]}{told}")
    return tuple(lines)

"""Pages of an account's records: newest first, ``after`` older than an id, ``before`` newer than it, both exclusive.

Records are walked from the newest on, only as far as the page reaches: a long history costs a page no more than a short one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.exchange.embedded.wire import Call

_T = TypeVar("_T")
_MOST: Final = 100


def page(
    records: Sequence[_T],
    call: Call,
    id_of: Callable[[_T], int],
    ts_of: Callable[[_T], int],
    oldest_ns: int = 0,
    wanted: Callable[[_T], bool] = lambda _: True,
) -> list[_T]:
    """Return the newest records inside the bounds a request names.

    Parameters
    ----------
    records : sequence
        In order of time, oldest first.
    call : Call
        Its ``after``, ``before`` (ids), ``begin``, ``end`` (milliseconds) and ``limit`` are read.
    id_of, ts_of : callable
        A record's id, and its time in nanoseconds.
    oldest_ns : int
        Records older than this are no longer kept.
    wanted : callable
        Whether a record is among those asked for.
    """
    after, before = call.whole("after"), call.whole("before")
    end, limit = call.whole("end"), call.limit(_MOST, _MOST)
    floor_ns = max(oldest_ns, (call.whole("begin") or 0) * NS_PER_MS)
    found: list[_T] = []
    for record in reversed(records):
        if ts_of(record) < floor_ns or len(found) == limit:
            break
        number = id_of(record)
        is_inside = (end is None or ts_of(record) < (end + 1) * NS_PER_MS) and (after is None or number < after)
        if is_inside and (before is None or number > before) and wanted(record):
            found.append(record)
    return found

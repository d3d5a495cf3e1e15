"""Pages of an account's records: newest first, ``after`` older than an id, ``before`` newer than it, both exclusive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.exchange.embedded.wire import Call

_T = TypeVar("_T")
_MOST: Final = 100


def page(
    records: Iterable[_T], call: Call, id_of: Callable[[_T], int], ts_of: Callable[[_T], int], oldest_ns: int = 0
) -> list[_T]:
    """Return the newest records inside the bounds a request names.

    Parameters
    ----------
    records : iterable
        Oldest first.
    call : Call
        Its ``after``, ``before`` (ids), ``begin``, ``end`` (milliseconds) and ``limit`` are read.
    id_of, ts_of : callable
        A record's id, and its time in nanoseconds.
    oldest_ns : int
        Records older than this are no longer kept.
    """
    after, before = call.whole("after"), call.whole("before")
    begin, end = call.whole("begin"), call.whole("end")
    inside = [
        record
        for record in records
        if ts_of(record) >= max(oldest_ns, (begin or 0) * NS_PER_MS)
        and (end is None or ts_of(record) < (end + 1) * NS_PER_MS)
        and (after is None or id_of(record) < after)
        and (before is None or id_of(record) > before)
    ]
    return inside[::-1][: call.limit(_MOST, _MOST)]

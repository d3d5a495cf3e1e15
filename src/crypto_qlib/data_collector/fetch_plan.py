"""What has to be asked of the exchange: pure functions on times.

A series is complete when every bar of the wanted span is stored or known not to exist. What is missing is asked oldest first
in pieces small enough that a killed run loses little, and the last stored bars are asked again with the new ones, because
exchanges correct them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, floor_ts, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import IntArray
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.coverage import Range, merge_ranges, missing_ranges, subtract_ranges

OVERLAP_BARS: Final = 3
"""Stored bars asked again together with new ones."""
PIECE_BARS: Final = 1500
"""Bars of one piece: what a kill can cost. Five pages of 300."""
SETTLED_AFTER_NS: Final = 2 * NS_PER_DAY
"""Age from which "there is nothing" is believed for good; younger holes are asked again on every run."""
_PUBLISH_DELAY_NS: Final = 5 * NS_PER_MINUTE


def wanted_span(settings: DataSettings, now_ns: int, frame: str = "") -> Range:
    """Return (first open time, close of the last *finished* bar) of the history ``settings`` ask for at ``now_ns``.

    ``frame`` is ``settings.frame`` where not given.

    Raises
    ------
    UserError
        If no bar has closed since ``data.since``.
    """
    frame_ns = FRAME_NS[frame or settings.frame]
    end = floor_ts(now_ns, frame_ns)
    if not settings.since:
        return floor_ts(now_ns - settings.history_days * NS_PER_DAY, frame_ns), end
    start = floor_ts(parse_utc(settings.since), frame_ns)
    if start >= end:
        raise UserError(f"data.since = {settings.since} leaves no finished bar before now", "choose an earlier date")
    return start, end


def bar_requests(present: IntArray, frame_ns: int, wanted: Range, known_empty: Iterable[Range]) -> list[Range]:
    """Return the pieces to ask for, oldest first; none if the series is complete.

    Parameters
    ----------
    present : (n,) int64
        Open times stored, increasing.
    frame_ns : int
        Bar length.
    wanted : (int, int)
        Span to fill.
    known_empty : iterable of ranges
        Where the exchange has nothing.
    """
    missing = missing_ranges(present, frame_ns, wanted, known_empty)
    if not missing:
        return []
    newest = int(present[-1]) + frame_ns if present.size else None
    widened = [
        (max(a - OVERLAP_BARS * frame_ns, wanted[0]) if newest is not None and a >= newest else a, b) for a, b in missing
    ]
    return list(_pieces(merge_ranges(widened), PIECE_BARS * frame_ns))


def _pieces(ranges: Iterable[Range], length: int) -> Iterator[Range]:
    for start, end in ranges:
        for a in range(start, end, length):
            yield a, min(a + length, end)


def settled_holes(asked: Range, answered: IntArray, frame_ns: int, now_ns: int) -> list[Range]:
    """Return where an answer for ``asked`` had no bar and is old enough for that to be believed for good."""
    return missing_ranges(answered, frame_ns, (asked[0], min(asked[1], now_ns - SETTLED_AFTER_NS)))


def funding_requests(wanted: Range, asked: Iterable[Range], now_ns: int) -> list[Range]:
    """Return the ranges of settlements still to be asked; none where no whole hour has passed since the last one.

    Settlements fall on whole hours. ``wanted`` ends at ``now_ns`` here: a settlement is an event, not a bar.
    """
    left = subtract_ranges((wanted[0], now_ns + 1), asked)
    return [(a, b) for a, b in left if -(-a // NS_PER_HOUR) * NS_PER_HOUR < b]


def asked_funding(asked: Range, answered: IntArray, now_ns: int) -> Range:
    """Return how much of ``asked`` needs no second question.

    All of it up to the last settlement in the answer, and up to five minutes before now in any case.
    """
    last = int(answered[-1]) + 1 if answered.size else asked[0]
    return asked[0], min(asked[1], max(last, now_ns - _PUBLISH_DELAY_NS))


def finished(ts_open: IntArray, frame_ns: int, asked: Range, now_ns: int) -> IntArray:
    """Return the positions of the bars that were asked for, lie on the grid and have closed by ``now_ns``."""
    is_good = (ts_open >= asked[0]) & (ts_open < asked[1]) & (ts_open + frame_ns <= now_ns) & (ts_open % frame_ns == 0)
    return np.flatnonzero(is_good)

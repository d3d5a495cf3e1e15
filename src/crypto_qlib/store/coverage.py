"""Half-open time ranges ``[start, end)`` that were asked of a source: what need not be asked again.

Rows that exist prove themselves; what has to be remembered is where the source answered *nothing*: before a listing,
during an outage, after a delisting. Ranges are nanoseconds since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from crypto_qlib.core.market import IntArray
from crypto_qlib.store.parquet_file import write_atomic

Range = tuple[int, int]


def merge_ranges(ranges: Iterable[Range]) -> list[Range]:
    """Return the same instants as sorted, disjoint, non-touching ranges; empty ranges vanish."""
    merged: list[Range] = []
    for start, end in sorted(r for r in ranges if r[0] < r[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def subtract_ranges(whole: Range, taken: Iterable[Range]) -> list[Range]:
    """Return what is left of ``whole`` outside ``taken``, oldest first."""
    left: list[Range] = []
    at = whole[0]
    for start, end in merge_ranges(taken):
        if end <= at:
            continue
        if start >= whole[1]:
            break
        if start > at:
            left.append((at, start))
        at = end
    if at < whole[1]:
        left.append((at, whole[1]))
    return left


def missing_ranges(present: IntArray, frame_ns: int, wanted: Range, known_empty: Iterable[Range] = ()) -> list[Range]:
    """Return the ranges of the grid inside ``wanted`` that hold no bar and are not known to be empty, oldest first.

    Parameters
    ----------
    present : (n,) int64
        Open times that exist, any order, on the grid of ``frame_ns``.
    frame_ns : int
        Bar length; ``wanted`` is cut to whole bars that open inside it.
    wanted : (int, int)
        First open time and end (exclusive).
    known_empty : iterable of ranges
        Where the source is known to have nothing.
    """
    first = -(-wanted[0] // frame_ns)
    last = -(-wanted[1] // frame_ns)
    if last <= first:
        return []
    is_missing = np.ones(last - first, dtype=np.bool_)
    slots = present // frame_ns - first
    is_missing[slots[(slots >= 0) & (slots < last - first)]] = False
    for start, end in known_empty:
        low = max(-(-start // frame_ns) - first, 0)
        high = min(-(-end // frame_ns) - first, last - first)
        if low < high:
            is_missing[low:high] = False
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_missing, [False])).astype(np.int8)))
    return [(int(first + a) * frame_ns, int(first + b) * frame_ns) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def read_ranges(path: Path) -> list[Range]:
    """Return the ranges kept in ``path``; none if the file is absent or unreadable (they will be asked again)."""
    try:
        return merge_ranges((int(a), int(b)) for a, b in json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return []


def write_ranges(path: Path, ranges: Iterable[Range]) -> None:
    """Keep ``ranges`` in ``path``, atomically."""
    write_atomic(path, json.dumps(merge_ranges(ranges)).encode())

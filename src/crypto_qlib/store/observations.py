"""What was known when: observations of one series, cut at a moment and joined onto bars. Pure arrays, no files.

An observation says: *this value, about that event, was known from then on*. A correction is a later observation of the same
event, kept beside the first. Whatever is served at ``as_of`` rests on observations known by then and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.market import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Observations:
    """Observations of one series, sorted by event, then by the time they became known.

    Parameters
    ----------
    event_ns : (n,) int64
        What the value is about: the open of a bar, the start of a day, the instant of a snapshot; ns since the epoch.
    known_ns : (n,) int64
        From when the value was known; never before the event, as a rule long after it.
    value : (n,) float64
        The value; NaN where the source withdrew it.
    """

    event_ns: IntArray
    known_ns: IntArray
    value: FloatArray

    def __post_init__(self) -> None:
        if not self.event_ns.shape == self.known_ns.shape == self.value.shape:
            raise ValueError("event_ns, known_ns and value must be equally long")

    def __len__(self) -> int:
        return int(self.event_ns.size)

    @staticmethod
    def empty() -> Observations:
        """Return no observation."""
        return Observations(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Observations:
        """Return the observations at ``rows`` (a mask or indices)."""
        return Observations(self.event_ns[rows], self.known_ns[rows], self.value[rows])


@dataclass(frozen=True, slots=True)
class AsOf:
    """A series as it was known at given instants.

    Parameters
    ----------
    value : (n,) float64
        Newest value of the newest event known by then; NaN before the first, and where it is older than allowed.
    age_ns : (n,) int64
        Time since that event's *first* value became known (a correction does not make it fresher); -1 where none is known.
    event_ns : (n,) int64
        The event; -1 where none is known.
    """

    value: FloatArray
    age_ns: IntArray
    event_ns: IntArray


def in_canonical_order(rows: Observations) -> Observations:
    """Return ``rows`` sorted by event and known time, without those that only repeat the value before them."""
    order = np.lexsort((rows.known_ns, rows.event_ns))
    rows = rows.take(order)
    is_same_event = np.append(False, rows.event_ns[1:] == rows.event_ns[:-1])
    before = np.append(np.nan, rows.value[:-1])
    is_same_value = (rows.value == before) | (np.isnan(rows.value) & np.isnan(before))
    return rows.take(~(is_same_event & is_same_value))


def known_at(rows: Observations, as_of_ns: int) -> Observations:
    """Return one observation an event, oldest event first: the last one known at ``as_of_ns``.

    Parameters
    ----------
    rows : Observations
        Sorted as :class:`Observations` says.
    as_of_ns : int
        Nothing known later than this instant is in the result.
    """
    seen = rows.take(rows.known_ns <= as_of_ns)
    return seen.take(np.append(seen.event_ns[1:] != seen.event_ns[:-1], True)[: len(seen)])


def join_as_of(rows: Observations, instants: IntArray, max_age_ns: int | None = None) -> AsOf:
    """Return the series as it was known at each of ``instants``, e.g. at the closes of bars.

    Parameters
    ----------
    rows : Observations
        Sorted as :class:`Observations` says.
    instants : (n,) int64
        Any order, ns since the epoch.
    max_age_ns : int, optional
        A value whose event became known longer ago is not carried on: NaN. Unlimited by default.

    Notes
    -----
    In order of known time, an observation is in force unless a newer event is already known; the one in force at an instant
    is then the last such row known by it. A correction of an older event changes nothing at the front.
    """
    first_known = _first_known(rows)
    order = np.lexsort((rows.event_ns, rows.known_ns))
    event, known = rows.event_ns[order], rows.known_ns[order]
    is_front = event == np.maximum.accumulate(event) if event.size else np.empty(0, np.bool_)
    front = np.maximum.accumulate(np.where(is_front, np.arange(event.size), -1)) if event.size else np.empty(0, np.int64)
    at = np.searchsorted(known, instants, side="right") - 1
    is_known = at >= 0
    row = order[front[np.maximum(at, 0)]] if event.size else np.zeros(instants.size, np.int64)
    if not event.size:
        nothing = np.full(instants.size, -1, np.int64)
        return AsOf(np.full(instants.size, np.nan), nothing, nothing.copy())
    age = np.where(is_known, instants - first_known[row], -1)
    value = np.where(is_known, rows.value[row], np.nan)
    if max_age_ns is not None:
        value = np.where(age > max_age_ns, np.nan, value)
    return AsOf(value, age, np.where(is_known, rows.event_ns[row], -1))


def _first_known(rows: Observations) -> IntArray:
    """Return for every row when the first value of its event became known."""
    if not len(rows):
        return rows.known_ns
    starts = np.flatnonzero(np.append(True, rows.event_ns[1:] != rows.event_ns[:-1]))
    return np.repeat(rows.known_ns[starts], np.diff(np.append(starts, len(rows))))

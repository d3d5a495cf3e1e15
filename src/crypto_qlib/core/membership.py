"""Who belonged to the universe when, *as known then*: the mask that features, training, backtest and live share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_LONG_AGO: Final = -(2**62)
"""Before every market; not the least int64, which has no difference to today that fits."""


@dataclass(frozen=True, slots=True)
class Membership:
    """The universe over time as a step function.

    Parameters
    ----------
    as_of_ns : (n_snapshots,) int64
        Increasing instants; row ``k`` is in force from ``as_of_ns[k]`` until the next one.
    symbols : tuple of str
        Length ``n_symbols``: everybody who ever belonged.
    is_member : (n_snapshots, n_symbols) bool
        Who belonged.
    """

    as_of_ns: IntArray
    symbols: tuple[str, ...]
    is_member: BoolArray

    def __post_init__(self) -> None:
        if np.any(np.diff(self.as_of_ns) <= 0):
            raise ValueError("Membership.as_of_ns must increase")
        if self.is_member.shape != (self.as_of_ns.size, len(self.symbols)):
            raise ValueError(f"Membership.is_member has shape {self.is_member.shape}, not (n_snapshots, n_symbols)")

    def at(self, symbols: Sequence[str], known_ns: IntArray) -> BoolArray:
        """Return who was a member at each instant, ``(n_times, n_symbols)``.

        Parameters
        ----------
        symbols : sequence of str
            Columns of the result; a symbol that never belonged is never a member.
        known_ns : (n_times,) int64
            Instants, e.g. bar closes. Before the first snapshot nobody was known to be a member.
        """
        column_of = {s: j for j, s in enumerate(self.symbols)}
        columns = [column_of.get(s, -1) for s in symbols]
        rows = np.searchsorted(self.as_of_ns, known_ns, side="right") - 1
        padded = np.pad(self.is_member, ((0, 1), (0, 1)))  # row and column -1: nobody, never
        result: BoolArray = padded[rows][:, columns]
        return result

    def from_the_start(self) -> Membership:
        """Return the same with the first snapshot in force from the beginning of time: hindsight, to be said aloud."""
        if not self.as_of_ns.size:
            return self
        start = np.concatenate((np.array([_LONG_AGO], dtype=np.int64), self.as_of_ns[1:]))
        return Membership(start, self.symbols, self.is_member)

    def ever(self, start_ns: int, end_ns: int) -> tuple[str, ...]:
        """Return every symbol that belonged at some instant of ``[start_ns, end_ns)``, in the order of ``symbols``."""
        first = max(int(np.searchsorted(self.as_of_ns, start_ns, side="right")) - 1, 0)
        stop = int(np.searchsorted(self.as_of_ns, end_ns, side="left"))
        seen = np.flatnonzero(self.is_member[first:stop].any(axis=0))
        return tuple(self.symbols[j] for j in seen)


def membership_of(snapshots: Iterable[tuple[int, Sequence[str]]]) -> Membership:
    """Return the membership that ``(as_of_ns, symbols)`` snapshots tell, in order of time; the later of equal times counts."""
    by_time = {as_of: tuple(names) for as_of, names in snapshots}
    times = sorted(by_time)
    order = {s: None for t in times for s in by_time[t]}
    column_of = {s: j for j, s in enumerate(order)}
    is_member = np.zeros((len(times), len(column_of)), dtype=np.bool_)
    for row, t in enumerate(times):
        is_member[row, [column_of[s] for s in by_time[t]]] = True
    return Membership(np.array(times, dtype=np.int64), tuple(column_of), is_member)

"""Which fee rates an account pays: by its level, and by date, because both schedules and levels change.

A live account reads its own rates from the exchange (``GET /account/trade-fee``); what is written here is for simulations.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from crypto_qlib.core.clock import parse_utc
from crypto_qlib.core.costs import FeeSchedule

_MOST: Final = 0.01
"""Largest rate that can be meant: more is a per cent figure taken for a fraction."""


class FeeHistory:
    """The rates of one account over time.

    Parameters
    ----------
    schedules : sequence of FeeSchedule
        At least one; any order.

    Raises
    ------
    ValueError
        If ``schedules`` is empty.
    """

    def __init__(self, schedules: Sequence[FeeSchedule]) -> None:
        if not schedules:
            raise ValueError("a fee history needs at least one schedule")
        self._schedules = sorted(schedules, key=lambda s: s.valid_from_ns)
        self._starts = [s.valid_from_ns for s in self._schedules]

    def at(self, ts_ns: int) -> FeeSchedule:
        """Return the rates in force at ``ts_ns``; before the first schedule, the first one."""
        return self._schedules[max(bisect_right(self._starts, ts_ns) - 1, 0)]

    def after(self, ts_ns: int) -> tuple[FeeSchedule, ...]:
        """Return the schedules that come into force later than ``ts_ns``, oldest first."""
        return tuple(self._schedules[max(bisect_right(self._starts, ts_ns), 1) :])


@dataclass(frozen=True, slots=True)
class FeeTable:
    """An exchange's published rates by account level, in force from one instant on.

    Parameters
    ----------
    valid_from_ns : int
        Instant from which the table holds.
    levels : mapping
        Level (``LV1``, ``VIP3``) -> (maker, taker), fractions of the fill's notional; a negative maker rate is a rebate.
    """

    valid_from_ns: int
    levels: Mapping[str, tuple[float, float]]

    def schedule(self, level: str) -> FeeSchedule:
        """Return the rates of ``level``.

        Raises
        ------
        ValueError
            If the table has no such level; the message lists those it has.
        """
        name = level.strip().upper()
        if name not in self.levels:
            raise ValueError(f"no fee level {level!r}; known: {', '.join(self.levels)}")
        maker, taker = self.levels[name]
        return FeeSchedule(maker, taker, self.valid_from_ns)


OKX_SWAP_2019: Final = FeeTable(
    parse_utc("2019-11-04T16:00:00"),
    MappingProxyType(
        {
            "LV1": (0.00020, 0.00050),
            "LV2": (0.00018, 0.00045),
            "LV3": (0.00017, 0.00040),
            "LV4": (0.00016, 0.00035),
            "LV5": (0.00015, 0.00030),
            "VIP1": (0.00010, 0.00030),
            "VIP2": (0.00005, 0.00030),
            "VIP3": (0.00000, 0.00030),
            "VIP4": (-0.00005, 0.00030),
            "VIP5": (-0.00008, 0.00030),
            "VIP6": (-0.00010, 0.00030),
            "VIP7": (-0.00015, 0.00030),
        }
    ),
)
"""Perpetual swaps from 4 November 2019 on, the last complete table at hand; a regular user (LV1) still pays the same today.
Source: the exchange's announcement "Perpetual Swap Fee Adjustments", 29 October 2019."""


def fees_of_level(level: str, tables: Sequence[FeeTable] = (OKX_SWAP_2019,)) -> FeeHistory:
    """Return what an account of ``level`` pays over time; a table without that level leaves the rates as they were.

    Parameters
    ----------
    level : str
        Name of the level, in any case.
    tables : sequence of FeeTable
        Published tables, any order.

    Raises
    ------
    ValueError
        If no table has the level.
    """
    name = level.strip().upper()
    known = [table.schedule(name) for table in tables if name in table.levels]
    if not known:
        raise ValueError(f"no fee level {level!r}; known: {', '.join(sorted({n for t in tables for n in t.levels}))}")
    return FeeHistory(known)


def account_fees(first: FeeSchedule, level: str = "", changes: Sequence[str] = ()) -> FeeHistory:
    """Return what one account pays over time: its rates or level at first, then every change.

    Parameters
    ----------
    first : FeeSchedule
        Rates at first, where ``level`` is empty.
    level : str
        Fee level at first: its published rates over time.
    changes : sequence of str
        ``DATE=LEVEL`` or ``DATE=MAKER/TAKER`` each (``2026-03-01=VIP2``, ``2026-06-01=0.0001/0.0003``), an ISO date or time
        in UTC: from then on that level's published rates over time, or those rates.

    Raises
    ------
    ValueError
        If a date cannot be read, comes twice, a level is unknown, or rates are no two fractions within 1 %.
    """
    parts = [(0, FeeHistory([first]) if not level else fees_of_level(level))]
    for text in changes:
        when, _, what = text.partition("=")
        parts.append((parse_utc(when.strip()), _rates_of(text, what.strip())))
    starts = [start for start, _ in parts]
    if len(set(starts)) < len(starts):
        raise ValueError(f"two fee changes at one instant: {', '.join(changes)}")
    parts.sort(key=lambda part: part[0])
    ends = [start for start, _ in parts[1:]] + [None]
    schedules: list[FeeSchedule] = []
    for (start, history), end in zip(parts, ends, strict=True):
        later = [s for s in history.after(start) if end is None or s.valid_from_ns < end]
        schedules += [replace(history.at(start), valid_from_ns=start), *later]
    return FeeHistory(schedules)


def _rates_of(text: str, what: str) -> FeeHistory:
    if "/" not in what:
        return fees_of_level(what)
    maker, _, taker = what.partition("/")
    try:
        schedule = FeeSchedule(float(maker), float(taker))
    except ValueError as error:
        raise ValueError(f"{text!r} is no DATE=LEVEL or DATE=MAKER/TAKER") from error
    if not (abs(schedule.maker) <= _MOST and 0.0 <= schedule.taker <= _MOST):
        raise ValueError(f"{text!r}: rates are fractions of notional within {_MOST:g}, the taker's not negative")
    return FeeHistory([schedule])

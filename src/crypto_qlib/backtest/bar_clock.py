"""What comes into force as time goes on in a run: daily figures, tiers, fee rates, delistings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.desk import Desk
from crypto_qlib.backtest.desk_margin import refresh_all
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.portfolio.contract_table import NEVER_NS
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules

RecordArray = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]


class Calendar(NamedTuple):
    """Instants, nanoseconds since the epoch, at which what a run knows or obeys changes.

    Parameters
    ----------
    state_as_of : (n_state_bars,) int64
        Instants from which the rows of the market state are known.
    day_start, version_start : (n_days,), (n_versions,) int64
        Instants from which the rows of the daily figures, and the versions of the tiers, hold.
    fees : (n_changes,) FEE_CHANGE
        Fee rates that come into force during the run.
    delisted_ns : (n_symbols,) int64
        Instants from which symbols trade no longer.
    first_delisting_ns : int
        The earliest of them.
    """

    state_as_of: IntArray
    day_start: IntArray
    version_start: IntArray
    fees: RecordArray
    delisted_ns: IntArray
    first_delisting_ns: int


@njit_leaf
def take_rates(rules: Any, change: Any) -> None:
    """Write the fee rates of a change into the record of the rules, which this run alone reads."""
    rules.maker_fee = change.maker
    rules.taker_fee = change.taker


@njit_lent
def follow_clock(rules: Rules, state: StateArrays, calendar: Calendar, desk: Desk, ts_ns: int) -> None:
    """Step to the daily figures, tiers and fee rates in force at ``ts_ns``, and note when the next of them change."""
    totals = desk.totals[0]
    day_start, version_start, fees = calendar.day_start, calendar.version_start, calendar.fees
    while totals.day + 1 < day_start.size and day_start[totals.day + 1] <= ts_ns:
        totals.day += 1
    old = totals.version
    while totals.version + 1 < version_start.size and version_start[totals.version + 1] <= ts_ns:
        totals.version += 1
    is_new = totals.version != old
    while totals.fee_row < fees.size and fees[totals.fee_row].start_ns <= ts_ns:
        take_rates(rules, fees[totals.fee_row])
        totals.fee_row += 1
        is_new = True
    if is_new:
        refresh_all(rules, state, totals.version, desk)
    totals.next_change = next_change(day_start, version_start, fees, desk.totals)


@njit_lent
def next_change(day_start: IntArray, version_start: IntArray, fees: RecordArray, totals: RecordArray) -> int:
    """Return the next instant at which daily figures, tiers or fees change; the largest integer where there is none."""
    change = NEVER_NS
    day, version, fee_row = totals[0].day, totals[0].version, totals[0].fee_row
    if fee_row < fees.size:
        change = fees[fee_row].start_ns
    if day + 1 < day_start.size:
        change = min(change, day_start[day + 1])
    if version + 1 < version_start.size:
        change = min(change, version_start[version + 1])
    return change

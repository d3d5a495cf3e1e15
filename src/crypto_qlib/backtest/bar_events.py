"""Which levels of the open positions a bar sets off, at its open and inside it, adverse extreme first.

Every rule is a call of the function the venue itself uses (:mod:`crypto_qlib.venue.simulator`, steps 0, 3, 8 and 9).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.bookkeeping import close_position
from crypto_qlib.backtest.desk import Bars, Desk, Execution
from crypto_qlib.backtest.desk_margin import refresh_guard, start_cooldown
from crypto_qlib.backtest.fill_prices import protection_price
from crypto_qlib.backtest.takeovers import liquidation_step, write_ambiguous
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.venue.liquidation import adl_rank
from crypto_qlib.venue.matching import (
    ADL,
    DELISTED,
    LIQUIDATION,
    NO_EXIT,
    STOP,
    TAKE_PROFIT,
    TRAILING,
    gap_exit,
    intrabar_exit,
    is_passed,
    optimistic_exit,
    trailing_best,
    trailing_level,
)

RecordArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit_lent
def close_delisted(rules: Rules, desk: Desk, t: int, ts_ns: int, delisted_ns: IntArray) -> None:
    """Close positions in symbols that trade no longer, at their last known mark."""
    for k in range(desk.totals[0].n_open - 1, -1, -1):
        j = desk.open_columns[k]
        if delisted_ns[j] <= ts_ns:
            mark = desk.book[j].mark
            close_position(rules, desk, t, j, DELISTED, mark, mark)


@njit_leaf
def is_touched(p: Any, low: float, high: float, mark_low: float, mark_high: float, stop_on_mark: bool) -> bool:
    """Return whether any level of a position lies within the bar's range; False for a missing bar.

    The open lies within the range too, so a bar that touches nothing sets nothing off, neither at its open nor inside.
    """
    trigger_low, trigger_high = (mark_low, mark_high) if stop_on_mark else (low, high)
    is_long = p.side > 0.0
    guard, take, liq = p.guard, p.take, p.liq
    # Without a branch on the side, which no processor could foresee.
    below, above = (guard if is_long else take), (take if is_long else guard)
    adverse_mark = mark_low if is_long else mark_high
    touched: bool = (trigger_low <= below) | (trigger_high >= above) | is_passed(p.side, adverse_mark, liq)
    return touched


@njit_leaf
def last_touched(
    rules: Rules, book: RecordArray, open_columns: IntArray, n_open: int, low: FloatArray, high: FloatArray,
    mark_low: FloatArray, mark_high: FloatArray, t: int,
) -> int:  # fmt: skip
    """Return the place of the last open position with a level within the bar's range (:func:`is_touched`), -1 for none."""
    for k in range(n_open - 1, -1, -1):
        j = open_columns[k]
        if is_touched(book[j], low[t, j], high[t, j], mark_low[t, j], mark_high[t, j], rules.stop_on_mark):
            return k
    return -1


@njit_leaf
def meet_level(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, version: int, desk: Desk, j: int,
    bar_close_ns: int, at_open: bool,
) -> None:  # fmt: skip
    """Apply what the open (steps b and c) or the inside of the bar (e to h) sets off for one position."""
    while True:
        p = desk.book[j]
        if at_open:
            code, raw = gap_exit(
                p.side, bars.open[t, j], bars.mark_open[t, j], p.guard, p.take, p.liq, rules.stop_on_mark
            )  # fmt: skip
        else:
            is_new = p.touched_bar == t and not execution.take_profit_in_entry_bar
            code, raw, is_ambiguous = intrabar_exit(
                p.side, bars.open[t, j], bars.high[t, j], bars.low[t, j], bars.mark_open[t, j], bars.mark_high[t, j],
                bars.mark_low[t, j], p.guard, p.take, p.liq, rules.stop_on_mark, is_new,
            )  # fmt: skip
            if is_ambiguous:
                tell_ambiguous(rules, bars, t, desk, j, code, raw)
        if code == NO_EXIT:
            return
        if code != LIQUIDATION:
            leave_at_level(rules, execution, state, bars, t, day, desk, j, p.guard_kind if code == STOP else code, raw,
                           bar_close_ns)  # fmt: skip
            return
        start_cooldown(rules, desk, bar_close_ns, j)
        if not liquidation_step(rules, execution, state, version, desk, t, j, raw):
            return


@njit_leaf
def leave_at_level(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, desk: Desk, j: int, code: int,
    raw: float, bar_close_ns: int,
) -> None:  # fmt: skip
    """Close a position whose stop, trailing stop or take-profit was set off at ``raw``."""
    p = desk.book[j]
    price = protection_price(rules, execution, state, bars, t, day, j, -p.side, raw, abs(p.lots), code)
    close_position(rules, desk, t, j, code, price, raw)
    if code != TAKE_PROFIT:
        start_cooldown(rules, desk, bar_close_ns, j)


@njit_lent
def tell_ambiguous(rules: Rules, bars: Bars, t: int, desk: Desk, j: int, code: int, raw: float) -> None:
    """Write down that another order of events inside the bar would have given another outcome than ``code`` at ``raw``."""
    p = desk.book[j]
    kind, kindest = optimistic_exit(
        p.side, bars.high[t, j], bars.low[t, j], bars.mark_high[t, j], bars.mark_low[t, j], p.take, p.guard, code, raw,
        rules.stop_on_mark,
    )  # fmt: skip
    write_ambiguous(desk, t, j, code, raw, kind, kindest, bars.close[t, j])


@njit_leaf
def meet_levels(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, version: int, desk: Desk,
    bar_close_ns: int, at_open: bool, last: int,
) -> None:  # fmt: skip
    """Let open positions, from place ``last`` down, meet the levels the bar touches, at its open or inside it.

    Without a bar nothing happens.
    """
    for k in range(last, -1, -1):
        j = desk.open_columns[k]
        if is_touched(
            desk.book[j], bars.low[t, j], bars.high[t, j], bars.mark_low[t, j], bars.mark_high[t, j], rules.stop_on_mark
        ) and not math.isnan(bars.open[t, j]):
            meet_level(rules, execution, state, bars, t, day, version, desk, j, bar_close_ns, at_open)


@njit_lent
def deleverage(rules: Rules, execution: Execution, bars: Bars, t: int, desk: Desk) -> None:
    """Close the positions that gain from a mark move beyond the stress switch at the bar's mark close, the highest rank first.

    Nothing is closed twice: a closed position is no longer among the open ones.
    """
    while True:
        first = -1
        highest = 0.0
        for k in range(desk.totals[0].n_open):
            j = desk.open_columns[k]
            p = desk.book[j]
            if math.isnan(bars.open[t, j]):
                continue
            opened = bars.mark_open[t, j]
            move = bars.mark_high[t, j] / opened - 1.0 if p.side > 0.0 else 1.0 - bars.mark_low[t, j] / opened
            margin = p.qty * p.entry / p.leverage if rules.cross else p.margin
            rank = adl_rank(p.side, p.qty, p.entry, bars.mark_close[t, j], margin)
            if move >= execution.adl_stress_move and rank > highest:
                first = j
                highest = rank
        if first < 0:
            return
        mark = bars.mark_close[t, first]
        close_position(rules, desk, t, first, ADL, mark, mark)


@njit_lent
def ratchet_stops(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, desk: Desk, bar_close_ns: int
) -> None:
    """Move trailing stops up behind the bar's favourable extreme; close where the bar ended beyond the new level."""
    for k in range(desk.totals[0].n_open - 1, -1, -1):
        j = desk.open_columns[k]
        p = desk.book[j]
        if math.isnan(p.trail) or math.isnan(bars.open[t, j]):
            continue
        on_mark = rules.stop_on_mark
        high, low, close = (
            (bars.mark_high[t, j], bars.mark_low[t, j], bars.mark_close[t, j]) if on_mark
            else (bars.high[t, j], bars.low[t, j], bars.close[t, j])
        )  # fmt: skip
        p.best = trailing_best(p.side, p.best, high, low)
        refresh_guard(desk, j)
        level = trailing_level(p.side, p.best, p.trail)
        if is_passed(p.side, close, level):
            raw = p.side * min(p.side * level, p.side * bars.close[t, j]) if on_mark else level
            leave_at_level(rules, execution, state, bars, t, day, desk, j, TRAILING, raw, bar_close_ns)

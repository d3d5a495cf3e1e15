"""What happens to the open positions in one bar: the venue's bar algorithm on compiled records.

Steps (a)-(h) of :mod:`crypto_qlib.venue.simulator`: funding, gap tests and passed levels at the open, planned orders at the
open, then the inside of the bar, adverse extreme first. Every rule is a call of the function the venue itself uses.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.bookkeeping import (
    MARGIN_TOLERANCE,
    Bars,
    Desk,
    Execution,
    close_position,
    cross_account,
    liquidate_part,
    liquidate_whole,
    lots_to_liquidate,
    lowest_requirement,
    market_price,
    open_position,
    protection_price,
    refresh_guard,
    refresh_margin,
    settle_cross,
    settle_funding,
    settle_isolated,
    write_ambiguous,
)
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.margin import requirement, unrealised_pnl
from crypto_qlib.core.tiers import NO_TIER, tier_index
from crypto_qlib.portfolio.decision import EXIT_TIME, Held, PlanRows
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.sizing import column
from crypto_qlib.venue.funding_clock import is_settlement
from crypto_qlib.venue.liquidation import along, cross_adverse_mark, floor_at_zero, trigger_fraction
from crypto_qlib.venue.matching import (
    DELISTED,
    LIQUIDATION,
    NO_EXIT,
    REPLACED,
    STOP,
    TAKE_PROFIT,
    TIME,
    TRAILING,
    fillable_lots,
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

_CLEARLY: Final = 1e-9
"""Share of the account by which it must be above its requirement to be safe without the exact test."""


@njit_lent
def close_delisted(rules: Rules, desk: Desk, t: int, ts_ns: int, delisted_ns: IntArray) -> None:
    """Close positions in symbols that trade no longer, at their last known mark."""
    for k in range(desk.totals[0].n_open - 1, -1, -1):
        j = desk.open_columns[k]
        if delisted_ns[j] <= ts_ns:
            mark = desk.book[j].mark
            close_position(rules, desk, t, j, DELISTED, mark, mark)


@njit_leaf
def start_cooldown(rules: Rules, desk: Desk, bar_close_ns: int, j: int) -> None:
    """Keep column ``j`` out for a while after a stop-out or liquidation."""
    desk.cooldown_until_ns[j] = bar_close_ns + rules.cooldown_bars * rules.frame_ns


@njit_leaf
def fund_cross(rules: Rules, desk: Desk, bars: Bars, t: int) -> None:
    """Mark the cross positions at the bar's open and settle their funding (step a); without a bar the last mark stands."""
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        if not math.isnan(bars.open[t, j]):
            desk.book[j].mark = bars.mark_open[t, j]
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        rate = bars.funding_rate[t, j]
        if is_settlement(rate):
            settle_cross(rules, desk, t, j, rate, desk.book[j].mark, False)


@njit_leaf
def is_touched(p: Any, low: float, high: float, mark_low: float, mark_high: float, stop_on_mark: bool) -> bool:
    """Return whether any level of a position lies within the bar's range; False for a missing bar.

    The open lies within the range too, so a bar that touches nothing sets nothing off, neither at its open nor inside.
    """
    trigger_low, trigger_high = (mark_low, mark_high) if stop_on_mark else (low, high)
    if p.side > 0.0:
        touched: bool = trigger_low <= p.guard or mark_low <= p.liq or trigger_high >= p.take
    else:
        touched = trigger_high >= p.guard or mark_high >= p.liq or trigger_low <= p.take
    return touched


@njit_leaf
def any_touched(
    rules: Rules, book: RecordArray, open_columns: IntArray, n_open: int, low: FloatArray, high: FloatArray,
    mark_low: FloatArray, mark_high: FloatArray, t: int,
) -> bool:  # fmt: skip
    """Return whether any open position has a level within the bar's range (:func:`is_touched`)."""
    for k in range(n_open):
        j = open_columns[k]
        if is_touched(book[j], low[t, j], high[t, j], mark_low[t, j], mark_high[t, j], rules.stop_on_mark):
            return True
    return False


@njit_leaf
def is_cross_safe(
    rules: Rules, cash: float, book: RecordArray, open_columns: IntArray, n_open: int, mark_low: FloatArray,
    mark_high: FloatArray, t: int,
) -> bool:  # fmt: skip
    """Return whether the cross account clearly outlives the joint adverse extremes of the bar, and so its open too.

    Moving a mark against a position takes more off the equity than off the requirement; what is near is left to the exact test.
    """
    equity = cash
    need = 0.0
    for k in range(n_open):
        j = open_columns[k]
        p = book[j]
        mark = mark_low[t, j] if p.side > 0.0 else mark_high[t, j]
        if math.isnan(mark):
            return False
        equity += unrealised_pnl(p.side, p.qty, p.entry, mark)
        need += requirement(p.qty, mark, p.mmr, rules.taker_fee)
    return equity - need > _CLEARLY * (abs(equity) + need)


@njit_leaf
def fund_isolated(rules: Rules, desk: Desk, bars: Bars, t: int) -> None:
    """Settle the funding of isolated positions at the bar's open (step a); without a bar the last mark stands."""
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        rate = bars.funding_rate[t, j]
        if is_settlement(rate):
            mark = desk.book[j].mark if math.isnan(bars.open[t, j]) else bars.mark_open[t, j]
            settle_isolated(
                desk.book, desk.ledgers.funding, desk.ledgers.used, rules.taker_fee, t, j, rate, mark, False
            )  # fmt: skip


@njit_lent
def liquidation_step(
    rules: Rules, execution: Execution, state: StateArrays, version: int, desk: Desk, t: int, j: int, mark: float
) -> bool:
    """Take an isolated position over at ``mark``, or the part its tier prescribes; return whether anything is left."""
    p = desk.book[j]
    equity = p.margin + unrealised_pnl(p.side, p.qty, p.entry, mark)
    lots = lots_to_liquidate(execution, state, version, desk, j)
    if lots < abs(p.lots) and equity > lowest_requirement(rules, state, version, desk, j, mark):
        liquidate_part(rules, state, version, desk, t, j, lots, mark)
        return True
    liquidate_whole(rules, desk, t, j, mark)
    return False


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
    bar_close_ns: int, at_open: bool,
) -> None:  # fmt: skip
    """Let every open position meet the levels the bar touches, at its open or inside it; without a bar nothing happens."""
    for k in range(desk.totals[0].n_open - 1, -1, -1):
        j = desk.open_columns[k]
        if math.isnan(bars.open[t, j]):
            continue
        if is_touched(
            desk.book[j], bars.low[t, j], bars.high[t, j], bars.mark_low[t, j], bars.mark_high[t, j], rules.stop_on_mark
        ):
            meet_level(rules, execution, state, bars, t, day, version, desk, j, bar_close_ns, at_open)


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


@njit_leaf
def fill_exits(
    rules: Rules, state: StateArrays, bars: Bars, t: int, day: int, desk: Desk, rows: PlanRows, held: Held, n_exits: int
) -> None:
    """Fill the planned exits at the open (step d); what was closed meanwhile is skipped, what has no bar waits."""
    for i in range(n_exits):
        j = held.symbol[rows.exit_slot[i]]
        raw = bars.open[t, j]
        if not desk.is_held[j] or math.isnan(raw):
            continue
        p = desk.book[j]
        price = market_price(rules, state, bars, t, day, j, -p.side, raw, abs(p.lots))
        close_position(rules, desk, t, j, TIME if rows.exit_reason[i] == EXIT_TIME else REPLACED, price, raw)


@njit_leaf
def may_enter(
    rules: Rules, state: StateArrays, version: int, desk: Desk, j: int, lots: int, leverage: float, price: float
) -> bool:
    """Return whether the venue would take the order: tier, leverage cap and free margin at the fill price."""
    tier = tier_index(lots * state.contracts[j].contracts_per_lot, state.tier_max[version, j])
    if tier == NO_TIER or leverage > state.tier_leverage[version, j, tier] * (1.0 + MARGIN_TOLERANCE):
        return False
    value = lots * state.contracts[j].base_per_lot * price
    need = value / leverage + value * rules.taker_fee
    free = desk.totals[0].cash
    if rules.cross:
        equity, _, used = cross_account(rules, desk)
        free = equity - used
    fits: bool = need <= free + MARGIN_TOLERANCE * max(need, 1.0)
    return fits


@njit_leaf
def fill_entries(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, ts_ns: int, day: int, version: int,
    desk: Desk, rows: PlanRows, n_entries: int, delisted_ns: IntArray,
) -> None:  # fmt: skip
    """Fill the planned entries at the open, at most a share of the bar's volume each (step d)."""
    totals = desk.totals[0]
    for i in range(n_entries):
        j = rows.symbol[i]
        raw = bars.open[t, j]
        side = rows.side[i]
        wanted = rows.lots[i]
        # A replaced position without a bar could not leave: its successor must wait too.
        is_full = totals.n_open >= rules.max_open
        if is_full or math.isnan(raw) or ts_ns >= delisted_ns[j] or desk.is_held[j]:
            totals.n_rejected += 1
            continue
        price = market_price(rules, state, bars, t, day, j, side, raw, wanted)
        lots = fillable_lots(wanted, column(bars.volume, t, j), state.contracts[j].base_per_lot, execution.max_bar_volume_share)
        if lots <= 0 or not may_enter(rules, state, version, desk, j, wanted, rows.leverage[i], price):
            totals.n_rejected += 1
            continue
        if lots < wanted:
            totals.n_cut += 1
            price = market_price(rules, state, bars, t, day, j, side, raw, lots)
        mark = bars.mark_open[t, j]
        open_position(
            rules, state, version, desk, t, ts_ns, j, side, lots, price, raw, mark, rows.leverage[i], rows.stop[i],
            rows.take[i], rows.trail[i], i, rows.score[i],
        )  # fmt: skip
        rate = bars.funding_rate[t, j]
        if execution.funding_at_entry and is_settlement(rate):
            settle_funding(rules, desk, t, j, rate, mark, True)


@njit_lent
def cross_step(
    rules: Rules, execution: Execution, state: StateArrays, version: int, desk: Desk, t: int, marks: FloatArray,
    bar_close_ns: int,
) -> None:  # fmt: skip
    """Cut the cross position with the largest requirement in tier 3 or above, or take the whole account over, at ``marks``.

    An account below what its positions would require in their lowest tiers is taken over at once.
    """
    totals = desk.totals[0]
    largest = -1.0
    cut = -1
    lowest = 0.0
    equity, _ = cross_at(rules, desk, marks)
    for k in range(totals.n_open):
        j = desk.open_columns[k]
        p = desk.book[j]
        need = requirement(p.qty, marks[j], p.mmr, rules.taker_fee)
        lowest += lowest_requirement(rules, state, version, desk, j, marks[j])
        if need > largest and lots_to_liquidate(execution, state, version, desk, j) < abs(p.lots):
            largest = need
            cut = j
    if cut >= 0 and equity > lowest:
        lots = lots_to_liquidate(execution, state, version, desk, cut)
        liquidate_part(rules, state, version, desk, t, cut, lots, marks[cut])
        start_cooldown(rules, desk, bar_close_ns, cut)
        return
    last = -1
    while totals.n_open > 0:
        last = desk.open_columns[0]
        start_cooldown(rules, desk, bar_close_ns, last)
        liquidate_whole(rules, desk, t, last, marks[last])
    totals.cash, overshoot = floor_at_zero(totals.cash)
    if overshoot > 0.0:
        desk.ledgers.trades[desk.ledgers.used[1] - 1].overshoot += overshoot
        desk.ledgers.liquidations[desk.ledgers.used[3] - 1].overshoot += overshoot


@njit_leaf
def cross_at(rules: Rules, desk: Desk, marks: FloatArray) -> tuple[float, float]:
    """Return (equity, requirement) of the cross account at ``marks``."""
    equity = desk.totals[0].cash
    need = 0.0
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        p = desk.book[j]
        equity += unrealised_pnl(p.side, p.qty, p.entry, marks[j])
        need += requirement(p.qty, marks[j], p.mmr, rules.taker_fee)
    return equity, need


@njit_lent
def cross_at_open(
    rules: Rules, execution: Execution, state: StateArrays, version: int, desk: Desk, t: int, marks: FloatArray,
    bar_close_ns: int,
) -> None:  # fmt: skip
    """Liquidate the cross account while its ratio is at or below 1 at the marks now known."""
    while desk.totals[0].n_open > 0:
        for k in range(desk.totals[0].n_open):
            marks[desk.open_columns[k]] = desk.book[desk.open_columns[k]].mark
        equity, need = cross_at(rules, desk, marks)
        if equity > need:
            return
        cross_step(rules, execution, state, version, desk, t, marks, bar_close_ns)


@njit_lent
def cross_inside(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, version: int, desk: Desk, marks: FloatArray,
    worst: FloatArray, bar_close_ns: int,
) -> None:  # fmt: skip
    """Liquidate the cross account where it dies on the straight way to the joint adverse extremes of the bar."""
    totals = desk.totals[0]
    for k in range(totals.n_open):
        j = desk.open_columns[k]
        p = desk.book[j]
        marks[j] = p.mark
        worst[j] = p.mark
        if not math.isnan(bars.open[t, j]):
            marks[j] = bars.mark_open[t, j]
            last, mark = (bars.low[t, j], bars.mark_low[t, j]) if p.side > 0.0 else (bars.high[t, j], bars.mark_high[t, j])
            worst[j] = cross_adverse_mark(p.side, last, mark, p.guard, rules.stop_on_mark)
    is_told = False
    while totals.n_open > 0:
        equity, need = cross_at(rules, desk, marks)
        worst_equity, worst_need = cross_at(rules, desk, worst)
        fraction = trigger_fraction(equity, need, worst_equity, worst_need)
        if not fraction >= 0.0:
            return
        for k in range(totals.n_open):
            j = desk.open_columns[k]
            marks[j] = along(marks[j], worst[j], fraction)
        if not is_told:
            tell_ambiguous_cross(rules, bars, t, desk)
            is_told = True
        cross_step(rules, execution, state, version, desk, t, marks, bar_close_ns)


@njit_lent
def tell_ambiguous_cross(rules: Rules, bars: Bars, t: int, desk: Desk) -> None:
    """Tell every position of a cross liquidation that the bar's close alone would not have caused.

    A single position is not told: its mark was there, only the extremes of several may not have come together.
    """
    if desk.totals[0].n_open == 1:
        return
    equity = desk.totals[0].cash
    need = 0.0
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        p = desk.book[j]
        mark = p.mark if math.isnan(bars.open[t, j]) else bars.mark_close[t, j]
        equity += unrealised_pnl(p.side, p.qty, p.entry, mark)
        need += requirement(p.qty, mark, p.mmr, rules.taker_fee)
    if equity <= need:
        return
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        mark = desk.book[j].mark if math.isnan(bars.open[t, j]) else bars.mark_close[t, j]
        write_ambiguous(desk, t, j, LIQUIDATION, mark, NO_EXIT, mark, mark)


@njit_lent
def refresh_all(rules: Rules, state: StateArrays, version: int, desk: Desk) -> None:
    """Look the maintenance rates up again because a new version of the tiers came into force."""
    for k in range(desk.totals[0].n_open):
        refresh_margin(rules, state, version, desk, desk.open_columns[k])

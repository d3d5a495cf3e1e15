"""What happens to the open positions in one bar: the venue's bar algorithm on compiled records.

Steps (a)-(h) of :mod:`crypto_qlib.venue.simulator`: funding, gap tests and passed levels at the open, planned orders at the
open, then the inside of the bar, adverse extreme first. Every rule is a call of the function the venue itself uses.
"""

from __future__ import annotations

import math
from typing import Any

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
from crypto_qlib.venue.funding_clock import is_settlement
from crypto_qlib.venue.liquidation import along, cross_adverse_mark, floor_at_zero, trigger_fraction
from crypto_qlib.venue.matching import (
    DELISTED,
    LIQUIDATION,
    NO_EXIT,
    REPLACED,
    STOP,
    TIME,
    fillable_lots,
    gap_exit,
    intrabar_exit,
    is_passed,
    is_reached,
    optimistic_exit,
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
def start_cooldown(rules: Rules, desk: Desk, bar_close_ns: int, j: int) -> None:
    """Keep column ``j`` out for a while after a stop-out or liquidation."""
    desk.cooldown_until_ns[j] = bar_close_ns + rules.cooldown_bars * rules.frame_ns


@njit_lent
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


@njit_lent
def next_at_open(
    book: RecordArray, open_columns: IntArray, last_open: FloatArray, mark_open: FloatArray, funding_rate: FloatArray,
    ledger: RecordArray, used: IntArray, t: int, start: int, settles: bool, taker_fee: float,
) -> int:  # fmt: skip
    """Return the next slot below ``start`` whose position the open sets off, settling isolated funding on the way; -1: none.

    Takes single arrays, not the tuples of the other functions: it runs for every bar, and mostly nothing happens.
    """
    for k in range(start - 1, -1, -1):
        j = open_columns[k]
        price = last_open[t, j]
        is_missing = math.isnan(price)
        p = book[j]
        mark = p.mark if is_missing else mark_open[t, j]
        rate = funding_rate[t, j]
        if settles and is_settlement(rate):
            settle_isolated(book, ledger, used, taker_fee, t, j, rate, mark, False)
        if is_missing:
            continue
        if is_passed(p.side, mark, p.liq) or is_passed(p.side, price, p.stop) or is_reached(p.side, price, p.take):
            return k
    return -1


@njit_lent
def next_inside(
    book: RecordArray, open_columns: IntArray, last_open: FloatArray, last_high: FloatArray, last_low: FloatArray,
    mark_high: FloatArray, mark_low: FloatArray, t: int, start: int,
) -> int:  # fmt: skip
    """Return the next slot below ``start`` with a level inside the bar's range, -1: none (as :func:`next_at_open`)."""
    for k in range(start - 1, -1, -1):
        j = open_columns[k]
        if math.isnan(last_open[t, j]):
            continue
        p = book[j]
        low = last_low[t, j]
        high = last_high[t, j]
        if p.side > 0.0:
            if low <= p.stop or mark_low[t, j] <= p.liq or high >= p.take:
                return k
        elif high >= p.stop or mark_high[t, j] >= p.liq or low <= p.take:
            return k
    return -1


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


@njit_lent
def gap_position(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, version: int, desk: Desk, j: int,
    bar_close_ns: int,
) -> None:  # fmt: skip
    """Apply what the open itself sets off (steps b and c)."""
    while True:
        p = desk.book[j]
        code, raw = gap_exit(p.side, bars.open[t, j], bars.mark_open[t, j], p.stop, p.take, p.liq, False)
        if code == NO_EXIT:
            return
        if code != LIQUIDATION:
            price = protection_price(rules, execution, state, bars, t, day, j, -p.side, raw, abs(p.lots), code)
            close_position(rules, desk, t, j, code, price, raw)
            if code == STOP:
                start_cooldown(rules, desk, bar_close_ns, j)
            return
        start_cooldown(rules, desk, bar_close_ns, j)
        if not liquidation_step(rules, execution, state, version, desk, t, j, raw):
            return


@njit_lent
def inside_position(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, version: int, desk: Desk, j: int,
    bar_close_ns: int,
) -> None:  # fmt: skip
    """Apply the inside of the bar to one position (steps e to h)."""
    while True:
        p = desk.book[j]
        is_new = p.touched_bar == t and not execution.take_profit_in_entry_bar
        code, raw, is_ambiguous = intrabar_exit(
            p.side, bars.open[t, j], bars.high[t, j], bars.low[t, j], bars.mark_open[t, j], bars.mark_high[t, j],
            bars.mark_low[t, j], p.stop, p.take, p.liq, False, is_new,
        )  # fmt: skip
        if is_ambiguous:
            kind, kindest = optimistic_exit(
                p.side, bars.high[t, j], bars.low[t, j], bars.mark_high[t, j], bars.mark_low[t, j], p.take, p.stop, code, raw,
                False,
            )  # fmt: skip
            write_ambiguous(desk, t, j, code, raw, kind, kindest, bars.close[t, j])
        if code == NO_EXIT:
            return
        if code != LIQUIDATION:
            price = protection_price(rules, execution, state, bars, t, day, j, -p.side, raw, abs(p.lots), code)
            close_position(rules, desk, t, j, code, price, raw)
            if code == STOP:
                start_cooldown(rules, desk, bar_close_ns, j)
            return
        start_cooldown(rules, desk, bar_close_ns, j)
        if not liquidation_step(rules, execution, state, version, desk, t, j, raw):
            return


@njit_lent
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


@njit_lent
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
        lots = fillable_lots(wanted, bars.volume[t, j], state.contracts[j].base_per_lot, execution.max_bar_volume_share)
        if lots <= 0 or not may_enter(rules, state, version, desk, j, wanted, rows.leverage[i], price):
            totals.n_rejected += 1
            continue
        if lots < wanted:
            totals.n_cut += 1
            price = market_price(rules, state, bars, t, day, j, side, raw, lots)
        mark = bars.mark_open[t, j]
        open_position(
            rules, state, version, desk, t, ts_ns, j, side, lots, price, raw, mark, rows.leverage[i], rows.stop[i],
            rows.take[i], i, rows.score[i],
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


@njit_lent
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
            worst[j] = cross_adverse_mark(p.side, last, mark, p.stop, False)
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

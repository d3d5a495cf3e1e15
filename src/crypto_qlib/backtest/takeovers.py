"""Liquidation on compiled records: isolated positions one by one, the cross account as one, in parts from tier 3 on."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.bookkeeping import finish_trade, write_fill
from crypto_qlib.backtest.desk import Bars, Desk, Execution
from crypto_qlib.backtest.desk_margin import cross_at, lowest_requirement, refresh_margin, start_cooldown
from crypto_qlib.backtest.ledger_arrays import (
    N_AMBIGUOUS,
    N_LIQUIDATIONS,
)
from crypto_qlib.backtest.resting_entries import drop_entry, relieve
from crypto_qlib.core.jit import njit_lent
from crypto_qlib.core.margin import (
    requirement,
    unrealised_pnl,
)
from crypto_qlib.portfolio.lookup import tier_count
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.venue.liquidation import (
    PARTIAL_FROM_TIER,
    along,
    cross_adverse_mark,
    floor_at_zero,
    liquidation_items,
    partial_liquidation_lots,
    trigger_fraction,
)
from crypto_qlib.venue.matching import (
    LIQUIDATION,
    NO_EXIT,
    PARTIAL_LIQUIDATION,
)

FloatArray = npt.NDArray[np.float64]


@njit_lent
def write_liquidation(
    desk: Desk, t: int, j: int, lots: int, is_partial: bool, mark: float, pnl: float, fee: float, penalty: float,
    overshoot: float,
) -> None:  # fmt: skip
    """Write one liquidation of signed ``lots``."""
    ledgers = desk.ledgers
    row = ledgers.liquidations[ledgers.used[N_LIQUIDATIONS]]
    ledgers.used[N_LIQUIDATIONS] += 1
    row.bar = t
    row.symbol = j
    row.trade = desk.book[j].trade
    row.lots = lots
    row.partial = 1 if is_partial else 0
    row.mark = mark
    row.pnl = pnl
    row.fee = fee
    row.penalty = penalty
    row.overshoot = overshoot


@njit_lent
def liquidate_whole(rules: Rules, desk: Desk, t: int, j: int, mark: float) -> None:
    """Take the whole position over at ``mark``: isolated, its margin is gone; cross, cash moves and the caller floors it."""
    p = desk.book[j]
    pnl, fee, penalty = liquidation_items(p.side, p.qty, p.entry, mark, p.mmr, rules.taker_fee)
    overshoot = 0.0
    if rules.cross:
        desk.totals[0].cash += pnl - fee - penalty
    else:
        overshoot = 0.0 - p.margin - (pnl - fee - penalty)
        p.margin = 0.0
    p.pnl += pnl
    p.fee += fee
    p.penalty += penalty
    p.overshoot += overshoot
    p.closed_value += abs(p.lots) * mark
    p.closed_lots += abs(p.lots)
    write_liquidation(desk, t, j, -p.lots, False, mark, pnl, fee, penalty, overshoot)
    write_fill(desk, t, j, LIQUIDATION, -p.lots, mark, mark, fee, pnl)
    drop_entry(desk, j)
    finish_trade(desk, t, j, LIQUIDATION)


@njit_lent
def liquidate_part(rules: Rules, state: StateArrays, version: int, desk: Desk, t: int, j: int, lots: int, mark: float) -> None:
    """Cut ``lots`` off the position at ``mark``; pnl, fee and penalty come out of its margin (cross: cash)."""
    p = desk.book[j]
    qty = lots * state.contracts[j].base_per_lot
    pnl, fee, penalty = liquidation_items(p.side, qty, p.entry, mark, p.mmr, rules.taker_fee)
    overshoot = 0.0
    if rules.cross:
        desk.totals[0].cash += pnl - fee - penalty
    else:
        left = p.margin + (pnl - fee - penalty)
        overshoot = max(-left, 0.0)
        p.margin = max(left, 0.0)
    p.pnl += pnl
    p.fee += fee
    p.penalty += penalty
    p.overshoot += overshoot
    p.closed_value += lots * mark
    p.closed_lots += lots
    signed = -lots if p.side > 0.0 else lots
    write_liquidation(desk, t, j, signed, True, mark, pnl, fee, penalty, overshoot)
    write_fill(desk, t, j, PARTIAL_LIQUIDATION, signed, mark, mark, fee, pnl)
    drop_entry(desk, j)
    p.lots += signed
    p.qty = abs(p.lots) * state.contracts[j].base_per_lot
    p.touched_bar = t
    refresh_margin(rules, state, version, desk, j)


@njit_lent
def lots_to_liquidate(execution: Execution, state: StateArrays, version: int, desk: Desk, j: int) -> int:
    """Return how many lots one liquidation step takes: a part from tier 3 on, else everything."""
    lots: int = abs(desk.book[j].lots)
    bounds = state.tier_max[version, j]
    n = tier_count(bounds)
    if not execution.partial_liquidation or n <= PARTIAL_FROM_TIER:
        return lots
    return partial_liquidation_lots(lots, state.contracts[j].contracts_per_lot, bounds[:n])


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
def cross_at_open(
    rules: Rules, execution: Execution, state: StateArrays, version: int, desk: Desk, t: int, marks: FloatArray,
    bar_close_ns: int,
) -> None:  # fmt: skip
    """Liquidate the cross account while its ratio is at or below 1 at the marks now known."""
    while desk.totals[0].n_open > 0:
        for k in range(desk.totals[0].n_open):
            marks[desk.open_columns[k]] = desk.book[desk.open_columns[k]].mark
        relieve(rules, state, desk, marks)
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
    relieve(rules, state, desk, worst)
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
def write_ambiguous(
    desk: Desk, t: int, j: int, booked_kind: int, booked: float, kindest_kind: int, kindest: float, close: float
) -> None:
    """Write a bar whose inner order is not known; ``close`` values a position that the conservative order left open."""
    p = desk.book[j]
    ledgers = desk.ledgers
    row = ledgers.ambiguous[ledgers.used[N_AMBIGUOUS]]
    ledgers.used[N_AMBIGUOUS] += 1
    row.bar = t
    row.symbol = j
    row.trade = p.trade
    row.booked_kind = booked_kind
    row.kindest_kind = kindest_kind
    row.booked_price = booked
    row.kindest_price = kindest
    reference = close if booked_kind == NO_EXIT else booked
    result = p.side * p.qty * (kindest - reference)
    if booked_kind == LIQUIDATION and not math.isnan(p.liq):
        # An isolated liquidation takes the whole margin, more than the price alone says.
        result = p.side * p.qty * (kindest - p.entry) + p.margin
    row.gain = max(result, 0.0)

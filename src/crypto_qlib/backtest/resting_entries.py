"""Entries that wait at their limit: sent at the open, filled where the market trades through them, cancelled in time.

The venue's own rules (:mod:`crypto_qlib.venue.order_desk`): a limit order takes at the open what its limit allows and rests
with what is left; a post-only order that would take is refused. What rests fills at its limit, as a maker, where the open or
the bar trades through it by a tick, at most a share of the bar's volume each; the adverse extreme is taken to come after the
fill. While it rests it sets margin and fee aside. It ends at ``expires_ns``, when its symbol is delisted, when its position
has closed in the meantime or is liquidated, and before a cross account is.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.bookkeeping import grow_position, open_position
from crypto_qlib.backtest.desk import MARGIN_TOLERANCE, Bars, Desk, Execution
from crypto_qlib.backtest.desk_margin import cross_account, cross_at
from crypto_qlib.backtest.fill_prices import market_price
from crypto_qlib.backtest.settlements import settle_addition
from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.tiers import NO_TIER, tier_index
from crypto_qlib.portfolio.lookup import column
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.plan_arrays import PlanRows
from crypto_qlib.portfolio.rules import POST_ONLY, Rules
from crypto_qlib.venue.matching import fillable_lots, limit_fill_price

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit_lent
def drop_entry(desk: Desk, j: int) -> None:
    """Take the entry of column ``j`` off the book, if one rests; the others keep their order."""
    n = desk.totals[0].n_resting
    for k in range(n):
        if desk.resting_columns[k] != j:
            continue
        for i in range(k, n - 1):
            desk.resting_columns[i] = desk.resting_columns[i + 1]
        desk.totals[0].n_resting = n - 1
        return


@njit_lent
def expire_entries(desk: Desk, ts_ns: int, delisted_ns: IntArray) -> None:
    """Cancel at a bar's open what is no longer wanted: its time is up, its symbol delisted, or its position closed again."""
    totals = desk.totals[0]
    for k in range(totals.n_resting - 1, -1, -1):
        j = desk.resting_columns[k]
        r = desk.resting[j]
        is_over = r.has_filled == 1 and not desk.is_held[j]
        if is_over or ts_ns >= r.expires_ns or delisted_ns[j] <= ts_ns:
            totals.n_expired += 1 - r.has_filled
            drop_entry(desk, j)


@njit_leaf
def taken_slots(desk: Desk) -> int:
    """Return how many slots are taken: positions, and resting entries without a position yet."""
    taken: int = desk.totals[0].n_open
    for k in range(desk.totals[0].n_resting):
        if not desk.is_held[desk.resting_columns[k]]:
            taken += 1
    return taken


@njit_leaf
def may_enter(
    rules: Rules, state: StateArrays, version: int, desk: Desk, j: int, lots: int, leverage: float, price: float
) -> bool:
    """Return whether the venue would take the order: tier, leverage cap and free margin at the fill price."""
    tier = tier_index(lots * state.contracts[j].contracts_per_lot, state.tier_max[version, j])
    if tier == NO_TIER or leverage > state.tier_leverage[version, j, tier] * (1.0 + MARGIN_TOLERANCE):
        return False
    return fits_margin(rules, state, desk, j, lots, leverage, price)


@njit_leaf
def fits_margin(rules: Rules, state: StateArrays, desk: Desk, j: int, lots: int, leverage: float, price: float) -> bool:
    """Return whether margin and fee of ``lots`` at ``price`` are free, with what every other resting entry sets aside."""
    value = lots * state.contracts[j].base_per_lot * price
    need = value / leverage + value * rules.taker_fee
    free = desk.totals[0].cash
    if rules.cross:
        equity, _, used = cross_account(rules, desk)
        free = equity - used
    for k in range(desk.totals[0].n_resting):
        i = desk.resting_columns[k]
        r = desk.resting[i]
        if i != j:
            aside = r.lots * state.contracts[i].base_per_lot * r.limit
            free -= aside / r.leverage + aside * rules.taker_fee
    fits: bool = need <= free + MARGIN_TOLERANCE * max(need, 1.0)
    return fits


@njit_lent
def send_entry(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, ts_ns: int, day: int, version: int,
    desk: Desk, rows: PlanRows, i: int,
) -> None:  # fmt: skip
    """Send entry ``i`` of a plan as a limit or post-only order at the open of bar ``t``."""
    totals = desk.totals[0]
    j = rows.symbol[i]
    side, limit, open_ = rows.side[i], rows.price[i], bars.open[t, j]
    would_take = side * (limit - open_) >= 0.0
    if (rules.entry_order == POST_ONLY and would_take) or not may_enter(
        rules, state, version, desk, j, rows.lots[i], rows.leverage[i], limit
    ):
        totals.n_rejected += 1
        return
    r = desk.resting[j]
    r.lots = rows.lots[i]
    r.rank = i
    r.expires_ns = ts_ns + min(rules.entry_bars, rules.decide_every_bars) * rules.frame_ns
    r.has_filled = 0
    r.side = side
    r.limit = limit
    r.leverage = rows.leverage[i]
    r.stop = rows.stop[i]
    r.take = rows.take[i]
    r.trail = rows.trail[i]
    r.score = rows.score[i]
    desk.resting_columns[totals.n_resting] = j
    totals.n_resting += 1
    if rules.entry_order == POST_ONLY:
        return
    lots = fillable_lots(
        rows.lots[i], column(bars.volume, t, j), state.contracts[j].base_per_lot, execution.max_bar_volume_share
    )
    price = market_price(rules, state, bars, t, day, j, side, open_, max(lots, 1))
    if lots > 0 and side * (limit - price) >= 0.0:
        take_part(rules, execution, state, bars, t, ts_ns, version, desk, j, lots, price, open_, False)


@njit_lent
def take_part(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, now_ns: int, version: int, desk: Desk, j: int,
    lots: int, price: float, raw: float, is_maker: bool,
) -> None:  # fmt: skip
    """Fill ``lots`` of the entry resting in column ``j``: open its position or add to it; without free margin it is over."""
    r = desk.resting[j]
    if not fits_margin(rules, state, desk, j, lots, r.leverage, price):
        desk.totals[0].n_rejected += 1
        drop_entry(desk, j)
        return
    mark = bars.mark_open[t, j]
    if desk.is_held[j]:
        desk.book[j].mark = mark
        grow_position(rules, state, version, desk, t, j, lots, price, is_maker)
    else:
        open_position(
            rules, state, version, desk, t, now_ns, j, r.side, lots, price, raw, mark, r.leverage, r.stop, r.take, r.trail,
            r.rank, r.score, is_maker,
        )  # fmt: skip
    r.lots -= lots
    r.has_filled = 1
    if r.lots == 0:
        drop_entry(desk, j)
    if execution.funding_at_entry and now_ns == bars.ts_open[t]:
        settle_addition(rules, desk, bars, t, j, lots * state.contracts[j].base_per_lot)


@njit_lent
def fill_resting(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, version: int, desk: Desk, bar_close_ns: int,
    at_open: bool,
) -> bool:  # fmt: skip
    """Fill what the bar (``at_open``: its open alone) trades through by a tick, in order of arrival; return whether any was.

    Fills inside the bar are stamped a millisecond before its close, as the venue stamps them.
    """
    totals = desk.totals[0]
    ts_ns = bars.ts_open[t]
    now_ns = ts_ns if at_open else max(bar_close_ns - NS_PER_MS, ts_ns + 1)
    was_any = False
    k = 0
    while k < totals.n_resting:
        j = desk.resting_columns[k]
        r = desk.resting[j]
        open_ = bars.open[t, j]
        high, low = (open_, open_) if at_open else (bars.high[t, j], bars.low[t, j])
        price = limit_fill_price(r.side, r.limit, high, low, state.contracts[j].tick_size)
        if not (math.isnan(open_) or math.isnan(price)):
            lots = fillable_lots(
                r.lots, column(bars.volume, t, j), state.contracts[j].base_per_lot, execution.max_bar_volume_share
            )
            if lots > 0:
                take_part(rules, execution, state, bars, t, now_ns, version, desk, j, lots, price, price, True)
                was_any = True
        if k < totals.n_resting and desk.resting_columns[k] == j:
            k += 1
    return was_any


@njit_lent
def relieve(rules: Rules, state: StateArrays, desk: Desk, marks: FloatArray) -> None:
    """Cancel every resting entry where the cross ratio at ``marks``, less the fees they froze, is at or below 1."""
    totals = desk.totals[0]
    if totals.n_resting == 0 or totals.n_open == 0:
        return
    equity, need = cross_at(rules, desk, marks)
    for k in range(totals.n_resting):
        j = desk.resting_columns[k]
        equity -= desk.resting[j].lots * state.contracts[j].base_per_lot * desk.resting[j].limit * rules.taker_fee
    if equity > need:
        return
    for k in range(totals.n_resting):
        totals.n_expired += 1 - desk.resting[desk.resting_columns[k]].has_filled
    totals.n_resting = 0

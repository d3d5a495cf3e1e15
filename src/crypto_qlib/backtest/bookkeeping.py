"""Open, fund, cut and close positions on compiled records: the same money movements as the venue's account.

Isolated margin lies outside cash; the opening fee is taken from cash. A close costs the wallet at most the margin; what goes
beyond it is the insurance fund's (``overshoot``). Each movement writes its ledger row.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.ledger_arrays import (
    N_AMBIGUOUS,
    N_FILLS,
    N_FUNDING,
    N_LIQUIDATIONS,
    N_TRADES,
    OPENING,
    Ledgers,
)
from crypto_qlib.core.costs import BPS, default_half_spread_bps, trading_fee
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.margin import (
    initial_margin_cross,
    initial_margin_isolated,
    liquidation_price_isolated,
    realised_pnl,
    requirement,
    unrealised_pnl,
)
from crypto_qlib.core.tiers import tier_index
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.sizing import column, tier_count, today
from crypto_qlib.venue.funding_clock import cross_funding, isolated_funding
from crypto_qlib.venue.liquidation import PARTIAL_FROM_TIER, floor_at_zero, liquidation_items, partial_liquidation_lots
from crypto_qlib.venue.matching import (
    LIQUIDATION,
    NO_EXIT,
    PARTIAL_LIQUIDATION,
    TAKE_PROFIT,
    nearer_stop,
    stop_fill_price,
    taker_fill_price,
    trailing_level,
)

RecordArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MARGIN_TOLERANCE: Final = 1e-9
"""Relative slack of the margin check at the fill, as at the venue."""


class Execution(NamedTuple):
    """How orders execute; the defaults are the venue's.

    Parameters
    ----------
    max_bar_volume_share : float
        Largest share of a bar's volume an opening order takes.
    partial_liquidation : bool
        Cut positions of tier 3 and above tier by tier.
    take_profit_in_entry_bar : bool
        Allow a take-profit in the bar of the entry (optimistic: the order of events inside a bar is not known).
    doubled_stop_spread : bool
        Charge stops twice the half spread and the trigger bar's own impact.
    funding_at_entry : bool
        Charge a fill at the very instant of a settlement if it would pay.
    """

    max_bar_volume_share: float = 0.05
    partial_liquidation: bool = True
    take_profit_in_entry_bar: bool = False
    doubled_stop_spread: bool = True
    funding_at_entry: bool = True


EXECUTION: Final = np.dtype(
    [(name, np.float64 if isinstance(value, float) else np.bool_) for name, value in Execution._field_defaults.items()]
)
"""Record form of :class:`Execution`."""


def execution_record(execution: Execution) -> Any:
    """Return ``execution`` as the record compiled functions take."""
    return np.array([tuple(execution)], EXECUTION)[0]


class Bars(NamedTuple):
    """The bars traded, ``(n_bars, n_symbols)`` each, read-only; see :class:`~crypto_qlib.core.market.MarketPanel`.

    ``volume`` and ``quote_volume`` may have one row that holds for every bar (volumes not known at all); ``settles`` tells
    the bars with a settlement of any symbol, ``(n_bars,)``.
    """

    ts_open: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    quote_volume: FloatArray
    mark_open: FloatArray
    mark_high: FloatArray
    mark_low: FloatArray
    mark_close: FloatArray
    funding_rate: FloatArray
    settles: BoolArray


class Desk(NamedTuple):
    """Everything that changes during a run.

    Parameters
    ----------
    book : (n_symbols,) POSITION
        One record a column; meaningful where ``is_held``.
    totals : (1,) TOTALS
        Cash and counters.
    open_columns : (capacity,) int64
        Columns of the open positions, increasing; the first ``totals.n_open`` count.
    is_held : (n_symbols,) bool
        Columns with a position.
    cooldown_until_ns : (n_symbols,) int64
        Instants before which columns are not entered.
    ledgers : Ledgers
        Rows written so far.
    """

    book: RecordArray
    totals: RecordArray
    open_columns: IntArray
    is_held: BoolArray
    cooldown_until_ns: IntArray
    ledgers: Ledgers


@njit_leaf
def maintenance_rate(state: StateArrays, version: int, j: int, lots: int) -> float:
    """Return the maintenance rate of a position of ``lots``; above the last tier, the last tier's."""
    bounds = state.tier_max[version, j]
    row = tier_index(lots * state.contracts[j].contracts_per_lot, bounds)
    if row < 0:
        row = tier_count(bounds) - 1
    rate: float = state.tier_mmr[version, j, row]
    return rate


@njit_leaf
def refresh_margin(rules: Rules, state: StateArrays, version: int, desk: Desk, j: int) -> None:
    """Look the position's maintenance rate up again and work out the mark that liquidates it."""
    p = desk.book[j]
    p.mmr = maintenance_rate(state, version, j, abs(p.lots))
    refresh_liquidation(rules, desk, j)


@njit_leaf
def refresh_liquidation(rules: Rules, desk: Desk, j: int) -> None:
    """Work out the mark that liquidates an isolated position; NaN in cross, where the account ratio decides."""
    p = desk.book[j]
    p.liq = math.nan if rules.cross else liquidation_price_isolated(p.side, p.qty, p.entry, p.margin, p.mmr, rules.taker_fee)


@njit_leaf
def refresh_guard(desk: Desk, j: int) -> None:
    """Work out which of stop and trailing stop the market meets first."""
    p = desk.book[j]
    p.guard, p.guard_kind = nearer_stop(p.side, p.stop, trailing_level(p.side, p.best, p.trail))


@njit_leaf
def half_spread_bps(rules: Rules, adv: float, tick_size: float, price: float) -> float:
    """Return the half spread of a fill at ``price``: the setting, or the ladder by turnover."""
    if rules.half_spread_bps >= 0.0:
        return rules.half_spread_bps
    return default_half_spread_bps(0.0 if math.isnan(adv) else adv, tick_size, price)


@njit_leaf
def market_price(
    rules: Rules, state: StateArrays, bars: Bars, t: int, day: int, j: int, side: float, raw: float, lots: int
) -> float:
    """Return the fill of a market order of ``lots`` at ``raw`` before slippage, in bar ``t``."""
    adv = today(state.daily, day, j).adv
    half = half_spread_bps(rules, adv, state.contracts[j].tick_size, raw)
    value = lots * state.contracts[j].base_per_lot * raw
    return taker_fill_price(
        side, raw, value, adv, today(state.daily, day, j).sigma / BPS, half, rules.impact_y, state.contracts[j].tick_size,
        bars.high[t, j], bars.low[t, j], column(bars.quote_volume, t, j),
    )  # fmt: skip


@njit_leaf
def protection_price(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, j: int, side: float, raw: float,
    lots: int, code: int,
) -> float:  # fmt: skip
    """Return the fill of a triggered stop, trailing stop or take-profit."""
    if code == TAKE_PROFIT or not execution.doubled_stop_spread:
        return market_price(rules, state, bars, t, day, j, side, raw, lots)
    adv = today(state.daily, day, j).adv
    half = half_spread_bps(rules, adv, state.contracts[j].tick_size, raw)
    value = lots * state.contracts[j].base_per_lot * raw
    return stop_fill_price(
        side, raw, value, adv, today(state.daily, day, j).sigma / BPS, half, rules.impact_y, state.contracts[j].tick_size,
        bars.high[t, j], bars.low[t, j], column(bars.quote_volume, t, j),
    )  # fmt: skip


@njit_leaf
def write_fill(desk: Desk, t: int, j: int, kind: int, lots: int, price: float, raw: float, fee: float, pnl: float) -> None:
    """Write one execution of signed ``lots``; slippage is booked on the position."""
    ledgers = desk.ledgers
    p = desk.book[j]
    p.slippage += lots * p.qty / max(abs(p.lots), 1) * (price - raw)
    row = ledgers.fills[ledgers.used[N_FILLS]]
    ledgers.used[N_FILLS] += 1
    row.bar = t
    row.symbol = j
    row.kind = kind
    row.trade = p.trade
    row.lots = lots
    row.price = price
    row.raw_price = raw
    row.fee = fee
    row.pnl = pnl


@njit_leaf
def insert_column(desk: Desk, j: int) -> None:
    """Add ``j`` to the open columns, keeping them increasing."""
    k = desk.totals[0].n_open
    while k > 0 and desk.open_columns[k - 1] > j:
        desk.open_columns[k] = desk.open_columns[k - 1]
        k -= 1
    desk.open_columns[k] = j
    desk.totals[0].n_open += 1
    desk.is_held[j] = True


@njit_leaf
def remove_column(desk: Desk, j: int) -> None:
    """Take ``j`` out of the open columns, keeping the order of the others."""
    n = desk.totals[0].n_open
    k = 0
    while desk.open_columns[k] != j:
        k += 1
    while k + 1 < n:
        desk.open_columns[k] = desk.open_columns[k + 1]
        k += 1
    desk.totals[0].n_open = n - 1
    desk.is_held[j] = False


@njit_leaf
def open_position(
    rules: Rules, state: StateArrays, version: int, desk: Desk, t: int, ts_ns: int, j: int, side: float, lots: int,
    price: float, raw: float, mark: float, leverage: float, stop: float, take: float, trail: float,
    rank: int, score: float,
) -> None:  # fmt: skip
    """Open a position of ``lots`` at ``price``: margin and fee leave cash (cross: the fee alone)."""
    totals = desk.totals[0]
    p = desk.book[j]
    qty = lots * state.contracts[j].base_per_lot
    fee = trading_fee(qty, price, rules.taker_fee)
    margin = 0.0 if rules.cross else initial_margin_isolated(qty, price, leverage)
    signed = lots if side > 0.0 else -lots
    p.lots = signed
    p.peak_lots = signed
    p.closed_lots = 0
    p.opened_bar = t
    p.touched_bar = t
    p.opened_ns = ts_ns
    p.trade = totals.n_trades
    p.rank = rank
    p.side = side
    p.qty = qty
    p.entry = price
    p.mark = mark
    p.margin = margin
    p.stop = stop
    p.take = take
    p.trail = trail
    p.best = mark if rules.stop_on_mark else price
    p.leverage = leverage
    p.score = score
    p.pnl = 0.0
    p.fee = fee
    p.funding = 0.0
    p.penalty = 0.0
    p.overshoot = 0.0
    p.slippage = 0.0
    p.closed_value = 0.0
    totals.n_trades += 1
    totals.cash += 0.0 - fee - margin
    totals.next_due = min(totals.next_due, ts_ns + rules.holding_bars * rules.frame_ns)
    refresh_guard(desk, j)
    refresh_margin(rules, state, version, desk, j)
    insert_column(desk, j)
    write_fill(desk, t, j, OPENING, signed, price, raw, fee, 0.0)


@njit_leaf
def close_position(rules: Rules, desk: Desk, t: int, j: int, kind: int, price: float, raw: float) -> None:
    """Close the whole position at ``price``; an isolated loss beyond its margin is the insurance fund's."""
    totals = desk.totals[0]
    p = desk.book[j]
    fee = trading_fee(p.qty, price, rules.taker_fee)
    pnl = realised_pnl(p.side, p.qty, p.entry, price)
    change = pnl - fee + p.margin
    p.pnl += pnl
    p.fee += fee
    if not rules.cross:
        if change < 0.0:
            p.overshoot += -change
            change = 0.0
    elif totals.n_open == 1:
        cash, overshoot = floor_at_zero(totals.cash + change)
        p.overshoot += overshoot
        change = cash - totals.cash
    totals.cash += change
    p.closed_value += abs(p.lots) * price
    p.closed_lots += abs(p.lots)
    write_fill(desk, t, j, kind, -p.lots, price, raw, fee, pnl)
    finish_trade(desk, t, j, kind)


@njit_leaf
def finish_trade(desk: Desk, t: int, j: int, kind: int) -> None:
    """Write the trade of a position whose last part was just closed, and free its slot."""
    ledgers = desk.ledgers
    p = desk.book[j]
    row = ledgers.trades[ledgers.used[N_TRADES]]
    ledgers.used[N_TRADES] += 1
    row.trade = p.trade
    row.symbol = j
    row.lots = p.peak_lots
    row.entry_bar = p.opened_bar
    row.exit_bar = t
    row.exit_kind = kind
    row.rank = p.rank
    row.qty = p.qty * p.peak_lots / p.lots
    row.entry_price = p.entry
    row.exit_price = p.closed_value / p.closed_lots
    row.leverage = p.leverage
    row.margin = initial_margin_isolated(row.qty, p.entry, p.leverage)
    row.stop = p.stop
    row.take_profit = p.take
    row.score = p.score
    row.pnl = p.pnl
    row.fee = p.fee
    row.funding = p.funding
    row.penalty = p.penalty
    row.overshoot = p.overshoot
    row.slippage = p.slippage
    p.lots = 0
    remove_column(desk, j)


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


@njit_leaf
def lowest_requirement(rules: Rules, state: StateArrays, version: int, desk: Desk, j: int, mark: float) -> float:
    """Return what the position would require at ``mark`` in the lowest tier: below that it is not cut but taken whole."""
    return requirement(desk.book[j].qty, mark, state.tier_mmr[version, j, 0], rules.taker_fee)


@njit_leaf
def cross_account(rules: Rules, desk: Desk) -> tuple[float, float, float]:
    """Return (equity, requirement, initial margin in use) of the cross account at current marks."""
    equity = desk.totals[0].cash
    need = 0.0
    used = 0.0
    for k in range(desk.totals[0].n_open):
        p = desk.book[desk.open_columns[k]]
        equity += unrealised_pnl(p.side, p.qty, p.entry, p.mark)
        need += requirement(p.qty, p.mark, p.mmr, rules.taker_fee)
        used += initial_margin_cross(p.qty, p.mark, p.leverage)
    return equity, need, used


@njit_leaf
def settle_isolated(
    book: RecordArray, rows: RecordArray, used: IntArray, taker_fee: float, t: int, j: int, rate: float, mark: float,
    at_entry: bool,
) -> None:  # fmt: skip
    """Settle funding of one isolated position at ``mark`` into its margin, capped so that its ratio stays at or above 1."""
    p = book[j]
    flow = isolated_funding(p.side, p.qty, p.entry, p.margin, mark, rate, p.mmr, taker_fee)
    if at_entry and flow >= 0.0:
        return
    p.funding += flow
    p.margin += flow
    p.liq = liquidation_price_isolated(p.side, p.qty, p.entry, p.margin, p.mmr, taker_fee)
    write_settlement(p, rows[used[N_FUNDING]], t, j, rate, mark, flow)
    used[N_FUNDING] += 1


@njit_leaf
def settle_cross(rules: Rules, desk: Desk, t: int, j: int, rate: float, mark: float, at_entry: bool) -> None:
    """Settle funding of one cross position at ``mark`` in cash, capped by the account's equity above its requirement."""
    p = desk.book[j]
    equity, need, _ = cross_account(rules, desk)
    flow = cross_funding(p.side, p.qty, mark, rate, equity, need)
    if at_entry and flow >= 0.0:
        return
    p.funding += flow
    desk.totals[0].cash += flow
    used = desk.ledgers.used
    write_settlement(p, desk.ledgers.funding[used[N_FUNDING]], t, j, rate, mark, flow)
    used[N_FUNDING] += 1


@njit_leaf
def write_settlement(p: Any, row: Any, t: int, j: int, rate: float, mark: float, flow: float) -> None:
    """Write one settlement of position record ``p`` to ledger record ``row``."""
    row.bar = t
    row.symbol = j
    row.trade = p.trade
    row.amount = flow
    row.rate = rate
    row.mark = mark


@njit_leaf
def settle_funding(rules: Rules, desk: Desk, t: int, j: int, rate: float, mark: float, at_entry: bool) -> None:
    """Settle funding of one position; ``at_entry``: a fill at the very instant pays but does not receive."""
    if rules.cross:
        settle_cross(rules, desk, t, j, rate, mark, at_entry)
    else:
        ledgers = desk.ledgers
        settle_isolated(desk.book, ledgers.funding, ledgers.used, rules.taker_fee, t, j, rate, mark, at_entry)


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

"""Open, fund, cut and close positions on compiled records: the same money movements as the venue's account.

Isolated margin lies outside cash; the opening fee is taken from cash. A close costs the wallet at most the margin; what goes
beyond it is the insurance fund's (``overshoot``). Each movement writes its ledger row.
"""

from __future__ import annotations

from crypto_qlib.backtest.desk import Desk
from crypto_qlib.backtest.desk_margin import refresh_guard, refresh_margin
from crypto_qlib.backtest.ledger_arrays import (
    N_FILLS,
    N_TRADES,
    OPENING,
)
from crypto_qlib.core.costs import trading_fee
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.margin import (
    average_entry,
    initial_margin_isolated,
    realised_pnl,
)
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.venue.liquidation import floor_at_zero
from crypto_qlib.venue.matching import trailing_best


@njit_leaf
def write_fill(
    desk: Desk, t: int, j: int, kind: int, lots: int, price: float, raw: float, fee: float, pnl: float, is_maker: bool = False
) -> None:
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
    row.is_maker = 1 if is_maker else 0


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
    rank: int, score: float, is_maker: bool = False,
) -> None:  # fmt: skip
    """Open a position of ``lots`` at ``price``: margin and fee leave cash (cross: the fee alone)."""
    totals = desk.totals[0]
    p = desk.book[j]
    qty = lots * state.contracts[j].base_per_lot
    fee = trading_fee(qty, price, rules.maker_fee if is_maker else rules.taker_fee)
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
    write_fill(desk, t, j, OPENING, signed, price, raw, fee, 0.0, is_maker)


@njit_lent
def grow_position(
    rules: Rules, state: StateArrays, version: int, desk: Desk, t: int, j: int, lots: int, price: float, is_maker: bool
) -> None:
    """Add ``lots`` to a position at ``price``: the entry is averaged, margin and fee leave cash (cross: the fee alone).

    A trailing stop keeps the best price it has followed: an addition at a worse one does not loosen it.
    """
    p = desk.book[j]
    per_lot = state.contracts[j].base_per_lot
    added = lots * per_lot
    fee = trading_fee(added, price, rules.maker_fee if is_maker else rules.taker_fee)
    margin = 0.0 if rules.cross else initial_margin_isolated(added, price, p.leverage)
    signed = lots if p.side > 0.0 else -lots
    p.entry = average_entry(p.qty, p.entry, added, price)
    p.lots += signed
    p.peak_lots = p.lots
    p.qty = abs(p.lots) * per_lot
    p.touched_bar = t
    p.margin += margin
    p.fee += fee
    followed = p.mark if rules.stop_on_mark else price
    p.best = trailing_best(p.side, p.best, followed, followed)
    desk.totals[0].cash += 0.0 - fee - margin
    refresh_guard(desk, j)
    refresh_margin(rules, state, version, desk, j)
    write_fill(desk, t, j, OPENING, signed, price, price, fee, 0.0, is_maker)


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

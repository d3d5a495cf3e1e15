"""Funding on compiled records: isolated from margin, cross from cash, capped so that a payer is not liquidated by it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.desk import Bars, Desk
from crypto_qlib.backtest.desk_margin import cross_account
from crypto_qlib.backtest.ledger_arrays import (
    N_FUNDING,
)
from crypto_qlib.core.funding import capped_funding_cash_flow, funding_cash_flow
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.margin import (
    liquidation_price_isolated,
    requirement,
    unrealised_pnl,
)
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.venue.funding_clock import cross_funding, is_settlement, isolated_funding

RecordArray = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]


@njit_leaf
def settle_isolated(
    book: RecordArray, rows: RecordArray, used: IntArray, taker_fee: float, t: int, j: int, rate: float, mark: float
) -> None:  # fmt: skip
    """Settle funding of one isolated position at ``mark`` into its margin, capped so that its ratio stays at or above 1."""
    p = book[j]
    flow = isolated_funding(p.side, p.qty, p.entry, p.margin, mark, rate, p.mmr, taker_fee)
    p.funding += flow
    p.margin += flow
    p.liq = liquidation_price_isolated(p.side, p.qty, p.entry, p.margin, p.mmr, taker_fee)
    write_settlement(p, rows[used[N_FUNDING]], t, j, rate, mark, flow)
    used[N_FUNDING] += 1


@njit_leaf
def settle_cross(rules: Rules, desk: Desk, t: int, j: int, rate: float, mark: float) -> None:
    """Settle funding of one cross position at ``mark`` in cash, capped by the account's equity above its requirement."""
    p = desk.book[j]
    equity, need, _ = cross_account(rules, desk)
    flow = cross_funding(p.side, p.qty, mark, rate, equity, need)
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


@njit_lent
def settle_addition(rules: Rules, desk: Desk, bars: Bars, t: int, j: int, added: float) -> None:
    """Settle what a fill of ``added`` base coins at the very instant of a settlement owes; it pays but does not receive."""
    rate, mark = bars.funding_rate[t, j], bars.mark_open[t, j]
    if not is_settlement(rate):
        return
    p = desk.book[j]
    uncapped = funding_cash_flow(p.side, added, mark, rate)
    if rules.cross:
        equity, need, _ = cross_account(rules, desk)
    else:
        equity = p.margin + unrealised_pnl(p.side, p.qty, p.entry, mark)
        need = requirement(p.qty, mark, p.mmr, rules.taker_fee)
    flow = capped_funding_cash_flow(uncapped, equity, need)
    if flow >= 0.0:
        return
    p.funding += flow
    if rules.cross:
        desk.totals[0].cash += flow
    else:
        p.margin += flow
        p.liq = liquidation_price_isolated(p.side, p.qty, p.entry, p.margin, p.mmr, rules.taker_fee)
    used = desk.ledgers.used
    write_settlement(p, desk.ledgers.funding[used[N_FUNDING]], t, j, rate, mark, flow)
    used[N_FUNDING] += 1


@njit_leaf
def fund_cross(rules: Rules, desk: Desk, bars: Bars, t: int) -> None:
    """Mark the cross positions at the bar's open and settle their funding (step a); without a bar the last mark stands."""
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        if not math.isnan(bars.open[t, j]):
            desk.book[j].mark = bars.mark_open[t, j]
    if not bars.settles[t]:
        return
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        rate = bars.funding_rate[t, j]
        if is_settlement(rate):
            settle_cross(rules, desk, t, j, rate, desk.book[j].mark)


@njit_leaf
def fund_isolated(rules: Rules, desk: Desk, bars: Bars, t: int) -> None:
    """Settle the funding of isolated positions at the bar's open (step a); without a bar the last mark stands."""
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        rate = bars.funding_rate[t, j]
        if is_settlement(rate):
            mark = desk.book[j].mark if math.isnan(bars.open[t, j]) else bars.mark_open[t, j]
            settle_isolated(
                desk.book, desk.ledgers.funding, desk.ledgers.used, rules.taker_fee, t, j, rate, mark
            )  # fmt: skip

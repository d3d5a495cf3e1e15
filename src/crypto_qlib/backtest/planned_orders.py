"""Carry a plan out at the open of a bar: exits first, then entries, with the venue's own checks."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.bookkeeping import close_position, open_position
from crypto_qlib.backtest.desk import Bars, Desk, Execution
from crypto_qlib.backtest.fill_prices import market_price
from crypto_qlib.backtest.resting_entries import may_enter, send_entry, taken_slots
from crypto_qlib.backtest.settlements import settle_addition
from crypto_qlib.core.jit import njit_leaf
from crypto_qlib.portfolio.decision import EXIT_TIME, Held, PlanRows
from crypto_qlib.portfolio.lookup import column
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import AT_MARKET, Rules
from crypto_qlib.venue.matching import (
    REPLACED,
    TIME,
    fillable_lots,
)

IntArray = npt.NDArray[np.int64]


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
        is_full = taken_slots(desk) >= rules.max_open
        if is_full or math.isnan(raw) or ts_ns >= delisted_ns[j] or desk.is_held[j]:
            totals.n_rejected += 1
            continue
        if rules.entry_order != AT_MARKET:
            send_entry(rules, execution, state, bars, t, ts_ns, day, version, desk, rows, i)
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
        if execution.funding_at_entry:
            settle_addition(rules, desk, bars, t, j, desk.book[j].qty)

"""What a bar plans at its open: ``decide()``'s core where there are scores, time exits where there are none."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.bar_clock import Calendar
from crypto_qlib.backtest.desk import Desk
from crypto_qlib.backtest.desk_margin import cross_account
from crypto_qlib.core.jit import njit_leaf
from crypto_qlib.core.margin import initial_margin_cross, unrealised_pnl
from crypto_qlib.portfolio.contract_table import NEVER_NS
from crypto_qlib.portfolio.decision import Held, PlanRows, Scratch, plan_orders, plan_time_exits
from crypto_qlib.portfolio.lookup import row_in
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.selection import VetoLog, note_veto
from crypto_qlib.portfolio.veto import VetoRule

RecordArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SLOTS: Final = int(VetoRule.SLOTS)


class Signals(NamedTuple):
    """Scores in the columns of the panel traded.

    Parameters
    ----------
    as_of : (n_scores,) int64
        Instants at which the rows are known, nanoseconds since the epoch.
    expected_return, win_probability : (n_scores, n_symbols) float64
        The model's opinion; NaN for none. Probabilities may have one row that holds for every instant.
    """

    as_of: IntArray
    expected_return: FloatArray
    win_probability: FloatArray


class Workspace(NamedTuple):
    """Working memory of a run: decisions, and ``(n_symbols,)`` marks of the cross account at the open and at its worst."""

    held: Held
    scratch: Scratch
    rows: PlanRows
    log: VetoLog
    marks: FloatArray
    worst: FloatArray


@njit_leaf
def hold_positions(desk: Desk, held: Held, is_cross: bool) -> int:
    """Copy the open positions to ``held`` in the order of their columns; return how many."""
    n: int = desk.totals[0].n_open
    for k in range(n):
        j = desk.open_columns[k]
        p = desk.book[j]
        held.symbol[k] = j
        held.side[k] = p.side
        held.qty[k] = p.qty
        held.mark[k] = p.mark
        held.margin[k] = initial_margin_cross(p.qty, p.mark, p.leverage) if is_cross else p.margin
        held.upl[k] = unrealised_pnl(p.side, p.qty, p.entry, p.mark)
        held.stop[k] = p.stop
        held.opened_ns[k] = p.opened_ns
    return n


@njit_leaf
def next_due(holding_ns: int, book: RecordArray, open_columns: IntArray, n_open: int) -> int:
    """Return the first instant at which a position has been held for its whole time."""
    due = NEVER_NS
    for k in range(n_open):
        due = min(due, book[open_columns[k]].opened_ns + holding_ns)
    return due


@njit_leaf
def is_decision(rules: Rules, signals: Signals, desk: Desk, ts_ns: int, log: VetoLog) -> bool:
    """Return whether the open of a bar is a moment of decision: it has scores and lies on the decision grid."""
    totals = desk.totals[0]
    while totals.score_row < signals.as_of.size and signals.as_of[totals.score_row] < ts_ns:
        totals.score_row += 1
    decides = (
        totals.score_row < signals.as_of.size
        and signals.as_of[totals.score_row] == ts_ns
        and ts_ns % (rules.frame_ns * rules.decide_every_bars) == 0
    )
    if decides and rules.replace_margin == math.inf and totals.n_open >= rules.max_open and totals.equity > 0.0:
        # What the whole decision would say, without making it.
        note_veto(log, ts_ns, _SLOTS, -1, float(rules.max_open), float(totals.n_open))
        return False
    return decides


@njit_leaf
def plan_entries(
    rules: Rules, state: StateArrays, calendar: Calendar, signals: Signals, desk: Desk, work: Workspace, ts_ns: int
) -> tuple[int, int]:
    """Decide at the open of a bar with the account as it stood at the close before; return (exits, entries)."""
    totals = desk.totals[0]
    while totals.state_row + 1 < calendar.state_as_of.size and calendar.state_as_of[totals.state_row + 1] <= ts_ns:
        totals.state_row += 1
    n_held = hold_positions(desk, work.held, rules.cross)
    available = totals.cash
    if rules.cross:
        equity, _, used = cross_account(rules, desk)
        available = equity - used
    row, win = totals.score_row, signals.win_probability
    return plan_orders(
        rules, state, totals.state_row, totals.day, totals.version, ts_ns, totals.equity, max(available, 0.0), totals.peak,
        signals.expected_return[row], win[row_in(win, row)], work.held, n_held, 0, desk.is_held, desk.cooldown_until_ns,
        work.scratch, work.rows, work.log,
    )  # fmt: skip


@njit_leaf
def plan_bar(
    rules: Rules, state: StateArrays, calendar: Calendar, signals: Signals, desk: Desk, work: Workspace, ts_ns: int
) -> tuple[int, int]:
    """Write what the open of a bar is to bring to ``work.rows``: a decision, or time exits alone; return (exits, entries)."""
    totals = desk.totals[0]
    if is_decision(rules, signals, desk, ts_ns, work.log):
        return plan_entries(rules, state, calendar, signals, desk, work, ts_ns)
    if ts_ns < totals.next_due:
        return 0, 0
    totals.next_due = next_due(rules.holding_bars * rules.frame_ns, desk.book, desk.open_columns, totals.n_open)
    if ts_ns < totals.next_due:
        return 0, 0
    n_held = hold_positions(desk, work.held, rules.cross)
    return plan_time_exits(rules, ts_ns, work.held, n_held, work.scratch, work.rows), 0

"""The leveraged backtest: one compiled loop over bars that calls ``decide()``'s core and the venue's rules.

For each bar ``t``:

1. Plan: at the close of ``t - 1``, with scores known at the open of ``t`` and the account as it stands, run
   :func:`crypto_qlib.portfolio.decision.plan_orders` (without new scores: time exits alone).
2. Entries whose time is up are cancelled; delisted symbols are closed at their last mark.
3. At the open: funding, gap tests, passed stops and take-profits, resting entries the open trades through; then the plan's
   exits; then its entries, at the market or as orders that rest (:mod:`crypto_qlib.backtest.resting_entries`).
4. Inside: resting entries the bar trades through, joint adverse extremes (cross), then per position adverse before
   favourable.
5. Mark at the close; write the account's row.

Nothing in the loop draws random numbers, reads a clock or depends on the number of threads: the same inputs give the same
result bit for bit. The loop stops when a ledger is nearly full and goes on after the rows were copied out, so memory is bound
by the results, not by a worst case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.bar_events import any_touched, close_delisted, deleverage, meet_levels, ratchet_stops
from crypto_qlib.backtest.desk import Bars, Desk, Execution, execution_record
from crypto_qlib.backtest.desk_margin import cross_account, is_cross_safe, refresh_all
from crypto_qlib.backtest.inputs import BacktestInputs, PreparedRun, prepare
from crypto_qlib.backtest.ledger_arrays import POSITION, RESTING, SERIES, TOTALS, new_ledgers, rows_used
from crypto_qlib.backtest.planned_orders import fill_entries, fill_exits
from crypto_qlib.backtest.resting_entries import expire_entries, fill_resting
from crypto_qlib.backtest.result import BacktestResult, RunPath, gather
from crypto_qlib.backtest.settlements import fund_cross, fund_isolated
from crypto_qlib.backtest.takeovers import cross_at_open, cross_inside
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.margin import initial_margin_cross, unrealised_pnl
from crypto_qlib.portfolio.contract_table import NEVER_NS
from crypto_qlib.portfolio.decision import (
    Held,
    PlanRows,
    Scratch,
    new_held,
    new_plan_rows,
    new_scratch,
    new_veto_log,
    plan_orders,
    plan_time_exits,
)
from crypto_qlib.portfolio.lookup import row_in
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules, rules_record
from crypto_qlib.portfolio.selection import VetoLog, note_veto
from crypto_qlib.portfolio.veto import VetoRule

RecordArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LEDGER_ROWS: Final = 65_536
_SLOTS: Final = int(VetoRule.SLOTS)


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
def mark_bar(
    book: RecordArray, open_columns: IntArray, totals: RecordArray, close: FloatArray, mark_close: FloatArray, t: int,
    is_cross: bool, series: RecordArray, exposure: FloatArray,
) -> None:  # fmt: skip
    """Mark the positions at the bar's mark close and write the account's row; a position without a bar keeps its mark."""
    total = totals[0]
    row = series[t]
    equity = total.cash
    used = 0.0
    maintenance = 0.0
    gross = 0.0
    net = 0.0
    for k in range(total.n_open):
        j = open_columns[k]
        p = book[j]
        if not math.isnan(close[t, j]):
            p.mark = mark_close[t, j]
        value = p.qty * p.mark
        signed = p.side * value
        equity += p.margin + unrealised_pnl(p.side, p.qty, p.entry, p.mark)
        used += value / p.leverage if is_cross else p.margin
        maintenance += value * p.mmr
        gross += value
        net += signed
        if exposure.shape[0] > 0:
            exposure[t, j] = signed
    row.equity = equity
    row.cash = total.cash
    row.used_margin = used
    row.maintenance = maintenance
    row.gross = gross
    row.net = net
    row.n_open = total.n_open
    total.equity = equity
    total.peak = max(total.peak, equity)


@njit_leaf
def take_rates(rules: Any, change: Any) -> None:
    """Write the fee rates of a change into the record of the rules, which this run alone reads."""
    rules.maker_fee = change.maker
    rules.taker_fee = change.taker


@njit_lent
def follow_clock(
    rules: Rules, state: StateArrays, day_start: IntArray, version_start: IntArray, fees: RecordArray, desk: Desk, ts_ns: int
) -> None:
    """Step to the daily figures, tiers and fee rates in force at ``ts_ns``."""
    totals = desk.totals[0]
    while totals.day + 1 < day_start.size and day_start[totals.day + 1] <= ts_ns:
        totals.day += 1
    old = totals.version
    while totals.version + 1 < version_start.size and version_start[totals.version + 1] <= ts_ns:
        totals.version += 1
    is_new = totals.version != old
    while totals.fee_row < fees.size and fees[totals.fee_row].start_ns <= ts_ns:
        take_rates(rules, fees[totals.fee_row])
        totals.fee_row += 1
        is_new = True
    if is_new:
        refresh_all(rules, state, totals.version, desk)


@njit_leaf
def is_nearly_full(used: IntArray, n_rows: int, room: int) -> bool:
    """Return whether one more bar might not fit into the ledgers."""
    is_full: bool = max(used[0], used[1], used[2], used[3], used[4]) + room > n_rows
    return is_full


@njit_lent
def next_change(day_start: IntArray, version_start: IntArray, fees: RecordArray, totals: RecordArray) -> int:
    """Return the next instant at which daily figures, tiers or fees change; the largest integer where there is none."""
    change = NEVER_NS
    day, version, fee_row = totals[0].day, totals[0].version, totals[0].fee_row
    if fee_row < fees.size:
        change = fees[fee_row].start_ns
    if day + 1 < day_start.size:
        change = min(change, day_start[day + 1])
    if version + 1 < version_start.size:
        change = min(change, version_start[version + 1])
    return change


@njit_leaf
def plan_bar(
    rules: Rules, state: StateArrays, state_as_of: IntArray, ts_ns: int, expected_return: FloatArray,
    win_probability: FloatArray, desk: Desk, held: Held, scratch: Scratch, rows: PlanRows, log: VetoLog,
) -> tuple[int, int]:  # fmt: skip
    """Decide at the open of a bar with the account as it stood at the close before; return (exits, entries)."""
    totals = desk.totals[0]
    while totals.state_row + 1 < state_as_of.size and state_as_of[totals.state_row + 1] <= ts_ns:
        totals.state_row += 1
    n_held = hold_positions(desk, held, rules.cross)
    available = totals.cash
    if rules.cross:
        equity, _, used = cross_account(rules, desk)
        available = equity - used
    return plan_orders(
        rules, state, totals.state_row, totals.day, totals.version, ts_ns, totals.equity, max(available, 0.0), totals.peak,
        expected_return[totals.score_row], win_probability[row_in(win_probability, totals.score_row)], held, n_held, 0,
        desk.is_held, desk.cooldown_until_ns, scratch, rows, log,
    )  # fmt: skip


@njit_lent
def run_bars(  # noqa: PLR0912, PLR0915 - the numbered algorithm of the module
    rules: Rules,
    execution: Execution,
    state: StateArrays,
    state_as_of: IntArray,
    day_start: IntArray,
    version_start: IntArray,
    fees: RecordArray,
    delisted_ns: IntArray,
    bars: Bars,
    frame_ns: int,
    score_as_of: IntArray,
    expected_return: FloatArray,
    win_probability: FloatArray,
    desk: Desk,
    held: Held,
    scratch: Scratch,
    rows: PlanRows,
    log: VetoLog,
    marks: FloatArray,
    worst: FloatArray,
    series: RecordArray,
    exposure: FloatArray,
    start: int,
    stop: int,
    room: int,
    first_delisting_ns: int,
) -> int:
    """Run bars ``start`` to ``stop`` and return the first bar not run: ``stop``, or earlier where a ledger is nearly full."""
    totals = desk.totals[0]
    book, columns, used, n_rows = desk.book, desk.open_columns, desk.ledgers.used, desk.ledgers.fills.size
    every_ns = rules.frame_ns * rules.decide_every_bars
    holding_ns = rules.holding_bars * rules.frame_ns
    never_replaces = rules.replace_margin == math.inf
    for t in range(start, stop):
        if is_nearly_full(used, n_rows, room):
            return t
        ts = bars.ts_open[t]
        bar_close_ns = ts + frame_ns
        if ts >= totals.next_change:
            follow_clock(rules, state, day_start, version_start, fees, desk, ts)
            totals.next_change = next_change(day_start, version_start, fees, desk.totals)
        if totals.n_resting > 0:
            expire_entries(desk, ts, delisted_ns)
        is_waiting = totals.n_resting > 0
        n_exits = 0
        n_entries = 0
        while totals.score_row < score_as_of.size and score_as_of[totals.score_row] < ts:
            totals.score_row += 1
        decides = totals.score_row < score_as_of.size and score_as_of[totals.score_row] == ts and ts % every_ns == 0
        if decides and never_replaces and totals.n_open >= rules.max_open and totals.equity > 0.0:
            # What the whole decision would say, without making it.
            note_veto(log, ts, _SLOTS, -1, float(rules.max_open), float(totals.n_open))
            decides = False
        if decides:
            n_exits, n_entries = plan_bar(
                rules, state, state_as_of, ts, expected_return, win_probability, desk, held, scratch, rows, log
            )
        elif ts >= totals.next_due:
            totals.next_due = next_due(holding_ns, book, columns, totals.n_open)
            if ts >= totals.next_due:
                n_exits = plan_time_exits(rules, ts, held, hold_positions(desk, held, rules.cross), scratch, rows)
        if totals.n_open > 0 and ts >= first_delisting_ns:
            close_delisted(rules, desk, t, ts, delisted_ns)
        is_touched = False
        if totals.n_open > 0:
            if rules.cross:
                is_touched = bars.settles[t] or n_exits + n_entries > 0 or is_waiting or not is_cross_safe(
                    rules, totals.cash, book, columns, totals.n_open, bars.mark_low, bars.mark_high, t
                )  # fmt: skip
                if is_touched:
                    fund_cross(rules, desk, bars, t)
                    cross_at_open(rules, execution, state, totals.version, desk, t, marks, bar_close_ns)
            elif bars.settles[t]:
                fund_isolated(rules, desk, bars, t)
            is_touched = is_touched or any_touched(
                rules, book, columns, totals.n_open, bars.low, bars.high, bars.mark_low, bars.mark_high, t
            )
            if is_touched:
                meet_levels(rules, execution, state, bars, t, totals.day, totals.version, desk, bar_close_ns, True)
        was_filled = is_waiting and fill_resting(rules, execution, state, bars, t, totals.version, desk, bar_close_ns, True)
        if n_exits > 0:
            fill_exits(rules, state, bars, t, totals.day, desk, rows, held, n_exits)
        if n_entries > 0:
            fill_entries(
                rules, execution, state, bars, t, ts, totals.day, totals.version, desk, rows, n_entries, delisted_ns
            )  # fmt: skip
        if totals.n_resting > 0:
            was_filled |= fill_resting(rules, execution, state, bars, t, totals.version, desk, bar_close_ns, False)
        if totals.n_open > 0 and (is_touched or n_entries > 0 or was_filled):
            if rules.cross:
                cross_inside(rules, execution, state, bars, t, totals.version, desk, marks, worst, bar_close_ns)
            meet_levels(rules, execution, state, bars, t, totals.day, totals.version, desk, bar_close_ns, False)
        if rules.trailing_atr > 0.0:
            ratchet_stops(rules, execution, state, bars, t, totals.day, desk, bar_close_ns)
        if execution.adl_stress_move < math.inf:
            deleverage(rules, execution, bars, t, desk)
        mark_bar(book, columns, desk.totals, bars.close, bars.mark_close, t, rules.cross, series, exposure)
    return stop


def new_desk(n_symbols: int, capacity: int, n_ledger_rows: int, equity: float) -> Desk:
    """Return an account of ``equity`` USDT without positions."""
    totals = np.zeros(1, TOTALS)
    totals["cash"] = totals["equity"] = totals["peak"] = equity
    return Desk(
        np.zeros(n_symbols, POSITION),
        totals,
        np.zeros(capacity, np.int64),
        np.zeros(n_symbols, np.bool_),
        np.zeros(n_symbols, np.int64),
        np.zeros(n_symbols, RESTING),
        np.zeros(capacity, np.int64),
        new_ledgers(n_ledger_rows),
    )


def run_backtest(inputs: BacktestInputs) -> BacktestResult:
    """Run the backtest ``inputs`` describe.

    Raises
    ------
    UserError
        If the inputs cannot be right: bad prices, unknown symbols or tiers, leverage above the cap, no capital. It names
        symbol and time, before the first bar is run.
    """
    return run_prepared(prepare(inputs))


def run_prepared(run: PreparedRun) -> BacktestResult:
    """Run a backtest whose inputs were checked already; many runs may share one preparation's arrays."""
    return run_stretches(run, (run.bars,), run.first_bar)


def run_stretches(run: PreparedRun, stretches: Iterable[Bars], first: int = 0) -> BacktestResult:
    """Run a prepared backtest over consecutive stretches of bars, from row ``first`` of the first one.

    Account and positions go on from stretch to stretch, so the result is that of all bars at once, bit for bit.
    """
    rules, n_symbols = run.rules, len(run.symbols)
    capacity = min(rules.max_open, n_symbols) + 1
    # Every open position may close and be replaced in one bar, be filled in parts, and be cut at every tier on the way.
    room = capacity * (6 + run.state.tier_max.shape[2])
    n_rows = max(_LEDGER_ROWS, 4 * room)
    desk = new_desk(n_symbols, capacity, n_rows, run.initial_equity)
    held, rows, scratch = new_held(capacity), new_plan_rows(capacity), new_scratch(n_symbols, capacity)
    marks, worst, log = np.zeros(n_symbols), np.zeros(n_symbols), new_veto_log(run.veto_log_rows)
    rule_row, execution_row = rules_record(rules), execution_record(run.execution)
    path = RunPath([], [], [], [])
    start, origin = first, -first
    for bars in stretches:
        n_bars = bars.ts_open.size
        series = np.empty(n_bars, SERIES)
        exposure = np.zeros((n_bars if run.with_exposure else 0, n_symbols))
        t = start
        while t < n_bars:
            t = run_bars(
                rule_row, execution_row, run.state, run.state_as_of, run.day_start, run.version_start, run.fee_changes,
                run.delisted_ns, bars, run.frame_ns, run.score_as_of, run.expected_return, run.win_probability, desk, held,
                scratch, rows, log, marks, worst, series, exposure, t, n_bars, room, int(run.delisted_ns.min()),
            )  # fmt: skip
            path.ledgers.append(rows_used(desk.ledgers, origin))
            desk = desk._replace(ledgers=new_ledgers(n_rows))
        path.ts_open.append(bars.ts_open[start:])
        path.series.append(series[start:])
        path.exposure.append(exposure[start:])
        # Bars are counted from the stretch's first row: what was opened before lies at negative rows from now on.
        desk.book["opened_bar"] -= n_bars
        desk.book["touched_bar"] -= n_bars
        start, origin = 0, origin + n_bars
    return gather(run, path, desk, log, origin)

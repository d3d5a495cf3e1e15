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

from crypto_qlib.backtest.bar_clock import Calendar, follow_clock
from crypto_qlib.backtest.bar_events import close_delisted, deleverage, last_touched, meet_levels, ratchet_stops
from crypto_qlib.backtest.bar_plan import Signals, Workspace, plan_bar
from crypto_qlib.backtest.desk import Bars, Desk, Execution, execution_record
from crypto_qlib.backtest.desk_margin import is_cross_safe
from crypto_qlib.backtest.inputs import BacktestInputs, PreparedRun, prepare
from crypto_qlib.backtest.ledger_arrays import POSITION, RESTING, SERIES, TOTALS, new_ledgers, rows_used
from crypto_qlib.backtest.planned_orders import fill_entries, fill_exits
from crypto_qlib.backtest.resting_entries import expire_entries, fill_resting
from crypto_qlib.backtest.result import BacktestResult, RunPath, gather
from crypto_qlib.backtest.settlements import fund_cross, fund_isolated
from crypto_qlib.backtest.takeovers import cross_at_open, cross_inside
from crypto_qlib.core.jit import njit_leaf, njit_lent, prefetch
from crypto_qlib.core.margin import unrealised_pnl
from crypto_qlib.portfolio.decision import new_held, new_plan_rows, new_scratch, new_veto_log
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules, rules_record

RecordArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LEDGER_ROWS: Final = 65_536
_AHEAD: Final = 3
"""Bars read ahead of the one at hand: memory answers within the time that two or three bars take."""
_SCORES_AHEAD: Final = 128
"""Scores asked for ahead; of wider rows the processor sees the pattern itself."""
_PER_LINE: Final = 8
"""Numbers in one line of the cache."""


@njit_leaf
def read_ahead(bars: Bars, desk: Desk, signals: Signals, t: int) -> None:
    """Ask for what bar ``t`` will need of the open positions, and for the next scores, before it is read."""
    columns, n_open = desk.open_columns, desk.totals[0].n_open
    for k in range(n_open):
        j = columns[k]
        prefetch(bars.low, t, j)
        prefetch(bars.high, t, j)
        prefetch(bars.close, t, j)
        prefetch(bars.open, t, j)
    if bars.has_own_mark:
        for k in range(n_open):
            j = columns[k]
            prefetch(bars.mark_low, t, j)
            prefetch(bars.mark_high, t, j)
            prefetch(bars.mark_close, t, j)
            prefetch(bars.mark_open, t, j)
    if t < bars.settles.size and bars.settles[t]:
        for k in range(n_open):
            prefetch(bars.funding_rate, t, columns[k])
    for j in range(0, min(signals.expected_return.shape[1], _SCORES_AHEAD), _PER_LINE):
        prefetch(signals.expected_return, desk.totals[0].score_row + 1, j)


@njit_leaf
def is_nearly_full(used: IntArray, n_rows: int, room: int) -> bool:
    """Return whether one more bar might not fit into the ledgers."""
    is_full: bool = max(used[0], used[1], used[2], used[3], used[4]) + room > n_rows
    return is_full


@njit_leaf
def is_safe(rules: Rules, bars: Bars, desk: Desk, t: int) -> bool:
    """Return whether the cross account clearly outlives bar ``t`` (:func:`is_cross_safe`) with the cash it now has."""
    totals = desk.totals[0]
    return is_cross_safe(
        rules, totals.cash, desk.book, desk.open_columns, totals.n_open, bars.mark_low, bars.mark_high, t
    )  # fmt: skip


@njit_leaf
def meet_open(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, desk: Desk, work: Workspace,
    bar_close_ns: int, has_orders: bool,
) -> bool:  # fmt: skip
    """Let the positions carried in meet the open: funding, gap tests, passed levels; return whether the bar touches a level.

    ``has_orders``: something may be filled in this bar, so the cross account must be marked at the open.
    """
    totals = desk.totals[0]
    if totals.n_open == 0:
        return False
    if not rules.cross:
        if bars.settles[t]:
            fund_isolated(rules, desk, bars, t)
    elif bars.settles[t] or has_orders or not is_safe(rules, bars, desk, t):
        fund_cross(rules, desk, bars, t)
        if totals.n_resting > 0 or not is_safe(rules, bars, desk, t):
            cross_at_open(rules, execution, state, totals.version, desk, t, work.marks, bar_close_ns)
    last = last_touched(
        rules, desk.book, desk.open_columns, totals.n_open, bars.low, bars.high, bars.mark_low, bars.mark_high, t
    )
    if last >= 0:
        meet_levels(rules, execution, state, bars, t, totals.day, totals.version, desk, bar_close_ns, True, last)
    return last >= 0


@njit_leaf
def fill_orders(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, desk: Desk, work: Workspace,
    delisted_ns: IntArray, bar_close_ns: int, n_exits: int, n_entries: int,
) -> bool:  # fmt: skip
    """Fill resting entries, the plan's exits, its entries, and what rests inside the bar; return whether any was opened."""
    totals = desk.totals[0]
    was_filled = n_entries > 0
    if totals.n_resting > 0:
        was_filled |= fill_resting(rules, execution, state, bars, t, totals.version, desk, bar_close_ns, True)
    if n_exits > 0:
        fill_exits(rules, state, bars, t, totals.day, desk, work.rows, work.held, n_exits)
    if n_entries > 0:
        fill_entries(
            rules, execution, state, bars, t, bars.ts_open[t], totals.day, totals.version, desk, work.rows, n_entries,
            delisted_ns,
        )  # fmt: skip
    if totals.n_resting > 0:
        was_filled |= fill_resting(rules, execution, state, bars, t, totals.version, desk, bar_close_ns, False)
    return was_filled


@njit_leaf
def meet_inside(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, desk: Desk, work: Workspace,
    bar_close_ns: int, may_touch: bool,
) -> None:  # fmt: skip
    """Let the account meet the inside of the bar: joint adverse extremes (cross), then each position's levels."""
    totals = desk.totals[0]
    if totals.n_open > 0:
        if rules.cross and (totals.n_resting > 0 or not is_safe(rules, bars, desk, t)):
            cross_inside(rules, execution, state, bars, t, totals.version, desk, work.marks, work.worst, bar_close_ns)
        if may_touch:
            meet_levels(
                rules, execution, state, bars, t, totals.day, totals.version, desk, bar_close_ns, False, totals.n_open - 1
            )
    if rules.trailing_atr > 0.0:
        ratchet_stops(rules, execution, state, bars, t, totals.day, desk, bar_close_ns)
    if execution.adl_stress_move < math.inf:
        deleverage(rules, execution, bars, t, desk)


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


@njit_lent
def run_bars(
    rules: Rules, execution: Execution, state: StateArrays, calendar: Calendar, signals: Signals, bars: Bars, desk: Desk,
    work: Workspace, series: RecordArray, exposure: FloatArray, frame_ns: int, start: int, stop: int, room: int,
) -> int:  # fmt: skip
    """Run bars ``start`` to ``stop`` and return the first bar not run: ``stop``, or earlier where a ledger is nearly full."""
    totals = desk.totals[0]
    for t in range(start, stop):
        if is_nearly_full(desk.ledgers.used, desk.ledgers.fills.size, room):
            return t
        read_ahead(bars, desk, signals, t + _AHEAD)
        ts = bars.ts_open[t]
        bar_close_ns = ts + frame_ns
        if ts >= totals.next_change:
            follow_clock(rules, state, calendar, desk, ts)
        if totals.n_resting > 0:
            expire_entries(desk, ts, calendar.delisted_ns)
        n_exits, n_entries = plan_bar(rules, state, calendar, signals, desk, work, ts)
        if totals.n_open > 0 and ts >= calendar.first_delisting_ns:
            close_delisted(rules, desk, t, ts, calendar.delisted_ns)
        has_orders = n_exits + n_entries > 0 or totals.n_resting > 0
        may_touch = meet_open(rules, execution, state, bars, t, desk, work, bar_close_ns, has_orders)
        if has_orders:
            may_touch |= fill_orders(
                rules, execution, state, bars, t, desk, work, calendar.delisted_ns, bar_close_ns, n_exits, n_entries
            )
        meet_inside(rules, execution, state, bars, t, desk, work, bar_close_ns, may_touch)
        mark_bar(desk.book, desk.open_columns, desk.totals, bars.close, bars.mark_close, t, rules.cross, series, exposure)
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
    desk = new_desk(n_symbols, capacity, 0, run.initial_equity)
    work = Workspace(
        new_held(capacity), new_scratch(n_symbols, capacity), new_plan_rows(capacity), new_veto_log(run.veto_log_rows),
        np.zeros(n_symbols), np.zeros(n_symbols),
    )  # fmt: skip
    rule_row, execution_row = rules_record(rules), execution_record(run.execution)
    calendar = Calendar(
        run.state_as_of, run.day_start, run.version_start, run.fee_changes, run.delisted_ns, int(run.delisted_ns.min())
    )
    signals = Signals(run.score_as_of, run.expected_return, run.win_probability)
    path = RunPath([], [], [], [])
    start, origin = first, -first
    for bars in stretches:
        n_bars = bars.ts_open.size
        series = np.empty(n_bars, SERIES)
        exposure = np.zeros((n_bars if run.with_exposure else 0, n_symbols))
        t = start
        while t < n_bars:
            desk = desk._replace(ledgers=new_ledgers(max(_LEDGER_ROWS, 4 * room, 2 * (n_bars - t))))
            t = run_bars(
                rule_row, execution_row, run.state, calendar, signals, bars, desk, work, series, exposure, run.frame_ns, t,
                n_bars, room,
            )  # fmt: skip
            path.ledgers.append(rows_used(desk.ledgers, origin))
        path.ts_open.append(bars.ts_open[start:])
        path.series.append(series[start:])
        path.exposure.append(exposure[start:])
        # Bars are counted from the stretch's first row: what was opened before lies at negative rows from now on.
        desk.book["opened_bar"] -= n_bars
        desk.book["touched_bar"] -= n_bars
        start, origin = 0, origin + n_bars
    return gather(run, path, desk, work.log, origin)

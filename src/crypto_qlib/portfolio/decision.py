"""Decide what to hold: ``decide(scores, account, market, rules) -> Plan``, the same code in backtest, paper and live.

The algorithm, one compiled function (:func:`plan_orders`) that the backtest loop calls on its own arrays:

1. Positions held for ``holding_bars`` leave (``TIME``); they still occupy their slot in this decision.
2. No entries without equity, or below the drawdown brake; without a free slot and a replaceable position, ``SLOTS``.
3. Candidates are filtered and ranked (:mod:`crypto_qlib.portfolio.selection`).
4. Best first: correlation check, size, limits (:mod:`crypto_qlib.portfolio.sizing`) until the free slots are taken.
5. With all slots taken, the best remaining candidate replaces the position with the lowest value to hold on
   (``side * r - funding still expected``; exit costs arise either way) where ``net`` exceeds that value by
   ``replace_margin``; ``net`` already carries the new position's round trip. An unknown ``r`` counts as 0.

The function is pure: same arguments, same plan; nothing is read but the arguments.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.order import ExitKind, OrderKind, Side
from crypto_qlib.core.signal import Scores
from crypto_qlib.portfolio.book import beta_of, cluster_exposure, staying_book, with_position, without_position
from crypto_qlib.portfolio.lookup import column
from crypto_qlib.portfolio.market_columns import CORRELATION_BARS
from crypto_qlib.portfolio.market_panel import StateArrays, state_arrays
from crypto_qlib.portfolio.market_state import MarketState
from crypto_qlib.portfolio.plan import Plan, PlannedOrder
from crypto_qlib.portfolio.plan_arrays import Held, PlanRows, Scratch, new_held, new_plan_rows, new_scratch
from crypto_qlib.portfolio.rules import AT_MARKET, BY_LIMIT, POST_ONLY, Rules, rules_record
from crypto_qlib.portfolio.selection import (
    OUT,
    VetoLog,
    best_candidate,
    correlation,
    expected_funding_cost,
    note_veto,
    rank_candidates,
)
from crypto_qlib.portfolio.sizing import ACCEPTED, Sized, size_position
from crypto_qlib.portfolio.veto import N_RULES, Veto, VetoRule

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

EXIT_TIME: Final = 0
EXIT_REPLACED: Final = 1
EXIT_REASONS: Final = (ExitKind.TIME, ExitKind.REPLACED)
"""Exit kinds by the codes compiled plans use."""

ORDER_KINDS: Final = {AT_MARKET: OrderKind.MARKET, BY_LIMIT: OrderKind.LIMIT, POST_ONLY: OrderKind.POST_ONLY}
"""Kinds of entry orders by their codes in :class:`Rules`."""

_NO_EQUITY: Final = int(VetoRule.NO_EQUITY)
_DRAWDOWN: Final = int(VetoRule.DRAWDOWN)
_SLOTS: Final = int(VetoRule.SLOTS)
_CORRELATION: Final = int(VetoRule.CORRELATION)
_REPLACE: Final = int(VetoRule.REPLACE_MARGIN)


def new_veto_log(n_rows: int) -> VetoLog:
    """Return an empty log with room for ``n_rows`` refusals; zero keeps counts alone."""
    return VetoLog(np.zeros(N_RULES, np.int64), np.zeros(1, np.int64), np.zeros((n_rows, 3), np.int64), np.zeros((n_rows, 2)))


@njit_leaf
def plan_time_exits(rules: Rules, as_of_ns: int, held: Held, n_held: int, scratch: Scratch, rows: PlanRows) -> int:
    """Write the exits of positions held long enough; return how many."""
    holding_ns = rules.holding_bars * rules.frame_ns
    n = 0
    for k in range(n_held):
        due = as_of_ns - held.opened_ns[k] >= holding_ns
        scratch.is_leaving[k] = due
        if due:
            rows.exit_slot[n] = k
            rows.exit_reason[n] = EXIT_TIME
            n += 1
    return n


@njit_lent
def most_correlated(
    state: StateArrays, row: int, j: int, side: float, held: Held, n_held: int, scratch: Scratch, rows: PlanRows,
    n_entries: int,
) -> float:  # fmt: skip
    """Return the highest known correlation of ``j`` with a staying or chosen name of the same side; -1 where there is none."""
    end = min(row + 1, state.returns.shape[0]) if state.close.shape[0] > 1 else state.returns.shape[0]
    highest = -1.0
    for k in range(n_held):
        if held.side[k] == side and not scratch.is_leaving[k]:
            c = correlation(state.returns, end, j, held.symbol[k])
            highest = max(highest, c)
    for k in range(n_entries):
        if rows.side[k] == side:
            c = correlation(state.returns, end, j, rows.symbol[k])
            highest = max(highest, c)
    return highest


@njit_lent
def weakest_position(
    state: StateArrays, row: int, expected_return: FloatArray, held: Held, n_held: int, scratch: Scratch
) -> tuple[int, float]:
    """Return (slot, value to hold on) of the staying position that is worth least, or (-1, inf)."""
    slot = -1
    lowest = math.inf
    for k in range(n_held):
        if scratch.is_leaving[k]:
            continue
        j = held.symbol[k]
        r = expected_return[j]
        value = (0.0 if math.isnan(r) else held.side[k] * r) - expected_funding_cost(
            held.side[k], column(state.funding_rate, row, j), column(state.funding_settlements, row, j)
        )
        if value < lowest:
            slot = k
            lowest = value
    return slot, lowest


@njit_leaf
def entries_open(rules: Rules, as_of_ns: int, equity: float, peak: float, free: int, n_staying: int, log: VetoLog) -> bool:
    """Return whether anything may be opened at all, and note the rule that forbids it."""
    if not equity > 0.0:
        note_veto(log, as_of_ns, _NO_EQUITY, -1, 0.0, equity)
        return False
    if free <= 0 and (n_staying == 0 or rules.replace_margin == math.inf):
        note_veto(log, as_of_ns, _SLOTS, -1, float(rules.max_open), float(rules.max_open - free))
        return False
    if peak > 0.0 and equity < peak * (1.0 - rules.max_drawdown):
        note_veto(log, as_of_ns, _DRAWDOWN, -1, rules.max_drawdown, 1.0 - equity / peak)
        return False
    return True


@njit_leaf
def plan_orders(  # noqa: PLR0912, PLR0915 - the numbered algorithm of the module
    rules: Rules,
    state: StateArrays,
    row: int,
    day: int,
    version: int,
    as_of_ns: int,
    equity: float,
    available: float,
    peak: float,
    expected_return: FloatArray,
    win_probability: FloatArray,
    held: Held,
    n_held: int,
    n_pending: int,
    is_taken: BoolArray,
    cooldown_until_ns: IntArray,
    scratch: Scratch,
    rows: PlanRows,
    log: VetoLog,
) -> tuple[int, int]:
    """Write the plan of one moment to ``rows`` and return (exits, entries); the algorithm of this module.

    Parameters
    ----------
    row, day, version : int
        Rows of the bar columns, the daily columns and the tiers.
    equity, available, peak : float
        USDT; highest equity so far for the drawdown brake, 0 where unknown.
    expected_return, win_probability : (n_symbols,) float64
        Scores known at ``as_of_ns``.
    is_taken : (n_symbols,) bool
        Columns held or pending.
    cooldown_until_ns : (n_symbols,) int64
        Instants before which columns stay out.
    """
    n_exits = plan_time_exits(rules, as_of_ns, held, n_held, scratch, rows)
    free = rules.max_open - n_held - n_pending
    if not entries_open(rules, as_of_ns, equity, peak, free, n_held - n_exits, log):
        return n_exits, 0
    rank_candidates(
        rules, state, row, day, as_of_ns, equity, expected_return, win_probability, is_taken, cooldown_until_ns,
        scratch.rank, scratch.net, log,
    )  # fmt: skip
    book = staying_book(rules, state, day, version, equity, available, held, n_held, scratch)
    n_entries = 0
    best_score = 0.0
    while True:
        victim = -1
        if free <= 0 and rules.replace_margin == math.inf:
            break
        j = best_candidate(scratch.rank)
        if j < 0:
            break
        score = scratch.rank[j]
        scratch.rank[j] = OUT
        side = 1.0 if expected_return[j] > 0.0 else -1.0
        around = book
        if free <= 0:
            victim, value = weakest_position(state, row, expected_return, held, n_held, scratch)
            if victim < 0 or scratch.net[j] - value < rules.replace_margin:
                if victim >= 0:
                    note_veto(log, as_of_ns, _REPLACE, j, rules.replace_margin, scratch.net[j] - value)
                break
            around = without_position(rules, state, day, version, book, held, victim)
            scratch.is_leaving[victim] = True
        if rules.max_correlation < 1.0:
            c = most_correlated(state, row, j, side, held, n_held, scratch, rows, n_entries)
            if c > rules.max_correlation:
                note_veto(log, as_of_ns, _CORRELATION, j, rules.max_correlation, c)
                if victim >= 0:
                    scratch.is_leaving[victim] = False
                continue
        best_score = max(best_score, score)
        weight = min(max(score / best_score, 0.0), 1.0) if best_score > 0.0 else 1.0
        in_cluster = cluster_exposure(rules, state, day, j, held, n_held, scratch, rows, n_entries)
        sized = size_position(rules, state, row, day, version, j, side, around, in_cluster, scratch.net[j], weight)
        if sized.code != ACCEPTED:
            note_veto(log, as_of_ns, sized.code, j, sized.limit, sized.actual)
            if victim >= 0:
                scratch.is_leaving[victim] = False
            continue
        if victim >= 0:
            rows.exit_slot[n_exits] = victim
            rows.exit_reason[n_exits] = EXIT_REPLACED
            n_exits += 1
        free -= 1 if victim < 0 else 0
        write_entry(rows, n_entries, j, side, sized, score)
        n_entries += 1
        book = with_position(
            around, beta_of(state, day, j), side, sized.lots * state.contracts[j].base_per_lot * sized.price, sized.leverage,
            sized.need, rules.taker_fee,
        )  # fmt: skip
    return n_exits, n_entries


@njit_leaf
def write_entry(rows: PlanRows, n: int, j: int, side: float, sized: Sized, score: float) -> None:
    """Write entry ``n`` of a plan."""
    rows.symbol[n] = j
    rows.lots[n] = sized.lots
    rows.side[n] = side
    rows.leverage[n] = sized.leverage
    rows.price[n] = sized.price
    rows.stop[n] = sized.stop
    rows.take[n] = sized.take
    rows.trail[n] = sized.trail
    rows.score[n] = score


def decide(scores: Scores, account: AccountState, market: MarketState, rules: Rules) -> Plan:
    """Return the orders to place now and everything that was refused.

    Parameters
    ----------
    scores : Scores
        The model's opinion, known at ``account.as_of_ns`` or before; symbols the market does not have are ignored, symbols
        without a score have no opinion. All-NaN scores give time exits alone.
    account : AccountState
        Equity, free margin and positions at the moment of the decision.
    market : MarketState
        The market at the same moment.
    rules : Rules
        What binds the decision.

    Raises
    ------
    ValueError
        If the scores are from after the decision, or a position's symbol is not in ``market``.
    """
    if scores.as_of_ns > market.as_of_ns:
        raise ValueError(f"scores known at {scores.as_of_ns} cannot be used at {market.as_of_ns}")
    column_of = {s: j for j, s in enumerate(market.symbols)}
    unknown = [p.symbol for p in account.positions if p.symbol not in column_of]
    if unknown:
        raise ValueError(f"position in {unknown[0]}, which the market state does not have")
    n = len(market.symbols)
    held, positions, is_taken = _held_from(account, column_of)
    expected, win = _aligned(scores, column_of)
    cooldown = np.zeros(n, np.int64)
    for symbol, until in account.cooldown_until_ns.items():
        if symbol in column_of:
            cooldown[column_of[symbol]] = until
    capacity = max(rules.max_open, len(positions)) + 1
    rows, log = new_plan_rows(capacity), new_veto_log(2 * n + capacity + 4)
    state = state_arrays(market)
    n_exits, n_entries = plan_orders(
        rules_record(rules), state, 0, 0, 0, market.as_of_ns, account.equity, account.available, account.peak_equity,
        expected, win, held, len(positions), len(set(account.pending_symbols)), is_taken, cooldown,
        new_scratch(n, capacity), rows, log,
    )  # fmt: skip
    exits = [_exit_order(positions[rows.exit_slot[k]], EXIT_REASONS[rows.exit_reason[k]]) for k in range(n_exits)]
    entries = [_entry_order(market, rules, rows, k, expected, win) for k in range(n_entries)]
    return Plan(market.as_of_ns, tuple(exits + entries), _vetoes(log, market.symbols))


def _held_from(account: AccountState, column_of: dict[str, int]) -> tuple[Held, list[OpenPosition], BoolArray]:
    positions = sorted(account.positions, key=lambda p: column_of[p.symbol])
    held = new_held(max(len(positions), 1))
    is_taken = np.zeros(len(column_of), np.bool_)
    for k, p in enumerate(positions):
        held.symbol[k], held.side[k], held.qty[k], held.mark[k] = column_of[p.symbol], p.side, p.qty, p.mark
        held.margin[k], held.opened_ns[k] = p.margin, p.opened_ns
        held.upl[k] = p.side * p.qty * (p.mark - p.avg_entry)
        held.stop[k] = p.stop_price
        is_taken[column_of[p.symbol]] = True
    for symbol in account.pending_symbols:
        if symbol in column_of:
            is_taken[column_of[symbol]] = True
    return held, positions, is_taken


def _aligned(scores: Scores, column_of: dict[str, int]) -> tuple[FloatArray, FloatArray]:
    expected, win = np.full(len(column_of), np.nan), np.full(len(column_of), np.nan)
    for k, symbol in enumerate(scores.symbols):
        if symbol in column_of:
            expected[column_of[symbol]] = scores.expected_return[k]
            win[column_of[symbol]] = scores.win_probability[k]
    return expected, win


def _exit_order(position: OpenPosition, reason: ExitKind) -> PlannedOrder:
    lots = position.lots
    return PlannedOrder(position.symbol, Side.of(-lots), abs(lots), position.leverage, True, reason=reason)


def _entry_order(
    market: MarketState, rules: Rules, rows: PlanRows, k: int, expected: FloatArray, win: FloatArray
) -> PlannedOrder:
    j = int(rows.symbol[k])
    rests = rules.entry_order != AT_MARKET
    return PlannedOrder(
        symbol=market.symbols[j],
        side=Side.of(float(rows.side[k])),
        lots=int(rows.lots[k]),
        leverage=float(rows.leverage[k]),
        reduce_only=False,
        stop_price=float(rows.stop[k]),
        take_profit_price=float(rows.take[k]),
        trailing_ratio=None if math.isnan(rows.trail[k]) else float(rows.trail[k]),
        rank=k,
        score=float(rows.score[k]),
        expected_return=float(expected[j]),
        win_probability=float(win[j]),
        reference_price=float(rows.price[k]),
        kind=ORDER_KINDS[rules.entry_order],
        limit_price=float(rows.price[k]) if rests else None,
        expires_ns=market.as_of_ns + rules.entry_ns if rests else None,
    )


def _vetoes(log: VetoLog, symbols: tuple[str, ...]) -> tuple[Veto, ...]:
    rows = zip(log.where[: log.used[0]].tolist(), log.values[: log.used[0]].tolist(), strict=True)
    return tuple(Veto(VetoRule(w[1]), v[0], v[1], symbols[w[2]] if w[2] >= 0 else "") for w, v in rows)


__all__ = [
    "CORRELATION_BARS", "Held", "Plan", "PlanRows", "PlannedOrder", "Rules", "Scores", "Scratch", "Veto", "decide", "new_held",
    "new_plan_rows", "new_scratch", "plan_orders",
]  # fmt: skip

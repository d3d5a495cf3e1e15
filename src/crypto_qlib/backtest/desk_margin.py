"""Margin on compiled records: maintenance rates, the mark that liquidates, the cross account's equity and requirement."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.desk import Desk
from crypto_qlib.core.jit import njit_leaf, njit_lent
from crypto_qlib.core.margin import (
    initial_margin_cross,
    liquidation_price_isolated,
    requirement,
    unrealised_pnl,
)
from crypto_qlib.core.tiers import tier_index
from crypto_qlib.portfolio.lookup import tier_count
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.venue.matching import (
    nearer_stop,
    trailing_level,
)

RecordArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_CLEARLY: Final = 1e-9
"""Share of the account by which it must be above its requirement to be safe without the exact test."""


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


@njit_lent
def refresh_all(rules: Rules, state: StateArrays, version: int, desk: Desk) -> None:
    """Look the maintenance rates up again because a new version of the tiers came into force."""
    for k in range(desk.totals[0].n_open):
        refresh_margin(rules, state, version, desk, desk.open_columns[k])


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
def cross_at(rules: Rules, desk: Desk, marks: FloatArray) -> tuple[float, float]:
    """Return (equity, requirement) of the cross account at ``marks``."""
    equity = desk.totals[0].cash
    need = 0.0
    for k in range(desk.totals[0].n_open):
        j = desk.open_columns[k]
        p = desk.book[j]
        equity += unrealised_pnl(p.side, p.qty, p.entry, marks[j])
        need += requirement(p.qty, marks[j], p.mmr, rules.taker_fee)
    return equity, need


@njit_leaf
def is_cross_safe(
    rules: Rules, cash: float, book: RecordArray, open_columns: IntArray, n_open: int, mark_low: FloatArray,
    mark_high: FloatArray, t: int,
) -> bool:  # fmt: skip
    """Return whether the cross account clearly outlives the joint adverse extremes of the bar, and so its open too.

    Moving a mark against a position takes more off the equity than off the requirement; what is near is left to the exact test.
    """
    equity = cash
    need = 0.0
    for k in range(n_open):
        j = open_columns[k]
        p = book[j]
        mark = mark_low[t, j] if p.side > 0.0 else mark_high[t, j]
        if math.isnan(mark):
            return False
        equity += unrealised_pnl(p.side, p.qty, p.entry, mark)
        need += requirement(p.qty, mark, p.mmr, rules.taker_fee)
    return equity - need > _CLEARLY * (abs(equity) + need)


@njit_leaf
def start_cooldown(rules: Rules, desk: Desk, bar_close_ns: int, j: int) -> None:
    """Keep column ``j`` out for a while after a stop-out or liquidation."""
    desk.cooldown_until_ns[j] = bar_close_ns + rules.cooldown_bars * rules.frame_ns

"""What a liquidation does to the books: isolated, cross and partial, as small compiled functions on scalars.

1. The trigger is ``equity / requirement <= 1`` on **mark**, with ``requirement = qty * mark * (mmr + taker_fee)``.
   First the open orders are cancelled and the ratio is tested again (``liquidator``).
2. Tier 1 or 2, or equity at or below what the lowest tier would require: the whole position goes. Else, from tier 3 on, the
   size is cut so that the tier drops by two, the same three items are booked on the closed part, and the ratio is tested again.
3. Booked are the price PnL at the trigger mark, the normal taker fee and a penalty of exactly the maintenance margin, so
   the user loses the whole isolated margin; what the trigger overshoots the margin is the insurance fund's.
4. Cross: the same items on every position at the marks where the account ratio is 1; the account is floored at zero.

Amounts of ``fee`` and ``penalty`` are paid (>= 0), ``overshoot`` is what the insurance fund takes (>= 0 up to rounding).
Source: OKX help "When would my order be liquidated", "Forced partial or full liquidation"; real positions-history rows of
type 3 (``closeAvgPx`` = trigger mark, ``liqPenalty = -mmr * qty * mark``).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.core.tiers import NO_TIER, tier_index

PARTIAL_FROM_TIER: Final = 2
"""Row (0-based) of the first tier that is liquidated in parts: tier 3."""
TIERS_PER_STEP: Final = 2
"""Tiers the size drops by in one partial step."""

_LOT_SLACK: Final = 1e-9


@njit
def liquidation_items(
    side: float, qty: float, avg_entry: float, trigger_mark: float, mmr: float, taker_fee: float
) -> tuple[float, float, float]:
    """Return (pnl, fee, penalty) in USDT of closing ``qty`` at ``trigger_mark``: the three items of every liquidation."""
    value = qty * trigger_mark
    return side * qty * (trigger_mark - avg_entry), taker_fee * value, mmr * value


@njit
def isolated_liquidation(
    side: float, qty: float, avg_entry: float, margin: float, trigger_mark: float, mmr: float, taker_fee: float
) -> tuple[float, float, float, float]:
    """Return (pnl, fee, penalty, overshoot) of a full isolated liquidation: the wallet loses exactly ``margin``.

    ``pnl - fee - penalty = -(margin + overshoot)``.

    Parameters
    ----------
    side, qty, avg_entry : float
        The position: sign, base coins, USDT per coin.
    margin : float
        Isolated margin, USDT; it is already outside the cash balance.
    trigger_mark : float
        Mark that triggered: the analytic liquidation price, or the mark open where that gapped through it.
    """
    pnl, fee, penalty = liquidation_items(side, qty, avg_entry, trigger_mark, mmr, taker_fee)
    return pnl, fee, penalty, -(pnl - fee - penalty) - margin


@njit
def partial_liquidation_lots(lots: int, lot_size: float, max_contracts: npt.NDArray[np.float64]) -> int:
    """Return how many of ``lots`` one liquidation step closes: all of them in tiers 1 and 2.

    From tier 3 on the size is cut to the upper bound of the tier two lower, rounded down to a lot; above the last tier the
    last tier counts.

    Parameters
    ----------
    lots : int
        Absolute size in lots, > 0.
    lot_size : float
        Contracts per lot.
    max_contracts : (n_tiers,) float64
        Inclusive upper bounds in contracts, increasing.
    """
    row = tier_index(lots * lot_size, max_contracts)
    if row == NO_TIER:
        row = max_contracts.size - 1
    if row < PARTIAL_FROM_TIER:
        return lots
    kept = math.floor(max_contracts[row - TIERS_PER_STEP] / lot_size + _LOT_SLACK)
    return lots - min(kept, lots - 1) if kept > 0 else lots


@njit
def partial_liquidation(
    side: float, qty_closed: float, avg_entry: float, margin: float, trigger_mark: float, mmr: float, taker_fee: float
) -> tuple[float, float, float, float]:
    """Return (pnl, fee, penalty, margin left) of cutting ``qty_closed`` off an isolated position.

    Everything is paid out of the isolated margin; nothing returns to the wallet. The caller looks the lower tier's rate up
    and tests the rest again.
    """
    pnl, fee, penalty = liquidation_items(side, qty_closed, avg_entry, trigger_mark, mmr, taker_fee)
    return pnl, fee, penalty, margin + pnl - fee - penalty


@njit
def cross_adverse_mark(side: float, last_adverse: float, mark_adverse: float, stop: float, stop_on_mark: bool) -> float:
    """Return the worst mark a cross position lives through in a bar: the adverse extreme, or its stop where that is nearer.

    A last-triggered stop is moved by the distance of mark from last at the extremes where that is worse, and never lies
    beyond the extreme.
    """
    trigger = mark_adverse if stop_on_mark else last_adverse
    if not side * (trigger - stop) <= 0.0:
        return mark_adverse
    shift = 0.0 if stop_on_mark else min(side * (mark_adverse - last_adverse), 0.0)
    return side * max(side * stop + shift, side * mark_adverse)


@njit
def cross_equity(
    cash: float,
    n: int,
    side: npt.NDArray[np.float64],
    qty: npt.NDArray[np.float64],
    avg_entry: npt.NDArray[np.float64],
    mark: npt.NDArray[np.float64],
) -> float:
    """Return ``cash + sum(side * qty * (mark - avg_entry))`` over the first ``n`` cross positions, USDT."""
    equity = cash
    for k in range(n):
        equity += side[k] * qty[k] * (mark[k] - avg_entry[k])
    return equity


@njit
def cross_requirement(
    n: int,
    qty: npt.NDArray[np.float64],
    mark: npt.NDArray[np.float64],
    mmr: npt.NDArray[np.float64],
    taker_fee: float,
) -> float:
    """Return ``sum(qty * mark * (mmr + taker_fee))`` over the first ``n`` cross positions, USDT."""
    total = 0.0
    for k in range(n):
        total += qty[k] * mark[k] * (mmr[k] + taker_fee)
    return total


@njit
def trigger_fraction(equity_open: float, requirement_open: float, equity_adverse: float, requirement_adverse: float) -> float:
    """Return how far along the straight way from open to adverse marks the account ratio reaches 1.

    Equity and requirement are linear in the marks, so the crossing is exact: 0.0 where the account is dead at the open,
    a fraction in (0, 1] inside the bar, NaN where it survives the joint adverse extreme.
    """
    slack_open = equity_open - requirement_open
    slack_adverse = equity_adverse - requirement_adverse
    if slack_open <= 0.0:
        return 0.0
    if slack_adverse > 0.0:
        return math.nan
    return slack_open / (slack_open - slack_adverse)


@njit
def along(start: float, end: float, fraction: float) -> float:
    """Return ``start + fraction * (end - start)``."""
    return start + fraction * (end - start)


@njit
def floor_at_zero(cash: float) -> tuple[float, float]:
    """Return (cash, overshoot): a cross account never goes below zero, the insurance fund takes the rest."""
    if cash < 0.0:
        return 0.0, -cash
    return cash, 0.0


@njit
def adl_rank(side: float, qty: float, avg_entry: float, mark: float, margin: float) -> float:
    """Return the auto-deleveraging rank of a position: profit ratio times effective leverage; the highest goes first.

    ``(upl / margin) * (qty * mark / (margin + upl))``; zero for a position without profit.
    Source: OKX help "Introduction to auto-deleveraging".
    """
    upl = side * qty * (mark - avg_entry)
    if upl <= 0.0 or margin <= 0.0:
        return 0.0
    return (upl / margin) * (qty * mark / (margin + upl))

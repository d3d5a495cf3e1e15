"""Funding of perpetual swaps: what is paid at a settlement, and the forecast formula.

Source: OKX help "Perpetual funding fee mechanism" and bill types 173/174.
"""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.jit import njit

_ABOVE_ONE: Final = 1e-9


@njit
def funding_cash_flow(side: float, qty: float, mark: float, rate: float) -> float:
    """Return the payment *to* the position in USDT: ``-side * qty * mark * rate`` (rate > 0: longs pay shorts)."""
    return -side * qty * mark * rate


@njit
def capped_funding_cash_flow(cash_flow: float, equity: float, requirement: float) -> float:
    """Return ``cash_flow`` limited so that a payer's margin ratio does not fall below 1.

    A payment (negative) is cut to ``equity - requirement * (1 + 1e-9)`` where that is smaller, and to zero where the
    ratio is already at or below 1; income is passed through. The billionth keeps a capped payer off the knife's edge:
    the charge alone never liquidates, the next adverse tick does.
    """
    if cash_flow >= 0.0:
        return cash_flow
    return -min(-cash_flow, max(equity - requirement * (1.0 + _ABOVE_ONE), 0.0))


@njit
def clamp(value: float, low: float, high: float) -> float:
    """Return ``value`` held inside ``[low, high]``."""
    return min(max(value, low), high)


@njit
def funding_rate_no_rate(premium: float, floor: float, cap: float) -> float:
    """Return the oldest forecast formula: the clamped average premium."""
    return clamp(premium, floor, cap)


@njit
def funding_rate_with_rate(premium: float, interval_h: float, floor: float, cap: float) -> float:
    """Return ``clamp(P + clamp(I - P, -0.05%, +0.05%))`` with ``I = 0.03% / (24 / interval_h)`` (before the 2026 revision)."""
    interest = 0.0003 / (24.0 / interval_h)
    return clamp(premium + clamp(interest - premium, -0.0005, 0.0005), floor, cap)


@njit
def funding_rate_2026(premium: float, interval_h: float, floor: float, cap: float) -> float:
    """Return ``clamp((P + clamp(0.01% - P, -0.05%, +0.05%)) / (8 / interval_h))``, the formula in force since 2026."""
    return clamp((premium + clamp(0.0001 - premium, -0.0005, 0.0005)) / (8.0 / interval_h), floor, cap)

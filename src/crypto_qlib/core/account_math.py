"""Figures of a whole account: equity, what is available, leverage in use, the multi-currency ratio.

All money is in USDT (USD for the multi-currency figures). NaN in gives NaN out; every function works on scalars and,
but for :func:`available_equity`, on equally shaped arrays. Source: OKX API v5 ``/account/balance``; formulas checked
against real payloads in the golden tests.
"""

from __future__ import annotations

from crypto_qlib.core.jit import njit


@njit
def cross_equity(cash: float, cross_upl: float) -> float:
    """Return ``cash + cross_upl``: what backs cross positions."""
    return cash + cross_upl


@njit
def isolated_equity(margin: float, isolated_upl: float) -> float:
    """Return ``margin + isolated_upl`` (OKX ``isoEq``): it lies outside the cash balance."""
    return margin + isolated_upl


@njit
def account_equity(cash: float, cross_upl: float, isolated_eq: float) -> float:
    """Return ``cash + cross_upl + isolated_eq`` (OKX ``eq``)."""
    return cash + cross_upl + isolated_eq


@njit
def available_equity(equity: float, frozen: float) -> float:
    """Return ``max(0, equity - frozen)`` (OKX ``availEq``); ``frozen`` is margin in use plus what orders set aside."""
    return max(equity - frozen, 0.0)


@njit
def notional_leverage(notional: float, equity: float) -> float:
    """Return ``notional / equity`` (OKX ``notionalLever``): position value held per unit of equity."""
    return notional / equity


@njit
def multi_currency_margin_ratio(adjusted_equity: float, maintenance: float, notional: float, taker_fee: float) -> float:
    """Return ``adjusted_equity / (maintenance + taker_fee * notional)`` (OKX account ``mgnRatio``); 1.0 is liquidation."""
    return adjusted_equity / (maintenance + taker_fee * notional)


@njit
def equity_from_margin_ratio(margin_ratio: float, requirement: float) -> float:
    """Return the equity a reported ratio stands for, ``margin_ratio * requirement``."""
    return margin_ratio * requirement

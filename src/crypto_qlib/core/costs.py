"""What trading costs: fees and slippage.

Fee: ``rate * qty * fill_price`` per fill, on open and on close; the rate may be negative (a maker rebate).
Slippage of a taker fill, in basis points against the trader::

    half_spread_bps + impact_y * sigma_day_bps * sqrt(order_notional / adv)

``adv`` is the trailing median daily quote volume of the same instrument, ``sigma_day_bps`` its trailing daily
volatility. Sources: OKX fee page; square-root law: Donier & Bonart 2015, Sato & Kanazawa 2024; default ``Y = 0.8``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.jit import njit

BPS: Final = 1e-4

DEFAULT_MAKER_FEE: Final = 0.0002
DEFAULT_TAKER_FEE: Final = 0.0005


@dataclass(frozen=True, slots=True)
class FeeSchedule:
    """Fee rates of an account from one instant on, as positive fractions of the fill's notional.

    Parameters
    ----------
    maker, taker : float
        Fractions; a negative maker rate is a rebate. Defaults: OKX regular user, 0.02 % and 0.05 %.
    valid_from_ns : int
        Instant from which the rates hold.
    """

    maker: float = DEFAULT_MAKER_FEE
    taker: float = DEFAULT_TAKER_FEE
    valid_from_ns: int = 0


@njit
def trading_fee(qty: float, fill_price: float, fee_rate: float) -> float:
    """Return the fee *paid* in USDT, ``fee_rate * qty * fill_price`` (negative: a rebate received)."""
    return fee_rate * qty * fill_price


@njit
def default_half_spread_bps(adv: float, tick_size: float, price: float) -> float:
    """Return the half spread assumed where no quotes are known, in basis points.

    At least half a tick; by daily quote volume (USDT): > 2e9 0.2, > 2e8 0.5, > 2e7 1.5, > 2e6 5, else 15.
    """
    if adv > 2e9:  # noqa: PLR2004 - the documented ladder
        ladder = 0.2
    elif adv > 2e8:  # noqa: PLR2004
        ladder = 0.5
    elif adv > 2e7:  # noqa: PLR2004
        ladder = 1.5
    elif adv > 2e6:  # noqa: PLR2004
        ladder = 5.0
    else:
        ladder = 15.0
    return max(0.5 * tick_size / price / BPS, ladder)


@njit
def slippage_bps(order_notional: float, adv: float, sigma_day_bps: float, half_spread_bps: float, impact_y: float) -> float:
    """Return the slippage of one taker order in basis points (>= half spread); unknown or zero ``adv`` charges Q/ADV = 1."""
    share = order_notional / adv if adv > 0.0 else 1.0
    return half_spread_bps + impact_y * sigma_day_bps * math.sqrt(share)


@njit
def slipped_price(price: float, side: float, bps: float) -> float:
    """Return ``price`` moved ``bps`` against the trader: up for a buy (side +1), down for a sell (side -1)."""
    return price * (1.0 + side * bps * BPS)

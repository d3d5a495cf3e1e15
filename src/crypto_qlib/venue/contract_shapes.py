"""Contract sizes and position tiers that look like the exchange's, for coins whose true tables are not known.

The shape is OKX's; the numbers are round. A contract is worth about 10 to 1000 USDT; ticks are powers of ten that
leave five significant digits; tier tables start with a few hand-set rows and then add a constant size step and
+0.005 to both margin rates until the initial rate is 0.5 (2x).
Source of the shape: OKX ``GET /public/position-tiers`` and ``/public/instruments``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.tiers import TierHistory, TierTable

_RATE_STEP: Final = 0.005
_LAST_IMR: Final = 0.5
_SIX_DIGIT_PRICE: Final = 1000.0
"""Prices from here on keep six significant digits (BTC 0.1, ETH 0.01), cheaper ones five."""


class LiquidityClass(StrEnum):
    """How deep a market is; decides tiers, lots, funding cap and spread."""

    MAJOR = "major"
    LARGE = "large"
    MID = "mid"
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class TierShape:
    """First rows of a tier table.

    Parameters
    ----------
    first_notional : float
        USDT worth of the first tier's upper bound.
    bounds : tuple of float
        Upper bounds of the hand-set tiers, as multiples of the first.
    mmr, imr : tuple of float
        Their maintenance and initial margin rates.
    step : float
        Size step of all further tiers, as a multiple of the first bound.
    """

    first_notional: float
    bounds: tuple[float, ...]
    mmr: tuple[float, ...]
    imr: tuple[float, ...]
    step: float


TIER_SHAPES: Final[dict[LiquidityClass, TierShape]] = {
    LiquidityClass.MAJOR: TierShape(1e6, (1, 5, 20, 40), (0.004, 0.005, 0.0075, 0.0125), (0.01, 0.015, 0.02, 0.025), 20),
    LiquidityClass.LARGE: TierShape(2e5, (1, 3, 8, 16), (0.0065, 0.01, 0.015, 0.02), (0.02, 0.0225, 0.03, 0.035), 8),
    LiquidityClass.MID: TierShape(5e4, (1, 2.5, 5), (0.01, 0.015, 0.025), (0.02, 0.04, 0.05), 2.5),
    LiquidityClass.SMALL: TierShape(2e4, (1, 2, 3), (0.02, 0.03, 0.04), (0.05, 0.0666, 0.08), 1),
}
"""Tier tables by liquidity class; first-tier leverage 100x, 50x, 50x, 20x."""

LOT_SIZES: Final[dict[LiquidityClass, float]] = {
    LiquidityClass.MAJOR: 0.01,
    LiquidityClass.LARGE: 0.01,
    LiquidityClass.MID: 0.1,
    LiquidityClass.SMALL: 1.0,
}
"""Size step in contracts by liquidity class."""

_CONTRACT_WORTH: Final[dict[LiquidityClass, float]] = {
    LiquidityClass.MAJOR: 500.0,
    LiquidityClass.LARGE: 150.0,
    LiquidityClass.MID: 50.0,
    LiquidityClass.SMALL: 10.0,
}


def class_by_turnover(daily_quote_volume: float) -> LiquidityClass:
    """Return the class of a market that trades ``daily_quote_volume`` USDT a day (2e9, 2e8, 4e7 are the borders)."""
    borders = ((2e9, LiquidityClass.MAJOR), (2e8, LiquidityClass.LARGE), (4e7, LiquidityClass.MID))
    return next((name for border, name in borders if daily_quote_volume >= border), LiquidityClass.SMALL)


def tick_decimals(price: float) -> int:
    """Return how many decimals a price near ``price`` is quoted with: five significant digits, six from 1000 on (0..15)."""
    digits = (5 if price >= _SIX_DIGIT_PRICE else 4) - math.floor(math.log10(price))
    return min(max(digits, 0), 15)


def contract_value(price: float, liquidity: LiquidityClass) -> float:
    """Return base coins per contract: the power of ten that makes a contract worth about 500, 150, 50 or 10 USDT."""
    exponent = round(math.log10(_CONTRACT_WORTH[liquidity] / price))
    return float(f"1e{exponent}")


def tier_table(price: float, ct_val: float, liquidity: LiquidityClass, valid_from_ns: int = 0) -> TierTable:
    """Return a full tier table for a coin near ``price``.

    Parameters
    ----------
    price : float
        Quote units; turns the shape's USDT worth into contracts.
    ct_val : float
        Base coins per contract.
    liquidity : LiquidityClass
        Which shape.
    valid_from_ns : int
        Instant from which the table holds.
    """
    shape = TIER_SHAPES[liquidity]
    first = _round_1_2_5(shape.first_notional / (price * ct_val))
    bounds = [first * b for b in shape.bounds]
    mmr, imr = list(shape.mmr), list(shape.imr)
    while imr[-1] < _LAST_IMR - 1e-12:
        bounds.append(bounds[-1] + shape.step * first)
        imr.append(min(round(imr[-1] + _RATE_STEP, 4), _LAST_IMR))
        mmr.append(round(mmr[-1] + _RATE_STEP, 4))
    leverage = np.floor(100.0 / np.array(imr) + 1e-9) / 100.0
    return TierTable(np.array(bounds), np.array(mmr), np.array(imr), leverage, valid_from_ns)


def _round_1_2_5(value: float) -> float:
    """Return the nearest of 1, 2, 5 x 10^k, at least 1."""
    base = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return min((base * k for k in (1, 2, 5, 10)), key=lambda c: abs(math.log(c / max(value, 1.0))))


@dataclass(frozen=True, slots=True)
class Listing:
    """What a contract is shaped from.

    Parameters
    ----------
    base : str
        Base coin.
    price : float
        A typical price, quote units.
    decimals : int
        Price decimals; the tick is ``10**-decimals``.
    liquidity : LiquidityClass
        Depth of the market.
    listed_ns : int
        First trading instant.
    delisted_ns : int | None
        Last trading instant, if any.
    funding_interval_h : int
        Default hours between settlements.
    """

    base: str
    price: float
    decimals: int
    liquidity: LiquidityClass
    listed_ns: int
    delisted_ns: int | None = None
    funding_interval_h: int = 8


def shaped_contract(listing: Listing) -> tuple[Instrument, TierHistory]:
    """Return the instrument and its tiers for ``listing``."""
    ct_val = contract_value(listing.price, listing.liquidity)
    table = tier_table(listing.price, ct_val, listing.liquidity)
    lot = LOT_SIZES[listing.liquidity]
    instrument = Instrument(
        symbol=f"{listing.base}USDT",
        inst_id=f"{listing.base}-USDT-SWAP",
        base=listing.base,
        ct_val=ct_val,
        tick_size=float(f"1e-{listing.decimals}"),
        lot_size=lot,
        min_size=lot,
        max_market_size=float(table.max_contracts[min(2, table.max_contracts.size - 1)]),
        max_limit_size=float(table.max_contracts[-1]),
        max_leverage=float(table.max_leverage[0]),
        funding_interval_h=listing.funding_interval_h,
        listed_ns=listing.listed_ns,
        delisted_ns=listing.delisted_ns,
    )
    return instrument, TierHistory([table])

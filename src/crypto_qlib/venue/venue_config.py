"""What a simulated exchange is made of: its instruments with their tiers, and the rules of its simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.tiers import TierHistory


@dataclass(frozen=True, slots=True)
class VenueInstrument:
    """One listed instrument and its position tiers over time."""

    instrument: Instrument
    tiers: TierHistory


@dataclass(frozen=True, slots=True)
class VenueConfig:
    """How the simulated exchange executes.

    Parameters
    ----------
    impact_y : float
        Prefactor of the square-root impact, see ``core.costs``.
    half_spread_bps : float
        Half spread in basis points; negative = by turnover, see ``core.costs.default_half_spread_bps``.
    max_bar_volume_share : float
        Largest share of a bar's volume one opening or passive order may take. Closing taker orders and triggered
        protection are filled whole and pay the impact.
    partial_liquidation : bool
        Whether positions of tier 3 and above are cut tier by tier; otherwise they are closed at once.
    default_leverage : float
        Leverage of a symbol on which none was set.
    price_band : float
        Limit buys above ``mark * (1 + band)`` and limit sells below ``mark * (1 - band)`` are refused; infinity = off.
    adl_stress_move : float
        Stress switch, off at infinity: a mark move of this fraction within one bar auto-deleverages the winning side at
        the bar's mark close.
    stall_fraction : float
        Stress switch, off at 1: an opening order fills up to this fraction of itself and no further.
    cancels_post_only : bool
        Stress switch: every post-only order is cancelled right after it was accepted.
    """

    impact_y: float = 0.8
    half_spread_bps: float = -1.0
    max_bar_volume_share: float = 0.05
    partial_liquidation: bool = True
    default_leverage: float = 3.0
    price_band: float = math.inf
    adl_stress_move: float = math.inf
    stall_fraction: float = 1.0
    cancels_post_only: bool = False

    def __post_init__(self) -> None:
        if self.impact_y < 0.0 or not 0.0 <= self.max_bar_volume_share <= 1.0:
            raise ValueError("impact_y must be >= 0 and max_bar_volume_share in [0, 1]")
        if not 0.0 <= self.stall_fraction <= 1.0:
            raise ValueError("stall_fraction must be in [0, 1]")
        if self.default_leverage < 1.0 or self.price_band <= 0.0 or self.adl_stress_move <= 0.0:
            raise ValueError("default_leverage must be >= 1, price_band and adl_stress_move > 0")

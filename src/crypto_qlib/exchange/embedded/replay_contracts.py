"""What contract would a recorded coin have been? Derived from its first month's price and turnover, or given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.venue.bar_aggregation import aggregate_bars, rows_between
from crypto_qlib.venue.contract_shapes import Listing, class_by_turnover, shaped_contract

FloatArray = npt.NDArray[np.float64]

_SPEC_DAYS: Final = 30
_MAX_DECIMALS: Final = 12


def specification(
    base: str, bars: BarBlock, life: tuple[int, int | None], funding: FundingBlock, known: Mapping[str, Instrument]
) -> tuple[Instrument, TierHistory]:
    """Return the contract: derived from the first 30 days' price and turnover, or the given one with the data's life span."""
    early = rows_between(bars, life[0], life[0] + _SPEC_DAYS * NS_PER_DAY)
    price = float(np.median(early.close))
    listing = Listing(
        base=base,
        price=price,
        decimals=price_decimals(np.concatenate([bars.open, bars.high, bars.low, bars.close])),
        liquidity=class_by_turnover(_daily_turnover(early)),
        listed_ns=life[0],
        delisted_ns=life[1],
        funding_interval_h=_usual_interval_h(funding),
    )
    derived, tiers = shaped_contract(listing)
    true = known.get(derived.symbol)
    if true is None:
        return derived, tiers
    fields = {name: getattr(true, name) for name in Instrument.__slots__} | {"listed_ns": life[0], "delisted_ns": life[1]}
    return Instrument(**fields), tiers


def price_decimals(prices: FloatArray) -> int:
    """Return the fewest decimals (0..12) that write every price exactly, up to float noise of 1e-9 relative."""
    for decimals in range(_MAX_DECIMALS):
        scaled = prices * 10.0**decimals
        if np.all(np.abs(scaled - np.rint(scaled)) <= 1e-9 * scaled):
            return decimals
    return _MAX_DECIMALS


def _usual_interval_h(funding: FundingBlock) -> int:
    if len(funding) < 2:  # noqa: PLR2004 - an interval needs two
        return 8
    return max(round(float(np.median(np.diff(funding.ts))) / NS_PER_HOUR), 1)


def _daily_turnover(bars: BarBlock) -> float:
    """Return the median quote volume of the whole days in ``bars``; of less than a day, as much as a day would have had."""
    days = aggregate_bars(bars, NS_PER_DAY)
    if len(days):
        return float(np.median(days.quote_volume))
    span = int(bars.ts_open[-1] - bars.ts_open[0]) or NS_PER_DAY
    return float(bars.quote_volume.sum()) * NS_PER_DAY / span

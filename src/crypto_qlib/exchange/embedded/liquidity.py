"""How liquid is a symbol? Trailing daily turnover and volatility, the two inputs of the spread and impact model.

``adv`` is the median quote volume of the last :data:`WINDOW_DAYS` complete UTC days, ``sigma_day_bps`` the standard
deviation of their daily log returns in basis points. Both are known at the midnight that ends the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, floor_ts
from crypto_qlib.core.costs import BPS
from crypto_qlib.venue.market_source import MarketSource

WINDOW_DAYS: Final = 30
DEFAULT_SIGMA_DAY_BPS: Final = 400.0
"""Daily volatility assumed until two daily returns are known: 4 %, ordinary for a coin."""


@dataclass(frozen=True, slots=True)
class Liquidity:
    """Trailing daily quote volume in USDT (0.0 while unknown) and daily volatility in basis points."""

    adv: float
    sigma_day_bps: float


class TrailingLiquidity:
    """Liquidity of every symbol of a source, computed once a day and kept.

    Parameters
    ----------
    source : MarketSource
        Whole history; only days complete at the asked instant are read.
    """

    def __init__(self, source: MarketSource) -> None:
        self._source = source
        self._kept: dict[str, tuple[int, Liquidity]] = {}

    def at(self, symbol: str, ts_ns: int) -> Liquidity:
        """Return the figures known at ``ts_ns``."""
        midnight = floor_ts(ts_ns, NS_PER_DAY)
        kept = self._kept.get(symbol)
        if kept is None or kept[0] != midnight:
            kept = (midnight, self._compute(symbol, midnight))
            self._kept[symbol] = kept
        return kept[1]

    def _compute(self, symbol: str, midnight: int) -> Liquidity:
        days = self._source.bars(symbol, NS_PER_DAY, midnight - WINDOW_DAYS * NS_PER_DAY, midnight)
        if not len(days):
            return Liquidity(0.0, DEFAULT_SIGMA_DAY_BPS)
        turnover = np.where(np.isfinite(days.quote_volume), days.quote_volume, days.volume * days.close)
        returns = np.diff(np.log(days.close))
        sigma = float(np.std(returns, ddof=1)) / BPS if returns.size > 1 else DEFAULT_SIGMA_DAY_BPS
        return Liquidity(float(np.median(turnover)), sigma)

"""How liquid is each symbol? Trailing daily turnover and volatility, the two inputs of the spread and impact model.

The figures are those the decision and the backtest use (``portfolio.market_columns``): median quote volume and mean daily
sum of squared returns of the last thirty complete UTC days, known from the midnight that ends them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, floor_ts
from crypto_qlib.core.costs import BPS
from crypto_qlib.core.market import FloatArray
from crypto_qlib.portfolio.market_columns import DAYS, daily_figures, daily_sums
from crypto_qlib.portfolio.market_panel import frozen
from crypto_qlib.venue.market_source import MarketSource


@dataclass(frozen=True, slots=True)
class Liquidity:
    """Trailing figures of all symbols at one instant.

    Parameters
    ----------
    adv : (n_symbols,) float64
        Median daily quote volume, USDT; NaN while unknown.
    sigma_day_bps : (n_symbols,) float64
        Daily volatility in basis points; NaN while unknown.
    """

    adv: FloatArray
    sigma_day_bps: FloatArray


class TrailingLiquidity:
    """Liquidity of every symbol of a source, computed once a day and kept.

    Parameters
    ----------
    source : MarketSource
        Whole history; only days complete at the asked instant are read.
    frame_ns : int
        Bar length the returns are taken on; where it does not divide a day, nothing is known.
    """

    def __init__(self, source: MarketSource, frame_ns: int) -> None:
        self._source = source
        self._frame_ns = frame_ns
        self._symbols = tuple(item.symbol for item in source.instruments())
        self._rows = {symbol: k for k, symbol in enumerate(self._symbols)}
        self._kept_midnight = -1
        self._kept: Liquidity | None = None

    def at(self, ts_ns: int) -> Liquidity:
        """Return the figures known at ``ts_ns``, in the order of the source's instruments."""
        midnight = floor_ts(ts_ns, NS_PER_DAY)
        if self._kept is None or self._kept_midnight != midnight:
            self._kept, self._kept_midnight = self._compute(midnight), midnight
        return self._kept

    def of(self, symbol: str, ts_ns: int) -> tuple[float, float]:
        """Return (turnover in USDT, volatility in basis points) of one symbol; 0.0 where unknown."""
        figures, row = self.at(ts_ns), self._rows[symbol]
        adv, sigma = float(figures.adv[row]), float(figures.sigma_day_bps[row])
        return (0.0 if np.isnan(adv) else adv, 0.0 if np.isnan(sigma) else sigma)

    def _compute(self, midnight: int) -> Liquidity:
        unknown = np.full(len(self._symbols), np.nan)
        if NS_PER_DAY % self._frame_ns:
            return Liquidity(unknown, unknown)
        per_day = NS_PER_DAY // self._frame_ns
        # One day more than the window, for the close before its first bar.
        start = midnight - (DAYS + 1) * NS_PER_DAY
        close, volume, quote = (np.full(((DAYS + 1) * per_day, len(self._symbols)), np.nan) for _ in range(3))
        for k, symbol in enumerate(self._symbols):
            bars = self._source.bars(symbol, self._frame_ns, start, midnight)
            rows = (bars.ts_open - start) // self._frame_ns
            close[rows, k], volume[rows, k], quote[rows, k] = bars.close, bars.volume, bars.quote_volume
        sums = daily_sums(frozen(close), frozen(volume), frozen(quote), per_day, per_day, DAYS, -1)
        adv, sigma, _ = daily_figures(*sums)
        return Liquidity(adv[-1], sigma[-1] / BPS)

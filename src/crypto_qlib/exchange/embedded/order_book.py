"""What would the order book look like? Levels that agree with the spread and impact model the venue charges.

The square-root law says an order of ``Q`` USDT moves the price ``impact_y * sigma * sqrt(Q / adv)``; so the notional
resting within ``d`` basis points beyond the best quote is ``adv * (d / (impact_y * sigma))**2``. Each level holds the
difference of that curve over its width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from crypto_qlib.core.costs import BPS, default_half_spread_bps
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.exchange.embedded.candle_pages import tick_decimals
from crypto_qlib.exchange.embedded.wire import num, plain
from crypto_qlib.venue.depth import Depth, FloatArray

Level = list[str]


@dataclass(frozen=True, slots=True)
class BookModel:
    """Spread and depth assumed of every book.

    Parameters
    ----------
    impact_y : float
        Prefactor of the square-root impact.
    half_spread_bps : float
        Half spread in basis points; negative = by turnover, see ``core.costs.default_half_spread_bps``.
    """

    impact_y: float = 0.8
    half_spread_bps: float = -1.0

    def half_spread(self, instrument: Instrument, adv: float, last: float) -> float:
        """Return the half spread in basis points."""
        if self.half_spread_bps >= 0.0:
            return self.half_spread_bps
        return float(default_half_spread_bps(adv, instrument.tick_size, last))

    def levels(
        self, instrument: Instrument, liquidity: tuple[float, float], last: float, depth: int
    ) -> tuple[list[Level], list[Level]]:
        """Return (bids, asks), best first: rows ``[price, contracts, "0", orders]`` on the tick grid.

        Parameters
        ----------
        liquidity : tuple of float
            Trailing daily turnover in USDT and daily volatility in basis points.
        """
        adv, sigma_day_bps = liquidity
        half = self.half_spread(instrument, adv, last)
        tick = instrument.tick_size
        best_bid = math.floor(last * (1.0 - half * BPS) / tick + 1e-9)
        best_ask = max(math.ceil(last * (1.0 + half * BPS) / tick - 1e-9), best_bid + 1)
        width = max(1, round(2.0 * half * BPS * last / tick))
        reach = max(self.impact_y * sigma_day_bps, 1.0)
        decimals = tick_decimals(tick)
        bids: list[Level] = []
        asks: list[Level] = []
        for k in range(depth):
            inner, outer = (width * tick / last / BPS * step / reach for step in (k, k + 1))
            contracts = max(adv, 1.0) * (outer**2 - inner**2) / (last * instrument.ct_val)
            size = num(max(round(contracts / instrument.lot_size) * instrument.lot_size, instrument.min_size))
            orders = str(1 + k % 7)
            if best_bid - k * width > 0:
                bids.append([plain(f"{(best_bid - k * width) * tick:.{decimals}f}"), size, "0", orders])
            asks.append([plain(f"{(best_ask + k * width) * tick:.{decimals}f}"), size, "0", orders])
        return bids, asks


def recorded_levels(instrument: Instrument, book: Depth, depth: int) -> tuple[list[Level], list[Level]]:
    """Return (bids, asks) of a recorded book, best first, as :meth:`BookModel.levels`; sizes below a lot are left out."""
    return _rows(instrument, book.bids)[:depth], _rows(instrument, book.asks)[:depth]


def _rows(instrument: Instrument, levels: FloatArray) -> list[Level]:
    decimals = tick_decimals(instrument.tick_size)
    lots = [(price, math.floor(qty / instrument.base_per_lot + 1e-9)) for price, qty in levels.tolist()]
    return [
        [plain(f"{price:.{decimals}f}"), num(round(count * instrument.lot_size, 10)), "0", "1"]
        for price, count in lots
        if count
    ]

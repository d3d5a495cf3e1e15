"""BTC as the market: its price, and each symbol's trailing beta to it, as decisions know it."""

from __future__ import annotations

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.core.market_factor import MarketFactor
from crypto_qlib.portfolio import market_columns as columns
from crypto_qlib.portfolio.market_panel import BTC, frozen


def btc_factor(panel: MarketPanel) -> MarketFactor | None:
    """Return BTC's price over time and each symbol's trailing beta, the very one decisions know; ``None`` without BTC.

    Prices are the opens of the bars and the last close; a missing one is the last known.
    """
    if BTC not in panel.symbols:
        return None
    btc = panel.symbols.index(BTC)
    price = np.append(panel.open[:, btc], panel.close[-1, btc])
    known = np.flatnonzero(np.isfinite(price))
    if not known.size:
        return None
    ts = np.append(panel.ts_open, panel.ts_open[-1] + panel.frame_ns)
    starts, beta = _daily_betas(panel, btc)
    return MarketFactor(ts[known], price[known], starts, beta)


def _daily_betas(panel: MarketPanel, btc: int) -> tuple[IntArray, FloatArray]:
    if NS_PER_DAY % panel.frame_ns:
        return panel.ts_open[:1], np.ones((1, len(panel.symbols)))
    per_day = NS_PER_DAY // panel.frame_ns
    first_midnight = -(-int(panel.ts_open[0]) // NS_PER_DAY) * NS_PER_DAY
    first_row = (first_midnight - int(panel.ts_open[0])) // panel.frame_ns
    n_days = max((panel.n_bars - first_row) // per_day, 0)
    sums = columns.daily_sums(
        frozen(panel.close), frozen(panel.volume), frozen(panel.quote_volume), first_row, per_day, n_days, btc
    )
    starts = first_midnight + NS_PER_DAY * np.arange(n_days + 1, dtype=np.int64)
    return starts, columns.daily_figures(*sums)[2]

"""What takers bought and sold in each bar, as the tape of its trades tells (:mod:`.trade_tape`), for many bars at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FloatArray, IntArray
from crypto_qlib.exchange.embedded.trade_tape import TRADES_PER_BAR, bar_trades

_CORNERS = (0, (TRADES_PER_BAR - 1) // 3, 2 * (TRADES_PER_BAR - 1) // 3, TRADES_PER_BAR - 1)
"""Which trades of a bar are its open, its extremes and its close."""


def taker_coins(item: Instrument, bars: BarBlock) -> tuple[FloatArray, FloatArray]:
    """Return what takers bought and what they sold in each bar, base coins, ``(n_bars,)``; zero where nothing traded."""
    lots = np.rint(np.nan_to_num(bars.volume) / item.base_per_lot).astype(np.int64)
    buy = np.zeros(len(bars))
    full = np.flatnonzero(lots >= TRADES_PER_BAR)
    buy[full] = _bought_lots(item, bars, full, lots[full])
    for k in np.flatnonzero((lots > 0) & (lots < TRADES_PER_BAR)).tolist():
        rows = bar_trades(item, bars, k, 1)
        buy[k] = sum(round(float(row["sz"]) / item.lot_size) for row in rows if row["side"] == "buy")
    return buy * item.base_per_lot, (lots - buy) * item.base_per_lot


def _bought_lots(item: Instrument, bars: BarBlock, rows: IntArray, lots: IntArray) -> IntArray:
    """Return the lots bought in bars of :data:`TRADES_PER_BAR` trades: those at or above the trade before them."""
    first, high, low, close = (getattr(bars, n)[rows] for n in ("open", "high", "low", "close"))
    is_high_first = high - first < first - low
    corners = (first, np.where(is_high_first, high, low), np.where(is_high_first, low, high), close)
    legs = [
        corners[leg][:, None] + ((corners[leg + 1] - corners[leg]) / (stop - start))[:, None] * np.arange(stop - start)
        for leg, (start, stop) in enumerate(pairwise(_CORNERS))
    ]
    path = np.hstack((*legs, close[:, None]))
    path = np.minimum(np.maximum(np.rint(path / item.tick_size) * item.tick_size, low[:, None]), high[:, None])
    places = np.arange(TRADES_PER_BAR + 1)
    sizes = np.diff(lots[:, None] * places // TRADES_PER_BAR, axis=1)
    is_bought = np.hstack((np.ones((rows.size, 1), np.bool_), path[:, 1:] >= path[:, :-1]))
    bought: IntArray = np.where(is_bought, sizes, 0).sum(axis=1)
    return bought

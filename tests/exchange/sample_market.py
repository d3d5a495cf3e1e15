"""The swaps OKX's recorded samples speak of, at prices that fit them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock
from tests.exchange.fake_market import START_NS, FakeMarket, _swap

LEVELS = {"BTC": 100_400.0, "ETH": 3_000.0, "LTC": 60.0, "ADA": 0.5}
_SHAPES = {"BTC": (0.01, 0.1, 0.01), "ETH": (0.1, 0.01, 0.1), "LTC": (1.0, 0.01, 1.0), "ADA": (100.0, 0.0001, 1.0)}


class SampleMarket(FakeMarket):
    """BTC, ETH, LTC and ADA, barely moving around the prices of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self._instruments = tuple(_shaped(base) for base in LEVELS)
        self._bars = {item.symbol: self._calm(item) for item in self._instruments}

    def _calm(self, item: Instrument) -> BarBlock:
        ts = np.arange(START_NS, self.end_ns, NS_PER_HOUR, dtype=np.int64)
        level = LEVELS[item.base]
        decimals = round(-math.log10(item.tick_size))
        path = np.round(level * (1.0 + 0.0002 * np.sin((ts - START_NS) / NS_PER_HOUR)), decimals)
        close = np.append(path[1:], path[-1])
        high, low = np.round(np.maximum(path, close) * 1.0001, decimals), np.round(np.minimum(path, close) * 0.9999, decimals)
        volume = np.full(ts.size, 1e9 / level)
        return BarBlock(ts, path, high, low, close, volume, volume * close)


def _shaped(base: str) -> Instrument:
    ct_val, tick, lot = _SHAPES[base]
    return replace(_swap(base, ct_val, tick, START_NS), lot_size=lot, min_size=lot)

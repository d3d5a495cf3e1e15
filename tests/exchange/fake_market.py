"""A tiny deterministic market: three swaps, hourly base bars, prices on the tick grid, closed forms instead of randomness."""

from __future__ import annotations

import math

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory, TierTable

START_NS = 1_735_689_600 * 10**9  # 2025-01-01T00:00:00Z
FUNDING_NS = 8 * NS_PER_HOUR


def _swap(base: str, ct_val: float, tick: float, listed_ns: int, delisted_ns: int | None = None) -> Instrument:
    return Instrument(
        symbol=f"{base}USDT",
        inst_id=f"{base}-USDT-SWAP",
        base=base,
        ct_val=ct_val,
        tick_size=tick,
        lot_size=0.1 if base == "BTC" else 1.0,
        min_size=0.1 if base == "BTC" else 1.0,
        max_market_size=12_000.0,
        max_limit_size=1_000_000.0,
        max_leverage=100.0 if base == "BTC" else 50.0,
        listed_ns=listed_ns,
        delisted_ns=delisted_ns,
    )


class FakeMarket:
    """BTC (since the start), DOGE (since the start), LATE (listed on day 20, delisted on day 50)."""

    is_simulated = True
    base_frame_ns = NS_PER_HOUR

    def __init__(self, n_hours: int = 24 * 70) -> None:
        self.start_ns = START_NS
        self.end_ns = START_NS + n_hours * NS_PER_HOUR
        late = START_NS + 20 * NS_PER_DAY
        self._instruments = (
            _swap("BTC", 0.01, 0.1, START_NS),
            _swap("DOGE", 1000.0, 0.00001, START_NS),
            _swap("LATE", 10.0, 0.001, late, START_NS + 50 * NS_PER_DAY),
        )
        self._bars = {item.symbol: self._make(item, k) for k, item in enumerate(self._instruments)}

    def _make(self, item: Instrument, k: int) -> BarBlock:
        stop = self.end_ns if item.delisted_ns is None else min(item.delisted_ns, self.end_ns)
        ts = np.arange(item.listed_ns, stop, NS_PER_HOUR, dtype=np.int64)
        level = (100_000.0, 0.3, 20.0)[k]
        t = (ts - START_NS) / NS_PER_HOUR
        decimals = round(-math.log10(item.tick_size))
        path = np.round(level * (1.0 + 0.1 * np.sin(t / 37.0 + k) + 0.01 * np.sin(t)), decimals)
        close = np.append(path[1:], path[-1])
        high = np.round(np.maximum(path, close) * 1.004, decimals)
        low = np.round(np.minimum(path, close) * 0.996, decimals)
        volume = 1000.0 / level * 1e4 * (1.5 + np.cos(t / 11.0))
        return BarBlock(ts, path, high, low, close, volume, volume * close)

    def instruments(self) -> tuple[Instrument, ...]:
        return self._instruments

    def tiers(self, symbol: str) -> TierHistory:
        bounds = np.array([1000.0, 5000.0, 20_000.0])
        top = 100.0 if symbol == "BTCUSDT" else 50.0
        return TierHistory(
            [
                TierTable(
                    bounds, np.array([0.004, 0.005, 0.0075]), 1.0 / np.array([top, 40.0, 20.0]), np.array([top, 40.0, 20.0])
                )
            ]
        )

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return _aggregate(self._bars[symbol], frame_ns, start_ns, end_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return self._derived(symbol, 1.0003, frame_ns, start_ns, end_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return self._derived(symbol, 1.0001, frame_ns, start_ns, end_ns)

    def _derived(self, symbol: str, factor: float, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        b = _aggregate(self._bars[symbol], frame_ns, start_ns, end_ns)
        none = np.full(len(b), np.nan)
        return BarBlock(b.ts_open, b.open * factor, b.high * factor, b.low * factor, b.close * factor, none, none)

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        own = self._bars[symbol].ts_open
        ts = own[(own % FUNDING_NS == 0) & (own >= start_ns) & (own < end_ns)]
        return FundingBlock(ts, np.round(1e-4 * np.sin(ts / NS_PER_DAY), 8))

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        return math.nan if symbol == "LATEUSDT" else 1234.5

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        ts = np.arange(-(-start_ns // frame_ns) * frame_ns, end_ns, frame_ns)
        return LongShortBlock(ts, 1.0 + ts % NS_PER_DAY / NS_PER_DAY)

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        return {"DOGE": 4e10, "BTC": 2e12, "NOSWAP": 3e9}


def _aggregate(b: BarBlock, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
    rows = (b.ts_open >= start_ns) & (b.ts_open < end_ns)
    if frame_ns == NS_PER_HOUR:
        return BarBlock(*(getattr(b, name)[rows] for name in BarBlock.__slots__))
    out = []
    for opened in np.unique(b.ts_open[rows] // frame_ns * frame_ns):
        part = (b.ts_open >= opened) & (b.ts_open < opened + frame_ns)
        if opened >= start_ns and part.sum() == frame_ns // NS_PER_HOUR:
            cut = [getattr(b, name)[part] for name in BarBlock.__slots__]
            out.append((opened, cut[1][0], cut[2].max(), cut[3].min(), cut[4][-1], cut[5].sum(), cut[6].sum()))
    if not out:
        return BarBlock.empty()
    columns = [np.array(column) for column in zip(*out, strict=True)]
    return BarBlock(columns[0].astype(np.int64), *columns[1:])

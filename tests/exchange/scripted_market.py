"""One swap whose every bar is written down: the market behind tests that set up a certain state through the API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.core.tiers import TierHistory, TierTable
from tests.exchange.fake_market import START_NS

Prices = tuple[float, float, float, float]


@dataclass(frozen=True)
class Bar:
    """Last and mark prices of one hour: open, high, low, close."""

    last: Prices
    mark: Prices

    @staticmethod
    def flat(last: float, mark: float | None = None) -> Bar:
        mark = last if mark is None else mark
        return Bar((last,) * 4, (mark,) * 4)


class ScriptedMarket:
    """Bars as told; funding rates by the number of the bar at whose open they are settled."""

    is_simulated = True
    base_frame_ns = NS_PER_HOUR

    def __init__(
        self, item: Instrument, bars: Sequence[Bar], mmr: float, max_leverage: float, funding: Mapping[int, float] | None = None
    ) -> None:
        self.start_ns, self.end_ns = START_NS, START_NS + len(bars) * NS_PER_HOUR
        self._item, self._rates = item, dict(funding or {})
        ts = START_NS + np.arange(len(bars), dtype=np.int64) * NS_PER_HOUR
        volume = np.full(len(bars), 1e9)
        self._bars, self._marks = (
            BarBlock(ts, *(np.array([getattr(bar, kind)[k] for bar in bars]) for k in range(4)), volume, volume)
            for kind in ("last", "mark")
        )
        self._tiers = TierHistory(
            [TierTable(np.array([1e9]), np.array([mmr]), np.array([1.0 / max_leverage]), np.array([max_leverage]))]
        )

    def instruments(self) -> tuple[Instrument, ...]:
        return (self._item,)

    def tiers(self, symbol: str) -> TierHistory:
        return self._tiers

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return _cut(self._bars, frame_ns, start_ns, end_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return _cut(self._marks, frame_ns, start_ns, end_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return _cut(self._marks, frame_ns, start_ns, end_ns)

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        all_of_them = [(START_NS + k * NS_PER_HOUR, rate) for k, rate in sorted(self._rates.items())]
        inside = [(ts, rate) for ts, rate in all_of_them if start_ns <= ts < end_ns]
        return FundingBlock(np.array([t for t, _ in inside], dtype=np.int64), np.array([r for _, r in inside], dtype=float))

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        return math.nan

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        return {}


def _cut(block: BarBlock, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
    if frame_ns != NS_PER_HOUR:
        return BarBlock.empty()
    rows = (block.ts_open >= start_ns) & (block.ts_open < end_ns)
    return BarBlock(*(getattr(block, name)[rows] for name in BarBlock.__slots__))

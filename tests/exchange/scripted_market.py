"""One swap whose every bar, an hour or another frame, is written down: for tests that set a state up through the API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.venue.bar_aggregation import aggregate_bars, rows_between
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

    def __init__(
        self,
        item: Instrument,
        bars: Sequence[Bar],
        mmr: float,
        max_leverage: float,
        funding: Mapping[int, float] | None = None,
        frame_ns: int = NS_PER_HOUR,
    ) -> None:
        self.base_frame_ns = frame_ns
        self.start_ns, self.end_ns = START_NS, START_NS + len(bars) * frame_ns
        self._item, self._rates = item, dict(funding or {})
        ts = START_NS + np.arange(len(bars), dtype=np.int64) * frame_ns
        volume = np.full(len(bars), 1e9)
        self._bars, self._marks = (
            BarBlock(ts, *(np.array([getattr(bar, kind)[k] for bar in bars]) for k in range(4)), volume, volume)
            for kind in ("last", "mark")
        )
        self._tiers = TierHistory(
            [TierTable(np.array([1e9]), np.array([mmr]), np.array([1.0 / max_leverage]), np.array([max_leverage]))]
        )

    def become(self, table: TierTable) -> None:
        """Have these tiers from now on."""
        self._tiers = TierHistory([table])

    def instruments(self) -> tuple[Instrument, ...]:
        return (self._item,)

    def tiers(self, symbol: str) -> TierHistory:
        return self._tiers

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return self._cut(self._bars, frame_ns, start_ns, end_ns)

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return self._cut(self._marks, frame_ns, start_ns, end_ns)

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        return self._cut(self._marks, frame_ns, start_ns, end_ns)

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        all_of_them = [(START_NS + k * self.base_frame_ns, rate) for k, rate in sorted(self._rates.items())]
        inside = [(ts, rate) for ts, rate in all_of_them if start_ns <= ts < end_ns]
        return FundingBlock(np.array([t for t, _ in inside], dtype=np.int64), np.array([r for _, r in inside], dtype=float))

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        return math.nan

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        return LongShortBlock(np.empty(0, np.int64), np.empty(0))

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        return {}

    def _cut(self, block: BarBlock, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        if frame_ns % self.base_frame_ns:
            return BarBlock.empty()
        return aggregate_bars(rows_between(block, start_ns, end_ns), frame_ns)

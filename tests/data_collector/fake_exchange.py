"""A fake exchange of known content for the collector, with faults: it can be killed, stutter, and correct itself later."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import DoNotRetry, RetryLater
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.exchange.gateway import FundingQuote, InterestBlock, PriceKind, TakerBlock, Ticker
from crypto_qlib.exchange.okx_statistics import RETENTION_NS

T0 = parse_utc("2025-01-01")


class KilledError(Exception):
    """The process dies here."""


def instrument(symbol: str, listed_ns: int = 0, **changes: object) -> Instrument:
    base = symbol.removesuffix("USDT")
    made = Instrument(symbol, f"{base}-USDT-SWAP", base, 1.0, 0.01, 1.0, 1.0, listed_ns=listed_ns)
    return replace(made, **changes)  # type: ignore[arg-type]


def walk(seed: int, n: int, start_ns: int = T0, frame_ns: int = NS_PER_HOUR) -> BarBlock:
    """Return ``n`` consistent random bars."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.01, n)))
    open_ = np.concatenate(([100.0], close[:-1]))
    spread = np.abs(rng.normal(0, 0.003, (2, n)))
    high = np.maximum(open_, close) * (1 + spread[0])
    low = np.minimum(open_, close) * (1 - spread[1])
    volume = rng.lognormal(5, 1, n)
    return BarBlock(start_ns + frame_ns * np.arange(n), open_, high, low, close, volume, volume * close)


def part(block: BarBlock, keep: np.ndarray) -> BarBlock:
    return BarBlock(*(getattr(block, n)[keep] for n in BarBlock.__slots__))


def with_values(block: BarBlock, **changes: np.ndarray) -> BarBlock:
    return BarBlock(*(changes.get(n, getattr(block, n)) for n in BarBlock.__slots__))


@dataclass
class FakeExchange:
    """The collector's side of ``Gateway`` over blocks in memory; everything that closed by ``now_ns`` is visible."""

    last: dict[str, BarBlock]
    now_ns: int
    mark: dict[str, BarBlock] = field(default_factory=dict)
    settlements: dict[str, FundingBlock] = field(default_factory=dict)
    listing: list[Instrument] = field(default_factory=list)
    quotes: list[Ticker] = field(default_factory=list)
    kill_at: int = -1
    stutter_every: int = 0
    dies_after: int = -1
    refused: frozenset[str] = frozenset()
    shows_unfinished: bool = False
    calls: list[tuple[str, str, int, int]] = field(default_factory=list)

    def _hit(self, verb: str, symbol: str = "", start_ns: int = 0, end_ns: int = 0) -> None:
        self.calls.append((verb, symbol, start_ns, end_ns))
        if len(self.calls) == self.kill_at:
            raise KilledError
        if 0 <= self.dies_after < len(self.calls):
            raise RetryLater("busy", retry_after_s=0.0)
        if self.stutter_every and verb != "instruments" and len(self.calls) % self.stutter_every == 0:
            raise RetryLater("busy", retry_after_s=0.0)
        if symbol in self.refused:
            raise DoNotRetry(f"{symbol} is suspended", code="51021")

    async def server_time_ns(self) -> int:
        return self.now_ns

    async def instruments(self) -> list[Instrument]:
        self._hit("instruments")
        return self.listing or [instrument(s) for s in self.last]

    async def tiers(self, symbol: str) -> TierTable:
        self._hit("tiers", symbol)
        return TierTable(*(np.array(v) for v in ([100.0, 200.0], [0.01, 0.02], [0.02, 0.04], [50.0, 25.0])))

    async def candles(self, symbol: str, frame: str, start_ns: int, end_ns: int, kind: PriceKind = PriceKind.LAST) -> BarBlock:
        self._hit(f"candles-{kind}", symbol, start_ns, end_ns)
        block = (self.last if kind is PriceKind.LAST else self.mark).get(symbol, BarBlock.empty())
        limit = self.now_ns if not self.shows_unfinished else self.now_ns + FRAME_NS[frame]
        seen = (block.ts_open >= start_ns) & (block.ts_open < end_ns) & (block.ts_open + FRAME_NS[frame] <= limit)
        return part(block, seen)

    async def funding_history(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        self._hit("funding", symbol, start_ns, end_ns)
        block = self.settlements.get(symbol, FundingBlock(np.empty(0, np.int64), np.empty(0)))
        seen = (block.ts >= start_ns) & (block.ts < end_ns) & (block.ts <= self.now_ns)
        return FundingBlock(block.ts[seen], block.rate[seen])

    async def open_interest(self, symbol: str) -> tuple[int, float]:
        self._hit("open-interest", symbol)
        return self.now_ns, 1000.0

    async def open_interest_history(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> InterestBlock:
        self._hit("interest", symbol, start_ns, end_ns)
        ts = self._kept(frame, start_ns, end_ns)
        return InterestBlock(ts, ts / 1e12, ts / 1e10)

    async def taker_volume(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> TakerBlock:
        self._hit("taker", symbol, start_ns, end_ns)
        ts = self._kept(frame, start_ns, end_ns)
        return TakerBlock(ts, ts / 1e13, ts / 1e14)

    async def long_short_ratio(self, symbol: str, frame: str, start_ns: int, end_ns: int) -> LongShortBlock:
        self._hit("long-short", symbol, start_ns, end_ns)
        ts = self._kept(frame, start_ns, end_ns)
        return LongShortBlock(ts, ts / 1e18)

    def _kept(self, frame: str, start_ns: int, end_ns: int) -> np.ndarray:
        """Return the grid instants the exchange still knows statistics of."""
        frame_ns = FRAME_NS[frame]
        oldest = max(start_ns, self.now_ns - RETENTION_NS[frame])
        ts = np.arange(-(-oldest // frame_ns) * frame_ns, min(end_ns, self.now_ns), frame_ns)
        return ts[ts + frame_ns <= self.now_ns]

    async def funding_now(self) -> list[FundingQuote]:
        self._hit("funding-now")
        return [FundingQuote(s, self.now_ns, 1e-4, self.now_ns + NS_PER_HOUR) for s in self.last]

    async def tickers(self) -> list[Ticker]:
        return self.quotes

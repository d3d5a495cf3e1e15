"""What does the market show right now? The whole history behind it, cut at the server's time.

At time T every bar with close <= T is visible; of the bar that is still running only what is known at T: the finer bars
finished inside it, and the first price of the one that opens at T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock
from crypto_qlib.exchange.embedded.liquidity import TrailingLiquidity
from crypto_qlib.exchange.embedded.market_switches import MarketSwitches, SwitchedMarket
from crypto_qlib.exchange.embedded.path_market import PathMarket
from crypto_qlib.exchange.embedded.recording import BookView, Recording
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.wire import WireRefusal
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.venue.market_source import MarketSource

_MAJOR_LEVERAGE: Final = 75.0
_BAND_MAJOR: Final = 0.05
_BAND_OTHER: Final = 0.08
ANNOUNCED_NS: Final = NS_PER_DAY
"""How long before its first trade an instrument is shown as ``preopen``; OKX announces listings hours to days ahead."""
_OPENS_KEPT: Final = 10_000
_STALE_AFTER_NS: Final = 2 * NS_PER_DAY
"""How far back a last price is looked for when no bar runs now."""


@dataclass(frozen=True, slots=True)
class DayStats:
    """One symbol's last 24 hours: prices in quote units, volume in base coins and in quote units."""

    open: float
    high: float
    low: float
    last: float
    base_volume: float
    quote_volume: float


class MarketWindow:
    """Answer questions about the market at the server's time; answers are kept until time moves.

    Parameters
    ----------
    source : MarketSource
        Whole history.
    clock : ServerClock
        The server's time.
    switches : MarketSwitches, optional
        Faults of the market.
    recording : Recording, optional
        Order books and trades as they were, where there are some.
    """

    def __init__(
        self,
        source: MarketSource,
        clock: ServerClock,
        switches: MarketSwitches | None = None,
        recording: Recording | None = None,
    ) -> None:
        self.switches = switches or MarketSwitches()
        self.source: MarketSource = SwitchedMarket(source, self.switches)
        self.clock = clock
        self.recording = recording
        # Volatility is measured on known bars, not on the path drawn between them.
        frame_ns = source.known_frame_ns if isinstance(source, PathMarket) else clock.step_ns
        self.trailing_liquidity = TrailingLiquidity(self.source, frame_ns)
        self._by_inst_id = {item.inst_id: item for item in source.instruments()}
        self._codes = {inst_id: str(100_000 + k) for k, inst_id in enumerate(sorted(self._by_inst_id))}
        self._kept_at_ns = -1
        self._running: dict[tuple[PriceKind, str, int], BarBlock] = {}
        self._day: dict[str, DayStats] = {}
        self._opened: dict[tuple[str, int], float] = {}

    def listed(self) -> list[Instrument]:
        """Return the instruments that trade now, in the source's order."""
        return [item for item in self._by_inst_id.values() if item.is_listed(self.clock.market_ns)]

    def delisted(self) -> list[Instrument]:
        """Return the instruments that traded before and do so no more, in the source's order."""
        now = self.clock.market_ns
        return [item for item in self._by_inst_id.values() if item.delisted_ns is not None and item.delisted_ns <= now]

    def coming(self) -> list[Instrument]:
        """Return the instruments that will trade within a day (OKX's state ``preopen``), in the source's order."""
        now = self.clock.market_ns
        return [item for item in self._by_inst_id.values() if now < item.listed_ns <= now + ANNOUNCED_NS]

    def orderable(self, inst_id: str) -> Instrument:
        """Return an instrument that takes orders; refuse with 51021 before it trades, with 51001 where there is none."""
        found = self._by_inst_id.get(inst_id)
        if found is not None and found in self.coming():
            raise WireRefusal("51021")
        return self.tradable(inst_id)

    def tradable(self, inst_id: str) -> Instrument:
        """Return an instrument that trades now; refuse with 51001 otherwise."""
        found = self.known(inst_id)
        if not found.is_listed(self.clock.market_ns):
            raise WireRefusal("51001")
        return found

    def known(self, inst_id: str) -> Instrument:
        """Return an instrument that trades now or did before (its history stays readable); refuse with 51001 otherwise."""
        found = self._by_inst_id.get(inst_id)
        if found is None or found.listed_ns > self.clock.market_ns:
            raise WireRefusal("51001")
        return found

    def inst_id_code(self, inst_id: str) -> str:
        """Return the numeric id of an instrument (``instIdCode``)."""
        return self._codes[inst_id]

    def inst_id_of(self, inst_id_code: str) -> str:
        """Return the name of the instrument with the numeric id ``inst_id_code``; refuse with 51001 where there is none."""
        for inst_id, code in self._codes.items():
            if code == inst_id_code:
                return inst_id
        raise WireRefusal("51001")

    def closed_bars(self, kind: PriceKind, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return the complete bars with ``start_ns <= ts_open < end_ns`` that closed at or before now."""
        end_ns = min(end_ns, self.clock.market_ns - frame_ns + 1)
        return self._read(kind, symbol, frame_ns, start_ns, end_ns) if start_ns < end_ns else BarBlock.empty()

    def recorded_book(self, symbol: str) -> BookView | None:
        """Return the recorded order book as it stands now; ``None`` where none is known."""
        return None if self.recording is None else self.recording.book(symbol, self.clock.market_ns)

    def liquidity(self, symbol: str) -> tuple[float, float]:
        """Return (trailing daily turnover in USDT, daily volatility in basis points) as known now; 0.0 where unknown."""
        return self.trailing_liquidity.of(symbol, self.clock.market_ns)

    def running_bar(self, kind: PriceKind, symbol: str, frame_ns: int) -> BarBlock:
        """Return the unfinished bar of ``frame_ns`` as far as it is known: one row, or none where nothing trades."""
        self._forget_if_moved()
        key = (kind, symbol, frame_ns)
        if key not in self._running:
            self._running[key] = self._read_running(kind, symbol, frame_ns)
        return self._running[key]

    def price(self, kind: PriceKind, symbol: str) -> float:
        """Return the latest price of ``kind``; the last price where no mark or index is known, NaN where there is none."""
        running = self.running_bar(kind, symbol, self.clock.step_ns)
        if len(running):
            return float(running.close[-1])
        now = self.clock.market_ns
        recent = self._read(kind, symbol, self.clock.step_ns, now - _STALE_AFTER_NS, now)
        if len(recent):
            return float(recent.close[-1])
        return math.nan if kind is PriceKind.LAST else self.price(PriceKind.LAST, symbol)

    def price_limits(self, item: Instrument) -> tuple[float, float]:
        """Return (highest price a buy may name, lowest price a sell may name), on the tick grid; NaN where no price is known.

        The index plus and minus the outer band. Source: OKX, "Price limit rules": about 5 % for majors, 8 % for others.
        """
        index = self.price(PriceKind.INDEX, item.symbol)
        band = _BAND_MAJOR if item.max_leverage >= _MAJOR_LEVERAGE else _BAND_OTHER
        tick = item.tick_size
        if math.isnan(index):
            return math.nan, math.nan
        return round(index * (1.0 + band) / tick) * tick, round(index * (1.0 - band) / tick) * tick

    def day_stats(self, symbol: str) -> DayStats:
        """Return the last 24 hours; prices are NaN where nothing traded."""
        self._forget_if_moved()
        if symbol not in self._day:
            now = self.clock.market_ns
            grain = math.gcd(NS_PER_DAY, self.clock.step_ns)
            bars = self.source.bars(symbol, grain, now - NS_PER_DAY, now)
            last = self.price(PriceKind.LAST, symbol)
            if len(bars):
                quote = np.where(np.isfinite(bars.quote_volume), bars.quote_volume, bars.volume * bars.close)
                self._day[symbol] = DayStats(
                    float(bars.open[0]),
                    max(float(bars.high.max()), last),
                    min(float(bars.low.min()), last),
                    last,
                    float(bars.volume.sum()),
                    float(quote.sum()),
                )
            else:
                self._day[symbol] = DayStats(last, last, last, last, 0.0, 0.0)
        return self._day[symbol]

    def opened_at(self, symbol: str, ts_ns: int) -> float:
        """Return the last price at an instant of the past on the grid of steps; that of now where nothing traded then."""
        key = (symbol, ts_ns)
        if key not in self._opened:
            if len(self._opened) > _OPENS_KEPT:
                self._opened.clear()
            grain = math.gcd(NS_PER_HOUR, self.clock.step_ns)
            bars = self.source.bars(symbol, grain, ts_ns, ts_ns + grain)
            self._opened[key] = float(bars.open[0]) if len(bars) else math.nan
        found = self._opened[key]
        return self.price(PriceKind.LAST, symbol) if math.isnan(found) else found

    def _read_running(self, kind: PriceKind, symbol: str, frame_ns: int) -> BarBlock:
        now = self.clock.market_ns
        opened = now - now % frame_ns
        # Now lies on the grid of both frames, so bars of their common divisor are the coarsest that can be cut at it.
        grain = math.gcd(frame_ns, self.clock.step_ns)
        done = self._read(kind, symbol, grain, opened, now) if opened < now else BarBlock.empty()
        starting = self._read(kind, symbol, grain, now, now + grain)
        first = starting.open[:1]
        if not len(done) and not first.size:
            return BarBlock.empty()
        return BarBlock(
            np.array([opened]),
            np.concatenate([done.open, first])[:1],
            np.concatenate([done.high, first]).max(keepdims=True),
            np.concatenate([done.low, first]).min(keepdims=True),
            np.concatenate([done.close, first])[-1:],
            done.volume.sum(keepdims=True),
            done.quote_volume.sum(keepdims=True),
        )

    def _read(self, kind: PriceKind, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        if kind is PriceKind.MARK:
            return self.source.mark_bars(symbol, frame_ns, start_ns, end_ns)
        if kind is PriceKind.INDEX:
            return self.source.index_bars(symbol, frame_ns, start_ns, end_ns)
        return self.source.bars(symbol, frame_ns, start_ns, end_ns)

    def _forget_if_moved(self) -> None:
        if self._kept_at_ns != self.clock.market_ns:
            self._kept_at_ns = self.clock.market_ns
            self._running.clear()
            self._day.clear()

"""Candles that do not lie on the epoch's grid: days that begin at 16:00 UTC, weeks from Monday, months. Made from hours.

OKX names them twice: ``1D`` begins with the day of UTC+8, ``1Dutc`` with that of UTC.
Source: OKX API v5, ``GET /market/candles`` (``bar``) and the candlesticks channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.market import BarBlock
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.gateway import PriceKind

IntArray = npt.NDArray[np.int64]
_UTC8_NS: Final = 8 * NS_PER_HOUR
_MONDAY_NS: Final = 3 * NS_PER_DAY
"""The epoch's day was a Thursday: three days after a Monday."""
_LONGEST_MONTH: Final = 31


@dataclass(frozen=True, slots=True)
class LongFrame:
    """A kind of bar by its calendar.

    Parameters
    ----------
    length_ns : int
        Length of every bar; 0 for months.
    shift_ns : int
        How long before the grid of the epoch its bars begin.
    months : int
        How many months a bar has; 0 where the length is fixed.
    """

    length_ns: int
    shift_ns: int = 0
    months: int = 0

    @property
    def longest_ns(self) -> int:
        """Return the length of its longest bar."""
        return self.length_ns or self.months * _LONGEST_MONTH * NS_PER_DAY

    def opens(self, ts: IntArray) -> IntArray:
        """Return the open of the bar that holds each instant."""
        if self.length_ns:
            return ts - (ts + self.shift_ns) % self.length_ns
        return self._month_opens(self._months_of(ts) // self.months * self.months)

    def open_of(self, ts_ns: int) -> int:
        """Return the open of the bar that holds an instant."""
        return int(self.opens(np.array([ts_ns]))[0])

    def next_open(self, open_ns: int) -> int:
        """Return the open of the bar after the one that opens at ``open_ns``."""
        if self.length_ns:
            return open_ns + self.length_ns
        return int(self._month_opens(self._months_of(np.array([open_ns])) + self.months)[0])

    def _months_of(self, ts: IntArray) -> IntArray:
        months: IntArray = (ts + self.shift_ns).astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
        return months

    def _month_opens(self, months: IntArray) -> IntArray:
        opens: IntArray = months.astype("datetime64[M]").astype("datetime64[ns]").astype(np.int64) - self.shift_ns
        return opens


def _frames() -> dict[str, LongFrame]:
    found: dict[str, LongFrame] = {}
    for ending, shift in (("", _UTC8_NS), ("utc", 0)):
        found |= {f"{n}H{ending}": LongFrame(n * NS_PER_HOUR, shift) for n in (6, 12)}
        found |= {f"{n}D{ending}": LongFrame(n * NS_PER_DAY, shift) for n in (1, 2, 3)}
        found[f"1W{ending}"] = LongFrame(7 * NS_PER_DAY, shift + _MONDAY_NS)
        found |= {f"{n}M{ending}": LongFrame(0, shift, n) for n in (1, 3)}
    return found


LONG_FRAMES: Final = _frames()
"""By OKX's name of the bar."""


def can_be_made(frame: LongFrame, base_frame_ns: int) -> bool:
    """Return whether bars of ``base_frame_ns`` add up to this frame's."""
    grain = max(NS_PER_HOUR, base_frame_ns)
    return (frame.length_ns or NS_PER_DAY) % grain == 0 and frame.shift_ns % grain == 0


@dataclass(frozen=True, slots=True)
class LongBars:
    """Bars of a long frame, oldest first; the last ``n_running`` (0 or 1) is not closed yet."""

    bars: BarBlock
    n_running: int

    @property
    def closed(self) -> BarBlock:
        """Return the closed ones."""
        return _rows(self.bars, slice(0, len(self.bars) - self.n_running))

    @property
    def running(self) -> BarBlock:
        """Return the one that is not closed yet, if any."""
        return _rows(self.bars, slice(len(self.bars) - self.n_running, None))


def long_bars(window: MarketWindow, kind: PriceKind, symbol: str, frame: LongFrame, span: tuple[int, int]) -> LongBars:
    """Return the bars that open in ``span[0] <= ts_open < span[1]`` as far as they are known now."""
    now, grain = window.clock.market_ns, max(NS_PER_HOUR, window.clock.step_ns, window.source.base_frame_ns)
    start, end = frame.open_of(max(span[0], window.source.start_ns - frame.longest_ns)), min(span[1], now + 1)
    last = frame.open_of(now)
    stop = now if end > last else frame.open_of(end - 1 + frame.longest_ns)
    fine = window.closed_bars(kind, symbol, grain, start, min(stop, now))
    if end > last:
        fine = _joined(fine, window.running_bar(kind, symbol, grain))
    if not len(fine):
        return LongBars(fine, 0)
    bars = _grouped(fine, frame.opens(fine.ts_open))
    inside = (bars.ts_open >= span[0]) & (bars.ts_open < end)
    bars = BarBlock(*(getattr(bars, name)[inside] for name in BarBlock.__slots__))
    is_running = len(bars) > 0 and frame.next_open(int(bars.ts_open[-1])) > now
    return LongBars(bars, int(is_running))


def _grouped(fine: BarBlock, opens: IntArray) -> BarBlock:
    first = np.flatnonzero(np.r_[True, opens[1:] != opens[:-1]])
    last = np.r_[first[1:], opens.size] - 1
    return BarBlock(
        opens[first], fine.open[first], np.maximum.reduceat(fine.high, first), np.minimum.reduceat(fine.low, first),
        fine.close[last], np.add.reduceat(fine.volume, first), np.add.reduceat(fine.quote_volume, first),
    )  # fmt: skip


def _joined(bars: BarBlock, more: BarBlock) -> BarBlock:
    if not len(more) or (len(bars) and more.ts_open[0] <= bars.ts_open[-1]):
        return bars
    return BarBlock(*(np.concatenate([getattr(bars, name), getattr(more, name)]) for name in BarBlock.__slots__))


def _rows(bars: BarBlock, rows: slice) -> BarBlock:
    return BarBlock(*(getattr(bars, name)[rows] for name in BarBlock.__slots__))

"""A market in finer steps than its bars: each bar becomes a believable path that keeps its open, high, low, close and volume.

A bar's path runs from its open through its two extremes to its close, as noise pinned down at those four points; which extreme
comes first, when, and the noise between are drawn from the seed, the symbol and the bar's time alone, so the same bar always
has the same path, however it is read. Mark and index follow the same draws. Bars of the source's own frame and above are
handed through untouched: what was recorded stays what is served.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FloatArray, FundingBlock, LongShortBlock
from crypto_qlib.core.tiers import TierHistory
from crypto_qlib.venue.bar_aggregation import aggregate_bars
from crypto_qlib.venue.market_source import MarketSource

LEAST_STEPS: Final = 4
"""Open, two extremes and close need this many steps a bar."""
_ROUGHNESS: Final = 0.35
"""Standard deviation of the noise at the middle of a leg, as a share of the bar's range."""


class PathMarket:
    """Serve ``source`` in steps of ``frame_ns``.

    Parameters
    ----------
    source : MarketSource
        Bars as recorded or simulated.
    frame_ns : int
        Length of a step; must divide the source's base frame at least :data:`LEAST_STEPS` times.
    seed : int
        Seed of the paths.

    Raises
    ------
    UserError
        If ``frame_ns`` does not divide the base frame, or too few times.
    """

    def __init__(self, source: MarketSource, frame_ns: int, seed: int = 0) -> None:
        if frame_ns <= 0 or source.base_frame_ns % frame_ns or source.base_frame_ns // frame_ns < LEAST_STEPS:
            raise UserError(
                f"a step of {frame_ns / 1e9:g} s does not divide the market's {source.base_frame_ns / 1e9:g} s bars "
                f"into {LEAST_STEPS} or more",
                "choose a step that does, e.g. 5 s for 1-minute bars",
            )
        self._source = source
        self._frame_ns = frame_ns
        self._steps = source.base_frame_ns // frame_ns
        self._seed = seed
        self._ticks = {item.symbol: item.tick_size for item in source.instruments()}

    @property
    def is_simulated(self) -> bool:
        """Return whether the source's prices are invented; the paths between them always are."""
        return self._source.is_simulated

    @property
    def known_frame_ns(self) -> int:
        """Return the finest bar length that is not a drawn path."""
        return self._source.base_frame_ns

    @property
    def base_frame_ns(self) -> int:
        """Return the length of a step."""
        return self._frame_ns

    @property
    def start_ns(self) -> int:
        """Return the open time of the first bar."""
        return self._source.start_ns

    @property
    def end_ns(self) -> int:
        """Return the close time of the last bar."""
        return self._source.end_ns

    def instruments(self) -> tuple[Instrument, ...]:
        """Return the source's instruments."""
        return self._source.instruments()

    def tiers(self, symbol: str) -> TierHistory:
        """Return the source's tiers."""
        return self._source.tiers(symbol)

    def bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return complete bars; finer ones than the source's are steps of the path."""
        if frame_ns % self.known_frame_ns == 0:
            return self._source.bars(symbol, frame_ns, start_ns, end_ns)
        first, last = self._cover(start_ns, end_ns)
        known = self._source.bars(symbol, self.known_frame_ns, first, last)
        return self._finer(symbol, known, frame_ns, (start_ns, end_ns), self._ticks[symbol])

    def mark_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return mark-price bars, as :meth:`bars`."""
        if frame_ns % self.known_frame_ns == 0:
            return self._source.mark_bars(symbol, frame_ns, start_ns, end_ns)
        first, last = self._cover(start_ns, end_ns)
        return self._finer(
            symbol, self._source.mark_bars(symbol, self.known_frame_ns, first, last), frame_ns, (start_ns, end_ns)
        )

    def index_bars(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> BarBlock:
        """Return index-price bars, as :meth:`bars`."""
        if frame_ns % self.known_frame_ns == 0:
            return self._source.index_bars(symbol, frame_ns, start_ns, end_ns)
        first, last = self._cover(start_ns, end_ns)
        return self._finer(
            symbol, self._source.index_bars(symbol, self.known_frame_ns, first, last), frame_ns, (start_ns, end_ns)
        )

    def funding(self, symbol: str, start_ns: int, end_ns: int) -> FundingBlock:
        """Return the source's settlements."""
        return self._source.funding(symbol, start_ns, end_ns)

    def open_interest(self, symbol: str, ts_ns: int) -> float:
        """Return the source's open interest."""
        return self._source.open_interest(symbol, ts_ns)

    def long_short_ratios(self, symbol: str, frame_ns: int, start_ns: int, end_ns: int) -> LongShortBlock:
        """Return the source's split of accounts."""
        return self._source.long_short_ratios(symbol, frame_ns, start_ns, end_ns)

    def market_caps(self, ts_ns: int) -> dict[str, float]:
        """Return the source's market caps."""
        return self._source.market_caps(ts_ns)

    def _cover(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        known = self.known_frame_ns
        return start_ns - start_ns % known, -(-end_ns // known) * known

    def _finer(self, symbol: str, known: BarBlock, frame_ns: int, span: tuple[int, int], tick: float | None = None) -> BarBlock:
        if not len(known):
            return known
        parts = [self._path(symbol, known, k, tick) for k in range(len(known))]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        times = (known.ts_open[:, None] + np.arange(self._steps) * self._frame_ns).ravel()
        steps = BarBlock(times, *columns)
        if frame_ns != self._frame_ns:
            steps = aggregate_bars(steps, frame_ns)
        inside = (steps.ts_open >= span[0]) & (steps.ts_open < span[1])
        return BarBlock(*(getattr(steps, name)[inside] for name in BarBlock.__slots__))

    def _path(self, symbol: str, known: BarBlock, k: int, tick: float | None) -> tuple[FloatArray, ...]:
        """Return (open, high, low, close, volume, quote volume) of the steps of bar ``k``, each ``(n_steps,)``."""
        n, opened = self._steps, int(known.ts_open[k])
        draw = np.random.default_rng([self._seed, zlib.crc32(symbol.encode()), opened // self.known_frame_ns])
        first, high, low, close = (float(column[k]) for column in (known.open, known.high, known.low, known.close))
        one, two = sorted(draw.choice(np.arange(1, n), size=2, replace=False).tolist())
        corners = [first, high, low, close] if draw.random() < 0.5 else [first, low, high, close]  # noqa: PLR2004 - a coin
        places = np.arange(n + 1)
        prices = np.interp(places, [0, one, two, n], corners) + _bridges(draw, n, one, two) * _ROUGHNESS * (high - low)
        if tick is not None:
            prices = np.round(prices / tick) * tick
        prices = np.clip(prices, low, high)
        prices[[0, one, two, n]] = corners
        weights = draw.exponential(size=n)
        share = weights / weights.sum()
        begin, end = prices[:-1], prices[1:]
        volume, quote = (_split(float(column[k]), share) for column in (known.volume, known.quote_volume))
        return begin, np.maximum(begin, end), np.minimum(begin, end), end, volume, quote


def _bridges(draw: np.random.Generator, n: int, one: int, two: int) -> FloatArray:
    """Return noise that is zero at 0, ``one``, ``two`` and ``n``, ``(n + 1,)``, of about unit size in the middle of a leg."""
    noise = np.zeros(n + 1)
    for start, stop in ((0, one), (one, two), (two, n)):
        walk = np.concatenate([[0.0], np.cumsum(draw.standard_normal(stop - start))])
        bridge = walk - np.linspace(0.0, 1.0, walk.size) * walk[-1]
        noise[start : stop + 1] = bridge / np.sqrt(n)
    return noise


def _split(total: float, share: FloatArray) -> FloatArray:
    """Return ``total`` in parts that add up to it exactly; NaN stays NaN."""
    parts = total * share
    parts[-1] = max(total - float(parts[:-1].sum()), 0.0)
    return parts

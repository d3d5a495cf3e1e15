"""Candles as pages of ready-made JSON rows: each bar is rendered once, a page is a slice and a join.

Rows are kept in chunks of :data:`CHUNK_BARS` bars per (price kind, symbol, frame). A chunk may hold bars of the future;
the cut at the market's time happens when a page is taken, so nothing is rendered again as time moves on.
Source: OKX ``GET /market/candles`` (columns ts, o, h, l, c, vol, volCcy, volCcyQuote, confirm) and
``/market/mark-price-candles`` (ts, o, h, l, c, confirm).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock
from crypto_qlib.exchange.embedded.wire import num
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.venue.market_source import MarketSource

CHUNK_BARS: Final = 2048
MAX_CHUNKS: Final = 4096
"""Chunks kept; the least recently used goes first (about 0.3 MB each)."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    ts_ms: list[int]
    rows: list[bytes]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One page of closed bars, newest first.

    Parameters
    ----------
    before_ms, after_ms : int
        Exclusive bounds of the open time, milliseconds: ``before_ms < ts < after_ms``.
    limit : int
        Most rows.
    """

    before_ms: int
    after_ms: int
    limit: int


class CandlePages:
    """Serve closed candles of every symbol, frame and price kind of one source.

    Parameters
    ----------
    source : MarketSource
        Whole history.
    """

    def __init__(self, source: MarketSource) -> None:
        self._source = source
        self._readers: dict[PriceKind, Callable[[str, int, int, int], BarBlock]] = {
            PriceKind.LAST: source.bars,
            PriceKind.MARK: source.mark_bars,
            PriceKind.INDEX: source.index_bars,
        }
        self._chunks: OrderedDict[tuple[PriceKind, str, int, int], _Chunk] = OrderedDict()

    def page(self, kind: PriceKind, instrument: Instrument, frame_ns: int, market_ns: int, request: PageRequest) -> list[bytes]:
        """Return the newest rows inside the bounds whose bar closed at or before ``market_ns``, newest first."""
        frame_ms = frame_ns // NS_PER_MS
        stop_ms = min(request.after_ms, market_ns // NS_PER_MS - frame_ms + 1)
        first_ms = max(request.before_ms + 1, self._source.start_ns // NS_PER_MS)
        span_ms = frame_ms * CHUNK_BARS
        rows: list[bytes] = []
        number = (stop_ms - 1) // span_ms
        while len(rows) < request.limit and (number + 1) * span_ms > first_ms:
            chunk = self._chunk(kind, instrument, frame_ns, number)
            low, high = bisect_left(chunk.ts_ms, first_ms), bisect_left(chunk.ts_ms, stop_ms)
            low = max(low, high - (request.limit - len(rows)))
            rows.extend(reversed(chunk.rows[low:high]))
            number -= 1
        return rows

    def _chunk(self, kind: PriceKind, instrument: Instrument, frame_ns: int, number: int) -> _Chunk:
        key = (kind, instrument.symbol, frame_ns, number)
        found = self._chunks.get(key)
        if found is None:
            start_ns = number * CHUNK_BARS * frame_ns
            bars = self._readers[kind](instrument.symbol, frame_ns, start_ns, start_ns + CHUNK_BARS * frame_ns)
            found = _Chunk((bars.ts_open // NS_PER_MS).tolist(), render_bars(bars, instrument, kind, is_closed=True))
            self._chunks[key] = found
            if len(self._chunks) > MAX_CHUNKS:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(key)
        return found


def render_bars(bars: BarBlock, instrument: Instrument, kind: PriceKind, *, is_closed: bool) -> list[bytes]:
    """Render bars as JSON arrays of strings, oldest first; mark and index rows carry no volumes."""
    decimals = tick_decimals(instrument.tick_size)
    prices = [_price_strings(column, decimals) for column in (bars.open, bars.high, bars.low, bars.close)]
    stamps = (bars.ts_open // NS_PER_MS).tolist()
    confirm = int(is_closed)
    if kind is not PriceKind.LAST:
        line = f'["%d","%s","%s","%s","%s","{confirm}"]'
        return [(line % row).encode() for row in zip(stamps, *prices, strict=True)]
    volumes = [_strings(column) for column in (np.round(bars.volume / instrument.ct_val, 8), bars.volume, bars.quote_volume)]
    line = f'["%d","%s","%s","%s","%s","%s","%s","%s","{confirm}"]'
    return [(line % row).encode() for row in zip(stamps, *prices, *volumes, strict=True)]


def tick_decimals(tick_size: float) -> int:
    """Return how many decimals a price on the tick grid needs, e.g. 1 for 0.1 and 0 for 5.0."""
    exponent = Decimal(str(tick_size)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _price_strings(column: npt.NDArray[np.float64], decimals: int) -> list[str]:
    # Prices on the tick grid (all last prices) take the fast way; others keep every digit, so that what a client
    # reads back is bit for bit what the venue computes with.
    if np.array_equal(np.round(column, decimals), column):
        pattern = f"%.{decimals}f"
        return [pattern % value for value in column.tolist()]
    return _strings(column)


def _strings(column: npt.NDArray[np.float64]) -> list[str]:
    texts = list(map(repr, column.tolist()))
    # Exponents, NaN and infinity are rare: one look at the whole column saves a look at every value.
    if np.isfinite(column).all() and not any("e" in text for text in texts):
        return [text.removesuffix(".0") for text in texts]
    return [num(value) for value in column.tolist()]

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
import orjson

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
    """Render bars as JSON arrays of strings, oldest first; mark and index rows carry no volumes.

    Every number is the shortest decimal that reads back as the same float64, so that what a client computes with is bit for
    bit what the venue computes with.
    """
    columns = [bars.open, bars.high, bars.low, bars.close]
    if kind is PriceKind.LAST:
        columns += [np.round(bars.volume / instrument.ct_val, 8), bars.volume, bars.quote_volume]
    stamps = (bars.ts_open // NS_PER_MS).tolist()
    tail = b'","1"]' if is_closed else b'","0"]'
    return [b'["%d","%b%b' % (ts, row, tail) for ts, row in zip(stamps, _quoted_rows(np.column_stack(columns)), strict=True)]


def tick_decimals(tick_size: float) -> int:
    """Return how many decimals a price on the tick grid needs, e.g. 1 for 0.1 and 0 for 5.0."""
    exponent = Decimal(str(tick_size)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _quoted_rows(values: npt.NDArray[np.float64]) -> list[bytes]:
    """Return each row as ``1.5","2","3.25``: joined by quotes and commas, to be wrapped by the caller."""
    if not values.size:
        return []
    text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"e" in text or b"null" in text:
        # Exponents and NaN are rare (tiny prices, unknown volumes) and not OKX's way of writing: number by number.
        return ['","'.join(map(num, row)).encode() for row in values.tolist()]
    # The whole block is quoted at once: several times faster than touching each number.
    quoted = text[2:-2].replace(b",", b'","').replace(b'.0","', b'","').replace(b".0]", b"]").removesuffix(b".0")
    return quoted.split(b']","[')

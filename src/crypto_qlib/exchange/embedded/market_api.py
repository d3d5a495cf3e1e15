"""``/api/v5/market/*``: candles, tickers, book, recent trades. Source: OKX API v5, "Market Data"."""

from __future__ import annotations

import math
from typing import Final

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR, NS_PER_MS, NS_PER_S
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.exchange.embedded.candle_pages import CandlePages, PageRequest, render_bars
from crypto_qlib.exchange.embedded.long_frames import LONG_FRAMES, can_be_made, long_bars
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.order_book import BookModel, Level, recorded_levels
from crypto_qlib.exchange.embedded.trade_tape import TRADES_PER_BAR, bar_trades, tape_rows
from crypto_qlib.exchange.embedded.wire import Call, Row, WireRefusal, envelope, ms, num
from crypto_qlib.exchange.gateway import PriceKind

BAR_NAMES: Final[dict[str, int]] = {
    **{name: span for name, span in FRAME_NS.items() if name.endswith("m")},
    **{name.upper(): span for name, span in FRAME_NS.items() if name.endswith("h")},
    "6Hutc": 6 * NS_PER_HOUR,
    "1s": NS_PER_S,
    "12Hutc": 12 * NS_PER_HOUR,
    "1Dutc": NS_PER_DAY,
}
"""``bar`` values that lie on the grid of the epoch; the others are in ``long_frames``."""

RECENT_BARS: Final = 1440
"""How many of the newest bars ``market/candles`` reaches; older ones are in ``market/history-candles``."""
_LAST_LIMIT: Final = 300
OKX_MARK_LIMIT: Final = 100
_DEFAULT_LIMIT: Final = 100
_FAR_MS: Final = 2**62
_MAX_BOOK: Final = 400
_MAX_TRADES: Final = 500
_UTC8_NS: Final = 8 * NS_PER_HOUR


class MarketApi:
    """Handlers of the market endpoints; each returns a finished answer.

    Parameters
    ----------
    window : MarketWindow
        The market at the server's time.
    book_model : BookModel
        Spread and depth of the books.
    mark_page_limit : int
        Most rows of a page of mark or index candles; OKX's is 100.
    """

    def __init__(self, window: MarketWindow, book_model: BookModel, mark_page_limit: int = OKX_MARK_LIMIT) -> None:
        self._window = window
        self._mark_limit = mark_page_limit
        self._book_model = book_model
        self._pages = CandlePages(window.source)

    def candles(self, call: Call) -> bytes:
        """Answer ``market/candles``: the newest 1440 bars, the unfinished one included."""
        return self._candles(call, PriceKind.LAST, is_history=False)

    def history_candles(self, call: Call) -> bytes:
        """Answer ``market/history-candles``: closed bars only, as far back as there are any."""
        return self._candles(call, PriceKind.LAST, is_history=True)

    def mark_candles(self, call: Call) -> bytes:
        """Answer ``market/mark-price-candles``."""
        return self._candles(call, PriceKind.MARK, is_history=False)

    def history_mark_candles(self, call: Call) -> bytes:
        """Answer ``market/history-mark-price-candles``."""
        return self._candles(call, PriceKind.MARK, is_history=True)

    def index_candles(self, call: Call) -> bytes:
        """Answer ``market/index-candles`` (``instId`` is the index, e.g. BTC-USDT)."""
        return self._candles(call, PriceKind.INDEX, is_history=False)

    def history_index_candles(self, call: Call) -> bytes:
        """Answer ``market/history-index-candles``."""
        return self._candles(call, PriceKind.INDEX, is_history=True)

    def ticker(self, call: Call) -> bytes:
        """Answer ``market/ticker``."""
        return envelope([self.ticker_row(self._window.tradable(call.required("instId")))])

    def tickers(self, call: Call) -> bytes:
        """Answer ``market/tickers``: every swap that trades and has a price."""
        if call.required("instType") != "SWAP":
            return envelope([])
        rows = [self.ticker_row(item) for item in self._window.listed()]
        return envelope([row for row in rows if row["last"]])

    def index_tickers(self, call: Call) -> bytes:
        """Answer ``market/index-tickers``."""
        wanted = call.query.get("instId", "")
        names = [item for item in self._window.listed() if wanted in ("", _index_name(item))]
        return envelope([self.index_ticker_row(item) for item in names])

    def index_ticker_row(self, item: Instrument) -> Row:
        """Return the row of ``market/index-tickers``."""
        day, index = self._window.day_stats(item.symbol), self._window.price(PriceKind.INDEX, item.symbol)
        row: Row = {"instId": _index_name(item), "idxPx": num(index), "open24h": num(day.open)}
        row |= {"high24h": num(day.high), "low24h": num(day.low)} | self._day_opens(item)
        return row | {"ts": ms(self._window.clock.now_ns())}

    def book(self, call: Call) -> bytes:
        """Answer ``market/books``: the recorded levels where known, else derived from the spread and impact model."""
        item = self._window.tradable(call.required("instId"))
        depth = min(max(call.whole("sz") or 1, 1), _MAX_BOOK)
        bids, asks = self.levels(item, depth)
        return envelope([{"asks": asks, "bids": bids, "ts": ms(self._window.clock.now_ns())}])

    def levels(self, item: Instrument, depth: int) -> tuple[list[Level], list[Level]]:
        """Return (bids, asks) as they stand now, best first; the recorded ones where known, empty where there is no price."""
        recorded = self._window.recorded_book(item.symbol)
        if recorded is not None:
            return recorded_levels(item, recorded.depth, depth)
        last = self._window.price(PriceKind.LAST, item.symbol)
        if math.isnan(last):
            return [], []
        return self._book_model.levels(item, self._window.liquidity(item.symbol), last, depth)

    def trades(self, call: Call) -> bytes:
        """Answer ``market/trades``: the newest trades, newest first."""
        item = self._window.tradable(call.required("instId"))
        count = call.limit(_DEFAULT_LIMIT, _MAX_TRADES)
        bars_needed = -(-count // TRADES_PER_BAR)
        rows = self.trade_rows(item, self._window.clock.market_ns - bars_needed * self._window.clock.step_ns)
        return envelope(rows[::-1][:count])

    def trade_rows(self, item: Instrument, since_ns: int) -> list[Row]:
        """Return the trades of the bars that opened at or after ``since_ns``, oldest first."""
        span_ns, now = self._window.clock.step_ns, self._window.clock.market_ns
        recorded = self._recorded_trades(item, since_ns - since_ns % span_ns)
        if recorded is not None:
            return recorded
        bars = self._window.closed_bars(PriceKind.LAST, item.symbol, span_ns, since_ns - since_ns % span_ns, now)
        return [row for k in range(len(bars)) for row in bar_trades(item, bars, k, span_ns)]

    def _day_opens(self, item: Instrument) -> Row:
        """Return the prices the day began with, in UTC and in UTC+8."""
        now = self._window.clock.market_ns
        midnight = now - now % NS_PER_DAY
        hongkong = now - (now + _UTC8_NS) % NS_PER_DAY
        return {
            "sodUtc0": num(self._window.opened_at(item.symbol, midnight)),
            "sodUtc8": num(self._window.opened_at(item.symbol, hongkong)),
        }

    def _recorded_trades(self, item: Instrument, since_ns: int) -> list[Row] | None:
        recording = self._window.recording
        tape = recording.trades(item.symbol, since_ns, self._window.clock.market_ns) if recording else None
        return None if tape is None else tape_rows(item, tape)

    def _candles(self, call: Call, kind: PriceKind, *, is_history: bool) -> bytes:
        item = self._named(call, kind)
        name = call.query.get("bar", "1m")
        if name in LONG_FRAMES and name not in BAR_NAMES:
            return self._long_candles(call, kind, item, is_history=is_history)
        frame_ns = BAR_NAMES.get(call.query.get("bar", "1m"), 0)
        if not frame_ns or frame_ns % self._window.source.base_frame_ns:
            raise WireRefusal("51000", "bar")
        before, after = call.whole("before"), call.whole("after")
        limit = call.limit(_DEFAULT_LIMIT, _LAST_LIMIT if kind is PriceKind.LAST else self._mark_limit)
        before_ms, after_ms = (-1 if before is None else before), (_FAR_MS if after is None else after)
        rows: list[bytes] = []
        if not is_history:
            running = self._window.running_bar(kind, item.symbol, frame_ns)
            opened_ms = int(running.ts_open[0]) // NS_PER_MS if len(running) else -1
            if before_ms < opened_ms < after_ms:
                rows = render_bars(running, item, kind, is_closed=False)
            before_ms = max(before_ms, (self._window.clock.market_ns - RECENT_BARS * frame_ns) // NS_PER_MS - 1)
        request = PageRequest(before_ms, after_ms, limit - len(rows))
        rows += self._pages.page(kind, item, frame_ns, self._window.clock.market_ns, request)
        return b'{"code":"0","msg":"","data":[' + b",".join(rows) + b"]}"

    def _long_candles(self, call: Call, kind: PriceKind, item: Instrument, *, is_history: bool) -> bytes:
        frame = LONG_FRAMES[call.query["bar"]]
        if not can_be_made(frame, self._window.source.base_frame_ns):
            raise WireRefusal("51000", "bar")
        limit = call.limit(_DEFAULT_LIMIT, _LAST_LIMIT if kind is PriceKind.LAST else self._mark_limit)
        now, before, after = self._window.clock.market_ns, call.whole("before"), call.whole("after")
        end = now + 1 if after is None else min(after * NS_PER_MS, now + 1)
        start = max(end - (limit + 1) * frame.longest_ns, 0 if before is None else before * NS_PER_MS + 1)
        found = long_bars(self._window, kind, item.symbol, frame, (start, end))
        rows = render_bars(found.closed, item, kind, is_closed=True)
        if not is_history:
            rows += render_bars(found.running, item, kind, is_closed=False)
        return b'{"code":"0","msg":"","data":[' + b",".join(rows[::-1][:limit]) + b"]}"

    def _named(self, call: Call, kind: PriceKind) -> Instrument:
        name = call.required("instId")
        return self._window.known(f"{name}-SWAP" if kind is PriceKind.INDEX else name)

    def ticker_row(self, item: Instrument) -> Row:
        """Return the row of ``market/ticker``; ``last`` is empty where nothing traded yet."""
        day = self._window.day_stats(item.symbol)
        ts = ms(self._window.clock.now_ns())
        row: Row = {"instType": "SWAP", "instId": item.inst_id, "last": "", "ts": ts}
        if math.isnan(day.last):
            return row
        bids, asks = self.levels(item, 1)
        bid_px, bid_sz = (bids[0][0], bids[0][1]) if bids else ("", "")
        return row | {
            "last": num(day.last), "lastSz": num(item.lot_size), "bidPx": bid_px, "bidSz": bid_sz,
            "askPx": asks[0][0], "askSz": asks[0][1], "open24h": num(day.open), "high24h": num(day.high),
            "low24h": num(day.low), "vol24h": num(round(day.base_volume / item.ct_val, 8)),
            "volCcy24h": num(round(day.base_volume, 8)),
        } | self._day_opens(item)  # fmt: skip


def _index_name(item: Instrument) -> str:
    return item.inst_id.removesuffix("-SWAP")

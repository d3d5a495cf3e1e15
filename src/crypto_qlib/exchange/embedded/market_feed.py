"""What the public and business sockets push when the market moves: one function per channel.

After each step :meth:`MarketFeed.moved` goes through the topics somebody listens to, in the order they were first asked for;
within a candle channel the closed bar (``confirm`` 1) comes before the running one. Rows are those REST would answer.
Source: OKX API v5, public and business channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import orjson

from crypto_qlib.exchange.embedded.account_feed import ACCOUNT_CHANNELS
from crypto_qlib.exchange.embedded.book_stream import BookStream
from crypto_qlib.exchange.embedded.candle_pages import render_bars
from crypto_qlib.exchange.embedded.long_frames import LONG_FRAMES, LongFrame, can_be_made, long_bars
from crypto_qlib.exchange.embedded.market_api import BAR_NAMES, MarketApi
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.public_api import PublicApi
from crypto_qlib.exchange.embedded.push_hub import PushHub, Topic
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.exchange.gateway import PriceKind

CANDLE_PREFIXES: Final = ("candle", "mark-price-candle", "index-candle")
_KINDS: Final = {"candle": PriceKind.LAST, "mark-price-candle": PriceKind.MARK, "index-candle": PriceKind.INDEX}
_BOOK_DEPTHS: Final = {"books5": 5, "bbo-tbt": 1}
_FULL_DEPTH: Final = 400
_TOLD_BY_EVENTS: Final = ACCOUNT_CHANNELS | {"liquidation-orders"}

Push = tuple[list[Row], Mapping[str, object] | None]


def candle_of(channel: str, base_frame_ns: int) -> tuple[PriceKind, int | LongFrame] | None:
    """Return (price kind, frame) of a candle channel; ``None`` where the frame is not served."""
    prefix = next((p for p in ("mark-price-candle", "index-candle", "candle") if channel.startswith(p)), "")
    name = channel.removeprefix(prefix) if prefix else ""
    frame_ns, long = BAR_NAMES.get(name, 0), LONG_FRAMES.get(name)
    if frame_ns:
        return (_KINDS[prefix], frame_ns) if frame_ns % base_frame_ns == 0 else None
    return (_KINDS[prefix], long) if long is not None and can_be_made(long, base_frame_ns) else None


class MarketFeed:
    """Push market data.

    Parameters
    ----------
    window : MarketWindow
        The market at the server's time.
    market, public : MarketApi, PublicApi
        Render the rows REST answers with.
    hub : PushHub
        Who listens.
    """

    def __init__(self, window: MarketWindow, market: MarketApi, public: PublicApi, hub: PushHub) -> None:
        self._window = window
        self._market = market
        self._public = public
        self._hub = hub
        self._books: dict[str, BookStream] = {}
        self._seen_ns = window.clock.market_ns
        self._shown: dict[str, Row] = {}

    def snapshots(self, topic: Topic) -> Iterable[Push]:
        """Return what a new subscriber of ``topic`` is shown at once."""
        if topic.channel == "books":
            yield [self._book(topic.of).snapshot()], {"action": "snapshot"}
        elif topic.channel == "instruments":
            # From here on changes are told against what was shown.
            self._shown = self._shown or self._instruments()
            yield list(self._instruments().values()), None
        elif topic.channel not in ("trades", "trades-all", "liquidation-orders"):
            rows = self._rows(topic, self._window.clock.market_ns)
            if rows:
                yield rows, None

    def moved(self) -> None:
        """Push what changed since the last call; call it after each step of the market."""
        before, self._seen_ns = self._seen_ns, self._window.clock.market_ns
        if before == self._seen_ns:
            return
        self._move_books()
        for topic in self._hub.topics():
            if topic.channel in _TOLD_BY_EVENTS:
                continue
            if topic.channel == "instruments":
                self._push_instruments()
            elif topic.channel == "books":
                update = self._books[topic.of].last_update if topic.of in self._books else None
                if update is not None:
                    self._hub.publish(topic, [update], {"action": "update"})
            elif topic.channel.startswith(CANDLE_PREFIXES):
                # A frame's closed bar and its successor are two messages, as at OKX.
                for row in self._rows(topic, before):
                    self._hub.publish(topic, [row])
            else:
                self._hub.publish(topic, self._rows(topic, before))

    def _rows(self, topic: Topic, since_ns: int) -> list[Row]:
        """Return the rows of one topic, of what happened after ``since_ns`` where the channel tells events."""
        channel, name = topic.channel, topic.of
        if channel.startswith(CANDLE_PREFIXES):
            return self._candles(channel, name, since_ns)
        item = self._window.known(f"{name}-SWAP" if channel == "index-tickers" else name)
        if not item.is_listed(self._window.clock.market_ns):
            return []
        if channel in ("trades", "trades-all"):
            return self._market.trade_rows(item, since_ns)
        if channel in _BOOK_DEPTHS:
            return [self._book(name).top(_BOOK_DEPTHS[channel])]
        if channel in ("tickers", "index-tickers"):
            row = self._market.ticker_row(item) if channel == "tickers" else self._market.index_ticker_row(item)
            return [row] if row.get("last", row.get("idxPx")) else []
        return self._public.channel_rows(channel, item)

    def _candles(self, channel: str, name: str, since_ns: int) -> list[Row]:
        found = candle_of(channel, self._window.source.base_frame_ns)
        assert found is not None
        kind, frame_ns = found
        item = self._window.known(f"{name}-SWAP" if kind is PriceKind.INDEX else name)
        if isinstance(frame_ns, LongFrame):
            now = self._window.clock.market_ns
            bars = long_bars(self._window, kind, item.symbol, frame_ns, (frame_ns.open_of(since_ns), now + 1))
            closed = render_bars(bars.closed, item, kind, is_closed=True)
            return [orjson.loads(row) for row in closed + render_bars(bars.running, item, kind, is_closed=False)]
        rows: list[bytes] = []
        first = since_ns - since_ns % frame_ns
        last = self._window.clock.market_ns - self._window.clock.market_ns % frame_ns
        if first < last:
            rows = render_bars(self._window.closed_bars(kind, item.symbol, frame_ns, first, last), item, kind, is_closed=True)
        running = self._window.running_bar(kind, item.symbol, frame_ns)
        if len(running):
            rows += render_bars(running, item, kind, is_closed=False)
        return [orjson.loads(row) for row in rows]

    def _book(self, name: str) -> BookStream:
        if name not in self._books:
            self._books[name] = BookStream(name)
            self._renew(self._books[name])
        return self._books[name]

    def _move_books(self) -> None:
        listened = {topic.of for topic in self._hub.topics() if topic.channel in ("books", *_BOOK_DEPTHS)}
        for name in list(self._books):
            if name in listened:
                self._renew(self._books[name])
            else:
                del self._books[name]

    def _renew(self, stream: BookStream) -> None:
        item = self._window.known(stream.inst_id)
        bids, asks = self._market.levels(item, _FULL_DEPTH)
        recorded = self._window.recorded_book(item.symbol)
        stream.renew(bids, asks, self._window.clock.now_ns(), recorded.seq if recorded else 0)

    def _instruments(self) -> dict[str, Row]:
        shown = (*self._window.listed(), *self._window.coming())
        rows: dict[str, Row] = {item.inst_id: self._public.instrument_row(item) for item in shown}
        return rows

    def _push_instruments(self) -> None:
        now = self._instruments()
        changed = [row for name, row in now.items() if self._shown.get(name, row) != row or name not in self._shown]
        if self._shown and changed:
            self._hub.publish(Topic("instruments", "SWAP"), changed)
        self._shown = now

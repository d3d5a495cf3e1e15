"""One live swap as its public channels tell it: last trade, mark, index, price limits, funding, order book.

Between two observations the highest and lowest prices and the volume are kept, so that nothing the market did in between is
overlooked. The book is followed by its sequence ids; a message that does not fit makes it unknown until a new snapshot.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.venue.depth import Depth

CHANNELS: Final = ("tickers", "trades", "mark-price", "price-limit", "funding-rate", "books")
"""Followed for every swap; the index has its own name."""
TOLD_WITHIN_NS: Final = 100 * NS_PER_S
"""Within this time after a settlement OKX tells its rate. Source: OKX API v5, "Funding rate channel": every 30 to 90 s."""
_LEVELS: Final = 400
_TRADES_KEPT: Final = 500


@dataclass(slots=True)
class Extremes:
    """A price since the last observation: the latest, the highest, the lowest."""

    now: float = math.nan
    high: float = -math.inf
    low: float = math.inf

    def take(self, price: float) -> None:
        """Take in one price."""
        self.now, self.high, self.low = price, max(self.high, price), min(self.low, price)

    def stretch(self, high: float, low: float) -> None:
        """Take in the extremes of a time that was not followed."""
        self.high, self.low = max(self.high, high), min(self.low, low)

    def observed(self) -> tuple[float, float, float]:
        """Return (latest, highest, lowest) and begin anew from the latest."""
        seen = (self.now, max(self.high, self.now), min(self.low, self.now))
        self.high = self.low = self.now
        return seen


@dataclass(slots=True)
class LiveSymbol:
    """What is known of one swap now; prices are NaN before the first message."""

    item: Instrument
    last: Extremes = field(default_factory=Extremes)
    mark: Extremes = field(default_factory=Extremes)
    index: float = math.nan
    buy_limit: float = math.nan
    sell_limit: float = math.nan
    volume: float = 0.0
    funding_ns: int = 0
    settled_ns: int = 0
    funding_rate: float = math.nan
    due: list[float] = field(default_factory=list)
    ticker: Row = field(default_factory=dict)
    bids: dict[float, list[str]] = field(default_factory=dict)
    asks: dict[float, list[str]] = field(default_factory=dict)
    seq: int = -1
    seen_s: float = -math.inf
    last_trade_id: str = ""
    trades: deque[Row] = field(default_factory=lambda: deque(maxlen=_TRADES_KEPT))

    @property
    def is_known(self) -> bool:
        """Return whether it has a last and a mark price."""
        return self.last.now > 0.0 and self.mark.now > 0.0

    def take(self, channel: str, message: Mapping[str, Any], now_s: float) -> bool:
        """Take in one message; return False where the book's sequence broke and a new snapshot is needed.

        Parameters
        ----------
        now_s : float
            Monotonic seconds of its arrival.
        """
        if channel == "books":
            return self._take_book(message, now_s)
        for row in message["data"]:
            if channel == "tickers" and row["last"]:
                self.ticker = row
                self._take_last(float(row["last"]), now_s)
            elif channel == "trades":
                self.trades.append(row)
                self.volume += float(row["sz"]) * self.item.ct_val
                self._take_last(float(row["px"]), now_s)
            elif channel == "mark-price":
                self.mark.take(float(row["markPx"]))
            elif channel == "index-tickers":
                self.index = float(row["idxPx"] or "nan")
            elif channel == "price-limit":
                self.buy_limit, self.sell_limit = (float(row[name] or "nan") for name in ("buyLmt", "sellLmt"))
            elif channel == "funding-rate":
                self._take_funding(row)
        return True

    def settle(self, now_ns: int, *, waits: bool = True) -> float:
        """Return the rate of the settlements that are due at ``now_ns`` and not settled yet; NaN where there are none.

        Parameters
        ----------
        waits : bool
            Whether OKX gets its time to tell the settled rate; otherwise, and after it, the rate it announced counts.
        """
        due_ns = self.funding_ns + (TOLD_WITHIN_NS if waits else 0)
        if self.settled_ns < self.funding_ns and due_ns <= now_ns:
            self.due.append(self.funding_rate)
            self.settled_ns = self.funding_ns
        due, self.due = self.due, []
        return sum(due) if due else math.nan

    def depth(self, levels: int = _LEVELS) -> Depth | None:
        """Return the best levels of the book, sizes in base coins; ``None`` where it is not known."""
        if self.seq < 0 or not self.bids or not self.asks:
            return None
        return Depth(*(np.array([(float(r[0]), float(r[1]) * self.item.ct_val) for r in side]) for side in self.rows(levels)))

    def rows(self, levels: int = _LEVELS) -> tuple[list[list[str]], list[list[str]]]:
        """Return (bids, asks) as OKX sent them, best first."""
        bids = [self.bids[price] for price in sorted(self.bids, reverse=True)[:levels]]
        return bids, [self.asks[price] for price in sorted(self.asks)[:levels]]

    def forget_book(self) -> None:
        """Know the book no more, until its next snapshot."""
        self.bids, self.asks, self.seq = {}, {}, -1

    def _take_last(self, price: float, now_s: float) -> None:
        self.last.take(price)
        self.seen_s = now_s

    def _take_funding(self, row: Row) -> None:
        coming_ns = int(row["fundingTime"]) * NS_PER_MS
        if coming_ns > self.funding_ns > self.settled_ns:
            # The settlement passed before anything was observed: it was at the rate told for it.
            settled = row.get("settFundingRate") if row.get("prevFundingTime") == str(self.funding_ns // NS_PER_MS) else ""
            self.due.append(float(settled) if settled else self.funding_rate)
            self.settled_ns = self.funding_ns
        self.funding_ns, self.funding_rate = coming_ns, float(row["fundingRate"] or "nan")

    def _take_book(self, message: Mapping[str, Any], now_s: float) -> bool:
        for book in message["data"]:
            if message.get("action") == "snapshot":
                self.forget_book()
            elif self.seq < 0 or int(book["prevSeqId"]) != self.seq:
                self.forget_book()
                return False
            for side, name in ((self.bids, "bids"), (self.asks, "asks")):
                for level in book[name]:
                    if float(level[1]) > 0.0:
                        side[float(level[0])] = level
                    else:
                        side.pop(float(level[0]), None)
            self.seq = int(book["seqId"])
            self.seen_s = now_s
        return True

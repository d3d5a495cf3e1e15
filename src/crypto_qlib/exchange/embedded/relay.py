"""OKX's own public answers and pushes, handed on to the clients of a live market word for word.

REST: everything under ``market/``, ``public/`` and ``rubik/`` is asked of OKX and answered as it answers, lists cut to the
swaps served here. Sockets: a topic somebody listens to is wanted of OKX, its messages are published as they come; a new
listener of a book is shown the book as followed here, so that the next update fits its sequence id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from crypto_qlib.core.errors import RetryLater
from crypto_qlib.exchange.embedded.book_stream import checksum
from crypto_qlib.exchange.embedded.live_market import LiveSource
from crypto_qlib.exchange.embedded.live_symbol import CHANNELS
from crypto_qlib.exchange.embedded.public_facts import PublicRest
from crypto_qlib.exchange.embedded.public_socket import PublicSocket
from crypto_qlib.exchange.embedded.push_hub import PushHub, Topic
from crypto_qlib.exchange.embedded.router import API_ROOT, Answer
from crypto_qlib.exchange.embedded.wire import MESSAGES, Row, envelope

_FAMILIES: Final = ("market/", "public/", "rubik/")
_OWN: Final = frozenset(("public/time", "public/instruments", "public/position-tiers"))
"""Answered here: the clock may be skewed on purpose, contracts and tiers are those accounts are simulated by."""
_BY_TYPE: Final = frozenset(("instruments", "liquidation-orders"))
_NO_MEMORY: Final = frozenset(("trades", "trades-all", "liquidation-orders"))
_FULL_DEPTH: Final = 400

Push = tuple[list[Row], Mapping[str, object] | None]


class RestRelay:
    """Ask OKX what clients ask.

    Parameters
    ----------
    source : LiveSource
        Which swaps are served.
    rest : PublicRest
        Open connection to OKX.
    """

    def __init__(self, source: LiveSource, rest: PublicRest) -> None:
        self._rest = rest
        names = (name for item in source.instruments() for name in (item.inst_id, item.inst_id.removesuffix("-SWAP")))
        self._names = {"", *names}

    @staticmethod
    def serves(method: str, path: str) -> bool:
        """Return whether a request is OKX's to answer."""
        name = path.removeprefix(API_ROOT)
        return method == "GET" and name.startswith(_FAMILIES) and name not in _OWN

    async def answer(self, target: str) -> Answer:
        """Return OKX's answer to ``target``; 50001 where none came."""
        try:
            status, body = await self._rest.raw(target)
        except RetryLater:
            http_status, text = MESSAGES["50001"]
            return Answer(http_status, envelope([], "50001", text))
        query = dict(parse_qsl(target.partition("?")[2]))
        return Answer(status, body if query.get("instId", "ANY") != "ANY" else self._cut(body))

    def _cut(self, body: bytes) -> bytes:
        """Leave the rows of swaps that are not served out of a list."""
        try:
            answer = orjson.loads(body)
            rows = answer["data"]
            kept = [row for row in rows if not isinstance(row, dict) or row.get("instId", "") in self._names]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return body
        return body if len(kept) == len(rows) else orjson.dumps(answer | {"data": kept})


class LiveFeed:
    """Hand pushes on to the topics somebody listens to.

    Parameters
    ----------
    source : LiveSource
        The market.
    hub : PushHub
        Who listens.
    public, business : PublicSocket
        OKX's sockets.
    """

    def __init__(self, source: LiveSource, hub: PushHub, public: PublicSocket, business: PublicSocket) -> None:
        self._source = source
        self._hub = hub
        self._public = public
        self._business = business
        self._newest: dict[Topic, list[Row]] = {}
        self._wanted: dict[Topic, Mapping[str, str]] = {}

    def snapshots(self, topic: Topic) -> Iterable[Push]:
        """Return what a new subscriber is shown at once, and want the topic of OKX."""
        self._want(topic)
        if topic.channel == "books":
            live = self._source.by_inst_id[topic.of]
            if live.seq >= 0:
                bids, asks = live.rows(_FULL_DEPTH)
                row = {"asks": asks, "bids": bids, "ts": self._stamp(topic), "checksum": checksum(bids, asks)}
                yield [row | {"prevSeqId": -1, "seqId": live.seq}], {"action": "snapshot"}
        elif topic in self._newest and topic.channel not in _NO_MEMORY:
            yield self._newest[topic], None

    def moved(self) -> None:
        """Want no more what nobody listens to."""
        for topic in [topic for topic in self._wanted if not self._hub.has(topic)]:
            arg = self._wanted.pop(topic)
            (self._business if _is_business(topic.channel) else self._public).drop(arg)
            self._newest.pop(topic, None)

    def take(self, message: dict[str, Any]) -> None:
        """Publish one message of OKX."""
        arg = message["arg"]
        topic = Topic(arg["channel"], "SWAP" if arg["channel"] in _BY_TYPE else arg.get("instId", ""))
        rows = message["data"]
        if topic.channel in _BY_TYPE:
            rows = [row for row in rows if row.get("instId") in self._source.by_inst_id]
        if rows and topic.channel != "books":
            self._newest[topic] = rows
        if rows:
            self._hub.publish(topic, rows, {"action": message["action"]} if "action" in message else None)

    def _stamp(self, topic: Topic) -> str:
        return str(self._source.by_inst_id[topic.of].ticker.get("ts", ""))

    def _want(self, topic: Topic) -> None:
        if topic.channel in CHANNELS or topic.channel == "index-tickers" or topic in self._wanted:
            return
        arg = {"channel": topic.channel} | ({"instType": "SWAP"} if topic.channel in _BY_TYPE else {"instId": topic.of})
        if topic.channel == "instruments":
            return
        self._wanted[topic] = arg
        (self._business if _is_business(topic.channel) else self._public).want(arg)


def _is_business(channel: str) -> bool:
    return "candle" in channel or channel == "trades-all"

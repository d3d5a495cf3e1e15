"""One websocket as OKX serves it: login, subscriptions, order operations, ``ping``.

A session has no networking in it: text comes in through :meth:`SocketSession.receive`, frames wait in ``outbox``.
Each message is answered in full before the next is read; what it sets off is pushed after its answer.
Source: OKX API v5, "WebSocket" (connect, login, subscribe) and error codes 60000-64008.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import orjson

from crypto_qlib.core.clock import NS_PER_HOUR, Clock
from crypto_qlib.exchange.embedded.account_rows import uid_of
from crypto_qlib.exchange.embedded.push_hub import Frame, PushHub
from crypto_qlib.exchange.embedded.socket_channels import Path, SocketChannels
from crypto_qlib.exchange.embedded.socket_errors import SocketRefusal
from crypto_qlib.exchange.embedded.socket_login import SocketLogin
from crypto_qlib.exchange.embedded.socket_orders import SocketOrders

MOST_REQUESTS_PER_HOUR: Final = 480
"""Subscribe, unsubscribe and login messages of one connection."""
MOST_FRAMES_WAITING: Final = 20_000
"""A client this far behind is cut off (60016)."""
_MAX_TEXT: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SocketParts:
    """What all sessions of a server share."""

    hub: PushHub
    channels: SocketChannels
    login: SocketLogin
    orders: SocketOrders
    wall: Clock


class SocketSession:
    """The server's side of one connection.

    Parameters
    ----------
    parts : SocketParts
        What all sessions share.
    path : Path
        Which of the three socket paths it came in on.
    number : int
        Running number of the connection, shown as ``connId``.
    remote : str
        Client's address.
    """

    def __init__(self, parts: SocketParts, path: Path, number: int, remote: str) -> None:
        self._parts = parts
        self.path = path
        self.conn_id = f"{number:08x}"
        self.remote = remote
        self.account_id = ""
        self.outbox: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.is_open = True
        self.last_traffic_ns = parts.wall.now_ns()
        self._window_start_ns = self.last_traffic_ns
        self._requests = 0

    def enqueue(self, frame: Frame) -> None:
        """Put a frame last in the queue; too long a queue ends the connection."""
        if not self.is_open:
            return
        self.last_traffic_ns = self._parts.wall.now_ns()
        self.outbox.put_nowait(frame)
        if self.outbox.qsize() > MOST_FRAMES_WAITING:
            self.close()

    def close(self) -> None:
        """End the session: nothing more is sent once the queue is empty."""
        if self.is_open:
            self.is_open = False
            self._parts.hub.forget(self)
            self.outbox.put_nowait(None)

    def receive(self, text: str) -> None:
        """Take in one message and answer it; malformed input is refused with a 60xxx event, never an exception."""
        self.last_traffic_ns = self._parts.wall.now_ns()
        if text == "ping":
            self._answer(b"pong")
            return
        try:
            self._act(_parsed(text))
        except SocketRefusal as refusal:
            row = {"event": "error", "msg": refusal.message, "code": refusal.code, "connId": self.conn_id}
            self._answer(orjson.dumps(row | refusal.echo))

    def _act(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        args = message.get("args")
        if not isinstance(args, list) or not args or not all(isinstance(arg, dict) for arg in args):
            raise SocketRefusal("60012", orjson.dumps(message).decode())
        if op in ("login", "subscribe", "unsubscribe"):
            self._count_request()
        if op == "login":
            self._log_in(args)
        elif op in ("subscribe", "unsubscribe"):
            for arg in args:
                self._subscribe(op, {str(k): str(v) for k, v in arg.items()}, message.get("id"))
        elif isinstance(op, str) and self._parts.orders.knows(op):
            self._order(op, args, message.get("id"))
        else:
            raise SocketRefusal("60012", orjson.dumps(message).decode())

    def _log_in(self, args: list[dict[str, Any]]) -> None:
        if self.path is Path.PUBLIC:
            raise SocketRefusal("60028")
        if self.account_id:
            raise SocketRefusal("60031")
        self.account_id = self._parts.login.account_of(args[0])
        self._answer(orjson.dumps({"event": "login", "code": "0", "msg": "", "connId": self.conn_id}))

    def _subscribe(self, op: str, arg: dict[str, str], request_id: object) -> None:
        echo: dict[str, object] = {} if request_id is None else {"id": str(request_id)}
        try:
            topic = self._parts.channels.topic(self.path, arg, self.account_id)
        except SocketRefusal as refusal:
            raise refusal.with_echo({"arg": arg} | echo) from None
        hub = self._parts.hub
        if op == "unsubscribe":
            hub.unsubscribe(topic, self, arg)
            self._answer(orjson.dumps(echo | {"event": op, "arg": arg, "connId": self.conn_id}))
            return
        self._answer(orjson.dumps(echo | {"event": op, "arg": arg, "connId": self.conn_id}))
        uid = uid_of(topic.of) if topic.of == self.account_id else ""
        subscription = hub.subscribe(topic, self, arg, uid)
        for rows, extra in self._parts.channels.snapshots(topic):
            hub.push_to(subscription, topic.channel, rows, extra)

    def _order(self, op: str, args: list[dict[str, Any]], request_id: object) -> None:
        if self.path is not Path.PRIVATE:
            raise SocketRefusal("60028", echo={"id": str(request_id), "op": op})
        if not self.account_id:
            raise SocketRefusal("60011", echo={"id": str(request_id), "op": op})
        answer = self._parts.orders.carry_out(op, args, self.account_id)
        self._answer(orjson.dumps({"id": str(request_id or ""), "op": op} | answer))
        self._parts.orders.tell()

    def _count_request(self) -> None:
        now = self._parts.wall.now_ns()
        if now - self._window_start_ns >= NS_PER_HOUR:
            self._window_start_ns, self._requests = now, 0
        self._requests += 1
        if self._requests > MOST_REQUESTS_PER_HOUR:
            raise SocketRefusal("60014")

    def _answer(self, body: bytes) -> None:
        self._parts.hub.send(self, Frame(body))


def _parsed(text: str) -> dict[str, Any]:
    try:
        message = orjson.loads(text) if len(text) <= _MAX_TEXT else None
    except orjson.JSONDecodeError:
        message = None
    if not isinstance(message, dict):
        raise SocketRefusal("60012", text[:200])
    return message

"""Who gets which socket message: subscriptions, and the one point every message leaves through.

Feeds publish rows under a :class:`Topic`; the hub wraps them in each subscriber's own ``arg`` (clients route by it) and hands
the :class:`Frame` to ``outlet``. Answers and events of a session leave through the same point. A different outlet can drop,
double, delay or reorder what passes; the order in which frames reach it is the order in which things happened.
Source: OKX API v5, "WebSocket", push data ``{"arg": ..., "action": ..., "data": [...]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from crypto_qlib.exchange.embedded.wire import Row

FILTERS: Final = ("instId", "instFamily", "algoId")
"""Keys of a private subscription's ``arg`` that keep rows of other instruments out."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What can be subscribed to.

    Parameters
    ----------
    channel : str
        OKX's channel name, e.g. ``books5``.
    of : str
        Instrument, index or instrument type of a public channel; account of a private one.
    """

    channel: str
    of: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One text message to one socket.

    Parameters
    ----------
    body : bytes
        The text, UTF-8.
    channel : str
        Channel it was pushed on; empty for answers, events and ``pong``.
    """

    body: bytes
    channel: str = ""


class Receiver(Protocol):
    """An open socket, as the hub sees it."""

    def enqueue(self, frame: Frame) -> None:
        """Put ``frame`` last in the socket's queue; a closed socket takes nothing and says nothing."""
        ...


Outlet = Callable[[Receiver, Frame], None]
"""Deliver a frame to a socket."""


def straight(receiver: Receiver, frame: Frame) -> None:
    """Deliver at once, in order, exactly once."""
    receiver.enqueue(frame)


@dataclass(frozen=True, slots=True)
class Subscription:
    """One socket's interest in one topic, with the ``arg`` it was asked with."""

    receiver: Receiver
    arg: Mapping[str, str]
    arg_json: bytes

    def wants(self, row: Row) -> bool:
        """Return whether a row passes the filters of the subscription."""
        return all(self.arg.get(name, row.get(name)) in ("", row.get(name)) for name in FILTERS if name in row)


class PushHub:
    """Keep subscriptions and send frames.

    Attributes
    ----------
    outlet : Outlet
        Where every frame goes; replace it to inject faults.
    """

    def __init__(self) -> None:
        self.outlet: Outlet = straight
        self._by_topic: dict[Topic, dict[tuple[int, bytes], Subscription]] = {}

    def topics(self) -> tuple[Topic, ...]:
        """Return the topics somebody is subscribed to."""
        return tuple(self._by_topic)

    def has(self, topic: Topic) -> bool:
        """Return whether somebody is subscribed to ``topic``."""
        return topic in self._by_topic

    def subscribe(self, topic: Topic, receiver: Receiver, arg: Mapping[str, str], uid: str = "") -> Subscription:
        """Add a subscription; the same one twice counts once.

        Parameters
        ----------
        uid : str
            Shown beside ``arg`` in pushes of private channels.
        """
        subscription = Subscription(receiver, arg, orjson.dumps({**arg, "uid": uid} if uid else arg))
        self._by_topic.setdefault(topic, {})[id(receiver), orjson.dumps(arg)] = subscription
        return subscription

    def unsubscribe(self, topic: Topic, receiver: Receiver, arg: Mapping[str, str]) -> bool:
        """Take a subscription out; return whether there was one."""
        known = self._by_topic.get(topic, {})
        removed = known.pop((id(receiver), orjson.dumps(arg)), None)
        if not known:
            self._by_topic.pop(topic, None)
        return removed is not None

    def forget(self, receiver: Receiver) -> None:
        """Take all subscriptions of a socket out."""
        for topic, known in list(self._by_topic.items()):
            for key in [key for key, subscription in known.items() if subscription.receiver is receiver]:
                del known[key]
            if not known:
                del self._by_topic[topic]

    def publish(self, topic: Topic, rows: list[Row], extra: Mapping[str, object] | None = None) -> None:
        """Send ``rows`` to all subscribers of ``topic``; a subscriber whose filters leave no row gets nothing.

        Parameters
        ----------
        extra : mapping, optional
            Keys of the envelope besides ``arg`` and ``data``, e.g. ``action``.
        """
        known = self._by_topic.get(topic)
        if not known:
            return
        bodies: dict[bytes, bytes] = {}
        for subscription in tuple(known.values()):
            body = bodies.get(subscription.arg_json)
            if body is None:
                body = _push_body(subscription, rows, extra)
                bodies[subscription.arg_json] = body
            if body:
                self.send(subscription.receiver, Frame(body, topic.channel))

    def push_to(self, subscription: Subscription, channel: str, rows: list[Row], extra: Mapping[str, object] | None) -> None:
        """Send ``rows`` to one subscriber (the snapshot that follows a subscription), filtered or empty as they may be."""
        kept = [row for row in rows if not isinstance(row, dict) or subscription.wants(row)]
        self.send(subscription.receiver, Frame(_enclosed(subscription, kept, extra), channel))

    def send(self, receiver: Receiver, frame: Frame) -> None:
        """Hand one frame to the outlet: the only way out."""
        self.outlet(receiver, frame)


def _push_body(subscription: Subscription, rows: list[Row], extra: Mapping[str, object] | None) -> bytes:
    kept = [row for row in rows if not isinstance(row, dict) or subscription.wants(row)]
    return _enclosed(subscription, kept, extra) if kept else b""


def _enclosed(subscription: Subscription, rows: list[Row], extra: Mapping[str, object] | None) -> bytes:
    head = b"," + orjson.dumps(extra)[1:-1] if extra else b""
    return b'{"arg":' + subscription.arg_json + head + b',"data":' + orjson.dumps(rows) + b"}"

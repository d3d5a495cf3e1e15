"""A public websocket of OKX that stays connected: what is wanted is subscribed again after every reconnection.

Text ``ping`` after fifteen quiet seconds, given up after thirty; reconnection with growing pauses. Messages missed in
between are lost, so whoever follows prices is told of every loss. Source: OKX API v5, "WebSocket", "Connect".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import aiohttp
import orjson

PING_AFTER_S: Final = 15.0
GIVEN_UP_AFTER_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 20.0
_ARGS_A_MESSAGE: Final = 50
_LOG: Final = logging.getLogger(__name__)

Arg = Mapping[str, str]
Taker = Callable[[dict[str, Any]], None]


class PublicSocket:
    """One connection.

    Parameters
    ----------
    url : str
        Full address, with the path.
    take : callable
        Gets every message that carries data.
    lost : callable
        Is called when a connection that was up has gone.

    Attributes
    ----------
    is_up : bool
        Whether the connection stands.
    """

    def __init__(self, url: str, take: Taker, lost: Callable[[], None]) -> None:
        self._url = url
        self._take = take
        self._lost = lost
        self._wanted: dict[bytes, Arg] = {}
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self.is_up = False

    def want(self, *args: Arg) -> None:
        """Subscribe to ``args`` now and after every reconnection; those wanted already are left as they are."""
        fresh = {orjson.dumps(arg): arg for arg in args}
        fresh = {key: arg for key, arg in fresh.items() if key not in self._wanted}
        self._wanted |= fresh
        self._send("subscribe", list(fresh.values()))

    def drop(self, *args: Arg) -> None:
        """Want ``args`` no more."""
        known = [arg for arg in args if self._wanted.pop(orjson.dumps(arg), None) is not None]
        self._send("unsubscribe", known)

    def again(self, *args: Arg) -> None:
        """Subscribe to ``args`` anew, for a fresh snapshot."""
        self._send("unsubscribe", list(args))
        self._send("subscribe", list(args))

    async def run(self) -> None:
        """Stay connected until cancelled."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                async with aiohttp.ClientSession() as http, http.ws_connect(self._url, max_msg_size=0) as socket:
                    pause = _FIRST_PAUSE_S
                    await self._follow(socket)
            except (aiohttp.ClientError, TimeoutError, OSError) as e:
                _LOG.warning("%s: %s", self._url, str(e) or type(e).__name__)
            finally:
                self._socket = None
                if self.is_up:
                    self.is_up = False
                    self._lost()
            await asyncio.sleep(pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE_S)

    async def _follow(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self.is_up = socket, True
        self._send("subscribe", list(self._wanted.values()))
        quiet_s = 0.0
        while True:
            try:
                message = await socket.receive(timeout=PING_AFTER_S)
            except TimeoutError:
                quiet_s += PING_AFTER_S
                if quiet_s >= GIVEN_UP_AFTER_S:
                    raise
                await socket.send_str("ping")
                continue
            quiet_s = 0.0
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            self._read(message.data)

    def _read(self, text: str) -> None:
        if text == "pong":
            return
        with suppress(orjson.JSONDecodeError):
            parsed = orjson.loads(text)
            if isinstance(parsed, dict) and "data" in parsed and "arg" in parsed:
                self._hand_on(parsed)
            elif isinstance(parsed, dict) and parsed.get("event") == "error":
                _LOG.warning("%s: %s %s", self._url, parsed.get("code"), parsed.get("msg"))

    def _hand_on(self, message: dict[str, Any]) -> None:
        try:
            self._take(message)
        except (KeyError, IndexError, ValueError, TypeError) as e:
            # One row in a form nobody knows must not end the stream of all others.
            _LOG.warning("%s: a message of %s was not understood: %r", self._url, message["arg"], e)

    def _send(self, op: str, args: list[Arg]) -> None:
        socket = self._socket
        if socket is None or socket.closed:
            return
        for k in range(0, len(args), _ARGS_A_MESSAGE):
            text = orjson.dumps({"op": op, "args": args[k : k + _ARGS_A_MESSAGE]}).decode()
            task = asyncio.ensure_future(_quietly(socket, text))
            _SENDING.add(task)
            task.add_done_callback(_SENDING.discard)


_SENDING: Final[set[asyncio.Future[None]]] = set()
"""Keeps messages on their way from being collected as garbage."""


async def _quietly(socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
    # A socket that broke is connected again, and everything wanted is then asked for anew.
    with suppress(ConnectionError, RuntimeError, aiohttp.ClientError):
        await socket.send_str(text)

"""A raw socket client: what is sent and read is what is on the wire."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from crypto_qlib.exchange.embedded.signature import sign


class Socket:
    """A raw socket client: what is sent and read is what is on the wire."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = socket

    async def send(self, message: Any) -> None:
        await self.raw.send_str(message if isinstance(message, str) else orjson.dumps(message).decode())

    async def read(self) -> Any:
        text = await self.raw.receive_str(timeout=5)
        return text if text == "pong" else orjson.loads(text)

    async def ask(self, message: Any) -> Any:
        await self.send(message)
        return await self.read()

    async def subscribe(self, **arg: str) -> Any:
        return await self.ask({"op": "subscribe", "args": [arg]})


@asynccontextmanager
async def dialled(url: str, path: str) -> AsyncIterator[Socket]:
    """Connect to ``path`` (public, business, private) of the server at ``url``."""
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/ws/v5/{path}") as raw:
        yield Socket(raw)


def login_of(exchange: EmbeddedExchange, **changed: Any) -> dict[str, Any]:
    key, stamp = exchange.credentials, str(int(time.time()))
    stamp = str(changed.get("timestamp", stamp))
    proof = sign(key.secret, stamp, "GET", "/users/self/verify", b"")
    arg = {"apiKey": key.key, "passphrase": key.passphrase, "timestamp": stamp, "sign": proof}
    return {"op": "login", "args": [arg | changed]}

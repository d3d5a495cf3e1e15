"""Accept websockets, pump their frames, cut the silent ones off.

Limits: three new connections a second from one address, thirty on the private paths of one account, thirty seconds without
traffic in either direction. Source: OKX API v5, "WebSocket", "Connection count limit".
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Final

import orjson
from aiohttp import WSCloseCode, WSMsgType, web

from crypto_qlib.core.clock import NS_PER_S, Clock
from crypto_qlib.exchange.embedded.socket_channels import Path
from crypto_qlib.exchange.embedded.socket_session import SocketParts, SocketSession

IDLE_NS: Final = 30 * NS_PER_S
MOST_CONNECTS_A_SECOND: Final = 3
MOST_PRIVATE: Final = 30
_LOOK_EVERY_S: Final = 1.0
_PATHS: Final = {path.value: path for path in Path}


class SocketServer:
    """All open sockets of one server.

    Parameters
    ----------
    parts : SocketParts
        What sessions share.
    wall : Clock
        Real time.
    limited : bool
        Whether the connection limits are enforced.
    """

    def __init__(self, parts: SocketParts, wall: Clock, *, limited: bool) -> None:
        self._parts = parts
        self._wall = wall
        self._limited = limited
        self._numbers = itertools.count(1)
        self._connects: dict[str, deque[int]] = {}
        self.sessions: set[SocketSession] = set()
        self._look_out: asyncio.Task[None] | None = None

    def serves(self, path: str) -> bool:
        """Return whether ``path`` is one of the three socket paths."""
        return path in _PATHS

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one connection until either side ends it."""
        remote = request.remote or ""
        if self._limited and not self._may_connect(remote):
            return web.Response(status=429, body=orjson.dumps({"code": "50011", "msg": "Too Many Requests"}))
        socket = web.WebSocketResponse(compress=False, autoping=True)
        if not socket.can_prepare(request):
            return web.Response(status=400, body=orjson.dumps({"code": "60012", "msg": "a websocket is served here"}))
        await socket.prepare(request)
        session = SocketSession(self._parts, _PATHS[request.path], next(self._numbers), remote)
        self.sessions.add(session)
        if self._look_out is None or self._look_out.done():
            self._look_out = asyncio.create_task(self._cut_idle())
        writer = asyncio.create_task(_pump(socket, session))
        try:
            await self._read(socket, session)
        finally:
            session.close()
            self.sessions.discard(session)
            await writer
            await socket.close()
        return socket

    async def stop(self) -> None:
        """Close every connection."""
        if self._look_out is not None:
            self._look_out.cancel()
        for session in tuple(self.sessions):
            session.close()
        for _ in range(50):
            if not self.sessions:
                return
            await asyncio.sleep(0.01)

    def drop(self, chosen: Callable[[SocketSession], bool]) -> int:
        """End the connections that ``chosen`` accepts; return how many."""
        dropped = [session for session in self.sessions if chosen(session)]
        for session in dropped:
            session.close()
        return len(dropped)

    async def _read(self, socket: web.WebSocketResponse, session: SocketSession) -> None:
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                session.receive(message.data)
            elif message.type is WSMsgType.BINARY:
                session.receive(bytes(message.data).decode(errors="replace"))
            private = [s for s in self.sessions if s.account_id and s.account_id == session.account_id]
            if self._limited and len(private) > MOST_PRIVATE:
                session.close()
            if not session.is_open:
                return

    def _may_connect(self, remote: str) -> bool:
        now = self._wall.now_ns()
        seen = self._connects.setdefault(remote, deque())
        while seen and seen[0] <= now - NS_PER_S:
            seen.popleft()
        if len(seen) >= MOST_CONNECTS_A_SECOND:
            return False
        seen.append(now)
        return True

    async def _cut_idle(self) -> None:
        while self.sessions:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.drop(self._is_idle)

    def _is_idle(self, session: SocketSession) -> bool:
        return session.last_traffic_ns < self._wall.now_ns() - IDLE_NS


async def _pump(socket: web.WebSocketResponse, session: SocketSession) -> None:
    """Write frames until the session ends; a peer that is gone ends it."""
    try:
        while (frame := await session.outbox.get()) is not None:
            await socket.send_frame(frame.body, WSMsgType.TEXT)
        await socket.close(code=WSCloseCode.OK)
    except (ConnectionError, RuntimeError):
        session.close()

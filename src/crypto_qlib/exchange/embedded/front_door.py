"""Where requests come in: bind the address, and lead each request to the sockets, the owner's paths, OKX's relay or the API."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.admin_api import ADMIN_ROOT, AdminApi, AdminRequest
from crypto_qlib.exchange.embedded.console import PATH as CONSOLE
from crypto_qlib.exchange.embedded.embedded_options import EmbeddedOptions
from crypto_qlib.exchange.embedded.faults import ANSWERS, NO_ANSWER, Fault, Faults, Verdict
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.openapi import PATH as OPENAPI
from crypto_qlib.exchange.embedded.openapi import document
from crypto_qlib.exchange.embedded.relay import RestRelay
from crypto_qlib.exchange.embedded.router import API_ROOT, Answer, Router
from crypto_qlib.exchange.embedded.signature import SignedRequest
from crypto_qlib.exchange.embedded.socket_server import SocketServer


@dataclass(frozen=True, slots=True)
class Rooms:
    """What requests are led to.

    Parameters
    ----------
    router : Router
        The API.
    sockets : SocketServer
        The three socket paths.
    admin : AdminApi
        The owner's paths and the console.
    window : MarketWindow
        Names the instruments in the API's description.
    faults : Faults
        What goes wrong on purpose.
    tell : callable
        Push what a request set off.
    relay : RestRelay | None
        Answers public requests of a live market.
    """

    router: Router
    sockets: SocketServer
    admin: AdminApi
    window: MarketWindow
    faults: Faults
    tell: Callable[[], None]
    relay: RestRelay | None = None


class FrontDoor:
    """The HTTP server of one exchange.

    Parameters
    ----------
    options : EmbeddedOptions
        Address and TLS.
    rooms : Rooms
        What requests are led to.
    """

    def __init__(self, options: EmbeddedOptions, rooms: Rooms) -> None:
        self._options = options
        self._rooms = rooms
        self._runner: web.ServerRunner | None = None

    async def open(self) -> str:
        """Bind and serve; return the base URL.

        Raises
        ------
        UserError
            If the address cannot be bound.
        """
        runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        await runner.setup()
        options, tls = self._options, self._options.tls
        site = web.TCPSite(runner, options.host, options.port, ssl_context=tls.context() if tls else None)
        try:
            await site.start()
        except OSError as e:
            await runner.cleanup()
            where = f"{options.host}:{options.port}"
            raise UserError(f"cannot serve on {where}: {e.strerror or e}", "choose another exchange.port, or 0") from e
        self._runner = runner
        host, port = runner.addresses[0][:2]
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def close(self) -> None:
        """Release the address."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        rooms = self._rooms
        if rooms.sockets.serves(request.path):
            return await rooms.sockets.handle(request)
        body = await request.read() if request.can_read_body else b""
        remote = request.remote or ""
        if request.path.startswith(ADMIN_ROOT) or request.path == CONSOLE:
            answer = await rooms.admin.answer(AdminRequest(request.method, request.path, body, remote, request.headers))
        elif request.path == OPENAPI:
            listed = (item.inst_id for item in rooms.window.listed())
            answer = Answer(200, document(rooms.router.endpoints, listed))
        else:
            answer = await self._api(request, SignedRequest(request.method, request.raw_path, body, request.headers), remote)
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type, headers=answer.headers)

    async def _api(self, request: web.BaseRequest, signed: SignedRequest, remote: str) -> Answer:
        """Answer one API request, or as the faults in force have it."""
        verdict = self._rooms.faults.verdict(request.path.removeprefix(API_ROOT))
        if verdict.delay_s:
            await asyncio.sleep(verdict.delay_s)
        answer = await self._carried_out(verdict, signed, remote, request.path)
        if verdict.fault is Fault.DROP and request.transport is not None:
            request.transport.close()
        self._rooms.tell()
        return ANSWERS.get(verdict.fault, answer or NO_ANSWER) if verdict.fault else answer or NO_ANSWER

    async def _carried_out(self, verdict: Verdict, signed: SignedRequest, remote: str, path: str) -> Answer | None:
        if not verdict.is_carried_out:
            return None
        relay = self._rooms.relay
        if relay is not None and relay.serves(signed.method, path):
            return await relay.answer(signed.target)
        return self._rooms.router.answer(signed, remote)

"""``/admin/*`` and ``/console``: how the exchange is, and what its owner may do to it.

For loopback clients only, never for other sites' pages.

A browser sends ``Origin`` with every request that could change something, and the ``Host`` it believes to talk to: a page of
another site, or a foreign name that points at this machine, is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.exchange.embedded.console import PATH as CONSOLE
from crypto_qlib.exchange.embedded.console import page
from crypto_qlib.exchange.embedded.router import Answer

ADMIN_ROOT: Final = "/admin/"
Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """One request as it arrived."""

    method: str
    path: str
    body: bytes
    remote: str
    headers: Mapping[str, str]


class AdminRefusal(CryptoQlibError):
    """A request that was refused; nothing changed.

    Parameters
    ----------
    status : int
        HTTP status.
    facts : dict
        What the answer says besides the reason.
    """

    def __init__(self, status: int, message: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.facts = facts or {}


class AdminApi:
    """Answer admin requests; no networking.

    Parameters
    ----------
    handlers : mapping
        (method, path) -> coroutine function of the posted object.
    """

    def __init__(self, handlers: Mapping[tuple[str, str], Handler]) -> None:
        self._handlers = handlers

    async def answer(self, request: AdminRequest) -> Answer:
        """Return the answer to one request."""
        try:
            self._check_origin(request)
            if (request.method, request.path) == ("GET", CONSOLE):
                return _console()
            handler = self._handlers.get((request.method, request.path))
            if handler is None:
                raise AdminRefusal(404, f"{request.method} {request.path} is not served here")
            return Answer(200, orjson.dumps(await handler(_object(request.body))))
        except AdminRefusal as refusal:
            return Answer(refusal.status, orjson.dumps({"error": refusal.message, **refusal.facts}))
        except CryptoQlibError as e:
            return Answer(409, orjson.dumps({"error": str(e)}))

    @staticmethod
    def _check_origin(request: AdminRequest) -> None:
        if not is_loopback(request.remote):
            raise AdminRefusal(403, "admin is for loopback clients only")
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
        if host and not is_loopback(host):
            raise AdminRefusal(403, f"admin is not served under the name {host}")
        origin = request.headers.get("Origin", "")
        if origin and urlsplit(origin).netloc != request.headers.get("Host", ""):
            raise AdminRefusal(403, f"admin is not for pages of {origin}")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise AdminRefusal(403, "admin is not for pages of other sites")


def _console() -> Answer:
    text, policy = page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Answer(200, text, "text/html", headers)


def is_loopback(address: str) -> bool:
    """Return whether ``address`` names this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _object(body: bytes) -> dict[str, Any]:
    try:
        posted = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        posted = None
    if not isinstance(posted, dict):
        raise AdminRefusal(400, "send a JSON object")
    return posted

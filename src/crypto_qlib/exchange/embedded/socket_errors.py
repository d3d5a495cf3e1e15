"""Refusals of the websocket, with OKX's codes. Source: OKX API v5, "Error codes", WebSocket (60000-64008)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from crypto_qlib.core.errors import CryptoQlibError

SOCKET_MESSAGES: Final[dict[str, str]] = {
    "60001": '"OK_ACCESS_KEY" cannot be empty.',
    "60002": '"OK_ACCESS_SIGN" cannot be empty.',
    "60003": '"OK_ACCESS_PASSPHRASE" cannot be empty.',
    "60004": "Invalid OK_ACCESS_TIMESTAMP",
    "60005": "Invalid OK_ACCESS_KEY",
    "60006": "Timestamp request expired",
    "60007": "Invalid sign",
    "60011": "Please log in",
    "60012": "Illegal request: {0}",
    "60014": "Requests too frequent",
    "60018": "Wrong URL or {0} doesn't exist. Please use the correct URL, channel and parameters referring to API document.",
    "60024": "Wrong passphrase",
    "60028": "The current operation is not supported by this URL. Please use the correct WebSocket URL for the operation.",
    "60029": "Only users who are VIP5 and above can subscribe to books-l2-tbt channel.",
    "60030": "Only users who are VIP4 and above can subscribe to books50-l2-tbt channel.",
    "60031": "The WebSocket endpoint does not allow multiple or repeated logins.",
}


class SocketRefusal(CryptoQlibError):
    """A socket message refused with one of OKX's 60xxx codes.

    Parameters
    ----------
    code : str
        A key of :data:`SOCKET_MESSAGES`.
    *names : str
        Fill the placeholders of the message.
    echo : mapping, optional
        What of the request is repeated in the error event.
    """

    def __init__(self, code: str, *names: str, echo: Mapping[str, object] | None = None) -> None:
        super().__init__(SOCKET_MESSAGES[code].format(*names))
        self.code = code
        self.echo: dict[str, object] = dict(echo or {})

    def with_echo(self, echo: Mapping[str, object]) -> SocketRefusal:
        """Return the refusal with what of the request is repeated in it."""
        self.echo = dict(echo)
        return self

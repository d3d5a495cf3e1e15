"""Whose socket is this? The ``login`` operation.

``sign = base64(HMAC-SHA256(secret, timestamp + "GET" + "/users/self/verify"))`` with ``timestamp`` in Unix seconds, as text or
as a number, not older than 30 s. Source: OKX API v5, "WebSocket login".
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping
from typing import Any, Final

from crypto_qlib.core.clock import NS_PER_S, Clock
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.signature import TIME_WINDOW_NS, sign
from crypto_qlib.exchange.embedded.socket_errors import SocketRefusal

_REQUIRED: Final = (("apiKey", "60001"), ("sign", "60002"), ("passphrase", "60003"), ("timestamp", "60004"))


class SocketLogin:
    """Check logins against the known keys.

    Parameters
    ----------
    keys : mapping
        Public part -> key.
    clock, wall : ServerClock, Clock
        The market's time and real time: a login may be stamped with either.
    """

    def __init__(self, keys: Mapping[str, ApiCredentials], clock: ServerClock, wall: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self._wall = wall

    def account_of(self, arg: dict[str, Any]) -> str:
        """Return the account that signed ``arg``; refuse with 60001-60007 or 60024."""
        for name, code in _REQUIRED:
            if arg.get(name) in (None, ""):
                raise SocketRefusal(code)
        stamp = str(arg["timestamp"])
        try:
            seconds = float(stamp)
        except ValueError:
            raise SocketRefusal("60004") from None
        if not math.isfinite(seconds):
            raise SocketRefusal("60004")
        stamped_ns = int(seconds * NS_PER_S)
        if min(abs(stamped_ns - self._wall.now_ns()), abs(stamped_ns - self._clock.now_ns())) > TIME_WINDOW_NS:
            raise SocketRefusal("60006")
        owner = self._keys.get(str(arg["apiKey"]))
        if owner is None:
            raise SocketRefusal("60005")
        if not hmac.compare_digest(owner.passphrase.encode(), str(arg["passphrase"]).encode()):
            raise SocketRefusal("60024")
        if not hmac.compare_digest(
            sign(owner.secret, stamp, "GET", "/users/self/verify", b"").encode(), str(arg["sign"]).encode()
        ):
            raise SocketRefusal("60007")
        return owner.key

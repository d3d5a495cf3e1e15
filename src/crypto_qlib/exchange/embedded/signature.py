"""Is this request really from the key's owner? OKX's signature over the raw request target and body bytes.

``OK-ACCESS-SIGN = base64(HMAC-SHA256(secret, timestamp + METHOD + target + body))``. The raw bytes are used: one client
percent-encodes commas and writes compact JSON, another does neither. The order of the checks is ours; the codes are OKX's.
Source: OKX API v5, "REST Authentication".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.wire import WireRefusal

TIME_WINDOW_NS: Final = 30 * NS_PER_S
"""A request older or newer than this is refused (code 50102)."""

_HEADERS: Final = (
    ("OK-ACCESS-KEY", "50103"),
    ("OK-ACCESS-PASSPHRASE", "50104"),
    ("OK-ACCESS-SIGN", "50106"),
    ("OK-ACCESS-TIMESTAMP", "50107"),
)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What is signed: method, raw target with query, raw body, and the headers."""

    method: str
    target: str
    body: bytes
    headers: Mapping[str, str]


def sign(secret: str, timestamp: str, method: str, target: str, body: bytes) -> str:
    """Return the signature a client must send."""
    text = f"{timestamp}{method}{target}".encode() + body
    return base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha256).digest()).decode()


def check_signature(
    request: SignedRequest, keys: Mapping[str, ApiCredentials], wall_clock_ns: int, market_ns: int
) -> ApiCredentials:
    """Return the key that signed ``request``.

    Parameters
    ----------
    request : SignedRequest
        The request as it arrived.
    keys : mapping
        Known keys by their public part.
    wall_clock_ns, market_ns : int
        The two clocks a client may have: its own, or the (virtual) one ``public/time`` told it.

    Raises
    ------
    WireRefusal
        50103-50107 header missing, 50112 timestamp unreadable, 50102 too old or new, 50111 key unknown, 50105 wrong
        passphrase, 50113 wrong signature.
    """
    for name, code in _HEADERS:
        if not request.headers.get(name):
            raise WireRefusal(code)
    stamp = request.headers["OK-ACCESS-TIMESTAMP"]
    stamped_ns = _parse(stamp)
    if min(abs(stamped_ns - wall_clock_ns), abs(stamped_ns - market_ns)) > TIME_WINDOW_NS:
        raise WireRefusal("50102")
    owner = keys.get(request.headers["OK-ACCESS-KEY"])
    if owner is None:
        raise WireRefusal("50111")
    if not hmac.compare_digest(owner.passphrase.encode(), request.headers["OK-ACCESS-PASSPHRASE"].encode()):
        raise WireRefusal("50105")
    expected = sign(owner.secret, stamp, request.method, request.target, request.body)
    if not hmac.compare_digest(expected.encode(), request.headers["OK-ACCESS-SIGN"].encode()):
        raise WireRefusal("50113")
    return owner


def _parse(stamp: str) -> int:
    try:
        parsed = datetime.fromisoformat(stamp)
    except ValueError as e:
        raise WireRefusal("50112") from e
    if parsed.tzinfo is None:
        raise WireRefusal("50112")
    return round(parsed.timestamp() * 1000) * NS_PER_MS

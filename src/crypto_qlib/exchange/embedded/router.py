"""Which handler answers which path, and what must be true before it is asked.

1. look the endpoint up (404 otherwise); 2. on private paths check the signature over the raw bytes; 3. parse query and
body, dropping what counts as "not sent"; 4. check the rate limit; 5. call the handler, through
the journal's door where it may change something; 6. render refusals as OKX does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from crypto_qlib.core.clock import NS_PER_MS, Clock
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.key_terms import KeyTerms
from crypto_qlib.exchange.embedded.operations import Operations
from crypto_qlib.exchange.embedded.rate_limits import NEW_OR_AMENDED, Asked, RateLimiter
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.signature import SignedRequest, check_signature
from crypto_qlib.exchange.embedded.wire import Call, Reply, WireRefusal, envelope, order_envelope, sent

API_ROOT: Final = "/api/v5/"
_NAMED_PATHS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(/api/v3/coins/)([a-z0-9-]+)(/.+)",
        r"(/v8/finance/chart/)([^/]+)()",
        r"(/api/rest_v1/metrics/pageviews/per-article/en\.wikipedia/all-access/user/)(.+)()",
    )
)
"""Paths of other APIs that name what they are about in the middle."""
_NOT_FOUND: Final = 404
_WITHOUT_DATA: Final = (401, 429)


Handler = Callable[[Call], bytes | Reply]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path: its handler, and whether a key is needed."""

    handler: Handler
    is_private: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body to send."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] | None = None


class Router:
    """Turn raw requests into answers; no networking, no waiting.

    Parameters
    ----------
    endpoints : mapping
        (method, path without ``/api/v5/``) -> endpoint. Paths that start with ``/`` are taken as they are.
    keys : mapping
        Public part -> key.
    clock : ServerClock
        The market's time.
    wall_clock : Clock
        Real time.
    limiter : RateLimiter
        Counts requests.
    operations : Operations
        The door for everything that is posted with a key.
    is_demo : bool | None
        Whether signed requests must carry ``x-simulated-trading: 1`` (or must not); ``None`` takes both.
    key : KeyTerms
        What keys may do.
    """

    def __init__(
        self,
        endpoints: Mapping[tuple[str, str], Endpoint],
        keys: Mapping[str, ApiCredentials],
        clock: ServerClock,
        wall_clock: Clock,
        limiter: RateLimiter,
        operations: Operations,
        *,
        is_demo: bool | None = None,
        key: KeyTerms | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._keys = keys
        self._clock = clock
        self._wall = wall_clock
        self._limiter = limiter
        self._operations = operations
        self._is_demo = is_demo
        self._may_trade = key is None or key.may_trade

    def answer(self, request: SignedRequest, remote: str) -> Answer:
        """Return the answer to one request; malformed input is refused, never an exception."""
        path, _, query = request.target.partition("?")
        name = path.removeprefix(API_ROOT)
        endpoint = self.endpoints.get((request.method, name))
        if endpoint is None:
            # CoinGecko and others name the coin in the path; the id travels on as a field like any other.
            name, about = _without_name(name)
            endpoint = self.endpoints.get((request.method, name))
            query = f"{query}&id={about}"
        if endpoint is None:
            return Answer(
                _NOT_FOUND, orjson.dumps({"code": "404", "msg": f"{request.method} {path} is not served here", "data": []})
            )
        try:
            return Answer(200, self._call(endpoint, name, request, query, remote))
        except WireRefusal as refusal:
            return Answer(refusal.http_status, _refusal_body(refusal))

    def _call(self, endpoint: Endpoint, name: str, request: SignedRequest, query: str, remote: str) -> bytes:
        account_id = ""
        if endpoint.is_private:
            wall_ns = self._wall.now_ns() + self._clock.skew_ns
            account_id = check_signature(request, self._keys, wall_ns, self._clock.shown_ns()).key
            self._check_environment(request)
            if request.method == "POST" and not self._may_trade:
                raise WireRefusal("50120")
            if name in NEW_OR_AMENDED and request.method == "POST":
                self._check_deadline(request)
        fields = {key: value for key, value in parse_qsl(query) if value}
        body = _posted(request.body) if request.method == "POST" else []
        self._limiter.check(Asked(name, request.method, account_id, remote, fields, body), self._wall.now_ns())
        if endpoint.is_private and request.method == "POST" and name in self._operations:
            result = self._operations.perform(name, account_id, body)
        else:
            result = endpoint.handler(Call(fields, body, account_id))
        if isinstance(result, Reply):
            return order_envelope(result, self._clock.now_ns() // 1000)
        return result

    def _check_environment(self, request: SignedRequest) -> None:
        """Refuse a demo request of a live key, and the reverse; 50101."""
        is_demo = request.headers.get("x-simulated-trading", "0") == "1"
        if self._is_demo is not None and is_demo is not self._is_demo:
            raise WireRefusal("50101")

    def _check_deadline(self, request: SignedRequest) -> None:
        """Refuse an order whose own deadline (header ``expTime``, milliseconds) is no number or has passed."""
        text = request.headers.get("expTime", "")
        if not text:
            return
        if not (text.isascii() and text.isdigit()):
            raise WireRefusal("50036")
        # Clients stamp by their own clock, which is the wall's, or by ours, which may be far from it: the nearer one is meant.
        deadline_ns = int(text) * NS_PER_MS
        now_ns = min((self._wall.now_ns(), self._clock.now_ns()), key=lambda clock_ns: abs(clock_ns - deadline_ns))
        if deadline_ns < now_ns:
            raise WireRefusal("50037")


def _without_name(path: str) -> tuple[str, str]:
    """Return ``/api/v3/coins/*/rest`` and the coin of ``/api/v3/coins/<coin>/rest``; the path itself where it is another."""
    match = next((m for pattern in _NAMED_PATHS if (m := pattern.fullmatch(path))), None)
    return (f"{match[1]}*{match[3]}", match[2]) if match else (path, "")


def _posted(body: bytes) -> list[dict[str, Any]]:
    if not body:
        return []
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise WireRefusal("50002") from e
    return [sent(row) for row in parsed] if isinstance(parsed, list) else [sent(parsed)]


def _refusal_body(refusal: WireRefusal) -> bytes:
    if refusal.http_status in _WITHOUT_DATA:
        # OKX leaves the data key out of authentication failures and of refusals for too many requests.
        return orjson.dumps({"msg": refusal.message, "code": refusal.code})
    return envelope([], refusal.code, refusal.message)

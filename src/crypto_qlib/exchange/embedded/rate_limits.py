"""Is a client asking too often? OKX's request limits per two seconds, each counted the way OKX counts it.

- Order endpoints count by user and instrument; a batch counts its orders, but *a batch of one counts as a single order*.
- All new and amended orders of an account together are limited too, with a code of their own (50061).
- Everything else of an account counts by user; market data by address, some by address and instrument.

An endpoint without an entry is not limited. Source: OKX API v5, "Rate Limits" of each endpoint; "Sub-account rate limit".
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.exchange.embedded.wire import Row, WireRefusal

WINDOW_NS: Final = 2 * NS_PER_S


class Scope(Enum):
    """What shares one count."""

    IP = "address"
    IP_INSTRUMENT = "address and instrument"
    USER = "account"
    USER_INSTRUMENT = "account and instrument"

    @property
    def is_by_instrument(self) -> bool:
        """Return whether each instrument has a count of its own."""
        return self in (Scope.IP_INSTRUMENT, Scope.USER_INSTRUMENT)


@dataclass(frozen=True, slots=True)
class Limit:
    """How many requests (orders, for batches) are allowed in two seconds of real time."""

    most: int
    scope: Scope


LIMITS: Final[dict[str, Limit]] = {
    "public/time": Limit(10, Scope.IP),
    "rubik/stat/contracts/open-interest-history": Limit(10, Scope.IP_INSTRUMENT),
    "rubik/stat/taker-volume-contract": Limit(5, Scope.IP_INSTRUMENT),
    "rubik/stat/contracts/long-short-account-ratio-contract": Limit(5, Scope.IP_INSTRUMENT),
    "public/position-tiers": Limit(10, Scope.IP),
    "public/mark-price": Limit(10, Scope.IP_INSTRUMENT),
    "public/funding-rate-history": Limit(10, Scope.IP_INSTRUMENT),
    "public/instruments": Limit(20, Scope.IP),
    "public/funding-rate": Limit(20, Scope.IP_INSTRUMENT),
    "public/open-interest": Limit(20, Scope.IP_INSTRUMENT),
    "public/price-limit": Limit(20, Scope.IP_INSTRUMENT),
    "market/candles": Limit(40, Scope.IP),
    "market/history-candles": Limit(20, Scope.IP),
    "market/mark-price-candles": Limit(20, Scope.IP),
    "market/history-mark-price-candles": Limit(20, Scope.IP),
    "market/index-candles": Limit(20, Scope.IP),
    "market/history-index-candles": Limit(20, Scope.IP),
    "market/books": Limit(40, Scope.IP),
    "market/ticker": Limit(20, Scope.IP_INSTRUMENT),
    "market/tickers": Limit(20, Scope.IP),
    "market/trades": Limit(100, Scope.IP),
    "account/balance": Limit(10, Scope.USER),
    "account/positions": Limit(10, Scope.USER),
    "account/positions-history": Limit(10, Scope.USER),
    "account/bills": Limit(10, Scope.USER),
    "account/bills-archive": Limit(5, Scope.USER),
    "account/config": Limit(5, Scope.USER),
    "account/set-position-mode": Limit(5, Scope.USER),
    "account/trade-fee": Limit(5, Scope.USER),
    "account/set-leverage": Limit(20, Scope.USER),
    "account/leverage-info": Limit(20, Scope.USER),
    "trade/order": Limit(60, Scope.USER_INSTRUMENT),
    "trade/batch-orders": Limit(300, Scope.USER_INSTRUMENT),
    "trade/cancel-order": Limit(60, Scope.USER_INSTRUMENT),
    "trade/cancel-batch-orders": Limit(300, Scope.USER_INSTRUMENT),
    "trade/amend-order": Limit(60, Scope.USER_INSTRUMENT),
    "trade/amend-batch-orders": Limit(300, Scope.USER_INSTRUMENT),
    "trade/close-position": Limit(20, Scope.USER_INSTRUMENT),
    "trade/orders-pending": Limit(60, Scope.USER),
    "trade/orders-history": Limit(40, Scope.USER),
    "trade/orders-history-archive": Limit(20, Scope.USER),
    "trade/fills": Limit(60, Scope.USER),
    "trade/fills-history": Limit(10, Scope.USER),
    "trade/order-algo": Limit(20, Scope.USER_INSTRUMENT),
    "trade/cancel-algos": Limit(20, Scope.USER_INSTRUMENT),
    "trade/amend-algos": Limit(20, Scope.USER_INSTRUMENT),
    "trade/orders-algo-pending": Limit(20, Scope.USER),
    "trade/orders-algo-history": Limit(20, Scope.USER),
    "trade/cancel-all-after": Limit(2, Scope.USER),
}

_SINGLE_OF: Final = {
    "trade/batch-orders": "trade/order",
    "trade/cancel-batch-orders": "trade/cancel-order",
    "trade/amend-batch-orders": "trade/amend-order",
}
NEW_OR_AMENDED: Final = ("trade/order", "trade/batch-orders", "trade/amend-order", "trade/amend-batch-orders")
MOST_ORDERS: Final = 1000
"""New and amended orders of one account in two seconds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as far as limits are concerned.

    Parameters
    ----------
    endpoint : str
        E.g. ``trade/order``.
    method : str
        ``POST`` for what is sent over the socket.
    account_id, remote : str
        Who asks; the account is empty on public paths.
    query : mapping
        Query parameters.
    rows : sequence of dict
        What was posted.
    """

    endpoint: str
    method: str = "GET"
    account_id: str = ""
    remote: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Row] = ()


class RateLimiter:
    """Count requests in a sliding window of two real seconds.

    Parameters
    ----------
    is_on : bool
        Off: every request passes.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._seen: dict[tuple[str, ...], deque[int]] = {}

    def check(self, asked: Asked, wall_ns: int) -> None:
        """Count one request; refuse with 50011 where it would exceed a limit, with 50061 at the account's order limit."""
        limit = LIMITS.get(asked.endpoint)
        if not self._is_on or limit is None:
            return
        weights = _weights(asked, limit)
        endpoint = _SINGLE_OF.get(asked.endpoint, asked.endpoint) if len(asked.rows) == 1 else asked.endpoint
        most = LIMITS[endpoint].most
        keys = {(endpoint, asked.method, instrument, _who(asked, limit)): weight for instrument, weight in weights.items()}
        full = any(self._count(key, wall_ns) + weight > most for key, weight in keys.items())
        if full:
            raise WireRefusal("50011")
        if asked.method == "POST" and asked.endpoint in NEW_OR_AMENDED:
            orders = ("orders", asked.account_id)
            if self._count(orders, wall_ns) + len(asked.rows) > MOST_ORDERS:
                raise WireRefusal("50061")
            self._seen[orders].extend([wall_ns] * len(asked.rows))
        for key, weight in keys.items():
            self._seen[key].extend([wall_ns] * weight)

    def _count(self, key: tuple[str, ...], wall_ns: int) -> int:
        seen = self._seen.setdefault(key, deque())
        while seen and seen[0] <= wall_ns - WINDOW_NS:
            seen.popleft()
        return len(seen)


def _weights(asked: Asked, limit: Limit) -> Mapping[str, int]:
    """Return instrument -> how many requests this one counts as; one nameless instrument where limits are not by it."""
    if not limit.scope.is_by_instrument:
        return {"": 1}
    if asked.rows:
        return Counter(str(row.get("instId", "")) for row in asked.rows)
    return {asked.query.get("instId", ""): 1}


def _who(asked: Asked, limit: Limit) -> str:
    return asked.account_id if limit.scope in (Scope.USER, Scope.USER_INSTRUMENT) else asked.remote

"""Is a client asking too often? OKX's request limits per two seconds, by endpoint (and instrument, where OKX counts so).

Source: OKX API v5, "Rate Limits" of each endpoint; an endpoint without an entry is not limited.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.exchange.embedded.wire import WireRefusal

WINDOW_NS: Final = 2 * NS_PER_S

LIMITS: Final[dict[str, int]] = {
    "public/time": 10,
    "rubik/stat/contracts/open-interest-history": 10,
    "rubik/stat/taker-volume-contract": 5,
    "public/position-tiers": 10,
    "public/mark-price": 10,
    "public/funding-rate-history": 10,
    "public/instruments": 20,
    "public/funding-rate": 20,
    "public/open-interest": 20,
    "public/price-limit": 20,
    "market/candles": 40,
    "market/history-candles": 20,
    "market/mark-price-candles": 20,
    "market/history-mark-price-candles": 20,
    "market/index-candles": 20,
    "market/history-index-candles": 20,
    "market/books": 40,
    "market/ticker": 20,
    "market/tickers": 20,
    "market/trades": 100,
    "account/balance": 10,
    "account/positions": 10,
    "account/positions-history": 10,
    "account/bills": 10,
    "account/bills-archive": 5,
    "account/config": 5,
    "account/set-position-mode": 5,
    "account/trade-fee": 5,
    "account/set-leverage": 20,
    "account/leverage-info": 20,
    "trade/order": 60,
    "trade/batch-orders": 300,
    "trade/cancel-order": 60,
    "trade/cancel-batch-orders": 300,
    "trade/amend-order": 60,
    "trade/amend-batch-orders": 300,
    "trade/close-position": 20,
    "trade/orders-pending": 60,
    "trade/orders-history": 40,
    "trade/orders-history-archive": 20,
    "trade/fills": 60,
    "trade/fills-history": 10,
    "trade/order-algo": 20,
    "trade/cancel-algos": 20,
    "trade/amend-algos": 20,
    "trade/orders-algo-pending": 20,
    "trade/orders-algo-history": 20,
}
"""Requests (orders, for the batch endpoints) allowed per two seconds of real time."""


class RateLimiter:
    """Count requests in a sliding window of two real seconds.

    Parameters
    ----------
    is_on : bool
        Off: every request passes.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._seen: dict[tuple[str, str], deque[int]] = {}

    def check(self, endpoint: str, who: str, wall_ns: int, weight: int = 1) -> None:
        """Count one request of ``weight``; refuse with 50011 where it would exceed the limit."""
        limit = LIMITS.get(endpoint)
        if not self._is_on or limit is None:
            return
        seen = self._seen.setdefault((endpoint, who), deque())
        while seen and seen[0] <= wall_ns - WINDOW_NS:
            seen.popleft()
        if len(seen) + weight > limit:
            raise WireRefusal("50011")
        seen.extend([wall_ns] * weight)

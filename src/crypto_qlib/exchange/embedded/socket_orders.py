"""Order operations over the private socket: the REST handlers behind another envelope.

Rows may name the instrument by its numeric ``instIdCode`` instead of ``instId``. Limits are shared with REST.
Source: OKX API v5, "WebSocket: place order" and its siblings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from crypto_qlib.core.clock import Clock
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.operations import Operations
from crypto_qlib.exchange.embedded.rate_limits import Asked, RateLimiter
from crypto_qlib.exchange.embedded.wire import Reply, Row, WireRefusal, sent

_NS_PER_US: Final = 1000
_PATHS: Final = {
    "order": "trade/order",
    "batch-orders": "trade/batch-orders",
    "cancel-order": "trade/cancel-order",
    "batch-cancel-orders": "trade/cancel-batch-orders",
    "amend-order": "trade/amend-order",
    "batch-amend-orders": "trade/amend-batch-orders",
}


class SocketOrders:
    """Carry order operations out.

    Parameters
    ----------
    operations : Operations
        The door REST uses as well.
    window : MarketWindow
        Knows the instruments' numeric codes.
    limiter : RateLimiter
        Counts requests, REST and socket together.
    wall : Clock
        Real time.
    tell : callable
        Push what the operation set off.
    """

    def __init__(
        self, operations: Operations, window: MarketWindow, limiter: RateLimiter, wall: Clock, tell: Callable[[], None]
    ) -> None:
        self._operations = operations
        self._window = window
        self._limiter = limiter
        self._wall = wall
        self.tell = tell

    def knows(self, op: str) -> bool:
        """Return whether ``op`` is an order operation."""
        return op in _PATHS

    def carry_out(self, op: str, args: list[dict[str, Any]], account_id: str) -> Row:
        """Return ``code``, ``msg`` and ``data`` of the answer."""
        now_us = str(self._window.clock.now_ns() // _NS_PER_US)
        times = {"inTime": now_us, "outTime": now_us}
        try:
            body = [self._named(sent(arg)) for arg in args]
            self._limiter.check(Asked(_PATHS[op], "POST", account_id, rows=body), self._wall.now_ns())
            reply = self._operations.perform(_PATHS[op], account_id, body)
        except WireRefusal as refusal:
            return {"code": refusal.code, "msg": refusal.message, "data": []} | times
        assert isinstance(reply, Reply)
        # Unlike REST, a failed operation leaves ``msg`` empty here: clients read the rows' own codes.
        return {"code": reply.code, "msg": "", "data": reply.rows} | times

    def _named(self, row: Row) -> Row:
        if "instId" in row or "instIdCode" not in row:
            return row
        return row | {"instId": self._window.inst_id_of(str(row["instIdCode"]))}

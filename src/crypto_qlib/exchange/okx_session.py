"""One ccxt client of OKX, and the rules of talking to it: errors translated, reads retried, orders never.

Order traffic, account polling and market data each get a client of their own: ccxt keeps one request queue per client, and
a slow call in it would hold up an order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import zlib
from dataclasses import dataclass
from typing import Any, Final

import ccxt.async_support as ccxt_async

from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.error_map import Request, okx_errors
from crypto_qlib.exchange.okx_parsing import Row
from crypto_qlib.exchange.request_budget import RequestBudget

_JITTER: Final = 0.5
"""Pauses differ by up to half between questions, so that those refused together do not come back together."""
READ_TRIES: Final = 4
"""How often a read is tried in all; pauses double from the error's own ``retry_after_s``."""
_WITH_DEADLINE: Final = frozenset({"privatePostTradeOrder", "privatePostTradeAmendOrder"})
"""Requests OKX refuses once their ``expTime`` has passed (50037). Source: OKX API v5, place order, amend order."""
_ORDERS_PER_SECOND: Final = 25.0
"""Own limit per instrument. OKX counts 60 single orders per 2 s, which ccxt's queue would overrun.

Source: OKX API v5, rate limits of ``POST /trade/order``.
"""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where and as whom to talk.

    Parameters
    ----------
    base_url : str
        Address of an embedded exchange; empty = OKX itself.
    credentials : ApiCredentials | None
        Key; ``None`` allows public data only.
    is_demo : bool
        OKX demo trading (header ``x-simulated-trading: 1``).
    timeout_s : float
        Time limit of one request.
    """

    base_url: str = ""
    credentials: ApiCredentials | None = None
    is_demo: bool = False
    timeout_s: float = 20.0


# At DEBUG ccxt writes every request with its headers: key, signature and passphrase.
logging.getLogger("ccxt").setLevel(logging.INFO)


def make_client(connection: Connection) -> Any:
    """Return an unmodified ccxt client set up for USDT swaps; no request is sent yet."""
    config: dict[str, Any] = {
        "timeout": int(connection.timeout_s * 1000),
        # Waiting for one's turn is done per endpoint and together with other processes, see RequestBudget; ccxt's own queue
        # knows one endpoint's limit only by the price of all others.
        "enableRateLimit": False,
        "options": {"defaultType": "swap", "fetchMarkets": {"types": ["swap"]}},
    }
    if connection.credentials is not None:
        key = connection.credentials
        config |= {"apiKey": key.key, "secret": key.secret, "password": key.passphrase}
    return configure_urls(ccxt_async.okx(config), connection)


def configure_urls(client: Any, connection: Connection) -> Any:
    """Point a ccxt client (REST or websocket) to where ``connection`` says, and return it."""
    if connection.base_url:
        # Both maps: ccxt's sandbox switch would otherwise lead back to the real host.
        sockets = f"ws{connection.base_url.removeprefix('http')}/ws/v5"
        client.urls["api"] = {"rest": connection.base_url, "ws": sockets}
        client.urls["test"] = {"rest": connection.base_url, "ws": sockets}
    if connection.is_demo:
        client.headers = {"x-simulated-trading": "1"}
    return client


class OkxSession:
    """Send requests through ccxt's implicit endpoints.

    Parameters
    ----------
    connection : Connection
        Where and as whom.
    budget : RequestBudget, optional
        Shared request budget; by default this machine's for OKX itself, none in front of an embedded exchange, which has no
        limits unless asked for: waiting would only cost time.
    """

    def __init__(self, connection: Connection, budget: RequestBudget | None = None) -> None:
        self._connection = connection
        self._budget = budget
        self._clients: dict[str, Any] = {}
        self._next_order_at: dict[str, float] = {}
        self._clock_is_checked = bool(connection.base_url)

    async def public(self, what: str, endpoint: str, query: Row) -> list[Any]:
        """Read public data; ``endpoint`` is ccxt's method name, e.g. ``publicGetPublicTime``."""
        return await self._read(what, "market", endpoint, query)

    async def private(self, what: str, endpoint: str, query: Row) -> list[Any]:
        """Read account data."""
        await self._require_key(what)
        return await self._read(what, "account", endpoint, query)

    async def change(self, what: str, endpoint: str, body: Row | list[Row]) -> list[Any]:
        """Change a setting of the account: tried once, repeating it is harmless but never done here."""
        await self._require_key(what)
        about = body if isinstance(body, dict) else body[0]
        await self._wait_budget(endpoint, str(about.get("instId", "")))
        with okx_errors(Request(what)):
            return _rows(await getattr(self._client("account"), endpoint)(body))

    async def send(self, request: Request, endpoint: str, body: Row) -> list[Any]:
        """Send an order or a cancel: once, never again.

        An order that was on its way for longer than its answer is waited for is refused on arrival: whoever looked for it after
        the time limit and did not find it will not meet it later.
        """
        await self._require_key(request.what)
        await self._wait_turn(str(body["instId"]))
        client = self._client("orders")
        deadline_ms = client.nonce() + round(1e3 * self._connection.timeout_s)  # by the clock requests are stamped with
        deadline = {"expTime": str(deadline_ms)} if endpoint in _WITH_DEADLINE else {}
        others = {name: value for name, value in (client.headers or {}).items() if name != "expTime"}
        client.headers = others | deadline  # ccxt reads them before it waits for anything
        with okx_errors(request):
            return _rows(await getattr(client, endpoint)(body))

    async def close(self) -> None:
        """Release all connections."""
        clients, self._clients = list(self._clients.values()), {}
        if self._budget is not None:
            self._budget.close()
            self._budget = None
        await asyncio.gather(*(client.close() for client in clients))

    def _client(self, purpose: str) -> Any:
        # Made on first use: building a ccxt client takes a few hundred milliseconds.
        if purpose not in self._clients:
            self._clients[purpose] = make_client(self._connection)
        return self._clients[purpose]

    async def _read(self, what: str, purpose: str, endpoint: str, query: Row) -> list[Any]:
        call, inst_id = getattr(self._client(purpose), endpoint), str(query.get("instId", ""))
        for attempt in range(READ_TRIES - 1):
            await self._wait_budget(endpoint, inst_id)
            try:
                with okx_errors(Request(what)):
                    return _rows(await call(query))
            except RetryLater as e:
                pause = e.retry_after_s * 2.0**attempt * (1.0 + _JITTER * _spread(what, attempt))
                if self._budget is not None:
                    self._budget.refused(endpoint, inst_id, pause)
                await asyncio.sleep(pause)
        await self._wait_budget(endpoint, inst_id)
        with okx_errors(Request(what)):
            return _rows(await call(query))

    async def _wait_budget(self, endpoint: str, inst_id: str) -> None:
        if self._budget is None and not self._connection.base_url:
            self._budget = RequestBudget()
        if self._budget is not None:
            await self._budget.wait(endpoint, inst_id)

    async def _require_key(self, what: str) -> None:
        if self._connection.credentials is None:
            raise UserError(f"cannot {what} without an API key", "set OKX_API_KEY, OKX_API_SECRET and OKX_API_PASSPHRASE")
        if not self._clock_is_checked:
            # Signed requests are stamped; OKX refuses stamps 30 s off (50102), so the offset is measured once.
            for purpose in ("account", "orders"):
                with okx_errors(Request("read the exchange's clock")):
                    await self._client(purpose).load_time_difference()
            self._clock_is_checked = True

    async def _wait_turn(self, inst_id: str) -> None:
        if self._connection.base_url:
            return
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next_order_at.get(inst_id, 0.0))
        self._next_order_at[inst_id] = turn + 1.0 / _ORDERS_PER_SECOND
        if turn > now:
            await asyncio.sleep(turn - now)


def _spread(what: str, attempt: int) -> float:
    """Return a number in [0, 1) that differs between questions, tries and processes."""
    return zlib.crc32(f"{os.getpid()}/{what}/{attempt}".encode()) / 2**32


def _rows(answer: Any) -> list[Any]:
    data = answer.get("data") if isinstance(answer, dict) else None
    return data if isinstance(data, list) else []

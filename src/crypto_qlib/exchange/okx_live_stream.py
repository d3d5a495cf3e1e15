"""OKX's websockets for a live session: bars, orders, positions, balance and stops, as they are pushed.

Two connections, as OKX divides its channels; each is dialled again when it drops, and subscribes anew:

============  ==================================================
``business``  ``candle*``, ``mark-price-candle*``, ``orders-algo``
``private``   ``orders``, ``positions``, ``account``
============  ==================================================

Tickers and marks are not asked for: a session reads the book of the moment before an entry, and every change of a position's
figures comes with ``positions``.

The client is ccxt.pro, but rows are handed on as they came: its own parsing drops ``confirm``, which tells a closed bar from a
running one. What was missed while a connection was down is not sent again: a :class:`Dropped` says so, and whoever needs it
asks by REST. Source: OKX API v5, "WebSocket"; ccxt 4.5 ``pro/okx.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ccxt.pro as ccxt_pro
from ccxt import BaseError

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.exchange import okx_parsing as parse
from crypto_qlib.exchange.gateway import OrderReport, PriceKind
from crypto_qlib.exchange.okx_market import BAR_NAMES
from crypto_qlib.exchange.okx_parsing import Row
from crypto_qlib.exchange.okx_session import Connection, configure_urls
from crypto_qlib.exchange.okx_stream import Dropped

_PUSHED: Final = "pushed"
_ARGS_A_REQUEST: Final = 100
"""Topics of one subscription; OKX bounds its length (64 KB), not their number."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_ACCOUNT_CHANNELS: Final = frozenset({"positions", "account", "orders-algo"})


@dataclass(frozen=True, slots=True)
class CandleTick:
    """One bar as pushed; ``is_final`` only once it is closed (``confirm`` 1)."""

    symbol: str
    kind: PriceKind
    ts_open: int
    row: tuple[str, ...]
    is_final: bool


@dataclass(frozen=True, slots=True)
class OrderTick:
    """An order of the account changed."""

    report: OrderReport


@dataclass(frozen=True, slots=True)
class AccountTick:
    """Positions, balance or stops changed: worth a look by REST."""

    channel: str


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection stands and its subscriptions are sent."""

    what: str


LiveTick = CandleTick | OrderTick | AccountTick | Connected | Dropped
Hear = Callable[[Row, list[Any]], None]


class _RawClient(ccxt_pro.okx):  # type: ignore[misc]
    """ccxt's client, whose pushed rows go to ``hear`` unparsed; logins, pings and errors stay its own business."""

    def __init__(self, config: dict[str, Any], hear: Hear) -> None:
        super().__init__(config)
        self._hear = hear

    def handle_message(self, client: Any, message: Any) -> None:
        """Hand rows on and wake whoever waits for the connection's next message."""
        if isinstance(message, dict) and "data" in message and isinstance(message.get("arg"), dict):
            self._hear(message["arg"], message["data"])
            client.resolve(None, _PUSHED)
            return
        super().handle_message(client, message)


class OkxLiveStream:
    """Watch everything one session needs.

    Parameters
    ----------
    connection : Connection
        Where and as whom; without a key the account is not watched.
    instruments : sequence of Instrument
        Swaps to watch.
    frame : str
        Bar length, e.g. ``1h``.
    silent_s : float | None
        Seconds without a message after which a market connection is dialled anew; ``None`` where silence is normal, as of an
        embedded market that is stepped.
    """

    def __init__(
        self, connection: Connection, instruments: Sequence[Instrument], frame: str, silent_s: float | None = 60.0
    ) -> None:
        config: dict[str, Any] = {"options": {"defaultType": "swap"}}
        self._has_key = connection.credentials is not None
        if connection.credentials is not None:
            key = connection.credentials
            config |= {"apiKey": key.key, "secret": key.secret, "password": key.passphrase}
        self._client: Any = configure_urls(_RawClient(config, self._hear), connection)
        self._by_id: dict[str, Instrument] = {}
        self._bar = BAR_NAMES[frame]
        self._silent_s = silent_s
        self._queue: asyncio.Queue[LiveTick] = asyncio.Queue()
        self._business: list[list[Row]] = [[{"channel": "orders-algo", "instType": "SWAP"}]] if self._has_key else []
        self.watch(instruments)

    def watch(self, instruments: Sequence[Instrument]) -> None:
        """Watch the bars of these swaps too, from now on; a connection that stands subscribes at once."""
        new = [i for i in instruments if i.inst_id not in self._by_id]
        self._by_id |= {i.inst_id: i for i in new}
        topics = [_topic(f"{kind}{self._bar}", i.inst_id) for i in new for kind in ("candle", "mark-price-candle")]
        self._business += [topics[k : k + _ARGS_A_REQUEST] for k in range(0, len(topics), _ARGS_A_REQUEST)]
        standing = self._client.clients.get(self._client.get_url("", "business"))
        if standing is not None:
            standing.resolve(None, _PUSHED)  # wakes the wait for the next message, which asks for what was not asked for yet

    async def close(self) -> None:
        """Release the connections."""
        with suppress(BaseError):
            await self._client.close()

    async def ticks(self) -> AsyncIterator[LiveTick]:
        """Yield what is pushed, until the caller stops."""
        account = [{"channel": channel, "instType": "SWAP"} for channel in ("orders", "positions")] + [{"channel": "account"}]
        jobs = [asyncio.create_task(self._follow("business", self._business, is_market=True))]
        if self._has_key:
            jobs.append(asyncio.create_task(self._follow("private", [account], is_market=False)))
        try:
            while True:
                yield await self._queue.get()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _follow(self, path: str, requests: list[list[Row]], *, is_market: bool) -> None:
        """Keep one connection alive: dial, log in, subscribe to what ``requests`` has by then, and again after a drop."""
        url, pause, is_up = self._client.get_url("", path), _FIRST_PAUSE_S, False
        while True:
            try:
                if self._has_key and not is_up:
                    await self._client.authenticate({"access": path})
                await asyncio.wait_for(self._subscribed(url, requests), self._silent_s if is_market else None)
            except (BaseError, TimeoutError) as e:
                is_up = False
                await self._queue.put(Dropped(path, type(e).__name__))
                await self._hang_up(url)
                await asyncio.sleep(pause)
                pause = min(2.0 * pause, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            if not is_up:
                is_up = True
                await self._queue.put(Connected(path))

    async def _subscribed(self, url: str, requests: list[list[Row]]) -> None:
        """Wait for the connection's next message; each request is sent once a connection."""
        waiting = None
        for number, topics in enumerate(requests):
            waiting = self._client.watch(url, _PUSHED, {"op": "subscribe", "args": topics}, f"{_PUSHED}:{number}")
        if waiting is not None:
            await waiting

    async def _hang_up(self, url: str) -> None:
        client = self._client.clients.pop(url, None)
        if client is not None:
            with suppress(BaseError):
                await client.close()

    def _hear(self, arg: Row, rows: list[Any]) -> None:
        channel = str(arg.get("channel", ""))
        for tick in self._ticks(channel, str(arg.get("instId", "")), rows):
            self._queue.put_nowait(tick)

    def _ticks(self, channel: str, name: str, rows: list[Any]) -> list[LiveTick]:
        if channel in _ACCOUNT_CHANNELS:
            return [AccountTick(channel)]
        if channel == "orders":
            known = ((row, self._by_id.get(str(row["instId"]))) for row in rows)
            return [OrderTick(parse.order_report(row, item)) for row, item in known if item is not None]
        item = self._by_id.get(name)
        if item is None:
            return []
        if "candle" in channel:
            kind = PriceKind.MARK if channel.startswith("mark-price") else PriceKind.LAST
            return [CandleTick(item.symbol, kind, int(r[0]) * NS_PER_MS, tuple(r), is_final=r[-1] == "1") for r in rows]
        return []


def _topic(channel: str, name: str) -> Row:
    return {"channel": channel, "instId": name}

"""Keep the embedded exchange in step with OKX's live market: follow its sockets, observe it, catch up after a loss.

- Everything served is followed all the time, so that an order always meets prices of this moment.
- The venue sees the market by *observations* (``live_bars``): one before each order, and one a second while an account has
  something at stake. What happened in between reaches it as the span of prices.
- Where a symbol's last message is older than ``stale_s``, or the connection was just lost, orders that need a price are refused
  with 50001; cancels go through.
- After a loss of the connection or a stop of the server, the candles of the time that was missed give the span of prices of the
  first observation, and its settlements are booked: a stop that was passed meanwhile fires, funding is not forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, NS_PER_MS, iso
from crypto_qlib.core.errors import CryptoQlibError, RetryLater
from crypto_qlib.exchange.embedded.account_feed import AccountFeed
from crypto_qlib.exchange.embedded.live_bars import LEAST_NS, OBSERVE, observation
from crypto_qlib.exchange.embedded.live_market import LiveClock, LiveSource
from crypto_qlib.exchange.embedded.live_symbol import CHANNELS, LiveSymbol
from crypto_qlib.exchange.embedded.market_switches import SWITCH, MarketSwitches
from crypto_qlib.exchange.embedded.operations import Operations
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.public_facts import OKX_SOCKETS, PublicRest
from crypto_qlib.exchange.embedded.public_socket import PublicSocket
from crypto_qlib.exchange.embedded.push_hub import PushHub
from crypto_qlib.exchange.embedded.relay import LiveFeed, RestRelay
from crypto_qlib.exchange.embedded.wire import Row, WireRefusal

NEED_A_PRICE: Final = frozenset(
    (
        "trade/order", "trade/batch-orders", "trade/amend-order", "trade/amend-batch-orders", "trade/close-position",
        "trade/order-algo", "trade/amend-algos", "account/set-leverage", "account/position/margin-balance",
    )
)  # fmt: skip
"""Operations that are checked or filled at the market's prices."""
_EVERY_S: Final = 1.0
_FIRST_PRICES_S: Final = 20.0
_MOST_BARS: Final = 90
_SPANS: Final = (
    ("1m", NS_PER_MINUTE), ("15m", 15 * NS_PER_MINUTE), ("1H", NS_PER_HOUR), ("4H", 4 * NS_PER_HOUR), ("1Dutc", NS_PER_DAY),
)  # fmt: skip
_LOG: Final = logging.getLogger(__name__)


class LiveSession:
    """Follow the market behind one exchange.

    Parameters
    ----------
    source : LiveSource
        The market.
    clock : LiveClock
        Its time.
    hub : PushHub
        Who listens to the exchange's own sockets.
    switches : MarketSwitches
        Which symbols are suspended.
    timeout_s : float
        Time limit of one question to OKX.
    """

    def __init__(
        self, source: LiveSource, clock: LiveClock, hub: PushHub, switches: MarketSwitches, timeout_s: float = 10.0
    ) -> None:
        sockets = f"ws{source.url.removeprefix('http')}/ws/v5" if source.url else OKX_SOCKETS
        self._source = source
        self._clock = clock
        self._switches = switches
        self._rest = PublicRest(source.url, timeout_s)
        self._public = PublicSocket(f"{sockets}/public", self._take, self._lost)
        self._business = PublicSocket(f"{sockets}/business", self._relay_only, lambda: None)
        self.feed = LiveFeed(source, hub, self._public, self._business)
        self.relay = RestRelay(source, self._rest)
        self._tasks: list[asyncio.Task[None]] = []
        self._open = AsyncExitStack()
        self._missed_since_ns: int | None = None
        self._operations: Operations | None = None
        self._venue: Callable[[], PaperVenue] | None = None
        self._account_feed: AccountFeed | None = None

    def attach(self, operations: Operations, venue: Callable[[], PaperVenue], account_feed: AccountFeed) -> None:
        """Name the exchange that is to be kept in step; from now on its operations are preceded by observations."""
        self._operations, self._venue, self._account_feed = operations, venue, account_feed
        operations.before = self.before

    async def start(self) -> None:
        """Connect, wait for the first prices, and catch up with what was missed since the last observation.

        Raises
        ------
        CryptoQlibError
            If OKX's public data cannot be reached, or its sockets stay silent.
        """
        await self._open.enter_async_context(self._rest)
        await self._rest.rows("public/time")
        self._public.want(*self._args())
        self._tasks = [asyncio.create_task(socket.run()) for socket in (self._public, self._business)]
        for _ in range(int(_FIRST_PRICES_S / 0.05)):
            if all(live.is_known for live in self._source.symbols.values()):
                break
            await asyncio.sleep(0.05)
        if not any(live.is_known for live in self._source.symbols.values()):
            raise CryptoQlibError(
                f"OKX's public sockets say nothing: no price came within {_FIRST_PRICES_S:g} s",
                "check the network (websockets may be blocked) and exchange.okx_url",
            )
        self._missed_since_ns = self._clock.market_ns
        await self._catch_up()
        self._observe([live.item.symbol for live in self._source.symbols.values() if live.is_known])
        self._tasks.append(asyncio.create_task(self._keep_up()))

    async def stop(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._open.aclose()

    def before(self, name: str, rows: list[Row]) -> None:
        """Show the venue the market as it is, before ``name`` is carried out; refuse with 50001 where that is not known."""
        named = (self._source.by_inst_id.get(str(row.get("instId", ""))) for row in rows)
        symbols = [live for live in named if live is not None]
        if name not in NEED_A_PRICE:
            return
        if not all(self.is_fresh(live) for live in symbols):
            raise WireRefusal("50001")
        self._observe([live.item.symbol for live in symbols], with_books=True)

    def is_fresh(self, live: LiveSymbol) -> bool:
        """Return whether a symbol's prices are those of now."""
        return self._is_followed and live.is_known and time.monotonic() - live.seen_s <= self._source.stale_s

    @property
    def _is_followed(self) -> bool:
        return self._public.is_up and self._missed_since_ns is None

    def status(self) -> dict[str, Any]:
        """Return how well the market is followed."""
        fresh = sum(self.is_fresh(live) for live in self._source.symbols.values())
        return {
            "from": self._rest.url, "connected": self._public.is_up, "fresh": fresh, "symbols": len(self._source.symbols),
            "observed": iso(self._clock.market_ns),
        }  # fmt: skip

    def _observe(self, symbols: Iterable[str], *, with_books: bool = False) -> None:
        assert self._operations is not None
        assert self._venue is not None
        now_ns = max(self._clock.now_ns(), self._clock.market_ns + LEAST_NS)
        wanted = sorted({*symbols, *self._venue().symbols_at_stake()} & set(self._source.symbols))
        trading = [self._source.symbols[s] for s in wanted if s not in self._switches.suspended]
        lives = [live for live in trading if live.is_known]
        # Before an order a settlement that is due is booked at once: closing must not escape it.
        rates = {live.item.symbol: live.settle(now_ns, waits=not with_books) for live in lives}
        funding = {symbol: rate for symbol, rate in rates.items() if not math.isnan(rate)}
        self._operations.perform(OBSERVE, "", [observation(now_ns, lives, funding, with_books=with_books)])

    async def _keep_up(self) -> None:
        assert self._venue is not None
        assert self._account_feed is not None
        while True:
            await asyncio.sleep(_EVERY_S)
            self.feed.moved()
            try:
                if self._missed_since_ns is not None and self._public.is_up:
                    await self._catch_up()
                self._let_settlements_pass()
                if self._is_followed and self._venue().symbols_at_stake():
                    self._observe([])
                    self._account_feed.moved()
            except (RetryLater, WireRefusal) as e:
                _LOG.warning("the live market was not followed for a moment: %s", e)

    def _let_settlements_pass(self) -> None:
        """Forget the settlements of symbols nobody holds."""
        assert self._venue is not None
        stake, now_ns = self._venue().symbols_at_stake(), self._clock.now_ns()
        for symbol, live in self._source.symbols.items():
            if symbol not in stake:
                live.settle(now_ns, waits=False)

    async def _catch_up(self) -> None:
        """Learn how far prices went, and what was settled, while nobody followed them."""
        assert self._venue is not None
        since_ns = self._missed_since_ns
        if since_ns is not None:
            self._clock.heard(int((await self._rest.rows("public/time"))[0]["ts"]) * NS_PER_MS)
            now_ns = self._clock.now_ns()
            for symbol in sorted(self._venue().symbols_at_stake() & set(self._source.symbols)):
                await self._fill_in(self._source.symbols[symbol], since_ns, now_ns)
        self._missed_since_ns = None

    async def _fill_in(self, live: LiveSymbol, since_ns: int, now_ns: int) -> None:
        name, span_ns = next((s for s in _SPANS if (now_ns - since_ns) // s[1] < _MOST_BARS), _SPANS[-1])
        first_ms = (since_ns - since_ns % span_ns) // NS_PER_MS
        wanted = [(live.mark, "market/mark-price-candles")]
        trades = await self._rest.rows("market/trades", instId=live.item.inst_id, limit="500")
        if trades and int(trades[-1]["ts"]) * NS_PER_MS <= since_ns:
            # The tape reaches back to the loss: exact, where a candle that began before it is not.
            for row in trades:
                if int(row["ts"]) * NS_PER_MS > since_ns:
                    live.last.stretch(float(row["px"]), float(row["px"]))
        else:
            wanted.append((live.last, "market/candles"))
        for price, path in wanted:
            for row in await self._rest.rows(path, instId=live.item.inst_id, bar=name, limit="100"):
                if int(row[0]) >= first_ms:
                    price.stretch(float(row[2]), float(row[3]))
        settled = await self._rest.rows("public/funding-rate-history", instId=live.item.inst_id, limit="100")
        for row in settled:
            at_ns = int(row["fundingTime"]) * NS_PER_MS
            if max(since_ns, live.settled_ns) < at_ns <= now_ns:
                live.due.append(float(row["realizedRate"]))
        live.settled_ns = max(live.settled_ns, *(int(row["fundingTime"]) * NS_PER_MS for row in settled), 0)

    def _take(self, message: dict[str, Any]) -> None:
        arg, rows = message["arg"], message["data"]
        channel, name = str(arg.get("channel")), str(arg.get("instId", ""))
        for row in rows[-1:]:
            if isinstance(row, dict) and str(row.get("ts", "")).isdigit():
                self._clock.heard(int(row["ts"]) * NS_PER_MS)
        if channel == "instruments":
            self._take_states(rows)
        live = self._source.by_inst_id.get(f"{name}-SWAP" if channel == "index-tickers" else name)
        if live is not None and not live.take(channel, message, time.monotonic()):
            _LOG.warning("the book of %s lost a message: asked for anew", name)
            self._public.again(arg)
        self.feed.take(message)

    def _relay_only(self, message: dict[str, Any]) -> None:
        self.feed.take(message)

    def _take_states(self, rows: list[Row]) -> None:
        """Suspend what OKX suspends, and let trade again what it lets trade again."""
        for row in rows:
            live = self._source.by_inst_id.get(str(row.get("instId")))
            if live is None or self._operations is None:
                continue
            is_off = row.get("state") != "live"
            if is_off is not (live.item.symbol in self._switches.suspended):
                self._operations.perform(SWITCH, "", [{"fault": "suspend", "symbol": live.item.symbol, "on": is_off}])

    def _lost(self) -> None:
        if self._missed_since_ns is None:
            self._missed_since_ns = self._clock.market_ns
        for live in self._source.symbols.values():
            live.forget_book()

    def _args(self) -> list[dict[str, str]]:
        per_swap = [{"channel": c, "instId": live.item.inst_id} for live in self._source.symbols.values() for c in CHANNELS]
        index = [
            {"channel": "index-tickers", "instId": live.item.inst_id.removesuffix("-SWAP")}
            for live in self._source.symbols.values()
        ]
        return [*per_swap, *index, {"channel": "instruments", "instType": "SWAP"}]

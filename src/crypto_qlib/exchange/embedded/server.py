"""The embedded exchange: market, paper account and OKX's API in one object, on loopback.

``async with EmbeddedExchange(source) as exchange`` serves in the running loop; :class:`EmbeddedExchangeThread` serves from
a background thread for synchronous callers; :func:`serve_until_stopped` blocks until interrupted.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final, Self

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock, iso
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.account_feed import AccountFeed
from crypto_qlib.exchange.embedded.admin_api import AdminApi
from crypto_qlib.exchange.embedded.coingecko_api import CoinGeckoApi
from crypto_qlib.exchange.embedded.console import Console
from crypto_qlib.exchange.embedded.dead_man import DeadMan
from crypto_qlib.exchange.embedded.embedded_options import EmbeddedOptions, check_address
from crypto_qlib.exchange.embedded.fault_switchboard import FaultSwitchboard
from crypto_qlib.exchange.embedded.faults import Faults
from crypto_qlib.exchange.embedded.faulty_outlet import FaultyOutlet
from crypto_qlib.exchange.embedded.front_door import FrontDoor, Rooms
from crypto_qlib.exchange.embedded.house import STEP
from crypto_qlib.exchange.embedded.live_market import LiveClock, LivePublicApi, LiveSource
from crypto_qlib.exchange.embedded.live_session import LiveSession
from crypto_qlib.exchange.embedded.market_api import MarketApi
from crypto_qlib.exchange.embedded.market_feed import MarketFeed
from crypto_qlib.exchange.embedded.opened_market import START_FACT, open_market
from crypto_qlib.exchange.embedded.operations import Outcome
from crypto_qlib.exchange.embedded.order_book import BookModel
from crypto_qlib.exchange.embedded.outside_world import OutsideWorld
from crypto_qlib.exchange.embedded.owner_api import OwnerApi
from crypto_qlib.exchange.embedded.paper_desk import PaperDesk, Surroundings
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.public_api import PublicApi
from crypto_qlib.exchange.embedded.push_hub import PushHub
from crypto_qlib.exchange.embedded.rate_limits import RateLimiter
from crypto_qlib.exchange.embedded.recovery import Keeper
from crypto_qlib.exchange.embedded.router import Endpoint, Router
from crypto_qlib.exchange.embedded.routes import Routes, account_routes, changes_of, market_routes
from crypto_qlib.exchange.embedded.rubik_api import RubikApi
from crypto_qlib.exchange.embedded.socket_channels import SocketChannels
from crypto_qlib.exchange.embedded.socket_login import SocketLogin
from crypto_qlib.exchange.embedded.socket_orders import SocketOrders
from crypto_qlib.exchange.embedded.socket_server import SocketServer
from crypto_qlib.exchange.embedded.socket_session import SocketParts
from crypto_qlib.exchange.embedded.state_file import StateFile
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.venue.market_source import MarketSource

__all__ = ["START_FACT", "EmbeddedExchange", "EmbeddedOptions"]

_STEPS_PER_BREATH: Final = 32
"""Bars stepped before other requests get a turn."""
_KEEP_UP_S: Final = 1.0
"""Seconds between two updates of the state file's tables."""


class EmbeddedExchange:
    """OKX v5 over HTTP, in front of a :class:`MarketSource`.

    Parameters
    ----------
    source : MarketSource
        The market's whole history; the server decides how much is visible.
    options : EmbeddedOptions
        How it runs.
    credentials : ApiCredentials | None
        The paper account's key; ``None`` makes a fresh one.
    wall_clock : Clock | None
        Real time (signature window, running clock).
    state : StateFile | None
        Where accounts and the market's time are kept; ``None`` = in memory. Closed by :meth:`stop`.

    Raises
    ------
    UserError
        If the start lies outside the data, the address is public and not allowed to be, or the state cannot be brought back.
    """

    def __init__(
        self,
        source: MarketSource,
        options: EmbeddedOptions | None = None,
        credentials: ApiCredentials | None = None,
        wall_clock: Clock | None = None,
        state: StateFile | None = None,
    ) -> None:
        self.options = options or EmbeddedOptions()
        check_address(self.options)
        self.credentials = credentials or ApiCredentials.generate()
        self._wall = wall_clock or SystemClock()
        opened = open_market(source, self.options, self._wall, state)
        self.source, self.clock, self._window = opened.source, opened.clock, opened.window
        self._around = Surroundings.of(self._window)
        self._keeper = Keeper(state, self._around, self._fresh_desk, changes_of)
        self.clock.resume_at(self.clock.market_ns)
        terms = {"cash": self.options.paper_equity, "maker": self.options.fees.maker, "taker": self.options.fees.taker}
        self._keeper.open_account(self.credentials.key, terms)
        self.hub = PushHub()
        self.live = self._live_session()
        self._account_feed = AccountFeed(self._keeper.desk, self.hub)
        self._dead_man = DeadMan(self.clock, self._keeper.operations, self._keeper.desk.house, self._account_feed.tell)
        wanted = self.options.faults
        self.faults = Faults(wanted.seed, dict(wanted.rules), wanted.latency_s, wanted.jitter_s)
        self.clock.skew_ns = wanted.clock_skew_ns
        self.switchboard = FaultSwitchboard(
            self.faults, self.clock, self._keeper.operations, lambda: self._keeper.desk.market_faults
        )
        self.hub.outlet = FaultyOutlet(self.faults)
        self._build_rooms()
        if self.live:
            self.live.attach(self._keeper.operations, lambda: self.venue, self._account_feed)
        self._background: list[asyncio.Task[None]] = []
        self.base_url = ""

    def _build_rooms(self) -> None:
        """Build what requests are led to: API, sockets, the owner's paths."""
        keys, options, operations = {self.credentials.key: self.credentials}, self.options, self._keeper.operations
        limiter = RateLimiter(is_on=options.rate_limits)
        book_model = BookModel(options.venue.impact_y, options.venue.half_spread_bps)
        market = MarketApi(self._window, book_model, options.mark_page_limit)
        kind = LivePublicApi if self.live else PublicApi
        public = kind(self._window, options.funding_retention_days)
        self._market_feed = MarketFeed(self._window, market, public, self.hub)
        feed = self.live.feed if self.live else self._market_feed
        routes = self._routes(market, public)
        self.router = Router(
            routes, keys, self.clock, self._wall, limiter, operations, is_demo=options.is_demo, key=options.key
        )
        parts = SocketParts(
            self.hub,
            SocketChannels(self._window, feed, self._account_feed, relays=self.live is not None),
            SocketLogin(keys, self.clock, self._wall),
            SocketOrders(operations, self._window, limiter, self._wall, self._account_feed.tell),
            self._wall,
        )
        self.sockets = SocketServer(parts, self._wall, limited=options.rate_limits)
        admin = AdminApi(OwnerApi(self, Console(self._keeper.desk, market, self.credentials.key)).handlers())
        relay = self.live.relay if self.live else None
        rooms = Rooms(self.router, self.sockets, admin, self._window, self.faults, self._account_feed.tell, relay)
        self._door = FrontDoor(options, rooms)

    @property
    def venue(self) -> PaperVenue:
        """Return the simulated exchange behind the API."""
        return self._keeper.desk.venue

    async def start(self) -> str:
        """Bind and serve; return the base URL, e.g. ``http://127.0.0.1:40123``.

        Raises
        ------
        UserError
            If the port is taken.
        CryptoQlibError
            If the market is OKX's and cannot be reached.
        """
        if self.live:
            await self.live.start()
        self.base_url = await self._door.open()
        self._background.append(asyncio.create_task(self._keep_up()))
        if self.options.speed and self.clock.has_next:
            self._background.append(asyncio.create_task(self._tick()))
        return self.base_url

    async def stop(self) -> None:
        """Stop serving, bring the state file up to date and release the port; a stopped exchange stays stopped."""
        for task in self._background:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._background.clear()
        await self.sockets.stop()
        if self.live:
            await self.live.stop()
        await self._door.close()
        self._keeper.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def step(self, n_bars: int = 1) -> int:
        """Move the market ``n_bars`` on; return the new time, nanoseconds since the epoch.

        Raises
        ------
        UserError
            If the data end before that; the market then stands at its end.
        """
        left = n_bars
        while left > 0:
            # Listeners are told of every bar; without any, bars are journalled many at a time.
            chunk = 1 if self.hub.topics() or self._dead_man.is_armed else min(left, _STEPS_PER_BREATH)
            self._dead_man.fire_due(self.clock.market_ns + self.clock.step_ns)
            self._keeper.operations.perform(STEP, "", [{"bars": chunk}])
            # What happened inside the bar is told before the market as it stands at the bar's close.
            self._account_feed.moved()
            self._market_feed.moved()
            left -= chunk
            if left:
                await asyncio.sleep(0)
        return self.clock.market_ns

    def perform(self, name: str, rows: list[Row]) -> Outcome:
        """Carry out one operation for the paper account and push what it set off."""
        try:
            return self._keeper.operations.perform(name, self.credentials.key, rows)
        finally:
            self._account_feed.touch(self.credentials.key)
            self._account_feed.tell()

    def status(self) -> dict[str, Any]:
        """Return what ``GET /admin/status`` shows: kind of market, times in ISO and milliseconds, speed, symbols."""
        return {
            "market": "okx_public" if self.live else "simulated" if self.source.is_simulated else "replay",
            "is_simulated": self.source.is_simulated,
            "now": iso(self.clock.now_ns()),
            "now_ms": self.clock.now_ns() // NS_PER_MS,
            "start": "" if self.live else iso(self.source.start_ns),
            "end": "" if self.live else iso(self.source.end_ns),
            "speed": self.options.speed,
            "step_s": self.clock.step_ns // NS_PER_S,
            "symbols": [item.symbol for item in self._window.listed()],
            "url": self.base_url,
            "accounts": [self._account_status(account_id) for account_id in self.venue.exchange.account_ids()],
            "faults": list(self.switchboard.shown()["on"]),
            "state": self._keeper.where,
        } | ({"live": self.live.status()} if self.live else {})

    def _account_status(self, account_id: str) -> dict[str, Any]:
        venue = self.venue.exchange
        state = venue.snapshot(account_id)
        return {
            "account": account_id, "equity": state.equity, "cash": state.cash, "available": state.available,
            "positions": len(state.positions), "open_orders": len(venue.open_orders(account_id)),
            "orders": venue.counts(account_id)[0],
        }  # fmt: skip

    def _live_session(self) -> LiveSession | None:
        if not isinstance(self.source, LiveSource) or not isinstance(self.clock, LiveClock):
            return None
        return LiveSession(self.source, self.clock, self.hub, self._window.switches)

    def _fresh_desk(self) -> PaperDesk:
        return PaperDesk.fresh(self._around, self.options.venue, self.options.fees)

    def _routes(self, market: MarketApi, public: PublicApi) -> Routes:
        desk = self._keeper.desk
        open_to_all = market_routes(market, public, CoinGeckoApi(self._window), RubikApi(self._window))
        alive = {("POST", "trade/cancel-all-after"): Endpoint(self._dead_man.arm, is_private=True)}
        if self.source.is_simulated:
            open_to_all |= OutsideWorld(self._window).routes()
        shown = {("GET", "account/config"): Endpoint(self.options.key.shown(desk.account.config), is_private=True)}
        return open_to_all | account_routes(desk.account, desk.trade, desk.algo) | alive | shown

    async def _tick(self) -> None:
        while self.clock.has_next:
            await asyncio.sleep(self.clock.seconds_to_next())
            await self.step()

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_UP_S)
            self._keeper.keep_up()
            self._dead_man.fire_due(self.clock.now_ns() + 1)

"""The embedded exchange: market, paper account and OKX's API in one object, on loopback.

``async with EmbeddedExchange(source) as exchange`` serves in the running loop; :class:`EmbeddedExchangeThread` serves from
a background thread for synchronous callers; :func:`serve_until_stopped` blocks until interrupted.
"""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

from aiohttp import web

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock, floor_ts, iso
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.account_feed import AccountFeed
from crypto_qlib.exchange.embedded.admin_api import ADMIN_ROOT, AdminApi, AdminRequest, is_loopback
from crypto_qlib.exchange.embedded.coingecko_api import CoinGeckoApi
from crypto_qlib.exchange.embedded.console import PATH as CONSOLE
from crypto_qlib.exchange.embedded.console import Console
from crypto_qlib.exchange.embedded.dead_man import DeadMan
from crypto_qlib.exchange.embedded.fault_switchboard import FaultSwitchboard
from crypto_qlib.exchange.embedded.faults import ANSWERS, NO_ANSWER, Fault, FaultOptions, Faults
from crypto_qlib.exchange.embedded.faulty_outlet import FaultyOutlet
from crypto_qlib.exchange.embedded.house import STEP
from crypto_qlib.exchange.embedded.market_api import OKX_MARK_LIMIT, MarketApi
from crypto_qlib.exchange.embedded.market_feed import MarketFeed
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.openapi import PATH as OPENAPI
from crypto_qlib.exchange.embedded.openapi import document
from crypto_qlib.exchange.embedded.operations import Outcome
from crypto_qlib.exchange.embedded.order_book import BookModel
from crypto_qlib.exchange.embedded.owner_api import OwnerApi
from crypto_qlib.exchange.embedded.paper_desk import PaperDesk, Surroundings
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.path_market import PathMarket
from crypto_qlib.exchange.embedded.public_api import PublicApi
from crypto_qlib.exchange.embedded.push_hub import PushHub
from crypto_qlib.exchange.embedded.rate_limits import RateLimiter
from crypto_qlib.exchange.embedded.recovery import Keeper
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.exchange.embedded.router import API_ROOT, Answer, Endpoint, Router
from crypto_qlib.exchange.embedded.routes import Routes, account_routes, changes_of, market_routes
from crypto_qlib.exchange.embedded.rubik_api import RubikApi
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.signature import SignedRequest
from crypto_qlib.exchange.embedded.socket_channels import SocketChannels
from crypto_qlib.exchange.embedded.socket_login import SocketLogin
from crypto_qlib.exchange.embedded.socket_orders import SocketOrders
from crypto_qlib.exchange.embedded.socket_server import SocketServer
from crypto_qlib.exchange.embedded.socket_session import SocketParts
from crypto_qlib.exchange.embedded.state_file import StateFile
from crypto_qlib.exchange.embedded.tls import TlsFiles
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.venue.market_source import MarketSource
from crypto_qlib.venue.venue_config import VenueConfig

START_FACT: Final = "start_ns"
"""Name of the market's first moment among the facts of a state file."""
_STEPS_PER_BREATH: Final = 32
"""Bars stepped before other requests get a turn."""
_KEEP_UP_S: Final = 1.0
"""Seconds between two updates of the state file's tables."""


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """How the embedded exchange runs.

    Parameters
    ----------
    start_ns : int | None
        The market's time at start; ``None`` = the end of the data.
    step_frame_ns : int | None
        Bar length of one step; ``None`` = the source's base frame; a finer one walks a path drawn inside each bar.
    speed : float
        Market seconds per real second; 0 = moves only when a client steps it.
    host : str
        Address to bind to.
    tls : TlsFiles | None
        Serve https and wss with these.
    allow_public : bool
        Whether an address that other machines can reach is allowed; it needs ``tls`` too.
    port : int
        Port; 0 = any free one.
    paper_equity : float
        USDT of the paper account at start.
    fees : FeeSchedule
        The paper account's fee rates.
    venue : VenueConfig
        How the simulated exchange executes: spread, impact, volume share, liquidation.
    funding_retention_days : float | None
        How far back funding history reaches; OKX keeps about three months, ``None`` serves all there is.
    mark_page_limit : int
        Most rows of a page of mark or index candles (OKX: 100); a higher one makes a first download quicker.
    rate_limits : bool
        Whether OKX's request limits are enforced (code 50011).
    is_demo : bool | None
        Whether the key is one of demo trading: then signed requests must carry ``x-simulated-trading: 1``, otherwise they must
        not (50101); ``None`` takes both.
    faults : FaultOptions
        What goes wrong on purpose from the start.
    """

    start_ns: int | None = None
    step_frame_ns: int | None = None
    speed: float = 0.0
    host: str = "127.0.0.1"
    tls: TlsFiles | None = None
    allow_public: bool = False
    port: int = 0
    paper_equity: float = 100_000.0
    fees: FeeSchedule = field(default_factory=FeeSchedule)
    venue: VenueConfig = field(default_factory=VenueConfig)
    funding_retention_days: float | None = 92.0
    mark_page_limit: int = OKX_MARK_LIMIT
    rate_limits: bool = False
    is_demo: bool | None = None
    faults: FaultOptions = field(default_factory=FaultOptions)


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
        _check_address(self.options)
        recording = source.recording if isinstance(source, ReplayMarket) else None
        step_ns = self.options.step_frame_ns
        self.source = source = PathMarket(source, step_ns) if step_ns and step_ns < source.base_frame_ns else source
        self.credentials = credentials or ApiCredentials.generate()
        self._wall = wall_clock or SystemClock()
        self.clock = self._clock(state)
        self._window = MarketWindow(source, self.clock, recording=recording)
        self._around = Surroundings.of(self._window)
        self._keeper = Keeper(state, self._around, self._fresh_desk, changes_of)
        self.clock.resume_at(self.clock.market_ns)
        terms = {"cash": self.options.paper_equity, "maker": self.options.fees.maker, "taker": self.options.fees.taker}
        self._keeper.open_account(self.credentials.key, terms)
        keys = {self.credentials.key: self.credentials}
        limiter = RateLimiter(is_on=self.options.rate_limits)
        book_model = BookModel(self.options.venue.impact_y, self.options.venue.half_spread_bps)
        market = MarketApi(self._window, book_model, self.options.mark_page_limit)
        public = PublicApi(self._window, self.options.funding_retention_days)
        self.hub = PushHub()
        self._market_feed = MarketFeed(self._window, market, public, self.hub)
        self._account_feed = AccountFeed(self._keeper.desk, self.hub)
        self._dead_man = DeadMan(self.clock, self._keeper.operations, self._keeper.desk.house, self._account_feed.tell)
        routes = self._routes(market, public)
        self.router = Router(
            routes, keys, self.clock, self._wall, limiter, self._keeper.operations, is_demo=self.options.is_demo
        )
        parts = SocketParts(
            self.hub,
            SocketChannels(self._window, self._market_feed, self._account_feed),
            SocketLogin(keys, self.clock, self._wall),
            SocketOrders(self._keeper.operations, self._window, limiter, self._wall, self._account_feed.tell),
            self._wall,
        )
        self.sockets = SocketServer(parts, self._wall, limited=self.options.rate_limits)
        wanted = self.options.faults
        self.faults = Faults(wanted.seed, dict(wanted.rules), wanted.latency_s, wanted.jitter_s)
        self.clock.skew_ns = wanted.clock_skew_ns
        self.switchboard = FaultSwitchboard(
            self.faults, self.clock, self._keeper.operations, lambda: self._keeper.desk.market_faults
        )
        self.hub.outlet = FaultyOutlet(self.faults)
        console = Console(self._keeper.desk, market, self.credentials.key)
        self._admin = AdminApi(OwnerApi(self, console).handlers())
        self._runner: web.ServerRunner | None = None
        self._background: list[asyncio.Task[None]] = []
        self.base_url = ""

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
        """
        runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        await runner.setup()
        tls = self.options.tls
        site = web.TCPSite(runner, self.options.host, self.options.port, ssl_context=tls.context() if tls else None)
        try:
            await site.start()
        except OSError as e:
            await runner.cleanup()
            where = f"{self.options.host}:{self.options.port}"
            raise UserError(f"cannot serve on {where}: {e.strerror or e}", "choose another exchange.port, or 0") from e
        self._runner = runner
        host, port = runner.addresses[0][:2]
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        self.base_url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        self._background.append(asyncio.create_task(self._keep_up()))
        if self.options.speed:
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
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
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
            "market": "simulated" if self.source.is_simulated else "replay",
            "is_simulated": self.source.is_simulated,
            "now": iso(self.clock.now_ns()),
            "now_ms": self.clock.now_ns() // NS_PER_MS,
            "start": iso(self.source.start_ns),
            "end": iso(self.source.end_ns),
            "speed": self.options.speed,
            "step_s": self.clock.step_ns // NS_PER_S,
            "symbols": [item.symbol for item in self._window.listed()],
            "url": self.base_url,
            "accounts": [self._account_status(account_id) for account_id in self.venue.exchange.account_ids()],
            "faults": list(self.switchboard.shown()["on"]),
            "state": self._keeper.where,
        }

    def _account_status(self, account_id: str) -> dict[str, Any]:
        venue = self.venue.exchange
        state = venue.snapshot(account_id)
        return {
            "account": account_id, "equity": state.equity, "cash": state.cash, "available": state.available,
            "positions": len(state.positions), "open_orders": len(venue.open_orders(account_id)),
            "orders": venue.counts(account_id)[0],
        }  # fmt: skip

    def _clock(self, state: StateFile | None) -> ServerClock:
        step_ns = self.options.step_frame_ns or self.source.base_frame_ns
        if step_ns % self.source.base_frame_ns:
            raise UserError("the step frame must be a multiple of the market's base frame")
        asked = self.options.start_ns
        start_ns = floor_ts(self.source.end_ns, step_ns) if asked is None else asked
        if state is not None:
            state.remember(START_FACT, str(start_ns))
            start_ns = int(state.fact(START_FACT))
        return ServerClock(start_ns, self.source.end_ns, step_ns, self._wall, self.options.speed)

    def _fresh_desk(self) -> PaperDesk:
        return PaperDesk.fresh(self._around, self.options.venue, self.options.fees)

    def _routes(self, market: MarketApi, public: PublicApi) -> Routes:
        desk = self._keeper.desk
        open_to_all = market_routes(market, public, CoinGeckoApi(self._window), RubikApi(self._window))
        alive = {("POST", "trade/cancel-all-after"): Endpoint(self._dead_man.arm, is_private=True)}
        return open_to_all | account_routes(desk.account, desk.trade, desk.algo) | alive

    async def _tick(self) -> None:
        while self.clock.has_next:
            await asyncio.sleep(self.clock.seconds_to_next())
            await self.step()

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_UP_S)
            self._keeper.keep_up()
            self._dead_man.fire_due(self.clock.now_ns() + 1)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.sockets.serves(request.path):
            return await self.sockets.handle(request)
        body = await request.read() if request.can_read_body else b""
        remote = request.remote or ""
        if request.path.startswith(ADMIN_ROOT) or request.path == CONSOLE:
            answer = await self._admin.answer(AdminRequest(request.method, request.path, body, remote, request.headers))
        elif request.path == OPENAPI:
            listed = (item.inst_id for item in self._window.listed())
            answer = Answer(200, document(self.router.endpoints, listed))
        else:
            answer = await self._api(request, SignedRequest(request.method, request.raw_path, body, request.headers), remote)
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type, headers=answer.headers)

    async def _api(self, request: web.BaseRequest, signed: SignedRequest, remote: str) -> Answer:
        """Answer one API request, or as the faults in force have it."""
        verdict = self.faults.verdict(request.path.removeprefix(API_ROOT))
        if verdict.delay_s:
            await asyncio.sleep(verdict.delay_s)
        answer = self.router.answer(signed, remote) if verdict.is_carried_out else None
        if verdict.fault is Fault.DROP and request.transport is not None:
            request.transport.close()
        self._account_feed.tell()
        return ANSWERS.get(verdict.fault, answer or NO_ANSWER) if verdict.fault else answer or NO_ANSWER


def _check_address(options: EmbeddedOptions) -> None:
    if is_loopback(options.host):
        return
    if not options.allow_public:
        raise UserError(
            f"{options.host} can be reached from other machines, the embedded exchange serves on loopback only",
            "set exchange.host to 127.0.0.1; or allow it with --public and --tls",
        )
    if options.tls is None:
        raise UserError(f"on the public address {options.host} the embedded exchange serves TLS only", "add --tls")

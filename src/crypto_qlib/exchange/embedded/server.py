"""The embedded exchange: market, paper account and OKX's API in one object, on loopback.

``async with EmbeddedExchange(source) as exchange`` serves in the running loop; :class:`EmbeddedExchangeThread` serves from
a background thread for synchronous callers; :func:`serve_until_stopped` blocks until interrupted.
"""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
from aiohttp import web

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock, floor_ts, iso
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.account_api import AccountApi
from crypto_qlib.exchange.embedded.algo_api import AlgoApi
from crypto_qlib.exchange.embedded.coingecko_api import CoinGeckoApi
from crypto_qlib.exchange.embedded.market_api import OKX_MARK_LIMIT, MarketApi
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.order_book import BookModel
from crypto_qlib.exchange.embedded.paper_book import PaperBook
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.public_api import PublicApi
from crypto_qlib.exchange.embedded.rate_limits import RateLimiter
from crypto_qlib.exchange.embedded.router import Answer, Router
from crypto_qlib.exchange.embedded.routes import Routes, account_routes, market_routes
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.signature import SignedRequest
from crypto_qlib.exchange.embedded.trade_api import TradeApi
from crypto_qlib.venue.market_source import MarketSource
from crypto_qlib.venue.venue_config import VenueConfig

_STEPS_PER_BREATH = 32
"""Bars stepped before other requests get a turn."""


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    """How the embedded exchange runs.

    Parameters
    ----------
    start_ns : int | None
        The market's time at start; ``None`` = the end of the data.
    step_frame_ns : int | None
        Bar length of one step; ``None`` = the source's base frame.
    speed : float
        Market seconds per real second; 0 = moves only when a client steps it.
    host : str
        Loopback address to bind to.
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
    """

    start_ns: int | None = None
    step_frame_ns: int | None = None
    speed: float = 0.0
    host: str = "127.0.0.1"
    port: int = 0
    paper_equity: float = 100_000.0
    fees: FeeSchedule = field(default_factory=FeeSchedule)
    venue: VenueConfig = field(default_factory=VenueConfig)
    funding_retention_days: float | None = 92.0
    mark_page_limit: int = OKX_MARK_LIMIT
    rate_limits: bool = False


class EmbeddedExchange:
    """OKX v5 over HTTP on loopback, in front of a :class:`MarketSource`.

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

    Raises
    ------
    UserError
        If the start lies outside the data, or the address is not loopback.
    """

    def __init__(
        self,
        source: MarketSource,
        options: EmbeddedOptions | None = None,
        credentials: ApiCredentials | None = None,
        wall_clock: Clock | None = None,
    ) -> None:
        self.options = options or EmbeddedOptions()
        _require_loopback(self.options.host)
        self.source = source
        self.credentials = credentials or ApiCredentials.generate()
        self._wall = wall_clock or SystemClock()
        step_ns = self.options.step_frame_ns or source.base_frame_ns
        if step_ns % source.base_frame_ns:
            raise UserError("the step frame must be a multiple of the market's base frame")
        start_ns = floor_ts(source.end_ns, step_ns) if self.options.start_ns is None else self.options.start_ns
        self.clock = ServerClock(start_ns, source.end_ns, step_ns, self._wall, self.options.speed)
        self._window = MarketWindow(source, self.clock)
        self.venue = PaperVenue(self._window, self.options.venue)
        self.venue.open_account(self.credentials.key, self.options.paper_equity, self.options.fees)
        routes = self._routes()
        keys = {self.credentials.key: self.credentials}
        self.router = Router(routes, keys, self.clock, self._wall, RateLimiter(is_on=self.options.rate_limits))
        self._runner: web.ServerRunner | None = None
        self._ticking: asyncio.Task[None] | None = None
        self.base_url = ""

    async def start(self) -> str:
        """Bind and serve; return the base URL, e.g. ``http://127.0.0.1:40123``.

        Raises
        ------
        UserError
            If the port is taken.
        """
        runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        await runner.setup()
        site = web.TCPSite(runner, self.options.host, self.options.port)
        try:
            await site.start()
        except OSError as e:
            await runner.cleanup()
            where = f"{self.options.host}:{self.options.port}"
            raise UserError(f"cannot serve on {where}: {e.strerror or e}", "choose another exchange.port, or 0") from e
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if self.options.speed:
            self._ticking = asyncio.create_task(self._tick())
        return self.base_url

    async def stop(self) -> None:
        """Stop serving and release the port; a stopped exchange stays stopped."""
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
            self._ticking = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
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
        for k in range(n_bars):
            self._step_once()
            if k % _STEPS_PER_BREATH == _STEPS_PER_BREATH - 1:
                await asyncio.sleep(0)
        return self.clock.market_ns

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
        }

    def _routes(self) -> Routes:
        window, venue, book = self._window, self.venue, PaperBook(self.venue.exchange)
        book_model = BookModel(self.options.venue.impact_y, self.options.venue.half_spread_bps)
        public = market_routes(
            MarketApi(window, book_model, self.options.mark_page_limit),
            PublicApi(window, self.options.funding_retention_days),
            CoinGeckoApi(window),
        )
        account = AccountApi(window, venue, book, self.options.fees)
        return public | account_routes(account, TradeApi(window, venue, book), AlgoApi(window, venue, book))

    def _step_once(self) -> None:
        self.venue.step()

    async def _tick(self) -> None:
        while self.clock.has_next:
            await asyncio.sleep(self.clock.seconds_to_next())
            self._step_once()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read() if request.can_read_body else b""
        if request.path.startswith("/admin/"):
            answer = await self._admin(request, body)
        else:
            signed = SignedRequest(request.method, request.raw_path, body, request.headers)
            answer = self.router.answer(signed, request.remote or "")
        return web.Response(status=answer.status, body=answer.body, content_type="application/json")

    async def _admin(self, request: web.BaseRequest, body: bytes) -> Answer:
        if not _is_loopback(request.remote or ""):
            return Answer(403, orjson.dumps({"error": "admin is for loopback clients only"}))
        if (request.method, request.path) == ("GET", "/admin/status"):
            return Answer(200, orjson.dumps(self.status()))
        if (request.method, request.path) == ("POST", "/admin/step"):
            return await self._admin_step(body)
        return Answer(404, orjson.dumps({"error": f"{request.method} {request.path} is not served here"}))

    async def _admin_step(self, body: bytes) -> Answer:
        try:
            asked = orjson.loads(body or b"{}")
        except orjson.JSONDecodeError:
            asked = None
        n_bars = self._bars_asked(asked) if isinstance(asked, dict) else -1
        if n_bars < 0:
            return Answer(400, orjson.dumps({"error": 'send {"bars": n} or {"to": milliseconds}, not before now'}))
        try:
            now_ns = await self.step(n_bars)
        except UserError as e:
            return Answer(409, orjson.dumps({"error": str(e), "now_ms": self.clock.market_ns // NS_PER_MS}))
        return Answer(200, orjson.dumps({"now_ms": now_ns // NS_PER_MS, "now": iso(now_ns)}))

    def _bars_asked(self, asked: dict[str, Any]) -> int:
        bars, to_ms = asked.get("bars"), asked.get("to")
        if isinstance(to_ms, int):
            return (to_ms * NS_PER_MS - self.clock.market_ns) // self.clock.step_ns
        return 1 if bars is None else bars if isinstance(bars, int) else -1


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _require_loopback(host: str) -> None:
    if not _is_loopback(host):
        raise UserError(f"the embedded exchange serves on loopback only, not on {host}", "set exchange.host to 127.0.0.1")

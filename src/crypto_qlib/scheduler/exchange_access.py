"""Open the exchange the settings name: start the embedded one, or connect to OKX.

The embedded exchange serves over HTTP even to this process, so the same unmodified client and gateway talk to all three.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from crypto_qlib.core.clock import FRAME_NS, NS_PER_MS, NS_PER_S, SystemClock, floor_ts, iso, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.exchange.credentials import ApiCredentials, load_or_create_credentials
from crypto_qlib.exchange.embedded.faults import Fault, FaultOptions, FaultRule
from crypto_qlib.exchange.embedded.live_market import LiveSource
from crypto_qlib.exchange.embedded.public_facts import PublicFacts, PublicRest, clock_offset_ns, read_facts
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.okx_live_stream import OkxLiveStream
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.scheduler.exchange_process import EmbeddedExchangeProcess
from crypto_qlib.scheduler.steps import key_of
from crypto_qlib.settings.schema import FaultSettings, Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.paths import Paths
from crypto_qlib.venue.market_simulator import SimulatedMarket
from crypto_qlib.venue.market_source import MarketSource
from crypto_qlib.venue.venue_config import VenueConfig

T = TypeVar("T")


class ExchangeAccess:
    """The exchange of one run; the embedded server is started at the first use and stopped by :meth:`close`.

    Parameters
    ----------
    settings : Settings
        Sections ``exchange``, ``backtest.costs``, ``data`` and ``live`` are read.
    secrets : Secrets
        OKX keys for demo and live.
    """

    def __init__(self, settings: Settings, secrets: Secrets) -> None:
        self._settings = settings
        self._secrets = secrets
        self._server: EmbeddedExchangeThread | EmbeddedExchangeProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_embedded(self) -> bool:
        """Return whether the market is the embedded exchange's own: simulated or replayed, moved by whoever trades on it."""
        return self._is_served and self._settings.exchange.market != "okx_public"

    @property
    def _is_served(self) -> bool:
        """Return whether the embedded exchange takes the orders, on a market of its own or on OKX's live one."""
        return self._settings.exchange.mode == "embedded"

    @property
    def has_simulated_prices(self) -> bool:
        """Return whether prices are invented."""
        return self.is_embedded and self._settings.exchange.market == "simulated"

    @property
    def knows_funding(self) -> bool:
        """Return whether the market can tell what funding was paid; a replay of bare candles cannot."""
        exchange, wants = self._settings.exchange, self._settings.data.funding
        is_bare = self.is_embedded and exchange.market == "replay" and exchange.replay_funding is None
        return wants and not (is_bare and exchange.replay_path is not None and not exchange.replay_path.is_dir())

    @property
    def market_label(self) -> str:
        """Return in words whose prices and whose money these are."""
        exchange = self._settings.exchange
        if exchange.mode == "live":
            return "OKX, real money"
        if exchange.mode == "demo":
            return "OKX demo trading, play money"
        if exchange.market == "okx_public":
            return "OKX's live market (real prices, simulated fills and money)"
        if exchange.market == "simulated":
            return f"simulated market (invented prices, seed {exchange.seed}, planted signal {exchange.signal_strength:g})"
        return f"replay of {Path(exchange.replay_path).name if exchange.replay_path else '?'} (real prices, simulated money)"

    def run(self, use: Callable[[Gateway], Awaitable[T]]) -> T:
        """Return what ``use`` returns, given an open gateway; the gateway is closed afterwards."""

        async def _with_gateway() -> T:
            gateway = OkxGateway(self._settings.exchange, credentials, url)
            try:
                return await use(gateway)
            finally:
                await gateway.close()

        # Before the loop runs: a live market asks OKX for its contracts with a loop of its own.
        url, credentials = self.base_url, self._credentials()
        return asyncio.run(_with_gateway())

    def live_stream(self, instruments: Sequence[Instrument]) -> OkxLiveStream:
        """Return the websockets of the account and of ``instruments``, not yet dialled."""
        exchange = self._settings.exchange
        connection = Connection(self.base_url, self._credentials(), exchange.mode == "demo", exchange.timeout_s)
        return OkxLiveStream(connection, instruments, self._settings.data.frame)

    @property
    def base_url(self) -> str:
        """Return the embedded exchange's address, starting it if need be; empty for OKX itself."""
        if not self._is_served:
            return ""
        return self.embedded().base_url

    def embedded(self) -> EmbeddedExchangeThread | EmbeddedExchangeProcess:
        """Return the running embedded exchange.

        Raises
        ------
        UserError
            If the settings name OKX itself, or the market behind it cannot be opened.
        """
        if not self._is_served:
            raise UserError("this needs the embedded exchange", "set exchange.mode=embedded")
        if self._server is None:
            server: EmbeddedExchangeThread | EmbeddedExchangeProcess
            if self._settings.exchange.own_process:
                server = EmbeddedExchangeProcess(self._settings, embedded_exchange)
            else:
                server = EmbeddedExchangeThread(embedded_exchange(self._settings))
            server.start()
            self._server = server
        return self._server

    def close(self) -> None:
        """Stop the embedded exchange if it runs."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _credentials(self) -> ApiCredentials | None:
        if self._is_served:
            return self.embedded().credentials
        s = self._secrets
        return ApiCredentials(s.okx_api_key, s.okx_api_secret, s.okx_api_passphrase) if s.has_okx_keys else None


def market_source(settings: Settings) -> MarketSource:
    """Return the market behind the embedded exchange.

    Raises
    ------
    UserError
        If a file to replay is missing or defective.
    CryptoQlibError
        If OKX's live market is wanted and cannot be reached.
    """
    exchange = settings.exchange
    if exchange.market == "okx_public":
        return live_source(settings)
    if exchange.market == "simulated":
        return SimulatedMarket.from_settings(exchange)
    if exchange.replay_path is None:
        raise UserError("exchange.market is replay, but exchange.replay_path is empty", "name a parquet or CSV file of candles")
    return ReplayMarket(
        exchange.replay_path,
        funding=exchange.replay_funding,
        mark=exchange.replay_mark,
        market_caps=exchange.replay_market_caps,
    )


def live_source(settings: Settings, kept: Callable[[str], str] = lambda facts: facts) -> LiveSource:
    """Return OKX's live market.

    Parameters
    ----------
    kept : callable
        Gets what OKX says of its swaps now, as text, and returns what to go by: the same, or what was kept from the first
        start, so that accounts go on by the contracts they were begun with.

    Raises
    ------
    CryptoQlibError
        If OKX's public data cannot be reached.
    """
    exchange = settings.exchange

    async def _read() -> tuple[PublicFacts, int]:
        async with PublicRest(exchange.okx_url, exchange.timeout_s) as rest:
            return await read_facts(rest, exchange.okx_symbols), await clock_offset_ns(rest, SystemClock())

    facts, offset_ns = asyncio.run(_read())
    return LiveSource(PublicFacts.load(kept(facts.dump())), offset_ns, exchange.okx_url, exchange.stale_s)


def embedded_exchange(settings: Settings) -> EmbeddedExchange:
    """Return an embedded exchange as the settings describe it, not yet started; it keeps its accounts in memory."""
    source = market_source(settings)
    options = embedded_options(settings, source)
    return EmbeddedExchange(source, options, load_or_create_credentials(Paths(settings.store.root).exchange))


def embedded_options(settings: Settings, source: MarketSource) -> EmbeddedOptions:
    """Return how the embedded exchange of ``settings`` runs on ``source``."""
    exchange, costs = settings.exchange, settings.backtest.costs
    is_live = isinstance(source, LiveSource)
    start_ns = SystemClock().now_ns() if is_live else session_start_ns(settings, source)
    return EmbeddedOptions(
        start_ns=None if is_live else start_ns,
        step_frame_ns=None if is_live else step_ns(settings, source),
        rate_limits=exchange.rate_limits,
        is_demo=exchange.demo_key,
        speed=exchange.speed,
        host=exchange.host,
        port=exchange.port,
        paper_equity=exchange.paper_equity,
        fees=costs.fees().at(start_ns),
        venue=VenueConfig(costs.impact_y, costs.half_spread_bps, settings.backtest.max_bar_volume_share),
        # Wider than OKX on purpose: a first run downloads a year of everything.
        funding_retention_days=None,
        mark_page_limit=300,
        faults=fault_options(exchange.faults),
    )


def step_ns(settings: Settings, source: MarketSource) -> int:
    """Return how far one step moves the market: ``exchange.step_s``, else a bar of the decision or the market's own."""
    if settings.exchange.step_s:
        return round(settings.exchange.step_s * NS_PER_S)
    return max(FRAME_NS[settings.data.frame], source.base_frame_ns)


def fault_options(faults: FaultSettings) -> FaultOptions:
    """Return what goes wrong on purpose, as the embedded exchange wants it."""
    rates = ((fault, getattr(faults, fault.value)) for fault in Fault)
    return FaultOptions(
        seed=faults.seed,
        rules=tuple((fault, FaultRule(rate)) for fault, rate in rates if rate),
        latency_s=faults.latency_ms / 1e3,
        jitter_s=faults.jitter_ms / 1e3,
        clock_skew_ns=int(faults.clock_skew_ms * NS_PER_MS),
    )


def session_start_ns(settings: Settings, source: MarketSource) -> int:
    """Return the market's "now" when the embedded exchange starts.

    Simulated: ``exchange.simulated_end``. Replay: ``exchange.replay_end``, else so long before the end of the data that the
    paper session fits behind it.

    Raises
    ------
    UserError
        If ``exchange.replay_end`` lies outside the replayed data.
    """
    if source.is_simulated:
        return parse_utc(settings.exchange.simulated_end)
    frame_ns = step_ns(settings, source)
    wanted = settings.exchange.replay_end
    if wanted:
        now_ns = floor_ts(parse_utc(wanted), frame_ns)
        if not source.start_ns < now_ns <= source.end_ns:
            raise UserError(
                f"exchange.replay_end is {iso(now_ns)}, but the replayed data go from {iso(source.start_ns)} to "
                f"{iso(source.end_ns)}",
                "choose a time in between",
            )
        return now_ns
    end = floor_ts(source.end_ns, frame_ns)
    return max(end - (settings.live.paper_bars + 1) * frame_ns, source.start_ns + frame_ns)


def market_folder(settings: Settings) -> str:
    """Return the folder below ``store.root`` that holds everything learned from this market.

    Prices of two markets must never meet in one lake: OKX, its demo (other contract sizes), each simulated market and each
    replayed file have a folder of their own.
    """
    exchange = settings.exchange
    if exchange.mode == "embedded" and exchange.market == "okx_public":
        return "okx-public"
    if exchange.mode != "embedded":
        return "okx" if exchange.mode == "live" else "okx-demo"
    if exchange.market == "simulated" or exchange.replay_path is None:
        spec = ("simulated_symbols", "simulated_days", "simulated_end", "signal_strength", "seed")
        return f"simulated-{key_of(*(getattr(exchange, name) for name in spec))[:8]}"
    files = (exchange.replay_path, exchange.replay_funding, exchange.replay_mark, exchange.replay_market_caps)
    names = [str(f.resolve()) if f else None for f in files]
    return f"replay-{exchange.replay_path.stem}-{key_of(names, exchange.replay_end)[:8]}"

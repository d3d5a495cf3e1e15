"""A session on the embedded exchange, through the real client, that dies at the n-th step it takes outside itself.

A *point* lies before and after every request to the exchange, at the beginning and before the commit of every transaction of
the ledger: whatever is on the way then, the exchange or the ledger has it or has it not. A life runs from a start (or restart)
to its point; the exchange lives on. After every finished cycle of any life the books are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus
from crypto_qlib.exchange.embedded.order_parsing import ANONYMOUS
from crypto_qlib.exchange.embedded.paper_book import AlgoOrder
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.paper_view import PaperView
from crypto_qlib.live_trading.risk_control import RiskLimits
from crypto_qlib.live_trading.runner import PaperResult, SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.ledger import Ledger, SessionRow, sqlite_engine
from crypto_qlib.venue.snapshot import PositionSnapshot
from crypto_qlib.venue.venue_config import VenueConfig
from tests.live_trading.test_parity import RULES, START_NS, WARM_UP, Tape, score

FIRST = START_NS + WARM_UP * NS_PER_HOUR
SESSION = "crash"


class KilledError(BaseException):
    """The process dies here."""


@dataclass
class Switch:
    """Counts points and dies at one of them.

    Parameters
    ----------
    fatal : int
        Number of the fatal point, from 1; 0 = live on.
    after : str
        Points are counted from the first one of this name on; empty = from the start.
    """

    fatal: int = 0
    after: str = ""
    passed: int = 0
    died_at: Counter[str] = field(default_factory=Counter)

    def point(self, name: str) -> None:
        """Pass a point, or die."""
        if self.after and not self.passed and name != self.after:
            return
        self.passed += 1
        if self.passed == self.fatal:
            self.died_at[name] += 1
            self.die()

    def die(self) -> None:
        """End this life."""
        raise KilledError

    def next_life(self, fatal: int, after: str = "") -> None:
        """Count anew."""
        self.passed, self.fatal, self.after = 0, fatal, after


class Line:
    """The client's connection to the exchange with a point before and after every request."""

    def __init__(self, session: Any, switch: Switch) -> None:
        self._session, self._switch = session, switch

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._session, name)
        if name not in ("public", "private", "change", "send"):
            return real

        async def asked(first: Any, endpoint: str, body: Any) -> Any:
            self._switch.point(f"before {endpoint}")
            answer = await real(first, endpoint, body)
            self._switch.point(f"after {endpoint}")
            return answer

        return asked


@dataclass(frozen=True)
class Way:
    """How a session reaches the exchange and its ledger.

    Parameters
    ----------
    gateway : OkxGateway
        The client.
    step : async callable
        Moves the market one hour on; returns its time.
    path : Path
        The ledger.
    """

    tape: Tape
    gateway: OkxGateway
    step: Callable[[], Awaitable[int]]
    path: Path
    switch: Switch
    limits: RiskLimits = field(default_factory=RiskLimits)
    prepare: Callable[[sa.Engine], None] = lambda _engine: None


async def live(way: Way, now_ns: int, n_bars: int, show: Callable[[PaperView], None] = lambda _view: None) -> PaperResult:
    """Start (or start again) at the market's time and live through ``n_bars`` bars, or die on the way."""
    engine = sqlite_engine(way.path)
    way.prepare(engine)
    sa.event.listen(engine, "begin", lambda _db: way.switch.point("begin"))
    sa.event.listen(engine, "commit", lambda _db: way.switch.point("commit"))
    try:
        ledger = Ledger(engine, SessionRow(SESSION, FIRST, "embedded", {}))
        feed = MarketFeed(way.gateway, way.tape.panel.known_until(now_ns), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        signals = SignalProcessor(feed, score, RULES, Contracts(way.tape.items, way.tape.tables))
        config = SessionConfig(SESSION, RULES, way.limits)
        parts = SessionParts(way.gateway, signals, ledger, config, ManualClock(now_ns))
        return await run_session(parts, SteppedBars(way.step, now_ns), now_ns, n_bars, show)
    finally:
        engine.dispose()


@dataclass
class Rig:
    """An exchange that lives on whatever dies, and the way to it.

    Parameters
    ----------
    cycles : int
        Cycles that were finished, over all lives.
    """

    exchange: EmbeddedExchange
    way: Way
    cycles: int = 0
    finished: Callable[[PaperView], None] | None = None
    before_step: Callable[[int], Awaitable[None]] | None = None
    prepare: Callable[[sa.Engine], None] = lambda _engine: None

    @property
    def now_ns(self) -> int:
        """Return the market's time."""
        return self.exchange.clock.market_ns

    @property
    def account_id(self) -> str:
        """Return the one account."""
        (account_id,) = self.exchange.venue.exchange.account_ids()
        return account_id

    async def live(self, n_bars: int, fatal: int = 0, after: str = "") -> PaperResult | None:
        """Live through ``n_bars`` bars; ``None`` where the session died on the way."""
        self.way.switch.next_life(fatal, after)
        try:
            way = replace(self.way, step=self._step, prepare=self.prepare)
            return await live(way, self.now_ns, n_bars, self._finished)
        except KilledError:
            return None

    def _finished(self, view: PaperView) -> None:
        """Look at the books when a cycle is over; orders still under way are exempt until they are final."""
        self.cycles += 1
        if self.finished is not None:
            self.finished(view)
        else:
            self.check(frozenset(view.pending))

    async def _step(self) -> int:
        if self.before_step is not None:
            await self.before_step(self.now_ns)
        return await self.exchange.step()

    def held(self) -> dict[str, PositionSnapshot]:
        """Return the open positions by symbol."""
        return {p.position.symbol: p for p in self.exchange.venue.exchange.snapshot(self.account_id).positions}

    def unprotected(self) -> set[str]:
        """Return the symbols of positions without a live stop."""
        algos = [a for a in self.exchange._keeper.desk.book.algos(self.account_id) if a.state == "live"]
        return {s for s, p in self.held().items() if not any(_protects(a, s, p.position.lots) for a in algos)}

    def pending(self) -> tuple[str, ...]:
        """Return the symbols whose order the ledger does not know to be final."""
        ledger = Ledger(sqlite_engine(self.way.path), SessionRow(SESSION, FIRST, "embedded", {}))
        try:
            return tuple(intent.symbol for intent in ledger.unresolved())
        finally:
            ledger.close()

    def check(self, pending: frozenset[str] = frozenset()) -> None:
        """Check what must hold after every cycle; looks at the exchange itself, not through its API."""
        venue = self.exchange.venue.exchange
        assert len(self.held().keys() | pending) <= RULES.max_open
        assert self.unprotected() == set(), "without a stop"
        fills = venue.fills(self.account_id)
        assert_no_decision_twice(fills, [(o.request.client_order_id, o.status) for o in venue.orders(self.account_id)])
        ledger = Ledger(sqlite_engine(self.way.path), SessionRow(SESSION, FIRST, "embedded", {}))
        try:
            ours = Counter((f.ts_ns, f.symbol, f.signed_lots, _name(f)) for f in ledger.fills() if f.symbol not in pending)
            theirs = Counter((f.ts_ns, f.symbol, f.signed_lots, _name(f)) for f in fills if f.symbol not in pending)
            assert ours == theirs, (ours - theirs, theirs - ours)
            intended = {i.client_order_id for i in ledger.intents()}
            sent = {o.request.client_order_id for o in venue.orders(self.account_id)} - {""}
            sent = {coid for coid in sent if not coid.startswith(ANONYMOUS)}
            assert sent <= intended, "sent without being written first"
            for order in venue.orders(self.account_id):
                row = ledger.order(order.request.client_order_id)
                if row is not None and row.status.is_final and order.status.is_final:
                    assert row.status is order.status, (row, order.status)
        finally:
            ledger.close()


def _name(fill: Fill) -> str:
    """Return the client's id; what the exchange calls its own orders stays with it."""
    return "" if fill.client_order_id.startswith(ANONYMOUS) else fill.client_order_id


def _protects(algo: AlgoOrder, symbol: str, lots: int) -> bool:
    if algo.key[0] != symbol or algo.closes_long is not (lots > 0):
        return False
    if algo.trigger is None:
        return algo.protection.stop_price is not None
    asked = algo.trigger.request
    return asked.lots in (0, abs(lots)) and any(leg.exit_kind is ExitKind.STOP for leg in asked.legs)


def assert_no_decision_twice(fills: Any, orders: list[tuple[str, OrderStatus]]) -> None:
    """One decision has one id; no id may be filled by two orders."""
    done = Counter(coid for coid, status in orders if coid and status is OrderStatus.FILLED)
    assert max(done.values(), default=1) == 1, [coid for coid, n in done.items() if n > 1]
    opened: Counter[tuple[int, str]] = Counter()
    held: Counter[str] = Counter()
    for fill in fills:
        if held[fill.symbol] == 0:
            opened[fill.ts_ns, fill.symbol] += 1
        held[fill.symbol] += fill.signed_lots
    assert max(opened.values(), default=1) == 1, "opened twice at one instant"


@asynccontextmanager
async def rig(path: Path, n_bars: int, seed: int = 1, **options: Any) -> AsyncIterator[Rig]:
    """Serve a fresh exchange on a seeded market and yield what a session needs to live on it."""
    tape, switch = Tape(seed, n_bars), Switch()
    async with EmbeddedExchange(tape, exchange_options(**options)) as exchange:
        gateway = OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url)
        async with gateway:
            await gateway.account()  # clients are made on first use: that is no part of any life
            gateway._session = Line(gateway._session, switch)  # type: ignore[assignment]
            yield Rig(exchange, Way(tape, gateway, exchange.step, path, switch))


def exchange_options(**options: Any) -> EmbeddedOptions:
    """Return how the exchange of a rig runs."""
    return EmbeddedOptions(
        start_ns=FIRST, fees=FeeSchedule(0.0002, 0.0005), venue=VenueConfig(RULES.impact_y, RULES.half_spread_bps, 0.05),
        funding_retention_days=None, **options,
    )  # fmt: skip

"""What a running session is made of, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.clock import Clock
from crypto_qlib.core.order import Fill
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.controls import Controls
from crypto_qlib.live_trading.live_feed import LiveFeed
from crypto_qlib.live_trading.paper_view import PaperView
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.live_trading.session_state import SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.live_trading.system_watch import SystemLimits
from crypto_qlib.live_trading.trade_executor_okx import Sleep
from crypto_qlib.live_trading.universe_watch import UniverseWatch
from crypto_qlib.store.ledger import EquityRow, Ledger
from crypto_qlib.store.live_events import Tell, tell_nobody

Show = Callable[[PaperView], None]


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a session runs on.

    Parameters
    ----------
    gateway : Gateway
        The exchange account.
    signals : SignalProcessor
        Turns closed bars into views.
    ledger : Ledger
        Opened for this session.
    config : SessionConfig
        Rules, limits and names.
    clock : Clock
        Stamps events: the wall clock, or a :class:`ManualClock` that is moved to each close of a stepped market.
    sleep : callable
        ``asyncio.sleep``, or a fake.
    controls : Controls, optional
        What people ask of the running session.
    dead_man_s : int
        Seconds after which the exchange cancels resting orders of a session that hangs or died; 0 = never.
    tell : callable
        Told everything a person may want to know; it neither waits nor raises.
    system : SystemLimits
        Bounds of the way to the exchange.
    check_every_s : float
        Real seconds between two looks at account, orders and stops while a bar is waited for; 0 = only with bars.
    heard : LiveFeed, optional
        What the websockets push; listened to while the session runs.
    universe : UniverseWatch, optional
        Keeps the universe current; without it the session trades the coins it started with.
    """

    gateway: Gateway
    signals: SignalProcessor
    ledger: Ledger
    config: SessionConfig
    clock: Clock
    sleep: Sleep = asyncio.sleep
    controls: Controls | None = None
    dead_man_s: int = 0
    tell: Tell = tell_nobody
    system: SystemLimits = field(default_factory=SystemLimits)
    check_every_s: float = 0.0
    heard: LiveFeed | None = None
    universe: UniverseWatch | None = None


@dataclass(frozen=True, slots=True)
class CycleTimes:
    """Where the time of one cycle went, real seconds.

    Parameters
    ----------
    ts_ns : int
        The bar's close.
    orders : int
        Orders sent.
    sent_s : float
        From the close to the last order's answer; 0 without orders.
    total_s : float
        From the close to the end of the cycle.
    steps : dict
        Seconds by step.
    """

    ts_ns: int
    orders: int
    sent_s: float
    total_s: float
    steps: dict[str, float]


@dataclass(frozen=True, slots=True)
class PaperResult:
    """What came of a session.

    Parameters
    ----------
    session_id : str
        Where to find it in the ledger.
    start_ns, end_ns : int
        First and last decision.
    start_equity, final_equity : float
        USDT, marked at those moments.
    equity : tuple of EquityRow
        The account at each bar close.
    fills : tuple of Fill
        Every execution, oldest first.
    orders_sent : int
        Orders sent.
    mode : Mode
        Risk mode at the end.
    alerts : tuple of str
        Everything a person was told.
    decision_seconds : tuple of float
        Per bar, real time from the bar's close (the market was told to stand there) to the end of its cycle.
    last_view : PaperView | None
        What was shown last.
    stopped_by : str
        Who ended the session before its last bar; empty where nobody did.
    cycles : tuple of CycleTimes
        Where the time of each cycle went.
    """

    session_id: str
    start_ns: int
    end_ns: int
    start_equity: float
    final_equity: float
    equity: tuple[EquityRow, ...]
    fills: tuple[Fill, ...]
    orders_sent: int
    mode: Mode
    alerts: tuple[str, ...]
    decision_seconds: tuple[float, ...]
    last_view: PaperView | None
    stopped_by: str = ""
    cycles: tuple[CycleTimes, ...] = ()

    @property
    def fees(self) -> float:
        """Return the fees paid, USDT."""
        return sum(fill.fee for fill in self.fills)

    @property
    def max_open(self) -> int:
        """Return the most positions open at a decision."""
        return max((row.open_count for row in self.equity), default=0)


@dataclass(slots=True)
class SessionLog:
    """What is collected on the way."""

    bar: int = 0
    n_bars: int = 0
    market: ev.BarClosed | None = None
    decision_account: AccountState | None = None
    alerts: list[str] = field(default_factory=list)
    new_alerts: list[str] = field(default_factory=list)
    orders_sent: int = 0
    seconds: list[float] = field(default_factory=list)
    cycles: list[CycleTimes] = field(default_factory=list)
    view: PaperView | None = None

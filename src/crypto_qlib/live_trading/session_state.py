"""What the parts of a session share: its configuration, and what is under way now."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from crypto_qlib.core.order import ExitKind, MarginMode, TriggerSource
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.order_checks import Held, Quote
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import Mode, RiskLimits, RiskState
from crypto_qlib.live_trading.wallet import Wallet
from crypto_qlib.portfolio.plan import PlannedOrder
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.veto import Veto
from crypto_qlib.store.ledger import IntentRow

Instructions = list[ev.Instruction]


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a session needs to know and never changes.

    Parameters
    ----------
    session_id : str
        Names the account over restarts; part of every client order id.
    rules : Rules
        What every decision obeys; the same as in the backtest.
    limits : RiskLimits
        Limits of the running session.
    margin_mode : MarginMode
        Margin mode of all orders.
    trigger : TriggerSource
        Price that triggers stops and take-profits.
    max_lookups : int
        Look-ups of one order within a cycle.
    flatten : bool
        Close all of our positions with the last bar.
    adopt : bool
        Take over positions somebody else opened.
    """

    session_id: str
    rules: Rules
    limits: RiskLimits = field(default_factory=RiskLimits)
    margin_mode: MarginMode = MarginMode.ISOLATED
    trigger: TriggerSource = TriggerSource.LAST
    max_lookups: int = 4
    flatten: bool = False
    adopt: bool = False


@dataclass(slots=True)
class Cycle:
    """What is under way for one bar; for a look between bars, or positions a person asked to close, ``bar`` is ``None``.

    ``asks_fills`` while executions are read because an exit did not fill, ``knows_fills`` from then on.
    """

    ts_ns: int
    bar: ev.BarClosed | None = None
    closing: tuple[str, ...] = ()
    asked_ns: int = 0
    restoring: set[str] = field(default_factory=set)
    stop_tries: dict[str, int] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)
    exits: dict[str, str] = field(default_factory=dict)
    failed_exits: set[str] = field(default_factory=set)
    asks_fills: bool = False
    knows_fills: bool = False
    entries: deque[PlannedOrder] = field(default_factory=deque)
    entry: PlannedOrder | None = None
    entry_ids: set[str] = field(default_factory=set)
    parts: deque[ev.PlaceOrder] = field(default_factory=deque)
    quotes: dict[str, Quote] = field(default_factory=dict)
    held: Held | None = None
    looked_again: bool = False
    trail_tries: dict[str, int] = field(default_factory=dict)
    vetoes: tuple[Veto, ...] = ()
    sent: int = 0
    done: bool = False


@dataclass(slots=True)
class SessionState:
    """What a session remembers between two events; the parts of one session share one.

    Parameters
    ----------
    config : SessionConfig
        Rules, limits, names.
    tracker : PositionTracker
        Our positions as the ledger knows them.
    risk : RiskState
        Tripped limits, peak equity.
    open : dict
        Orders that may exist at the exchange, by client order id, in order of sending.
    decided_ns : int
        Close of the last bar that was decided.
    lookups : dict
        Look-ups of an order within the cycle.
    leverage : dict
        Leverage verified at the exchange, by symbol.
    told : frozenset
        Differences a person knows of already.
    cycle : Cycle | None
        What is under way.
    contracts : ContractsSeen | None
        Contract rules in force; ``None`` before they are known.
    wallet : Wallet
        What the balance must be.
    funding_is_known : bool
        Whether the last question for settlements was answered.
    adopting : set
        Symbols a person asked to adopt.
    cancelling : set
        Orders whose cancellation was asked for.
    limits : dict
        Limits of resting entries that are not those of their intents any more.
    """

    config: SessionConfig
    tracker: PositionTracker
    risk: RiskState
    open: dict[str, IntentRow]
    decided_ns: int
    lookups: dict[str, int] = field(default_factory=dict)
    leverage: dict[str, float] = field(default_factory=dict)
    told: frozenset[object] = frozenset()
    cycle: Cycle | None = None
    contracts: ev.ContractsSeen | None = None
    wallet: Wallet = field(default_factory=Wallet)
    funding_is_known: bool = False
    adopting: set[str] = field(default_factory=set)
    cancelling: set[str] = field(default_factory=set)
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def watches_balance(self) -> bool:
        """Return whether the balance is compared with the ledger."""
        return math.isfinite(self.config.limits.balance_tolerance)

    def adopts(self, symbol: str) -> bool:
        """Return whether a foreign position in ``symbol`` is to be taken over."""
        return self.config.adopt or symbol in self.adopting

    def base_per_lot(self) -> dict[str, float]:
        """Return base coins per lot by symbol, as far as known."""
        if self.contracts is None:
            return {}
        return dict(zip(self.contracts.symbols, self.contracts.contracts.base_per_lot.tolist(), strict=True))

    def max_lots(self, symbol: str) -> float:
        """Return the largest market order of ``symbol`` in lots; infinite where unknown."""
        known = self.contracts
        if known is None or symbol not in known.symbols:
            return math.inf
        return float(known.contracts.max_lots[known.symbols.index(symbol)])

    @property
    def pending(self) -> tuple[str, ...]:
        """Return the symbols with an order that is not final, in order of sending."""
        return tuple(dict.fromkeys(intent.symbol for intent in self.open.values()))

    def allows(self, intent: IntentRow) -> bool:
        """Return whether the order may be sent in the mode in force *now*; what a person asked to close always may."""
        if intent.is_entry:
            return self.risk.mode is Mode.ACTIVE
        return self.risk.mode is not Mode.HALTED or intent.exit_kind is ExitKind.MANUAL

    def save_risk(self) -> ev.SaveRisk:
        """Return the instruction that keeps the risk state over restarts."""
        risk = self.risk
        return ev.SaveRisk(dict(risk.voices), risk.peak_equity, risk.day, risk.day_start_equity)


def or_none(value: float) -> float | None:
    """Return ``value``, or ``None`` where it is NaN or infinite."""
    return value if math.isfinite(value) else None

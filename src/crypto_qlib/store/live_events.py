"""What happens in a session that a person may want to know: one small value, told as it happens to whoever listens.

The session machine says it with :class:`~crypto_qlib.live_trading.events.Alert`, the shell around it with
:class:`LiveEvent`; both arrive at the one listener a session was given (``SessionParts.tell``), which writes it down and must
neither wait nor raise: trading goes on while a message is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """How loudly to tell a person."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class EventKind(StrEnum):
    """What happened."""

    STARTED = "started"
    STOPPED = "stopped"
    TRADE = "trade"
    """A position was opened or added to."""
    EXIT = "exit"
    """A position, or a part of it, was closed by an order of ours or of somebody else."""
    STOP_HIT = "stop_hit"
    TAKE_PROFIT_HIT = "take_profit_hit"
    LIQUIDATION = "liquidation"
    """The exchange liquidated, deleveraged or delisted."""
    FUNDING = "funding"
    MARGIN_HIGH = "margin_high"
    NEAR_LIQUIDATION = "near_liquidation"
    API_LOST = "api_lost"
    API_BACK = "api_back"
    MODE = "mode"
    """The mode in force changed, or somebody asked for one."""
    DAILY_LOSS = "daily_loss"
    DRAWDOWN = "drawdown"
    LIMIT = "limit"
    """Another limit tripped: data age, errors, latency, clock, exposure."""
    UNPROTECTED = "unprotected"
    """An open position without (all of) its stop."""
    DRIFT = "drift"
    """The exchange and the ledger differ."""
    FOREIGN = "foreign"
    """A position or an order that is not ours."""
    ORDER = "order"
    """An order was refused, dropped, cancelled, or is unresolved."""
    UNIVERSE = "universe"
    """Coins joined or left the universe, or it could not be looked at."""
    CYCLE = "cycle"
    """A decision was skipped or late."""
    SUMMARY = "summary"
    """The day in a few lines."""
    GAP = "gap"
    """Live and its own backtest differ by more than the bound."""


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """One thing that happened.

    Parameters
    ----------
    ts_ns : int
        When it was learned.
    kind : EventKind
        What it is.
    severity : Severity
        How loudly to tell.
    text : str
        One line for a person.
    symbol : str
        Of which symbol; empty for the account.
    facts : mapping
        Figures behind the text, JSON-able, for machines.
    """

    ts_ns: int
    kind: EventKind
    severity: Severity
    text: str
    symbol: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


Tell = Callable[[LiveEvent], None]


def tell_nobody(_event: LiveEvent) -> None:
    """Listen without writing anything down."""

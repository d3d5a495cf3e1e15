"""What the session machine is told, and what it asks for: plain frozen values, so a journal of them replays a session.

The machine knows no clock and no network. An *event* is a fact with the instant it was learned at; an *instruction* is a
wish that the runner carries out, answering with further events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.order import Fill, MarginMode, OrderRequest, OrderStatus, Protection
from crypto_qlib.core.signal import Scores
from crypto_qlib.exchange.gateway import Transfer
from crypto_qlib.live_trading.order_checks import Quote
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.portfolio.market_state import ContractTable, MarketState
from crypto_qlib.portfolio.plan import Plan
from crypto_qlib.portfolio.veto import Veto
from crypto_qlib.store.ledger import FundingRow, IntentRow
from crypto_qlib.store.live_events import EventKind, Severity


class Purpose(StrEnum):
    """Why the account is read."""

    START = "start"
    DECIDE = "decide"
    VERIFY = "verify"
    CLOSE = "close"
    CHECK = "check"


@dataclass(frozen=True, slots=True)
class Freshness:
    """How complete the market view of one bar is.

    Parameters
    ----------
    expected, fresh : int
        Symbols that should have a bar, and those that do.
    missing : tuple of str
        Symbols without one.
    """

    expected: int
    fresh: int
    missing: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Return ``fresh / expected``; 0.0 where nothing is expected."""
        return self.fresh / self.expected if self.expected else 0.0


@dataclass(frozen=True, slots=True)
class Started:
    """The session starts, or starts again after a stop or a crash."""

    ts_ns: int


@dataclass(frozen=True, slots=True)
class BarClosed:
    """A bar closed and the market view of it is ready.

    Parameters
    ----------
    ts_ns : int
        Close of the bar: ``as_of`` of scores and market.
    scores : Scores
        The champion's scores; all NaN where there is no model view.
    market : MarketState
        What a decision may know.
    freshness : Freshness
        How complete the view is.
    is_last : bool
        The session ends with this bar: no new risk is taken, and positions are closed if ``flatten`` is set.
    """

    ts_ns: int
    scores: Scores
    market: MarketState
    freshness: Freshness
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class AccountRead:
    """Balance and positions as the exchange shows them."""

    ts_ns: int
    account: AccountState
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class FillsRead:
    """Executions not seen before, oldest first."""

    ts_ns: int
    fills: tuple[Fill, ...]


@dataclass(frozen=True, slots=True)
class FundingRead:
    """Settlements the exchange booked, not seen before, oldest first; ``is_known`` says whether it answered at all."""

    ts_ns: int
    settlements: tuple[FundingRow, ...]
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class TransfersRead:
    """Money paid into the account or out of it."""

    ts_ns: int
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, slots=True)
class ContractsSeen:
    """Contract rules in force from now on; said at the start and when one changes."""

    ts_ns: int
    symbols: tuple[str, ...]
    contracts: ContractTable


@dataclass(frozen=True, slots=True)
class CheckDue:
    """Time to look at account, orders and stops between two bars."""

    ts_ns: int


@dataclass(frozen=True, slots=True)
class BookRead:
    """The book of a symbol before an entry is sent; ``None`` where it could not be read."""

    ts_ns: int
    symbol: str
    quote: Quote | None


@dataclass(frozen=True, slots=True)
class CancelAnswered:
    """A cancel was sent; what became of the order, only a look-up says."""

    ts_ns: int
    client_order_id: str


@dataclass(frozen=True, slots=True)
class PositionAdopted:
    """The ledger holds the position as ours now."""

    ts_ns: int
    fill: Fill


@dataclass(frozen=True, slots=True)
class Amended:
    """Another limit was asked for; ``is_known`` says whether the exchange answered."""

    ts_ns: int
    client_order_id: str
    price: float
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class AdoptAsked:
    """A person asks to take over a position somebody else opened; an empty symbol: all of them."""

    ts_ns: int
    symbol: str = ""


@dataclass(frozen=True, slots=True)
class LeverageSet:
    """The exchange confirmed the leverage of a symbol."""

    ts_ns: int
    symbol: str
    leverage: float


@dataclass(frozen=True, slots=True)
class LeverageRefused:
    """The leverage could not be set: no order of the symbol may follow."""

    ts_ns: int
    symbol: str
    reason: str


@dataclass(frozen=True, slots=True)
class OrderReported:
    """The exchange says how an order stands."""

    ts_ns: int
    client_order_id: str
    status: OrderStatus
    filled_lots: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class OrderUnknown:
    """An order was sent and nobody knows whether it arrived; or a look-up got no answer."""

    ts_ns: int
    client_order_id: str


@dataclass(frozen=True, slots=True)
class OrderNotFound:
    """The exchange does not know the id."""

    ts_ns: int
    client_order_id: str


@dataclass(frozen=True, slots=True)
class ModeVoiced:
    """Somebody (an operator, a failing database, a gateway) asks for a mode under a name."""

    ts_ns: int
    voice: str
    mode: Mode
    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """A person takes back what waits for a person; ``forgives_drawdown``: a tripped drawdown too, the peak starts anew."""

    ts_ns: int
    reason: str
    forgives_drawdown: bool = False


@dataclass(frozen=True, slots=True)
class CloseAsked:
    """A person asks to close positions of ours, in whatever mode.

    Parameters
    ----------
    asked_ns : int
        When it was asked; part of the orders' ids, so that asking once closes once.
    symbols : tuple of str
        Which; empty for all.
    """

    ts_ns: int
    asked_ns: int
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StopSent:
    """A stop that stands alone was sent; whether it stands, only the next look at the account says."""

    ts_ns: int
    symbol: str


@dataclass(frozen=True, slots=True)
class StopRefused:
    """The exchange will not take the stop, e.g. because the market is already beyond it."""

    ts_ns: int
    symbol: str
    reason: str


Event = (
    Started
    | BarClosed
    | AccountRead
    | FillsRead
    | FundingRead
    | TransfersRead
    | ContractsSeen
    | CheckDue
    | BookRead
    | CancelAnswered
    | Amended
    | AdoptAsked
    | PositionAdopted
    | LeverageSet
    | LeverageRefused
    | OrderReported
    | OrderUnknown
    | OrderNotFound
    | ModeVoiced
    | Resumed
    | CloseAsked
    | StopSent
    | StopRefused
)


@dataclass(frozen=True, slots=True)
class ReadAccount:
    """Read balance and positions; answer with :class:`AccountRead` of the same purpose."""

    purpose: Purpose


@dataclass(frozen=True, slots=True)
class ReadFills:
    """Read executions since ``since_ns`` (inclusive); answer with :class:`FillsRead`."""

    since_ns: int


@dataclass(frozen=True, slots=True)
class ReadFunding:
    """Read settlements since the last one known; answer with :class:`FundingRead`."""


@dataclass(frozen=True, slots=True)
class ReadTransfers:
    """Read money paid in or out since ``since_ns``; answer with :class:`TransfersRead`."""

    since_ns: int


@dataclass(frozen=True, slots=True)
class ReadBook:
    """Read the order book of a symbol, in lots of ``base_per_lot`` coins; answer with :class:`BookRead`."""

    symbol: str
    base_per_lot: float


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Ask for the cancellation of an order of ours."""

    symbol: str
    client_order_id: str


@dataclass(frozen=True, slots=True)
class AmendOrder:
    """Ask for another limit of an entry that rests."""

    symbol: str
    client_order_id: str
    price: float


@dataclass(frozen=True, slots=True)
class AdoptPosition:
    """Write an intent and an execution for a position somebody else opened; nothing is sent."""

    intent: IntentRow
    fill: Fill


@dataclass(frozen=True, slots=True)
class SaveWallet:
    """Keep what the balance must be, so that a restart compares it too."""

    wallet: dict[str, object]


@dataclass(frozen=True, slots=True)
class SetLeverage:
    """Set and verify the leverage of a symbol."""

    symbol: str
    leverage: float
    margin_mode: MarginMode


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """Write the intent, then send the order."""

    intent: IntentRow
    request: OrderRequest


@dataclass(frozen=True, slots=True)
class LookUpOrder:
    """Ask for an order by its client order id; ``attempt`` counts from 1 and spaces the tries out."""

    symbol: str
    client_order_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RestoreStop:
    """Place the stop of an open position as an order that stands alone, over ``lots`` (signed).

    ``replaces``: first cancel the trailing stops there are; the fixed stop stands meanwhile.
    """

    symbol: str
    lots: int
    protection: Protection
    margin_mode: MarginMode
    client_id: str
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class SaveDecided:
    """Keep that the bar closed at ``ts_ns`` was decided, and what: a restart must not decide it a second time."""

    ts_ns: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class GiveUpOrder:
    """Write into the ledger that an order never reached the exchange."""

    client_order_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alert:
    """Tell a person.

    Parameters
    ----------
    severity : Severity
        How loudly.
    text : str
        One line.
    kind : EventKind
        What happened.
    symbol : str
        Of which symbol; empty for the account.
    facts : dict
        Figures behind the text, JSON-able.
    """

    severity: Severity
    text: str
    kind: EventKind = EventKind.ORDER
    symbol: str = ""
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SaveRisk:
    """Keep the risk state, so that a restart does not reset a tripped limit."""

    voices: dict[str, tuple[Mode, str]]
    peak_equity: float
    day: int
    day_start_equity: float


@dataclass(frozen=True, slots=True)
class CycleDone:
    """Nothing is left to do for this bar.

    Parameters
    ----------
    ts_ns : int
        ``as_of`` of the cycle.
    account : AccountState
        Account after the orders.
    mode : Mode
        Mode in force.
    vetoes : tuple of Veto
        Refusals of the decision.
    orders_sent : int
        Orders of this cycle.
    """

    ts_ns: int
    account: AccountState
    mode: Mode
    vetoes: tuple[Veto, ...]
    orders_sent: int


Instruction = (
    ReadAccount
    | ReadFills
    | ReadFunding
    | ReadTransfers
    | ReadBook
    | CancelOrder
    | AmendOrder
    | AdoptPosition
    | SaveWallet
    | SetLeverage
    | PlaceOrder
    | LookUpOrder
    | RestoreStop
    | GiveUpOrder
    | Alert
    | SaveRisk
    | SaveDecided
    | CycleDone
)

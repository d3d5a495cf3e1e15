"""What the exchange tells its clients: refusals, orders, bills and events. All are immutable values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from crypto_qlib.core.order import (
    ExitKind,
    Fill,
    MarginMode,
    OrderKind,
    OrderRequest,
    OrderStatus,
    PositionKey,
    PositionSide,
    Protection,
    Side,
)
from crypto_qlib.venue.refusals import Refusal, RefusalCode
from crypto_qlib.venue.trigger_records import TriggerUpdated

__all__ = [
    "Ambiguous",
    "Bill",
    "BillKind",
    "ClosedPosition",
    "Filled",
    "FundingPaid",
    "Liquidated",
    "OrderUpdated",
    "ProtectionSet",
    "Refusal",
    "RefusalCode",
    "TriggerUpdated",
    "VenueEvent",
    "VenueOrder",
]


@dataclass(frozen=True, slots=True)
class VenueOrder:
    """One order as the exchange knows it.

    Parameters
    ----------
    order_id : int
        The exchange's id, unique in the exchange.
    account_id : str
        Owner.
    request : OrderRequest
        What was asked (``lots`` and ``price`` as last amended, reduce-only size as cut down).
    status : OrderStatus
        ``LIVE``, ``PARTIALLY_FILLED``, ``FILLED``, ``CANCELED`` or ``REJECTED``.
    filled_lots : int
        Lots filled so far.
    average_price : float
        Mean fill price; NaN before the first fill.
    fee, pnl : float
        Fee paid and price PnL realised by its fills so far, USDT.
    created_ns, updated_ns : int
        Instants of arrival and last change.
    refusal : Refusal | None
        Why it was rejected, or why its rest was cancelled.
    exit_kind : ExitKind | None
        The client's reason, carried over to its closing fills.
    """

    order_id: int
    account_id: str
    request: OrderRequest
    status: OrderStatus
    filled_lots: int = 0
    average_price: float = math.nan
    fee: float = 0.0
    pnl: float = 0.0
    created_ns: int = 0
    updated_ns: int = 0
    refusal: Refusal | None = None
    exit_kind: ExitKind | None = None

    @property
    def client_order_id(self) -> str:
        """Return the client's id."""
        return self.request.client_order_id

    @property
    def symbol(self) -> str:
        """Return the compact symbol."""
        return self.request.symbol

    @property
    def side(self) -> Side:
        """Return buy or sell."""
        return self.request.side

    @property
    def kind(self) -> OrderKind:
        """Return the execution kind."""
        return self.request.kind

    @property
    def margin_mode(self) -> MarginMode:
        """Return isolated or cross."""
        return self.request.margin_mode

    @property
    def key(self) -> PositionKey:
        """Return the position it belongs to."""
        return self.request.key

    @property
    def lots(self) -> int:
        """Return the ordered size in lots."""
        return self.request.lots

    @property
    def remaining_lots(self) -> int:
        """Return the lots not filled yet."""
        return self.request.lots - self.filled_lots


class BillKind(StrEnum):
    """What moved money."""

    TRANSFER = "transfer"
    MARGIN = "margin"
    TRADE = "trade"
    FUNDING = "funding"
    LIQUIDATION = "liquidation"
    DELISTING = "delisting"
    ADL = "adl"


@dataclass(frozen=True, slots=True)
class Bill:
    """One movement of cash and/or isolated margin.

    Summed over an account, ``cash_change`` gives its cash and ``margin_change`` its isolated margin; together they equal
    ``pnl - fee + funding - penalty + overshoot`` plus deposits.

    Parameters
    ----------
    bill_id : int
        Running number in the account, from 1.
    ts_ns : int
        Instant.
    kind : BillKind
        Cause.
    cash_change, margin_change : float
        USDT into cash and into the position's isolated margin.
    cash_balance : float
        Cash after it, USDT.
    symbol : str
        Compact symbol; empty for transfers of the account.
    margin_mode : MarginMode | None
        Mode of the position; ``None`` for transfers of the account.
    position_side : PositionSide
        Side of the position.
    pnl, fee, funding, penalty, overshoot : float
        Its parts, USDT: ``fee`` and ``penalty`` paid, ``funding`` received, ``overshoot`` borne by the insurance fund.
    signed_lots : int
        Lots bought (+) or sold (-); for funding the position's size.
    price : float
        Fill price, or mark of a settlement or liquidation; NaN where there is none.
    client_order_id : str
        Order behind it; empty where there is none.
    """

    bill_id: int
    ts_ns: int
    kind: BillKind
    cash_change: float
    margin_change: float
    cash_balance: float
    symbol: str = ""
    margin_mode: MarginMode | None = None
    position_side: PositionSide = PositionSide.NET
    pnl: float = 0.0
    fee: float = 0.0
    funding: float = 0.0
    penalty: float = 0.0
    overshoot: float = 0.0
    signed_lots: int = 0
    price: float = math.nan
    client_order_id: str = ""


@dataclass(frozen=True, slots=True)
class ClosedPosition:
    """One finished position (OKX ``positions-history``): amounts in USDT, prices in quote units.

    Parameters
    ----------
    lots : int
        Largest signed size it had.
    open_average, close_average : float
        Average entry before the last closing fill, and mean price of all closing fills.
    pnl, fee, funding, penalty : float
        ``fee`` and ``penalty`` are paid, ``funding`` received.
    exit_kind : ExitKind
        Why its last part was closed.
    """

    symbol: str
    margin_mode: MarginMode
    leverage: float
    lots: int
    open_average: float
    close_average: float
    pnl: float
    fee: float
    funding: float
    penalty: float
    opened_ns: int
    closed_ns: int
    exit_kind: ExitKind
    position_side: PositionSide = PositionSide.NET


@dataclass(frozen=True, slots=True)
class OrderUpdated:
    """An order was accepted, changed, filled in part or whole, cancelled or rejected."""

    ts_ns: int
    account_id: str
    order: VenueOrder


@dataclass(frozen=True, slots=True)
class Filled:
    """A fill happened; ``pnl`` is the price PnL it realised, USDT."""

    ts_ns: int
    account_id: str
    fill: Fill
    margin_mode: MarginMode
    pnl: float
    position_side: PositionSide = PositionSide.NET


@dataclass(frozen=True, slots=True)
class FundingPaid:
    """A settlement moved ``amount`` USDT to (+) or from (-) a position; ``capped`` where it was cut to keep the ratio at 1."""

    ts_ns: int
    account_id: str
    symbol: str
    margin_mode: MarginMode
    position_side: PositionSide
    amount: float
    rate: float
    mark: float
    capped: bool


@dataclass(frozen=True, slots=True)
class Liquidated:
    """A position, or ``signed_lots`` of it, was taken over at ``mark``; amounts as in :class:`Bill`."""

    ts_ns: int
    account_id: str
    symbol: str
    margin_mode: MarginMode
    position_side: PositionSide
    signed_lots: int
    mark: float
    pnl: float
    fee: float
    penalty: float
    overshoot: float
    partial: bool


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The order of events inside a bar could not be known: the conservative outcome was booked, the kindest is told.

    Codes are those of ``venue.matching``; prices are before slippage, NaN without an exit.
    """

    ts_ns: int
    account_id: str
    symbol: str
    code: int
    price: float
    kindest_code: int
    kindest_price: float


@dataclass(frozen=True, slots=True)
class ProtectionSet:
    """The stop-loss / take-profit of a position was set, changed or removed (``None``)."""

    ts_ns: int
    account_id: str
    symbol: str
    margin_mode: MarginMode
    position_side: PositionSide
    protection: Protection | None


VenueEvent = OrderUpdated | Filled | FundingPaid | Liquidated | Ambiguous | ProtectionSet | TriggerUpdated

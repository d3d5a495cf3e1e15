"""Orders: kinds, requests, the life-cycle as one table, and fills.

Intent, order and fill are three things: an intent is what was decided, an order is what the exchange knows (or may
know), a fill is what happened. Life-cycle changes go through :func:`next_status` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final


class Side(Enum):
    """Direction of an order at the wire; inside, sizes are signed."""

    BUY = 1
    SELL = -1

    @property
    def sign(self) -> float:
        """Return +1.0 for a buy, -1.0 for a sell."""
        return float(self.value)

    @property
    def opposite(self) -> Side:
        """Return the other side."""
        return Side.SELL if self is Side.BUY else Side.BUY

    @staticmethod
    def of(signed_size: float) -> Side:
        """Return the side that opens a position of ``signed_size``."""
        return Side.BUY if signed_size > 0 else Side.SELL


class MarginMode(StrEnum):
    """Margin mode of a position (OKX ``mgnMode`` / ``tdMode``)."""

    ISOLATED = "isolated"
    CROSS = "cross"


class PositionSide(StrEnum):
    """Which position of an instrument (OKX ``posSide``): the only one in net mode, one of two in long/short mode."""

    NET = "net"
    LONG = "long"
    SHORT = "short"

    @property
    def sign(self) -> float:
        """Return +1.0 for long, -1.0 for short, 0.0 for net."""
        return {"net": 0.0, "long": 1.0, "short": -1.0}[self.value]


PositionKey = tuple[str, MarginMode, PositionSide]
"""What tells one position of an account from another."""


class OrderKind(StrEnum):
    """How an order executes (OKX ``ordType``)."""

    MARKET = "market"
    LIMIT = "limit"
    POST_ONLY = "post_only"
    IOC = "ioc"
    FOK = "fok"


class TriggerSource(StrEnum):
    """Which price triggers a stop or take-profit."""

    LAST = "last"
    MARK = "mark"
    INDEX = "index"


class ExitKind(StrEnum):
    """Why a position, or a part of it, was closed."""

    STOP = "stop"
    TAKE_PROFIT = "take_profit"
    TRAILING = "trailing"
    TIME = "time"
    SIGNAL = "signal"
    REPLACED = "replaced"
    LIQUIDATION = "liquidation"
    PARTIAL_LIQUIDATION = "partial_liquidation"
    DELISTED = "delisted"
    RISK = "risk"
    MANUAL = "manual"
    ADL = "adl"


class OrderStatus(StrEnum):
    """Where an order is in its life."""

    INTENT = "intent"
    SENT = "sent"
    LIVE = "live"
    PARTIALLY_FILLED = "partially_filled"
    CANCEL_PENDING = "cancel_pending"
    FILLED = "filled"
    CANCELED = "canceled"
    REJECTED = "rejected"

    @property
    def is_final(self) -> bool:
        """Return whether nothing more can happen to the order."""
        return not TRANSITIONS[self]


_S = OrderStatus
TRANSITIONS: Final[dict[OrderStatus, frozenset[OrderStatus]]] = {
    _S.INTENT: frozenset({_S.SENT, _S.REJECTED}),
    # No answer is not a refusal: SENT stays until the order is found, or known never to have arrived (REJECTED).
    _S.SENT: frozenset({_S.LIVE, _S.PARTIALLY_FILLED, _S.FILLED, _S.CANCELED, _S.REJECTED}),
    _S.LIVE: frozenset({_S.PARTIALLY_FILLED, _S.FILLED, _S.CANCEL_PENDING, _S.CANCELED}),
    _S.PARTIALLY_FILLED: frozenset({_S.PARTIALLY_FILLED, _S.FILLED, _S.CANCEL_PENDING, _S.CANCELED}),
    # A fill can win the race against a cancel, or a refused cancel leaves the order live.
    _S.CANCEL_PENDING: frozenset({_S.LIVE, _S.PARTIALLY_FILLED, _S.FILLED, _S.CANCELED}),
    _S.FILLED: frozenset(),
    _S.CANCELED: frozenset(),
    _S.REJECTED: frozenset(),
}
"""Every allowed (from, to) step of an order."""


def next_status(current: OrderStatus, new: OrderStatus) -> OrderStatus:
    """Return ``new`` if the table allows the step from ``current``.

    Raises
    ------
    ValueError
        If the step is not in :data:`TRANSITIONS`.
    """
    if new not in TRANSITIONS[current]:
        raise ValueError(f"an order cannot go from {current.value} to {new.value}")
    return new


@dataclass(frozen=True, slots=True)
class Protection:
    """Stop-loss and take-profit levels of a position, as market orders once triggered.

    Parameters
    ----------
    stop_price, take_profit_price : float | None
        Trigger prices in quote units; ``None`` for none.
    trigger : TriggerSource
        Price stream that triggers.
    trailing_ratio : float | None
        Trailing stop: distance behind the best price since it was set, a fraction of that price in (0, 1).
    close_at_ns : int | None
        Time exit: the position leaves at the open of the first bar at or after this instant; ``None`` for none.
    """

    stop_price: float | None = None
    take_profit_price: float | None = None
    trigger: TriggerSource = TriggerSource.LAST
    trailing_ratio: float | None = None
    close_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """What to send to the exchange; the client order id makes it idempotent.

    Parameters
    ----------
    client_order_id : str
        Letters and digits only, at most 32 (OKX ``clOrdId``); the same decision always yields the same id.
    symbol : str
        Compact name, e.g. ``BTCUSDT``.
    side : Side
        Buy or sell.
    lots : int
        Size in lots, > 0.
    kind : OrderKind
        Execution kind.
    price : float | None
        Limit price in quote units; ``None`` for market orders.
    margin_mode : MarginMode
        Isolated or cross.
    reduce_only : bool
        May only shrink a position.
    protection : Protection | None
        Attached stop-loss / take-profit.
    position_side : PositionSide
        Position it belongs to; ``NET`` unless the account is in long/short mode.
    """

    client_order_id: str
    symbol: str
    side: Side
    lots: int
    kind: OrderKind = OrderKind.MARKET
    price: float | None = None
    margin_mode: MarginMode = MarginMode.ISOLATED
    reduce_only: bool = False
    protection: Protection | None = None
    position_side: PositionSide = PositionSide.NET

    def __post_init__(self) -> None:
        if self.lots <= 0:
            raise ValueError(f"order {self.client_order_id} for {self.symbol}: size must be at least one lot")
        if (self.price is None) != (self.kind is OrderKind.MARKET):
            raise ValueError(f"order {self.client_order_id}: a {self.kind.value} order and price={self.price} do not fit")

    @property
    def key(self) -> PositionKey:
        """Return the position the order belongs to."""
        return self.symbol, self.margin_mode, self.position_side

    @property
    def closes_only(self) -> bool:
        """Return whether it can only shrink a position: reduce-only, or against the side of a long/short position."""
        return self.reduce_only or self.position_side.sign * self.side.sign < 0.0


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution.

    Parameters
    ----------
    ts_ns : int
        Instant of the execution.
    symbol : str
        Compact name.
    signed_lots : int
        Lots bought (+) or sold (-).
    price : float
        Fill price, quote units.
    fee : float
        Fee paid in USDT (negative: rebate).
    is_maker : bool
        Whether the maker rate applied.
    client_order_id : str
        Order that was filled; empty for fills the exchange made itself (liquidation).
    exit_kind : ExitKind | None
        Why a closing fill happened; ``None`` for opening fills.
    """

    ts_ns: int
    symbol: str
    signed_lots: int
    price: float
    fee: float
    is_maker: bool = False
    client_order_id: str = ""
    exit_kind: ExitKind | None = None

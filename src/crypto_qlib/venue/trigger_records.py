"""Orders that wait for a price before they become orders: stop, take-profit, one-cancels-other, trigger entry, trailing.

A trigger order stands on its own: it has its own size and side, holds no margin while it waits, and once set off becomes an
ordinary order that can itself be refused. Protection of a *position* (``core.order.Protection``) is something else.
Source: OKX API v5, "Algo Trading"; ``ordType`` conditional, oco, trigger, move_order_stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from crypto_qlib.core.order import ExitKind, MarginMode, PositionKey, PositionSide, Protection, Side, TriggerSource
from crypto_qlib.venue.refusals import Refusal


class TriggerKind(StrEnum):
    """Kinds of trigger orders, by OKX's names."""

    CONDITIONAL = "conditional"
    OCO = "oco"
    TRIGGER = "trigger"
    TRAILING = "move_order_stop"


class TriggerState(StrEnum):
    """Where a trigger order is in its life: live, then one of the other three for good."""

    LIVE = "live"
    EFFECTIVE = "effective"
    CANCELED = "canceled"
    FAILED = "order_failed"


@dataclass(frozen=True, slots=True)
class TriggerLeg:
    """One price that sets the order off.

    Parameters
    ----------
    exit_kind : ExitKind | None
        ``STOP`` or ``TAKE_PROFIT``; ``None`` for a plain trigger.
    level : float
        Trigger price, quote units.
    price : float | None
        Limit price of the order it becomes; ``None`` = market.
    source : TriggerSource
        Price stream that is watched.
    """

    exit_kind: ExitKind | None
    level: float
    price: float | None = None
    source: TriggerSource = TriggerSource.LAST


@dataclass(frozen=True, slots=True)
class Trailing:
    """A level that follows the best price: by a fraction of it or by a distance in quote units, from ``active_price`` on."""

    ratio: float | None = None
    spread: float | None = None
    active_price: float | None = None


@dataclass(frozen=True, slots=True)
class TriggerRequest:
    """What a client asks for.

    Parameters
    ----------
    client_id : str
        The client's id of the trigger order; may be empty.
    order_client_id : str
        Client id of the order it becomes.
    lots : int
        Size in lots; 0 = the whole position at that time.
    legs : tuple of TriggerLeg
        One leg, or two where the first one to be set off cancels the other.
    trailing : Trailing | None
        Instead of legs.
    protection : Protection | None
        Attached to the order it becomes.
    """

    client_id: str
    order_client_id: str
    symbol: str
    side: Side
    lots: int
    kind: TriggerKind
    legs: tuple[TriggerLeg, ...] = ()
    trailing: Trailing | None = None
    margin_mode: MarginMode = MarginMode.ISOLATED
    position_side: PositionSide = PositionSide.NET
    reduce_only: bool = False
    protection: Protection | None = None

    @property
    def key(self) -> PositionKey:
        """Return the position it belongs to."""
        return self.symbol, self.margin_mode, self.position_side

    @property
    def closes_only(self) -> bool:
        """Return whether it can only shrink a position."""
        return self.lots == 0 or self.reduce_only or self.position_side.sign * self.side.sign < 0.0


@dataclass(frozen=True, slots=True)
class TriggerOrder:
    """A trigger order as the exchange knows it.

    Parameters
    ----------
    trigger_id : int
        The exchange's id.
    rises : tuple of bool
        Per leg: whether the price must rise to the level (it stood below when the order was placed).
    best : float
        Trailing: best price since it is active; NaN before.
    fired : ExitKind | None
        Leg that set it off; ``TRAILING`` for a trailing one, ``SIGNAL`` for a plain trigger.
    order_id : int
        The venue's order it became; 0 before, and where that order was refused.
    refusal : Refusal | None
        Why it was cancelled, or why its order was refused.
    """

    trigger_id: int
    account_id: str
    request: TriggerRequest
    rises: tuple[bool, ...]
    state: TriggerState = TriggerState.LIVE
    best: float = math.nan
    fired: ExitKind | None = None
    order_id: int = 0
    refusal: Refusal | None = None
    created_ns: int = 0
    updated_ns: int = 0

    @property
    def key(self) -> PositionKey:
        """Return the position it belongs to."""
        return self.request.key


@dataclass(frozen=True, slots=True)
class TriggerUpdated:
    """A trigger order was accepted, changed, set off, cancelled, or failed."""

    ts_ns: int
    account_id: str
    trigger: TriggerOrder

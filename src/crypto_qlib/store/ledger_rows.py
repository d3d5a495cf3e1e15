"""Rows of a ledger as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from crypto_qlib.core.order import ExitKind, OrderStatus


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session.

    Parameters
    ----------
    session_id : str
        Names one account at one exchange over restarts; part of every client order id.
    started_ns : int
        First start.
    mode : str
        ``embedded``, ``demo`` or ``live``.
    identity : dict
        The run identity the model and settings came from.
    """

    session_id: str
    started_ns: int
    mode: str
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IntentRow:
    """One decided order.

    Parameters
    ----------
    client_order_id : str
        Deterministic id of the decision.
    decided_ns : int
        ``as_of`` of the decision.
    signed_lots : int
        + buy, - sell.
    is_entry : bool
        Whether it opens a position.
    exit_kind : ExitKind | None
        Why it closes one; ``None`` for entries.
    leverage, stop_price, take_profit_price, entry_score : float | None
        Terms of an entry; ``None`` where there are none.
    limit_price, trailing_ratio : float | None
        Limit of an entry that rests, quote units; trailing stop, a fraction of the best price.
    expires_ns : int | None
        Instant from which an entry that rests is not wanted any more.
    """

    client_order_id: str
    decided_ns: int
    symbol: str
    signed_lots: int
    is_entry: bool
    exit_kind: ExitKind | None = None
    leverage: float | None = None
    stop_price: float | None = None
    take_profit_price: float | None = None
    entry_score: float | None = None
    limit_price: float | None = None
    expires_ns: int | None = None
    trailing_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class OrderRow:
    """Last known state of one order (prices in quote units, fee in USDT; ``note`` says why it was refused)."""

    client_order_id: str
    status: OrderStatus
    updated_ns: int
    exchange_order_id: str = ""
    filled_lots: int = 0
    average_price: float | None = None
    fee: float = 0.0
    note: str = ""


class Recorded(Enum):
    """What became of an entry that was to be written."""

    NEW = "new"
    KNOWN = "known"
    NO_SLOT = "no slot"


@dataclass(frozen=True, slots=True)
class EquityRow:
    """The account at one bar close, USDT.

    ``margin_ratio`` is ``None`` without positions, ``used_margin`` (initial margin of all positions) in ledgers older than it.
    """

    ts_ns: int
    equity: float
    available: float
    margin_ratio: float | None
    gross: float
    net: float
    open_count: int
    used_margin: float | None = None


@dataclass(frozen=True, slots=True)
class PositionRow:
    """One open position at one bar close (prices in quote units, money in USDT; ``None`` where there is or is known none).

    ``lots`` is signed, ``qty`` the absolute size in base coins.
    """

    ts_ns: int
    symbol: str
    lots: int
    qty: float
    entry: float
    mark: float
    leverage: float
    margin: float
    liquidation_price: float | None
    stop_price: float | None
    take_profit_price: float | None
    unrealised_pnl: float

    @property
    def liquidation_distance(self) -> float:
        """Return the move of the mark that liquidates, a fraction of the mark; NaN where unknown."""
        return math.nan if self.liquidation_price is None else abs(self.mark - self.liquidation_price) / self.mark


@dataclass(frozen=True, slots=True)
class FundingRow:
    """One settlement as the exchange booked it: ``amount`` in USDT, negative = paid; ``bill_id`` is the exchange's."""

    bill_id: str
    ts_ns: int
    symbol: str
    amount: float

"""What a decision says: orders to place now, exits first, and what was refused."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from crypto_qlib.core.order import ExitKind, OrderKind, Side
from crypto_qlib.portfolio.veto import Veto

MAX_ID_LENGTH = 32
"""Longest client order id OKX accepts (letters and digits only). Source: OKX API v5, place order, ``clOrdId``."""


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """One order to place at the next open: a market order, or an entry that waits at its limit.

    How a resting entry (``kind`` ``LIMIT`` or ``POST_ONLY``) is to be carried out, in backtest, paper and live alike: it is
    sent at once with ``limit_price`` and its protection attached; from ``expires_ns`` on it must not fill any more, so whoever
    trades cancels what is left of it before the decision of that instant, and at once where its position has closed in the
    meantime. Until it is final it occupies a slot (``AccountState.pending_symbols``); a part that filled is a position like
    any other. A post-only order the exchange refuses because it would take is over, like one that expired: the next decision
    plans anew.

    Parameters
    ----------
    symbol : str
        Compact name.
    side : Side
        Buy or sell.
    lots : int
        Size in lots, > 0.
    leverage : float
        Leverage to set before an entry, a multiple of 0.01; that of the position for exits.
    reduce_only : bool
        True for exits.
    stop_price, take_profit_price : float
        Protection of an entry, on the tick; NaN for exits.
    trailing_ratio : float | None
        Trailing stop of an entry as a fraction of the best price; ``None`` for none and for exits.
    reason : ExitKind | None
        Why the position leaves (``TIME`` or ``REPLACED``); ``None`` for entries.
    rank : int
        0 for the best entry of the decision, and so on; -1 for exits.
    score : float
        Ranking score of an entry (see :mod:`crypto_qlib.portfolio.selection`); NaN for exits.
    expected_return, win_probability : float
        What the model said of the symbol; NaN where it said nothing.
    reference_price : float
        Fill price the size and the protection were worked out with: last close plus expected slippage, or the limit.
    kind : OrderKind
        ``MARKET`` for exits; for entries what ``strategy.entry_order`` says.
    limit_price : float | None
        Limit of a resting entry, on the tick; ``None`` for market orders.
    expires_ns : int | None
        Instant from which a resting entry is not wanted any more, at the latest that of the next decision; ``None`` for market
        orders.
    """

    symbol: str
    side: Side
    lots: int
    leverage: float
    reduce_only: bool
    stop_price: float = math.nan
    take_profit_price: float = math.nan
    trailing_ratio: float | None = None
    reason: ExitKind | None = None
    rank: int = -1
    score: float = math.nan
    expected_return: float = math.nan
    win_probability: float = math.nan
    reference_price: float = math.nan
    kind: OrderKind = OrderKind.MARKET
    limit_price: float | None = None
    expires_ns: int | None = None

    @property
    def signed_lots(self) -> int:
        """Return the size with its sign: + bought, - sold."""
        return self.lots * self.side.value


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders of one decision, in the order in which to send them, and the refusals.

    Parameters
    ----------
    as_of_ns : int
        Instant of the decision; the orders fill at the open of the bar that starts then.
    orders : tuple of PlannedOrder
        Exits first, then entries by rank.
    vetoes : tuple of Veto
        Every refusal.
    """

    as_of_ns: int
    orders: tuple[PlannedOrder, ...] = ()
    vetoes: tuple[Veto, ...] = ()

    @property
    def exits(self) -> tuple[PlannedOrder, ...]:
        """Return the reduce-only orders."""
        return tuple(o for o in self.orders if o.reduce_only)

    @property
    def entries(self) -> tuple[PlannedOrder, ...]:
        """Return the opening orders, best first."""
        return tuple(o for o in self.orders if not o.reduce_only)


def client_order_id(run_id: str, as_of_ns: int, symbol: str, purpose: str) -> str:
    """Return the id of an order: letters and digits, at most 32, the same for the same four arguments.

    Sending the same decision twice therefore cannot open a position twice: the exchange refuses the second id.

    Parameters
    ----------
    run_id : str
        Name of the session.
    as_of_ns : int
        Instant of the decision.
    symbol : str
        Compact name.
    purpose : str
        Why, e.g. ``entry`` or ``time``.
    """
    digest = hashlib.sha256(f"{run_id}|{as_of_ns}|{symbol}|{purpose}".encode()).hexdigest()
    prefix = "".join(c for c in symbol if c.isascii() and c.isalnum())[:8]
    return ("cq" + prefix + digest)[:MAX_ID_LENGTH]

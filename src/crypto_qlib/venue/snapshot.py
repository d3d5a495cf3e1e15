"""What an account looks like at one moment, with every figure OKX shows: computed on demand, never stored."""

from __future__ import annotations

from dataclasses import dataclass

from crypto_qlib.core.order import Protection
from crypto_qlib.core.position import Position


@dataclass(frozen=True, slots=True)
class PositionSnapshot:
    """One open position at current prices; money in USDT, prices in quote units.

    Parameters
    ----------
    position : Position
        Size, average entry, margin and what was realised so far.
    mark, last : float
        Current prices of the two streams.
    notional : float
        ``qty * mark``.
    upl, upl_ratio : float
        Unrealised PnL on mark, and the same over the entry-price initial margin.
    imr, mmr : float
        Initial margin (isolated: at entry; cross: at mark) and maintenance margin, *amounts*.
    mmr_rate : float
        Maintenance rate of the tier the size falls in.
    margin_ratio : float
        Isolated: the position's; cross: the account's. 1.0 liquidates.
    liquidation_price : float
        Mark that liquidates it; NaN where no positive mark does.
    reported_liquidation_price : float
        The same as OKX shows it: one tick nearer for isolated positions.
    bankruptcy_price : float
        Price at which nothing is left after the closing fee (cross: of the account, other marks held); NaN where none is.
    break_even_price : float
        Closing price with a net result of zero, at the taker rate.
    protection : Protection | None
        Stop-loss and take-profit.
    trailing_stop : float
        Current level of the trailing stop; NaN where there is none.
    """

    position: Position
    mark: float
    last: float
    notional: float
    upl: float
    upl_ratio: float
    imr: float
    mmr: float
    mmr_rate: float
    margin_ratio: float
    liquidation_price: float
    reported_liquidation_price: float
    bankruptcy_price: float
    break_even_price: float
    protection: Protection | None
    trailing_stop: float


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """The account at one moment; money in USDT.

    Parameters
    ----------
    as_of_ns : int
        Instant the figures hold for.
    cash : float
        Cash balance; isolated margin lies outside it.
    equity : float
        ``cash + cross unrealised PnL + isolated margin and unrealised PnL`` (OKX ``eq``).
    cross_equity : float
        ``cash + cross unrealised PnL``.
    isolated_equity : float
        Isolated margin plus isolated unrealised PnL (OKX ``isoEq``).
    available : float
        What may back new positions (OKX ``availEq``), >= 0.
    frozen : float
        Initial margin and fee set aside for pending orders (OKX ``ordFrozen``).
    imr, mmr : float
        Initial margin in use of all positions and maintenance margin of the cross positions, amounts.
    upl : float
        Unrealised PnL of all positions.
    margin_ratio : float
        Cross equity, less what pending orders froze, over requirement: at 1.0 orders are cancelled, and what is then still at
        1.0 is liquidated. Infinite without cross positions.
    positions : tuple of PositionSnapshot
        Open positions.
    """

    as_of_ns: int
    cash: float
    equity: float
    cross_equity: float
    isolated_equity: float
    available: float
    frozen: float
    imr: float
    mmr: float
    upl: float
    margin_ratio: float
    positions: tuple[PositionSnapshot, ...]

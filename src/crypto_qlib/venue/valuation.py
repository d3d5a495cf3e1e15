"""What an account is worth and what it may still do, at the prices now known. Reads the books, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from crypto_qlib.core import margin as m
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import MarginMode, PositionKey, TriggerSource
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.venue.account import HeldPosition, VenueAccount
from crypto_qlib.venue.market_board import MarketBoard
from crypto_qlib.venue.matching import trailing_level
from crypto_qlib.venue.records import VenueOrder
from crypto_qlib.venue.snapshot import AccountSnapshot, PositionSnapshot
from crypto_qlib.venue.venue_config import VenueInstrument

LeverageOf = Callable[[VenueAccount, PositionKey], float]
"""Tell the leverage set for a position of an account."""


class Listing:
    """The instruments of the exchange, asked by symbol and time."""

    def __init__(self, instruments: tuple[VenueInstrument, ...]) -> None:
        self._by_symbol: dict[str, VenueInstrument] = {v.instrument.symbol: v for v in instruments}

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._by_symbol

    def instrument(self, symbol: str) -> Instrument:
        """Return the specification of ``symbol``."""
        return self._by_symbol[symbol].instrument

    def history(self, symbol: str) -> TierHistory:
        """Return the tiers of ``symbol`` over time."""
        return self._by_symbol[symbol].tiers

    def tiers(self, symbol: str, ts_ns: int) -> TierTable:
        """Return the tier table of ``symbol`` in force at ``ts_ns``."""
        return self._by_symbol[symbol].tiers.at(ts_ns)

    def mmr(self, symbol: str, lots: int, ts_ns: int) -> float:
        """Return the maintenance rate of a position of ``lots``; above the last tier, the last tier's."""
        table = self.tiers(symbol, ts_ns)
        # NO_TIER is -1, which reads the last row: what is meant for a size beyond the table.
        return float(table.mmr[table.row(abs(lots) * self.instrument(symbol).lot_size)])


def liquidation_mark(held: HeldPosition, mmr: float, taker_fee: float) -> float:
    """Return the mark that liquidates an isolated position; NaN for cross, where the account ratio decides."""
    p = held.position
    if p.margin_mode is MarginMode.CROSS:
        return math.nan
    return m.liquidation_price_isolated(p.side, p.qty, p.avg_entry, p.isolated_margin, mmr, taker_fee)


def cross_state(account: VenueAccount, listing: Listing, marks: dict[str, float], now_ns: int) -> tuple[float, float]:
    """Return (equity, requirement) of the cross account with its positions valued at ``marks``."""
    equity, need = account.cash, 0.0
    for held in account.cross():
        p = held.position
        mark = marks[p.symbol]
        equity += p.unrealised_pnl(mark)
        need += m.requirement(p.qty, mark, listing.mmr(p.symbol, p.lots, now_ns), account.fees.taker)
    return equity, need


def board_marks(account: VenueAccount, board: MarketBoard) -> dict[str, float]:
    """Return the marks now known of all symbols held."""
    return {key[0]: board.mark(key[0]) for key in account.positions}


def order_margin(account: VenueAccount, order: VenueOrder, listing: Listing, price: float, leverage: float) -> float:
    """Return what a pending order sets aside: initial margin and taker fee of the part that would open, at ``price``."""
    request = order.request
    if request.closes_only:
        return 0.0
    held = account.positions.get(request.key)
    closing = abs(held.position.lots) if held and held.position.side == -request.side.sign else 0
    opening = max(order.remaining_lots - closing, 0)
    value = opening * listing.instrument(request.symbol).base_per_lot * price
    return value / leverage + value * account.fees.taker


def frozen_margin(
    account: VenueAccount, pending: Mapping[int, VenueOrder], listing: Listing, board: MarketBoard, leverage_of: LeverageOf
) -> float:
    """Return the sum of :func:`order_margin` over the ``pending`` orders, USDT; market orders are valued at last."""
    total = 0.0
    for order in pending.values():
        request = order.request
        price = board.last(request.symbol) if request.price is None else request.price
        leverage = leverage_of(account, request.key)
        total += order_margin(account, order, listing, price, leverage)
    return total


def frozen_against_cross(account: VenueAccount, listing: Listing, board: MarketBoard, leverage_of: LeverageOf) -> float:
    """Return what pending orders take out of the cross margin ratio's equity, USDT.

    Isolated orders count with margin and fee, cross orders with their fee alone: their margin stays in the account.
    Source: OKX help "Cross margin trading", numerator of the maintenance margin ratio.
    """
    total = 0.0
    for order in account.pending.values():
        request = order.request
        price = board.last(request.symbol) if request.price is None else request.price
        # Margin at infinite leverage is none: what is left is the fee.
        of = math.inf if request.margin_mode is MarginMode.CROSS else leverage_of(account, request.key)
        total += order_margin(account, order, listing, price, of)
    return total


def free_margin(account: VenueAccount, board: MarketBoard, frozen: float, mode: MarginMode) -> float:
    """Return what may back a new position in ``mode``, USDT.

    Cross equity less the initial margin of cross positions and what pending orders froze; an isolated position can in
    addition only be given cash, never unrealised profit.
    """
    equity, used = account.cash, 0.0
    for held in account.cross():
        p = held.position
        mark = board.mark(p.symbol)
        equity += p.unrealised_pnl(mark)
        used += m.initial_margin_cross(p.qty, mark, p.leverage)
    free = equity - used - frozen
    return min(free, account.cash - frozen) if mode is MarginMode.ISOLATED else free


def position_snapshot(
    account: VenueAccount,
    held: HeldPosition,
    listing: Listing,
    board: MarketBoard,
    cross: tuple[float, float, float],
    now_ns: int,
) -> PositionSnapshot:
    """Return one position's figures; ``cross`` is the account's (equity, requirement, equity less what orders froze)."""
    p = held.position
    instrument = listing.instrument(p.symbol)
    mark, fee = board.mark(p.symbol), account.fees.taker
    rate = listing.mmr(p.symbol, p.lots, now_ns)
    if p.margin_mode is MarginMode.ISOLATED:
        imr = m.initial_margin_isolated(p.qty, p.avg_entry, p.leverage)
        ratio = m.margin_ratio_isolated(p.side, p.qty, p.avg_entry, p.isolated_margin, mark, rate, fee)
        analytic = liquidation_mark(held, rate, fee)
        reported = m.reported_liquidation_price(p.side, analytic, instrument.tick_size)
        bankrupt = m.bankruptcy_price(p.side, p.qty, p.avg_entry, p.isolated_margin, fee)
    else:
        equity, need, ratio_equity = cross
        imr = m.initial_margin_cross(p.qty, mark, p.leverage)
        ratio = m.margin_ratio_cross(ratio_equity, need)
        # Both legs of a hedged symbol move with one mark; a single leg gives the plain cross formula.
        legs = [h.position for h in account.cross() if h.position.symbol == p.symbol]
        signed = sum(leg.side * leg.qty for leg in legs)
        required = sum(leg.qty * (listing.mmr(leg.symbol, leg.lots, now_ns) + fee) for leg in legs)
        analytic = reported = m.liquidation_price_cross_legs(signed, mark, equity, need - mark * required, required)
        fees = sum(h.position.qty * board.mark(h.position.symbol) * fee for h in account.cross() if h is not held)
        bankrupt = m.bankruptcy_price_cross(p.side, p.qty, mark, equity, fees, fee)
    if analytic <= 0.0:
        analytic = reported = math.nan
    if bankrupt <= 0.0:
        bankrupt = math.nan
    return PositionSnapshot(
        position=p,
        mark=mark,
        last=board.last(p.symbol),
        notional=p.qty * mark,
        upl=p.unrealised_pnl(mark),
        upl_ratio=m.upl_ratio(p.side, p.qty, p.avg_entry, mark, p.leverage),
        imr=imr,
        mmr=m.maintenance_margin(p.qty, mark, rate),
        mmr_rate=rate,
        margin_ratio=ratio,
        liquidation_price=analytic,
        reported_liquidation_price=reported,
        bankruptcy_price=bankrupt,
        break_even_price=m.break_even_price(p.side, p.qty, p.avg_entry, p.net_realised, fee),
        protection=held.protection,
        trailing_stop=trailing_stop(held),
    )


def trailing_stop(held: HeldPosition) -> float:
    """Return the current level of the position's trailing stop; NaN without one."""
    if held.protection is None or held.protection.trailing_ratio is None:
        return math.nan
    return trailing_level(held.position.side, held.best, held.protection.trailing_ratio)


def triggers_on_mark(held: HeldPosition) -> bool:
    """Return whether protection watches the mark; the index, which the venue does not simulate, is read as the mark."""
    return held.protection is not None and held.protection.trigger is not TriggerSource.LAST


def account_snapshot(
    account: VenueAccount, listing: Listing, board: MarketBoard, leverage_of: LeverageOf, now_ns: int
) -> AccountSnapshot:
    """Return the account's figures at the prices now known."""
    cross = cross_state(account, listing, board_marks(account, board), now_ns)
    ratio_equity = cross[0] - frozen_against_cross(account, listing, board, leverage_of)
    positions = tuple(
        position_snapshot(account, h, listing, board, (*cross, ratio_equity), now_ns) for h in account.positions.values()
    )
    isolated = sum(s.position.isolated_margin + s.upl for s in positions if s.position.margin_mode is MarginMode.ISOLATED)
    frozen = frozen_margin(account, account.pending, listing, board, leverage_of)
    return AccountSnapshot(
        as_of_ns=now_ns,
        cash=account.cash,
        equity=cross[0] + isolated,
        cross_equity=cross[0],
        isolated_equity=isolated,
        available=max(free_margin(account, board, frozen, MarginMode.CROSS), 0.0),
        frozen=frozen,
        imr=sum(s.imr for s in positions),
        mmr=sum(s.mmr for s in positions if s.position.margin_mode is MarginMode.CROSS),
        upl=sum(s.upl for s in positions),
        margin_ratio=ratio_equity / cross[1] if cross[1] > 0.0 else math.inf,
        positions=positions,
    )

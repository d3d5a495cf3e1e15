"""Turn a decision to trade into a fill: price it, book it, tell the client, clean up behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from crypto_qlib.core import margin as m
from crypto_qlib.core.clock import ManualClock
from crypto_qlib.core.costs import default_half_spread_bps, trading_fee
from crypto_qlib.core.funding import capped_funding_cash_flow, funding_cash_flow
from crypto_qlib.core.instrument import round_price_against
from crypto_qlib.core.order import (
    ExitKind,
    Fill,
    MarginMode,
    OrderStatus,
    PositionKey,
    PositionSide,
    Protection,
    TriggerSource,
    next_status,
)
from crypto_qlib.venue.account import HeldPosition, VenueAccount
from crypto_qlib.venue.depth import Depth
from crypto_qlib.venue.funding_clock import is_settlement, same_instant_cash_flow
from crypto_qlib.venue.market_board import MarketBoard, SymbolBar
from crypto_qlib.venue.matching import stop_fill_price, taker_fill_price, trailing_best
from crypto_qlib.venue.records import Filled, FundingPaid, OrderUpdated, ProtectionSet, Refusal, RefusalCode, VenueOrder
from crypto_qlib.venue.valuation import Listing, board_marks, cross_state
from crypto_qlib.venue.venue_config import VenueConfig

_DUST: Final = 1e-6
"""Share of a lot that counts as nothing."""


@dataclass(frozen=True, slots=True)
class Deal:
    """One execution about to be booked: it either only opens or only closes.

    Parameters
    ----------
    key : PositionKey
        Position it belongs to.
    signed_lots : int
        Lots bought (+) or sold (-).
    price : float
        Fill price, quote units.
    is_maker : bool
        Whether the maker rate applies.
    exit_kind : ExitKind | None
        Reason of a closing deal.
    client_order_id : str
        Order behind it; empty for protection and the exchange's own deals.
    protection : Protection | None
        Protection an opening deal puts on the position; ``None`` keeps what is there.
    """

    key: PositionKey
    signed_lots: int
    price: float
    is_maker: bool = False
    exit_kind: ExitKind | None = None
    client_order_id: str = ""
    protection: Protection | None = None


def leverage_key(key: PositionKey) -> PositionKey:
    """Return under which key the leverage of a position is kept: cross positions of both sides share one.

    Source: OKX ``POST /account/set-leverage``: in long/short mode only isolated leverage is set per side.
    """
    return key if key[1] is MarginMode.ISOLATED else (key[0], key[1], PositionSide.NET)


class Execution:
    """Book deals against accounts at the clock's current instant."""

    def __init__(self, listing: Listing, board: MarketBoard, config: VenueConfig, clock: ManualClock) -> None:
        self.listing = listing
        self.board = board
        self.config = config
        self.clock = clock

    def taker_price(self, symbol: str, side: float, raw: float, lots: int, row: SymbolBar | None = None) -> float:
        """Return the fill of a taker order of ``lots`` at ``raw`` before slippage; ``row`` tells what the market can bear.

        At the open of a bar with a recorded book the order walks it; what lies beyond its last level pays the model from there.
        """
        depth = self.board.depth(symbol)
        if row is not None and depth is not None and raw == row.open:
            return self._walked(symbol, side, lots, row, depth)
        return self._slipped(taker_fill_price, symbol, side, raw, lots, row)

    def stop_price(self, symbol: str, side: float, raw: float, lots: int, row: SymbolBar) -> float:
        """Return the fill of a stop-market order of ``lots`` set off at ``raw`` in the bar ``row``."""
        price = self._slipped(stop_fill_price, symbol, side, raw, lots, row)
        depth = self.board.depth(symbol)
        if depth is None or raw != row.open:
            return price
        walked = self._walked(symbol, side, lots, row, depth)
        return max(price, walked) if side > 0.0 else min(price, walked)

    def leverage(self, account: VenueAccount, key: PositionKey) -> float:
        """Return the leverage set for ``key``, else the default held inside the instrument's own maximum."""
        default = min(self.config.default_leverage, self.listing.instrument(key[0]).max_leverage)
        return account.leverage.get(leverage_key(key), default)

    def trade(self, account: VenueAccount, deal: Deal) -> float:
        """Book ``deal``; return the price PnL it realised."""
        symbol, mode, _ = deal.key
        instrument = self.listing.instrument(symbol)
        rate = account.fees.maker if deal.is_maker else account.fees.taker
        fee = trading_fee(abs(deal.signed_lots) * instrument.base_per_lot, deal.price, rate)
        fill = Fill(
            self.clock.now_ns(), symbol, deal.signed_lots, deal.price, fee, deal.is_maker, deal.client_order_id, deal.exit_kind
        )
        pnl = account.trade(deal.key, fill, instrument.base_per_lot, self.leverage(account, deal.key))
        account.events.append(Filled(fill.ts_ns, account.account_id, fill, mode, pnl, deal.key[2]))
        held = account.positions.get(deal.key)
        if held is not None and deal.exit_kind is None:
            self._after_opening(account, held, deal)
        return pnl

    def close(self, account: VenueAccount, held: HeldPosition, price: float, exit_kind: ExitKind) -> None:
        """Close a whole position at ``price`` on the exchange's own initiative and cancel its reduce-only orders."""
        p = held.position
        key = p.key
        self.trade(account, Deal(key, -p.lots, price, exit_kind=exit_kind))
        self.release_orders(account, key)

    def protect(self, account: VenueAccount, held: HeldPosition, protection: Protection | None, best: float) -> None:
        """Put ``protection`` on a position; a trailing stop starts from ``best``."""
        held.protection = protection
        held.best = best if protection is not None and protection.trailing_ratio is not None else math.nan
        p = held.position
        account.events.append(ProtectionSet(self.clock.now_ns(), account.account_id, *p.key, protection))

    def change_order(
        self, account: VenueAccount, order: VenueOrder, status: OrderStatus, refusal: Refusal | None = None
    ) -> None:
        """Move ``order`` to ``status`` along the life-cycle table and tell the client."""
        changed = replace(
            order, status=next_status(order.status, status), updated_ns=self.clock.now_ns(), refusal=refusal or order.refusal
        )
        self.store_order(account, changed)

    def store_order(self, account: VenueAccount, order: VenueOrder) -> None:
        """Write ``order`` down as pending or final and tell the client."""
        account.orders[order.order_id] = order
        if order.status.is_final:
            account.pending.pop(order.order_id, None)
        else:
            account.pending[order.order_id] = order
        account.events.append(OrderUpdated(self.clock.now_ns(), account.account_id, order))

    def fill_order(
        self, account: VenueAccount, order: VenueOrder, signed_lots: int, price: float, *, is_maker: bool
    ) -> VenueOrder:
        """Fill ``signed_lots`` of ``order`` at ``price`` (only opening or only closing) and return the order after it."""
        request = order.request
        key = request.key
        held = account.positions.get(key)
        closes = held is not None and held.position.side * signed_lots < 0
        exit_kind = (order.exit_kind or ExitKind.SIGNAL) if closes else None
        protection = None if closes else request.protection
        deal = Deal(key, signed_lots, price, is_maker, exit_kind, request.client_order_id, protection)
        done = order.filled_lots + abs(signed_lots)
        average = (price * abs(signed_lots) + (order.average_price * order.filled_lots if order.filled_lots else 0.0)) / done
        pnl = self.trade(account, deal)
        if not is_maker and self.board.depth(request.symbol) is not None:
            qty = abs(signed_lots) * self.listing.instrument(request.symbol).base_per_lot
            self.board.take(request.symbol, qty, buys=signed_lots > 0)
        changed = replace(
            order,
            filled_lots=done,
            average_price=average,
            fee=order.fee + account.fills[-1].fee,
            pnl=order.pnl + pnl,
            status=next_status(order.status, OrderStatus.FILLED if done == order.lots else OrderStatus.PARTIALLY_FILLED),
            updated_ns=self.clock.now_ns(),
        )
        self.store_order(account, changed)
        if key not in account.positions:
            self.release_orders(account, key)
        return changed

    def release_orders(
        self, account: VenueAccount, key: PositionKey, refusal: Refusal | None = None, *, every: bool = False
    ) -> None:
        """Cancel the reduce-only orders of a position that is gone (``every``: all orders of that symbol and mode)."""
        why = refusal or Refusal(RefusalCode.POSITION_CLOSED, f"the {key[1].value} position in {key[0]} is closed")
        for order in list(account.pending.values()):
            request = order.request
            if request.key == key and (every or request.closes_only) and order.remaining_lots:
                self.change_order(account, order, OrderStatus.CANCELED, why)

    def settle(self, account: VenueAccount, key: PositionKey, qty: float, *, same_instant: bool = False) -> None:
        """Settle funding of ``qty`` base coins of a position at the bar's open, if there is a settlement for it.

        A symbol without a price in the bar settles at its last known mark: funding does not wait for candles.
        """
        rate, mark = self.board.funding_rate(key[0]), self.board.mark(key[0])
        if not is_settlement(rate):
            return
        p = account.positions[key].position
        uncapped = funding_cash_flow(p.side, qty, mark, rate)
        if key[1] is MarginMode.ISOLATED:
            equity = p.isolated_margin + p.unrealised_pnl(mark)
            need = m.requirement(p.qty, mark, self.listing.mmr(p.symbol, p.lots, self.clock.now_ns()), account.fees.taker)
        else:
            equity, need = cross_state(account, self.listing, board_marks(account, self.board), self.clock.now_ns())
        flow = capped_funding_cash_flow(uncapped, equity, need)
        if same_instant:
            flow = same_instant_cash_flow(flow)
            if flow == 0.0:
                return
        account.fund(key, flow, mark, self.clock.now_ns())
        account.events.append(
            FundingPaid(
                self.clock.now_ns(),
                account.account_id,
                *key,
                amount=flow,
                rate=rate,
                mark=mark,
                capped=flow > uncapped,
            )
        )

    def _after_opening(self, account: VenueAccount, held: HeldPosition, deal: Deal) -> None:
        bar = self.board.bar
        if bar is not None:
            held.touched_ts = bar.ts_open
            if self.clock.now_ns() == bar.ts_open:
                qty = abs(deal.signed_lots) * held.position.base_per_lot
                self.settle(account, deal.key, qty, same_instant=True)
        if deal.protection is not None:
            followed = deal.price if deal.protection.trigger is TriggerSource.LAST else self.board.mark(deal.key[0])
            if not math.isnan(held.best):
                # The part held before trails the best price it has seen; an addition at a worse one must not loosen that.
                followed = trailing_best(held.position.side, held.best, followed, followed)
            self.protect(account, held, deal.protection, followed)

    def _walked(self, symbol: str, side: float, lots: int, row: SymbolBar, depth: Depth) -> float:
        """Return the average price of ``lots`` taken from a recorded book, moved to the worse tick."""
        instrument = self.listing.instrument(symbol)
        wanted = lots * instrument.base_per_lot
        money, found, last = depth.walk(side, wanted, self.board.taken(symbol, buys=side > 0.0))
        beyond = wanted - found
        if beyond > _DUST * instrument.base_per_lot:
            from_here = row.open if math.isnan(last) else last
            more = max(round(beyond / instrument.base_per_lot), 1)
            money += beyond * self._slipped(taker_fill_price, symbol, side, from_here, more, row)
        return float(round_price_against(money / wanted, instrument.tick_size, side))

    def _slipped(
        self, fill: Callable[..., float], symbol: str, side: float, raw: float, lots: int, row: SymbolBar | None
    ) -> float:
        instrument = self.listing.instrument(symbol)
        adv, sigma, high, low, turnover = (
            (row.adv, row.sigma_day_bps, row.high, row.low, row.quote_volume) if row else (math.nan,) * 5
        )
        value = lots * instrument.base_per_lot * raw
        half_spread = self._half_spread(symbol, raw, adv)
        return fill(side, raw, value, adv, sigma, half_spread, self.config.impact_y, instrument.tick_size, high, low, turnover)

    def _half_spread(self, symbol: str, price: float, adv: float) -> float:
        if self.config.half_spread_bps >= 0.0:
            return self.config.half_spread_bps
        return default_half_spread_bps(0.0 if math.isnan(adv) else adv, self.listing.instrument(symbol).tick_size, price)

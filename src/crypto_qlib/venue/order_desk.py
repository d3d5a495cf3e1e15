"""Take orders in, match them at the open of the bar being simulated or rest them, amend and cancel them.

- Inside a bar (after its open was shown) an order that can trade fills at once at the open, with slippage; what rests is
  tried again inside the bar by the bar cycle.
- With no bar open, orders queue and are matched at the next bar's open: exits before entries, in order of arrival.
- Where the book is recorded (``depth``), an order at the open takes what it finds there within its limit.
- Otherwise closing parts of taker orders fill whole; opening parts and passive fills take at most a share of the bar's
  volume. What a market or IOC order cannot fill is cancelled.
"""

from __future__ import annotations

import math
from dataclasses import replace

from crypto_qlib.core.order import ExitKind, OrderKind, OrderRequest, OrderStatus
from crypto_qlib.venue.account import VenueAccount
from crypto_qlib.venue.depth import Depth
from crypto_qlib.venue.execution import Execution
from crypto_qlib.venue.market_board import SymbolBar
from crypto_qlib.venue.matching import fillable_lots, limit_fill_price
from crypto_qlib.venue.order_checks import (
    check_client_id,
    check_instrument,
    check_leverage,
    check_margin,
    check_position_side,
    check_price,
    check_protection,
    check_size,
)
from crypto_qlib.venue.records import Refusal, RefusalCode, VenueOrder

_TAKERS = (OrderKind.MARKET, OrderKind.IOC, OrderKind.FOK)


class OrderDesk:
    """Accept, match and cancel orders against the market board."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._next_id = 1
        self._queued: list[int] = []

    def submit(self, account: VenueAccount, request: OrderRequest, exit_kind: ExitKind | None) -> VenueOrder:
        """Check ``request``, accept or reject it, and match it if a bar is open; return the order as it then stands."""
        now = self._execution.clock.now_ns()
        refusal = (
            check_instrument(self._execution, request.symbol)
            or check_client_id(account, request.client_order_id)
            or check_position_side(account, request.position_side)
        )
        if refusal is None:
            request, refusal = self._cut_reduce_only(account, request)
        refusal = refusal or self._check(account, request, request.lots, 0)
        status = OrderStatus.REJECTED if refusal else OrderStatus.LIVE
        order = VenueOrder(
            self._next_id,
            account.account_id,
            request,
            status,
            created_ns=now,
            updated_ns=now,
            refusal=refusal,
            exit_kind=exit_kind,
        )
        self._next_id += 1
        self._execution.store_order(account, order)
        if refusal is None:
            if self._execution.board.bar is None:
                self._queued.append(order.order_id)
            else:
                self._arrive(account, order)
            self._cancel_by_switch(account, order)
        return account.orders[order.order_id]

    def _cancel_by_switch(self, account: VenueAccount, order: VenueOrder) -> None:
        current = account.pending.get(order.order_id)
        if current is not None and order.kind is OrderKind.POST_ONLY and self._execution.config.cancels_post_only:
            self._drop(account, current, RefusalCode.POST_ONLY_WOULD_TAKE, "post-only order would have taken liquidity")

    def amend(self, account: VenueAccount, order: VenueOrder, lots: int | None, price: float | None) -> Refusal | None:
        """Change size and/or limit price of a pending order; it keeps its id and is matched again."""
        new_lots = order.lots if lots is None else lots
        if new_lots <= order.filled_lots:
            return Refusal(
                RefusalCode.AMEND_BELOW_FILLED, "new size is not above what is filled", order.filled_lots + 1, new_lots
            )
        if price is not None and order.request.price is None:
            return Refusal(RefusalCode.BAD_PRICE, "a market order has no price to amend")
        request = replace(order.request, lots=new_lots, price=order.request.price if price is None else price)
        refusal = self._check(account, request, new_lots - order.filled_lots, order.order_id)
        if refusal is not None:
            return refusal
        changed = replace(order, request=request, updated_ns=self._execution.clock.now_ns())
        self._execution.store_order(account, changed)
        if self._execution.board.bar is not None:
            self._arrive(account, changed)
        return None

    def cancel(self, account: VenueAccount, order: VenueOrder, why: RefusalCode = RefusalCode.CANCELED_BY_CLIENT) -> None:
        """Cancel a pending order."""
        self._execution.change_order(account, order, OrderStatus.CANCELED, Refusal(why, f"cancelled: {why.value}"))

    @property
    def next_id(self) -> int:
        """Return the id the next order gets."""
        return self._next_id

    def take_triggered(
        self, account: VenueAccount, request: OrderRequest, kind: ExitKind, raw: float, row: SymbolBar, *, is_stop: bool
    ) -> VenueOrder:
        """Take the order a trigger order became and match it at ``raw`` before slippage; a limit beyond it rests.

        Parameters
        ----------
        kind : ExitKind
            What set it off; carried over to closing fills.
        is_stop : bool
            Whether it is slipped as a stop (against a market running away) or as a plain taker order.
        """
        now = self._execution.clock.now_ns()
        refusal = self._check(account, request, request.lots, 0)
        status = OrderStatus.REJECTED if refusal else OrderStatus.LIVE
        order = VenueOrder(
            self._next_id, account.account_id, request, status,
            created_ns=now, updated_ns=now, refusal=refusal, exit_kind=kind,
        )  # fmt: skip
        self._next_id += 1
        self._execution.store_order(account, order)
        if refusal is None:
            price_of = self._execution.stop_price if is_stop else self._execution.taker_price
            sign = request.side.sign
            price = price_of(request.symbol, sign, raw, request.lots, row)
            if request.price is None or sign * (request.price - price) >= 0.0:
                closing = min(self._closable(account, order), order.remaining_lots)
                self._take(account, order, closing, self._openable(order, closing, row), price)
        return account.orders[order.order_id]

    def match_queued(self, account: VenueAccount) -> None:
        """Match what arrived while no bar was open, exits first; call once per account at the open."""
        queued = [account.pending[k] for k in self._queued if k in account.pending]
        for order in sorted(queued, key=lambda o: not self._closes(account, o)):
            current = account.pending.get(order.order_id)
            if current is not None:
                self._arrive(account, current)

    def forget_queue(self) -> None:
        """Empty the queue once every account was matched."""
        self._queued.clear()

    def match_resting(self, account: VenueAccount, *, closing: bool, at_open: bool = False) -> None:
        """Fill resting limit orders the bar (``at_open``: its open alone) trades through by a tick, at their limit.

        Parameters
        ----------
        closing : bool
            Try orders that reduce a position (after its adverse extreme) or, if False, those that open or add.
        """
        for order in list(account.pending.values()):
            if order.request.price is None or order.order_id in self._queued or order.order_id not in account.pending:
                continue
            row = self._execution.board.row(order.symbol)
            if row is None or self._closes(account, order) is not closing:
                continue
            high, low = (row.open, row.open) if at_open else (row.high, row.low)
            tick = self._execution.listing.instrument(order.symbol).tick_size
            price = limit_fill_price(order.side.sign, order.request.price, high, low, tick)
            if not math.isnan(price):
                self._fill_resting(account, order, price, row)

    def _fill_resting(self, account: VenueAccount, order: VenueOrder, price: float, row: SymbolBar) -> None:
        closable = self._closable(account, order)
        wanted = min(closable, order.remaining_lots) if closable else order.remaining_lots
        base_per_lot = self._execution.listing.instrument(order.symbol).base_per_lot
        lots = fillable_lots(wanted, row.volume, base_per_lot, self._execution.config.max_bar_volume_share)
        lots = lots if closable else min(lots, self._before_stall(order))
        if lots <= 0:
            return
        refusal = None
        if not closable:
            refusal = check_margin(self._execution, account, order.request, lots, price, exclude_order=order.order_id)
        if refusal is not None:
            self._execution.change_order(account, order, OrderStatus.CANCELED, refusal)
            return
        self._execution.fill_order(account, order, lots * order.side.value, price, is_maker=True)

    def _arrive(self, account: VenueAccount, order: VenueOrder) -> None:
        """Match a new order at the open of the bar being simulated."""
        row = self._execution.board.row(order.symbol)
        if row is None:
            if order.kind in _TAKERS:
                self._drop(account, order, RefusalCode.NO_PRICE, f"instrument {order.symbol} has no price in this bar")
            return
        limit, sign = order.request.price, order.side.sign
        depth = self._execution.board.depth(order.symbol)
        if order.kind is OrderKind.POST_ONLY and limit is not None:
            best = row.open if depth is None else depth.best(sign)
            if sign * (limit - best) >= 0.0:
                self._drop(account, order, RefusalCode.POST_ONLY_WOULD_TAKE, "post-only order would have taken liquidity")
            return
        closing = min(self._closable(account, order), order.remaining_lots)
        opening = self._openable(order, closing, row)
        if depth is not None:
            closing, opening = self._in_depth(order, closing, depth)
            if limit is not None and closing + opening == 0:
                if order.kind is not OrderKind.LIMIT:
                    self._drop(account, order, RefusalCode.NOT_FILLABLE, "the market is beyond the limit price")
                return
        price = self._execution.taker_price(order.symbol, sign, row.open, max(closing + opening, 1), row)
        if limit is not None and sign * (limit - price) < 0.0:
            if order.kind is not OrderKind.LIMIT:
                self._drop(account, order, RefusalCode.NOT_FILLABLE, "the market is beyond the limit price")
            return
        if order.kind is OrderKind.FOK and closing + opening < order.remaining_lots:
            self._drop(account, order, RefusalCode.NOT_FILLABLE, "the order cannot be filled whole")
            return
        self._take(account, order, closing, opening, price)

    def _take(self, account: VenueAccount, order: VenueOrder, closing: int, opening: int, price: float) -> None:
        sign = order.side.value
        if closing:
            order = self._execution.fill_order(account, order, sign * closing, price, is_maker=False)
        refusal = None
        if opening and order.order_id in account.pending:
            refusal = check_margin(
                self._execution, account, order.request, opening, price, exclude_order=order.order_id
            ) or check_leverage(
                self._execution,
                account,
                order.key,
                sign * opening,
                self._execution.leverage(account, order.key),
                order.order_id,
            )
            if refusal is None:
                order = self._execution.fill_order(account, order, sign * opening, price, is_maker=False)
        if order.order_id in account.pending and (refusal is not None or order.kind is not OrderKind.LIMIT):
            why = refusal or Refusal(
                RefusalCode.NOT_FILLABLE, "the bar's volume share is used up", order.filled_lots, order.lots
            )
            self._execution.change_order(account, order, OrderStatus.CANCELED, why)

    def _openable(self, order: VenueOrder, closing: int, row: SymbolBar) -> int:
        if order.request.closes_only:
            return 0
        base_per_lot = self._execution.listing.instrument(order.symbol).base_per_lot
        share = self._execution.config.max_bar_volume_share
        lots = fillable_lots(order.remaining_lots - closing, row.volume, base_per_lot, share)
        return max(min(lots, self._before_stall(order)), 0)

    def _in_depth(self, order: VenueOrder, closing: int, depth: Depth) -> tuple[int, int]:
        """Return (closing, opening) lots a recorded book can fill within the order's limit; a market order closes whole."""
        base_per_lot = self._execution.listing.instrument(order.symbol).base_per_lot
        sign = order.side.sign
        taken = self._execution.board.taken(order.symbol, buys=sign > 0)
        there = fillable_lots(order.lots, depth.available(sign, order.request.price, taken), base_per_lot, 1.0)
        if order.request.price is not None:
            closing = min(closing, there)
        if order.request.closes_only:
            return closing, 0
        wanted = min(order.remaining_lots - closing, self._before_stall(order))
        return closing, max(min(wanted, there - closing), 0)

    def _before_stall(self, order: VenueOrder) -> int:
        """Return how many more lots may fill before the stress switch stalls the order."""
        return math.ceil(order.lots * self._execution.config.stall_fraction) - order.filled_lots

    def _closable(self, account: VenueAccount, order: VenueOrder) -> int:
        held = account.positions.get(order.key)
        return abs(held.position.lots) if held and held.position.side * order.side.sign < 0 else 0

    def _closes(self, account: VenueAccount, order: VenueOrder) -> bool:
        return order.request.closes_only or self._closable(account, order) > 0

    def _drop(self, account: VenueAccount, order: VenueOrder, code: RefusalCode, text: str) -> None:
        self._execution.change_order(account, order, OrderStatus.CANCELED, Refusal(code, text))

    def _cut_reduce_only(self, account: VenueAccount, request: OrderRequest) -> tuple[OrderRequest, Refusal | None]:
        if not request.closes_only:
            return request, None
        held = account.positions.get(request.key)
        if held is None or held.position.side * request.side.sign >= 0:
            return request, Refusal(
                RefusalCode.REDUCE_ONLY_WITHOUT_POSITION,
                f"no {request.margin_mode.value} position in {request.symbol} to reduce",
            )
        if not request.reduce_only:
            return request, self._above_position(account, request, abs(held.position.lots))
        return replace(request, lots=min(request.lots, abs(held.position.lots))), None

    def _above_position(self, account: VenueAccount, request: OrderRequest, held_lots: int) -> Refusal | None:
        """Refuse a closing order of long/short mode beyond what is held and not yet spoken for by other closing orders."""
        spoken_for = sum(o.remaining_lots for o in account.pending.values() if o.key == request.key and o.request.closes_only)
        if request.lots <= held_lots - spoken_for:
            return None
        return Refusal(
            RefusalCode.ABOVE_POSITION, "the closing size exceeds the position", max(held_lots - spoken_for, 0), request.lots
        )

    def _check(self, account: VenueAccount, request: OrderRequest, lots: int, exclude_order: int) -> Refusal | None:
        """Check size, price, protection, tier and margin of ``lots`` more of ``request``."""
        execution = self._execution
        key = request.key
        instrument = execution.listing.instrument(request.symbol)
        refusal = (
            check_size(instrument, request.kind, request.lots)
            or check_price(execution, request)
            or check_protection(request.side.sign, request.protection)
        )
        if refusal is not None or request.closes_only:
            return refusal
        row = execution.board.row(request.symbol) if execution.board.bar else None
        price = request.price
        if price is None:
            price = execution.taker_price(request.symbol, request.side.sign, execution.board.last(request.symbol), lots, row)
        return check_leverage(
            execution, account, key, request.side.value * lots, execution.leverage(account, key), exclude_order
        ) or check_margin(execution, account, request, lots, price, exclude_order=exclude_order)

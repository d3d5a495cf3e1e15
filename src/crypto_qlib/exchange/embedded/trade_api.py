"""``/api/v5/trade/*``: place, cancel, amend, close, look up; orders and fills. Source: OKX API v5, "Order Book Trading"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.order import OrderRequest, OrderStatus, PositionKey, PositionSide, Side
from crypto_qlib.exchange.embedded import order_parsing as parse
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.order_rows import (
    child_order_row,
    fill_row,
    liquidation_row,
    order_row,
    pushed_fields,
    shown_id,
)
from crypto_qlib.exchange.embedded.paging import page
from crypto_qlib.exchange.embedded.paper_book import (
    BILL_ID_BASE,
    CHILD_ID_BASE,
    ORDER_ID_BASE,
    Ended,
    OrderChanged,
    PaperBook,
    PaperFill,
)
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.refusals import wire_refusal
from crypto_qlib.exchange.embedded.wire import Call, Reply, Row, WireRefusal, envelope, ms
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.venue.records import VenueOrder

_MAX_BATCH: Final = 20
_TICK_SLACK: Final = 1e-3
_ORDERS_KEPT_NS: Final = 7 * NS_PER_DAY
_CANCELED_KEPT_NS: Final = 2 * NS_PER_HOUR
_FILLS_KEPT_NS: Final = 3 * NS_PER_DAY
_ARCHIVE_KEPT_NS: Final = 92 * NS_PER_DAY


class TradeApi:
    """Handlers of the order endpoints.

    Parameters
    ----------
    window : MarketWindow
        Market and clock.
    venue : PaperVenue
        The simulated exchange.
    book : PaperBook
        OKX's ids and tags.
    """

    def __init__(self, window: MarketWindow, venue: PaperVenue, book: PaperBook) -> None:
        self._window = window
        self._venue = venue
        self._book = book
        self._by_symbol = {item.symbol: item for item in window.source.instruments()}
        self._n_anonymous = 0

    def place(self, call: Call) -> Reply:
        """Answer ``trade/order`` (one order)."""
        return self._each(call, self._place_one, most=1)

    def place_batch(self, call: Call) -> Reply:
        """Answer ``trade/batch-orders``: up to twenty, executed and answered in order."""
        return self._each(call, self._place_one, most=_MAX_BATCH)

    def cancel(self, call: Call) -> Reply:
        """Answer ``trade/cancel-order``."""
        return self._each(call, self._cancel_one, most=1)

    def cancel_batch(self, call: Call) -> Reply:
        """Answer ``trade/cancel-batch-orders``."""
        return self._each(call, self._cancel_one, most=_MAX_BATCH)

    def amend(self, call: Call) -> Reply:
        """Answer ``trade/amend-order``; keys it does not know are ignored, as OKX does."""
        return self._each(call, self._amend_one, most=1)

    def amend_batch(self, call: Call) -> Reply:
        """Answer ``trade/amend-batch-orders``."""
        return self._each(call, self._amend_one, most=_MAX_BATCH)

    def pushed_order(self, change: OrderChanged) -> Row:
        """Return the row of the orders channel; the fill's fields are empty unless a fill made the change."""
        order, account_id = change.order, change.account_id
        item = self._by_symbol[order.symbol]
        leverage = self._venue.exchange.leverage(account_id, *order.key)
        algo = self._book.algo_of_order(account_id, ORDER_ID_BASE + order.order_id)
        row = order_row(order, item, leverage, self._book.tag(account_id, order.order_id), change.fill, algo)
        return row | pushed_fields(change.fill, item, self._window.price(PriceKind.LAST, item.symbol), row)

    def pushed_child(self, account_id: str, fill: PaperFill) -> Row:
        """Return the row of the orders channel for an order the exchange made itself."""
        item = self._by_symbol[fill.fill.symbol]
        row = self._child_row(account_id, fill)
        return row | pushed_fields(fill, item, self._window.price(PriceKind.LAST, item.symbol), row)

    def pushed_fill(self, account_id: str, fill: PaperFill) -> Row:
        """Return the row of the fills channel."""
        item = self._by_symbol[fill.fill.symbol]
        return fill_row(fill, item, self._book.tag(account_id, fill.order_id - ORDER_ID_BASE))

    def liquidation_row(self, fill: PaperFill) -> Row:
        """Return the row of the public channel liquidation-orders."""
        return liquidation_row(fill, self._by_symbol[fill.fill.symbol])

    def close_position(self, call: Call) -> bytes | Reply:
        """Answer ``trade/close-position``: a reduce-only market order over the whole position."""
        if len(call.body) != 1:
            raise WireRefusal("50000")
        row = call.body[0]
        item = self._window.orderable(parse.required(row, "instId"))
        try:
            side = parse.position_side(row, hedged=self._venue.exchange.is_hedged(call.account_id))
        except WireRefusal as refusal:
            names = {"clOrdId": str(row.get("clOrdId", "")), "ordId": "", "tag": str(row.get("tag", ""))}
            return Reply([names | {"sCode": refusal.code, "sMsg": refusal.message}], "1")
        key = (item.symbol, parse.margin_mode(row, "mgnMode"), side)
        held = self._held_lots(call.account_id, key)
        if held == 0:
            raise WireRefusal("51023")
        name = parse.client_id(row, "clOrdId")
        largest = int(item.max_market_size / item.lot_size) if item.max_market_size < 1e18 else abs(held)  # noqa: PLR2004
        left = abs(held)
        while left:
            lots = min(left, largest)
            ident = name if left == abs(held) and name else self._anonymous_id()
            request = OrderRequest(
                ident, item.symbol, Side.of(-held), lots,
                margin_mode=key[1], reduce_only=side is PositionSide.NET, position_side=side,
            )  # fmt: skip
            self._submit(call.account_id, request)
            left -= lots
        return envelope([{"instId": item.inst_id, "posSide": side.value, "clOrdId": name, "tag": str(row.get("tag", ""))}])

    def order(self, call: Call) -> bytes:
        """Answer GET ``trade/order`` by ``ordId`` or ``clOrdId``; 51603 where neither names an order."""
        item = self._window.known(call.required("instId"))
        order_id, name = call.whole("ordId"), call.query.get("clOrdId", "")
        if order_id is None and not name:
            raise WireRefusal("50014", "ordId")
        if order_id is not None and order_id >= CHILD_ID_BASE:
            child = self._book.last_fill(call.account_id, order_id)
            if child is None:
                raise WireRefusal("51603")
            return envelope([self._child_row(call.account_id, child)])
        order = self._find(call.account_id, item, order_id, name)
        if order is None:
            raise WireRefusal("51603")
        return envelope([self._row(call.account_id, order)])

    def pending(self, call: Call) -> bytes:
        """Answer ``trade/orders-pending``."""
        orders = [order for order in self._venue.exchange.open_orders(call.account_id) if self._is_asked(call, order.symbol)]
        chosen = page(orders, call, _order_number, _created)
        return envelope([self._row(call.account_id, order) for order in chosen])

    def history(self, call: Call) -> bytes:
        """Answer ``trade/orders-history``: seven days; canceled ones without a fill two hours."""
        now = self._window.clock.market_ns
        return self._history(call, now - _ORDERS_KEPT_NS, now - _CANCELED_KEPT_NS)

    def history_archive(self, call: Call) -> bytes:
        """Answer ``trade/orders-history-archive``: three months, without canceled orders that never filled."""
        now = self._window.clock.market_ns
        return self._history(call, now - _ARCHIVE_KEPT_NS, now + 1)

    def fills(self, call: Call) -> bytes:
        """Answer ``trade/fills``: three days."""
        return self._fills(call, _FILLS_KEPT_NS)

    def fills_history(self, call: Call) -> bytes:
        """Answer ``trade/fills-history``: three months."""
        return self._fills(call, _ARCHIVE_KEPT_NS)

    def _each(self, call: Call, act: Callable[[str, Row], Row], most: int) -> Reply:
        if not call.body:
            raise WireRefusal("50000")
        if len(call.body) > most:
            raise WireRefusal("51000", "orders")
        rows: list[Row] = []
        for posted in call.body:
            names = {"clOrdId": str(posted.get("clOrdId", "")), "ordId": "", "tag": str(posted.get("tag", ""))}
            try:
                row = names | act(call.account_id, posted) | {"sCode": "0", "sMsg": ""}
            except WireRefusal as refusal:
                row = names | {"sCode": refusal.code, "sMsg": refusal.message}
            rows.append(row | {"ts": ms(self._window.clock.now_ns())})
        failed = sum(row["sCode"] != "0" for row in rows)
        return Reply(rows, "0" if not failed else "1" if failed == len(rows) else "2")

    def _place_one(self, account_id: str, posted: Row) -> Row:
        hedged = self._venue.exchange.is_hedged(account_id)
        order = parse.posted_order(posted, self._window, self._anonymous_id(), hedged=hedged)
        self._check_band(order.instrument, order.request.side, order.request.price)
        self._book.name_next_algo(account_id, order.request.key, order.algo_client_id)
        taken = self._submit(account_id, order.request)
        self._book.remember_tag(account_id, taken.order_id, order.tag)
        return {"ordId": str(ORDER_ID_BASE + taken.order_id)}

    def _submit(self, account_id: str, request: OrderRequest) -> VenueOrder:
        self._venue.begin_bar()
        order = self._venue.exchange.submit(account_id, request)
        if order.status is OrderStatus.REJECTED and order.refusal is not None:
            raise wire_refusal(order.refusal)
        return order

    def _cancel_one(self, account_id: str, posted: Row) -> Row:
        order = self._posted(account_id, posted, missing="51400")
        refusal = self._venue.exchange.cancel(account_id, order.symbol, order.client_order_id)
        if refusal is not None:
            raise WireRefusal("51400")
        return self._names(order)

    def _amend_one(self, account_id: str, posted: Row) -> Row:
        order = self._posted(account_id, posted, missing="51503")
        if order.status.is_final:
            raise WireRefusal("51503")
        item = self._by_symbol[order.symbol]
        lots = parse.lots(posted, "newSz", item) if "newSz" in posted else None
        price = parse.number(posted, "newPx") if "newPx" in posted else None
        if lots is None and price is None:
            raise WireRefusal("50014", "newSz")
        self._check_band(item, order.side, price)
        refusal = self._venue.exchange.amend(account_id, order.symbol, order.client_order_id, lots=lots, price=price)
        if refusal is not None:
            raise wire_refusal(refusal)
        return self._names(order) | {"reqId": str(posted.get("reqId", ""))}

    def _check_band(self, item: Instrument, side: Side, price: float | None) -> None:
        """Refuse a price beyond the limits ``public/price-limit`` shows; 51006."""
        highest, lowest = self._window.price_limits(item)
        slack = item.tick_size * _TICK_SLACK
        if price is not None and (price > highest + slack if side is Side.BUY else price < lowest - slack):
            raise WireRefusal("51006")

    def _posted(self, account_id: str, posted: Row, missing: str) -> VenueOrder:
        item = self._window.known(parse.required(posted, "instId"))
        text = str(posted.get("ordId", ""))
        if text and not text.isdecimal():
            raise WireRefusal("51000", "ordId")
        order = self._find(account_id, item, int(text) if text else None, str(posted.get("clOrdId", "")))
        if order is None:
            raise WireRefusal(missing)
        return order

    def _find(self, account_id: str, item: Instrument, order_id: int | None, name: str) -> VenueOrder | None:
        return self._book.find_order(account_id, item.symbol, order_id, name)

    def _history(self, call: Call, oldest_ns: int, oldest_canceled_ns: int) -> bytes:
        if call.query.get("instType", "SWAP") != "SWAP":
            return envelope([])
        account_id, state = call.account_id, call.query.get("state", "")

        def is_wanted(ended: Ended) -> bool:
            if ended.child is not None:
                return self._is_asked(call, ended.child.fill.symbol) and state in ("", "filled")
            order = self._book.order_of(account_id, ended.order_id)
            if order is None:
                return False
            gone = order.status is OrderStatus.CANCELED and not order.filled_lots and ended.ts_ns < oldest_canceled_ns
            return not gone and self._is_asked(call, order.symbol) and state in ("", order.status.value)

        chosen = page(self._book.ended(account_id), call, lambda e: e.order_id, lambda e: e.ts_ns, oldest_ns, is_wanted)
        return envelope([row for ended in chosen if (row := self._ended_row(account_id, ended)) is not None])

    def _fills(self, call: Call, kept_ns: int) -> bytes:
        if call.query.get("instType", "SWAP") != "SWAP":
            return envelope([])
        wanted = call.whole("ordId")
        chosen = page(
            self._book.fills(call.account_id), call, lambda f: BILL_ID_BASE + f.bill.bill_id, lambda f: f.fill.ts_ns,
            self._window.clock.market_ns - kept_ns,
            lambda f: self._is_asked(call, f.fill.symbol) and wanted in (None, f.order_id),
        )  # fmt: skip
        return envelope(
            [
                fill_row(f, self._by_symbol[f.fill.symbol], self._book.tag(call.account_id, f.order_id - ORDER_ID_BASE))
                for f in chosen
            ]
        )

    def _row(self, account_id: str, order: VenueOrder) -> Row:
        item = self._by_symbol[order.symbol]
        leverage = self._venue.exchange.leverage(account_id, *order.key)
        last_fill = self._book.last_fill(account_id, ORDER_ID_BASE + order.order_id)
        algo = self._book.algo_of_order(account_id, ORDER_ID_BASE + order.order_id)
        return order_row(order, item, leverage, self._book.tag(account_id, order.order_id), last_fill, algo)

    def _ended_row(self, account_id: str, ended: Ended) -> Row | None:
        if ended.child is not None:
            return self._child_row(account_id, ended.child)
        order = self._book.order_of(account_id, ended.order_id)
        return None if order is None else self._row(account_id, order)

    def _child_row(self, account_id: str, fill: PaperFill) -> Row:
        leverage = self._venue.exchange.leverage(account_id, *fill.key)
        algo = self._book.algo_of_order(account_id, fill.order_id)
        return child_order_row(fill, self._by_symbol[fill.fill.symbol], leverage, algo)

    def _held_lots(self, account_id: str, key: PositionKey) -> int:
        held = self._venue.exchange.snapshot(account_id).positions
        return next((p.position.lots for p in held if p.position.key == key), 0)

    def _is_asked(self, call: Call, symbol: str) -> bool:
        return call.query.get("instId", "") in ("", self._by_symbol[symbol].inst_id)

    def _names(self, order: VenueOrder) -> Row:
        return {"ordId": str(ORDER_ID_BASE + order.order_id), "clOrdId": shown_id(order.client_order_id)}

    def _anonymous_id(self) -> str:
        self._n_anonymous += 1
        return f"{parse.ANONYMOUS}{self._n_anonymous}"


def _order_number(order: VenueOrder) -> int:
    return ORDER_ID_BASE + order.order_id


def _created(order: VenueOrder) -> int:
    return order.created_ns

"""``/api/v5/trade/*algo*``: orders that wait for a price. Source: OKX API v5, "Algo Trading".

Two things are shown as algo orders: the venue's trigger orders, which a client places here, and the protection of a position
that came attached to the order which opened it. The latter is one stop and one take-profit over the whole position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.order import Protection
from crypto_qlib.exchange.embedded import order_parsing as parse
from crypto_qlib.exchange.embedded.algo_parsing import amended_trigger, posted_trigger
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.order_rows import algo_row
from crypto_qlib.exchange.embedded.paging import page
from crypto_qlib.exchange.embedded.paper_book import AlgoOrder, PaperBook
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.refusals import trigger_refusal, wire_refusal
from crypto_qlib.exchange.embedded.wire import Call, Reply, Row, WireRefusal, envelope
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.venue.refusals import Refusal

_MAX_CANCELS: Final = 10
_HISTORY_KEPT_NS: Final = 92 * NS_PER_DAY
_ENDED: Final = ("effective", "canceled", "order_failed")


class AlgoApi:
    """Handlers of the algo endpoints.

    Parameters
    ----------
    window : MarketWindow
        Market and clock.
    venue : PaperVenue
        The simulated exchange.
    book : PaperBook
        Keeps the algo orders' ids and states.
    """

    def __init__(self, window: MarketWindow, venue: PaperVenue, book: PaperBook) -> None:
        self._window = window
        self._venue = venue
        self._book = book
        self._by_symbol = {item.symbol: item for item in window.source.instruments()}
        self._n_triggers = 0

    def place(self, call: Call) -> Reply:
        """Answer POST ``trade/order-algo``."""
        return self._each(call, self._place_one, most=1)

    def cancel(self, call: Call) -> Reply:
        """Answer ``trade/cancel-algos``: up to ten."""
        return self._each(call, self._cancel_one, most=_MAX_CANCELS)

    def amend(self, call: Call) -> Reply:
        """Answer ``trade/amend-algos``."""
        return self._each(call, self._amend_one, most=1)

    def order(self, call: Call) -> bytes:
        """Answer GET ``trade/order-algo`` by ``algoId`` or ``algoClOrdId``."""
        algo = self._named(call.account_id, call.query.get("algoId", ""), call.query.get("algoClOrdId", ""))
        if algo is None:
            raise WireRefusal("51603")
        return envelope([self.row(call.account_id, algo)])

    def pending(self, call: Call) -> bytes:
        """Answer ``trade/orders-algo-pending``; ``ordType`` is mandatory, as at OKX."""
        return self._listed(call, ("live",))

    def history(self, call: Call) -> bytes:
        """Answer ``trade/orders-algo-history`` by ``state`` or ``algoId``: three months."""
        state = call.query.get("state", "")
        if not state and not call.query.get("algoId", ""):
            raise WireRefusal("50014", "state")
        return self._listed(call, (state,) if state else _ENDED)

    def row(self, account_id: str, algo: AlgoOrder) -> Row:
        """Return a row of ``trade/orders-algo-pending``."""
        leverage = self._venue.exchange.leverage(account_id, *algo.key)
        return algo_row(algo, self._by_symbol[algo.key[0]], leverage, self._window.price(PriceKind.LAST, algo.key[0]))

    def _each(self, call: Call, act: Callable[[str, Row], Row], most: int) -> Reply:
        if not call.body:
            raise WireRefusal("50000")
        if len(call.body) > most:
            raise WireRefusal("51000", "algoId")
        rows: list[Row] = []
        for posted in call.body:
            own_id = str(posted.get("algoClOrdId", posted.get("clOrdId", "")))
            names = {"algoId": str(posted.get("algoId", "")), "algoClOrdId": own_id, "clOrdId": own_id, "tag": ""}
            try:
                rows.append(names | act(call.account_id, posted) | {"sCode": "0", "sMsg": ""})
            except WireRefusal as refusal:
                rows.append(names | {"sCode": refusal.code, "sMsg": refusal.message})
        failed = sum(row["sCode"] != "0" for row in rows)
        return Reply(rows, "0" if not failed else "1" if failed == len(rows) else "2")

    def _place_one(self, account_id: str, posted: Row) -> Row:
        item = self._window.orderable(parse.required(posted, "instId"))
        hedged = self._venue.exchange.is_hedged(account_id)
        self._n_triggers += 1
        child = f"{parse.ANONYMOUS}T{self._n_triggers}"
        request = posted_trigger(posted, item, hedged=hedged, order_client_id=child)
        self._venue.begin_bar()
        made = self._venue.exchange.place_trigger(account_id, request)
        if isinstance(made, Refusal):
            raise trigger_refusal(made, request.side)
        algo = self._book.algo_of_trigger(account_id, made.trigger_id)
        return {"algoId": str(algo.algo_id)}

    def _cancel_one(self, account_id: str, posted: Row) -> Row:
        algo = self._live(account_id, posted)
        if algo.trigger is not None:
            self._venue.exchange.cancel_trigger(account_id, algo.trigger.trigger_id)
        else:
            symbol, mode, side = algo.key
            self._venue.exchange.set_protection(account_id, symbol, mode, None, side)
        return {"algoId": str(algo.algo_id)}

    def _amend_one(self, account_id: str, posted: Row) -> Row:
        algo = self._live(account_id, posted)
        item = self._by_symbol[algo.key[0]]
        if algo.trigger is not None:
            request = amended_trigger(posted, algo.trigger.request, item)
            self._venue.begin_bar()
            refusal = self._venue.exchange.amend_trigger(account_id, algo.trigger.trigger_id, request)
            if refusal is not None:
                raise trigger_refusal(refusal, request.side)
        else:
            symbol, mode, side = algo.key
            levels = _amended_protection(posted, algo.protection)
            refusal = self._venue.exchange.set_protection(account_id, symbol, mode, levels, side)
            if refusal is not None:
                raise wire_refusal(refusal)
        return {"algoId": str(algo.algo_id), "reqId": str(posted.get("reqId", ""))}

    def _live(self, account_id: str, posted: Row) -> AlgoOrder:
        algo = self._named(account_id, str(posted.get("algoId", "")), str(posted.get("algoClOrdId", "")))
        if algo is None or algo.state != "live":
            raise WireRefusal("51400")
        return algo

    def _listed(self, call: Call, states: tuple[str, ...]) -> bytes:
        kinds = call.required("ordType").split(",")
        inst_id, algo_id = call.query.get("instId", ""), call.query.get("algoId", "")

        def is_wanted(algo: AlgoOrder) -> bool:
            is_kind = algo.state in states and algo.kind in kinds and algo_id in ("", str(algo.algo_id))
            return is_kind and inst_id in ("", self._by_symbol[algo.key[0]].inst_id)

        algos = self._book.algos(call.account_id)
        oldest_ns = 0 if "live" in states else self._window.clock.market_ns - _HISTORY_KEPT_NS
        chosen = page(algos, call, lambda algo: algo.algo_id, lambda algo: algo.created_ns, oldest_ns, is_wanted)
        return envelope([self.row(call.account_id, algo) for algo in chosen])

    def _named(self, account_id: str, algo_id: str, client_id: str) -> AlgoOrder | None:
        for algo in reversed(self._book.algos(account_id)):
            if (algo_id and str(algo.algo_id) == algo_id) or (not algo_id and client_id and algo.client_id == client_id):
                return algo
        return None


def _amended_protection(posted: Row, before: Protection) -> Protection:
    stop = parse.number(posted, "newSlTriggerPx") if "newSlTriggerPx" in posted else before.stop_price
    target = parse.number(posted, "newTpTriggerPx") if "newTpTriggerPx" in posted else before.take_profit_price
    if (stop, target) == (before.stop_price, before.take_profit_price):
        raise WireRefusal("50014", "newSlTriggerPx")
    return replace(before, stop_price=stop, take_profit_price=target)

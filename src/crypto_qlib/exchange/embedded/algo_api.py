"""``/api/v5/trade/*algo*``: stop-loss and take-profit as algo orders. Source: OKX API v5, "Algo Trading".

The venue protects positions: one stop and one take-profit each, over the whole position. A posted ``conditional`` or ``oco``
therefore needs an open position, closes it, and is merged with the level of the other kind that is already set.
"""

from __future__ import annotations

from dataclasses import replace

from crypto_qlib.core.order import PositionKey, Protection
from crypto_qlib.core.position import Position
from crypto_qlib.exchange.embedded import order_parsing as parse
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.order_rows import algo_row
from crypto_qlib.exchange.embedded.paging import page
from crypto_qlib.exchange.embedded.paper_book import AlgoOrder, PaperBook
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.refusals import wire_refusal
from crypto_qlib.exchange.embedded.wire import Call, Reply, Row, WireRefusal, envelope
from crypto_qlib.exchange.gateway import PriceKind

_PROTECTIVE = ("conditional", "oco")


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

    def place(self, call: Call) -> Reply:
        """Answer POST ``trade/order-algo``."""
        if len(call.body) != 1:
            raise WireRefusal("50000")
        posted = call.body[0]
        names = {"algoClOrdId": str(posted.get("algoClOrdId", posted.get("clOrdId", ""))), "algoId": "", "tag": ""}
        try:
            algo = self._place_one(call.account_id, posted, names["algoClOrdId"])
        except WireRefusal as refusal:
            return Reply([names | {"clOrdId": "", "sCode": refusal.code, "sMsg": refusal.message}], "1")
        return Reply([names | {"algoId": str(algo.algo_id), "clOrdId": names["algoClOrdId"], "sCode": "0", "sMsg": ""}])

    def cancel(self, call: Call) -> Reply:
        """Answer ``trade/cancel-algos``."""
        if not call.body:
            raise WireRefusal("50000")
        rows: list[Row] = []
        for posted in call.body:
            row = {"algoId": str(posted.get("algoId", "")), "algoClOrdId": str(posted.get("algoClOrdId", "")), "tag": ""}
            try:
                algo = self._named(call.account_id, row["algoId"], row["algoClOrdId"])
                if algo is None or algo.state != "live":
                    raise WireRefusal("51400")
                symbol, mode, side = algo.key
                self._venue.exchange.set_protection(call.account_id, symbol, mode, None, side)
                rows.append(row | {"algoId": str(algo.algo_id), "sCode": "0", "sMsg": ""})
            except WireRefusal as refusal:
                rows.append(row | {"sCode": refusal.code, "sMsg": refusal.message})
        failed = sum(row["sCode"] != "0" for row in rows)
        return Reply(rows, "0" if not failed else "1" if failed == len(rows) else "2")

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
        """Answer ``trade/orders-algo-history`` by ``state`` or ``algoId``."""
        state = call.query.get("state", "")
        if not state and not call.query.get("algoId", ""):
            raise WireRefusal("50014", "state")
        return self._listed(call, (state,) if state else ("effective", "canceled"))

    def _place_one(self, account_id: str, posted: Row, client_id: str) -> AlgoOrder:
        item = self._window.tradable(parse.required(posted, "instId"))
        pos_side = parse.position_side(posted, hedged=self._venue.exchange.is_hedged(account_id))
        if parse.required(posted, "ordType") not in _PROTECTIVE:
            raise WireRefusal("51000", "ordType")
        parse.client_id({"algoClOrdId": client_id} if client_id else {}, "algoClOrdId")
        mode = parse.margin_mode(posted, "tdMode")
        levels = parse.protection_in(posted)
        if levels is None:
            raise WireRefusal("50014", "slTriggerPx")
        key = (item.symbol, mode, pos_side)
        held = self._position(account_id, key)
        closes_long = parse.required(posted, "side") == "sell"
        if held is None or (held.lots > 0) != closes_long:
            raise WireRefusal("51169")
        if "closeFraction" not in posted and parse.lots(posted, "sz", item) < abs(held.lots):
            raise WireRefusal("51000", "sz")
        self._book.name_next_algo(account_id, key, client_id)
        refusal = self._venue.exchange.set_protection(
            account_id, item.symbol, mode, self._merged(account_id, key, levels), pos_side
        )
        if refusal is not None:
            raise wire_refusal(refusal)
        algo = self._book.live_algo(account_id, key)
        assert algo is not None
        return algo

    def _merged(self, account_id: str, key: PositionKey, levels: Protection) -> Protection:
        before = self._book.live_algo(account_id, key)
        if before is None:
            return levels
        old = before.protection
        stop = old.stop_price if levels.stop_price is None else levels.stop_price
        target = old.take_profit_price if levels.take_profit_price is None else levels.take_profit_price
        return replace(levels, stop_price=stop, take_profit_price=target)

    def _position(self, account_id: str, key: PositionKey) -> Position | None:
        held = self._venue.exchange.snapshot(account_id).positions
        return next((p.position for p in held if p.position.key == key), None)

    def _listed(self, call: Call, states: tuple[str, ...]) -> bytes:
        kinds = call.required("ordType").split(",")
        inst_id, algo_id = call.query.get("instId", ""), call.query.get("algoId", "")
        found = [
            algo
            for algo in self._book.algos(call.account_id)
            if algo.state in states
            and algo.kind in kinds
            and inst_id in ("", self._by_symbol[algo.key[0]].inst_id)
            and algo_id in ("", str(algo.algo_id))
        ]
        chosen = page(found, call, lambda algo: algo.algo_id, lambda algo: algo.created_ns)
        return envelope([self.row(call.account_id, algo) for algo in chosen])

    def _named(self, account_id: str, algo_id: str, client_id: str) -> AlgoOrder | None:
        for algo in reversed(self._book.algos(account_id)):
            if (algo_id and str(algo.algo_id) == algo_id) or (not algo_id and client_id and algo.client_id == client_id):
                return algo
        return None

    def row(self, account_id: str, algo: AlgoOrder) -> Row:
        """Return a row of ``trade/orders-algo-pending``."""
        leverage = self._venue.exchange.leverage(account_id, *algo.key)
        return algo_row(algo, self._by_symbol[algo.key[0]], leverage, self._window.price(PriceKind.LAST, algo.key[0]))

"""What the private sockets push: orders, fills, algo orders, then the balance and positions they left behind.

The one source is the venue's events, taken in by :class:`PaperBook` in the order they happened. Each order, fill and algo
order is pushed as it stood at its event; balance and positions follow once per batch of events, as they stand after it, and
once per step of the market while a position is open. Source: OKX API v5, private channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from crypto_qlib.core.order import ExitKind
from crypto_qlib.exchange.embedded.account_rows import closed_row
from crypto_qlib.exchange.embedded.paper_book import AlgoChanged, BookChange, FillMade, OrderChanged
from crypto_qlib.exchange.embedded.paper_desk import PaperDesk
from crypto_qlib.exchange.embedded.push_hub import PushHub, Topic
from crypto_qlib.exchange.embedded.wire import Row
from crypto_qlib.venue.records import FundingPaid

ACCOUNT_CHANNELS: Final = frozenset(
    ("account", "positions", "balance_and_position", "orders", "orders-algo", "fills", "liquidation-warning")
)
_WARNED_BELOW: Final = 3.0
"""Margin ratio (300 %) below which ``liquidation-warning`` shows a position."""
_BALANCE_EVENTS: Final = {
    ExitKind.LIQUIDATION: "liquidation", ExitKind.PARTIAL_LIQUIDATION: "liquidation", ExitKind.ADL: "adl",
    ExitKind.DELISTED: "delivered",
}  # fmt: skip

Push = tuple[list[Row], Mapping[str, object] | None]


class AccountFeed:
    """Push what happens to accounts.

    Parameters
    ----------
    desk : PaperDesk
        Its book tells what happened, its handlers render the rows REST answers with.
    hub : PushHub
        Who listens.
    """

    def __init__(self, desk: PaperDesk, hub: PushHub) -> None:
        self._book = desk.book
        self._account = desk.account
        self._trade = desk.trade
        self._algo = desk.algo
        self._hub = hub
        self._waiting: list[BookChange] = []
        self._shown: dict[str, dict[str, Row]] = {}
        self._touched: dict[str, tuple[str, list[Row]]] = {}
        desk.book.listener = self._notice

    def snapshots(self, topic: Topic) -> Iterable[Push]:
        """Return what a new subscriber is shown at once; orders and fills have no snapshot, as at OKX."""
        account_id, paged = topic.of, {"eventType": "snapshot", "curPage": 1, "lastPage": True}
        if topic.channel == "account":
            yield [self._account.balance_of(account_id)], paged
        elif topic.channel == "positions":
            rows = self._account.position_rows(account_id)
            self._shown[account_id] = {row["posId"]: row for row in rows}
            yield [row | {"pTime": self._account.now_ms()} for row in rows], paged
        elif topic.channel == "balance_and_position":
            yield [self._balance_and_position(account_id, "snapshot", [])], None

    def tell(self) -> None:
        """Push what happened since the last call."""
        self._book.sync()
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            self._take(change)
        touched, self._touched = self._touched, {}
        for account_id, (event, trades) in touched.items():
            self._tell_account(account_id)
            topic = Topic("balance_and_position", account_id)
            if event and self._hub.has(topic):
                self._hub.publish(topic, [self._balance_and_position(account_id, event, trades)])

    def moved(self) -> None:
        """Push what a step of the market did, and the new value of open positions."""
        self._book.sync()
        for account_id in self._book.accounts():
            if self._account.has_positions(account_id):
                self._touched.setdefault(account_id, ("", []))
        self.tell()

    def touch(self, account_id: str, event: str = "transferred") -> None:
        """Have the balance and positions of an account pushed by the next :meth:`tell`, whatever the venue's events say."""
        self._touched.setdefault(account_id, (event, []))

    def _tell_account(self, account_id: str) -> None:
        paged = {"eventType": "event_update", "curPage": 1, "lastPage": True}
        if self._hub.has(Topic("account", account_id)):
            self._hub.publish(Topic("account", account_id), [self._account.balance_of(account_id)], paged)
        rows = None
        if self._hub.has(Topic("positions", account_id)):
            rows = self._account.position_rows(account_id)
            now, before = {row["posId"]: row for row in rows}, self._shown.get(account_id, {})
            self._shown[account_id] = now
            gone = [closed_row(row, self._account.now_ms()) for name, row in before.items() if name not in now]
            fresh = [row | {"pTime": self._account.now_ms()} for row in rows]
            self._hub.publish(Topic("positions", account_id), gone + fresh, paged)
        warning = Topic("liquidation-warning", account_id)
        if self._hub.has(warning):
            rows = self._account.position_rows(account_id) if rows is None else rows
            near = [row for row in rows if row["mgnRatio"] and float(row["mgnRatio"]) <= _WARNED_BELOW]
            self._hub.publish(warning, [row | {"pTime": self._account.now_ms()} for row in near])

    def _notice(self, change: BookChange) -> None:
        # Pushed by the next ``tell``: an operation is answered before what it set off is told.
        if self._hub.topics():
            self._waiting.append(change)

    def _take(self, change: BookChange) -> None:
        account_id = change.account_id
        if isinstance(change, OrderChanged):
            if self._hub.has(Topic("orders", account_id)):
                self._hub.publish(Topic("orders", account_id), [self._trade.pushed_order(change)])
            self._touch_by(account_id, "", None)
        elif isinstance(change, FillMade):
            self._take_fill(change)
        elif isinstance(change, AlgoChanged):
            if self._hub.has(Topic("orders-algo", account_id)):
                self._hub.publish(Topic("orders-algo", account_id), [self._algo.row(account_id, change.algo)])
        elif isinstance(change, FundingPaid):
            self._touch_by(account_id, "funding_fee", None)

    def _take_fill(self, change: FillMade) -> None:
        account_id, fill = change.account_id, change.fill
        row = self._trade.pushed_fill(account_id, fill)
        self._hub.publish(Topic("fills", account_id), [row])
        if change.is_exchanges_own and self._hub.has(Topic("orders", account_id)):
            self._hub.publish(Topic("orders", account_id), [self._trade.pushed_child(account_id, fill)])
        kind = fill.fill.exit_kind
        event = _BALANCE_EVENTS.get(kind, "filled") if kind else "filled"
        self._touch_by(account_id, event, {"instId": row["instId"], "tradeId": row["tradeId"]})
        if event == "liquidation":
            self._hub.publish(Topic("liquidation-orders", "SWAP"), [self._trade.liquidation_row(fill)])

    def _touch_by(self, account_id: str, event: str, trade: Row | None) -> None:
        known, trades = self._touched.get(account_id, ("", []))
        if trade is not None:
            trades.append(trade)
        self._touched[account_id] = (event or known, trades)

    def _balance_and_position(self, account_id: str, event: str, trades: list[Row]) -> Row:
        names = ("posId", "tradeId", "instId", "instType", "mgnMode", "posSide", "pos", "ccy", "posCcy", "avgPx", "uTime")
        balance = self._account.balance_of(account_id)["details"][0]
        positions = [
            {name: row[name] for name in names} | {"nonSettleAvgPx": "", "settledPnl": ""}
            for row in self._account.position_rows(account_id)
        ]
        return {
            "pTime": self._account.now_ms(), "eventType": event,
            "balData": [{name: balance[name] for name in ("ccy", "cashBal", "uTime")}],
            "posData": positions, "trades": trades,
        }  # fmt: skip

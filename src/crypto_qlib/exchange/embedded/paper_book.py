"""What OKX shows besides the venue's own records: which order a fill belongs to, and protection as algo orders.

The venue attaches stop-loss and take-profit to a *position*; OKX shows them as an ``oco`` (both) or ``conditional`` (one)
algo order with its own id, which turns ``effective`` and names a child order when it fires. The book follows the venue's
events and keeps those records; it decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from crypto_qlib.core.order import ExitKind, Fill, MarginMode, OrderStatus, PositionKey, PositionSide, Protection, Side
from crypto_qlib.venue.records import Bill, BillKind, Filled, FundingPaid, OrderUpdated, ProtectionSet, VenueEvent, VenueOrder
from crypto_qlib.venue.simulator import SimulatedExchange
from crypto_qlib.venue.trigger_records import TriggerOrder, TriggerUpdated

ORDER_ID_BASE: Final = 10**17
CHILD_ID_BASE: Final = 2 * 10**17
ALGO_ID_BASE: Final = 3 * 10**17
BILL_ID_BASE: Final = 4 * 10**17
_PROTECTIVE: Final = {ExitKind.STOP: "sl", ExitKind.TRAILING: "sl", ExitKind.TAKE_PROFIT: "tp"}
_DEALS: Final = (BillKind.TRADE, BillKind.LIQUIDATION, BillKind.DELISTING, BillKind.ADL)


@dataclass(frozen=True, slots=True)
class PaperFill:
    """A fill with the ids OKX shows.

    Parameters
    ----------
    fill : Fill
        What happened.
    bill : Bill
        How it moved money.
    margin_mode : MarginMode
        Of the position.
    pnl : float
        Price PnL it realised, USDT.
    trade_id : int
        Running number in the account.
    position_side : PositionSide
        Of the position.
    order_id : int
        OKX-like id of the order; a child id where the exchange itself traded (stop, liquidation, delisting).
    """

    fill: Fill
    bill: Bill
    margin_mode: MarginMode
    pnl: float
    trade_id: int
    order_id: int
    position_side: PositionSide = PositionSide.NET

    @property
    def key(self) -> PositionKey:
        """Return the position it belongs to."""
        return self.fill.symbol, self.margin_mode, self.position_side


@dataclass(frozen=True, slots=True)
class AlgoOrder:
    """A trigger order, or the protection of a position, as an algo order.

    Parameters
    ----------
    algo_id : int
        OKX-like id.
    client_id : str
        ``algoClOrdId``; empty where none was given.
    key : tuple
        (symbol, margin mode, side) of the position.
    protection : Protection
        Its levels.
    closes_long : bool
        Whether it sells.
    lots : int
        Size of the position it protects when it was set.
    created_ns, updated_ns : int
        Instants.
    state : str
        ``live``, ``effective`` or ``canceled``.
    child_id : int
        Order that carried it out; 0 before.
    fired_side : str
        ``sl`` or ``tp`` once effective.
    trigger : TriggerOrder | None
        The venue's own trigger order; ``None`` for the protection of a position.
    """

    algo_id: int
    client_id: str
    key: PositionKey
    protection: Protection
    closes_long: bool
    lots: int
    created_ns: int
    updated_ns: int
    state: str = "live"
    child_id: int = 0
    fired_side: str = ""
    trigger: TriggerOrder | None = None

    @property
    def kind(self) -> str:
        """Return OKX's ``ordType``."""
        if self.trigger is not None:
            return self.trigger.request.kind.value
        both = self.protection.stop_price is not None and self.protection.take_profit_price is not None
        return "oco" if both else "conditional"


@dataclass(frozen=True, slots=True)
class OrderChanged:
    """An order as it stood after a change; ``fill`` is the one that changed it, if one did."""

    account_id: str
    order: VenueOrder
    fill: PaperFill | None


@dataclass(frozen=True, slots=True)
class FillMade:
    """A fill; ``is_exchanges_own`` where no client's order was behind it."""

    account_id: str
    fill: PaperFill
    is_exchanges_own: bool


@dataclass(frozen=True, slots=True)
class AlgoChanged:
    """An algo order as it stood after a change."""

    account_id: str
    algo: AlgoOrder


BookChange = OrderChanged | FillMade | AlgoChanged | FundingPaid


@dataclass(frozen=True, slots=True)
class Ended:
    """An order that came to its end: its OKX-like id and when; ``child`` is the fill of one the exchange made itself."""

    order_id: int
    ts_ns: int
    child: PaperFill | None = None


@dataclass(slots=True)
class _Account:
    fills: list[PaperFill] = field(default_factory=list)
    n_fills: int = 0
    ended: list[Ended] = field(default_factory=list)
    by_bill: dict[int, PaperFill] = field(default_factory=dict)
    last_fills: dict[int, PaperFill] = field(default_factory=dict)
    named: dict[tuple[str, str], int] = field(default_factory=dict)
    unassigned: list[int] = field(default_factory=list)
    bills_read: int = 0
    algos: dict[int, AlgoOrder] = field(default_factory=dict)
    live: dict[PositionKey, int] = field(default_factory=dict)
    lots: dict[PositionKey, int] = field(default_factory=dict)
    triggers: dict[int, int] = field(default_factory=dict)
    children: dict[int, int] = field(default_factory=dict)
    tags: dict[int, str] = field(default_factory=dict)
    algo_client_ids: dict[PositionKey, str] = field(default_factory=dict)

    def forget(self, before_ns: int, kept_orders: set[int]) -> None:
        """Keep no record of what ended before ``before_ns``, nor of orders that are not among ``kept_orders``."""
        assert not self.unassigned, "fills are looked up by place while their order is not told"
        del self.fills[: bisect_left(self.fills, before_ns, key=lambda fill: fill.fill.ts_ns)]
        kept_bills = {fill.bill.bill_id for fill in self.fills}
        self.by_bill = {number: fill for number, fill in self.by_bill.items() if number in kept_bills}
        self.ended = [e for e in self.ended if e.ts_ns >= before_ns and (e.child is not None or e.order_id in kept_orders)]
        kept = kept_orders | {e.order_id for e in self.ended}
        self.last_fills = {number: fill for number, fill in self.last_fills.items() if number in kept}
        self.tags = {number: tag for number, tag in self.tags.items() if ORDER_ID_BASE + number in kept_orders}
        self.named = {key: number for key, number in self.named.items() if ORDER_ID_BASE + number in kept_orders}
        over = {n for n, algo in self.algos.items() if algo.state != "live" and algo.updated_ns < before_ns}
        self.algos = {n: algo for n, algo in self.algos.items() if n not in over}
        self.children = {child: n for child, n in self.children.items() if n not in over}
        self.triggers = {trigger: n for trigger, n in self.triggers.items() if n not in over}


class PaperBook:
    """Follow the venue's events; ask :meth:`sync` before reading.

    Parameters
    ----------
    exchange : SimulatedExchange
        The venue; this book is the only reader of its events.

    Attributes
    ----------
    listener : callable | None
        Is told every change, in the order in which things happened.
    """

    def __init__(self, exchange: SimulatedExchange) -> None:
        self._exchange = exchange
        self.listener: Callable[[BookChange], None] | None = None
        self._accounts: dict[str, _Account] = {}
        self._next_child = CHILD_ID_BASE + 1
        self._next_algo = ALGO_ID_BASE + 1
        self._listeners: list[Callable[[VenueEvent], None]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Who listens belongs to the running server, not to the state.
        return self.__dict__ | {"_listeners": [], "listener": None}

    def tell(self, listener: Callable[[VenueEvent], None]) -> None:
        """Call ``listener`` with every event from now on, after the book has taken it in."""
        self._listeners.append(listener)

    def fills(self, account_id: str) -> list[PaperFill]:
        """Return all fills, oldest first."""
        self.sync()
        return self._of(account_id).fills

    def ended(self, account_id: str) -> list[Ended]:
        """Return the orders that came to their end, in that order (refused ones never existed)."""
        self.sync()
        return self._of(account_id).ended

    def fill_of_bill(self, account_id: str, bill_id: int) -> PaperFill | None:
        """Return the fill that moved the money of a bill, if one did."""
        self.sync()
        return self._of(account_id).by_bill.get(bill_id)

    def order_of(self, account_id: str, order_id: int) -> VenueOrder | None:
        """Return the order with OKX-like id ``order_id``."""
        return self._exchange.order(account_id, order_id - ORDER_ID_BASE)

    def forget(self, before_ns: int) -> None:
        """Keep no record of what ended before ``before_ns``, nor of orders the venue keeps no more."""
        self.sync()
        for account_id, account in self._accounts.items():
            account.forget(before_ns, {ORDER_ID_BASE + order.order_id for order in self._exchange.orders(account_id)})

    def last_fill(self, account_id: str, order_id: int) -> PaperFill | None:
        """Return the latest fill of the order with OKX-like id ``order_id``, if it has one."""
        self.sync()
        return self._of(account_id).last_fills.get(order_id)

    def accounts(self) -> tuple[str, ...]:
        """Return the accounts anything has happened in."""
        return tuple(self._accounts)

    def algos(self, account_id: str) -> list[AlgoOrder]:
        """Return all algo orders, oldest first."""
        self.sync()
        return list(self._of(account_id).algos.values())

    def algo_of_trigger(self, account_id: str, trigger_id: int) -> AlgoOrder:
        """Return the algo order that shows the venue's trigger order ``trigger_id``."""
        self.sync()
        account = self._of(account_id)
        return account.algos[account.triggers[trigger_id]]

    def algo_of_order(self, account_id: str, order_id: int) -> AlgoOrder | None:
        """Return the algo order that became the order with OKX-like id ``order_id``, if one did."""
        account = self._of(account_id)
        number = account.children.get(order_id)
        return None if number is None else account.algos[number]

    def live_algo(self, account_id: str, key: PositionKey) -> AlgoOrder | None:
        """Return the algo order that protects a position, if any."""
        self.sync()
        account = self._of(account_id)
        return account.algos[account.live[key]] if key in account.live else None

    def find_order(self, account_id: str, symbol: str, order_id: int | None, client_id: str) -> VenueOrder | None:
        """Return the order with this OKX-like id, else the latest that carried the client's id; ``None`` if neither exists.

        A client id may be used again once its order is final.
        """
        self.sync()
        own_id = self._of(account_id).named.get((symbol, client_id), 0) if order_id is None else order_id - ORDER_ID_BASE
        order = self._exchange.order(account_id, own_id)
        if order is None or order.symbol != symbol or order.status is OrderStatus.REJECTED:
            return None
        return order

    def tag(self, account_id: str, order_id: int) -> str:
        """Return the client's tag of an order."""
        return self._of(account_id).tags.get(order_id, "")

    def remember_tag(self, account_id: str, order_id: int, tag: str) -> None:
        """Keep the client's tag of an order."""
        if tag:
            self._of(account_id).tags[order_id] = tag

    def name_next_algo(self, account_id: str, key: PositionKey, client_id: str) -> None:
        """Give the algo order set next on ``key`` this client id."""
        if client_id:
            self._of(account_id).algo_client_ids[key] = client_id

    def sync(self) -> None:
        """Take in what happened since the last call."""
        for event in self._exchange.drain_events():
            self._take(event)
            for listener in self._listeners:
                listener(event)

    def _take(self, event: VenueEvent) -> None:
        account = self._of(event.account_id)
        if isinstance(event, Filled):
            self._take_fill(account, event)
        elif isinstance(event, OrderUpdated):
            self._take_order(account, event)
        elif isinstance(event, ProtectionSet):
            self._take_protection(account, event)
        elif isinstance(event, TriggerUpdated):
            self._take_trigger(account, event)
        elif isinstance(event, FundingPaid):
            self._tell(event)

    def _take_trigger(self, account: _Account, event: TriggerUpdated) -> None:
        trigger = event.trigger
        number = account.triggers.get(trigger.trigger_id, 0)
        if not number:
            number, self._next_algo = self._next_algo, self._next_algo + 1
            account.triggers[trigger.trigger_id] = number
        child_id = ORDER_ID_BASE + trigger.order_id if trigger.order_id else 0
        if child_id:
            account.children[child_id] = number
        account.algos[number] = AlgoOrder(
            number, trigger.request.client_id, trigger.key, Protection(), trigger.request.side is Side.SELL,
            trigger.request.lots, trigger.created_ns, trigger.updated_ns, trigger.state.value, child_id,
            _PROTECTIVE.get(trigger.fired, "") if trigger.fired else "", trigger,
        )  # fmt: skip
        self._tell(AlgoChanged(event.account_id, account.algos[number]))

    def _take_order(self, account: _Account, event: OrderUpdated) -> None:
        # The fill of an order is told just before the order's new state, which names the order's id.
        made: PaperFill | None = None
        order_id = ORDER_ID_BASE + event.order.order_id
        for at in [k for k in account.unassigned if account.fills[k].fill.client_order_id == event.order.client_order_id]:
            made = account.fills[at] = replace(account.fills[at], order_id=order_id)
            account.last_fills[order_id] = account.by_bill[made.bill.bill_id] = made
            account.unassigned.remove(at)
            self._tell(FillMade(event.account_id, made, is_exchanges_own=False))
        if event.order.status is not OrderStatus.REJECTED:
            if event.order.client_order_id:
                key = (event.order.symbol, event.order.client_order_id)
                account.named[key] = max(account.named.get(key, 0), event.order.order_id)
            if event.order.status.is_final:
                account.ended.append(Ended(order_id, event.order.updated_ns))
            self._tell(OrderChanged(event.account_id, event.order, made))

    def _tell(self, change: BookChange) -> None:
        if self.listener is not None:
            self.listener(change)

    def _take_fill(self, account: _Account, event: Filled) -> None:
        deals = [b for b in self._exchange.bills(event.account_id, account.bills_read) if b.kind in _DEALS and b.signed_lots]
        bill = deals[0]
        account.bills_read = bill.bill_id
        child_id = 0
        if event.fill.client_order_id:
            account.unassigned.append(len(account.fills))
        else:
            child_id, self._next_child = self._next_child, self._next_child + 1
        number = account.n_fills = account.n_fills + 1
        fill = PaperFill(event.fill, bill, event.margin_mode, event.pnl, number, child_id, event.position_side)
        account.fills.append(fill)
        if child_id:
            account.last_fills[child_id] = account.by_bill[bill.bill_id] = fill
            account.ended.append(Ended(child_id, event.ts_ns, fill))
            self._tell(FillMade(event.account_id, fill, is_exchanges_own=True))
        key = fill.key
        account.lots[key] = account.lots.get(key, 0) + event.fill.signed_lots
        fired = _PROTECTIVE.get(event.fill.exit_kind) if event.fill.exit_kind and child_id else None
        if fired and key in account.live:
            self._end(event.account_id, key, "effective", event.ts_ns, child_id, fired)
        elif account.lots[key] == 0 and key in account.live:
            self._end(event.account_id, key, "canceled", event.ts_ns)

    def _take_protection(self, account: _Account, event: ProtectionSet) -> None:
        key = (event.symbol, event.margin_mode, event.position_side)
        if key in account.live:
            self._end(event.account_id, key, "canceled", event.ts_ns)
        if event.protection is None:
            return
        size = account.lots.get(key, 0)
        number, self._next_algo = self._next_algo, self._next_algo + 1
        name = account.algo_client_ids.pop(key, "")
        account.algos[number] = AlgoOrder(
            number, name, key, event.protection, size > 0, abs(size), event.ts_ns, event.ts_ns
        )  # fmt: skip
        account.live[key] = number
        self._tell(AlgoChanged(event.account_id, account.algos[number]))

    def _of(self, account_id: str) -> _Account:
        return self._accounts.setdefault(account_id, _Account())

    def _end(self, account_id: str, key: PositionKey, state: str, ts_ns: int, child_id: int = 0, fired_side: str = "") -> None:
        account = self._of(account_id)
        number = account.live.pop(key)
        account.algos[number] = replace(
            account.algos[number], state=state, updated_ns=ts_ns, child_id=child_id, fired_side=fired_side
        )  # fmt: skip
        if child_id:
            account.children[child_id] = number
        self._tell(AlgoChanged(account_id, account.algos[number]))

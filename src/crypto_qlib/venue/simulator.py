"""The simulated exchange: one venue for the backtest's reference path and for the embedded server.

Time moves in bars. ``begin_bar`` shows a bar's open, clients may then send orders that fill at that open, ``end_bar`` lives
through the inside of the bar and moves the clock to its close. Per bar and account:

begin_bar
    0. A symbol whose listing ended closes at its last mark (taker fee, no slippage); its orders are cancelled.
    1. Funding at the open instant on positions carried in, at the mark open (``funding_clock``): isolated from margin, cross
       from cash, capped where the payer's ratio would fall below 1.
    2. Gap test on the mark open: a ratio at or below 1 is liquidated there, before any stop. Cross account first; its open
       orders are cancelled before it is.
    3. Stops, trailing stops and take-profits already passed fill at the last open, with slippage.
       Trigger orders the open has passed already become orders.
    4. Positions whose time is up leave at the last open. Resting limit orders the open trades through by a tick fill at their
       limit; then orders that were sent while no bar was open: exits before entries, in order of arrival.
between
    5. Orders sent by clients fill at the open with slippage, or rest. An opening fill with the timestamp of a settlement is
       charged funding if it would pay and credited nothing if it would receive.
end_bar
    6. Resting limits that open or add fill at their limit where the bar trades through by a tick; the adverse extreme is
       taken to come after the fill.
    7. Cross account: all positions at their adverse extreme (or their nearer stop) together; where the ratio reaches 1 on the
       way there, hedged legs are netted, then tier-3-and-above positions cut step by step, else the whole account is taken
       over at those marks.
       Trigger orders that open or add become orders at their level, the nearer to the open first.
    8. Each position: adverse extreme before favourable. The nearer of stop (on its own stream) and liquidation (on mark)
       wins; liquidation where it cannot be told; both beat the take-profit; no take-profit in the bar of the last opening
       fill or partial liquidation.
    9. Closing limits the bar trades through fill at their limit; trailing stops move up behind the favourable extreme and
       close where the bar ended beyond them; auto-deleveraging if its stress switch is on.
    10. Everything is marked at the close; the clock is the bar's close.

Fills of step 6 and later are stamped one millisecond before the close. Steps 0-4 live in ``bar_cycle.at_open``, 6-9 in
``bar_cycle.inside``, 5 in ``order_desk``, the money in ``account``. The exchange pickles as a whole.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

from crypto_qlib.core.clock import NS_PER_MS, ManualClock, iso
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.fees import FeeHistory
from crypto_qlib.core.order import ExitKind, Fill, MarginMode, OrderRequest, PositionSide, Protection
from crypto_qlib.venue.account import VenueAccount
from crypto_qlib.venue.bar_cycle import BarCycle
from crypto_qlib.venue.execution import Execution
from crypto_qlib.venue.margin_desk import MarginDesk
from crypto_qlib.venue.market_board import MarketBoard, VenueBar
from crypto_qlib.venue.order_desk import OrderDesk
from crypto_qlib.venue.records import Bill, BillKind, ClosedPosition, Refusal, RefusalCode, VenueEvent, VenueOrder
from crypto_qlib.venue.snapshot import AccountSnapshot
from crypto_qlib.venue.trigger_desk import TriggerDesk
from crypto_qlib.venue.trigger_records import TriggerOrder, TriggerRequest
from crypto_qlib.venue.valuation import Listing, account_snapshot
from crypto_qlib.venue.venue_config import VenueConfig, VenueInstrument


class SimulatedExchange:
    """One exchange with any number of accounts in net or long/short position mode, isolated and cross.

    Parameters
    ----------
    instruments : sequence of VenueInstrument
        Everything that is ever listed.
    config : VenueConfig
        How it executes.
    start_ns : int
        Clock at the start, nanoseconds since the epoch.
    """

    def __init__(self, instruments: Sequence[VenueInstrument], config: VenueConfig, start_ns: int) -> None:
        self._clock = ManualClock(start_ns)
        self._listing = Listing(tuple(instruments))
        self._board = MarketBoard()
        self._execution = Execution(self._listing, self._board, config, self._clock)
        self._desk = OrderDesk(self._execution)
        self._margin_desk = MarginDesk(self._execution)
        self._triggers = TriggerDesk(self._execution, self._desk)
        self._cycle = BarCycle(self._execution, self._desk, self._triggers)
        self._accounts: dict[str, VenueAccount] = {}

    @property
    def now_ns(self) -> int:
        """Return the exchange's clock: the open of the bar begun last, or the close of the bar ended last."""
        return self._clock.now_ns()

    @property
    def is_in_bar(self) -> bool:
        """Return whether a bar was begun and not ended."""
        return self._board.bar is not None

    def open_account(self, account_id: str, cash: float, fees: FeeSchedule | FeeHistory) -> None:
        """Open an account with ``cash`` USDT that pays ``fees``, or those in force at each bar's open.

        Raises
        ------
        UserError
            If the account exists or ``cash`` is not positive.
        """
        if account_id in self._accounts:
            raise UserError(f"account {account_id!r} exists already")
        if not cash > 0.0:
            raise UserError(f"account {account_id!r} needs a positive starting balance, got {cash}")
        history = fees if isinstance(fees, FeeHistory) else FeeHistory([fees])
        account = VenueAccount(account_id, history.at(self.now_ns), history)
        self._accounts[account_id] = account
        account.book(Bill(0, self.now_ns, BillKind.TRANSFER, cash, 0.0, 0.0))

    @property
    def rules(self) -> VenueConfig:
        """Return the rules in force."""
        return self._execution.config

    def set_rules(self, rules: VenueConfig) -> None:
        """Go on by other rules from now on."""
        self._execution.config = rules

    def halt(self, symbol: str) -> None:
        """Show no price of ``symbol`` for the rest of the bar that is open; nothing in it trades."""
        self._board.hide(symbol)

    def account_ids(self) -> Sequence[str]:
        """Return the accounts in the order they were opened."""
        return tuple(self._accounts)

    def transfer(self, account_id: str, amount: float) -> None:
        """Move ``amount`` USDT into an account's cash (negative: out of what is available).

        Raises
        ------
        UserError
            If ``amount`` is no number other than zero, or more is taken out than is available.
        """
        account = self._account(account_id)
        if not math.isfinite(amount) or amount == 0.0:
            raise UserError(f"cannot transfer {amount} USDT")
        if -amount > self.snapshot(account_id).available:
            raise UserError(f"cannot take {-amount:g} USDT out: {self.snapshot(account_id).available:g} are available")
        account.book(Bill(0, self.now_ns, BillKind.TRANSFER, amount, 0.0, 0.0))

    def begin_bar(self, bar: VenueBar) -> None:
        """Show the open of ``bar`` and run what happens there: steps 0 to 4.

        Raises
        ------
        UserError
            If the bar before was not ended, or ``bar`` opens before the clock.
        """
        if self._board.bar is not None:
            raise UserError(f"bar {iso(self._board.bar.ts_open)} was not ended before bar {iso(bar.ts_open)} began")
        if bar.ts_open < self.now_ns:
            raise UserError(f"bar {iso(bar.ts_open)} opens before the exchange's clock {iso(self.now_ns)}")
        self._clock.advance_to(bar.ts_open)
        for account in self._accounts.values():
            account.fees = account.fee_history.at(bar.ts_open)
            self._cycle.close_delisted(account, bar.ts_open)
        self._board.open_bar(bar)
        for account in self._accounts.values():
            self._cycle.at_open(account)
        self._desk.forget_queue()

    def complete_bar(self, bar: VenueBar) -> None:
        """Tell the inside of the bar that was begun, before it is ended: for markets that are not known in advance.

        Raises
        ------
        UserError
            If no bar was begun.
        """
        if self._board.bar is None:
            raise UserError("complete_bar without begin_bar")
        self._board.complete_bar(bar)

    def end_bar(self) -> None:
        """Live through the inside of the bar and move to its close: steps 6 to 10.

        Raises
        ------
        UserError
            If no bar was begun.
        """
        bar = self._board.bar
        if bar is None:
            raise UserError("end_bar without begin_bar")
        self._clock.advance_to(max(bar.ts_close - NS_PER_MS, bar.ts_open + 1))
        for account in self._accounts.values():
            self._cycle.inside(account)
        self._clock.advance_to(bar.ts_close)
        self._board.close_bar()

    def set_position_mode(self, account_id: str, *, hedged: bool) -> Refusal | None:
        """Switch between net and long/short mode; refused while positions or orders are open and the mode would change."""
        account = self._account(account_id)
        is_busy = bool(account.positions or account.pending or account.live_triggers)
        if hedged is not account.is_hedged and is_busy:
            return Refusal(RefusalCode.MODE_IN_USE, "close positions and cancel orders before changing the position mode")
        account.is_hedged = hedged
        return None

    def is_hedged(self, account_id: str) -> bool:
        """Return whether an account is in long/short mode."""
        return self._account(account_id).is_hedged

    def set_leverage(
        self, account_id: str, symbol: str, margin_mode: MarginMode, leverage: float, side: PositionSide = PositionSide.NET
    ) -> Refusal | None:
        """Set the leverage of one symbol and margin mode; an open isolated position moves margin from or to cash.

        In long/short mode isolated leverage is set per ``side``; cross leverage is one for both sides.
        """
        return self._margin_desk.set_leverage(self._account(account_id), (symbol, margin_mode, side), leverage)

    def set_fees(self, account_id: str, fees: FeeSchedule | FeeHistory) -> None:
        """Change the rates an account pays from now on (a new VIP level); margin ratios follow the taker rate at once."""
        account = self._account(account_id)
        account.fee_history = fees if isinstance(fees, FeeHistory) else FeeHistory([fees])
        account.fees = account.fee_history.at(self.now_ns)

    def leverage(self, account_id: str, symbol: str, margin_mode: MarginMode, side: PositionSide = PositionSide.NET) -> float:
        """Return the leverage in force of one symbol and margin mode (and side)."""
        return self._execution.leverage(self._account(account_id), (symbol, margin_mode, side))

    def adjust_margin(
        self, account_id: str, symbol: str, amount: float, side: PositionSide = PositionSide.NET
    ) -> Refusal | None:
        """Add ``amount`` USDT to the margin of an isolated position (negative: take it out)."""
        return self._margin_desk.adjust(self._account(account_id), symbol, amount, side)

    def submit(self, account_id: str, request: OrderRequest, *, exit_kind: ExitKind | None = None) -> VenueOrder:
        """Take an order; inside a bar it is matched at the open at once, else it waits for the next bar's open.

        Parameters
        ----------
        exit_kind : ExitKind | None
            The client's reason, carried over to closing fills; ``None`` reads as ``SIGNAL``.
        """
        account = self._account(account_id)
        order = self._desk.submit(account, request, exit_kind)
        self._triggers.sweep(account)
        return account.orders[order.order_id]

    def place_trigger(self, account_id: str, request: TriggerRequest) -> TriggerOrder | Refusal:
        """Take an order that waits for a price (``trigger_records``)."""
        return self._triggers.place(self._account(account_id), request)

    def amend_trigger(self, account_id: str, trigger_id: int, request: TriggerRequest) -> Refusal | None:
        """Change a waiting trigger order."""
        account = self._account(account_id)
        trigger = account.live_triggers.get(trigger_id)
        if trigger is None:
            return Refusal(RefusalCode.UNKNOWN_ORDER, f"no waiting trigger order {trigger_id}")
        return self._triggers.amend(account, trigger, request)

    def cancel_trigger(self, account_id: str, trigger_id: int) -> Refusal | None:
        """Cancel a waiting trigger order."""
        account = self._account(account_id)
        trigger = account.live_triggers.get(trigger_id)
        if trigger is None:
            return Refusal(RefusalCode.UNKNOWN_ORDER, f"no waiting trigger order {trigger_id}")
        self._triggers.cancel(account, trigger)
        return None

    def triggers(self, account_id: str) -> Sequence[TriggerOrder]:
        """Return all trigger orders ever taken, oldest first."""
        return tuple(self._account(account_id).triggers.values())

    def amend(
        self, account_id: str, symbol: str, client_order_id: str, *, lots: int | None = None, price: float | None = None
    ) -> Refusal | None:
        """Change size and/or limit price of a pending order."""
        account = self._account(account_id)
        order = self._pending(account, symbol, client_order_id)
        return self._desk.amend(account, order, lots, price) if order else _unknown_order(symbol, client_order_id)

    def cancel(
        self, account_id: str, symbol: str, client_order_id: str, why: RefusalCode = RefusalCode.CANCELED_BY_CLIENT
    ) -> Refusal | None:
        """Cancel a pending order."""
        account = self._account(account_id)
        order = self._pending(account, symbol, client_order_id)
        if order is None:
            return _unknown_order(symbol, client_order_id)
        self._desk.cancel(account, order, why)
        return None

    def set_protection(
        self,
        account_id: str,
        symbol: str,
        margin_mode: MarginMode,
        protection: Protection | None,
        side: PositionSide = PositionSide.NET,
    ) -> Refusal | None:
        """Set, replace or remove (``None``) the stop-loss, take-profit and trailing stop of an open position."""
        return self._margin_desk.protect(self._account(account_id), (symbol, margin_mode, side), protection)

    def snapshot(self, account_id: str) -> AccountSnapshot:
        """Return the account at the prices now known: opens inside a bar, closes after it."""
        return account_snapshot(self._account(account_id), self._listing, self._board, self._execution.leverage, self.now_ns)

    def has_positions(self, account_id: str) -> bool:
        """Return whether an account holds anything."""
        return bool(self._account(account_id).positions)

    def symbols_at_stake(self) -> set[str]:
        """Return the symbols in which any account has a position, a pending order or a waiting trigger order."""
        found: set[str] = set()
        for account in self._accounts.values():
            found |= {key[0] for key in account.positions}
            found |= {order.symbol for order in account.pending.values()}
            found |= {trigger.request.symbol for trigger in account.live_triggers.values()}
        return found

    def orders(self, account_id: str) -> Sequence[VenueOrder]:
        """Return all orders taken or rejected and not forgotten, oldest first."""
        return tuple(self._account(account_id).orders.values())

    def order(self, account_id: str, order_id: int) -> VenueOrder | None:
        """Return one order by the exchange's id, if the account has it."""
        return self._account(account_id).orders.get(order_id)

    def open_orders(self, account_id: str) -> Sequence[VenueOrder]:
        """Return the pending orders, oldest first."""
        return tuple(sorted(self._account(account_id).pending.values(), key=lambda order: order.order_id))

    def fills(self, account_id: str, after: int = 0) -> Sequence[Fill]:
        """Return all fills after the first ``after``, oldest first."""
        account = self._account(account_id)
        return tuple(account.fills[max(after - account.forgotten[1], 0) :])

    def counts(self, account_id: str) -> tuple[int, int, int]:
        """Return the numbers of orders, fills and bills there ever were."""
        account = self._account(account_id)
        gone = account.forgotten
        return gone[0] + len(account.orders), gone[1] + len(account.fills), gone[2] + len(account.bills)

    def bills(self, account_id: str, after: int = 0) -> Sequence[Bill]:
        """Return every movement of cash and isolated margin after the first ``after``, oldest first."""
        account = self._account(account_id)
        return tuple(account.bills[max(after - account.forgotten[2], 0) :])

    def forget(self, before_ns: int, unfilled_before_ns: int) -> None:
        """Keep no record of what ended before ``before_ns``, nor of orders that ended unfilled before ``unfilled_before_ns``.

        Positions, pending orders and balances are not touched, ids and counts go on: a server that runs for years calls it.
        """
        for account in self._accounts.values():
            account.forget(before_ns, unfilled_before_ns)

    def closed_positions(self, account_id: str) -> Sequence[ClosedPosition]:
        """Return the finished positions, oldest first."""
        return tuple(self._account(account_id).closed)

    def drain_events(self) -> list[VenueEvent]:
        """Return and forget what happened since the last call, oldest first (within one instant by account)."""
        events = [event for account in self._accounts.values() for event in account.events]
        for account in self._accounts.values():
            account.events.clear()
        return sorted(events, key=lambda event: event.ts_ns)

    def last_price(self, symbol: str) -> float:
        """Return the last price now known; NaN before the first."""
        return self._board.last(symbol)

    def mark_price(self, symbol: str) -> float:
        """Return the mark price now known; NaN before the first."""
        return self._board.mark(symbol)

    def dump_state(self) -> bytes:
        """Return the whole exchange as bytes for :meth:`load_state`."""
        return pickle.dumps(self)

    @staticmethod
    def load_state(state: bytes) -> SimulatedExchange:
        """Return the exchange as it was at :meth:`dump_state`; only for bytes this program wrote itself."""
        exchange = pickle.loads(state)  # noqa: S301 - own state, never a foreign file
        if not isinstance(exchange, SimulatedExchange):
            raise TypeError("the bytes hold no simulated exchange")
        return exchange

    def _account(self, account_id: str) -> VenueAccount:
        try:
            return self._accounts[account_id]
        except KeyError:
            raise UserError(f"account {account_id!r} does not exist") from None

    @staticmethod
    def _pending(account: VenueAccount, symbol: str, client_order_id: str) -> VenueOrder | None:
        for order in account.pending.values():
            if order.symbol == symbol and order.client_order_id == client_order_id:
                return order
        return None


def _unknown_order(symbol: str, client_order_id: str) -> Refusal:
    return Refusal(RefusalCode.UNKNOWN_ORDER, f"no pending order {client_order_id!r} in {symbol}")

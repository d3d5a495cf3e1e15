"""Carry out one instruction of the session through the gateway and say what came of it.

The order of things is the safety: an order is an intent in the ledger, then ``SENT`` in the ledger, then a request. So whatever
dies in between, the ledger knows every order that may exist. The classes of ``core.errors`` decide what happens next:

=================  ==========================================================================
``RetryLater``     said not to be carried out: looked up, then the same request again, ``max_tries`` in all
``DoNotRetry``     the order is rejected, with the exchange's words; so too ``SkipCycle``: that instrument does not trade now
``OutcomeUnknown``  never sent again: reported as unknown, the session looks it up by its id
``HaltTrading``    passes through to the runner, which asks for ``HALTED``
=================  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from crypto_qlib.core.clock import NS_PER_S, Clock, SystemClock
from crypto_qlib.core.errors import DoNotRetry, OutcomeUnknown, RetryLater, SkipCycle
from crypto_qlib.core.order import OrderRequest, OrderStatus
from crypto_qlib.exchange.gateway import Gateway, OrderReport
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.order_checks import Quote
from crypto_qlib.live_trading.system_watch import SystemLimits, SystemWatch
from crypto_qlib.store.ledger import IntentRow, Ledger, OrderRow, Recorded

LOOKUP_PAUSE_S: Final = 0.5
"""Pause before the second look-up of an order; it doubles with each further one."""

_ID_IN_USE: Final = "51016"
"""Refusal of an order because one of its id is open: somebody sent it, so it is ours. Source: OKX API v5, error codes."""

_T = TypeVar("_T")
Sleep = Callable[[float], Awaitable[None]]


class TradeExecutor:
    """Carry out order instructions.

    Parameters
    ----------
    gateway : Gateway
        The exchange.
    ledger : Ledger
        Written before anything is sent.
    clock : Clock
        Stamps events and ledger rows.
    sleep : callable
        ``asyncio.sleep``, or a fake.
    max_open : int
        Symbols that may be held or be entered at once, counted in the ledger as the entry is written.
    watch : SystemWatch, optional
        Told how each request went.
    pushed : callable, optional
        Final states of orders that were pushed, by client order id: an answer that need not be asked for.
    max_tries : int
        Tries of a request that was not carried out.
    """

    def __init__(
        self,
        gateway: Gateway,
        ledger: Ledger,
        clock: Clock,
        sleep: Sleep,
        max_open: int,
        watch: SystemWatch | None = None,
        pushed: Callable[[str], OrderReport | None] | None = None,
        max_tries: int = 4,
    ) -> None:
        self._wall = SystemClock()
        self._pushed = pushed or (lambda _coid: None)
        self._watch = watch or SystemWatch(SystemLimits(), self._wall)
        self._max_open = max_open
        self._gateway = gateway
        self._ledger = ledger
        self._clock = clock
        self._sleep = sleep
        self._max_tries = max_tries

    async def set_leverage(self, instruction: ev.SetLeverage) -> ev.Event:
        """Set and verify the leverage of a symbol."""
        reason = ""
        for _ in range(self._max_tries):
            try:
                await self.asked(self._gateway.set_leverage(instruction.symbol, instruction.leverage, instruction.margin_mode))
            except RetryLater as e:
                reason = str(e)
                await self._sleep(e.retry_after_s)
            except (DoNotRetry, OutcomeUnknown, SkipCycle) as e:  # an unknown outcome is not a verified one: no order follows
                return ev.LeverageRefused(self._clock.now_ns(), instruction.symbol, str(e))
            else:
                return ev.LeverageSet(self._clock.now_ns(), instruction.symbol, instruction.leverage)
        return ev.LeverageRefused(self._clock.now_ns(), instruction.symbol, reason)

    async def place(self, instruction: ev.PlaceOrder) -> ev.Event:
        """Write the intent, then send the order; a decision already in the ledger is looked up instead of sent."""
        coid = instruction.intent.client_order_id
        recorded = self._record(instruction.intent)
        if recorded is Recorded.KNOWN:
            return ev.OrderUnknown(self._clock.now_ns(), coid)
        if recorded is Recorded.NO_SLOT:
            refused = self._ledger.order(coid)
            note = refused.note if refused is not None else ""
            return ev.OrderReported(self._clock.now_ns(), coid, OrderStatus.REJECTED, 0, note)
        self._ledger.record_order(OrderRow(coid, OrderStatus.SENT, self._clock.now_ns()))
        for attempt in range(self._max_tries):
            known = await self._already_there(instruction.request) if attempt else None
            if known is not None:
                return known
            try:
                report = await self.asked(self._gateway.place(instruction.request))
            except RetryLater as e:
                await self._sleep(e.retry_after_s)
            except (DoNotRetry, SkipCycle) as e:  # skipped: this instrument does not trade now; the orders of others go on
                is_ours = isinstance(e, DoNotRetry) and e.code == _ID_IN_USE
                self._watch.order_ended(refused=isinstance(e, DoNotRetry) and not is_ours)
                if not is_ours:
                    return self._ended(coid, str(e))
                break
            except OutcomeUnknown:
                break
            else:
                self._watch.order_ended(refused=False)
                return self._reported(report)
        return ev.OrderUnknown(self._clock.now_ns(), coid)

    async def _already_there(self, request: OrderRequest) -> ev.Event | None:
        """Look before an order is sent again: an id is free again once its order is final, so the same one could fill twice."""
        try:
            report = await self.asked(self._gateway.order(request.symbol, request.client_order_id))
        except (RetryLater, OutcomeUnknown, SkipCycle):
            return ev.OrderUnknown(self._clock.now_ns(), request.client_order_id)
        return None if report is None else self._reported(report)

    def _record(self, intent: IntentRow) -> Recorded:
        if intent.is_entry:
            return self._ledger.record_entry(intent, self._max_open)
        return Recorded.NEW if self._ledger.record_intent(intent) else Recorded.KNOWN

    def withhold(self, instruction: ev.PlaceOrder, reason: str) -> ev.Event:
        """Write an order that must not be sent any more as refused by ourselves; one already in the ledger is looked up."""
        coid = instruction.intent.client_order_id
        if not self._ledger.record_intent(instruction.intent):
            return ev.OrderUnknown(self._clock.now_ns(), coid)
        return self._ended(coid, reason)

    async def look_up(self, instruction: ev.LookUpOrder) -> ev.Event:
        """Ask for an order by its client order id, later and later with each attempt; what was pushed is not asked for."""
        pushed = self._pushed(instruction.client_order_id)
        if pushed is not None:
            return self._reported(pushed)
        if instruction.attempt > 1:
            await self._sleep(LOOKUP_PAUSE_S * 2.0 ** (instruction.attempt - 2))
        try:
            report = await self.asked(self._gateway.order(instruction.symbol, instruction.client_order_id))
        except (RetryLater, OutcomeUnknown, SkipCycle):
            return ev.OrderUnknown(self._clock.now_ns(), instruction.client_order_id)
        if report is None:
            return ev.OrderNotFound(self._clock.now_ns(), instruction.client_order_id)
        return self._reported(report)

    async def restore_stop(self, instruction: ev.RestoreStop) -> ev.Event:
        """Send a stop that stands alone; an unknown outcome is no failure, the account is looked at next."""
        symbol, reason = instruction.symbol, ""
        for _ in range(self._max_tries):
            try:
                if instruction.replaces:
                    await self.asked(self._gateway.cancel_trailing(symbol))
                await self.asked(
                    self._gateway.protect(
                        symbol, instruction.lots, instruction.protection, instruction.margin_mode, instruction.client_id
                    )
                )
            except RetryLater as e:
                reason = str(e)
                await self._sleep(e.retry_after_s)
            except (DoNotRetry, SkipCycle) as e:
                return ev.StopRefused(self._clock.now_ns(), symbol, str(e))
            except OutcomeUnknown:
                return ev.StopSent(self._clock.now_ns(), symbol)
            else:
                return ev.StopSent(self._clock.now_ns(), symbol)
        return ev.StopRefused(self._clock.now_ns(), symbol, reason)

    async def cancel(self, instruction: ev.CancelOrder) -> ev.Event:
        """Ask for a cancellation; whether it came in time, the look-up that follows says."""
        coid = instruction.client_order_id
        for _ in range(self._max_tries):
            try:
                await self.asked(self._gateway.cancel(instruction.symbol, coid))
            except RetryLater as e:
                await self._sleep(e.retry_after_s)
            except (DoNotRetry, OutcomeUnknown, SkipCycle):
                break
            else:
                break
        return ev.CancelAnswered(self._clock.now_ns(), coid)

    async def amend(self, instruction: ev.AmendOrder) -> ev.Event:
        """Ask for another limit, once: the next look at the book asks again."""
        coid, price = instruction.client_order_id, instruction.price
        try:
            await self.asked(self._gateway.amend(instruction.symbol, coid, price))
        except (RetryLater, DoNotRetry, OutcomeUnknown):
            return ev.Amended(self._clock.now_ns(), coid, price, is_known=False)
        return ev.Amended(self._clock.now_ns(), coid, price)

    async def read_book(self, instruction: ev.ReadBook) -> ev.Event:
        """Read the book; without an answer there is no quote, and no entry."""
        symbol = instruction.symbol
        try:
            book = await self.asked(self._gateway.book(symbol))
        except (RetryLater, DoNotRetry, SkipCycle):
            return ev.BookRead(self._clock.now_ns(), symbol, None)
        if not len(book.bids) or not len(book.asks):
            return ev.BookRead(self._clock.now_ns(), symbol, None)
        per_lot = instruction.base_per_lot
        shown = [float(side[:, 1].sum()) / per_lot for side in (book.bids, book.asks)]
        return ev.BookRead(self._clock.now_ns(), symbol, Quote(float(book.bids[0, 0]), float(book.asks[0, 0]), *shown))

    async def asked(self, call: Awaitable[_T]) -> _T:
        """Wait for one request and let the watch know how it went; a refusal is an answer."""
        began = self._wall.now_ns()
        try:
            answer = await call
        except (RetryLater, OutcomeUnknown) as e:
            self._watch.failed(e.message)
            raise
        except (DoNotRetry, SkipCycle):
            self._watch.answered((self._wall.now_ns() - began) / NS_PER_S)
            raise
        self._watch.answered((self._wall.now_ns() - began) / NS_PER_S)
        return answer

    def give_up(self, instruction: ev.GiveUpOrder) -> None:
        """Write the session's conclusion that an order never reached the exchange; one never written was never sent."""
        if self._ledger.order(instruction.client_order_id) is not None:
            self._ended(instruction.client_order_id, instruction.reason)

    def _reported(self, report: OrderReport) -> ev.OrderReported:
        """Write what the exchange says; a report older than what the ledger knows changes nothing."""
        known = self._ledger.order(report.client_order_id)
        if known is not None and not known.status.is_final:
            if known.status is OrderStatus.INTENT:  # died between intent and SENT, yet the exchange knows it
                self._ledger.record_order(OrderRow(report.client_order_id, OrderStatus.SENT, self._clock.now_ns()))
            self._ledger.record_order(
                OrderRow(
                    report.client_order_id,
                    report.status,
                    self._clock.now_ns(),
                    report.exchange_order_id,
                    report.filled_lots,
                    None if math.isnan(report.average_price) else report.average_price,
                    report.fee,
                )
            )
        return ev.OrderReported(self._clock.now_ns(), report.client_order_id, report.status, report.filled_lots)

    def _ended(self, coid: str, note: str) -> ev.OrderReported:
        now = self._clock.now_ns()
        self._ledger.record_order(OrderRow(coid, OrderStatus.REJECTED, now, note=note))
        return ev.OrderReported(now, coid, OrderStatus.REJECTED, 0, note)

"""The orders of a cycle: exits first, then entries one by one by rank, each followed until it is final or given up for now."""

from __future__ import annotations

from crypto_qlib.core.account import OpenPosition
from crypto_qlib.core.order import ExitKind, OrderRequest, OrderStatus, Protection, Side
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.live_trading.session_state import Instructions, SessionState, or_none
from crypto_qlib.portfolio.plan import PlannedOrder, client_order_id
from crypto_qlib.store.ledger import IntentRow
from crypto_qlib.store.live_events import EventKind, Severity


class OrderDesk:
    """Send what was decided and follow it.

    Parameters
    ----------
    state : SessionState
        Of the session.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state

    def place(self, order: PlannedOrder) -> ev.PlaceOrder | None:
        """Return the instruction for one planned order, or ``None`` where that very order is already under way."""
        cycle = self._state.cycle
        assert cycle is not None
        purpose = "entry" if order.reason is None else order.reason.value
        coid = client_order_id(self._state.config.session_id, cycle.asked_ns or cycle.ts_ns, order.symbol, purpose)
        if coid in self._state.open:
            return None
        intent = IntentRow(
            coid,
            cycle.ts_ns,
            order.symbol,
            order.signed_lots,
            is_entry=not order.reduce_only,
            exit_kind=order.reason,
            leverage=order.leverage,
            stop_price=or_none(order.stop_price),
            take_profit_price=or_none(order.take_profit_price),
            entry_score=or_none(order.score),
        )
        self._state.tracker.note_intent(intent)
        self._state.open[coid] = intent
        cycle.sent += 1
        return ev.PlaceOrder(intent, self._request(intent, order))

    def _request(self, intent: IntentRow, order: PlannedOrder) -> OrderRequest:
        protected = intent.stop_price is not None or intent.take_profit_price is not None
        protection = Protection(intent.stop_price, intent.take_profit_price, self._state.config.trigger) if protected else None
        return OrderRequest(
            intent.client_order_id,
            order.symbol,
            order.side,
            order.lots,
            margin_mode=self._state.config.margin_mode,
            reduce_only=order.reduce_only,
            protection=protection,
        )

    def look_up(self, coid: str) -> Instructions:
        """Ask for an order of ours, or, asked often enough, leave it to the next bar."""
        intent = self._state.open.get(coid)
        if intent is None:
            return []
        attempt = self._state.lookups.get(coid, 0) + 1
        self._state.lookups[coid] = attempt
        if attempt <= self._state.config.max_lookups:
            return [ev.LookUpOrder(intent.symbol, coid, attempt)]
        tries = self._state.config.max_lookups
        text = f"order {coid} of {intent.symbol} is unresolved after {tries} look-ups; asked again next bar"
        return [ev.Alert(Severity.CRITICAL, text, EventKind.ORDER, intent.symbol), *self.settled(coid, filled=False)]

    def on_reported(self, event: ev.OrderReported) -> Instructions:
        """Go on where the order is final; look again where it is not."""
        intent = self._state.open.get(event.client_order_id)
        if intent is None:
            return []
        if not event.status.is_final:
            return self.look_up(event.client_order_id)
        del self._state.open[event.client_order_id]
        alerts: Instructions = []
        if event.status is not OrderStatus.FILLED:
            note = f": {event.note}" if event.note else ""
            text = f"{intent.symbol} order {event.client_order_id} ended {event.status.value}{note}"
            alerts.append(ev.Alert(Severity.WARNING, text, EventKind.ORDER, intent.symbol))
        return alerts + self.settled(event.client_order_id, filled=event.status is OrderStatus.FILLED)

    def on_not_found(self, event: ev.OrderNotFound) -> Instructions:
        """Conclude only on the second look that an order never arrived: the first may have overtaken it."""
        if self._state.lookups.get(event.client_order_id, 0) < 2:  # noqa: PLR2004
            return self.look_up(event.client_order_id)
        reason = "never arrived at the exchange"
        never = ev.OrderReported(event.ts_ns, event.client_order_id, OrderStatus.REJECTED, 0, reason)
        return [ev.GiveUpOrder(event.client_order_id, reason), *self.on_reported(never)]

    def settled(self, coid: str, *, filled: bool) -> Instructions:
        """Go on after an order of this cycle became final, or was given up until the next bar."""
        cycle = self._state.cycle
        if cycle is None:
            return []
        if coid in cycle.exits:
            cycle.exits.discard(coid)
            cycle.failed_exits += not filled
        elif cycle.entry is not None and coid == self._entry_id(cycle.entry):
            cycle.entry = None
        else:
            return []
        return self.advance()

    def _entry_id(self, entry: PlannedOrder) -> str:
        assert self._state.cycle is not None
        return client_order_id(self._state.config.session_id, self._state.cycle.ts_ns, entry.symbol, "entry")

    def advance(self) -> Instructions:
        """Send the next entry when nothing is under way; when none is left, end the cycle."""
        cycle = self._state.cycle
        if cycle is None or cycle.exits or cycle.entry is not None:
            return []
        out: Instructions = []
        while cycle.failed_exits and cycle.entries:
            dropped = cycle.entries.pop()
            cycle.failed_exits -= 1
            text = f"entry of {dropped.symbol} dropped: an exit of this plan did not fill"
            out.append(ev.Alert(Severity.WARNING, text, EventKind.ORDER, dropped.symbol))
        if cycle.entries and self._state.risk.mode is not Mode.ACTIVE:
            dropped_symbols = ", ".join(entry.symbol for entry in cycle.entries)
            out.append(
                ev.Alert(Severity.WARNING, f"entries of {dropped_symbols} dropped: the mode is {self._state.risk.mode.name}")
            )
            cycle.entries.clear()
        if not cycle.entries:
            return out + self.finish()
        cycle.entry = cycle.entries.popleft()
        return out + self._start_entry(cycle.entry)

    def _start_entry(self, entry: PlannedOrder) -> Instructions:
        if self._state.leverage.get(entry.symbol) != entry.leverage:
            return [ev.SetLeverage(entry.symbol, entry.leverage, self._state.config.margin_mode)]
        placed = self.place(entry)
        return [] if placed is None else [placed]

    def on_leverage_set(self, event: ev.LeverageSet) -> Instructions:
        """Send the entry that waited for its leverage."""
        self._state.leverage[event.symbol] = event.leverage
        cycle = self._state.cycle
        if cycle is None or cycle.entry is None or cycle.entry.symbol != event.symbol:
            return []
        if self._state.risk.mode is not Mode.ACTIVE:  # stricter since the leverage was asked for
            cycle.entries.appendleft(cycle.entry)
            cycle.entry = None
            return self.advance()
        return self._start_entry(cycle.entry)

    def on_leverage_refused(self, event: ev.LeverageRefused) -> Instructions:
        """Drop the entry whose leverage is not known to be set."""
        self._state.leverage.pop(event.symbol, None)
        text = f"entry of {event.symbol} dropped: leverage not set ({event.reason})"
        alert = ev.Alert(Severity.WARNING, text, EventKind.ORDER, event.symbol)
        cycle = self._state.cycle
        if cycle is None or cycle.entry is None or cycle.entry.symbol != event.symbol:
            return [alert]
        cycle.entry = None
        return [alert, *self.advance()]

    def finish(self) -> Instructions:
        """Look at fills and account once more, as the end of the cycle."""
        cycle = self._state.cycle
        if cycle is None or cycle.done:
            return []
        cycle.done = True
        return [ev.ReadFills(self._state.tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.VERIFY)]


def closing(position: OpenPosition, reason: ExitKind) -> PlannedOrder:
    """Return the order that closes all of ``position`` at market."""
    side = Side.of(position.lots).opposite
    return PlannedOrder(position.symbol, side, abs(position.lots), position.leverage, reduce_only=True, reason=reason)

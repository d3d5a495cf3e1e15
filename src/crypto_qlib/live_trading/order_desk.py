"""The orders of a cycle: exits first, then entries one by one by rank, each followed until it is final.

An order larger than the exchange takes at once is sent in parts, each an order with its own id; the parts of an entry follow
one another. An entry that waits at a limit is left to rest: the cycle goes on without it. It is cancelled when it expires, when
its position has closed, or when the mode becomes stricter.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.order import ExitKind, OrderKind, OrderRequest, OrderStatus, Protection, Side
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.order_checks import Held, Refusal, correlation_refusal, entry_refusal
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.live_trading.session_state import Cycle, Instructions, SessionState, or_none
from crypto_qlib.portfolio.plan import PlannedOrder, client_order_id
from crypto_qlib.store.ledger import IntentRow
from crypto_qlib.store.live_events import EventKind, Severity

_MOST_PARTS: Final = 20
"""An order is never cut finer: a book so thin is no place for it."""


class OrderDesk:
    """Send what was decided and follow it.

    Parameters
    ----------
    state : SessionState
        Of the session.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state

    # ---- sending

    def exit(self, order: PlannedOrder) -> list[ev.PlaceOrder]:
        """Return the instructions that close what ``order`` says, and count them among the cycle's exits."""
        cycle = self._cycle()
        placed = self._parts(order, self._state.max_lots(order.symbol))
        cycle.exits |= {p.intent.client_order_id: order.symbol for p in placed}
        if cycle.held is not None and placed:
            cycle.held.leaving[order.symbol] = cycle.held.notional.pop(order.symbol, 0.0)
        return placed

    def _parts(self, order: PlannedOrder, most_lots: float) -> list[ev.PlaceOrder]:
        """Return ``order`` cut into orders of at most ``most_lots``, without those that are under way already."""
        n = 1 if order.lots <= most_lots else min(math.ceil(order.lots / max(most_lots, 1.0)), order.lots, _MOST_PARTS)
        sizes = [order.lots // n + (k < order.lots % n) for k in range(n)]
        placed = (self._place(order, lots, k) for k, lots in enumerate(sizes))
        return [p for p in placed if p is not None]

    def _place(self, order: PlannedOrder, lots: int, part: int) -> ev.PlaceOrder | None:
        cycle, config = self._cycle(), self._state.config
        purpose = ("entry" if order.reason is None else order.reason.value) + (f"{part + 1}" if part else "")
        coid = client_order_id(config.session_id, cycle.asked_ns or cycle.ts_ns, order.symbol, purpose)
        if coid in self._state.open:
            return None
        intent = IntentRow(
            coid,
            cycle.ts_ns,
            order.symbol,
            lots * order.side.value,
            is_entry=not order.reduce_only,
            exit_kind=order.reason,
            leverage=order.leverage,
            stop_price=or_none(order.stop_price),
            take_profit_price=or_none(order.take_profit_price),
            entry_score=or_none(order.score),
            limit_price=order.limit_price,
            expires_ns=order.expires_ns,
            trailing_ratio=order.trailing_ratio,
        )
        self._state.tracker.note_intent(intent)
        self._state.open[coid] = intent
        cycle.sent += 1
        return ev.PlaceOrder(intent, self._request(intent, order, lots))

    def _request(self, intent: IntentRow, order: PlannedOrder, lots: int) -> OrderRequest:
        config = self._state.config
        protected = intent.stop_price is not None or intent.take_profit_price is not None
        protection = Protection(intent.stop_price, intent.take_profit_price, config.trigger) if protected else None
        return OrderRequest(
            intent.client_order_id,
            order.symbol,
            order.side,
            lots,
            kind=order.kind,
            price=order.limit_price,
            margin_mode=config.margin_mode,
            reduce_only=order.reduce_only,
            protection=protection,
        )

    # ---- what became of an order

    def take_up(self, ts_ns: int) -> Instructions:
        """Cancel what rests and is not wanted any more, and look up everything that is not final."""
        out: Instructions = []
        for coid, intent in list(self._state.open.items()):
            if intent.expires_ns is not None and (ts_ns >= intent.expires_ns or self._state.risk.mode is not Mode.ACTIVE):
                out += self.withdraw(coid)
            else:
                out += self.look_up(coid)
        return out

    def reprice(self) -> Instructions:
        """Ask for the books of entries that rest, to follow the market with them."""
        if self._state.config.limits.reprice_distance <= 0.0:
            return []
        symbols = dict.fromkeys(self._state.open[coid].symbol for coid in self.resting())
        per_lot = self._state.base_per_lot()
        return [ev.ReadBook(symbol, per_lot.get(symbol, 1.0)) for symbol in symbols]

    def _follow(self, event: ev.BookRead) -> Instructions:
        """Move a resting entry to the best price of its side, no farther from its plan than allowed."""
        limits, out = self._state.config.limits, Instructions()
        for coid in self.resting((event.symbol,)) if event.quote is not None else ():
            intent = self._state.open[coid]
            assert event.quote is not None
            assert intent.limit_price is not None
            planned, side = intent.limit_price, 1.0 if intent.signed_lots > 0 else -1.0
            best = event.quote.bid if side > 0.0 else event.quote.ask
            farthest = planned * (1.0 + side * limits.max_reprice)
            wanted = min(best, farthest) if side > 0.0 else max(best, farthest)
            if side * (wanted / self._state.limits.get(coid, planned) - 1.0) > limits.reprice_distance:
                out.append(ev.AmendOrder(intent.symbol, coid, wanted))
        return out

    def withdraw(self, coid: str) -> Instructions:
        """Cancel an order that rests and look what became of it; a fill may win the race."""
        intent = self._state.open[coid]
        self._state.cancelling.add(coid)
        return [ev.CancelOrder(intent.symbol, coid), *self.look_up(coid)]

    def resting(self, symbols: Collection[str] = ()) -> list[str]:
        """Return the entries that rest at the exchange, of ``symbols`` or of all."""
        wanted = [(coid, i) for coid, i in self._state.open.items() if not symbols or i.symbol in symbols]
        return [coid for coid, i in wanted if i.expires_ns is not None and coid not in self._state.cancelling]

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
        """Go on where the order is final, or rests as it should; look again where it is not."""
        coid = event.client_order_id
        intent = self._state.open.get(coid)
        if intent is None:
            return []
        if not event.status.is_final:
            rests = intent.expires_ns is not None and coid not in self._state.cancelling
            return self.settled(coid, filled=False) if rests else self.look_up(coid)
        del self._state.open[coid]
        self._state.cancelling.discard(coid)
        self._state.limits.pop(coid, None)
        alerts: Instructions = []
        if event.status is not OrderStatus.FILLED:
            note = f": {event.note}" if event.note else ""
            what = f", {event.filled_lots} of {abs(intent.signed_lots)} lots filled" if intent.expires_ns is not None else ""
            severity = Severity.INFO if intent.expires_ns is not None else Severity.WARNING
            text = f"{intent.symbol} order {coid} ended {event.status.value}{what}{note}"
            alerts.append(ev.Alert(severity, text, EventKind.ORDER, intent.symbol))
        return alerts + self.settled(coid, filled=event.status is OrderStatus.FILLED)

    def on_not_found(self, event: ev.OrderNotFound) -> Instructions:
        """Conclude only on the second look that an order never arrived: the first may have overtaken it."""
        if self._state.lookups.get(event.client_order_id, 0) < 2:  # noqa: PLR2004
            return self.look_up(event.client_order_id)
        reason = "never arrived at the exchange"
        never = ev.OrderReported(event.ts_ns, event.client_order_id, OrderStatus.REJECTED, 0, reason)
        return [ev.GiveUpOrder(event.client_order_id, reason), *self.on_reported(never)]

    def settled(self, coid: str, *, filled: bool) -> Instructions:
        """Go on after an order of this cycle became final, was left to rest, or was given up until the next bar."""
        cycle = self._state.cycle
        if cycle is None:
            return []
        if coid in cycle.exits:
            symbol = cycle.exits.pop(coid)
            if not filled:
                cycle.failed_exits.add(symbol)
        elif coid in cycle.entry_ids:
            cycle.entry_ids.discard(coid)
            if not filled and cycle.parts:  # what is left of an entry whose part did not fill is not sent
                self._drop_parts(cycle)
        else:
            return []
        return self.advance()

    # ---- one entry after the other

    def advance(self) -> Instructions:
        """Send the next entry, or part of one, when nothing is under way; when none is left, end the cycle."""
        cycle = self._state.cycle
        if cycle is None or cycle.exits or cycle.entry_ids or cycle.asks_fills:
            return []
        if cycle.parts:
            if self._state.risk.mode is Mode.ACTIVE:
                return self._send_part(cycle)
            self._drop_parts(cycle)
        if cycle.failed_exits and cycle.entries and not cycle.knows_fills:
            cycle.asks_fills = cycle.knows_fills = True
            return [ev.ReadFills(self._state.tracker.last_fill_ns)]
        out: Instructions = []
        while cycle.failed_exits and cycle.entries:
            dropped = cycle.entries.pop()
            cycle.failed_exits.pop()
            text = f"entry of {dropped.symbol} dropped: an exit of this plan did not fill"
            out.append(ev.Alert(Severity.WARNING, text, EventKind.ORDER, dropped.symbol))
        if cycle.entries and self._state.risk.mode is not Mode.ACTIVE:
            names = ", ".join(entry.symbol for entry in cycle.entries)
            text = f"entries of {names} dropped: the mode is {self._state.risk.mode.name}"
            out.append(ev.Alert(Severity.WARNING, text, EventKind.ORDER))
            cycle.entries.clear()
        cycle.entry = None
        if not cycle.entries:
            return out + self.finish()
        cycle.entry = cycle.entries.popleft()
        return out + self._start_entry(cycle.entry)

    def on_fills(self) -> Instructions:
        """Go on where executions were asked for: an exit refused because the position was gone already has done its work."""
        cycle = self._state.cycle
        if cycle is None or not cycle.asks_fills:
            return []
        cycle.asks_fills = False
        cycle.failed_exits = {symbol for symbol in cycle.failed_exits if self._state.tracker.lots(symbol)}
        held = cycle.held
        for symbol in cycle.failed_exits:
            if held is not None and symbol in held.leaving:  # it did not leave: it counts again
                held.notional[symbol] = held.leaving.pop(symbol)
        return self.advance()

    def _start_entry(self, entry: PlannedOrder) -> Instructions:
        """Look at the book, check the order, set its leverage, send it; each step answers before the next."""
        cycle, limits = self._cycle(), self._state.config.limits
        if limits.reads_books and entry.symbol not in cycle.quotes:
            return [ev.ReadBook(entry.symbol, self._state.base_per_lot().get(entry.symbol, 1.0))]
        refusal = self._refusal(entry)
        if refusal is not None:
            return self._drop(entry, str(refusal))
        if self._state.leverage.get(entry.symbol) != entry.leverage:
            return [ev.SetLeverage(entry.symbol, entry.leverage, self._state.config.margin_mode)]
        cycle.parts.extend(self._parts(entry, self._most_lots(entry)))
        if not cycle.parts:
            return self.advance()
        return self._send_part(cycle)

    def _most_lots(self, entry: PlannedOrder) -> float:
        """Return the largest order the exchange takes at once, and the book can bear; a resting one takes nothing from it."""
        most = self._state.max_lots(entry.symbol)
        share, quote = self._state.config.limits.max_depth_share, self._cycle().quotes.get(entry.symbol)
        if quote is None or share <= 0.0 or entry.kind is not OrderKind.MARKET:
            return most
        shown = quote.ask_lots if entry.side is Side.BUY else quote.bid_lots
        return min(most, max(math.floor(share * shown), 1))

    def _send_part(self, cycle: Cycle) -> Instructions:
        part = cycle.parts.popleft()
        cycle.entry_ids.add(part.intent.client_order_id)
        return [part]

    def _drop_parts(self, cycle: Cycle) -> None:
        for part in cycle.parts:
            self._state.open.pop(part.intent.client_order_id, None)
            cycle.sent -= 1
        cycle.parts.clear()

    def _refusal(self, entry: PlannedOrder) -> Refusal | None:
        cycle, known = self._cycle(), self._state.contracts
        if cycle.held is None or known is None or entry.symbol not in known.symbols:
            return None
        column = known.symbols.index(entry.symbol)
        quote = cycle.quotes.get(entry.symbol)
        config = self._state.config
        cycle.held.notional.pop(entry.symbol, None)  # checked before its leverage was set, and now again: counted once
        found = entry_refusal(entry, quote, cycle.held, known.contracts, column, config.rules, config.limits)
        if found is None and cycle.bar is not None:
            found = correlation_refusal(entry, cycle.held, cycle.bar.market, config.rules)
        if found is None:
            notional = entry.lots * float(known.contracts.base_per_lot[column]) * entry.reference_price
            cycle.held.notional[entry.symbol] = entry.side.sign * notional
        return found

    def _drop(self, entry: PlannedOrder, why: str) -> Instructions:
        cycle = self._cycle()
        cycle.entry = None
        if cycle.held is not None:
            cycle.held.notional.pop(entry.symbol, None)
        text = f"entry of {entry.symbol} dropped: {why}"
        return [ev.Alert(Severity.WARNING, text, EventKind.ORDER, entry.symbol), *self.advance()]

    def on_book(self, event: ev.BookRead) -> Instructions:
        """Go on with the entry whose book was asked for; without a book it is not sent."""
        cycle = self._state.cycle
        if cycle is None or cycle.entry is None or cycle.entry.symbol != event.symbol:
            return self._follow(event)
        if event.quote is None:
            return self._drop(cycle.entry, "its order book could not be read")
        cycle.quotes[event.symbol] = event.quote
        return self._unless_stricter(cycle)

    def on_leverage_set(self, event: ev.LeverageSet) -> Instructions:
        """Send the entry that waited for its leverage."""
        self._state.leverage[event.symbol] = event.leverage
        cycle = self._state.cycle
        if cycle is None or cycle.entry is None or cycle.entry.symbol != event.symbol:
            return []
        return self._unless_stricter(cycle)

    def _unless_stricter(self, cycle: Cycle) -> Instructions:
        assert cycle.entry is not None
        if self._state.risk.mode is not Mode.ACTIVE:  # stricter since the step was asked for
            cycle.entries.appendleft(cycle.entry)
            cycle.entry = None
            return self.advance()
        return self._start_entry(cycle.entry)

    def on_leverage_refused(self, event: ev.LeverageRefused) -> Instructions:
        """Drop the entry whose leverage is not known to be set."""
        self._state.leverage.pop(event.symbol, None)
        cycle = self._state.cycle
        why = f"leverage not set ({event.reason})"
        if cycle is None or cycle.entry is None or cycle.entry.symbol != event.symbol:
            return [ev.Alert(Severity.WARNING, f"{event.symbol}: {why}", EventKind.ORDER, event.symbol)]
        return self._drop(cycle.entry, why)

    def finish(self) -> Instructions:
        """Look at fills and account once more, as the end of the cycle."""
        cycle = self._state.cycle
        if cycle is None or cycle.done:
            return []
        cycle.done = True
        return self.look(ev.Purpose.VERIFY)

    def look(self, purpose: ev.Purpose) -> Instructions:
        """Return the reads of one look at the account: executions, settlements where the balance is watched, the account."""
        funding: Instructions = [ev.ReadFunding()] if self._state.watches_balance else []
        return [ev.ReadFills(self._state.tracker.last_fill_ns), *funding, ev.ReadAccount(purpose)]

    def _cycle(self) -> Cycle:
        assert self._state.cycle is not None
        return self._state.cycle


def held_book(account: AccountState) -> Held:
    """Return the account's exposure as order checks want it."""
    return Held(account.equity, {p.symbol: p.side * p.qty * p.mark for p in account.positions})


def closing(position: OpenPosition, reason: ExitKind) -> PlannedOrder:
    """Return the order that closes all of ``position`` at market."""
    side = Side.of(position.lots).opposite
    return PlannedOrder(position.symbol, side, abs(position.lots), position.leverage, reduce_only=True, reason=reason)

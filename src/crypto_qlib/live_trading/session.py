"""The live session as a pure machine: ``handle(event) -> [instruction]``, no clock, no await, no random.

One cycle, from a bar's close to the next:

1. ``BarClosed`` -> read fills, then the account.
2. ``AccountRead(DECIDE)`` -> enrich it (tracker), observe the limits (risk control), ``decide()``, and keep what the mode
   allows: ``ACTIVE`` everything, ``REDUCE_ONLY`` exits, ``HALTED`` nothing.
3. All exits are sent. When every one of them is final, entries follow one by one by rank: leverage first (once a symbol and
   value), then the order with its protection attached. Each exit that did not fill takes the last entry with it.
4. An order whose report is not final, or whose answer never came, is looked up by its client order id, never sent again. After
   ``max_lookups`` it stays open in the ledger, counts as a slot, and the next bar looks again.
5. When nothing is under way: read fills and the account once more, check that every position of ours has its stop, and end the
   cycle. A missing stop is placed as an order that stands alone and looked at again; a position that stays without is closed.
6. At every look at the account its positions are compared with the ledger's: a difference that is no foreign position asks for
   ``REDUCE_ONLY`` until they agree again. The start looks as the end of a cycle does.

The same decision always has the same client order id, so a decision handled twice cannot open twice.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import ExitKind, MarginMode, OrderRequest, OrderStatus, Protection, Side, TriggerSource
from crypto_qlib.core.signal import Scores
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import DRIFT, Mode, Observation, RiskLimits, RiskState, observe
from crypto_qlib.portfolio.decision import decide
from crypto_qlib.portfolio.plan import Plan, PlannedOrder, client_order_id
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.portfolio.veto import Veto
from crypto_qlib.store.ledger import IntentRow

Instructions = list[ev.Instruction]
_STOP_TRIES = 2
"""How often a missing stop is placed within a cycle before its position is closed."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a session needs to know and never changes.

    Parameters
    ----------
    session_id : str
        Names the account over restarts; part of every client order id.
    rules : Rules
        What every decision obeys; the same as in the backtest.
    limits : RiskLimits
        Limits of the running session.
    margin_mode : MarginMode
        Margin mode of all orders.
    trigger : TriggerSource
        Price that triggers stops and take-profits.
    max_lookups : int
        Look-ups of one order within a cycle.
    flatten : bool
        Close all of our positions with the last bar.
    """

    session_id: str
    rules: Rules
    limits: RiskLimits = field(default_factory=RiskLimits)
    margin_mode: MarginMode = MarginMode.ISOLATED
    trigger: TriggerSource = TriggerSource.LAST
    max_lookups: int = 4
    flatten: bool = False

    def __post_init__(self) -> None:
        if self.rules.trailing_atr > 0.0:
            raise UserError(
                "trailing stops cannot be traded yet: orders carry a stop and a take-profit only",
                "set strategy.trailing_atr = 0 for paper and live trading",
            )


@dataclass(slots=True)
class _Cycle:
    """What is under way for one bar, or for positions a person asked to close (``bar`` is ``None``)."""

    ts_ns: int
    bar: ev.BarClosed | None = None
    closing: tuple[str, ...] = ()
    asked_ns: int = 0
    restoring: set[str] = field(default_factory=set)
    stop_tries: dict[str, int] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)
    exits: set[str] = field(default_factory=set)
    failed_exits: int = 0
    entries: deque[PlannedOrder] = field(default_factory=deque)
    entry: PlannedOrder | None = None
    vetoes: tuple[Veto, ...] = ()
    sent: int = 0
    done: bool = False


class Session:
    """Decide what to do next, given what happened.

    Parameters
    ----------
    config : SessionConfig
        Rules, limits, names.
    tracker : PositionTracker
        Our positions as the ledger knows them (rebuilt from it after a restart).
    risk : RiskState
        Limits tripped earlier, peak equity.
    unresolved : tuple of IntentRow
        Orders of an earlier run that may exist at the exchange.
    decided_ns : int
        Last bar an earlier run decided.
    """

    def __init__(
        self,
        config: SessionConfig,
        tracker: PositionTracker,
        risk: RiskState | None = None,
        unresolved: tuple[IntentRow, ...] = (),
        decided_ns: int = 0,
    ) -> None:
        self._config = config
        self._tracker = tracker
        self.risk = risk or RiskState()
        self._open: dict[str, IntentRow] = {intent.client_order_id: intent for intent in unresolved}
        self._decided_ns = decided_ns
        self._lookups: dict[str, int] = {}
        self._leverage: dict[str, float] = {}
        self._told: frozenset[object] = frozenset()
        self._cycle: _Cycle | None = None

    @property
    def pending(self) -> tuple[str, ...]:
        """Return the symbols with an order that is not final, in order of sending."""
        return tuple(dict.fromkeys(intent.symbol for intent in self._open.values()))

    def handle(self, event: ev.Event) -> Instructions:  # noqa: PLR0911, PLR0912 - one line an event
        """Return what to do next; the order of the instructions is the order in which to carry them out."""
        match event:
            case ev.Started():
                return self._on_started(event.ts_ns)
            case ev.BarClosed():
                return self._on_bar_closed(event)
            case ev.AccountRead(purpose=ev.Purpose.START):
                return self._on_start_account(event.account)
            case ev.AccountRead(purpose=ev.Purpose.DECIDE):
                return self._on_decision_account(event.account)
            case ev.AccountRead(purpose=ev.Purpose.CLOSE):
                return self._on_close_account(event.account)
            case ev.AccountRead():
                return self._on_final_account(event.account)
            case ev.FillsRead():
                for fill in event.fills:
                    self._tracker.note_fill(fill)
                return []
            case ev.LeverageSet():
                return self._on_leverage_set(event)
            case ev.LeverageRefused():
                return self._on_leverage_refused(event)
            case ev.OrderReported():
                return self._on_order_reported(event)
            case ev.OrderUnknown():
                return self._look_up(event.client_order_id)
            case ev.OrderNotFound():
                return self._on_order_not_found(event)
            case ev.StopSent():
                return self._on_stop_answered(event.symbol)
            case ev.StopRefused():
                return self._on_stop_refused(event)
            case ev.ModeVoiced():
                self.risk = self.risk.with_voice(event.voice, event.mode, event.reason)
                text = f"{event.voice} asks for {event.mode.name}: {event.reason}"
                severity = ev.Severity.WARNING if event.mode is Mode.ACTIVE else ev.Severity.CRITICAL
                return [ev.Alert(severity, text), self._save_risk()]
            case ev.Resumed():
                self.risk = self.risk.resumed(forgives_drawdown=event.forgives_drawdown)
                text = f"resumed ({event.reason}); the mode is now {self.risk.mode.name}"
                return [ev.Alert(ev.Severity.WARNING, text), self._save_risk()]
            case ev.CloseAsked():
                self._cycle = _Cycle(event.ts_ns, closing=event.symbols, asked_ns=event.asked_ns)
                self._lookups = {}
                return [ev.ReadFills(self._tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.CLOSE)]

    def allows(self, intent: IntentRow) -> bool:
        """Return whether the order may be sent in the mode in force *now*; what a person asked to close always may."""
        if intent.is_entry:
            return self.risk.mode is Mode.ACTIVE
        return self.risk.mode is not Mode.HALTED or intent.exit_kind is ExitKind.MANUAL

    # ---- start

    def _on_started(self, ts_ns: int) -> Instructions:
        self._cycle = _Cycle(ts_ns)
        lookups = [inst for coid in list(self._open) for inst in self._look_up(coid)]
        return [*lookups, ev.ReadFills(self._tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.START)]

    def _on_start_account(self, account: AccountState) -> Instructions:
        out = self._reconcile(account)
        self._leverage = {p.symbol: p.leverage for p in account.positions if self._tracker.lots(p.symbol)}
        enriched = self._tracker.enrich(account, self.pending, self.risk.peak_equity)
        return [*out, self._save_risk(), *self._restore_safety(enriched)]

    def _reconcile(self, account: AccountState) -> Instructions:
        """Compare positions and resting orders with the ledger; tell what is new, and trade accordingly."""
        waiting = set(self.pending)
        found = [m for m in self._tracker.mismatches(account) if m.symbol not in waiting]
        strangers = sorted(set(account.pending_symbols) - waiting)
        out: Instructions = []
        for mismatch in found:
            if mismatch not in self._told:
                what = "not ours, left alone" if mismatch.is_foreign else "differs from the ledger"
                severity = ev.Severity.WARNING if mismatch.is_foreign else ev.Severity.CRITICAL
                out.append(ev.Alert(severity, f"position {what}: {mismatch}"))
        for symbol in strangers:
            if symbol not in self._told:
                out.append(ev.Alert(ev.Severity.WARNING, f"an order of {symbol} rests that is not ours, left alone"))
        self._told = frozenset([*found, *strangers])
        drift = "; ".join(str(mismatch) for mismatch in found if not mismatch.is_foreign)
        if bool(drift) is not (DRIFT in self.risk.voices):
            self.risk = self.risk.with_voice(DRIFT, Mode.REDUCE_ONLY if drift else Mode.ACTIVE, drift)
            text = f"the mode is {self.risk.mode.name}: positions {'differ from' if drift else 'agree again with'} the ledger"
            out += [ev.Alert(ev.Severity.CRITICAL if drift else ev.Severity.INFO, text), self._save_risk()]
        return out

    # ---- decision

    def _on_bar_closed(self, bar: ev.BarClosed) -> Instructions:
        self._cycle = _Cycle(bar.ts_ns, bar)
        self._lookups = {}
        lookups = [inst for coid in list(self._open) for inst in self._look_up(coid)]
        return [*lookups, ev.ReadFills(self._tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.DECIDE)]

    def _on_decision_account(self, account: AccountState) -> Instructions:
        cycle = self._cycle
        if cycle is None or cycle.bar is None:
            return []
        seen = Observation(cycle.ts_ns, account.equity, account.margin_ratio, cycle.bar.freshness.share)
        out = self._reconcile(account)
        self.risk, tripped = observe(self.risk, seen, self._config.limits)
        out += [ev.Alert(ev.Severity.CRITICAL, f"risk limit tripped: {veto}") for veto in tripped]
        out.append(self._save_risk())
        enriched = self._tracker.enrich(replace(account, as_of_ns=cycle.ts_ns), self.pending, self.risk.peak_equity)
        plan = self._plan(cycle.bar, enriched)
        out.append(ev.SaveDecided(cycle.ts_ns))
        self._decided_ns = max(self._decided_ns, cycle.ts_ns)
        cycle.vetoes = plan.vetoes
        cycle.entries.extend(plan.entries)
        for order in plan.exits:
            placed = self._place(order)
            if placed is not None:
                cycle.exits.add(placed.intent.client_order_id)
                out.append(placed)
        return out + self._advance()

    def _on_close_account(self, account: AccountState) -> Instructions:
        """Close what a person asked to close of ours; foreign positions are not ours to close."""
        cycle = self._cycle
        if cycle is None:
            return []
        ours = {p.symbol: p for p in account.positions if self._tracker.lots(p.symbol)}
        busy = set(self.pending)
        out: Instructions = []
        for symbol in cycle.closing or tuple(sorted(ours)):
            position = ours.get(symbol)
            if position is None:
                out.append(ev.Alert(ev.Severity.WARNING, f"{symbol}: no position of ours to close"))
            elif symbol in busy:
                out.append(ev.Alert(ev.Severity.WARNING, f"{symbol}: an order is under way; ask again when it is final"))
            elif (placed := self._place(_close(position, ExitKind.MANUAL))) is not None:
                cycle.exits.add(placed.intent.client_order_id)
                out.append(placed)
        return out + self._advance()

    def _plan(self, bar: ev.BarClosed, account: AccountState) -> Plan:
        if self.risk.mode is Mode.HALTED or bar.ts_ns <= self._decided_ns:
            return Plan(bar.ts_ns)  # a bar is decided once: after a restart its freed slots wait for the next bar
        if bar.is_last and self._config.flatten:
            return Plan(bar.ts_ns, tuple(_close(p, ExitKind.MANUAL) for p in account.positions))
        rules = self._config.rules
        is_due = bar.ts_ns % (rules.frame_ns * rules.decide_every_bars) == 0  # the backtest's phase
        plan = decide(bar.scores if is_due else no_opinion(bar.scores), account, bar.market, rules)
        busy = set(self.pending)
        orders = tuple(o for o in plan.orders if o.symbol not in busy)
        if self.risk.mode is Mode.REDUCE_ONLY or bar.is_last:
            orders = tuple(o for o in orders if o.reduce_only and o.reason is not ExitKind.REPLACED)
        return Plan(plan.as_of_ns, orders, plan.vetoes)

    # ---- orders

    def _place(self, order: PlannedOrder) -> ev.PlaceOrder | None:
        """Return the instruction for one planned order, or ``None`` where that very order is already under way."""
        cycle = self._cycle
        assert cycle is not None
        purpose = "entry" if order.reason is None else order.reason.value
        coid = client_order_id(self._config.session_id, cycle.asked_ns or cycle.ts_ns, order.symbol, purpose)
        if coid in self._open:
            return None
        intent = IntentRow(
            coid,
            cycle.ts_ns,
            order.symbol,
            order.signed_lots,
            is_entry=not order.reduce_only,
            exit_kind=order.reason,
            leverage=order.leverage,
            stop_price=_or_none(order.stop_price),
            take_profit_price=_or_none(order.take_profit_price),
            entry_score=_or_none(order.score),
        )
        self._tracker.note_intent(intent)
        self._open[coid] = intent
        cycle.sent += 1
        return ev.PlaceOrder(intent, self._request(intent, order))

    def _request(self, intent: IntentRow, order: PlannedOrder) -> OrderRequest:
        protected = intent.stop_price is not None or intent.take_profit_price is not None
        protection = Protection(intent.stop_price, intent.take_profit_price, self._config.trigger) if protected else None
        return OrderRequest(
            intent.client_order_id,
            order.symbol,
            order.side,
            order.lots,
            margin_mode=self._config.margin_mode,
            reduce_only=order.reduce_only,
            protection=protection,
        )

    def _look_up(self, coid: str) -> Instructions:
        intent = self._open.get(coid)
        if intent is None:
            return []
        attempt = self._lookups.get(coid, 0) + 1
        self._lookups[coid] = attempt
        if attempt <= self._config.max_lookups:
            return [ev.LookUpOrder(intent.symbol, coid, attempt)]
        text = f"order {coid} of {intent.symbol} is unresolved after {self._config.max_lookups} look-ups; asked again next bar"
        return [ev.Alert(ev.Severity.CRITICAL, text), *self._settled(coid, filled=False)]

    def _on_order_reported(self, event: ev.OrderReported) -> Instructions:
        intent = self._open.get(event.client_order_id)
        if intent is None:
            return []
        if not event.status.is_final:
            return self._look_up(event.client_order_id)
        del self._open[event.client_order_id]
        alerts: Instructions = []
        if event.status is not OrderStatus.FILLED:
            note = f": {event.note}" if event.note else ""
            text = f"{intent.symbol} order {event.client_order_id} ended {event.status.value}{note}"
            alerts.append(ev.Alert(ev.Severity.WARNING, text))
        return alerts + self._settled(event.client_order_id, filled=event.status is OrderStatus.FILLED)

    def _on_order_not_found(self, event: ev.OrderNotFound) -> Instructions:
        """Conclude only on the second look that an order never arrived: the first may have overtaken it."""
        if self._lookups.get(event.client_order_id, 0) < 2:  # noqa: PLR2004
            return self._look_up(event.client_order_id)
        reason = "never arrived at the exchange"
        never = ev.OrderReported(event.ts_ns, event.client_order_id, OrderStatus.REJECTED, 0, reason)
        return [ev.GiveUpOrder(event.client_order_id, reason), *self._on_order_reported(never)]

    def _settled(self, coid: str, *, filled: bool) -> Instructions:
        """Go on after an order of this cycle became final, or was given up until the next bar."""
        cycle = self._cycle
        if cycle is None:
            return []
        if coid in cycle.exits:
            cycle.exits.discard(coid)
            cycle.failed_exits += not filled
        elif cycle.entry is not None and coid == self._entry_id(cycle.entry):
            cycle.entry = None
        else:
            return []
        return self._advance()

    def _entry_id(self, entry: PlannedOrder) -> str:
        assert self._cycle is not None
        return client_order_id(self._config.session_id, self._cycle.ts_ns, entry.symbol, "entry")

    def _advance(self) -> Instructions:
        cycle = self._cycle
        if cycle is None or cycle.exits or cycle.entry is not None:
            return []
        out: Instructions = []
        while cycle.failed_exits and cycle.entries:
            dropped = cycle.entries.pop()
            cycle.failed_exits -= 1
            out.append(ev.Alert(ev.Severity.WARNING, f"entry of {dropped.symbol} dropped: an exit of this plan did not fill"))
        if cycle.entries and self.risk.mode is not Mode.ACTIVE:
            dropped_symbols = ", ".join(entry.symbol for entry in cycle.entries)
            out.append(
                ev.Alert(ev.Severity.WARNING, f"entries of {dropped_symbols} dropped: the mode is {self.risk.mode.name}")
            )
            cycle.entries.clear()
        if not cycle.entries:
            return out + self._finish()
        cycle.entry = cycle.entries.popleft()
        return out + self._start_entry(cycle.entry)

    def _start_entry(self, entry: PlannedOrder) -> Instructions:
        if self._leverage.get(entry.symbol) != entry.leverage:
            return [ev.SetLeverage(entry.symbol, entry.leverage, self._config.margin_mode)]
        placed = self._place(entry)
        return [] if placed is None else [placed]

    def _on_leverage_set(self, event: ev.LeverageSet) -> Instructions:
        self._leverage[event.symbol] = event.leverage
        cycle = self._cycle
        if cycle is None or cycle.entry is None or cycle.entry.symbol != event.symbol:
            return []
        if self.risk.mode is not Mode.ACTIVE:  # stricter since the leverage was asked for
            cycle.entries.appendleft(cycle.entry)
            cycle.entry = None
            return self._advance()
        return self._start_entry(cycle.entry)

    def _on_leverage_refused(self, event: ev.LeverageRefused) -> Instructions:
        self._leverage.pop(event.symbol, None)
        alert = ev.Alert(ev.Severity.WARNING, f"entry of {event.symbol} dropped: leverage not set ({event.reason})")
        cycle = self._cycle
        if cycle is None or cycle.entry is None or cycle.entry.symbol != event.symbol:
            return [alert]
        cycle.entry = None
        return [alert, *self._advance()]

    # ---- end of the cycle

    def _finish(self) -> Instructions:
        cycle = self._cycle
        if cycle is None or cycle.done:
            return []
        cycle.done = True
        return [ev.ReadFills(self._tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.VERIFY)]

    def _on_final_account(self, account: AccountState) -> Instructions:
        cycle = self._cycle
        if cycle is None:
            return []
        enriched = self._tracker.enrich(account, self.pending, self.risk.peak_equity)
        out = self._reconcile(account) + self._restore_safety(enriched)
        if cycle.exits:
            cycle.done = False  # the forced exits end the cycle again when they are final
        if cycle.exits or cycle.restoring:
            return out
        return [*out, ev.CycleDone(cycle.ts_ns, account, self.risk.mode, cycle.vetoes, cycle.sent)]

    def _restore_safety(self, account: AccountState) -> Instructions:
        """Place missing stops, in whatever mode; close what stays without one, unless halted."""
        cycle = self._cycle
        assert cycle is not None
        out: Instructions = []
        leaving = {intent.symbol for intent in self._open.values() if not intent.is_entry}
        for position in sorted((p for p in account.positions if self._lacks_stop(p)), key=lambda p: p.symbol):
            symbol, tries = position.symbol, cycle.stop_tries.get(position.symbol, 0) + 1
            if symbol in leaving:
                continue
            if tries <= _STOP_TRIES:
                cycle.stop_tries[symbol] = tries
                cycle.restoring.add(symbol)
                text = f"{symbol}: the stop of the open position is not at the exchange; placing it"
                out += [ev.Alert(ev.Severity.CRITICAL, text), self._stop_of(position, tries)]
            elif self.risk.mode is Mode.HALTED or symbol in cycle.forced or symbol in self.pending:
                reasons = {"halted": self.risk.mode is Mode.HALTED, "its entry is not final": symbol in self.pending}
                why = next((reason for reason, holds in reasons.items() if holds), "its closing order did not fill")
                out.append(ev.Alert(ev.Severity.CRITICAL, f"{symbol}: open WITHOUT A STOP ({why})"))
            elif (placed := self._place(_close(position, ExitKind.RISK))) is not None:
                cycle.forced.add(symbol)
                cycle.exits.add(placed.intent.client_order_id)
                out += [ev.Alert(ev.Severity.CRITICAL, f"{symbol}: closing a position that stayed without its stop"), placed]
        return out

    def _stop_of(self, position: OpenPosition, tries: int) -> ev.RestoreStop:
        assert self._cycle is not None
        stop, take = self._tracker.expected_protection(position.symbol)
        protection = Protection(_or_none(stop), _or_none(take), self._config.trigger)
        name = client_order_id(self._config.session_id, self._cycle.ts_ns, position.symbol, f"stop{tries}")
        return ev.RestoreStop(position.symbol, position.lots, protection, self._config.margin_mode, name)

    def _on_stop_refused(self, event: ev.StopRefused) -> Instructions:
        if self._cycle is not None:
            self._cycle.stop_tries[event.symbol] = _STOP_TRIES
        alert = ev.Alert(ev.Severity.CRITICAL, f"{event.symbol}: the stop was refused: {event.reason}")
        return [alert, *self._on_stop_answered(event.symbol)]

    def _on_stop_answered(self, symbol: str) -> Instructions:
        """Look at the account again once every stop sent was answered."""
        cycle = self._cycle
        if cycle is None or symbol not in cycle.restoring:
            return []
        cycle.restoring.discard(symbol)
        if cycle.restoring:
            return []
        return [ev.ReadFills(self._tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.VERIFY)]

    def _lacks_stop(self, position: OpenPosition) -> bool:
        wanted, _ = self._tracker.expected_protection(position.symbol)
        return math.isfinite(wanted) and not math.isfinite(position.stop_price)

    def _save_risk(self) -> ev.SaveRisk:
        risk = self.risk
        return ev.SaveRisk(dict(risk.voices), risk.peak_equity, risk.day, risk.day_start_equity)


def no_opinion(scores: Scores) -> Scores:
    """Return the same scores without an opinion: a decision on them only closes what is due."""
    nothing = np.full(len(scores.symbols), np.nan)
    return Scores(scores.as_of_ns, scores.symbols, nothing, nothing, nothing)


def _close(position: OpenPosition, reason: ExitKind) -> PlannedOrder:
    side = Side.of(position.lots).opposite
    return PlannedOrder(position.symbol, side, abs(position.lots), position.leverage, reduce_only=True, reason=reason)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

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

from dataclasses import replace

import numpy as np

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.order import ExitKind
from crypto_qlib.core.signal import Scores
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.fill_news import funding_news, note_fills
from crypto_qlib.live_trading.order_desk import OrderDesk, closing
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.reconcile import reconcile
from crypto_qlib.live_trading.risk_control import KIND_OF_VOICE, Mode, Observation, RiskState, observe
from crypto_qlib.live_trading.session_state import Cycle, Instructions, SessionConfig, SessionState
from crypto_qlib.live_trading.stop_guard import StopGuard
from crypto_qlib.portfolio.decision import decide
from crypto_qlib.portfolio.plan import Plan
from crypto_qlib.store.ledger import IntentRow
from crypto_qlib.store.live_events import EventKind, Severity

__all__ = ["Session", "SessionConfig"]


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
        known = {intent.client_order_id: intent for intent in unresolved}
        self._state = SessionState(config, tracker, risk or RiskState(), known, decided_ns)
        self._desk = OrderDesk(self._state)
        self._stops = StopGuard(self._state, self._desk)

    @property
    def risk(self) -> RiskState:
        """Return the limits tripped and the voices that speak."""
        return self._state.risk

    @property
    def pending(self) -> tuple[str, ...]:
        """Return the symbols with an order that is not final, in order of sending."""
        return self._state.pending

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
                return note_fills(self._state.tracker, event.fills)
            case ev.FundingRead():
                return funding_news(event.settlements)
            case ev.LeverageSet():
                return self._desk.on_leverage_set(event)
            case ev.LeverageRefused():
                return self._desk.on_leverage_refused(event)
            case ev.OrderReported():
                return self._desk.on_reported(event)
            case ev.OrderUnknown():
                return self._desk.look_up(event.client_order_id)
            case ev.OrderNotFound():
                return self._desk.on_not_found(event)
            case ev.StopSent():
                return self._stops.on_answered(event.symbol)
            case ev.StopRefused():
                return self._stops.on_refused(event)
            case ev.ModeVoiced():
                self._state.risk = self._state.risk.with_voice(event.voice, event.mode, event.reason)
                text = f"{event.voice} asks for {event.mode.name}: {event.reason}"
                severity = Severity.WARNING if event.mode is Mode.ACTIVE else Severity.CRITICAL
                return [ev.Alert(severity, text, EventKind.MODE), self._state.save_risk()]
            case ev.Resumed():
                self._state.risk = self._state.risk.resumed(forgives_drawdown=event.forgives_drawdown)
                text = f"resumed ({event.reason}); the mode is now {self._state.risk.mode.name}"
                return [ev.Alert(Severity.WARNING, text, EventKind.MODE), self._state.save_risk()]
            case ev.CloseAsked():
                self._state.cycle = Cycle(event.ts_ns, closing=event.symbols, asked_ns=event.asked_ns)
                self._state.lookups = {}
                return [ev.ReadFills(self._state.tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.CLOSE)]

    def allows(self, intent: IntentRow) -> bool:
        """Return whether the order may be sent in the mode in force *now*; what a person asked to close always may."""
        return self._state.allows(intent)

    # ---- start

    def _on_started(self, ts_ns: int) -> Instructions:
        self._state.cycle = Cycle(ts_ns)
        lookups = [inst for coid in list(self._state.open) for inst in self._desk.look_up(coid)]
        return [*lookups, ev.ReadFills(self._state.tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.START)]

    def _on_start_account(self, account: AccountState) -> Instructions:
        out = reconcile(self._state, account)
        self._state.leverage = {p.symbol: p.leverage for p in account.positions if self._state.tracker.lots(p.symbol)}
        enriched = self._state.tracker.enrich(account, self._state.pending, self._state.risk.peak_equity)
        return [*out, self._state.save_risk(), *self._stops.restore(enriched)]

    # ---- decision

    def _on_bar_closed(self, bar: ev.BarClosed) -> Instructions:
        self._state.cycle = Cycle(bar.ts_ns, bar)
        self._state.lookups = {}
        lookups = [inst for coid in list(self._state.open) for inst in self._desk.look_up(coid)]
        return [*lookups, ev.ReadFills(self._state.tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.DECIDE)]

    def _on_decision_account(self, account: AccountState) -> Instructions:
        cycle = self._state.cycle
        if cycle is None or cycle.bar is None:
            return []
        seen = Observation(cycle.ts_ns, account.equity, account.margin_ratio, cycle.bar.freshness.share)
        out = reconcile(self._state, account)
        self._state.risk, tripped = observe(self._state.risk, seen, self._state.config.limits)
        out += [
            ev.Alert(Severity.CRITICAL, f"risk limit tripped: {veto}", KIND_OF_VOICE.get(veto.rule, EventKind.LIMIT))
            for veto in tripped
        ]
        out.append(self._state.save_risk())
        enriched = self._state.tracker.enrich(
            replace(account, as_of_ns=cycle.ts_ns), self._state.pending, self._state.risk.peak_equity
        )
        plan = self.plan(cycle.bar, enriched)
        out.append(ev.SaveDecided(cycle.ts_ns, plan))
        self._state.decided_ns = max(self._state.decided_ns, cycle.ts_ns)
        cycle.vetoes = plan.vetoes
        cycle.entries.extend(plan.entries)
        for order in plan.exits:
            placed = self._desk.place(order)
            if placed is not None:
                cycle.exits.add(placed.intent.client_order_id)
                out.append(placed)
        return out + self._desk.advance()

    def _on_close_account(self, account: AccountState) -> Instructions:
        """Close what a person asked to close of ours; foreign positions are not ours to close."""
        cycle = self._state.cycle
        if cycle is None:
            return []
        ours = {p.symbol: p for p in account.positions if self._state.tracker.lots(p.symbol)}
        busy = set(self._state.pending)
        out: Instructions = []
        for symbol in cycle.closing or tuple(sorted(ours)):
            position = ours.get(symbol)
            if position is None:
                out.append(ev.Alert(Severity.WARNING, f"{symbol}: no position of ours to close"))
            elif symbol in busy:
                out.append(ev.Alert(Severity.WARNING, f"{symbol}: an order is under way; ask again when it is final"))
            elif (placed := self._desk.place(closing(position, ExitKind.MANUAL))) is not None:
                cycle.exits.add(placed.intent.client_order_id)
                out.append(placed)
        return out + self._desk.advance()

    def plan(self, bar: ev.BarClosed, account: AccountState) -> Plan:
        """Return what to do at this bar's close, as far as the mode allows it."""
        if self._state.risk.mode is Mode.HALTED or bar.ts_ns <= self._state.decided_ns:
            return Plan(bar.ts_ns)  # a bar is decided once: after a restart its freed slots wait for the next bar
        if bar.is_last and self._state.config.flatten:
            return Plan(bar.ts_ns, tuple(closing(p, ExitKind.MANUAL) for p in account.positions))
        rules = self._state.config.rules
        is_due = bar.ts_ns % (rules.frame_ns * rules.decide_every_bars) == 0  # the backtest's phase
        plan = decide(bar.scores if is_due else no_opinion(bar.scores), account, bar.market, rules)
        busy = set(self._state.pending)
        orders = tuple(o for o in plan.orders if o.symbol not in busy)
        if self._state.risk.mode is Mode.REDUCE_ONLY or bar.is_last:
            orders = tuple(o for o in orders if o.reduce_only and o.reason is not ExitKind.REPLACED)
        return Plan(plan.as_of_ns, orders, plan.vetoes)

    def _on_final_account(self, account: AccountState) -> Instructions:
        cycle = self._state.cycle
        if cycle is None:
            return []
        enriched = self._state.tracker.enrich(account, self._state.pending, self._state.risk.peak_equity)
        out = reconcile(self._state, account) + self._stops.restore(enriched)
        if cycle.exits:
            cycle.done = False  # the forced exits end the cycle again when they are final
        if cycle.exits or cycle.restoring:
            return out
        return [*out, ev.CycleDone(cycle.ts_ns, account, self._state.risk.mode, cycle.vetoes, cycle.sent)]


def no_opinion(scores: Scores) -> Scores:
    """Return the same scores without an opinion: a decision on them only closes what is due."""
    nothing = np.full(len(scores.symbols), np.nan)
    return Scores(scores.as_of_ns, scores.symbols, nothing, nothing, nothing)

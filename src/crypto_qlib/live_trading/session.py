"""The live session as a pure machine: ``handle(event) -> [instruction]``, no clock, no await, no random.

One cycle, from a bar's close to the next:

1. ``BarClosed`` -> read fills, then the account.
2. ``AccountRead(DECIDE)`` -> enrich it (tracker), observe the limits (risk control), ``decide()``, and keep what the mode
   allows: ``ACTIVE`` everything, ``REDUCE_ONLY`` exits, ``HALTED`` nothing.
3. All exits are sent. When every one of them is final, entries follow one by one by rank: leverage first (once a symbol and
   value), then the order with its protection attached. Each exit that did not fill takes the last entry with it, unless the
   position is gone all the same: its own stop or take-profit was first.
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
from crypto_qlib.core.order import ExitKind, Fill
from crypto_qlib.core.signal import Scores
from crypto_qlib.exchange.gateway import Transfer
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.fill_news import funding_news, note_fills
from crypto_qlib.live_trading.order_desk import OrderDesk, closing, held_book
from crypto_qlib.live_trading.position_tracker import Mismatch, PositionTracker
from crypto_qlib.live_trading.reconcile import reconcile, second_look
from crypto_qlib.live_trading.risk_control import API, BALANCE, KIND_OF_VOICE, Mode, Observation, RiskState, observe
from crypto_qlib.live_trading.session_state import Cycle, Instructions, SessionConfig, SessionState
from crypto_qlib.live_trading.stop_guard import StopGuard
from crypto_qlib.live_trading.wallet import Wallet
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
    wallet : Wallet, optional
        What the balance must be, as an earlier run left it.
    """

    def __init__(
        self,
        config: SessionConfig,
        tracker: PositionTracker,
        risk: RiskState | None = None,
        unresolved: tuple[IntentRow, ...] = (),
        decided_ns: int = 0,
        wallet: Wallet | None = None,
    ) -> None:
        known = {intent.client_order_id: intent for intent in unresolved}
        self._state = SessionState(config, tracker, risk or RiskState(), known, decided_ns)
        self._state.wallet = wallet or Wallet()
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
            case ev.AccountRead():
                return self._on_account(event)
            case ev.ContractsSeen():
                self._state.contracts = event
                return []
            case ev.CheckDue():
                return self._on_check_due(event.ts_ns)
            case ev.FillsRead():
                return self._on_fills(event.fills)
            case ev.FundingRead():
                self._state.funding_is_known = event.is_known
                self._state.wallet.note_funding(event.settlements)
                return funding_news(event.settlements)
            case ev.TransfersRead():
                return self._on_transfers(event.transfers)
            case ev.PositionAdopted():
                self._state.adopting.discard(event.fill.symbol)
                self._state.tracker.note_fill(event.fill)
                return self._desk.look(ev.Purpose.CHECK)
            case ev.BookRead():
                return self._desk.on_book(event)
            case ev.CancelAnswered():
                return []
            case ev.Amended():
                if event.is_known:
                    self._state.limits[event.client_order_id] = event.price
                return []
            case ev.AdoptAsked():
                return self._on_adopt_asked(event)
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
                return self._on_mode_voiced(event)
            case ev.Resumed():
                return self._on_resumed(event)
            case ev.CloseAsked():
                self._state.cycle = Cycle(event.ts_ns, closing=event.symbols, asked_ns=event.asked_ns)
                self._state.lookups = {}
                withdrawn = [i for coid in self._desk.resting(event.symbols) for i in self._desk.withdraw(coid)]
                return [*withdrawn, *self._desk.look(ev.Purpose.CLOSE)]

    def allows(self, intent: IntentRow) -> bool:
        """Return whether the order may be sent in the mode in force *now*; what a person asked to close always may."""
        return self._state.allows(intent)

    # ---- start, and looks between bars

    def _on_started(self, ts_ns: int) -> Instructions:
        self._state.cycle = Cycle(ts_ns)
        return [*self._desk.take_up(ts_ns), *self._desk.look(ev.Purpose.START)]

    def _on_check_due(self, ts_ns: int) -> Instructions:
        """Look at orders, account and stops; comes between cycles, so one that did not end was cut off by an error."""
        self._state.cycle = Cycle(ts_ns)
        self._state.lookups = {}
        return [*self._desk.take_up(ts_ns), *self._desk.reprice(), *self._desk.look(ev.Purpose.CHECK)]

    def _on_account(self, event: ev.AccountRead) -> Instructions:
        again = second_look(self._state, event.account, event.purpose)
        if again:
            return again
        match event.purpose:
            case ev.Purpose.START:
                return self._on_start_account(event.account)
            case ev.Purpose.DECIDE:
                return self._on_decision_account(event.account)
            case ev.Purpose.CLOSE:
                return self._on_close_account(event.account)
            case _:
                return self._on_final_account(event.account, is_check=event.purpose is ev.Purpose.CHECK)

    def _on_start_account(self, account: AccountState) -> Instructions:
        out = reconcile(self._state, account)
        self._state.leverage = {p.symbol: p.leverage for p in account.positions if self._state.tracker.lots(p.symbol)}
        restored = self._stops.restore(self._enriched(account))
        return [*out, self._state.save_risk(), *restored, *self._rest(account)]

    def _enriched(self, account: AccountState) -> AccountState:
        state = self._state
        return state.tracker.enrich(account, state.pending, state.risk.peak_equity)

    def _rest(self, account: AccountState) -> Instructions:
        """Let the start end where nothing is under way; else what is under way ends it."""
        cycle = self._state.cycle
        if cycle is None or cycle.exits or cycle.restoring:
            return []
        return self._done(account)

    def _done(self, account: AccountState) -> Instructions:
        cycle, state = self._state.cycle, self._state
        assert cycle is not None
        saved: Instructions = []
        if state.watches_balance:
            state.wallet.difference(account)  # an unknown balance is taken as seen
            saved.append(ev.SaveWallet(state.wallet.saved()))
        return [*saved, ev.CycleDone(cycle.ts_ns, account, state.risk.mode, cycle.vetoes, cycle.sent)]

    # ---- what was learned

    def _on_fills(self, fills: tuple[Fill, ...]) -> Instructions:
        """Follow executions; an entry that still rests though its position has closed is withdrawn."""
        state = self._state
        state.wallet.note_fills(fills, state.base_per_lot())
        told = note_fills(state.tracker, fills)
        closed = {f.symbol for f in fills if not state.tracker.lots(f.symbol)}
        withdrawn = [i for coid in (self._desk.resting(closed) if closed else ()) for i in self._desk.withdraw(coid)]
        return [*told, *withdrawn, *self._desk.on_fills()]

    def _on_transfers(self, transfers: tuple[Transfer, ...]) -> Instructions:
        moved = self._state.wallet.note_transfers(transfers)
        if not moved:
            return []
        self._state.risk = self._state.risk.moved(moved)
        text = f"{moved:+,.2f} USDT were moved {'into' if moved > 0.0 else 'out of'} the account"
        alert = ev.Alert(Severity.WARNING, text, EventKind.FOREIGN, facts={"amount": moved})
        return [alert, self._state.save_risk()]

    def _on_mode_voiced(self, event: ev.ModeVoiced) -> Instructions:
        state, was = self._state, event.voice in self._state.risk.voices
        state.risk = state.risk.with_voice(event.voice, event.mode, event.reason)
        lifts = event.mode is Mode.ACTIVE
        text = f"{event.voice} asks for {event.mode.name}: {event.reason}"
        kind = KIND_OF_VOICE.get(event.voice, EventKind.MODE)
        if event.voice == API:
            kind = EventKind.API_BACK if lifts else EventKind.API_LOST
        withdrawn: Instructions = []
        if state.risk.mode is not Mode.ACTIVE and not was:
            withdrawn = [i for coid in self._desk.resting() for i in self._desk.withdraw(coid)]
        return [ev.Alert(Severity.WARNING if lifts else Severity.CRITICAL, text, kind), state.save_risk(), *withdrawn]

    def _on_resumed(self, event: ev.Resumed) -> Instructions:
        state = self._state
        if BALANCE in state.risk.voices:
            state.wallet.balance = None  # a person has seen the difference: the next look is taken for right
        state.risk = state.risk.resumed(forgives_drawdown=event.forgives_drawdown)
        text = f"resumed ({event.reason}); the mode is now {state.risk.mode.name}"
        return [ev.Alert(Severity.WARNING, text, EventKind.MODE), state.save_risk()]

    def _on_adopt_asked(self, event: ev.AdoptAsked) -> Instructions:
        foreign = {m.symbol for m in self._state.told if isinstance(m, Mismatch) and m.is_foreign}
        wanted = {event.symbol} if event.symbol else foreign
        self._state.adopting |= wanted
        self._state.cycle = Cycle(event.ts_ns)
        return self._desk.look(ev.Purpose.CHECK)

    # ---- decision

    def _on_bar_closed(self, bar: ev.BarClosed) -> Instructions:
        self._state.cycle = Cycle(bar.ts_ns, bar)
        self._state.lookups = {}
        return [*self._desk.take_up(bar.ts_ns), *self._desk.look(ev.Purpose.DECIDE)]

    def _observe(self, ts_ns: int, account: AccountState, fresh_share: float | None) -> Instructions:
        """Let the limits see the account; our positions count for exposure."""
        state = self._state
        ours = [p.side * p.qty * p.mark for p in account.positions if state.tracker.lots(p.symbol)]
        seen = Observation(
            ts_ns, account.equity, account.margin_ratio, fresh_share, sum(map(abs, ours)), sum(ours), len(ours)
        )  # fmt: skip
        state.risk, tripped = observe(state.risk, seen, state.config.limits)
        out: Instructions = []
        for veto in tripped:
            kind = KIND_OF_VOICE.get(veto.rule, EventKind.LIMIT)
            facts: dict[str, object] = {"limit": veto.limit, "actual": veto.actual}
            out.append(ev.Alert(Severity.CRITICAL, f"risk limit tripped: {veto}", kind, facts=facts))
        return [*out, state.save_risk()]

    def _on_decision_account(self, account: AccountState) -> Instructions:
        cycle, state = self._state.cycle, self._state
        if cycle is None or cycle.bar is None:
            return []
        out = reconcile(state, account)
        out += self._observe(cycle.ts_ns, account, cycle.bar.freshness.share)
        enriched = self._enriched(replace(account, as_of_ns=cycle.ts_ns))
        plan = self.plan(cycle.bar, enriched)
        out.append(ev.SaveDecided(cycle.ts_ns, plan))
        state.decided_ns = max(state.decided_ns, cycle.ts_ns)
        cycle.vetoes = plan.vetoes
        cycle.entries.extend(plan.entries)
        cycle.held = held_book(enriched)
        for order in plan.exits:
            out += self._desk.exit(order)
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
                out.append(ev.Alert(Severity.WARNING, f"{symbol}: no position of ours to close", EventKind.ORDER, symbol))
            elif symbol in busy:
                text = f"{symbol}: an order is under way; ask again when it is final"
                out.append(ev.Alert(Severity.WARNING, text, EventKind.ORDER, symbol))
            else:
                out += self._desk.exit(closing(position, ExitKind.MANUAL))
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

    def _on_final_account(self, account: AccountState, *, is_check: bool = False) -> Instructions:
        cycle = self._state.cycle
        if cycle is None:
            return []
        out = reconcile(self._state, account)
        if is_check:
            out += self._observe(cycle.ts_ns, account, None)
        out += self._stops.restore(self._enriched(account))
        if cycle.exits:
            cycle.done = False  # the forced exits end the cycle again when they are final
        if cycle.exits or cycle.restoring:
            return out
        return [*out, *self._done(account)]


def no_opinion(scores: Scores) -> Scores:
    """Return the same scores without an opinion: a decision on them only closes what is due."""
    nothing = np.full(len(scores.symbols), np.nan)
    return Scores(scores.as_of_ns, scores.symbols, nothing, nothing, nothing)

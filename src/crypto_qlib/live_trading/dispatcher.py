"""Carry out what the session machine asks for, and feed what comes of it back into it, each step journalled first."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Final, TypeVar

from crypto_qlib.core.clock import NS_PER_MINUTE, NS_PER_S, Clock
from crypto_qlib.core.errors import BadAnswer, DoNotRetry, HaltTrading, RetryLater, SkipCycle
from crypto_qlib.core.order import OrderStatus
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.account_record import record_account
from crypto_qlib.live_trading.controls import Controls, Verb
from crypto_qlib.live_trading.dead_man import DeadManSwitch
from crypto_qlib.live_trading.journal import Restored, Step, journal_form
from crypto_qlib.live_trading.paper_view import PaperView, position_lines
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import ACCOUNT, Mode, risk_from_json
from crypto_qlib.live_trading.session import Session
from crypto_qlib.live_trading.session_parts import SessionLog, SessionParts, Show
from crypto_qlib.live_trading.system_watch import ClockOffset, SystemWatch
from crypto_qlib.live_trading.trade_executor_okx import TradeExecutor
from crypto_qlib.live_trading.wallet import Wallet
from crypto_qlib.store.control_book import ControlRow
from crypto_qlib.store.ledger import OrderRow
from crypto_qlib.store.live_events import EventKind, LiveEvent, Severity

_LOG: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
RISK: Final = "risk"
DECIDED: Final = "decided_ns"
WALLET: Final = "wallet"
_READ_TRIES: Final = 3
_LATEST_ENTRY_NS: Final = 5 * NS_PER_MINUTE
"""Age of a decision, after its bar's close, at which no entry is sent any more: the machine slept, or the exchange was slow."""
_LATE_FILLS_NS: Final = 10 * NS_PER_MINUTE
"""Fills are read again from this long before the newest one known: an older one may be listed later than a newer one."""
_OF_EVERY_DAY: Final = frozenset(
    {
        EventKind.TRADE,
        EventKind.EXIT,
        EventKind.STOP_HIT,
        EventKind.TAKE_PROFIT_HIT,
        EventKind.FUNDING,
        EventKind.CYCLE,
        EventKind.API_BACK,
    }
)
"""Told to whoever listens, but not shown beside the bar: its line counts orders and positions anyway."""

_STEPS: Final[dict[type[ev.Instruction], str]] = {
    ev.ReadAccount: "account",
    ev.ReadFills: "account",
    ev.SetLeverage: "leverage",
    ev.ReadFunding: "account",
    ev.ReadTransfers: "account",
    ev.ReadBook: "books",
    ev.CancelOrder: "orders",
    ev.AmendOrder: "orders",
    ev.PlaceOrder: "orders",
    ev.LookUpOrder: "orders",
    ev.RestoreStop: "orders",
}
"""Which step of a cycle an instruction belongs to."""


class Dispatcher:
    """Stand between one :class:`Session` and the world.

    Parameters
    ----------
    parts : SessionParts
        What it runs on.
    wall : Clock
        Real time, for what people see and for the dead-man's countdown.
    show : callable
        Called with a :class:`PaperView` after each bar.
    """

    def __init__(self, parts: SessionParts, wall: Clock, show: Show) -> None:
        self._parts = parts
        self._show = show
        self._wall = wall
        self.watch = SystemWatch(parts.system, wall)
        most = parts.config.rules.max_open
        known = parts.heard.order if parts.heard is not None else None
        self._executor = TradeExecutor(parts.gateway, parts.ledger, parts.clock, parts.sleep, most, self.watch, known)
        self.rebuild()
        self.dead_man = DeadManSwitch(parts.gateway, parts.dead_man_s, wall)
        self.log = SessionLog()
        self._first_equity: float | None = None
        self._funding_since_ns: int | None = None

    def rebuild(self) -> None:
        """Take tracker and session from the ledger, as every start does."""
        rules, ledger = self._parts.config.rules, self._parts.ledger
        self.tracker = PositionTracker.rebuild(rules.frame_ns, rules.cooldown_ns, ledger.intents(), ledger.fills())
        risk = risk_from_json(ledger.state(RISK))
        decided_ns = int(ledger.state(DECIDED) or 0)
        unresolved = tuple(ledger.unresolved())
        saved = ledger.state(WALLET)
        self.session = Session(self._parts.config, self.tracker, risk, unresolved, decided_ns, Wallet(saved))
        ids, fills = tuple(intent.client_order_id for intent in unresolved), tuple(ledger.unjournalled_fills())
        self._restored = Restored(self._parts.config, self.session.risk, decided_ns, ids, fills, saved)

    async def dispatch(self, event: ev.Event) -> None:
        """Hand ``event`` to the session and carry out everything that follows from it, journalling each step first."""
        if isinstance(event, ev.Started):
            self._journal(self._restored)
        waiting = deque([event])
        while waiting:
            current = waiting.popleft()
            self._journal(current)
            instructions = self.session.handle(current)
            self._parts.signals.timer.lap("decision")
            for instruction in instructions:
                if isinstance(instruction, ev.PlaceOrder | ev.LookUpOrder):
                    await self.dead_man.refresh()
                self._journal(instruction)
                answer = await self._carry_out(instruction)
                self._parts.signals.timer.lap(_STEPS.get(type(instruction), "rest"))
                if answer is not None:
                    waiting.append(answer)

    async def _carry_out(self, instruction: ev.Instruction) -> ev.Event | None:  # noqa: PLR0911, PLR0912 - one line each
        try:
            match instruction:
                case ev.ReadAccount():
                    return await self._read_account(instruction.purpose)
                case ev.ReadFills():
                    return await self._read_fills(instruction.since_ns)
                case ev.ReadFunding():
                    return await self._read_funding()
                case ev.ReadTransfers():
                    return await self._read_transfers(instruction.since_ns)
                case ev.ReadBook():
                    return await self._executor.read_book(instruction)
                case ev.CancelOrder():
                    return await self._executor.cancel(instruction)
                case ev.AmendOrder():
                    return await self._executor.amend(instruction)
                case ev.AdoptPosition():
                    return self._adopt(instruction)
                case ev.SaveWallet():
                    self._parts.ledger.put_state(WALLET, instruction.wallet)
                case ev.SetLeverage():
                    return await self._executor.set_leverage(instruction)
                case ev.PlaceOrder():
                    return await self._place(instruction)
                case ev.LookUpOrder():
                    return await self._executor.look_up(instruction)
                case ev.RestoreStop():
                    return await self._executor.restore_stop(instruction)
                case ev.GiveUpOrder():
                    self._executor.give_up(instruction)
                case ev.Alert():
                    self.tell(instruction)
                case ev.SaveRisk():
                    self._parts.ledger.put_state(RISK, asdict(instruction))
                case ev.SaveDecided():
                    self._parts.ledger.put_state(DECIDED, instruction.ts_ns)
                case ev.CycleDone():
                    self._end_cycle(instruction)
                    if not self._watches_balance:
                        return await self._read_funding()
        except HaltTrading as e:
            return ev.ModeVoiced(self.now_ns(), "gateway", Mode.HALTED, str(e))
        return None

    async def _place(self, instruction: ev.PlaceOrder) -> ev.Event:
        """Send an order if the mode allows it now; a session that cannot hear a halt opens nothing."""
        try:
            await self.hear()
        except RetryLater as e:
            if instruction.intent.is_entry:
                return self._executor.withhold(instruction, f"not sent: {e}")
        if not self.session.allows(instruction.intent):
            return self._executor.withhold(instruction, f"not sent: the mode is {self.session.risk.mode.name}")
        late_ns = self.now_ns() - instruction.intent.decided_ns
        if instruction.intent.is_entry and late_ns > min(self._parts.config.rules.frame_ns // 4, _LATEST_ENTRY_NS):
            text = f"not sent: the bar it was decided on closed {late_ns / NS_PER_S:.0f} s ago"
            return self._executor.withhold(instruction, text)
        self.log.orders_sent += 1
        answer = await self._executor.place(instruction)
        self._parts.signals.timer.order_sent()
        return answer

    async def _read_account(self, purpose: ev.Purpose) -> ev.AccountRead:
        try:
            account = await self._retried(self._parts.gateway.account)
        except BadAnswer as e:  # no equity is known: not zero, which would halt for a drawdown that never was
            await self._voice_of_account(e.message)
            raise
        await self._voice_of_account("")
        if purpose is ev.Purpose.DECIDE and self.log.market is not None:
            self.log.decision_account = account
            record_account(self._parts.ledger, account, self.log.market.ts_ns)
        return ev.AccountRead(self.now_ns(), account, purpose)

    async def _voice_of_account(self, trouble: str) -> None:
        """Let nothing be opened while the account cannot be made out, and again once it can."""
        if bool(trouble) is not (ACCOUNT in self.session.risk.voices):
            mode = Mode.REDUCE_ONLY if trouble else Mode.ACTIVE
            await self.dispatch(ev.ModeVoiced(self.now_ns(), ACCOUNT, mode, trouble or "it can be read again"))

    async def _read_fills(self, since_ns: int) -> ev.FillsRead:
        since_ns = max(since_ns - _LATE_FILLS_NS, 0)
        fills = await self._retried(lambda: self._parts.gateway.fills(since_ns))
        return ev.FillsRead(self.now_ns(), tuple(self._parts.ledger.record_fills(fills)))

    async def _read_funding(self) -> ev.FundingRead | None:
        """Ask what settlements booked since the last one known, where anything was ever held; the next look asks again."""
        if self.tracker.last_fill_ns == 0 and not self._watches_balance:
            return None
        ledger = self._parts.ledger
        if self._funding_since_ns is None:
            self._funding_since_ns = max((row.ts_ns for row in ledger.funding()), default=ledger.started_ns)
        try:
            fresh = ledger.record_funding(await self._parts.gateway.funding_paid(self._funding_since_ns))
        except (RetryLater, DoNotRetry):
            return ev.FundingRead(self.now_ns(), (), is_known=False)
        self._funding_since_ns = max((row.ts_ns for row in fresh), default=self._funding_since_ns)
        return ev.FundingRead(self.now_ns(), tuple(fresh)) if fresh or self._watches_balance else None

    async def _read_transfers(self, since_ns: int) -> ev.TransfersRead:
        try:
            return ev.TransfersRead(self.now_ns(), tuple(await self._parts.gateway.transfers(since_ns)))
        except (RetryLater, DoNotRetry):
            return ev.TransfersRead(self.now_ns(), ())

    def _adopt(self, instruction: ev.AdoptPosition) -> ev.Event:
        """Write a foreign position into the ledger as an order of ours that filled; what is there already stands."""
        ledger, intent = self._parts.ledger, instruction.intent
        if ledger.record_intent(intent):
            now = self.now_ns()
            ledger.record_order(OrderRow(intent.client_order_id, OrderStatus.SENT, now, note="adopted"))
            filled = OrderRow(intent.client_order_id, OrderStatus.FILLED, now, "", abs(intent.signed_lots), note="adopted")
            ledger.record_order(filled)
            ledger.record_fills([instruction.fill])
        return ev.PositionAdopted(self.now_ns(), instruction.fill)

    @property
    def _watches_balance(self) -> bool:
        return math.isfinite(self._parts.config.limits.balance_tolerance)

    async def _retried(self, read: Callable[[], Awaitable[_T]]) -> _T:
        for _ in range(_READ_TRIES - 1):
            try:
                return await self._executor.asked(read())
            except RetryLater as e:
                await self._parts.sleep(e.retry_after_s)
        return await self._executor.asked(read())

    async def watch_system(self) -> None:
        """Ask for the exchange's clock where that is due, and let voices about the way to it begin or end to speak."""
        if self.watch.clock_is_due:
            asked_ns = self._wall.now_ns()
            try:
                server_ns = await self._executor.asked(self._parts.gateway.server_time_ns())
                self.watch.clock_read(ClockOffset.measured(asked_ns, server_ns, self._wall.now_ns()))
            except RetryLater:
                pass  # counted by the watch; asked again with the next look
        for voice in self.watch.changes(self.now_ns(), self.session.risk.voices):
            await self.dispatch(voice)

    def _end_cycle(self, done: ev.CycleDone) -> None:
        log = self.log
        if log.market is None or log.decision_account is None or done.ts_ns != log.market.ts_ns:
            return
        ours = frozenset(p.symbol for p in done.account.positions if self.tracker.lots(p.symbol))
        taker_fee = self._parts.config.rules.taker_fee
        log.view = PaperView(
            as_of_ns=done.ts_ns,
            bar=log.bar,
            n_bars=log.n_bars,
            mode=done.mode,
            equity=log.decision_account.equity,
            start_equity=self._start_equity(),
            margin_ratio=done.account.margin_ratio,
            orders_sent=done.orders_sent,
            vetoes=len(done.vetoes),
            positions=position_lines(done.account, log.market.market, taker_fee, ours),
            pending=self.session.pending,
            alerts=tuple(log.new_alerts),
        )
        log.alerts += log.new_alerts
        log.new_alerts = []
        self._show(log.view)

    def _start_equity(self) -> float:
        if self._first_equity is None:
            self._first_equity = self._parts.ledger.equity()[0].equity
        return self._first_equity

    # ---- what people ask

    async def hear(self) -> None:
        """Let stricter voices speak at once, also in the middle of a cycle."""
        controls = self._parts.controls
        if controls is None:
            return
        for voice in controls.voices(self.now_ns(), self.session.risk):
            await self.dispatch(voice)
        for command in controls.commands():
            if command.verb in (Verb.HALT, Verb.REDUCE):
                controls.answer(command, self._wall.now_ns(), await self.obey(controls, command))

    async def obey(self, controls: Controls, command: ControlRow) -> str:
        """Do what a command asks and return what came of it."""
        meant = controls.event_of(command, self.now_ns())
        if isinstance(meant, str):
            return meant
        heard = len(self.log.new_alerts)
        answer = await self.told(self.dispatch(meant))
        is_quiet = command.verb == Verb.RECONCILE and heard == len(self.log.new_alerts)
        return f"{answer}; orders, positions, stops and balance agree with the ledger" if is_quiet else answer

    async def told(self, doing: Awaitable[None]) -> str:
        """Wait for ``doing`` and return what a person should know of it."""
        sent, told = self.log.orders_sent, len(self.log.new_alerts)
        try:
            await doing
        except (RetryLater, SkipCycle) as e:
            return f"not done: {e}"
        lines = [f"mode {self.session.risk.mode.name}, {self.log.orders_sent - sent} orders sent"]
        if self.session.pending:
            lines.append(f"not final yet: {', '.join(self.session.pending)}")
        return "; ".join([*lines, *self.log.new_alerts[told:]])

    def tell(self, alert: ev.Alert) -> None:
        """Tell whoever listens; what is of no concern does not reach the screen."""
        _LOG.info("%s", alert.text)
        self._parts.tell(LiveEvent(self.now_ns(), alert.kind, alert.severity, alert.text, alert.symbol, alert.facts))
        if alert.severity is not Severity.INFO or alert.kind not in _OF_EVERY_DAY:
            self.log.new_alerts.append(f"{alert.severity.value}: {alert.text}")

    def _journal(self, step: Step) -> None:
        self._parts.ledger.append_journal(self.now_ns(), type(step).__name__, journal_form(step))

    def now_ns(self) -> int:
        """Return the instant events are stamped with."""
        return self._parts.clock.now_ns()

"""The asyncio shell around the session: wait for the bar, feed events in, carry instructions out, journal both.

``run_session`` is the loop of paper and live alike; what differs comes in from outside: the gateway, and a
:class:`BarWaiter` that either steps the embedded market or waits for real bars to close. A cycle whose account cannot be read
is skipped: the orders under way stay in the ledger and are looked up with the next bar.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Protocol, TypeVar

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.clock import NS_PER_S, Clock, ManualClock, SystemClock, iso
from crypto_qlib.core.errors import HaltTrading, RetryLater, SkipCycle
from crypto_qlib.core.order import Fill
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.controls import FLATTEN, LEAVE, Controls, Verb
from crypto_qlib.live_trading.dead_man import VOICE, DeadManSwitch
from crypto_qlib.live_trading.paper_view import PaperView, position_lines
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import Mode, risk_from_json
from crypto_qlib.live_trading.session import Session, SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.live_trading.trade_executor_okx import Sleep, TradeExecutor
from crypto_qlib.store.control_book import ControlRow
from crypto_qlib.store.ledger import EquityRow, Ledger

Show = Callable[[PaperView], None]
_T = TypeVar("_T")
_RISK = "risk"
_DECIDED = "decided_ns"
_READ_TRIES = 3
_ATTEND_EVERY_S = 0.5
"""Real seconds between two looks at what people ask, while a bar is waited for."""


class BarWaiter(Protocol):
    """Wait for the market to reach the close of a bar."""

    async def wait_until(self, close_ns: int) -> None:
        """Return once the bar that ends at ``close_ns`` is closed at the exchange."""
        ...


class SteppedBars:
    """Move an embedded market on instead of waiting for it.

    Parameters
    ----------
    step : async callable
        Moves the market one step on and returns its new time, nanoseconds since the epoch.
    now_ns : int
        The market's time now.
    """

    def __init__(self, step: Callable[[], Awaitable[int]], now_ns: int) -> None:
        self._step = step
        self._now_ns = now_ns

    async def wait_until(self, close_ns: int) -> None:
        """Step until the market stands at ``close_ns`` or later."""
        while self._now_ns < close_ns:
            self._now_ns = await self._step()


class RealBars:
    """Wait for bars of a market that moves by itself.

    Parameters
    ----------
    clock : Clock
        The wall clock.
    sleep : callable
        ``asyncio.sleep``, or a fake.
    settle_s : float
        Seconds after the close until the exchange surely shows the bar as final.
    """

    def __init__(self, clock: Clock, sleep: Sleep = asyncio.sleep, settle_s: float = 2.0) -> None:
        self._clock = clock
        self._sleep = sleep
        self._settle_s = settle_s

    async def wait_until(self, close_ns: int) -> None:
        """Sleep until ``settle_s`` after ``close_ns``."""
        left = (close_ns - self._clock.now_ns()) / NS_PER_S + self._settle_s
        if left > 0.0:
            await self._sleep(left)


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a session runs on.

    Parameters
    ----------
    gateway : Gateway
        The exchange account.
    signals : SignalProcessor
        Turns closed bars into views.
    ledger : Ledger
        Opened for this session.
    config : SessionConfig
        Rules, limits and names.
    clock : Clock
        Stamps events: the wall clock, or a :class:`ManualClock` that is moved to each close of a stepped market.
    sleep : callable
        ``asyncio.sleep``, or a fake.
    controls : Controls, optional
        What people ask of the running session.
    dead_man_s : int
        Seconds after which the exchange cancels resting orders of a session that hangs or died; 0 = never.
    """

    gateway: Gateway
    signals: SignalProcessor
    ledger: Ledger
    config: SessionConfig
    clock: Clock
    sleep: Sleep = asyncio.sleep
    controls: Controls | None = None
    dead_man_s: int = 0


@dataclass(frozen=True, slots=True)
class PaperResult:
    """What came of a session.

    Parameters
    ----------
    session_id : str
        Where to find it in the ledger.
    start_ns, end_ns : int
        First and last decision.
    start_equity, final_equity : float
        USDT, marked at those moments.
    equity : tuple of EquityRow
        The account at each bar close.
    fills : tuple of Fill
        Every execution, oldest first.
    orders_sent : int
        Orders sent.
    mode : Mode
        Risk mode at the end.
    alerts : tuple of str
        Everything a person was told.
    decision_seconds : tuple of float
        Per bar, real time from the bar's close (the market was told to stand there) to the end of its cycle.
    last_view : PaperView | None
        What was shown last.
    stopped_by : str
        Who ended the session before its last bar; empty where nobody did.
    """

    session_id: str
    start_ns: int
    end_ns: int
    start_equity: float
    final_equity: float
    equity: tuple[EquityRow, ...]
    fills: tuple[Fill, ...]
    orders_sent: int
    mode: Mode
    alerts: tuple[str, ...]
    decision_seconds: tuple[float, ...]
    last_view: PaperView | None
    stopped_by: str = ""

    @property
    def fees(self) -> float:
        """Return the fees paid, USDT."""
        return sum(fill.fee for fill in self.fills)

    @property
    def max_open(self) -> int:
        """Return the most positions open at a decision."""
        return max((row.open_count for row in self.equity), default=0)


@dataclass(slots=True)
class _Log:
    """What is collected on the way."""

    bar: int = 0
    n_bars: int = 0
    market: ev.BarClosed | None = None
    decision_account: AccountState | None = None
    alerts: list[str] = field(default_factory=list)
    new_alerts: list[str] = field(default_factory=list)
    orders_sent: int = 0
    seconds: list[float] = field(default_factory=list)
    view: PaperView | None = None


class SessionRunner:
    """Drive one :class:`Session`.

    Parameters
    ----------
    parts : SessionParts
        What it runs on.
    show : callable
        Called with a :class:`PaperView` after each bar.
    """

    def __init__(self, parts: SessionParts, show: Show | None = None) -> None:
        self._parts = parts
        self._show = show or (lambda _view: None)
        self._executor = TradeExecutor(parts.gateway, parts.ledger, parts.clock, parts.sleep)
        rules, ledger = parts.config.rules, parts.ledger
        self.tracker = PositionTracker.rebuild(rules.frame_ns, rules.cooldown_ns, ledger.intents(), ledger.fills())
        risk = risk_from_json(ledger.state(_RISK))
        decided_ns = int(ledger.state(_DECIDED) or 0)
        self.session = Session(parts.config, self.tracker, risk, tuple(ledger.unresolved()), decided_ns)
        self._log = _Log()
        self._stopped_by = ""
        self._wall = SystemClock()
        self._dead_man = DeadManSwitch(parts.gateway, parts.dead_man_s, self._wall)

    async def run(self, bars: BarWaiter, first_close_ns: int, n_bars: int) -> PaperResult:
        """Decide at ``first_close_ns`` and at each of the ``n_bars`` closes after it; take no new risk at the last one."""
        log = self._log
        log.n_bars = n_bars
        self._move_clock(first_close_ns)
        await self._keep_alive()
        await self.dispatch(ev.Started(self._now_ns()))
        for bar in range(n_bars + 1):
            log.bar = bar
            close_ns = first_close_ns + bar * self._parts.config.rules.frame_ns
            if not await self._reached(bars, close_ns):
                break
            self._move_clock(close_ns)
            began = self._wall.now_ns()
            try:
                log.market = await self._parts.signals.on_close(close_ns, is_last=bar == n_bars)
                await self.dispatch(log.market)
            except (RetryLater, SkipCycle) as e:
                log.new_alerts.append(f"{ev.Severity.CRITICAL.value}: cycle of {iso(close_ns)} skipped: {e}")
            log.seconds.append((self._wall.now_ns() - began) / NS_PER_S)
        await self.attend()
        await self._let_go()
        return self._result(first_close_ns)

    async def _reached(self, bars: BarWaiter, close_ns: int) -> bool:
        """Wait for the bar, attending to what people ask meanwhile; ``False`` where the session was told to end."""
        await self._keep_alive()
        if await self.attend():
            return False
        waiting = asyncio.ensure_future(bars.wait_until(close_ns))
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=_ATTEND_EVERY_S)
            await self._keep_alive()
            if not waiting.done() and await self.attend():
                waiting.cancel()
                return False
        waiting.result()
        return True

    async def _keep_alive(self) -> None:
        """Refresh the countdown; while it cannot be kept running, nothing new is opened."""
        trouble = await self._dead_man.refresh()
        if bool(trouble) is (VOICE in self.session.risk.voices):
            return
        mode = Mode.REDUCE_ONLY if trouble else Mode.ACTIVE
        await self.dispatch(ev.ModeVoiced(self._now_ns(), VOICE, mode, trouble or "armed again"))

    async def _let_go(self) -> None:
        """End the countdown, unless an order may still rest at the exchange: then it shall run out."""
        if self.session.pending:
            return
        trouble = await self._dead_man.disarm()
        if trouble:
            self._log.new_alerts.append(f"{ev.Severity.WARNING.value}: the dead-man's countdown still runs: {trouble}")

    # ---- what people ask

    async def attend(self) -> bool:
        """Obey what was asked since the last look, between cycles; return whether the session was told to end."""
        controls = self._parts.controls
        if controls is None:
            return False
        try:
            await self._hear()
            for command in controls.commands():
                controls.answer(command, self._wall.now_ns(), await self._obey(controls, command))
        except RetryLater as e:
            if str(e) not in " ".join(self._log.new_alerts):
                self._log.new_alerts.append(f"{ev.Severity.CRITICAL.value}: commands cannot be heard: {e}")
        name = controls.stop_signal()
        if name and not self._stopped_by:
            await self._stop(name, "")
        return bool(self._stopped_by)

    async def _hear(self) -> None:
        """Let stricter voices speak at once, also in the middle of a cycle."""
        controls = self._parts.controls
        if controls is None:
            return
        for voice in controls.voices(self._now_ns(), self.session.risk):
            await self.dispatch(voice)
        for command in controls.commands():
            if command.verb in (Verb.HALT, Verb.REDUCE):
                controls.answer(command, self._wall.now_ns(), await self._obey(controls, command))

    async def _obey(self, controls: Controls, command: ControlRow) -> str:
        sent, told = self._log.orders_sent, len(self._log.new_alerts)
        try:
            if command.verb == Verb.STOP:
                await self._stop(command.asked_by, command.argument, command.asked_ns)
            else:
                meant = controls.event_of(command, self._now_ns())
                if isinstance(meant, str):
                    return meant
                await self.dispatch(meant)
        except (RetryLater, SkipCycle) as e:
            return f"not done: {e}"
        lines = [f"mode {self.session.risk.mode.name}, {self._log.orders_sent - sent} orders sent"]
        if self.session.pending:
            lines.append(f"not final yet: {', '.join(self.session.pending)}")
        return "; ".join([*lines, *self._log.new_alerts[told:]])

    async def _stop(self, who: str, how: str, asked_ns: int = 0) -> None:
        """End the session: close our positions where that is asked for or set, else leave them to their stops."""
        self._stopped_by = who
        if how == FLATTEN or (how != LEAVE and self._parts.config.flatten):
            now = self._now_ns()
            await self.dispatch(ev.CloseAsked(now, asked_ns or now))

    async def dispatch(self, event: ev.Event) -> None:
        """Hand ``event`` to the session and carry out everything that follows from it, journalling each step first."""
        waiting = deque([event])
        while waiting:
            current = waiting.popleft()
            self._journal(current)
            for instruction in self.session.handle(current):
                if isinstance(instruction, ev.PlaceOrder | ev.LookUpOrder):
                    await self._dead_man.refresh()
                self._journal(instruction)
                answer = await self._carry_out(instruction)
                if answer is not None:
                    waiting.append(answer)

    async def _carry_out(self, instruction: ev.Instruction) -> ev.Event | None:  # noqa: PLR0911 - one line each
        try:
            match instruction:
                case ev.ReadAccount():
                    return await self._read_account(instruction.purpose)
                case ev.ReadFills():
                    return await self._read_fills(instruction.since_ns)
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
                    self._log.new_alerts.append(f"{instruction.severity.value}: {instruction.text}")
                case ev.SaveRisk():
                    self._parts.ledger.put_state(_RISK, asdict(instruction))
                case ev.SaveDecided():
                    self._parts.ledger.put_state(_DECIDED, instruction.ts_ns)
                case ev.CycleDone():
                    self._end_cycle(instruction)
        except HaltTrading as e:
            return ev.ModeVoiced(self._now_ns(), "gateway", Mode.HALTED, str(e))
        return None

    async def _place(self, instruction: ev.PlaceOrder) -> ev.Event:
        """Send an order if the mode allows it now; a session that cannot hear a halt opens nothing."""
        try:
            await self._hear()
        except RetryLater as e:
            if instruction.intent.is_entry:
                return self._executor.withhold(instruction, f"not sent: {e}")
        if not self.session.allows(instruction.intent):
            return self._executor.withhold(instruction, f"not sent: the mode is {self.session.risk.mode.name}")
        self._log.orders_sent += 1
        return await self._executor.place(instruction)

    async def _read_account(self, purpose: ev.Purpose) -> ev.AccountRead:
        account = await self._retried(self._parts.gateway.account)
        if purpose is ev.Purpose.DECIDE and self._log.market is not None:
            self._log.decision_account = account
            self._parts.ledger.record_equity(_equity_row(account, self._log.market.ts_ns))
        return ev.AccountRead(self._now_ns(), account, purpose)

    async def _read_fills(self, since_ns: int) -> ev.FillsRead:
        fills = await self._retried(lambda: self._parts.gateway.fills(since_ns))
        return ev.FillsRead(self._now_ns(), tuple(self._parts.ledger.record_fills(fills)))

    async def _retried(self, read: Callable[[], Awaitable[_T]]) -> _T:
        for _ in range(_READ_TRIES - 1):
            try:
                return await read()
            except RetryLater as e:
                await self._parts.sleep(e.retry_after_s)
        return await read()

    def _end_cycle(self, done: ev.CycleDone) -> None:
        log = self._log
        if log.market is None or log.decision_account is None or done.ts_ns != log.market.ts_ns:
            return
        ours = frozenset(p.symbol for p in done.account.positions if self.tracker.lots(p.symbol))
        taker_fee = self._parts.config.rules.taker_fee
        first = self._parts.ledger.equity()[0].equity
        log.view = PaperView(
            as_of_ns=done.ts_ns,
            bar=log.bar,
            n_bars=log.n_bars,
            mode=done.mode,
            equity=log.decision_account.equity,
            start_equity=first,
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

    def _result(self, start_ns: int) -> PaperResult:
        log, ledger = self._log, self._parts.ledger
        equity = tuple(ledger.equity())
        if not equity:
            raise SkipCycle("the session ended before it could read the account once", "see its journal in the ledger")
        return PaperResult(
            session_id=ledger.session_id,
            start_ns=start_ns,
            end_ns=equity[-1].ts_ns,
            start_equity=equity[0].equity,
            final_equity=equity[-1].equity,
            equity=equity,
            fills=tuple(ledger.fills()),
            orders_sent=log.orders_sent,
            mode=self.session.risk.mode,
            alerts=tuple(log.alerts + log.new_alerts),
            decision_seconds=tuple(log.seconds),
            last_view=log.view,
            stopped_by=self._stopped_by,
        )

    def _journal(self, step: ev.Event | ev.Instruction) -> None:
        self._parts.ledger.append_journal(self._now_ns(), type(step).__name__, journal_form(step))

    def _now_ns(self) -> int:
        return self._parts.clock.now_ns()

    def _move_clock(self, close_ns: int) -> None:
        clock = self._parts.clock
        if isinstance(clock, ManualClock):
            clock.advance_to(max(close_ns, clock.now_ns()))


async def run_session(
    parts: SessionParts, bars: BarWaiter, first_close_ns: int, n_bars: int, show: Show | None = None
) -> PaperResult:
    """Run a session over ``n_bars`` bars and return what came of it.

    Parameters
    ----------
    parts : SessionParts
        What it runs on.
    bars : BarWaiter
        Waits for, or steps to, each close.
    first_close_ns : int
        First decision: the close of the newest bar of the window.
    n_bars : int
        Bars lived through after that; 0 only looks at the account.
    show : callable, optional
        Called with a :class:`PaperView` after each bar.
    """
    runner = SessionRunner(parts, show)
    with parts.controls.listening() if parts.controls is not None else nullcontext():
        return await runner.run(bars, first_close_ns, n_bars)


def journal_form(step: ev.Event | ev.Instruction) -> object:
    """Return what the journal keeps of ``step``: all of it, but of a closed bar only scores and freshness."""
    if isinstance(step, ev.BarClosed):
        return {"ts_ns": step.ts_ns, "scores": step.scores, "freshness": step.freshness, "is_last": step.is_last}
    return step


def _equity_row(account: AccountState, ts_ns: int) -> EquityRow:
    notionals = [p.side * p.qty * p.mark for p in account.positions]
    ratio = None if account.margin_ratio == float("inf") else account.margin_ratio
    return EquityRow(
        ts_ns, account.equity, account.available, ratio, sum(abs(n) for n in notionals), sum(notionals), len(notionals)
    )

"""The asyncio shell around the session: wait for the bar, feed events in, carry instructions out, journal both.

``run_session`` is the loop of paper and live alike; what differs comes in from outside: the gateway, and a
:class:`BarWaiter` that either steps the embedded market or waits for real bars to close. A cycle whose account cannot be read
is skipped: the orders under way stay in the ledger and are looked up with the next bar.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol, TypeVar

from crypto_qlib.core.account import AccountState
from crypto_qlib.core.clock import NS_PER_S, Clock, ManualClock, SystemClock, iso
from crypto_qlib.core.errors import HaltTrading, RetryLater, SkipCycle
from crypto_qlib.core.order import Fill
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.paper_view import PaperView, position_lines
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import Mode, RiskState
from crypto_qlib.live_trading.session import Session, SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.live_trading.trade_executor_okx import Sleep, TradeExecutor
from crypto_qlib.store.ledger import EquityRow, Ledger

Show = Callable[[PaperView], None]
_T = TypeVar("_T")
_RISK = "risk"
_DECIDED = "decided_ns"
_READ_TRIES = 3


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
    """

    gateway: Gateway
    signals: SignalProcessor
    ledger: Ledger
    config: SessionConfig
    clock: Clock
    sleep: Sleep = asyncio.sleep


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
        self._wall = SystemClock()

    async def run(self, bars: BarWaiter, first_close_ns: int, n_bars: int) -> PaperResult:
        """Decide at ``first_close_ns`` and at each of the ``n_bars`` closes after it; take no new risk at the last one."""
        log = self._log
        log.n_bars = n_bars
        self._move_clock(first_close_ns)
        await self.dispatch(ev.Started(self._now_ns()))
        for bar in range(n_bars + 1):
            log.bar = bar
            close_ns = first_close_ns + bar * self._parts.config.rules.frame_ns
            await bars.wait_until(close_ns)
            self._move_clock(close_ns)
            began = self._wall.now_ns()
            try:
                log.market = await self._parts.signals.on_close(close_ns, is_last=bar == n_bars)
                await self.dispatch(log.market)
            except (RetryLater, SkipCycle) as e:
                log.new_alerts.append(f"{ev.Severity.CRITICAL.value}: cycle of {iso(close_ns)} skipped: {e}")
            log.seconds.append((self._wall.now_ns() - began) / NS_PER_S)
        return self._result(first_close_ns)

    async def dispatch(self, event: ev.Event) -> None:
        """Hand ``event`` to the session and carry out everything that follows from it, journalling each step first."""
        waiting = deque([event])
        while waiting:
            current = waiting.popleft()
            self._journal(current)
            for instruction in self.session.handle(current):
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
                    self._log.orders_sent += 1
                    return await self._executor.place(instruction)
                case ev.LookUpOrder():
                    return await self._executor.look_up(instruction)
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
        if log.market is None or log.decision_account is None:
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
    return await SessionRunner(parts, show).run(bars, first_close_ns, n_bars)


def journal_form(step: ev.Event | ev.Instruction) -> object:
    """Return what the journal keeps of ``step``: all of it, but of a closed bar only scores and freshness."""
    if isinstance(step, ev.BarClosed):
        return {"ts_ns": step.ts_ns, "scores": step.scores, "freshness": step.freshness, "is_last": step.is_last}
    return step


def risk_from_json(saved: dict[str, object] | None) -> RiskState | None:
    """Return the risk state the ledger kept, ``None`` where it kept none."""
    if saved is None:
        return None
    plain = RiskState(**{k: v for k, v in saved.items() if k != "voices"})  # type: ignore[arg-type]
    voices = {voice: (Mode(mode), str(reason)) for voice, (mode, reason) in saved["voices"].items()}  # type: ignore[attr-defined]
    return replace(plain, voices=voices)


def _equity_row(account: AccountState, ts_ns: int) -> EquityRow:
    notionals = [p.side * p.qty * p.mark for p in account.positions]
    ratio = None if account.margin_ratio == float("inf") else account.margin_ratio
    return EquityRow(
        ts_ns, account.equity, account.available, ratio, sum(abs(n) for n in notionals), sum(notionals), len(notionals)
    )

"""The asyncio shell around the session: wait for the bar, feed events in, carry instructions out, journal both.

``run_session`` is the loop of paper and live alike; what differs comes in from outside: the gateway, and a
:class:`BarWaiter` that either steps the embedded market or waits for real bars to close. A cycle whose account cannot be read
is skipped: the orders under way stay in the ledger and are looked up with the next bar.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_S, ManualClock, SystemClock, iso
from crypto_qlib.core.errors import CryptoQlibError, HaltTrading, RetryLater, SkipCycle
from crypto_qlib.exchange.okx_stream import Dropped
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.bar_waiters import BarWaiter, RealBars, SteppedBars
from crypto_qlib.live_trading.controls import FLATTEN, LEAVE, Verb
from crypto_qlib.live_trading.dead_man import VOICE
from crypto_qlib.live_trading.dispatcher import Dispatcher
from crypto_qlib.live_trading.live_feed import LiveFeed
from crypto_qlib.live_trading.risk_control import LEDGER, Mode
from crypto_qlib.live_trading.session import Session
from crypto_qlib.live_trading.session_parts import CycleTimes, PaperResult, SessionParts, Show
from crypto_qlib.portfolio.market_state import ContractTable
from crypto_qlib.store.live_events import EventKind, Severity

__all__ = ["BarWaiter", "PaperResult", "RealBars", "SessionParts", "SessionRunner", "SteppedBars", "run_session"]

_LOG: Final = logging.getLogger(__name__)
SUPERVISOR: Final = "supervisor"
"""Voice of a session in which something failed that nobody foresaw."""
_ATTEND_EVERY_S: Final = 0.5
"""Real seconds between two looks at what people ask, while a bar is waited for."""


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
        self._wall = SystemClock()
        self._desk = Dispatcher(parts, self._wall, show or (lambda _view: None))
        self._log = self._desk.log
        self._stopped_by = ""
        self._lost = ""
        """Why the ledger cannot be written; empty while it can."""
        self._next_check_ns = 0
        self._contracts: ev.ContractsSeen | None = None

    @property
    def session(self) -> Session:
        """Return the machine that is driven."""
        return self._desk.session

    async def dispatch(self, event: ev.Event) -> None:
        """Hand ``event`` to the session and carry out everything that follows from it."""
        await self._desk.dispatch(event)

    async def run(self, bars: BarWaiter, first_close_ns: int, n_bars: int) -> PaperResult:
        """Decide at ``first_close_ns`` and at each of the ``n_bars`` closes after it; take no new risk at the last one."""
        log = self._log
        log.n_bars = n_bars
        self._move_clock(first_close_ns)
        await self._keep_alive()
        await self._supervised(lambda: self.dispatch(ev.Started(self._desk.now_ns())), "look at the start")
        for bar in range(n_bars + 1):
            log.bar = bar
            close_ns = first_close_ns + bar * self._parts.config.rules.frame_ns
            try:
                if not await self._reached(bars, close_ns):
                    break
                self._move_clock(close_ns)
                timer, sent = self._parts.signals.timer, log.orders_sent
                timer.start()
                decide = partial(self._decide, close_ns, is_last=bar == n_bars)
                await self._supervised(decide, f"cycle of {iso(close_ns)}")
                await self._desk.watch_system()
                self._note_times(close_ns, log.orders_sent - sent)
                await self._look_at_universe()
            except HaltTrading as e:  # the journal cannot be written: what is not written is not sent
                self._lost = str(e)
                self._say(f"nothing is sent until the ledger is back: {e}", EventKind.MODE)
        await self.attend()
        await self._let_go()
        return self._result(first_close_ns)

    async def _decide(self, close_ns: int, *, is_last: bool) -> None:
        if self._lost:
            await self._regain()
        market = await self._parts.signals.on_close(close_ns, is_last=is_last)
        self._log.market = market
        await self._tell_contracts(market)
        await self.dispatch(market)

    async def _regain(self) -> None:
        """Start again from a ledger that answers again, as after a restart, and stay HALTED until a person resumes."""
        self._desk.rebuild()
        self._contracts = None
        now = self._desk.now_ns()
        await self.dispatch(ev.Started(now))
        await self.dispatch(ev.ModeVoiced(now, LEDGER, Mode.HALTED, self._lost))
        self._lost = ""

    async def _supervised(self, doing: Callable[[], Awaitable[None]], what: str) -> None:
        """Let one thing be done; whatever goes wrong, the session lives on, in a safer mode where the reason is not known.

        What the exchange or the data are to blame for passes: this one thing is skipped, and the voices about the way to the
        exchange count it. After anything nobody foresaw nothing is opened until a person resumes. A ledger that cannot be
        written is the caller's to deal with: without it nothing is done at all.
        """
        try:
            await doing()
        except (RetryLater, SkipCycle) as e:
            self._say(f"{what} skipped: {e}", EventKind.CYCLE)
        except HaltTrading:
            raise
        except Exception as e:  # noqa: BLE001 - the supervisor: told, logged, and a safer mode
            reason = str(e) if isinstance(e, CryptoQlibError) else f"{type(e).__name__}: {e}"
            _LOG.exception("%s failed", what)
            self._say(f"{what} failed: {reason}", EventKind.CYCLE)
            await self.dispatch(ev.ModeVoiced(self._desk.now_ns(), SUPERVISOR, Mode.REDUCE_ONLY, reason))

    def _note_times(self, close_ns: int, orders: int) -> None:
        timer, log = self._parts.signals.timer, self._log
        times = CycleTimes(close_ns, orders, timer.sent_s, timer.total_s, dict(timer.seconds))
        log.seconds.append(times.total_s)
        log.cycles.append(times)
        steps = ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in times.steps.items())
        text = f"cycle of {iso(close_ns)}: {orders} orders, the last {times.sent_s:.2f} s after the close ({steps})"
        facts: dict[str, object] = {"orders": orders, "sent_s": times.sent_s, "total_s": times.total_s, **times.steps}
        self._desk.tell(ev.Alert(Severity.INFO, text, EventKind.CYCLE, facts=facts))

    async def _reached(self, bars: BarWaiter, close_ns: int) -> bool:
        """Wait for the bar, attending to what people ask meanwhile; ``False`` where the session was told to end."""
        if self._lost:
            await bars.wait_until(close_ns)
            return True
        await self._keep_alive()
        if await self.attend():
            return False
        waiting = asyncio.ensure_future(bars.wait_until(close_ns))
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_ATTEND_EVERY_S)
                await self._keep_alive()
                if not waiting.done() and await self.attend():
                    return False
                if not waiting.done():
                    await self._check()
                    await self._supervised(self._take_up_universe, "taking up the universe")
        finally:
            waiting.cancel()
        waiting.result()
        return True

    def _tell_connections(self, heard: LiveFeed) -> None:
        for change in heard.take_changes():
            if isinstance(change, Dropped):
                text = f"the websocket {change.what} is lost ({change.reason}); REST answers until it is back"
                self._say(text, EventKind.API_LOST, Severity.WARNING)
            else:
                self._say(f"the websocket {change.what} is up", EventKind.API_BACK, Severity.INFO)

    async def _tell_contracts(self, bar: ev.BarClosed) -> None:
        """Let the session know contract rules that changed: new sizes, tiers, symbols."""
        seen, known = ev.ContractsSeen(bar.ts_ns, bar.market.symbols, bar.market.contracts), self._contracts
        names = ContractTable.__slots__
        if (
            known is None
            or seen.symbols != known.symbols
            or not all(np.array_equal(getattr(seen.contracts, name), getattr(known.contracts, name)) for name in names)
        ):
            self._contracts = seen
            await self.dispatch(seen)

    async def _look_at_universe(self) -> None:
        """Begin a look at the universe; a market that is stepped stands still for it, one that moves is not waited for."""
        universe = self._parts.universe
        if universe is not None:
            universe.begin()
            if isinstance(self._parts.clock, ManualClock):
                await universe.wait()
                await self._supervised(self._take_up_universe, "taking up the universe")

    async def _take_up_universe(self) -> None:
        """Let window, contract rules and websockets follow the universe, between two cycles."""
        universe = self._parts.universe
        try:
            prepared = universe.seen() if universe is not None else None
        except RetryLater as e:
            self._say(f"the universe could not be looked at, it stays: {e}", EventKind.UNIVERSE, Severity.WARNING)
            return
        if universe is not None and prepared is not None:
            held = {*self._desk.tracker.symbols, *self.session.pending}
            for line in universe.take_up(prepared, held):
                self._say(line, EventKind.UNIVERSE, Severity.INFO)

    async def _check(self) -> None:
        """Look at account, orders and stops where that is due; an exchange that does not answer is asked again later."""
        every_s, heard = self._parts.check_every_s, self._parts.heard
        if heard is not None:
            self._tell_connections(heard)
        is_asked_for = heard is not None and heard.account_changed.is_set()
        if not every_s or (self._wall.now_ns() < self._next_check_ns and not is_asked_for):
            return
        if heard is not None:
            heard.account_changed.clear()
        self._next_check_ns = self._wall.now_ns() + int(every_s * NS_PER_S)
        await self._desk.watch_system()
        await self._supervised(lambda: self.dispatch(ev.CheckDue(self._desk.now_ns())), "look at the account")
        await self._desk.watch_system()

    async def _keep_alive(self) -> None:
        """Refresh the countdown; while it cannot be kept running, nothing new is opened."""
        trouble = await self._desk.dead_man.refresh()
        if bool(trouble) is (VOICE in self.session.risk.voices):
            return
        mode = Mode.REDUCE_ONLY if trouble else Mode.ACTIVE
        await self.dispatch(ev.ModeVoiced(self._desk.now_ns(), VOICE, mode, trouble or "armed again"))

    async def _let_go(self) -> None:
        """End the countdown, unless an order may still rest at the exchange: then it shall run out."""
        if self.session.pending:
            return
        trouble = await self._desk.dead_man.disarm()
        if trouble:
            self._say(f"the dead-man's countdown still runs: {trouble}", EventKind.STOPPED, Severity.WARNING)

    # ---- what people ask

    async def attend(self) -> bool:
        """Obey what was asked since the last look, between cycles; return whether the session was told to end."""
        controls = self._parts.controls
        if controls is None:
            return False
        try:
            await self._desk.hear()
            for command in controls.commands():
                if command.verb == Verb.STOP:
                    answer = await self._desk.told(self._stop(command.asked_by, command.argument, command.asked_ns))
                else:
                    answer = await self._desk.obey(controls, command)
                controls.answer(command, self._wall.now_ns(), answer)
        except RetryLater as e:
            if str(e) not in " ".join(self._log.new_alerts):
                self._say(f"commands cannot be heard: {e}", EventKind.MODE)
        name = controls.stop_signal()
        if name and not self._stopped_by:
            await self._stop(name, "")
        return bool(self._stopped_by)

    async def _stop(self, who: str, how: str, asked_ns: int = 0) -> None:
        """End the session: close our positions where that is asked for or set, else leave them to their stops."""
        self._stopped_by = who
        if how == FLATTEN or (how != LEAVE and self._parts.config.flatten):
            now = self._desk.now_ns()
            await self.dispatch(ev.CloseAsked(now, asked_ns or now))

    def _say(self, text: str, kind: EventKind, severity: Severity = Severity.CRITICAL) -> None:
        self._desk.tell(ev.Alert(severity, text, kind))

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
            cycles=tuple(log.cycles),
        )

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
    listening = asyncio.create_task(parts.heard.listen()) if parts.heard is not None else None
    try:
        with parts.controls.listening() if parts.controls is not None else nullcontext():
            return await runner.run(bars, first_close_ns, n_bars)
    finally:
        if parts.universe is not None:
            parts.universe.cancel()
        if listening is not None:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

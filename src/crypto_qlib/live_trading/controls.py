"""What a person can tell a running session, and the four ways to tell it: command, kill file, signal, and its own end.

=============  ====================================================================================
``halt``       nothing is sent any more, but what a person asks to close; stays over restarts
``reduce``     exits only; stays over restarts
``resume``     takes back halt, reduce, and what failures asked for; ``drawdown`` as argument: that too
``close``      closes one position of ours (argument: symbol), or all, in whatever mode
``adopt``      takes over a position that is not ours (argument: symbol), or all: it gets a stop and leaves like ours
``reconcile``  compares orders, positions, stops and balance with the ledger now
``stop``       ends the session after the cycle under way: ``leave`` protected, ``flatten``, or as set
=============  ====================================================================================

Commands come through the ledger (``store.control_book``). A file named ``HALT`` beside the session's card halts it while it
exists, and after that until a person resumes. SIGUSR1 halts; SIGTERM and the first SIGINT stop.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.risk_control import Mode, RiskState
from crypto_qlib.store.control_book import ControlBook, ControlRow

OPERATOR: Final = "operator"
KILL_FILE_VOICE: Final = "kill_file"
SIGNAL_VOICE: Final = "signal"
FLATTEN: Final = "flatten"
_OF_THE_MOMENT: Final = ("stop", "close", "adopt", "reconcile")
"""What was asked of an earlier run and not read by it is not obeyed by the next."""
LEAVE: Final = "leave"
DRAWDOWN: Final = "drawdown"


class Verb(StrEnum):
    """What a person can ask."""

    HALT = "halt"
    REDUCE = "reduce"
    RESUME = "resume"
    CLOSE = "close"
    ADOPT = "adopt"
    RECONCILE = "reconcile"
    STOP = "stop"


class Controls:
    """What was asked and is not answered yet.

    Parameters
    ----------
    book : ControlBook
        Commands.
    kill_file : Path
        Halts while it exists.
    started_ns : int
        Start of the session, wall clock: what was asked before is a wish of the past, unless it is about the mode.
    """

    def __init__(self, book: ControlBook, kill_file: Path, started_ns: int = 0) -> None:
        self._book = book
        self._started_ns = started_ns
        self._kill_file = kill_file
        self._signalled: list[signal.Signals] = []

    def voices(self, now_ns: int, risk: RiskState) -> list[ev.ModeVoiced]:
        """Return what the kill file and signals ask for that is not yet in force."""
        asked = []
        if signal.SIGUSR1 in self._signalled:
            self._signalled.remove(signal.SIGUSR1)
            asked.append(ev.ModeVoiced(now_ns, SIGNAL_VOICE, Mode.HALTED, "SIGUSR1"))
        if self._kill_file.exists() and KILL_FILE_VOICE not in risk.voices:
            asked.append(ev.ModeVoiced(now_ns, KILL_FILE_VOICE, Mode.HALTED, f"{self._kill_file} exists"))
        return asked

    def commands(self) -> list[ControlRow]:
        """Return the commands not answered yet, oldest first; to stop or close asked of an earlier run expires."""
        alive = []
        for row in self._book.waiting():
            if row.verb in _OF_THE_MOMENT and row.asked_ns < self._started_ns:
                self._book.answer(row.seq, self._started_ns, "not done: the session had ended before it was read")
            else:
                alive.append(row)
        return alive

    def answer(self, command: ControlRow, ts_ns: int, text: str) -> None:
        """Tell the asker what came of it."""
        self._book.answer(command.seq, ts_ns, text)

    def stop_signal(self) -> str:
        """Return the name of the signal that asked the session to end; empty where none did."""
        return next((s.name for s in self._signalled if s is not signal.SIGUSR1), "")

    def event_of(self, command: ControlRow, now_ns: int) -> ev.Event | str:  # noqa: PLR0911 - one line a verb
        """Return what the command means to the session machine, or why it cannot be obeyed."""
        reason = f"asked by {command.asked_by}"
        match command.verb:
            case Verb.HALT:
                return ev.ModeVoiced(now_ns, OPERATOR, Mode.HALTED, reason)
            case Verb.REDUCE:
                return ev.ModeVoiced(now_ns, OPERATOR, Mode.REDUCE_ONLY, reason)
            case Verb.RESUME if self._kill_file.exists():
                return f"not resumed: remove {self._kill_file} first"
            case Verb.RESUME:
                return ev.Resumed(now_ns, reason, forgives_drawdown=command.argument == DRAWDOWN)
            case Verb.CLOSE:
                return ev.CloseAsked(now_ns, command.asked_ns, (command.argument,) if command.argument else ())
            case Verb.ADOPT:
                return ev.AdoptAsked(now_ns, command.argument)
            case Verb.RECONCILE:
                return ev.CheckDue(now_ns)
            case _:
                return f"unknown command {command.verb}"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals of this process; a second SIGINT interrupts as ever. Without effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.getsignal(number) for number in wanted}

        def note(number: signal.Signals) -> None:
            self._signalled.append(number)
            if number is signal.SIGINT:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

        for number in wanted:
            loop.add_signal_handler(number, note, number)
        try:
            yield
        finally:
            for number in wanted:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

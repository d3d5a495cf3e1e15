"""Bring the notices of the outbox to a person: a thread of its own, one worker a channel, nothing of it seen by the session.

1. Every notice goes to the channel of its level. One that did not take it is tried again, later each time, ``tries`` times;
   then the next channel gets it. The last one is tried for a day.
2. What is critical has to be acknowledged (``crypto-qlib live acknowledge``, or by Telegram). Where nobody does in time the
   next channel gets it; the last one is reminded three times.
3. A channel that hangs holds only its own worker: what it has not answered is not given to it twice, and the others go on.

The outbox is in the ledger: what is not sent when the process dies is sent by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

from crypto_qlib.core.clock import NS_PER_MINUTE, NS_PER_S, Clock, iso
from crypto_qlib.core.errors import RetryLater
from crypto_qlib.live_trading.alerts.channels import Channel
from crypto_qlib.store.live_events import Severity
from crypto_qlib.store.notice_box import Notice, NoticeBox, NoticeState

_LONGEST_PAUSE_NS: Final = 5 * NS_PER_MINUTE
_TRIES_OF_A_DAY: Final = 24 * 60 // 5
_REMINDERS: Final = 3
"""How often the last channel is told again what nobody acknowledged: levels beyond the last channel are its reminders."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what.

    Parameters
    ----------
    tries : int
        Tries on one channel before the next one gets it.
    first_pause_ns : int
        Pause after the first failed try; it doubles, up to five minutes.
    acknowledge_ns : int
        Time a person has to acknowledge what is critical; 0 = nobody has to.
    look_every_s : float
        Longest pause between two looks at the outbox.
    """

    tries: int = 3
    first_pause_ns: int = 5 * NS_PER_S
    acknowledge_ns: int = 15 * NS_PER_MINUTE
    look_every_s: float = 1.0


class Courier:
    """Deliver the notices of a box.

    Parameters
    ----------
    box : NoticeBox
        The outbox, on a connection of its own.
    channels : sequence of Channel
        By level.
    clock : Clock
        The wall clock.
    patience : Patience
        How long to wait for what.
    chores : sequence of callable
        Called with the wall clock at each look, in the courier's thread.
    """

    def __init__(
        self,
        box: NoticeBox,
        channels: Sequence[Channel],
        clock: Clock,
        patience: Patience | None = None,
        chores: Sequence[Callable[[int], None]] = (),
    ) -> None:
        self._box = box
        self._channels = channels
        self._clock = clock
        self._patience = patience or Patience()
        self._chores = chores
        self._workers = [ThreadPoolExecutor(1, thread_name_prefix=f"alert-{k}") for k in range(len(channels))]
        self._under_way: dict[int, tuple[Notice, Future[None]]] = {}
        self.woken = threading.Event()
        self._ending = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alert-courier", daemon=True)
        self._chore_worker = ThreadPoolExecutor(1, thread_name_prefix="alert-chore")
        self._doing: Future[None] | None = None
        self.trouble = ""
        self.chore_trouble = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, wait_s: float = 10.0) -> None:
        """Send what can be sent within ``wait_s`` and end; the rest stays in the outbox."""
        self._ending.set()
        self.woken.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)
        self._over.set()
        for worker in (*self._workers, self._chore_worker):
            worker.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._over.is_set():
            self.woken.wait(self._patience.look_every_s)
            self.woken.clear()
            is_ending = self._ending.is_set()
            try:
                left = self.look()
            except RuntimeError:
                if self._over.is_set():  # its workers were ended while it looked
                    return
                raise
            if is_ending and not left:
                return
            if is_ending:
                self.woken.wait(0.05)

    def look(self) -> bool:
        """Take what has been answered, send what is due, and return whether something is still under way.

        A database that refuses is left for the next look.
        """
        try:
            self._do_chores()
            self._collect()
            now = self._clock.now_ns()
            for notice in self._box.overdue(now):
                self._escalate(notice, now, "nobody acknowledged it")
            for place in range(len(self._channels)):
                if place not in self._under_way:
                    self._send_next(place, now)
            self.trouble = ""
        except RetryLater as e:
            self.trouble = str(e)
        return bool(self._under_way)

    def _send_next(self, place: int, now_ns: int) -> None:
        last = len(self._channels) - 1
        notice = self._box.next_due(now_ns, place, last + _REMINDERS if place == last else place)
        if notice is None:
            return
        channel, woken = self._channels[place], self.woken
        future = self._workers[place].submit(channel.send, title_of(notice), notice.text, notice.severity)
        self._under_way[place] = (notice, future)
        future.add_done_callback(lambda _done: woken.set())

    def _collect(self) -> None:
        """Write down what became of the messages that were answered; one that cannot be written is kept for the next look."""
        for place, (notice, future) in list(self._under_way.items()):
            if not future.done():
                continue
            failure = future.exception()
            now = self._clock.now_ns()
            if failure is None:
                self._note_sent(notice, now)
            elif isinstance(failure, RetryLater):
                self._note_failure(notice, now, str(failure))
            else:  # a defect of a service's library is one failed try, told by its kind alone: its text may hold the address
                self._note_failure(notice, now, f"{self._channels[place].name} failed with {type(failure).__name__}")
            del self._under_way[place]

    def _do_chores(self) -> None:
        if self._doing is not None and not self._doing.done():
            return
        if self._doing is not None and (failure := self._doing.exception()) is not None:
            self.chore_trouble = f"{type(failure).__name__}: {failure}"
        self._doing = self._chore_worker.submit(self._all_chores) if self._chores else None

    def _all_chores(self) -> None:
        for chore in self._chores:
            chore(self._clock.now_ns())

    def _note_sent(self, notice: Notice, now_ns: int) -> None:
        waits = notice.severity is Severity.CRITICAL and self._patience.acknowledge_ns > 0
        state = NoticeState.SENT if waits else NoticeState.DONE
        until = now_ns + self._patience.acknowledge_ns
        self._box.update(notice.seq, state=state, sent_ns=now_ns, next_try_ns=until, tries=0, note="")

    def _note_failure(self, notice: Notice, now_ns: int, why: str) -> None:
        tries = notice.tries + 1
        if tries >= self._patience.tries and notice.level < len(self._channels) - 1:
            self._escalate(notice, now_ns, why)
            return
        pause = min(self._patience.first_pause_ns * 2 ** min(tries - 1, 20), _LONGEST_PAUSE_NS)
        state = NoticeState.FAILED if tries > _TRIES_OF_A_DAY else NoticeState.WAITING
        self._box.update(notice.seq, state=state, tries=tries, next_try_ns=now_ns + pause, note=why)

    def _escalate(self, notice: Notice, now_ns: int, why: str) -> None:
        level = notice.level + 1
        if level >= len(self._channels) + _REMINDERS:
            self._box.update(notice.seq, state=NoticeState.DONE, note=f"{why}, {_REMINDERS} reminders included")
            return
        self._box.update(notice.seq, state=NoticeState.WAITING, level=level, tries=0, next_try_ns=now_ns, note=why)


def title_of(notice: Notice) -> str:
    """Return the line above a message: number, loudness, kind, and when it happened."""
    return f"#{notice.seq} {notice.severity.value.upper()} {notice.kind.value.replace('_', ' ')} {iso(notice.ts_ns)[:16]}"

"""The listener of a session: what is to be told goes into the outbox on disk, and trading goes on."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from crypto_qlib.core.errors import RetryLater
from crypto_qlib.live_trading.alerts.policy import AlertRules, Policy, key_of
from crypto_qlib.store.live_events import LiveEvent
from crypto_qlib.store.notice_box import NoticeBox

_KEPT: Final = 1000
"""Events kept in memory while the database refuses; the oldest are forgotten first."""


class AlertDesk:
    """Take what happens (``SessionParts.tell``); neither waits for a channel nor raises.

    Parameters
    ----------
    box : NoticeBox
        The outbox.
    rules : AlertRules
        What is told.
    woken : threading.Event
        Set when something is to be sent.
    """

    def __init__(self, box: NoticeBox, rules: AlertRules, woken: threading.Event) -> None:
        self._box = box
        self._woken = woken
        self._lock = threading.Lock()
        self._unwritten: deque[LiveEvent] = deque(maxlen=_KEPT)
        try:
            told = box.newest_by_key()
        except RetryLater:
            told = {}
        self._policy = Policy(rules, told)

    def __call__(self, event: LiveEvent) -> None:
        """Write down what is to be told of ``event``; kept in memory while the database refuses."""
        with self._lock:
            self._unwritten.extend(self._policy.consider(event))
            self._write()

    def release(self, now_ns: int) -> None:
        """Write down what was held back and may be told now, and what the database refused before."""
        with self._lock:
            self._unwritten.extend(self._policy.release(now_ns))
            self._write()

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._box.add(self._unwritten[0], key_of(self._unwritten[0]))
                self._unwritten.popleft()
                self._woken.set()
        except RetryLater:
            return  # the session's own writing fails too, and says so; the next event tries again

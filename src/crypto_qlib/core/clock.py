"""The only door through which the wall clock enters the package.

Times inside the package are ``int`` nanoseconds since the Unix epoch, UTC. Everything that needs "now"
takes a :class:`Clock`; tests and simulations pass a :class:`ManualClock`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final, Protocol

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000
NS_PER_MINUTE: Final = 60 * NS_PER_S
NS_PER_HOUR: Final = 3_600 * NS_PER_S
NS_PER_DAY: Final = 24 * NS_PER_HOUR

FRAME_NS: Final[dict[str, int]] = {
    "1m": NS_PER_MINUTE,
    "3m": 3 * NS_PER_MINUTE,
    "5m": 5 * NS_PER_MINUTE,
    "15m": 15 * NS_PER_MINUTE,
    "30m": 30 * NS_PER_MINUTE,
    "1h": NS_PER_HOUR,
    "2h": 2 * NS_PER_HOUR,
    "4h": 4 * NS_PER_HOUR,
    "1d": NS_PER_DAY,
}
"""Bar length in nanoseconds by frame name (ccxt's names)."""


def frame_name(frame_ns: int) -> str:
    """Return the name of bars of ``frame_ns``, their length in seconds where there is none."""
    return next((name for name, length in FRAME_NS.items() if length == frame_ns), f"{frame_ns / NS_PER_S:g}s")


class Clock(Protocol):
    """Tell the time."""

    def now_ns(self) -> int:
        """Return nanoseconds since the epoch, UTC."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now_ns(self) -> int:
        """Return the wall clock in nanoseconds since the epoch, UTC."""
        return time.time_ns()


class ManualClock:
    """A clock that moves only when told to (simulation, replay, tests).

    Parameters
    ----------
    start_ns : int
        First value of :meth:`now_ns`, nanoseconds since the epoch, UTC.
    """

    def __init__(self, start_ns: int) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the time last set, nanoseconds since the epoch, UTC."""
        return self._now_ns

    def advance_to(self, ts_ns: int) -> None:
        """Move forward to ``ts_ns``.

        Raises
        ------
        ValueError
            If ``ts_ns`` lies before the current time.
        """
        if ts_ns < self._now_ns:
            raise ValueError(f"clock cannot go back from {self._now_ns} to {ts_ns}")
        self._now_ns = ts_ns


def floor_ts(ts_ns: int, frame_ns: int) -> int:
    """Return the open time of the bar of length ``frame_ns`` that holds ``ts_ns``."""
    return ts_ns - ts_ns % frame_ns


def utc(ts_ns: int) -> datetime:
    """Return ``ts_ns`` as a tz-aware UTC datetime (microsecond resolution)."""
    return datetime.fromtimestamp(ts_ns // 1000 / 1e6, tz=UTC)


def iso(ts_ns: int) -> str:
    """Return ``ts_ns`` as ``2025-01-31T08:00:00Z``."""
    return utc(ts_ns).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_utc(text: str) -> int:
    """Return nanoseconds since the epoch for an ISO date or date-time; naive text is read as UTC.

    Raises
    ------
    ValueError
        If ``text`` is no ISO date or date-time.
    """
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return int(parsed.timestamp()) * NS_PER_S + parsed.microsecond * 1000

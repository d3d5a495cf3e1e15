"""Is the way to the exchange sound? Failed requests, refused orders, slow answers and a wrong clock speak as risk voices.

===========  ============================================================  =====================================
voice        asks for REDUCE_ONLY after                                    lifts with
===========  ============================================================  =====================================
``api``      ``max_api_errors`` failed requests in a row                   the next request that succeeds
``latency``  an answer slower than ``max_latency_s``                       the next answer in time
``clock``    an offset to the exchange's clock beyond ``max_clock_skew_s``  the next check that is within it
``rejects``  ``max_rejects`` refused orders in a row                       a person (``live resume``)
===========  ============================================================  =====================================

The counts are the shell's; what follows from them goes through the session machine and its journal as ``ModeVoiced``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.clock import NS_PER_S, Clock
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.risk_control import API, CLOCK, LATENCY, REJECTS, Mode

_CLOCK_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class SystemLimits:
    """Bounds of the way to the exchange; 0 = not watched.

    Parameters
    ----------
    max_api_errors, max_rejects : int
        Failures in a row.
    max_latency_s, max_clock_skew_s : float
        Seconds.
    """

    max_api_errors: int = 0
    max_rejects: int = 0
    max_latency_s: float = 0.0
    max_clock_skew_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far the exchange's clock is ahead of ours, seconds, and how uncertain that is (half the round trip).

    Notes
    -----
    ``offset = server - (asked + answered) / 2``, as NTP does it. Source: RFC 5905, section 8.
    """

    offset_s: float
    error_s: float

    @staticmethod
    def measured(asked_ns: int, server_ns: int, answered_ns: int) -> ClockOffset:
        """Return the offset one question shows."""
        middle = (asked_ns + answered_ns) / 2
        return ClockOffset((server_ns - middle) / NS_PER_S, (answered_ns - asked_ns) / 2 / NS_PER_S)

    def exceeds(self, bound_s: float) -> bool:
        """Return whether the clocks differ by more than ``bound_s`` for certain."""
        return abs(self.offset_s) - self.error_s > bound_s


class SystemWatch:
    """Count what happens on the way to the exchange.

    Parameters
    ----------
    limits : SystemLimits
        Bounds.
    clock : Clock
        Real time.
    """

    def __init__(self, limits: SystemLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._errors = 0
        self._rejects = 0
        self._told_rejects = 0
        self._last_error = ""
        self._slowest_s = 0.0
        self._offset = ClockOffset(0.0, 0.0)
        self._next_clock_ns = 0

    def answered(self, seconds: float) -> None:
        """Note a request that succeeded after ``seconds``."""
        self._errors = 0
        self._slowest_s = seconds

    def failed(self, why: str) -> None:
        """Note a request that was not carried out, or whose outcome is unknown."""
        self._errors += 1
        self._last_error = why

    def order_ended(self, *, refused: bool) -> None:
        """Note that the exchange took or refused an order."""
        self._rejects = self._rejects + 1 if refused else 0
        self._told_rejects = min(self._told_rejects, self._rejects)

    @property
    def clock_is_due(self) -> bool:
        """Return whether the exchange's clock should be asked for now."""
        return self._limits.max_clock_skew_s > 0.0 and self._clock.now_ns() >= self._next_clock_ns

    def clock_read(self, offset: ClockOffset) -> None:
        """Note what the exchange's clock showed."""
        self._offset = offset
        self._next_clock_ns = self._clock.now_ns() + int(_CLOCK_EVERY_S * NS_PER_S)

    def changes(self, now_ns: int, speaking: Collection[str]) -> list[ev.ModeVoiced]:
        """Return the voices that begin or end to speak; ``speaking`` are those in force."""
        limits, out = self._limits, []
        wanted = {
            API: (0 < limits.max_api_errors <= self._errors, f"{self._errors} requests in a row failed: {self._last_error}"),
            LATENCY: (0.0 < limits.max_latency_s < self._slowest_s, f"an answer took {self._slowest_s:.1f} s"),
            CLOCK: (
                limits.max_clock_skew_s > 0.0 and self._offset.exceeds(limits.max_clock_skew_s),
                f"the exchange's clock is {self._offset.offset_s:+.2f} s off ours (+-{self._offset.error_s:.2f} s)",
            ),
        }
        for voice, (speaks, why) in wanted.items():
            if speaks is not (voice in speaking):
                mode, reason = (Mode.REDUCE_ONLY, why) if speaks else (Mode.ACTIVE, "sound again")
                out.append(ev.ModeVoiced(now_ns, voice, mode, reason))
        if 0 < limits.max_rejects <= self._rejects - self._told_rejects and REJECTS not in speaking:
            self._told_rejects = self._rejects
            out.append(ev.ModeVoiced(now_ns, REJECTS, Mode.REDUCE_ONLY, f"{self._rejects} orders in a row were refused"))
        return out

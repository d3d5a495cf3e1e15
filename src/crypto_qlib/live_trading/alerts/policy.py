"""Which of the things that happen are told, and which are told already: repeats dropped, floods held back and counted.

A *state* (the connection is lost, the margin is high) is told when it begins and again after ``repeat_ns`` while it lasts; a
*deed* (a trade, a mode change) is dropped only where the very same line comes again within that time. Of each kind at most
``per_hour`` are told within an hour; the rest is counted, and one line says how many there were. What is critical is never held
back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.store.live_events import EventKind, LiveEvent, Severity

STATES: Final = frozenset(
    {
        EventKind.MARGIN_HIGH,
        EventKind.NEAR_LIQUIDATION,
        EventKind.API_LOST,
        EventKind.UNPROTECTED,
        EventKind.DRIFT,
        EventKind.FOREIGN,
        EventKind.CYCLE,
    }
)
"""What lasts; the figures in its line change from bar to bar."""


@dataclass(frozen=True, slots=True)
class AlertRules:
    """What is told.

    Parameters
    ----------
    muted : frozenset of EventKind
        Never told, unless critical.
    repeat_ns : int
        How long the same is not told again.
    per_hour : int
        Notices of one kind within an hour.
    """

    muted: frozenset[EventKind] = frozenset()
    repeat_ns: int = NS_PER_HOUR
    per_hour: int = 20


def key_of(event: LiveEvent) -> str:
    """Return what makes two events the same: kind and symbol of a state, the whole line of a deed; and how loud it is."""
    what = event.symbol if event.kind in STATES else f"{event.symbol}|{event.text}"
    return f"{event.kind.value}|{event.severity.value}|{what}"


class Policy:
    """Remember what was told, by the session's clock.

    Parameters
    ----------
    rules : AlertRules
        What is told.
    told : dict
        Instant of the newest notice of each key, from an earlier run.
    """

    def __init__(self, rules: AlertRules, told: dict[str, int] | None = None) -> None:
        self._rules = rules
        self._told = dict(told or {})
        self._recent: dict[EventKind, deque[int]] = {}
        self._held: dict[EventKind, list[LiveEvent]] = {}

    def consider(self, event: LiveEvent) -> list[LiveEvent]:
        """Return what to tell now that ``event`` has happened: nothing, it, or it and a count of what was held back."""
        is_critical = event.severity is Severity.CRITICAL
        released = self.release(event.ts_ns)
        if event.kind in self._rules.muted and not is_critical:
            return released
        key = key_of(event)
        last = self._told.get(key)
        if last is not None and event.ts_ns - last < self._rules.repeat_ns:
            return released
        self._told[key] = event.ts_ns
        recent = self._window(event.kind, event.ts_ns)
        if len(recent) >= self._rules.per_hour and not is_critical:
            self._held.setdefault(event.kind, []).append(event)
            return released
        recent.append(event.ts_ns)
        return [*released, event]

    def release(self, now_ns: int) -> list[LiveEvent]:
        """Return one line for each kind whose hour has room again and of which something was held back."""
        out = []
        for kind in [kind for kind in self._held if len(self._window(kind, now_ns)) < self._rules.per_hour]:
            held = self._held.pop(kind)
            self._window(kind, now_ns).append(now_ns)
            loudest = max(held, key=lambda event: list(Severity).index(event.severity))
            text = f"{len(held)} more notices of {kind.value} were held back, the last: {held[-1].text}"
            out.append(replace(held[-1], ts_ns=now_ns, severity=loudest.severity, text=text))
        return out

    def _window(self, kind: EventKind, now_ns: int) -> deque[int]:
        recent = self._recent.setdefault(kind, deque())
        while recent and recent[0] <= now_ns - NS_PER_HOUR:
            recent.popleft()
        return recent

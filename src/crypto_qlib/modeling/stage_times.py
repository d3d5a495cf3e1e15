"""Where does a training's time go? Stages name themselves; whoever wants to know opens a ledger around the training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final


@dataclass(slots=True)
class StageTimes:
    """Seconds by stage, in the order the stages were first entered.

    Parameters
    ----------
    wall_s, cpu_s : dict
        Elapsed seconds, and CPU seconds of all threads of this process.
    """

    wall_s: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return the stages that took any time in one line, e.g. ``binning 12 s, boosting 40 s``."""
        return ", ".join(f"{name} {s:.1f} s" for name, s in self.wall_s.items())


_LEDGER: Final[ContextVar[StageTimes | None]] = ContextVar("stage_times", default=None)


@contextmanager
def stage_times() -> Iterator[StageTimes]:
    """Collect the times of the stages entered inside, in this thread."""
    times = StageTimes()
    token = _LEDGER.set(times)
    try:
        yield times
    finally:
        _LEDGER.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time inside as stage ``name``; stages must not be nested in one another."""
    times = _LEDGER.get()
    if times is None:
        yield
        return
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        times.wall_s[name] = times.wall_s.get(name, 0.0) + time.perf_counter() - wall
        times.cpu_s[name] = times.cpu_s.get(name, 0.0) + time.process_time() - cpu

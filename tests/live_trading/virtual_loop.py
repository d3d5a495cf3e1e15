"""An event loop whose time jumps over every pause: what sleeps or waits for a time limit goes on as soon as nothing else can.

Client and server share the loop and talk over loopback, so a moment without anything to read means that nothing is under way
but pauses. Nothing that runs on it depends on the speed of the machine.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_MOMENT_S = 0.001


class _JumpingSelector(selectors.DefaultSelector):
    """Wait a moment for anything to read; then let the rest of the pause count as slept."""

    jumped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= _MOMENT_S:
            return super().select(timeout)
        ready = super().select(_MOMENT_S)
        if not ready:
            self.jumped_s += timeout - _MOMENT_S
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return real time plus everything that was jumped over, seconds."""
        return super().time() + self._jumping.jumped_s


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` in virtual time and return what it returns."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)

"""Where does the time of a cycle go? Real seconds by named step, from the close of the bar to the last order sent."""

from __future__ import annotations

from crypto_qlib.core.clock import NS_PER_S, Clock, SystemClock


class StepTimer:
    """A stopwatch with laps; steps that come again add up.

    Parameters
    ----------
    clock : Clock, optional
        Real time.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._started_ns = self._lap_ns = self._clock.now_ns()
        self.seconds: dict[str, float] = {}
        self.sent_s = 0.0

    def start(self) -> None:
        """Begin a cycle: the bar is closed now."""
        self._started_ns = self._lap_ns = self._clock.now_ns()
        self.seconds = {}
        self.sent_s = 0.0

    def lap(self, step: str) -> None:
        """Book the time since the last lap on ``step``."""
        now = self._clock.now_ns()
        self.seconds[step] = self.seconds.get(step, 0.0) + (now - self._lap_ns) / NS_PER_S
        self._lap_ns = now

    def order_sent(self) -> None:
        """Note that an order of this cycle was answered."""
        self.sent_s = self.total_s

    @property
    def total_s(self) -> float:
        """Return the seconds since the close."""
        return (self._clock.now_ns() - self._started_ns) / NS_PER_S

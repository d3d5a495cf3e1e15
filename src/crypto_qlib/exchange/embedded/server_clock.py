"""What time is it on the embedded market? Stepped by a client, or running at a multiple of real time.

The market itself moves bar by bar: ``market_ns`` is the last bar boundary that was reached, and everything visible is
cut there. Between boundaries a running clock shows the time flowing, never past the next boundary.
"""

from __future__ import annotations

from crypto_qlib.core.clock import NS_PER_S, Clock, iso
from crypto_qlib.core.errors import UserError


class ServerClock:
    """Virtual time on a grid of bars.

    Parameters
    ----------
    start_ns, end_ns : int
        First boundary shown, and the last one there is data for.
    step_ns : int
        Bar length of one step, nanoseconds.
    wall_clock : Clock
        Real time, for a running clock.
    speed : float
        Market seconds per real second; 0 = moves only when stepped.
    """

    def __init__(self, start_ns: int, end_ns: int, step_ns: int, wall_clock: Clock, speed: float = 0.0) -> None:
        if start_ns % step_ns:
            raise UserError(f"the market cannot start at {iso(start_ns)}: it is not on its grid of {step_ns // 10**9} s bars")
        if start_ns > end_ns:
            raise UserError(
                f"the market cannot start at {iso(start_ns)}: its data end at {iso(end_ns)}", "choose an earlier start time"
            )
        self.end_ns = end_ns
        self.step_ns = step_ns
        self.speed = speed
        self._wall = wall_clock
        self._market_ns = start_ns
        self._reached_wall_ns = wall_clock.now_ns()
        self.skew_ns = 0

    @property
    def market_ns(self) -> int:
        """Return the last bar boundary reached, nanoseconds since the epoch."""
        return self._market_ns

    def now_ns(self) -> int:
        """Return the time the market shows: the boundary, plus the flow since then on a running clock."""
        if not self.speed:
            return self._market_ns
        flown = int((self._wall.now_ns() - self._reached_wall_ns) * self.speed)
        return self._market_ns + min(max(flown, 0), self.step_ns - 1)

    def shown_ns(self) -> int:
        """Return the time the server *says* it is: off by ``skew_ns``, a fault that is switched on."""
        return self.now_ns() + self.skew_ns

    def seconds_to_next(self) -> float:
        """Return real seconds until a running clock reaches the next boundary (>= 0)."""
        due_ns = self._reached_wall_ns + self.step_ns / self.speed
        return max(due_ns - self._wall.now_ns(), 0.0) / NS_PER_S

    def resume_at(self, market_ns: int) -> None:
        """Stand at a boundary reached before; a running clock flows on from this moment: no time passes while stopped."""
        self._market_ns = market_ns
        self._reached_wall_ns = self._wall.now_ns()

    @property
    def has_next(self) -> bool:
        """Return whether there are data for one more bar."""
        return self._market_ns + self.step_ns <= self.end_ns

    def advance(self) -> None:
        """Move to the next boundary.

        Raises
        ------
        UserError
            If the data end here.
        """
        if not self.has_next:
            raise UserError(f"the market's data end at {iso(self._market_ns)}", "simulate or replay a longer history")
        self._market_ns += self.step_ns
        if self.speed:
            # The due instant, not the actual one: a late step is caught up by the next, the clock does not drift.
            self._reached_wall_ns += int(self.step_ns / self.speed)

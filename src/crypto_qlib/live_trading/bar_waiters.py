"""When is a bar closed? A stepped market is moved there; of a market that moves by itself the close is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from crypto_qlib.core.clock import NS_PER_S, Clock
from crypto_qlib.live_trading.trade_executor_okx import Sleep

Arrived = Callable[[int, float], Awaitable[bool]]


class BarWaiter(Protocol):
    """Wait for the market to reach the close of a bar."""

    async def wait_until(self, close_ns: int) -> None:
        """Return once the bar that ends at ``close_ns`` is closed at the exchange."""
        ...


class SteppedBars:
    """Move an embedded market on instead of waiting for it.

    Parameters
    ----------
    step : async callable
        Moves the market one step on and returns its new time, nanoseconds since the epoch.
    now_ns : int
        The market's time now.
    """

    def __init__(self, step: Callable[[], Awaitable[int]], now_ns: int) -> None:
        self._step = step
        self._now_ns = now_ns

    async def wait_until(self, close_ns: int) -> None:
        """Step until the market stands at ``close_ns`` or later."""
        while self._now_ns < close_ns:
            self._now_ns = await self._step()


class RealBars:
    """Wait for bars of a market that moves by itself.

    Parameters
    ----------
    clock : Clock
        The wall clock.
    sleep : callable
        ``asyncio.sleep``, or a fake.
    settle_s : float
        Seconds after the close until the exchange surely shows the bar as final.
    arrived : callable, optional
        Waits for the bar that closed at the given time to be pushed, so many seconds at most.
    """

    def __init__(
        self, clock: Clock, sleep: Sleep = asyncio.sleep, settle_s: float = 2.0, arrived: Arrived | None = None
    ) -> None:
        self._arrived = arrived
        self._clock = clock
        self._sleep = sleep
        self._settle_s = settle_s

    async def wait_until(self, close_ns: int) -> None:
        """Sleep until ``settle_s`` after ``close_ns``, or until the bar was pushed."""
        left = (close_ns - self._clock.now_ns()) / NS_PER_S + (0.0 if self._arrived is not None else self._settle_s)
        if left > 0.0:
            await self._sleep(left)
        if self._arrived is not None:
            await self._arrived(close_ns, self._settle_s)

"""Keep the exchange's dead-man's countdown running: if the session hangs or dies, its resting orders are cancelled for it.

The countdown is refreshed from the session's own loop, not beside it, so that a session that hangs lets it run out. Stops are
algo orders and stay.
"""

from __future__ import annotations

from typing import Final

from crypto_qlib.core.clock import NS_PER_S, Clock
from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.exchange.gateway import Gateway

VOICE: Final = "dead_man"
_REFRESHES: Final = 3
"""Refreshes within one countdown: two may fail."""


class DeadManSwitch:
    """The countdown of one account.

    Parameters
    ----------
    gateway : Gateway
        The account.
    timeout_s : int
        Length of the countdown, 10 to 120 seconds; 0 = none.
    clock : Clock
        Says when the next refresh is due.
    """

    def __init__(self, gateway: Gateway, timeout_s: int, clock: Clock) -> None:
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._clock = clock
        self._next_ns = 0
        self._runs_until_ns = 0

    async def refresh(self) -> str:
        """Start the countdown anew where that is due; return why it does not run, empty where it does or none is wanted."""
        now = self._clock.now_ns()
        if not self._timeout_s or now < self._next_ns:
            return "" if not self._timeout_s or now < self._runs_until_ns else "not armed"
        self._next_ns = now + self._timeout_s * NS_PER_S // _REFRESHES
        try:
            await self._gateway.cancel_all_after(self._timeout_s)
        except CryptoQlibError as e:
            return "" if now < self._runs_until_ns else f"not armed: {e}"
        self._runs_until_ns = now + self._timeout_s * NS_PER_S
        return ""

    async def disarm(self) -> str:
        """End the countdown; return why that failed, empty where it did not."""
        if not self._runs_until_ns:
            return ""
        try:
            await self._gateway.cancel_all_after(0)
        except CryptoQlibError as e:
            return str(e)
        self._runs_until_ns = 0
        return ""

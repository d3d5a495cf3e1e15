"""``trade/cancel-all-after``: cancel everything unless the client says again in time that it is alive.

The countdown runs in the market's time. It is part of the state, started and ended by operations of the journal: a server that
was killed comes back with the countdowns it acknowledged. Source: OKX API v5, "Cancel All After".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.exchange.embedded.house import ARM, CANCEL_ALL, House
from crypto_qlib.exchange.embedded.operations import Operations
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.wire import Call, WireRefusal, envelope, ms

_LEAST_S: Final = 10
_MOST_S: Final = 120


class DeadMan:
    """Countdowns of all accounts.

    Parameters
    ----------
    clock : ServerClock
        The market's time.
    operations : Operations
        The door through which orders are cancelled.
    house : House
        Keeps the deadlines.
    tell : callable
        Push what a cancellation set off.
    """

    def __init__(self, clock: ServerClock, operations: Operations, house: House, tell: Callable[[], None]) -> None:
        self._clock = clock
        self._operations = operations
        self._house = house
        self._tell = tell

    @property
    def is_armed(self) -> bool:
        """Return whether a countdown runs."""
        return bool(self._house.deadlines)

    def arm(self, call: Call) -> bytes:
        """Answer ``trade/cancel-all-after``: ``timeOut`` 0 ends the countdown, 10 to 120 seconds start it anew."""
        if len(call.body) != 1:
            raise WireRefusal("50000")
        text = str(call.body[0].get("timeOut", ""))
        if not text:
            raise WireRefusal("50014", "timeOut")
        if not (text.isascii() and text.isdigit()) or (int(text) != 0 and not _LEAST_S <= int(text) <= _MOST_S):
            raise WireRefusal("51000", "timeOut")
        now = self._clock.now_ns()
        deadline = now + int(text) * NS_PER_S if int(text) else None
        self._operations.perform(ARM, call.account_id, [{"deadline": deadline}])
        row = {"triggerTime": "0" if deadline is None else ms(deadline), "tag": str(call.body[0].get("tag", "")), "ts": ms(now)}
        return envelope([row])

    def fire_due(self, before_ns: int) -> None:
        """Cancel the orders of every account whose countdown ends before ``before_ns``."""
        due = [account_id for account_id, deadline in self._house.deadlines.items() if deadline < before_ns]
        for account_id in due:
            self._operations.perform(CANCEL_ALL, account_id, [{}])
        if due:
            self._tell()

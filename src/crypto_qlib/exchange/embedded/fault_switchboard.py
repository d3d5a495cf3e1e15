"""One place to switch any fault by its name: of transport, of time, or of the market.

Faults of transport and time belong to the running server; those of the market are operations (``market_switches``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.faults import Fault, FaultRule, Faults
from crypto_qlib.exchange.embedded.market_switches import SWITCH, MarketFaults
from crypto_qlib.exchange.embedded.operations import Operations
from crypto_qlib.exchange.embedded.server_clock import ServerClock

TIME_FAULTS: Final = ("latency", "jitter", "clock_skew")
MARKET_FAULTS: Final = ("suspend", "funding_step", "partial_fill", "post_only_cancel")
NAMES: Final = (*(fault.value for fault in Fault), *TIME_FAULTS, *MARKET_FAULTS)
"""Every fault there is; ``off`` switches all of them off."""


class FaultSwitchboard:
    """Switch faults and show which are on.

    Parameters
    ----------
    faults : Faults
        Those of transport.
    clock : ServerClock
        Carries the skew.
    operations : Operations
        The door for those of the market.
    market : callable
        Returns the market's handler of switches.
    """

    def __init__(self, faults: Faults, clock: ServerClock, operations: Operations, market: Callable[[], MarketFaults]) -> None:
        self.faults = faults
        self._clock = clock
        self._operations = operations
        self._market = market

    def switch(self, posted: dict[str, Any]) -> dict[str, Any]:
        """Switch one fault as posted and return all that are on.

        Parameters
        ----------
        posted : dict
            ``fault`` and its own parameters: ``rate``, ``times``, ``where`` (transport), ``ms`` (latency, jitter,
            clock_skew), ``symbol``, ``on``, ``hours``, ``fraction`` (market).

        Raises
        ------
        UserError
            If there is no such fault, or a parameter is out of range.
        """
        name = str(posted.get("fault"))
        if name == "off":
            self.faults.clear()
            self._clock.skew_ns = 0
            self._operations.perform(SWITCH, "", [{"fault": "off"}])
        elif name in MARKET_FAULTS:
            self._operations.perform(SWITCH, "", [posted])
        elif name in TIME_FAULTS:
            self._set_time(name, posted.get("ms"))
        elif name in {fault.value for fault in Fault}:
            self.faults.switch(Fault(name), _rule(posted))
        else:
            raise UserError(f"there is no fault {name!r}", f"choose one of {', '.join(NAMES)}, or off")
        return self.shown()

    def shown(self) -> dict[str, Any]:
        """Return the faults that are on, with their parameters, how often each fired, and the seed."""
        shown: dict[str, Any] = {
            fault.value: {"rate": rule.rate, "times": rule.times, "where": rule.where}
            for fault, rule in self.faults.rules.items()
        }
        times = {
            "latency": self.faults.latency_s * 1e3,
            "jitter": self.faults.jitter_s * 1e3,
            "clock_skew": self._clock.skew_ns / NS_PER_MS,
        }
        shown |= {name: {"ms": value} for name, value in times.items() if value}
        fired = {fault.value: count for fault, count in self.faults.fired.items()}
        return {"on": shown | self._market().shown(), "fired": fired, "seed": self.faults.seed, "known": NAMES}

    def _set_time(self, name: str, ms: object) -> None:
        if isinstance(ms, bool) or not isinstance(ms, int | float) or (ms < 0 and name != "clock_skew"):
            raise UserError(f"fault {name} needs its milliseconds", f"{orjson.dumps({'fault': name, 'ms': 100}).decode()}")
        if name == "clock_skew":
            self._clock.skew_ns = int(ms * NS_PER_MS)
        elif name == "latency":
            self.faults.latency_s = ms / 1e3
        else:
            self.faults.jitter_s = ms / 1e3


def _rule(posted: dict[str, Any]) -> FaultRule:
    rate, times, where = posted.get("rate", 1.0), posted.get("times"), posted.get("where", "")
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise UserError(f"the rate of a fault must be a number from 0 to 1, not {rate!r}")
    if times is not None and (isinstance(times, bool) or not isinstance(times, int)):
        raise UserError(f"times must be a whole number, not {times!r}")
    if not isinstance(where, str):
        raise UserError(f"where must be the beginning of an endpoint, such as trade/, not {where!r}")
    return FaultRule(float(rate), times, where)

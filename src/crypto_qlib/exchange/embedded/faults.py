"""Faults on demand: what an exchange does on its bad days, drawn from a seed so that a failing run can be repeated.

Every fault is off until a rule switches it on. A rule fires with probability ``rate``, at most ``times`` times, on endpoints
(or socket channels) that start with ``where``. Draws come from one stream per fault and endpoint: the n-th request to an
endpoint meets the same fault in every run with the same seed, whatever other endpoints were asked in between.

============== ================================================================== ================================
fault          what a client sees                                                 was the request carried out?
============== ================================================================== ================================
rate_limit     429 and code 50011, five times in a row                            no
unavailable    503 and code 50001                                                 no
timeout        400 and code 50004                                                 yes (posts; reads are just lost)
server_error   500 and code 51149                                                 yes
bad_gateway    502 and an HTML page, as a proxy in front would answer             by chance, half the time
drop           the connection breaks without an answer                            yes
socket_drop    the socket breaks
socket_silent  the socket stays open and nothing comes any more
notice         event ``notice`` with code 64008, then the socket is closed
sequence_gap   a message of ``books`` never comes: ``prevSeqId`` does not fit
duplicate      a socket message comes twice
reorder        a socket message comes after the next one
============== ================================================================== ================================
Source: OKX API v5, "Error codes", "WebSocket / Notification" (64008).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import orjson

from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.router import Answer

_BURST: Final = 5


class Fault(StrEnum):
    """Every fault of transport: nothing of the exchange's own state is touched by them."""

    RATE_LIMIT = "rate_limit"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    BAD_GATEWAY = "bad_gateway"
    DROP = "drop"
    SOCKET_DROP = "socket_drop"
    SOCKET_SILENT = "socket_silent"
    NOTICE = "notice"
    SEQUENCE_GAP = "sequence_gap"
    DUPLICATE = "duplicate"
    REORDER = "reorder"


REST_FAULTS: Final = (
    Fault.RATE_LIMIT, Fault.UNAVAILABLE, Fault.TIMEOUT, Fault.SERVER_ERROR, Fault.BAD_GATEWAY, Fault.DROP,
)  # fmt: skip
SOCKET_FAULTS: Final = (
    Fault.SOCKET_DROP, Fault.SOCKET_SILENT, Fault.NOTICE, Fault.SEQUENCE_GAP, Fault.DUPLICATE, Fault.REORDER,
)  # fmt: skip
_NOT_CARRIED_OUT: Final = (Fault.RATE_LIMIT, Fault.UNAVAILABLE)
_HTML: Final = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"


def _answer(status: int, code: str, msg: str) -> Answer:
    return Answer(status, orjson.dumps({"code": code, "msg": msg, "data": []}))


ANSWERS: Final[dict[Fault, Answer]] = {
    Fault.RATE_LIMIT: Answer(429, orjson.dumps({"msg": "Too Many Requests", "code": "50011"})),
    Fault.UNAVAILABLE: _answer(503, "50001", "Service temporarily unavailable. Please try again later."),
    Fault.TIMEOUT: _answer(400, "50004", "API endpoint request timeout (does not mean that the request was successful or "
                                         "failed, please check)."),
    Fault.SERVER_ERROR: _answer(500, "51149", "Order timed out. Please try again later."),
    Fault.BAD_GATEWAY: Answer(502, _HTML, "text/html"),
}  # fmt: skip
"""What is answered in place of the real answer; ``DROP`` answers nothing."""
NO_ANSWER: Final = Answer(499, b"")
"""For a connection that is closed by now; nobody reads it."""


@dataclass(frozen=True, slots=True)
class FaultRule:
    """When a fault fires.

    Parameters
    ----------
    rate : float
        Probability for each request or message, 0 to 1.
    times : int | None
        How often it may still fire; ``None`` = without end.
    where : str
        Beginning of the endpoints (``trade/``) or channels (``books``) it concerns; empty = all.
    """

    rate: float
    times: int | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """What goes wrong on purpose from the start; nothing by default.

    Parameters
    ----------
    seed : int
        Of all draws.
    rules : tuple
        (fault, rule) pairs.
    latency_s, jitter_s : float
        Fixed and mean random part of the time every answer is held back.
    clock_skew_ns : int
        How far ahead the server's clock says it is.
    """

    seed: int = 0
    rules: tuple[tuple[Fault, FaultRule], ...] = ()
    latency_s: float = 0.0
    jitter_s: float = 0.0
    clock_skew_ns: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What befalls one request: a fault or none, whether it is carried out, and how long its answer takes, seconds."""

    fault: Fault | None = None
    is_carried_out: bool = True
    delay_s: float = 0.0


class Faults:
    """Decide which request or message meets which fault.

    Parameters
    ----------
    seed : int
        Of all draws.
    rules : mapping, optional
        Rules in force from the start.
    latency_s, jitter_s : float
        Every answer is held back by ``latency_s`` plus an exponential time of mean ``jitter_s``.
    """

    def __init__(
        self, seed: int = 0, rules: dict[Fault, FaultRule] | None = None, latency_s: float = 0.0, jitter_s: float = 0.0
    ) -> None:
        self.seed = seed
        self.rules: dict[Fault, FaultRule] = dict(rules or {})
        self.latency_s = latency_s
        self.jitter_s = jitter_s
        self._streams: dict[tuple[str, str], random.Random] = {}
        self._burst_left: dict[str, int] = {}
        self.fired: dict[Fault, int] = {}

    @property
    def are_off(self) -> bool:
        """Return whether nothing at all is switched on."""
        return not (self.rules or self.latency_s or self.jitter_s or self._burst_left)

    def switch(self, fault: Fault, rule: FaultRule) -> None:
        """Put a rule in force; a rate of zero switches the fault off.

        Raises
        ------
        UserError
            If the rule makes no sense.
        """
        if not 0.0 <= rule.rate <= 1.0:
            raise UserError(f"the rate of fault {fault.value} must be from 0 to 1, not {rule.rate:g}")
        if rule.times is not None and rule.times < 1:
            raise UserError(f"fault {fault.value} must fire at least once, not {rule.times} times", "rate 0 switches it off")
        if rule.rate:
            self.rules[fault] = rule
        else:
            self.rules.pop(fault, None)

    def clear(self) -> None:
        """Switch everything off and start all draws afresh."""
        self.rules.clear()
        self._streams.clear()
        self._burst_left.clear()
        self.fired.clear()
        self.latency_s = self.jitter_s = 0.0

    def verdict(self, endpoint: str) -> Verdict:
        """Return what befalls the next request to ``endpoint``."""
        if self.are_off:
            return _FINE
        delay_s = self.latency_s
        if self.jitter_s:
            delay_s += self._stream("jitter", endpoint).expovariate(1.0 / self.jitter_s)
        left = self._burst_left.pop(endpoint, 0)
        if left:
            if left > 1:
                self._burst_left[endpoint] = left - 1
            return Verdict(Fault.RATE_LIMIT, False, delay_s)
        fault = next((fault for fault in REST_FAULTS if self.strikes(fault, endpoint)), None)
        if fault is Fault.RATE_LIMIT:
            self._burst_left[endpoint] = _BURST - 1
        is_carried_out = fault not in _NOT_CARRIED_OUT
        if fault is Fault.BAD_GATEWAY:
            is_carried_out = self._stream("carried out", endpoint).random() < 0.5  # noqa: PLR2004 - as often as not
        return Verdict(fault, is_carried_out, delay_s)

    def strikes(self, fault: Fault, where: str) -> bool:
        """Return whether ``fault`` befalls the next request or message of ``where``."""
        rule = self.rules.get(fault)
        if rule is None or not where.startswith(rule.where) or self._stream(fault.value, where).random() >= rule.rate:
            return False
        self.fired[fault] = self.fired.get(fault, 0) + 1
        if rule.times is not None:
            self.switch(fault, replace(rule, times=rule.times - 1) if rule.times > 1 else FaultRule(0.0))
        return True

    def _stream(self, what: str, where: str) -> random.Random:
        key = (what, where)
        if key not in self._streams:
            self._streams[key] = random.Random(f"{self.seed}/{what}/{where}")  # noqa: S311 - faults, not secrets
        return self._streams[key]


_FINE: Final = Verdict()

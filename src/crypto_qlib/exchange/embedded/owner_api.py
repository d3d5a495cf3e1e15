"""What the owner of a served exchange may ask and do, path by path; every change goes through the journal's door."""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from crypto_qlib.core.clock import NS_PER_MS, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.admin_api import AdminRefusal, Handler
from crypto_qlib.exchange.embedded.console import Console
from crypto_qlib.exchange.embedded.fault_switchboard import FaultSwitchboard
from crypto_qlib.exchange.embedded.house import FUND
from crypto_qlib.exchange.embedded.operations import Outcome
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.wire import Reply, Row, WireRefusal

CONSOLE_OPERATIONS = (
    "trade/order", "trade/cancel-order", "trade/close-position", "account/set-leverage", "trade/cancel-algos",
)  # fmt: skip
"""What a person may do by hand on the console."""


class Owned(Protocol):
    """The exchange, as its owner sees it."""

    clock: ServerClock
    switchboard: FaultSwitchboard

    def status(self) -> dict[str, Any]:
        """Return what the exchange is."""
        ...

    async def step(self, n_bars: int = 1) -> int:
        """Move the market on; return the new time."""
        ...

    def perform(self, name: str, rows: list[Row]) -> Outcome:
        """Carry out one operation for the paper account and push what it set off."""
        ...


class OwnerApi:
    """Handlers of the admin paths.

    Parameters
    ----------
    exchange : Owned
        The exchange.
    console : Console
        What the web console shows.
    """

    def __init__(self, exchange: Owned, console: Console) -> None:
        self._exchange = exchange
        self._console = console

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Return (method, path) -> handler."""
        return {
            ("GET", "/admin/status"): self.status,
            ("GET", "/admin/state"): self.state,
            ("GET", "/admin/faults"): self.faults,
            ("POST", "/admin/step"): self.step,
            ("POST", "/admin/fund"): self.fund,
            ("POST", "/admin/fault"): self.fault,
            ("POST", "/admin/operate"): self.operate,
        }

    async def status(self, _posted: dict[str, Any]) -> dict[str, Any]:
        """Return what the exchange is."""
        return self._exchange.status()

    async def state(self, _posted: dict[str, Any]) -> dict[str, Any]:
        """Return all that the console shows."""
        shown = self._exchange.status() | self._console.state()
        return shown | {"faults": self._exchange.switchboard.shown()}

    async def faults(self, _posted: dict[str, Any]) -> dict[str, Any]:
        """Return the faults that are on."""
        return self._exchange.switchboard.shown()

    async def fault(self, posted: dict[str, Any]) -> dict[str, Any]:
        """Switch a fault."""
        return self._exchange.switchboard.switch(posted)

    async def step(self, posted: dict[str, Any]) -> dict[str, Any]:
        """Move the market ``bars`` on, or ``to`` a time in milliseconds."""
        n_bars = self._bars_asked(posted)
        if n_bars < 0:
            raise AdminRefusal(400, 'send {"bars": n} or {"to": milliseconds}, not before now')
        try:
            now_ns = await self._exchange.step(n_bars)
        except UserError as e:
            raise AdminRefusal(409, str(e), {"now_ms": self._exchange.clock.market_ns // NS_PER_MS}) from e
        return {"now_ms": now_ns // NS_PER_MS, "now": iso(now_ns)}

    async def fund(self, posted: dict[str, Any]) -> dict[str, Any]:
        """Move ``amount`` USDT into the paper account, or out of it."""
        done = self._exchange.perform(FUND, [{"amount": posted.get("amount")}])
        return dict(orjson.loads(done)) if isinstance(done, bytes) else {}

    async def operate(self, posted: dict[str, Any]) -> dict[str, Any]:
        """Carry out ``operation`` with ``row`` for the paper account, as a client's request would be; return OKX's answer."""
        name, row = posted.get("operation"), posted.get("row")
        if name not in CONSOLE_OPERATIONS or not isinstance(row, dict):
            raise AdminRefusal(400, f'send {{"operation": one of {", ".join(CONSOLE_OPERATIONS)}, "row": {{...}}}}')
        try:
            done = self._exchange.perform(name, [{key: value for key, value in row.items() if value not in (None, "")}])
        except WireRefusal as refusal:
            return {"code": refusal.code, "msg": refusal.message, "data": []}
        return {"code": done.code, "msg": "", "data": done.rows} if isinstance(done, Reply) else dict(orjson.loads(done))

    def _bars_asked(self, asked: dict[str, Any]) -> int:
        clock = self._exchange.clock
        if not asked:
            return 1
        bars, to_ms = asked.get("bars"), asked.get("to")
        if type(to_ms) is int and bars is None:
            return (to_ms * NS_PER_MS - clock.market_ns) // clock.step_ns
        return bars if type(bars) is int and to_ms is None else -1

"""What the house itself does to its accounts and its market, as operations of the journal: open, fund, move the clock."""

from __future__ import annotations

from typing import Final

import orjson

from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.operations import Change
from crypto_qlib.exchange.embedded.paper_venue import PaperVenue
from crypto_qlib.exchange.embedded.wire import Call
from crypto_qlib.venue.refusals import RefusalCode

OPEN: Final = "admin/open"
FUND: Final = "admin/fund"
STEP: Final = "admin/step"
ARM: Final = "admin/dead-man"
CANCEL_ALL: Final = "admin/cancel-all"


class House:
    """Handlers of the operations that belong to no client.

    Parameters
    ----------
    venue : PaperVenue
        The simulated exchange.

    Attributes
    ----------
    deadlines : dict
        Account -> market time, nanoseconds, at which its dead-man's countdown ends.
    """

    def __init__(self, venue: PaperVenue) -> None:
        self._venue = venue
        self.deadlines: dict[str, int] = {}

    def changes(self) -> dict[str, Change]:
        """Return name -> handler."""
        return {OPEN: self.open_account, FUND: self.fund, STEP: self.step, ARM: self.arm, CANCEL_ALL: self.cancel_all}

    def open_account(self, call: Call) -> bytes:
        """Open the account with ``cash`` USDT and its fee rates."""
        row = call.body[0]
        self._venue.open_account(call.account_id, float(row["cash"]), FeeSchedule(float(row["maker"]), float(row["taker"])))
        return b""

    def fund(self, call: Call) -> bytes:
        """Move ``amount`` USDT into the account (negative: out of it); answer with its cash and equity."""
        amount = call.body[0].get("amount")
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise UserError('send {"amount": USDT}, negative to take money out')
        self._venue.exchange.transfer(call.account_id, float(amount))
        state = self._venue.exchange.snapshot(call.account_id)
        return orjson.dumps({"account": call.account_id, "cash": state.cash, "equity": state.equity})

    def arm(self, call: Call) -> bytes:
        """Start the account's dead-man's countdown, or end it where the row names no ``deadline``."""
        self.deadlines.pop(call.account_id, None)
        deadline = call.body[0].get("deadline")
        if deadline is not None:
            self.deadlines[call.account_id] = deadline
        return b""

    def cancel_all(self, call: Call) -> bytes:
        """Cancel all pending orders of the account, as its dead-man's countdown does; algo orders stay."""
        self.deadlines.pop(call.account_id, None)
        if self._venue.exchange.open_orders(call.account_id):
            # The countdown ends inside the bar that begins now: what its open fills is filled.
            self._venue.begin_bar()
        for order in self._venue.exchange.open_orders(call.account_id):
            self._venue.exchange.cancel(call.account_id, order.symbol, order.client_order_id, RefusalCode.DEAD_MAN)
        return b""

    def step(self, call: Call) -> bytes:
        """Move the market ``bars`` on; it stops at the end of its data, with a ``UserError``."""
        for _ in range(call.body[0]["bars"]):
            self._venue.step()
        return b""

"""Every position of ours has its stop at the exchange: what is missing is placed, and what stays without is closed."""

from __future__ import annotations

import math
from typing import Final

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.order import ExitKind, Protection
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.order_desk import OrderDesk, closing
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.live_trading.session_state import Instructions, SessionState, or_none
from crypto_qlib.portfolio.plan import client_order_id
from crypto_qlib.store.live_events import EventKind, Severity

_STOP_TRIES: Final = 2
"""How often a missing stop is placed within a cycle before its position is closed."""


class StopGuard:
    """Look after the stops.

    Parameters
    ----------
    state : SessionState
        Of the session.
    desk : OrderDesk
        Sends forced exits.
    """

    def __init__(self, state: SessionState, desk: OrderDesk) -> None:
        self._state = state
        self._desk = desk

    def restore(self, account: AccountState) -> Instructions:
        """Place missing stops, in whatever mode; close what stays without one, unless halted."""
        cycle = self._state.cycle
        assert cycle is not None
        out: Instructions = []
        leaving = {intent.symbol for intent in self._state.open.values() if not intent.is_entry}
        for position in sorted((p for p in account.positions if self._lacks_stop(p)), key=lambda p: p.symbol):
            symbol, tries = position.symbol, cycle.stop_tries.get(position.symbol, 0) + 1
            if symbol in leaving:
                continue
            if tries <= _STOP_TRIES:
                cycle.stop_tries[symbol] = tries
                cycle.restoring.add(symbol)
                text = f"{symbol}: the stop of the open position is not at the exchange; placing it"
                out += [ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, symbol), self._stop_of(position, tries)]
            elif self._state.risk.mode is Mode.HALTED or symbol in cycle.forced or symbol in self._state.pending:
                reasons = {
                    "halted": self._state.risk.mode is Mode.HALTED,
                    "its entry is not final": symbol in self._state.pending,
                }
                why = next((reason for reason, holds in reasons.items() if holds), "its closing order did not fill")
                text = f"{symbol}: open WITHOUT A STOP ({why})"
                out.append(ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, symbol))
            elif (placed := self._desk.place(closing(position, ExitKind.RISK))) is not None:
                cycle.forced.add(symbol)
                cycle.exits.add(placed.intent.client_order_id)
                text = f"{symbol}: closing a position that stayed without its stop"
                out += [ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, symbol), placed]
        return out

    def _stop_of(self, position: OpenPosition, tries: int) -> ev.RestoreStop:
        assert self._state.cycle is not None
        stop, take = self._state.tracker.expected_protection(position.symbol)
        protection = Protection(or_none(stop), or_none(take), self._state.config.trigger)
        name = client_order_id(self._state.config.session_id, self._state.cycle.ts_ns, position.symbol, f"stop{tries}")
        return ev.RestoreStop(position.symbol, position.lots, protection, self._state.config.margin_mode, name)

    def on_refused(self, event: ev.StopRefused) -> Instructions:
        """Do not place a refused stop again: look, then close."""
        if self._state.cycle is not None:
            self._state.cycle.stop_tries[event.symbol] = _STOP_TRIES
        text = f"{event.symbol}: the stop was refused: {event.reason}"
        alert = ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, event.symbol)
        return [alert, *self.on_answered(event.symbol)]

    def on_answered(self, symbol: str) -> Instructions:
        """Look at the account again once every stop sent was answered."""
        cycle = self._state.cycle
        if cycle is None or symbol not in cycle.restoring:
            return []
        cycle.restoring.discard(symbol)
        if cycle.restoring:
            return []
        return [ev.ReadFills(self._state.tracker.last_fill_ns), ev.ReadAccount(ev.Purpose.VERIFY)]

    def _lacks_stop(self, position: OpenPosition) -> bool:
        wanted, _ = self._state.tracker.expected_protection(position.symbol)
        return math.isfinite(wanted) and not math.isfinite(position.stop_price)

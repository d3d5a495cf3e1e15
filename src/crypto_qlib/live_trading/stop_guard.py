"""Every position of ours has its stop at the exchange, over its whole size and before its liquidation; none gets liquidated.

==========================================  =========================================================================
found                                       done
==========================================  =========================================================================
no stop, or one that covers a part          placed as an order that stands alone; after two tries the position is closed
a stop at or beyond the liquidation price   the position is closed: the stop would come too late
no trailing stop where one is wanted        placed, twice at most; the fixed stop protects meanwhile
trailing stops smaller than the position    one more over the rest; the first keeps the best price it has followed
trailing stops larger than the position     replaced by one of its size: part of the position was closed
margin ratio below ``deleverage_ratio``     the position nearest its liquidation is closed, then it is looked again
==========================================  =========================================================================

While HALTED stops are placed all the same, but nothing is closed: a person is told instead.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.order import ExitKind, MarginMode, Protection
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.order_desk import OrderDesk, closing
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.live_trading.session_state import Cycle, Instructions, SessionState, or_none
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
        """Place missing stops, in whatever mode; close what stays without one or nears liquidation, unless halted."""
        out: Instructions = []
        leaving = {intent.symbol for intent in self._state.open.values() if not intent.is_entry}
        ours = sorted((p for p in account.positions if p.symbol not in leaving), key=lambda p: p.symbol)
        for position in ours:
            if self._stop_is_late(position):
                stop, liquidates = position.stop_price, position.liquidation_price
                text = f"{position.symbol}: its stop {stop:g} lies beyond liquidation at {liquidates:g}"
                out += self._force(position, text, EventKind.UNPROTECTED)
            elif self._lacks_stop(position):
                out += self._stop_again(position)
            elif self._lacks_trailing(position):
                out += self._trail(position)
        return out + self._deleverage(account, ours)

    def _deleverage(self, account: AccountState, ours: list[OpenPosition]) -> Instructions:
        """Close the position nearest its liquidation while the account is nearer to it than allowed."""
        if not account.margin_ratio < self._state.config.limits.deleverage_ratio:
            return []
        near = sorted(ours, key=lambda p: (_liquidation_distance(p), p.symbol))
        position = next((p for p in near if p.symbol not in self._cycle().forced), None)
        if position is None:
            return []
        left = f"{_liquidation_distance(position):.2%} from liquidation"
        text = f"{position.symbol}: {left}, margin ratio {account.margin_ratio:.3f}"
        return self._force(position, text, EventKind.NEAR_LIQUIDATION)

    def _force(self, position: OpenPosition, why: str, kind: EventKind) -> Instructions:
        cycle, symbol = self._cycle(), position.symbol
        if symbol in cycle.forced:
            return []
        if self._state.risk.mode is Mode.HALTED:
            return [ev.Alert(Severity.CRITICAL, f"{why}; not closed while HALTED", kind, symbol)]
        placed = self._desk.exit(closing(position, ExitKind.RISK))
        if not placed:
            return []
        cycle.forced.add(symbol)
        return [ev.Alert(Severity.CRITICAL, f"{why}; closing it", kind, symbol), *placed]

    def _stop_again(self, position: OpenPosition) -> Instructions:
        cycle, symbol = self._cycle(), position.symbol
        tries = cycle.stop_tries.get(symbol, 0) + 1
        if tries <= _STOP_TRIES:
            cycle.stop_tries[symbol] = tries
            cycle.restoring.add(symbol)
            covered = "" if math.isnan(position.stop_price) else f" for {position.unprotected_lots} of {position.lots} lots"
            text = f"{symbol}: the stop of the open position is not at the exchange{covered}; placing it"
            return [ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, symbol), self._stop_of(position, tries)]
        reasons = {
            "halted": self._state.risk.mode is Mode.HALTED,
            "its entry is not final": symbol in self._state.pending,
            "its closing order did not fill": symbol in cycle.forced,
        }
        why = next((reason for reason, holds in reasons.items() if holds), "")
        if why:
            text = f"{symbol}: open WITHOUT A STOP ({why})"
            return [ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, symbol)]
        placed = self._desk.exit(closing(position, ExitKind.RISK))
        cycle.forced.add(symbol)
        text = f"{symbol}: closing a position that stayed without its stop"
        return [ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, symbol), *placed] if placed else []

    def _stop_of(self, position: OpenPosition, tries: int) -> ev.RestoreStop:
        stop, take = self._state.tracker.expected_protection(position.symbol)
        protection = Protection(or_none(stop), or_none(take), self._state.config.trigger)
        return self._placing(position, protection, f"stop{tries}")

    def _placing(self, position: OpenPosition, protection: Protection, purpose: str) -> ev.RestoreStop:
        config = self._state.config
        name = client_order_id(config.session_id, self._cycle().ts_ns, position.symbol, purpose)
        return ev.RestoreStop(position.symbol, position.lots, protection, config.margin_mode, name)

    def _trail(self, position: OpenPosition) -> Instructions:
        cycle, symbol = self._cycle(), position.symbol
        tries = cycle.trail_tries.get(symbol, 0) + 1
        if tries > _STOP_TRIES:
            text = f"{symbol}: its trailing stop could not be placed; the fixed stop stands"
            return [ev.Alert(Severity.CRITICAL, text, EventKind.UNPROTECTED, symbol)]
        cycle.trail_tries[symbol] = tries
        cycle.restoring.add(symbol)
        ratio = self._state.tracker.expected_trailing(symbol)
        protection = Protection(trigger=self._state.config.trigger, trailing_ratio=ratio)
        placing = self._placing(position, protection, f"trail{tries}")
        rest = position.untrailed_lots
        lots = int(position.side) * rest if rest > 0 and not math.isnan(position.trailing_ratio) else position.lots
        return [replace(placing, lots=lots, replaces=rest < 0)]

    def on_refused(self, event: ev.StopRefused) -> Instructions:
        """Do not place a refused stop again: look, then close."""
        if self._state.cycle is not None:
            self._state.cycle.stop_tries[event.symbol] = _STOP_TRIES
            self._state.cycle.trail_tries[event.symbol] = _STOP_TRIES
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
        return self._desk.look(ev.Purpose.VERIFY)

    def _lacks_stop(self, position: OpenPosition) -> bool:
        """Return whether a stop is wanted and does not cover the whole position at the exchange."""
        wanted, _ = self._state.tracker.expected_protection(position.symbol)
        return math.isfinite(wanted) and (math.isnan(position.stop_price) or position.unprotected_lots > 0)

    def _lacks_trailing(self, position: OpenPosition) -> bool:
        wanted = self._state.tracker.expected_trailing(position.symbol)
        return wanted is not None and (math.isnan(position.trailing_ratio) or position.untrailed_lots != 0)

    def _stop_is_late(self, position: OpenPosition) -> bool:
        """Return whether liquidation comes before the stop; a cross position's liquidation price is not to be trusted."""
        is_isolated = self._state.config.margin_mode is MarginMode.ISOLATED
        return is_isolated and position.side * (position.stop_price - position.liquidation_price) <= 0.0

    def _cycle(self) -> Cycle:
        assert self._state.cycle is not None
        return self._state.cycle


def _liquidation_distance(position: OpenPosition) -> float:
    """Return the move of the mark that liquidates, a fraction of the mark; infinite where unknown (far away)."""
    distance = position.side * (position.mark - position.liquidation_price) / position.mark
    return math.inf if math.isnan(distance) else distance

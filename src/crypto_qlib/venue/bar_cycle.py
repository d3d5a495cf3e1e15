"""Live through one bar with one account: the steps numbered in ``simulator``'s header, one function per step."""

from __future__ import annotations

import math

from crypto_qlib.core.order import ExitKind, MarginMode
from crypto_qlib.venue.account import HeldPosition, VenueAccount
from crypto_qlib.venue.execution import Execution
from crypto_qlib.venue.liquidation import adl_rank
from crypto_qlib.venue.liquidator import Liquidator, stop_level
from crypto_qlib.venue.market_board import SymbolBar
from crypto_qlib.venue.matching import (
    EXIT_KIND_BY_CODE,
    LIQUIDATION,
    NO_EXIT,
    STOP,
    TAKE_PROFIT,
    TIME,
    TRAILING,
    gap_exit,
    intrabar_exit,
    is_passed,
    nearer_stop,
    optimistic_exit,
    trailing_best,
)
from crypto_qlib.venue.order_desk import OrderDesk
from crypto_qlib.venue.records import Ambiguous, Refusal, RefusalCode
from crypto_qlib.venue.trigger_desk import TriggerDesk
from crypto_qlib.venue.valuation import liquidation_mark, trailing_stop, triggers_on_mark


class BarCycle:
    """Apply the events of a bar to one account at a time."""

    def __init__(self, execution: Execution, desk: OrderDesk, triggers: TriggerDesk) -> None:
        self._execution = execution
        self._desk = desk
        self._triggers = triggers
        self._liquidator = Liquidator(execution)

    def close_delisted(self, account: VenueAccount, ts_open: int) -> None:
        """Close positions and cancel orders of symbols that trade no longer at ``ts_open``, at the last known mark."""
        listing = self._execution.listing
        symbols = {key[0] for key in account.positions} | {order.symbol for order in account.pending.values()}
        for symbol in sorted(symbols):
            end = listing.instrument(symbol).delisted_ns
            if end is None or end > ts_open:
                continue
            why = Refusal(RefusalCode.DELISTED, f"instrument {symbol} is delisted")
            for held in [held for key, held in account.positions.items() if key[0] == symbol]:
                self._execution.close(account, held, self._execution.board.mark(symbol), ExitKind.DELISTED)
            for trigger in [t for t in account.live_triggers.values() if t.request.symbol == symbol]:
                self._triggers.cancel(account, trigger, why)
            for key in {order.key for order in account.pending.values() if order.symbol == symbol}:
                self._execution.release_orders(account, key, why, every=True)

    def at_open(self, account: VenueAccount) -> None:
        """Run funding, the gap tests, orders the open trades through, then orders that waited for this bar."""
        for key, held in list(account.positions.items()):
            self._execution.settle(account, key, held.position.qty)
        self._liquidator.test_cross_at_open(account)
        for held in list(account.positions.values()):
            self._gap(account, held)
        self._close_due(account)
        self._triggers.fire_passed(account)
        self._desk.match_resting(account, closing=True, at_open=True)
        self._desk.match_resting(account, closing=False, at_open=True)
        self._desk.match_queued(account)
        self._triggers.sweep(account)

    def inside(self, account: VenueAccount) -> None:
        """Run entries by limit, adverse extremes, then favourable ones, then auto-deleveraging if it is switched on."""
        self._desk.match_resting(account, closing=False)
        self._triggers.fire_openers(account)
        self._liquidator.test_cross_inside(account)
        for held in list(account.positions.values()):
            self._inside_position(account, held)
        self._desk.match_resting(account, closing=True)
        for held in list(account.positions.values()):
            self._ratchet(account, held)
        self._triggers.follow(account)
        self._triggers.sweep(account)
        if math.isfinite(self._execution.config.adl_stress_move):
            self._deleverage(account)

    def _close_due(self, account: VenueAccount) -> None:
        """Close the positions whose time is up at the open, as market orders; one without a price waits."""
        now = self._execution.clock.now_ns()
        for held in list(account.positions.values()):
            row = self._execution.board.row(held.position.symbol)
            due = None if held.protection is None else held.protection.close_at_ns
            if row is not None and due is not None and due <= now:
                self._exit(account, held, TIME, row.open, row)

    def _gap(self, account: VenueAccount, held: HeldPosition) -> None:
        row = self._execution.board.row(held.position.symbol)
        if row is None:
            return
        while held.position.lots:
            p = held.position
            stop, stop_code = nearer_stop(p.side, stop_level(held), trailing_stop(held))
            code, raw = gap_exit(
                p.side,
                row.open,
                row.mark_open,
                stop,
                _target(held),
                self._liquidation_mark(account, held),
                triggers_on_mark(held),
            )
            if code != LIQUIDATION:
                if code != NO_EXIT:
                    self._exit(account, held, stop_code if code == STOP else code, raw, row)
                return
            self._liquidator.step_isolated(account, held, raw)

    def _inside_position(self, account: VenueAccount, held: HeldPosition) -> None:
        row, bar = self._execution.board.row(held.position.symbol), self._execution.board.bar
        if row is None or bar is None:
            return
        while held.position.lots:
            p = held.position
            stop, stop_code = nearer_stop(p.side, stop_level(held), trailing_stop(held))
            target, on_mark = _target(held), triggers_on_mark(held)
            if self._fire_nearest(account, held, row, stop):
                continue
            code, raw, ambiguous = intrabar_exit(
                p.side, row.open, row.high, row.low, row.mark_open, row.mark_high, row.mark_low,
                stop, target, self._liquidation_mark(account, held), on_mark, held.touched_ts == bar.ts_open,
            )  # fmt: skip
            if ambiguous:
                kind = optimistic_exit(p.side, row.high, row.low, row.mark_high, row.mark_low, target, stop, code, raw, on_mark)
                account.events.append(
                    Ambiguous(self._execution.clock.now_ns(), account.account_id, p.symbol, code, raw, kind[0], kind[1])
                )
            if code != LIQUIDATION:
                if code != NO_EXIT:
                    self._exit(account, held, stop_code if code == STOP else code, raw, row)
                return
            self._liquidator.step_isolated(account, held, raw)

    def _fire_nearest(self, account: VenueAccount, held: HeldPosition, row: SymbolBar, own_stop: float) -> bool:
        """Set the trigger order off that would close this position first inside the bar; return whether there was one.

        On the losing side it must lie nearer than the position's own stop and win against liquidation by the same rule; on the
        winning side it comes only where nothing on the losing side was reached, and not in the bar of the last opening fill.
        """
        p, bar = held.position, self._execution.board.bar
        liquidation, entered = self._liquidation_mark(account, held), bar is not None and held.touched_ts == bar.ts_open
        losing, winning = (self._triggers.nearest(account, held, adverse=adverse) for adverse in (True, False))
        for armed, code in ((losing, STOP), (winning, TAKE_PROFIT)):
            own = own_stop if code == STOP else _target(held)
            if armed is None or (code == STOP and p.side * (own - armed.leg.level) > 0.0):
                continue
            if code == TAKE_PROFIT and p.side * (armed.leg.level - own) > 0.0:
                continue
            stop, target = (armed.leg.level, math.nan) if code == STOP else (own_stop, armed.leg.level)
            found, raw, _ = intrabar_exit(
                p.side, row.open, row.high, row.low, row.mark_open, row.mark_high, row.mark_low,
                stop, target, liquidation, armed.on_mark, entered,
            )  # fmt: skip
            if found == code:
                self._triggers.fire(account, armed, raw, row)
                return True
        return False

    def _exit(self, account: VenueAccount, held: HeldPosition, code: int, raw: float, row: SymbolBar) -> None:
        """Close a whole position because its stop, trailing stop or take-profit was set off at ``raw``."""
        p = held.position
        if code in (STOP, TRAILING):
            price = self._execution.stop_price(p.symbol, -p.side, raw, abs(p.lots), row)
        else:
            price = self._execution.taker_price(p.symbol, -p.side, raw, abs(p.lots), row)
        self._execution.close(account, held, price, EXIT_KIND_BY_CODE[code])

    def _ratchet(self, account: VenueAccount, held: HeldPosition) -> None:
        """Move a trailing stop up behind this bar's favourable extreme and close if the bar ended beyond the new level."""
        row = self._execution.board.row(held.position.symbol)
        if row is None or math.isnan(held.best):
            return
        side, on_mark = held.position.side, triggers_on_mark(held)
        high, low, close = (row.mark_high, row.mark_low, row.mark_close) if on_mark else (row.high, row.low, row.close)
        held.best = trailing_best(side, held.best, high, low)
        level = trailing_stop(held)
        if is_passed(side, close, level):
            raw = side * min(side * level, side * row.close) if on_mark else level
            self._exit(account, held, TRAILING, raw, row)

    def _deleverage(self, account: VenueAccount) -> None:
        """Close the positions that gain from a bar whose mark moved beyond the stress switch, the highest rank first."""
        ranked: list[tuple[float, HeldPosition, float]] = []
        for held in account.positions.values():
            p, row = held.position, self._execution.board.row(held.position.symbol)
            if row is None:
                continue
            favourable = row.mark_high / row.mark_open - 1.0 if p.side > 0 else 1.0 - row.mark_low / row.mark_open
            margin = p.isolated_margin if p.margin_mode is MarginMode.ISOLATED else p.qty * p.avg_entry / p.leverage
            rank = adl_rank(p.side, p.qty, p.avg_entry, row.mark_close, margin)
            if favourable >= self._execution.config.adl_stress_move and rank > 0.0:
                ranked.append((rank, held, row.mark_close))
        for _, held, mark in sorted(ranked, key=lambda item: -item[0]):
            self._execution.close(account, held, mark, ExitKind.ADL)

    def _liquidation_mark(self, account: VenueAccount, held: HeldPosition) -> float:
        p = held.position
        mmr = self._execution.listing.mmr(p.symbol, p.lots, self._execution.clock.now_ns())
        return liquidation_mark(held, mmr, account.fees.taker)


def _target(held: HeldPosition) -> float:
    if held.protection is None or held.protection.take_profit_price is None:
        return math.nan
    return held.protection.take_profit_price

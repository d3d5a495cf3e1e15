"""Keep trigger orders, decide when a bar sets them off, and turn them into orders.

Inside a bar the venue's order of events holds for them too: those that open fire before the adverse extreme is tested, those
that close a position at a loss compete with its own stop and its liquidation (the nearer one wins), those that close it at a
gain come after the adverse extreme and not in the bar of the last opening fill; a trailing one moves up behind the bar's
favourable extreme only after the bar was tested against the level it had before. Fills are slipped as stops are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from crypto_qlib.core.order import ExitKind, OrderKind, OrderRequest, TriggerSource
from crypto_qlib.venue.account import HeldPosition, VenueAccount
from crypto_qlib.venue.execution import Execution
from crypto_qlib.venue.market_board import SymbolBar
from crypto_qlib.venue.matching import is_passed, stop_fill
from crypto_qlib.venue.order_checks import check_instrument, check_position_side, check_size
from crypto_qlib.venue.order_desk import OrderDesk
from crypto_qlib.venue.records import Refusal, RefusalCode
from crypto_qlib.venue.trigger_records import (
    TriggerLeg,
    TriggerOrder,
    TriggerRequest,
    TriggerState,
    TriggerUpdated,
)

MAX_PENDING = 500
"""Live trigger orders of one account. Source: OKX error 51261."""


@dataclass(frozen=True, slots=True)
class Armed:
    """A live level of a trigger order: ``rises`` says from which side the price must come to it."""

    trigger: TriggerOrder
    leg: TriggerLeg
    rises: bool

    @property
    def on_mark(self) -> bool:
        """Return whether the mark sets it off; the index, which the venue does not simulate, is read as the mark."""
        return self.leg.source is not TriggerSource.LAST

    def is_hit(self, low: float, high: float) -> bool:
        """Return whether prices between ``low`` and ``high`` reach the level."""
        return high >= self.leg.level if self.rises else low <= self.leg.level


class TriggerDesk:
    """Serve trigger orders of all accounts."""

    def __init__(self, execution: Execution, desk: OrderDesk) -> None:
        self._execution = execution
        self._desk = desk
        self._next_id = 1

    def place(self, account: VenueAccount, request: TriggerRequest) -> TriggerOrder | Refusal:
        """Check and keep a trigger order; it is tested from the next moment of the market on."""
        refusal = (
            check_instrument(self._execution, request.symbol)
            or check_position_side(account, request.position_side)
            or self._check(account, request)
        )
        if refusal is not None:
            return refusal
        now = self._execution.clock.now_ns()
        rises = tuple(leg.level > self._price(request.symbol, leg.source) for leg in request.legs)
        trigger = TriggerOrder(self._next_id, account.account_id, request, rises, created_ns=now, updated_ns=now)
        self._next_id += 1
        if request.trailing is not None and request.trailing.active_price is None:
            trigger = replace(trigger, best=self._price(request.symbol, TriggerSource.LAST))
        self._store(account, trigger)
        return trigger

    def amend(self, account: VenueAccount, trigger: TriggerOrder, request: TriggerRequest) -> Refusal | None:
        """Change size, levels or prices of a live trigger order."""
        refusal = self._check(account, request, is_new=False)
        if refusal is None:
            rises = tuple(leg.level > self._price(request.symbol, leg.source) for leg in request.legs)
            self._store(account, replace(trigger, request=request, rises=rises, updated_ns=self._execution.clock.now_ns()))
        return refusal

    def cancel(self, account: VenueAccount, trigger: TriggerOrder, why: Refusal | None = None) -> None:
        """Cancel a live trigger order."""
        why = why or Refusal(RefusalCode.CANCELED_BY_CLIENT, "cancelled by the client")
        self._end(account, trigger, TriggerState.CANCELED, refusal=why)

    def sweep(self, account: VenueAccount) -> None:
        """Cancel trigger orders that can only close a position that is gone."""
        for trigger in list(account.live_triggers.values()):
            if trigger.request.closes_only and self._closable(account, trigger) == 0:
                self.cancel(account, trigger, Refusal(RefusalCode.POSITION_CLOSED, "the position is closed"))

    def fire_passed(self, account: VenueAccount) -> None:
        """Set off, at the bar's open, what the open has passed already."""
        for armed in list(self._armed(account)):
            row = self._execution.board.row(armed.trigger.request.symbol)
            if row is None or armed.trigger.trigger_id not in account.live_triggers:
                continue
            price = row.mark_open if armed.on_mark else row.open
            if armed.is_hit(price, price):
                self.fire(account, armed, row.open, row)

    def fire_openers(self, account: VenueAccount) -> None:
        """Set off inside the bar what would open or add, the level nearer to the open first."""
        found: list[tuple[float, Armed, SymbolBar]] = []
        for armed in self._armed(account):
            row = self._execution.board.row(armed.trigger.request.symbol)
            if row is None or self._closable(account, armed.trigger):
                continue
            low, high, opened = _range(row, armed)
            if armed.is_hit(low, high):
                found.append((abs(armed.leg.level / opened - 1.0), armed, row))
        for _, armed, row in sorted(found, key=lambda item: item[0]):
            if armed.trigger.trigger_id in account.live_triggers:
                self.fire(account, armed, self._raw(armed, row), row)

    def nearest(self, account: VenueAccount, held: HeldPosition, *, adverse: bool) -> Armed | None:
        """Return the live level that would close a position first: on its losing side, or on its winning side."""
        side = held.position.side
        fitting = [
            armed
            for armed in self._armed(account)
            if armed.trigger.key == held.position.key
            and armed.trigger.request.side.sign == -side
            and ((side > 0.0) is not armed.rises) is adverse
        ]
        # For a long the nearest level below is the highest one, the nearest above the lowest one; for a short the reverse.
        sign = side if adverse else -side
        return max(fitting, key=lambda armed: sign * armed.leg.level, default=None)

    def follow(self, account: VenueAccount) -> None:
        """Move trailing orders behind the bar's extremes, once the bar was tested; fire where it ended beyond the new level."""
        for trigger in list(account.live_triggers.values()):
            trailing, row = trigger.request.trailing, self._execution.board.row(trigger.request.symbol)
            if trailing is None or row is None:
                continue
            sells = trigger.request.side.sign < 0.0
            if math.isnan(trigger.best) and trailing.active_price is not None:
                reached = row.high >= trailing.active_price if sells else row.low <= trailing.active_price
                if not reached:
                    continue
            extreme = row.high if sells else row.low
            best = extreme if math.isnan(trigger.best) else max(trigger.best, extreme) if sells else min(trigger.best, extreme)
            moved = replace(trigger, best=best)
            account.live_triggers[trigger.trigger_id] = account.triggers[trigger.trigger_id] = moved
            armed = _trailing_level(moved)
            if armed is not None and armed.is_hit(row.close, row.close):
                self.fire(account, armed, armed.leg.level, row)

    def fire(self, account: VenueAccount, armed: Armed, raw: float, row: SymbolBar) -> None:
        """Turn a trigger order into an order and match it at ``raw`` before slippage."""
        request, leg = armed.trigger.request, armed.leg
        lots = self._lots(account, armed.trigger)
        order = OrderRequest(
            request.order_client_id,
            request.symbol,
            request.side,
            max(lots, 1),
            OrderKind.MARKET if leg.price is None else OrderKind.LIMIT,
            leg.price,
            request.margin_mode,
            request.reduce_only or request.lots == 0,
            request.protection,
            request.position_side,
        )
        kind = leg.exit_kind or ExitKind.SIGNAL
        # The order is told after what it came from, and its fills after it.
        self._end(account, armed.trigger, TriggerState.EFFECTIVE, fired=kind, order_id=self._desk.next_id)
        gains = leg.exit_kind is ExitKind.TAKE_PROFIT
        taken = self._desk.take_triggered(account, order, kind, raw, row, is_stop=not gains)
        if taken.refusal is not None and taken.filled_lots == 0 and taken.status.value == "rejected":
            ended = account.triggers[armed.trigger.trigger_id]
            self._store(account, replace(ended, state=TriggerState.FAILED, order_id=0, refusal=taken.refusal))

    def raw_of(self, armed: Armed, row: SymbolBar) -> float:
        """Return the price a level sets off at inside a bar, before slippage."""
        return self._raw(armed, row)

    def _raw(self, armed: Armed, row: SymbolBar) -> float:
        level = armed.leg.level
        if armed.leg.exit_kind is ExitKind.TAKE_PROFIT:
            return level
        side = -1.0 if armed.rises else 1.0
        last, mark = (row.low, row.mark_low) if side > 0.0 else (row.high, row.mark_high)
        return float(stop_fill(side, level, row.open, last, mark, armed.on_mark))

    def _armed(self, account: VenueAccount) -> Iterator[Armed]:
        for trigger in list(account.live_triggers.values()):
            if trigger.request.trailing is not None:
                armed = _trailing_level(trigger)
                if armed is not None:
                    yield armed
                continue
            for leg, rises in zip(trigger.request.legs, trigger.rises, strict=True):
                yield Armed(trigger, leg, rises)

    def _closable(self, account: VenueAccount, trigger: TriggerOrder) -> int:
        held = account.positions.get(trigger.key)
        return abs(held.position.lots) if held and held.position.side * trigger.request.side.sign < 0 else 0

    def _lots(self, account: VenueAccount, trigger: TriggerOrder) -> int:
        closable = self._closable(account, trigger)
        wanted = trigger.request.lots or closable
        return min(wanted, closable) if trigger.request.closes_only else wanted

    def _check(self, account: VenueAccount, request: TriggerRequest, *, is_new: bool = True) -> Refusal | None:
        if is_new and len(account.live_triggers) >= MAX_PENDING:
            return Refusal(RefusalCode.TOO_MANY_TRIGGERS, "too many trigger orders are waiting", MAX_PENDING, MAX_PENDING + 1)
        if request.closes_only:
            held = account.positions.get(request.key)
            if held is None or held.position.side * request.side.sign >= 0.0:
                return Refusal(RefusalCode.REDUCE_ONLY_WITHOUT_POSITION, f"no position in {request.symbol} to close")
        if request.lots:
            refusal = check_size(self._execution.listing.instrument(request.symbol), OrderKind.MARKET, request.lots)
            if refusal is not None:
                return refusal
        for leg in request.legs:
            last = self._price(request.symbol, leg.source)
            # A stop of a sell lies below the price, its take-profit above; of a buy the other way round.
            wants_below = (leg.exit_kind is ExitKind.STOP) is (request.side.sign < 0.0)
            if leg.exit_kind is not None and is_passed(1.0 if wants_below else -1.0, last, leg.level):
                code = RefusalCode.STOP_PASSED if leg.exit_kind is ExitKind.STOP else RefusalCode.TAKE_PROFIT_PASSED
                return Refusal(code, "the trigger price is already passed", last, leg.level)
        return None

    def _price(self, symbol: str, source: TriggerSource) -> float:
        board = self._execution.board
        return board.last(symbol) if source is TriggerSource.LAST else board.mark(symbol)

    def _end(
        self,
        account: VenueAccount,
        trigger: TriggerOrder,
        state: TriggerState,
        *,
        fired: ExitKind | None = None,
        order_id: int = 0,
        refusal: Refusal | None = None,
    ) -> None:
        now = self._execution.clock.now_ns()
        ended = replace(trigger, state=state, fired=fired, order_id=order_id, refusal=refusal, updated_ns=now)
        self._store(account, ended)

    def _store(self, account: VenueAccount, trigger: TriggerOrder) -> None:
        account.triggers[trigger.trigger_id] = trigger
        if trigger.state is TriggerState.LIVE:
            account.live_triggers[trigger.trigger_id] = trigger
        else:
            account.live_triggers.pop(trigger.trigger_id, None)
        account.events.append(TriggerUpdated(self._execution.clock.now_ns(), account.account_id, trigger))


def _trailing_level(trigger: TriggerOrder) -> Armed | None:
    trailing = trigger.request.trailing
    if trailing is None or math.isnan(trigger.best):
        return None
    sells = trigger.request.side.sign < 0.0
    distance = trailing.spread if trailing.spread is not None else trigger.best * (trailing.ratio or 0.0)
    level = trigger.best - distance if sells else trigger.best + distance
    return Armed(trigger, TriggerLeg(ExitKind.TRAILING, level), rises=not sells)


def _range(row: SymbolBar, armed: Armed) -> tuple[float, float, float]:
    if armed.on_mark:
        return row.mark_low, row.mark_high, row.mark_open
    return row.low, row.high, row.open

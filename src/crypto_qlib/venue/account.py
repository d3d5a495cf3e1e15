"""One account's books: cash, positions, orders, and the only functions that change them.

Isolated margin lies outside ``cash``; the opening fee is taken from cash, not from the margin. A position is a fold over
its fills (``core.position``). Every change of money writes one :class:`~crypto_qlib.venue.records.Bill`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field, replace

from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.fees import FeeHistory
from crypto_qlib.core.order import ExitKind, Fill, MarginMode, PositionKey, PositionSide, Protection
from crypto_qlib.core.position import Position, apply_fill
from crypto_qlib.venue.liquidation import floor_at_zero
from crypto_qlib.venue.records import Bill, BillKind, ClosedPosition, VenueEvent, VenueOrder
from crypto_qlib.venue.trigger_records import TriggerOrder


@dataclass(slots=True)
class HeldPosition:
    """An open position with what hangs on it.

    Parameters
    ----------
    position : Position
        The fold over its fills.
    protection : Protection | None
        Stop-loss, take-profit and trailing stop.
    best : float
        Best price of the trigger stream since the trailing stop was set; NaN without one.
    touched_ts : int
        Open time of the bar in which it was opened, increased or cut last: no take-profit in that bar.
    peak_lots : int
        Largest signed size so far.
    closed_lots, closed_value : int, float
        Lots closed so far and the sum of ``lots * price`` over them.
    """

    position: Position
    protection: Protection | None = None
    best: float = math.nan
    touched_ts: int = -1
    peak_lots: int = 0
    closed_lots: int = 0
    closed_value: float = 0.0


@dataclass(slots=True)
class VenueAccount:
    """Everything the exchange keeps of one account; money in USDT. ``fees`` are the rates of ``fee_history`` now in force."""

    account_id: str
    fees: FeeSchedule
    fee_history: FeeHistory
    cash: float = 0.0
    is_hedged: bool = False
    """Long/short position mode; net mode otherwise."""
    leverage: dict[PositionKey, float] = field(default_factory=dict)
    positions: dict[PositionKey, HeldPosition] = field(default_factory=dict)
    pending: dict[int, VenueOrder] = field(default_factory=dict)
    orders: dict[int, VenueOrder] = field(default_factory=dict)
    fills: list[Fill] = field(default_factory=list)
    bills: list[Bill] = field(default_factory=list)
    closed: list[ClosedPosition] = field(default_factory=list)
    triggers: dict[int, TriggerOrder] = field(default_factory=dict)
    live_triggers: dict[int, TriggerOrder] = field(default_factory=dict)
    events: list[VenueEvent] = field(default_factory=list)
    forgotten: tuple[int, int, int] = (0, 0, 0)
    """Orders, fills and bills that are kept no more; ids and counts go on as if they were."""

    def forget(self, before_ns: int, unfilled_before_ns: int) -> None:
        """Keep no record that ended before ``before_ns``, nor an order that ended unfilled before ``unfilled_before_ns``."""

        def is_old(order: VenueOrder) -> bool:
            return order.updated_ns < (before_ns if order.filled_lots else unfilled_before_ns)

        old = [number for number, order in self.orders.items() if order.status.is_final and is_old(order)]
        for number in old:
            del self.orders[number]
        n_fills = bisect_left(self.fills, before_ns, key=lambda fill: fill.ts_ns)
        n_bills = bisect_left(self.bills, before_ns, key=lambda bill: bill.ts_ns)
        del self.fills[:n_fills]
        del self.bills[:n_bills]
        del self.closed[: bisect_left(self.closed, before_ns, key=lambda closed: closed.closed_ns)]
        ended = (t for t in self.triggers.values() if t.trigger_id not in self.live_triggers and t.updated_ns < before_ns)
        for trigger in list(ended):
            del self.triggers[trigger.trigger_id]
        self.forgotten = (self.forgotten[0] + len(old), self.forgotten[1] + n_fills, self.forgotten[2] + n_bills)

    def cross(self) -> list[HeldPosition]:
        """Return the open cross positions."""
        return [held for key, held in self.positions.items() if key[1] is MarginMode.CROSS]

    def held(self, symbol: str, mode: MarginMode, side: PositionSide = PositionSide.NET) -> HeldPosition | None:
        """Return the open position of ``symbol`` in ``mode`` on ``side``, if any."""
        return self.positions.get((symbol, mode, side))

    def book(self, bill: Bill) -> Bill:
        """Write ``bill`` down under the next number and move its cash; isolated margin is moved by the caller."""
        self.cash += bill.cash_change
        booked = replace(bill, bill_id=self.forgotten[2] + len(self.bills) + 1, cash_balance=self.cash)
        self.bills.append(booked)
        return booked

    def trade(self, key: PositionKey, fill: Fill, base_per_lot: float, leverage: float) -> float:
        """Apply one fill that either only opens or only closes; return the price PnL it realised.

        The loss of an isolated close beyond the margin released is taken from the margin that stays, and beyond that from
        the insurance fund: an isolated position never costs the wallet more than its margin.
        """
        held = self.positions.get(key)
        before = held.position if held else Position(key[0], base_per_lot, key[1], leverage, position_side=key[2])
        after = apply_fill(before, fill)
        pnl = after.realised_pnl - before.realised_pnl
        margin_change = after.isolated_margin - before.isolated_margin
        cash_change = pnl - fill.fee - margin_change
        overshoot = 0.0
        if key[1] is MarginMode.ISOLATED and abs(after.lots) < abs(before.lots) and cash_change < 0.0:
            taken = min(-cash_change, after.isolated_margin)
            overshoot = -cash_change - taken
            cash_change, margin_change = 0.0, margin_change - taken
            after = replace(after, isolated_margin=after.isolated_margin - taken)
        self._settle(key, held, before, after, fill)
        if key[1] is MarginMode.CROSS and not self.cross():
            _, overshoot = floor_at_zero(self.cash + cash_change)
        kind = _TRADE_BILLS.get(fill.exit_kind, BillKind.TRADE) if fill.exit_kind else BillKind.TRADE
        self.book(
            Bill(
                0,
                fill.ts_ns,
                kind,
                cash_change + (overshoot if key[1] is MarginMode.CROSS else 0.0),
                margin_change,
                0.0,
                *key,
                pnl=pnl,
                fee=fill.fee,
                overshoot=overshoot,
                signed_lots=fill.signed_lots,
                price=fill.price,
                client_order_id=fill.client_order_id,
            )
        )
        self.fills.append(fill)
        return pnl

    def fund(self, key: PositionKey, amount: float, mark: float, ts_ns: int) -> None:
        """Move a settlement's ``amount`` into (or out of) a position's margin, or cash in cross mode."""
        held = self.positions[key]
        isolated = key[1] is MarginMode.ISOLATED
        position = held.position
        margin_change = amount if isolated else 0.0
        held.position = replace(
            position, isolated_margin=position.isolated_margin + margin_change, funding=position.funding + amount
        )
        self.book(
            Bill(
                0,
                ts_ns,
                BillKind.FUNDING,
                amount - margin_change,
                margin_change,
                0.0,
                *key,
                funding=amount,
                signed_lots=position.lots,
                price=mark,
            )
        )

    def move_margin(self, key: PositionKey, amount: float, ts_ns: int) -> None:
        """Move ``amount`` USDT from cash into an isolated position's margin (negative: back to cash)."""
        held = self.positions[key]
        held.position = replace(held.position, isolated_margin=held.position.isolated_margin + amount)
        self.book(Bill(0, ts_ns, BillKind.MARGIN, -amount, amount, 0.0, *key))

    def relever(self, key: PositionKey, leverage: float) -> None:
        """Change the leverage an open position counts with; its margin is moved apart from this."""
        held = self.positions[key]
        held.position = replace(held.position, leverage=leverage)

    def liquidate(self, key: PositionKey, fill: Fill, penalty: float) -> tuple[float, float]:
        """Apply a liquidation fill of the whole position or a part; return (pnl, overshoot).

        Isolated: pnl, fee and penalty come out of the position's margin; a full one takes all of it, what is missing is
        ``overshoot``. Cross: they move cash, which the caller floors once all positions are booked.
        """
        held = self.positions[key]
        before = held.position
        after = apply_fill(before, fill)
        pnl = after.realised_pnl - before.realised_pnl
        after = replace(after, liquidation_penalty=after.liquidation_penalty + penalty)
        loss = pnl - fill.fee - penalty
        cash_change, margin_change, overshoot = loss, 0.0, 0.0
        if key[1] is MarginMode.ISOLATED:
            left = before.isolated_margin + loss if after.lots else 0.0
            cash_change, margin_change = 0.0, max(left, 0.0) - before.isolated_margin
            overshoot = margin_change - loss
            after = replace(after, isolated_margin=max(left, 0.0))
        self._settle(key, held, before, after, fill)
        self.book(
            Bill(
                0,
                fill.ts_ns,
                BillKind.LIQUIDATION,
                cash_change,
                margin_change,
                0.0,
                *key,
                pnl=pnl,
                fee=fill.fee,
                penalty=penalty,
                overshoot=overshoot,
                signed_lots=fill.signed_lots,
                price=fill.price,
            )
        )
        self.fills.append(fill)
        return pnl, overshoot

    def floor_cross(self, ts_ns: int) -> float:
        """Lift negative cash to zero after a full cross liquidation; return what the insurance fund bore."""
        _, overshoot = floor_at_zero(self.cash)
        if overshoot > 0.0:
            self.book(Bill(0, ts_ns, BillKind.LIQUIDATION, overshoot, 0.0, 0.0, overshoot=overshoot))
            self.cash = 0.0
        return overshoot

    def _settle(self, key: PositionKey, held: HeldPosition | None, before: Position, after: Position, fill: Fill) -> None:
        """Store the position after a fill, or its record once it is flat."""
        held = held or HeldPosition(after)
        held.position = after
        if abs(after.lots) > abs(before.lots):
            held.peak_lots = max(after.lots, held.peak_lots, key=abs)
            self.positions[key] = held
            return
        held.closed_lots += abs(fill.signed_lots)
        held.closed_value += abs(fill.signed_lots) * fill.price
        if after.lots == 0:
            del self.positions[key]
            self.closed.append(
                ClosedPosition(
                    symbol=key[0],
                    margin_mode=key[1],
                    leverage=before.leverage,
                    lots=held.peak_lots,
                    open_average=before.avg_entry,
                    close_average=held.closed_value / held.closed_lots,
                    pnl=after.realised_pnl,
                    fee=after.fee,
                    funding=after.funding,
                    penalty=after.liquidation_penalty,
                    opened_ns=before.opened_ns,
                    closed_ns=fill.ts_ns,
                    exit_kind=fill.exit_kind or ExitKind.MANUAL,
                    position_side=key[2],
                )
            )


_TRADE_BILLS = {ExitKind.DELISTED: BillKind.DELISTING, ExitKind.ADL: BillKind.ADL}

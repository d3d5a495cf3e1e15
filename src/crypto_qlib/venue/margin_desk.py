"""Change what stands behind a position: its leverage, its isolated margin, its protection."""

from __future__ import annotations

import math

from crypto_qlib.core import margin as m
from crypto_qlib.core.order import MarginMode, PositionKey, PositionSide, Protection, TriggerSource
from crypto_qlib.core.tiers import NO_TIER
from crypto_qlib.venue.account import HeldPosition, VenueAccount
from crypto_qlib.venue.execution import Execution, leverage_key
from crypto_qlib.venue.order_checks import check_protection, resulting_lots
from crypto_qlib.venue.records import Refusal, RefusalCode
from crypto_qlib.venue.valuation import free_margin, frozen_margin

_SLACK = 1e-9


class MarginDesk:
    """Serve the requests that are not orders."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def set_leverage(self, account: VenueAccount, key: PositionKey, leverage: float) -> Refusal | None:
        """Set the leverage of ``key``, within the cap of the tier of what is held and pending.

        An open isolated position is brought to the new entry margin: lower leverage takes the difference from cash, higher
        leverage gives it back as far as the initial margin at the mark allows. An open cross position keeps its margin.
        """
        if key[0] not in self._execution.listing:
            return Refusal(RefusalCode.UNKNOWN_INSTRUMENT, f"instrument {key[0]} does not exist")
        if not (math.isfinite(leverage) and leverage >= 1.0):
            return Refusal(RefusalCode.BAD_LEVERAGE, "leverage must be at least 1", 1.0, leverage)
        cap = self._cap(account, key)
        if leverage > cap * (1.0 + _SLACK):
            return Refusal(RefusalCode.LEVERAGE_ABOVE_CAP, f"leverage of {key[0]} is above its cap", cap, leverage)
        refusal = self._afford_pending(account, key, leverage)
        if refusal is None:
            isolated, concerned = key[1] is MarginMode.ISOLATED, self._concerned(account, key)
            relever = self._relever_isolated if isolated else self._relever_cross
            refusal = relever(account, concerned, leverage) if concerned else None
        if refusal is None:
            account.leverage[leverage_key(key)] = leverage
        return refusal

    def adjust(self, account: VenueAccount, symbol: str, amount: float, side: PositionSide) -> Refusal | None:
        """Move ``amount`` USDT from cash into an isolated position's margin, or back out if negative."""
        held = account.held(symbol, MarginMode.ISOLATED, side)
        if held is None:
            return Refusal(RefusalCode.NO_POSITION, f"no isolated position in {symbol}")
        limit = self._free_cash(account) if amount > 0.0 else -self._removable(held, held.position.leverage)
        if abs(amount) > abs(limit) or not math.isfinite(amount):
            return Refusal(RefusalCode.INSUFFICIENT_MARGIN, "margin change exceeds what is available", limit, amount)
        account.move_margin(held.position.key, amount, self._execution.clock.now_ns())
        return None

    def protect(self, account: VenueAccount, key: PositionKey, protection: Protection | None) -> Refusal | None:
        """Set, replace or remove the protection of an open position; a trailing stop starts from the price now known."""
        held = account.positions.get(key)
        if held is None:
            return Refusal(RefusalCode.NO_POSITION, f"no {key[1].value} position in {key[0]} to protect")
        refusal = check_protection(held.position.side, protection)
        if refusal is None:
            on_last = protection is None or protection.trigger is TriggerSource.LAST
            board = self._execution.board
            self._execution.protect(account, held, protection, board.last(key[0]) if on_last else board.mark(key[0]))
        return refusal

    def _cap(self, account: VenueAccount, key: PositionKey) -> float:
        instrument = self._execution.listing.instrument(key[0])
        table = self._execution.listing.tiers(key[0], self._execution.clock.now_ns())
        sizes = [
            resulting_lots(account, order.key, order.side.value * order.remaining_lots, order.order_id)
            for order in account.pending.values()
            if leverage_key(order.key) == leverage_key(key) and not order.request.closes_only
        ]
        sizes += [0, *(abs(held.position.lots) for held in self._concerned(account, key))]
        row = table.row(max(sizes) * instrument.lot_size)
        return 0.0 if row == NO_TIER else min(float(table.max_leverage[row]), instrument.max_leverage)

    def _afford_pending(self, account: VenueAccount, key: PositionKey, leverage: float) -> Refusal | None:
        """Refuse a leverage at which the pending orders would freeze more than is free."""

        def wanted(owner: VenueAccount, of: PositionKey) -> float:
            return leverage if leverage_key(of) == leverage_key(key) else self._execution.leverage(owner, of)

        listing, board = self._execution.listing, self._execution.board
        now = frozen_margin(account, account.pending, listing, board, self._execution.leverage)
        then = frozen_margin(account, account.pending, listing, board, wanted)
        free = free_margin(account, board, now, key[1])
        if then - now > max(free, 0.0) + _SLACK:
            return Refusal(RefusalCode.INSUFFICIENT_MARGIN, "pending orders need more margin than is free", free, then - now)
        return None

    def _concerned(self, account: VenueAccount, key: PositionKey) -> list[HeldPosition]:
        """Return the open positions whose leverage is kept under the same key: one, or both sides of a cross pair."""
        return [held for of, held in account.positions.items() if leverage_key(of) == leverage_key(key)]

    def _relever_isolated(self, account: VenueAccount, concerned: list[HeldPosition], leverage: float) -> Refusal | None:
        (held,) = concerned
        p = held.position
        at_new = m.initial_margin_isolated(p.qty, p.avg_entry, leverage)
        change = at_new - m.initial_margin_isolated(p.qty, p.avg_entry, p.leverage)
        free = self._free_cash(account)
        if change > free:
            return Refusal(RefusalCode.INSUFFICIENT_MARGIN, "lower leverage needs more margin than is free", free, change)
        change = max(change, -self._removable(held, leverage))
        if change != 0.0:
            account.move_margin(p.key, change, self._execution.clock.now_ns())
        account.relever(p.key, leverage)
        return None

    def _relever_cross(self, account: VenueAccount, concerned: list[HeldPosition], leverage: float) -> Refusal | None:
        change = 0.0
        for held in concerned:
            p, mark = held.position, self._execution.board.mark(held.position.symbol)
            change += m.initial_margin_cross(p.qty, mark, leverage) - m.initial_margin_cross(p.qty, mark, p.leverage)
        free = self._free(account, MarginMode.CROSS)
        if change > max(free, 0.0):
            return Refusal(RefusalCode.INSUFFICIENT_MARGIN, "lower leverage needs more margin than is free", free, change)
        for held in concerned:
            account.relever(held.position.key, leverage)
        return None

    def _removable(self, held: HeldPosition, leverage: float) -> float:
        """Return what may leave an isolated margin: above the initial margin at entry, losses and the mark's margin first."""
        p = held.position
        mark = self._execution.board.mark(p.symbol)
        at_entry = p.isolated_margin - m.initial_margin_isolated(p.qty, p.avg_entry, leverage)
        at_mark = p.isolated_margin + p.unrealised_pnl(mark) - m.initial_margin_cross(p.qty, mark, leverage)
        return max(min(at_entry, at_mark), 0.0)

    def _free_cash(self, account: VenueAccount) -> float:
        return max(self._free(account, MarginMode.ISOLATED), 0.0)

    def _free(self, account: VenueAccount, mode: MarginMode) -> float:
        frozen = frozen_margin(
            account, account.pending, self._execution.listing, self._execution.board, self._execution.leverage
        )
        return free_margin(account, self._execution.board, frozen, mode)

"""Take positions over when their margin is used up: isolated one by one, cross as one account, in parts from tier 3 on."""

from __future__ import annotations

from crypto_qlib.core import margin as m
from crypto_qlib.core.costs import trading_fee
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus
from crypto_qlib.venue.account import HeldPosition, VenueAccount
from crypto_qlib.venue.execution import Execution
from crypto_qlib.venue.liquidation import (
    PARTIAL_FROM_TIER,
    along,
    cross_adverse_mark,
    partial_liquidation_lots,
    trigger_fraction,
)
from crypto_qlib.venue.market_board import SymbolBar
from crypto_qlib.venue.matching import LIQUIDATION, NO_EXIT, nearer_stop
from crypto_qlib.venue.records import Ambiguous, Filled, Liquidated, Refusal, RefusalCode
from crypto_qlib.venue.valuation import cross_state, frozen_against_cross, trailing_stop, triggers_on_mark


class Liquidator:
    """Liquidate positions of an account at trigger marks and book what that costs."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def step_isolated(self, account: VenueAccount, held: HeldPosition, trigger_mark: float) -> None:
        """Take over an isolated position at ``trigger_mark``, or the part its tier prescribes; the caller tests again."""
        p = held.position
        lots = self._step_lots(held)
        if p.isolated_margin + p.unrealised_pnl(trigger_mark) <= self._lowest_requirement(account, held, trigger_mark):
            lots = abs(p.lots)
        self._take_over(account, held, trigger_mark, lots)

    def test_cross_at_open(self, account: VenueAccount) -> None:
        """Liquidate the cross account while its ratio is at or below 1 at the marks now known (the bar's mark opens)."""
        while account.cross():
            marks = {held.position.symbol: self._execution.board.mark(held.position.symbol) for held in account.cross()}
            self._relieve(account, marks)
            equity, need = cross_state(account, self._execution.listing, marks, self._execution.clock.now_ns())
            if equity > need:
                return
            self._step_cross(account, marks)

    def test_cross_inside(self, account: VenueAccount) -> None:
        """Liquidate the cross account where it dies on the straight way to the joint adverse extremes of the bar.

        All positions are at their adverse extreme (or at their stop, where that is nearer) together. A liquidation that the
        bar's close would not have caused is told as ambiguous where more than one position made it: their extremes may not
        have come together.
        """
        now = self._execution.clock.now_ns()
        listing = self._execution.listing
        marks = {h.position.symbol: self._start_mark(h) for h in account.cross()}
        self._relieve(account, {h.position.symbol: self._worst_mark(h) for h in account.cross()})
        is_told = False
        while account.cross():
            # Both sides of one symbol meet at one mark: where their net exposure suffers, the larger side's adverse extreme.
            by_size = sorted(account.cross(), key=lambda held: held.position.qty)
            worst = {h.position.symbol: self._worst_mark(h) for h in by_size}
            start, end = cross_state(account, listing, marks, now), cross_state(account, listing, worst, now)
            fraction = trigger_fraction(*start, *end)
            if not fraction >= 0.0:
                return
            marks = {symbol: along(marks[symbol], worst[symbol], fraction) for symbol in worst}
            if not is_told:
                self._tell_ambiguous(account)
                is_told = True
            self._step_cross(account, marks)

    def _relieve(self, account: VenueAccount, marks: dict[str, float]) -> None:
        """Cancel the account's open orders where the ratio, less what they froze, is at or below 1 at ``marks``.

        Source: OKX help "When would my order be liquidated": orders of the currency go first, then the ratio is tested again.
        """
        if not account.pending or not account.cross():
            return
        execution = self._execution
        equity, need = cross_state(account, execution.listing, marks, execution.clock.now_ns())
        frozen = frozen_against_cross(account, execution.listing, execution.board, execution.leverage)
        if equity - frozen > need:
            return
        why = Refusal(RefusalCode.LIQUIDATED, "the cross account's margin ratio fell to 1")
        for order in list(account.pending.values()):
            execution.change_order(account, order, OrderStatus.CANCELED, why)

    def _step_cross(self, account: VenueAccount, marks: dict[str, float]) -> None:
        """Net hedged legs; else cut the position with the largest requirement in tier 3 or above; else take all over.

        An account below what its positions would require in their lowest tiers is taken over at once.
        """
        if self._net_hedges(account, marks):
            return
        equity, _ = cross_state(account, self._execution.listing, marks, self._execution.clock.now_ns())
        lowest = sum(self._lowest_requirement(account, h, marks[h.position.symbol]) for h in account.cross())
        cuttable = [h for h in account.cross() if self._step_lots(h) < abs(h.position.lots)]
        if cuttable and equity > lowest:
            held = max(cuttable, key=lambda h: self._requirement(account, h, marks[h.position.symbol]))
            self._take_over(account, held, marks[held.position.symbol], self._step_lots(held))
            return
        for held in account.cross():
            self._take_over(account, held, marks[held.position.symbol], abs(held.position.lots))
        account.floor_cross(self._execution.clock.now_ns())

    def _net_hedges(self, account: VenueAccount, marks: dict[str, float]) -> bool:
        """Close what is held on both sides of a symbol against each other at its mark; return whether anything was.

        It costs the taker fee and no penalty: nothing is taken over. Source: OKX help "Forced partial or full liquidation";
        that no penalty is due is our reading, for with one the netting could never help.
        """
        by_symbol: dict[str, list[HeldPosition]] = {}
        for held in account.cross():
            by_symbol.setdefault(held.position.symbol, []).append(held)
        hedged = [legs for legs in by_symbol.values() if len(legs) > 1]
        for legs in hedged:
            lots = min(abs(held.position.lots) for held in legs)
            for held in legs:
                self._take_over(account, held, marks[held.position.symbol], lots, is_netting=True)
        return bool(hedged)

    def _take_over(
        self, account: VenueAccount, held: HeldPosition, mark: float, lots: int, *, is_netting: bool = False
    ) -> None:
        p = held.position
        key = p.key
        partial = is_netting or lots < abs(p.lots)
        now = self._execution.clock.now_ns()
        mmr = self._execution.listing.mmr(p.symbol, p.lots, now)
        qty = lots * p.base_per_lot
        kind = ExitKind.PARTIAL_LIQUIDATION if partial else ExitKind.LIQUIDATION
        signed = -lots if p.lots > 0 else lots
        fill = Fill(now, p.symbol, signed, mark, trading_fee(qty, mark, account.fees.taker), exit_kind=kind)
        penalty = 0.0 if is_netting else m.liquidation_penalty(qty, mark, mmr)
        why = Refusal(RefusalCode.LIQUIDATED, f"the {p.margin_mode.value} position in {p.symbol} was liquidated")
        self._execution.release_orders(account, key, why, every=True)
        pnl, overshoot = account.liquidate(key, fill, penalty)
        bar = self._execution.board.bar
        held.touched_ts = bar.ts_open if bar is not None else held.touched_ts
        account.events.append(Filled(now, account.account_id, fill, p.margin_mode, pnl, p.position_side))
        account.events.append(
            Liquidated(now, account.account_id, *key, signed, mark, pnl, fill.fee, penalty, overshoot, partial=partial)
        )

    def _step_lots(self, held: HeldPosition) -> int:
        p = held.position
        if not self._execution.config.partial_liquidation:
            return abs(p.lots)
        table = self._execution.listing.tiers(p.symbol, self._execution.clock.now_ns())
        if table.max_contracts.size <= PARTIAL_FROM_TIER:
            return abs(p.lots)
        lot_size = self._execution.listing.instrument(p.symbol).lot_size
        return partial_liquidation_lots(abs(p.lots), lot_size, table.max_contracts)

    def _requirement(self, account: VenueAccount, held: HeldPosition, mark: float) -> float:
        p = held.position
        mmr = self._execution.listing.mmr(p.symbol, p.lots, self._execution.clock.now_ns())
        return m.requirement(p.qty, mark, mmr, account.fees.taker)

    def _lowest_requirement(self, account: VenueAccount, held: HeldPosition, mark: float) -> float:
        """Return what the position would require in the lowest tier."""
        rate = float(self._execution.listing.tiers(held.position.symbol, self._execution.clock.now_ns()).mmr[0])
        return m.requirement(held.position.qty, mark, rate, account.fees.taker)

    def _start_mark(self, held: HeldPosition) -> float:
        row = self._execution.board.row(held.position.symbol)
        return row.mark_open if row is not None else self._execution.board.mark(held.position.symbol)

    def _worst_mark(self, held: HeldPosition) -> float:
        p = held.position
        row = self._execution.board.row(p.symbol)
        if row is None:
            return self._execution.board.mark(p.symbol)
        last, mark = (row.low, row.mark_low) if p.side > 0 else (row.high, row.mark_high)
        stop, _ = nearer_stop(p.side, stop_level(held), trailing_stop(held))
        return cross_adverse_mark(p.side, last, mark, stop, triggers_on_mark(held))

    def _tell_ambiguous(self, account: VenueAccount) -> None:
        closes = {}
        for held in account.cross():
            row: SymbolBar | None = self._execution.board.row(held.position.symbol)
            closes[held.position.symbol] = row.mark_close if row is not None else self._start_mark(held)
        now = self._execution.clock.now_ns()
        equity, need = cross_state(account, self._execution.listing, closes, now)
        if equity > need and len(closes) > 1:
            for symbol, mark in closes.items():
                account.events.append(Ambiguous(now, account.account_id, symbol, LIQUIDATION, mark, NO_EXIT, float("nan")))


def stop_level(held: HeldPosition) -> float:
    """Return the fixed stop price of a position; NaN without one."""
    if held.protection is None or held.protection.stop_price is None:
        return float("nan")
    return held.protection.stop_price

"""What must hold on any market and for any orders: the books balance, losses are bounded, nothing trades after death."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.order import ExitKind, MarginMode, OrderKind, OrderRequest, Protection, Side, TriggerSource
from crypto_qlib.core.position import Position, fold
from crypto_qlib.venue.records import BillKind, FundingPaid, Liquidated
from crypto_qlib.venue.simulator import SimulatedExchange
from tests.venue.venue_tape import FEES, ME, PLAIN, B, listed, venue_bar

SYMBOLS = ("AUSDT", "BUSDT")
COSTLY = replace(PLAIN, half_spread_bps=2.0, impact_y=0.8)
START = 4000.0


Steps = list[tuple[B, B, list[OrderRequest], bool]]


def random_bar(rng: np.random.Generator) -> B:
    """A bar around 100 with a wild range, a mark that may differ, and now and then funding."""
    opening, closing, up, down = 100.0 + rng.normal(0.0, 4.0, 4)
    high, low = max(opening, closing, up), min(opening, closing, down)
    mark = None
    if rng.random() < 0.5:
        basis = 1.0 + rng.normal(0.0, 0.01)
        mark = (opening * basis, high * basis, low * basis, closing * basis)
    funding = rng.choice([math.nan, math.nan, 0.0, 0.003, -0.003, 0.05, -0.05])
    return B(opening, high, low, closing, mark, float(funding), float(rng.choice([math.nan, 400.0, 5000.0])), 1e6, 300.0)


def random_request(rng: np.random.Generator) -> OrderRequest:
    side = Side.BUY if rng.random() < 0.5 else Side.SELL
    kind = rng.choice([OrderKind.MARKET, OrderKind.MARKET, *OrderKind])
    price = None if kind == OrderKind.MARKET else round(100.0 - side.sign * rng.normal(1.0, 4.0), 2)
    guard = None
    if rng.random() < 0.4:
        stop, target = (100.0 * (1 - side.sign * sign * rng.uniform(0.01, 0.15)) for sign in (1, -1))
        trigger = TriggerSource.MARK if rng.random() < 0.5 else TriggerSource.LAST
        guard = Protection(stop, target, trigger, 0.05 if rng.random() < 0.2 else None)
    symbol = SYMBOLS[int(rng.random() < 0.5)]
    mode = MarginMode.CROSS if rng.random() < 0.5 else MarginMode.ISOLATED
    lots = int(rng.choice([5, 40, 120, 250]))
    return OrderRequest("", symbol, side, lots, OrderKind(str(kind)), price, mode, bool(rng.random() < 0.15), guard)


@st.composite
def histories(draw: st.DrawFn) -> Steps:
    """Ten bars of two symbols with orders sent inside or between bars; a seed gives far more variety than drawn numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [
        (random_bar(rng), random_bar(rng), [random_request(rng) for _ in range(rng.integers(0, 4))], bool(rng.random() < 0.3))
        for _ in range(10)
    ]


STEPS = histories()
THOROUGH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def live(steps: Steps, only: MarginMode | None = None) -> SimulatedExchange:
    exchange = SimulatedExchange([listed(symbol) for symbol in SYMBOLS], COSTLY, 0)
    exchange.open_account(ME, START, FEES)
    for k, (a, b, orders, between) in enumerate(steps):
        wanted = [replace(order, margin_mode=only) if only else order for order in orders]
        if between and k:
            for order in wanted:
                exchange.submit(ME, order)
        exchange.begin_bar(venue_bar(k, {"AUSDT": a, "BUSDT": b}))
        check_books(exchange)
        if not between:
            for order in wanted:
                exchange.submit(ME, order)
        exchange.end_bar()
        check_books(exchange)
    return exchange


def check_books(exchange: SimulatedExchange) -> None:
    """Cash is the sum of its bills, and equity is deposits plus everything the bills explain plus unrealised PnL."""
    snapshot, bills = exchange.snapshot(ME), exchange.bills(ME)
    scale = START + sum(abs(bill.pnl) + abs(bill.cash_change) for bill in bills)
    assert snapshot.cash == pytest.approx(sum(bill.cash_change for bill in bills), abs=1e-9 * scale)
    assert bills[-1].cash_balance == pytest.approx(snapshot.cash, abs=1e-12 * scale)
    held = sum(s.position.isolated_margin for s in snapshot.positions)
    assert held == pytest.approx(sum(bill.margin_change for bill in bills), abs=1e-9 * scale)
    explained = math.fsum(b.pnl - b.fee + b.funding - b.penalty + b.overshoot for b in bills)
    assert snapshot.equity == pytest.approx(START + explained + snapshot.upl, abs=1e-9 * scale)


@THOROUGH
@given(STEPS)
def test_the_books_balance_after_every_step(steps: Steps) -> None:
    live(steps)


@THOROUGH
@given(STEPS)
def test_an_isolated_account_never_has_negative_cash_or_equity(steps: Steps) -> None:
    exchange = live(steps, MarginMode.ISOLATED)
    assert all(bill.cash_balance >= -1e-9 for bill in exchange.bills(ME))
    assert exchange.snapshot(ME).equity >= -1e-6


@THOROUGH
@given(STEPS)
def test_a_cross_account_ends_at_zero_or_above_once_it_is_flat(steps: Steps) -> None:
    exchange = live(steps, MarginMode.CROSS)
    snapshot = exchange.snapshot(ME)
    assert snapshot.equity >= -1e-6
    if not snapshot.positions:
        assert snapshot.cash >= 0.0


@THOROUGH
@given(STEPS)
def test_every_open_position_survived_its_bar_with_a_ratio_above_one(
    steps: Steps,
) -> None:
    for position in live(steps).snapshot(ME).positions:
        assert position.margin_ratio > 1.0 - 1e-9


@THOROUGH
@given(STEPS)
def test_positions_are_folds_over_the_fills_that_were_told(steps: Steps) -> None:
    exchange = live(steps, MarginMode.CROSS)
    for symbol in SYMBOLS:
        fills = [f for f in exchange.fills(ME) if f.symbol == symbol]
        folded = fold(Position(symbol, 1.0, MarginMode.CROSS, 10.0), fills)
        held = [s.position for s in exchange.snapshot(ME).positions if s.position.symbol == symbol]
        assert folded.lots == (held[0].lots if held else 0)
        if held:
            assert folded.avg_entry == pytest.approx(held[0].avg_entry, rel=1e-9)


@THOROUGH
@given(STEPS)
def test_nothing_trades_in_a_position_after_its_full_liquidation_inside_the_bar(
    steps: Steps,
) -> None:
    exchange = live(steps)
    dead: dict[tuple[str, int], int] = {}
    for k, fill in enumerate(exchange.fills(ME)):
        inside = fill.ts_ns % NS_PER_HOUR != 0
        if fill.exit_kind is ExitKind.LIQUIDATION and inside:
            dead[fill.symbol, fill.ts_ns] = k
    for event in exchange.drain_events():
        if isinstance(event, Liquidated) and not event.partial and event.ts_ns % NS_PER_HOUR:
            later = [f for f in exchange.fills(ME)[dead[event.symbol, event.ts_ns] + 1 :] if f.ts_ns == event.ts_ns]
            held_twice = {f.symbol for f in later}  # the other margin mode of the same symbol may still close
            assert all(f.exit_kind is not None for f in later if f.symbol == event.symbol), held_twice


@THOROUGH
@given(STEPS)
def test_an_isolated_position_never_costs_more_than_was_put_into_it(
    steps: Steps,
) -> None:
    """Only an opening takes cash: not funding, not a close, however far the market went.

    A close may put margin back all the same: funding that a gain paid for has left it below zero.
    """
    for bill in live(steps, MarginMode.ISOLATED).bills(ME):
        if bill.symbol and bill.kind is not BillKind.TRANSFER:
            opens = bill.kind is BillKind.TRADE and bill.pnl == 0.0
            assert opens or bill.cash_change >= 0.0, f"{bill.kind} took cash of an isolated position"


@THOROUGH
@given(STEPS)
def test_funding_is_paid_only_at_settlements(steps: Steps) -> None:
    for event in live(steps).drain_events():
        if isinstance(event, FundingPaid):
            row = steps[event.ts_ns // NS_PER_HOUR][SYMBOLS.index(event.symbol)]
            assert event.ts_ns % NS_PER_HOUR == 0
            assert event.rate == row.funding


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1).map(lambda seed: random_bar(np.random.default_rng(seed))),
    st.floats(0.0, 0.2),
    st.floats(0.0, 0.2),
    st.sampled_from(list(Side)),
    st.floats(0.01, 0.2),
    st.sampled_from(list(MarginMode)),
)
def test_a_wider_range_never_improves_a_result(
    bar: B, lower: float, higher: float, side: Side, distance: float, mode: MarginMode
) -> None:
    """No take-profit, no limit, no trailing stop: extremes can then only hurt, while open and close stay."""

    def equity(row: B) -> float:
        exchange = SimulatedExchange([listed("AUSDT")], PLAIN, 0)
        exchange.open_account(ME, 150.0, FEES)
        exchange.begin_bar(venue_bar(0, {"AUSDT": row}))
        stop = Protection(row.open * (1 - side.sign * distance))
        exchange.submit(ME, OrderRequest("", "AUSDT", side, 10, margin_mode=mode, protection=stop))
        exchange.end_bar()
        return exchange.snapshot(ME).equity

    plain = replace(bar, mark=None)
    wide = replace(plain, low=plain.low * (1 - lower), high=plain.high * (1 + higher))
    assert equity(wide) <= equity(plain) + 1e-9


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_a_saved_exchange_goes_on_exactly_as_the_one_that_was_not_saved(
    steps: Steps,
) -> None:
    exchange = live(steps)
    twin = SimulatedExchange.load_state(exchange.dump_state())
    following = venue_bar(len(steps), {"AUSDT": steps[0][0], "BUSDT": steps[0][1]})
    for either in (exchange, twin):
        either.begin_bar(following)
        either.end_bar()
    assert twin.fills(ME) == exchange.fills(ME)
    assert twin.snapshot(ME).equity == exchange.snapshot(ME).equity
    assert len(twin.bills(ME)) == len(exchange.bills(ME))


@settings(max_examples=60, deadline=None)
@given(st.floats(2.0, 50.0), st.floats(0.2, 10.0), st.sampled_from([1.0, -1.0]))
def test_the_snapshot_liquidation_price_is_where_the_position_dies(leverage: float, beyond: float, side: float) -> None:
    exchange = SimulatedExchange([listed("AUSDT")], PLAIN, 0)
    exchange.open_account(ME, 10_000.0, FEES)
    exchange.set_leverage(ME, "AUSDT", MarginMode.ISOLATED, leverage)
    exchange.begin_bar(venue_bar(0, {"AUSDT": B(100, 100, 100, 100)}))
    exchange.submit(ME, OrderRequest("", "AUSDT", Side.of(side), 10))
    exchange.end_bar()
    level = exchange.snapshot(ME).positions[0].liquidation_price
    safe = level * (1 + side * 1e-6)
    bar = B(100, max(100, safe), min(100, safe), 100)
    exchange.begin_bar(venue_bar(1, {"AUSDT": bar}))
    exchange.end_bar()
    assert len(exchange.snapshot(ME).positions) == 1
    dead = level * (1 - side * 1e-6 * beyond)
    exchange.begin_bar(venue_bar(2, {"AUSDT": B(100, max(100, dead), min(100, dead), 100)}))
    exchange.end_bar()
    assert not exchange.snapshot(ME).positions
    assert exchange.closed_positions(ME)[0].exit_kind is ExitKind.LIQUIDATION


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(Side)))
def test_two_consistent_halves_of_a_bar_are_never_worse_than_the_bar(seed: int, side: Side) -> None:
    """Finer data can only take pessimism away: the whole bar assumes the adverse extreme came first."""
    rng = np.random.default_rng(seed)
    path = 100.0 + np.concatenate([[0.0], rng.normal(0.0, 5.0, 4)])
    middle = int(rng.integers(1, 4))

    def bar(points: np.ndarray) -> B:
        return B(points[0], points.max(), points.min(), points[-1])

    stop, target = (100.0 * (1 - side.sign * sign * rng.uniform(0.02, 0.12)) for sign in (1, -1))

    def equity(rows: list[B]) -> float:
        exchange = SimulatedExchange([listed("AUSDT")], PLAIN, 0)
        exchange.open_account(ME, 150.0, FEES)
        exchange.begin_bar(venue_bar(0, {"AUSDT": B(100, 100, 100, 100)}))
        exchange.submit(ME, OrderRequest("", "AUSDT", side, 10, protection=Protection(stop, target)))
        exchange.end_bar()
        for k, row in enumerate(rows):
            exchange.begin_bar(venue_bar(k + 1, {"AUSDT": row}))
            exchange.end_bar()
        return exchange.snapshot(ME).equity

    assert equity([bar(path[: middle + 1]), bar(path[middle:])]) >= equity([bar(path)]) - 1e-9

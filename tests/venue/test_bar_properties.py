"""What must hold of one bar, whatever it is: pessimism grows with the range, shrinks with finer data, and death is final."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.order import MarginMode, OrderRequest, Protection, Side, TriggerSource
from crypto_qlib.venue.records import Filled, Liquidated
from crypto_qlib.venue.simulator import SimulatedExchange
from tests.venue.test_venue_properties import STEPS, live
from tests.venue.venue_tape import FEES, ME, PLAIN, B, listed, venue_bar

THOROUGH = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FLAT = B(100, 100, 100, 100)
COSTLY = replace(PLAIN, half_spread_bps=2.0, impact_y=0.8)


def held(
    seed: int, mode: MarginMode, *, trailing: bool = False, costs: bool = False, slack: float = 1.0
) -> tuple[SimulatedExchange, dict[str, Side]]:
    """Two positions carried out of a flat bar, each with a random stop and target; leverage 10, ``slack`` x their margin."""
    rng = np.random.default_rng(seed)
    exchange = SimulatedExchange([listed("AUSDT"), listed("BUSDT")], COSTLY if costs else PLAIN, 0)
    exchange.open_account(ME, 205.0 * slack, FEES)
    exchange.begin_bar(venue_bar(0, {"AUSDT": FLAT, "BUSDT": FLAT}))
    sides = {}
    for symbol in ("AUSDT", "BUSDT"):
        side = Side.BUY if rng.random() < 0.5 else Side.SELL
        stop, target = (100.0 * (1 - side.sign * sign * rng.uniform(0.01, 0.2)) for sign in (1, -1))
        source = TriggerSource.MARK if rng.random() < 0.3 else TriggerSource.LAST
        guard = Protection(round(stop, 2), round(target, 2), source, 0.05 if trailing else None)
        exchange.submit(ME, OrderRequest("", symbol, side, 10, margin_mode=mode, protection=guard))
        sides[symbol] = side
    exchange.end_bar()
    return exchange, sides


def random_row(rng: np.random.Generator, *, basis: bool) -> B:
    points = 100.0 + rng.normal(0.0, 5.0, 4)
    row = B(points[0], points.max(), points.min(), points[1], None, math.nan, 400.0, 1e6, 300.0)
    if not basis:
        return row
    off = rng.normal(0.0, 1.0)
    return replace(row, mark=(row.open + off, row.high + off, row.low + off, row.close + off))


def widened(row: B, side: Side, by: float) -> B:
    """The same bar with its adverse extreme further out by ``by``, last and mark alike."""
    mark = row.mark or (row.open, row.high, row.low, row.close)
    if side is Side.BUY:
        return replace(row, low=row.low - by, mark=(mark[0], mark[1], mark[2] - by, mark[3]))
    return replace(row, high=row.high + by, mark=(mark[0], mark[1] + by, mark[2], mark[3]))


def equity_after(exchange: SimulatedExchange, rows: list[dict[str, B]]) -> float:
    for k, row in enumerate(rows):
        exchange.begin_bar(venue_bar(k + 1, row))
        exchange.end_bar()
    return exchange.snapshot(ME).equity


@THOROUGH
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(list(MarginMode)), st.floats(0.0, 20.0), st.booleans(), st.booleans(),
    st.sampled_from([1.0, 1.5]),
)  # fmt: skip
def test_a_wider_adverse_range_never_improves_the_bar(
    seed: int, mode: MarginMode, by: float, basis: bool, costs: bool, slack: float
) -> None:
    rng = np.random.default_rng(seed + 1)
    rows = {symbol: random_row(rng, basis=basis) for symbol in ("AUSDT", "BUSDT")}
    plain, sides = held(seed, mode, costs=costs, slack=slack)
    wide, _ = held(seed, mode, costs=costs, slack=slack)
    far = {symbol: widened(row, sides[symbol], by) for symbol, row in rows.items()}
    # A stop fills at last, an open position is valued at mark: where they differ, so may the two by that much.
    off = sum(10 * abs(row.mark[3] - row.close) for row in rows.values() if row.mark)
    assert equity_after(wide, [far]) <= equity_after(plain, [rows]) + off + 1e-9


@THOROUGH
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(MarginMode)), st.booleans(), st.sampled_from([1.0, 1.5, 4.0]))
def test_two_consistent_halves_are_never_worse_than_the_whole_bar(
    seed: int, mode: MarginMode, basis: bool, slack: float
) -> None:
    """Last and mark differ by a constant, so that both halves and the whole tell the same of their distance."""
    rng = np.random.default_rng(seed + 2)
    whole, halves = {}, ({}, {})
    for symbol in ("AUSDT", "BUSDT"):
        path = 100.0 + np.concatenate([[0.0], rng.normal(0.0, 5.0, 5)])
        off = rng.normal(0.0, 1.0) if basis else 0.0

        def bar(points: np.ndarray, off: float = off) -> B:
            o, h, lo, c = points[0], points.max(), points.min(), points[-1]
            return B(o, h, lo, c, (o + off, h + off, lo + off, c + off))

        whole[symbol], halves[0][symbol], halves[1][symbol] = bar(path), bar(path[:4]), bar(path[3:])
    coarse, _ = held(seed, mode, slack=slack)
    fine, _ = held(seed, mode, slack=slack)
    assert equity_after(fine, list(halves)) >= equity_after(coarse, [whole]) - 1e-9


@THOROUGH
@given(STEPS)
def test_a_position_liquidated_inside_a_bar_trades_no_more_in_it(steps: list[tuple[B, B, list[OrderRequest], bool]]) -> None:
    dead: set[tuple[str, MarginMode, int]] = set()
    for event in live(steps).drain_events():
        if isinstance(event, Filled):
            bar = event.fill.ts_ns // NS_PER_HOUR
            assert (event.fill.symbol, event.margin_mode, bar) not in dead
        elif isinstance(event, Liquidated) and not event.partial and event.ts_ns % NS_PER_HOUR:
            dead.add((event.symbol, event.margin_mode, event.ts_ns // NS_PER_HOUR))


@THOROUGH
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(MarginMode)))
def test_no_outcome_of_a_bar_is_better_than_the_best_price_in_it(seed: int, mode: MarginMode) -> None:
    """Equity after the bar is at most what a perfect exit at its favourable extreme (or gap) would have given."""
    rng = np.random.default_rng(seed + 3)
    rows = {symbol: random_row(rng, basis=False) for symbol in ("AUSDT", "BUSDT")}
    exchange, sides = held(seed, mode, trailing=bool(rng.random() < 0.5), slack=1.5)
    before = exchange.snapshot(ME).equity
    best = sum(10 * max(sides[s].sign * (p - 100.0) for p in (rows[s].high, rows[s].low)) for s in rows)
    assert equity_after(exchange, [rows]) <= before + best + 1e-9

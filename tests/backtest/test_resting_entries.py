"""Entries that wait at their limit, fees that change, deleveraging: tapes worked by hand.

One coin a lot, 1,000 USDT, ten lots at 10x; taker fee 0.1 %, maker fee 0.02 %; a buy waits 1 % behind the close of 100, at 99.
"""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crypto_qlib.backtest.bookkeeping import open_position
from crypto_qlib.backtest.desk import Desk, Execution
from crypto_qlib.backtest.engine import new_desk, run_backtest
from crypto_qlib.backtest.inputs import prepare
from crypto_qlib.backtest.resting_entries import fits_margin, relieve
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.fees import FeeHistory
from crypto_qlib.core.order import ExitKind, Protection
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import BY_LIMIT, POST_ONLY, rules_record
from tests.backtest.engine_tape import play
from tests.backtest.test_engine_tapes import BUY_A, PAIR, Own, assert_ends_as_worked, kind_of
from tests.venue.test_golden_tapes import protect
from tests.venue.venue_tape import FLAT, ME, B, Tape, order, run

RESTS = {"entry_order": POST_ONLY, "entry_offset": 0.01, "decide_every_bars": 3, "entry_bars": 3}
TAKES = {**RESTS, "entry_order": BY_LIMIT}
THROUGH = B(100, 100, 98, 99.5)
TOUCH = B(100, 100, 99, 100)
AT_98 = B(98, 98, 98, 98)
TRIO = {"AUSDT": FLAT, "BUSDT": FLAT, "CUSDT": FLAT}
FILLED = (1, "AUSDT", 10, 99.0, None)

TAPES = [
    Own("a buy rests and fills at its limit as a maker", "bar 1 trades a tick through 99: 1000 - 99 - 0.198; 5 above it at the close",
        [TOUCH, B(100, 100, 98.99, 99.5)], BUY_A, RESTS, [FILLED], 900.802, 1004.802),
    Own("a sell rests above the market", "1 % above 100; bar 1 reaches 101.01: 1000 - 101 - 0.202",
        [FLAT, B(100, 101.01, 100, 101)], {0: {"AUSDT": -0.5}}, RESTS, [(1, "AUSDT", -10, 101.0, None)], 898.798, 999.798),
    Own("a touch is no fill, and the order ends with its time", "99 is touched thrice; bar 3 trades through too late",
        [TOUCH, TOUCH, TOUCH, THROUGH], BUY_A, RESTS, [], 1000.0, 1000.0, 0, 1),
    Own("an order may end before the next decision", "one bar to wait: bar 1 is too late",
        [TOUCH, THROUGH], BUY_A, {**RESTS, "entry_bars": 1}, [], 1000.0, 1000.0, 0, 1),
    Own("an open below the limit fills at the limit", "98 at the open, booked at 99 all the same: 10 below at the close",
        [FLAT, AT_98], BUY_A, RESTS, [FILLED], 900.802, 989.802),
    Own("a post-only order that would take is refused", "the market opens at 98.5", [B(98.5, 98.5, 98.5, 98.5)], BUY_A, RESTS, [], 1000.0, 1000.0, 1),
    Own("a post-only order at the very price would take too", "the market opens at 99", [B(99, 99, 99, 99)], BUY_A, RESTS, [], 1000.0, 1000.0, 1),
    Own("a limit order takes what its limit allows", "98.5 at the open, as a taker: 1000 - 98.5 - 0.985",
        [B(98.5, 98.5, 98.5, 98.5)], BUY_A, TAKES, [(0, "AUSDT", 10, 98.5, None)], 900.515, 999.015),
    Own("a limit order rests where the market is beyond it", "100 at the open, 98 inside: a maker at 99",
        [THROUGH], BUY_A, TAKES, [(0, "AUSDT", 10, 99.0, None)], 900.802, 1004.802),
    Own("parts fill as volume allows and make one position", "5 % of 80 coins: 4 lots; the other 6 in bar 1",
        [B(100, 100, 98, 100, volume=80), B(100, 100, 98, 100, volume=200)], BUY_A, RESTS,
        [(0, "AUSDT", 4, 99.0, None), (1, "AUSDT", 6, 99.0, None)], 900.802, 1009.802),
    Own("parts at other prices average the entry", "4 lots taken at 98.5, 4 and 2 made at 99: 98.8; fees 0.394 + 0.0792 + 0.0396",
        [B(98.5, 99.5, 98, 99, volume=80), B(99.5, 100, 98.5, 100, volume=200)], BUY_A, TAKES,
        [(0, "AUSDT", 4, 98.5, None), (0, "AUSDT", 4, 99.0, None), (1, "AUSDT", 2, 99.0, None)], 900.6872, 1011.4872),
    Own("the adverse extreme comes after the fill, and ends what is left of the order",
        "4 lots at 99, out at 94.05: -19.8 - 0.0792 - 0.3762; the open of bar 1 at 95 fills nothing more",
        [B(100, 100, 94, 95, volume=80), B(95, 100, 95, 100)], BUY_A, {**RESTS, "stop_atr": 5.0},
        [(0, "AUSDT", 4, 99.0, None), (0, "AUSDT", -4, 94.05, ExitKind.STOP)], 979.7446, 979.7446),
    Own("no target in the bar of an addition", "99.99 lies within bar 1, in which 2 lots were added: all ten stay, 0.7 above 98.8",
        [B(98.5, 99.5, 98, 99, volume=80), B(99.5, 100, 98.5, 99.5, volume=200)], BUY_A, {**TAKES, "take_profit_atr": 1.0},
        [(0, "AUSDT", 4, 98.5, None), (0, "AUSDT", 4, 99.0, None), (1, "AUSDT", 2, 99.0, None)], 900.6872, 1006.4872),
    Own("no target in the bar of the fill", "99.99 lies within bar 0; the open of bar 1 takes it: 10 - 0.198 - 1",
        [THROUGH, FLAT], BUY_A, {**RESTS, "take_profit_atr": 1.0},
        [(0, "AUSDT", 10, 99.0, None), (1, "AUSDT", -10, 100.0, ExitKind.TAKE_PROFIT)], 1008.802, 1008.802),
    Own("a waiting order takes a slot", "one slot: the better name waits, the other is not sent",
        [PAIR, {"AUSDT": FLAT, "BUSDT": THROUGH}], {0: {"AUSDT": 0.5, "BUSDT": 0.4}}, {**RESTS, "max_open": 1}, [], 1000.0, 1000.0),
    Own("a fill at the instant of a settlement pays", "at the open of bar 1: 10 x 98 x 1 % out of the margin",
        [FLAT, B(98, 98, 98, 98, funding=0.01)], BUY_A, RESTS, [FILLED], 900.802, 980.002),
    Own("a fill after the settlement does not", "inside bar 1, whose settlement was at its open",
        [FLAT, B(100, 100, 98, 98, funding=0.01)], BUY_A, RESTS, [FILLED], 900.802, 989.802),
    Own("a rebate is money received", "maker fee -0.01 %: 1000 - 99 + 0.099",
        [FLAT, THROUGH], BUY_A, {**RESTS, "maker_fee": -0.0001}, [FILLED], 901.099, 1005.099),
    Own("a liquidation cancels what is left of the order",
        "4 lots at 99 and 10x die at 89.1 / 0.989 = 90.09: margin 39.6 and fee 0.0792 are gone; bar 1 opens at 95 and fills nothing",
        [B(100, 100, 90, 95, volume=80), B(95, 95, 95, 95)], BUY_A, RESTS,
        [(0, "AUSDT", 4, 99.0, None), (0, "AUSDT", -4, 89.1 / 0.989, ExitKind.LIQUIDATION)], 960.3208, 960.3208),
    Own("a liquidation at the open cancels the order before that open can fill it",
        "4 lots at 99; bar 1 opens at 90, below 90.09: they are taken over, and the other 6 are not bought at the same open",
        [B(100, 100, 98, 100, volume=80), B(90, 95, 90, 95)], BUY_A, RESTS,
        [(0, "AUSDT", 4, 99.0, None), (1, "AUSDT", -4, 90.0, ExitKind.LIQUIDATION)], 960.3208, 960.3208),
    Own("an addition does not loosen a trailing stop",
        "4 lots at 99 trail 5 % behind 104; the other 6 at 99 in bar 1 leave it at 98.8, where bar 2 closes all: 1000 - 0.198 - 2 - 0.988",
        [B(100, 104, 98, 103, volume=80), B(103, 103, 98.9, 99.5, volume=200), B(99.5, 99.5, 98, 98)], BUY_A, {**RESTS, "trailing_atr": 5.0},
        [(0, "AUSDT", 4, 99.0, None), (1, "AUSDT", 6, 99.0, None), (2, "AUSDT", -10, 98.8, ExitKind.TRAILING)], 996.814, 996.814),
    Own("an order takes its slot when it is sent, not when it fills",
        "two slots: A is to make room for B but has no bar, C waits in the other; B is refused, and not bought at 99 in bar 4",
        [TRIO, {**TRIO, "AUSDT": THROUGH}, TRIO, {"BUSDT": FLAT, "CUSDT": FLAT}, {**TRIO, "BUSDT": THROUGH}],
        {0: {"AUSDT": 0.3}, 3: {"AUSDT": 0.1, "BUSDT": 0.6, "CUSDT": 0.7}}, {**RESTS, "max_open": 2, "replace_margin": 0.1},
        [FILLED], 900.802, 1009.802, 1),
]  # fmt: skip


@pytest.mark.parametrize("tape", TAPES, ids=[tape.name.replace(" ", "_") for tape in TAPES])
def test_a_tape_of_resting_entries(tape: Own) -> None:
    assert_ends_as_worked(tape)


def test_a_position_pays_the_rates_in_force_at_each_fill() -> None:
    """Bought at 0.1 %, sold two bars later at 0.05 %: 1000 - 1 + 20 - 0.51."""
    fees = FeeHistory([FeeSchedule(taker=0.001), FeeSchedule(taker=0.0005, valid_from_ns=NS_PER_HOUR)])
    inputs = play([FLAT, FLAT, B(102, 102, 102, 102)], BUY_A, 1_000.0, holding_bars=2)
    assert run_backtest(replace(inputs, fees=fees)).final_equity == pytest.approx(1_018.49)


@pytest.mark.parametrize(("taker", "survives"), [(0.001, True), (0.02, False)])
def test_a_new_taker_rate_moves_the_liquidation_mark_of_open_positions(taker: float, survives: bool) -> None:
    """90 / (1 - 0.01 - f): 91.00 at 0.1 %, 92.78 at 2 %; the mark falls to 92."""
    fees = FeeHistory([FeeSchedule(taker=0.001), FeeSchedule(taker=taker, valid_from_ns=NS_PER_HOUR)])
    inputs = play([FLAT, B(100, 100, 92, 100)], BUY_A, 1_000.0)
    result = run_backtest(replace(inputs, fees=fees))
    assert [kind_of(f["kind"]) for f in result.fills] == ([None] if survives else [None, ExitKind.LIQUIDATION])


@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
@pytest.mark.parametrize(("move", "kinds"), [(0.05, [None, ExitKind.ADL]), (0.07, [None])])
def test_the_stress_switch_deleverages_at_the_mark_close(move: float, kinds: list[ExitKind | None], cross: bool) -> None:
    """The mark rises 6 % within bar 1 and closes at 105: 1000 - 1 + 50 - 1.05 where it sets the switch off."""
    inputs = play([FLAT, B(100, 106, 100, 105)], BUY_A, 1_000.0, cross=cross, stop_atr=5.0)
    result = run_backtest(replace(inputs, execution=Execution(adl_stress_move=move)))
    assert [kind_of(f["kind"]) for f in result.fills] == kinds
    assert result.final_equity == pytest.approx(1_047.95 if len(kinds) > 1 else 1_049.0)


@pytest.mark.parametrize(
    "last", [B(102, 102, 102, 102), B(93, 93, 93, 93)], ids=["its time is up", "the stop was passed first"]
)
def test_a_planned_time_exit_and_the_exchanges_own_give_the_same_fill(last: B) -> None:
    """Two bars held: the engine plans the exit, the exchange closes by ``close_at_ns``; a passed stop comes before either."""
    bars = [FLAT, FLAT, last]
    guard = Protection(95.0, close_at_ns=2 * NS_PER_HOUR)
    exchange = run(Tape("", "", bars, {0: [order(10, stop=95.0), protect(guard)]}, []))
    venue = [(f.ts_ns // NS_PER_HOUR, f.signed_lots, f.price, f.exit_kind) for f in exchange.fills(ME)]
    fills = run_backtest(play(bars, BUY_A, 1_000.0, holding_bars=2, stop_atr=5.0)).fills
    assert [(int(f["bar"]), int(f["lots"]), float(f["price"]), kind_of(f["kind"])) for f in fills] == venue


def test_a_position_at_a_loss_is_not_deleveraged_though_the_bar_moved_its_way() -> None:
    """Bought at 100; bar 2 rises from 94 to 100 and closes at 98: the winning side is whoever has a profit."""
    inputs = play([FLAT, B(100, 100, 94, 94), B(94, 100, 94, 98)], BUY_A, 1_000.0)
    result = run_backtest(replace(inputs, execution=Execution(adl_stress_move=0.05)))
    assert [kind_of(f["kind"]) for f in result.fills] == [None]


def resting_desk(cash: float, *, cross: bool) -> tuple[Desk, Any, StateArrays]:
    """Return an account with a waiting buy of ten lots at 99 and 10x in A: 99 of margin and 0.99 of fee set aside."""
    run = prepare(play([PAIR], BUY_A, 1_000.0, cross=cross))
    desk = new_desk(2, 3, 100, cash)
    desk.resting["lots"][0], desk.resting["limit"][0], desk.resting["leverage"][0] = 10, 99.0, 10.0
    desk.totals["n_resting"] = 1
    return desk, rules_record(run.rules), run.state


@pytest.mark.parametrize("cross", [False, True], ids=["isolated", "cross"])
@pytest.mark.parametrize(
    ("cash", "column", "fits"),
    [
        (200.98, 1, False),  # 101 for ten lots of B at 100, and 99.99 for what waits
        (200.99, 1, True),
        (101.0, 0, True),  # an order does not stand in its own way
        (100.99, 0, False),
    ],
)
def test_a_waiting_entry_sets_its_margin_and_fee_aside(cash: float, column: int, fits: bool, cross: bool) -> None:
    desk, rules, state = resting_desk(cash, cross=cross)
    assert fits_margin(rules, state, desk, column, 10, 10.0, 100.0) is fits


def test_orders_go_before_a_cross_account_does() -> None:
    """Ten lots of B from 100 on 90 USDT, with 0.99 of fee frozen: the ratio is 1 where 88.01 + 10 m - 1000 = 0.11 m.

    That is at m = 911.99 / 9.89; the account itself would live on to 911 / 9.89.
    """
    desk, rules, state = resting_desk(90.0, cross=True)
    open_position(
        rules, state, 0, desk, 0, 0, 1, 1.0, 10, 100.0, 100.0, 100.0, 10.0, math.nan, math.nan, math.nan, 0, 0.5, False
    )
    edge = 911.99 / 9.89
    for beyond, expected in ((1e-6, 1), (-1e-6, 0)):
        desk.totals["n_resting"] = 1
        relieve(rules, state, desk, np.array([99.0, edge + beyond]))
        assert desk.totals["n_resting"][0] == expected

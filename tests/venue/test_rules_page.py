"""The numbered rules of the exchange, each by the tape or test that shows it: sections 4, 5, 7, 11 and 12 of OKX's rules.

Most are among the golden tapes; those that need an account, a fee schedule or a snapshot to be seen are worked here.
"""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.fees import FeeHistory
from crypto_qlib.core.order import ExitKind, MarginMode, OrderKind, OrderStatus, Protection
from crypto_qlib.venue.records import Liquidated, RefusalCode
from crypto_qlib.venue.simulator import SimulatedExchange
from tests.venue.test_golden_tapes import ALL, BOUGHT, CROSS, CUT, LIMIT, LIQ, LONG_LIQ, TIERED, protect
from tests.venue.venue_tape import FLAT, ME, NAN, PLAIN, B, Tape, listed, order, run, venue_bar

HIGH = replace(PLAIN, default_leverage=25.0)
AB = {"AUSDT": FLAT, "BUSDT": FLAT}
GONE = B(NAN, NAN, NAN, NAN)


def fall(price: float) -> B:
    return B(price, price, price, price)


NEW = [
    Tape("a gap below the lowest tier's need takes a tier-3 position whole", "equity 2500 - 2250 = 250; tier 1 would need 22750 x 0.011 = 250.25",
         [FLAT, fall(91.0)], {0: [order(250)]}, [(0, 250, 100.0, None), (1, -250, 91.0, LIQ)], cash=7475.0, equity=7475.0, **TIERED),
    Tape("a gap above it is cut first", "equity 625 is below tier 3's 716.875, above tier 1's 254.375: 150 leave, 100 stay",
         [FLAT, fall(92.5)], {0: [order(250)]}, [(0, 250, 100.0, None), (1, -150, 92.5, CUT)], cash=7475.0, **TIERED),
    Tape("a cross account below the lowest tiers' need goes whole", "2475 - 2250 = 225 is below 250.25",
         [FLAT, fall(91.0)], {0: [order(250, mode=CROSS)]}, [(0, 250, 100.0, None), (1, -250, 91.0, LIQ)], start=2500.0,
         cash=0.0, config=replace(PLAIN, default_leverage=16.0)),
    Tape("funding does not wait for candles", "no price at the settlement: 10 x 100 x 0.001 at the last known mark",
         [FLAT, replace(GONE, funding=0.001), FLAT], {0: [order(10)]}, [BOUGHT], cash=899.0, equity=998.0),
    Tape("cross funding does not wait for candles", "the same 1 out of cash",
         [FLAT, replace(GONE, funding=0.001), FLAT], {0: [order(10, mode=CROSS)]}, [BOUGHT], cash=998.0, equity=998.0),
    Tape("a position whose time is up leaves at the open", "protected until the open of bar 2: 899 + 100 + 10 - 1.01",
         [FLAT, FLAT, fall(101.0)], {0: [order(10), protect(Protection(close_at_ns=2 * NS_PER_HOUR))]},
         [BOUGHT, (2, -10, 101.0, ExitKind.TIME)], cash=899 + 100 + 10 - 1.01),
    Tape("a time exit waits for a price", "bar 2 is missing, so bar 3",
         [FLAT, FLAT, GONE, fall(101.0)], {0: [order(10), protect(Protection(close_at_ns=2 * NS_PER_HOUR))]},
         [BOUGHT, (3, -10, 101.0, ExitKind.TIME)], cash=899 + 100 + 10 - 1.01),
    Tape("a stop that gaps beyond a cross account leaves nothing, not a debt", "mark only to 92, last to 80: 99 - 200 - 0.8",
         [FLAT, B(80, 93, 80, 92, mark=(92, 93, 92, 92))], {0: [order(10, stop=95, mode=CROSS)]},
         [BOUGHT, (1, -10, 80.0, ExitKind.STOP)], start=100.0, cash=0.0, equity=0.0, config=HIGH),
    Tape("a gap beyond liquidation comes before the time exit", "mark opens at 85",
         [FLAT, fall(85.0)], {0: [order(10), protect(Protection(close_at_ns=NS_PER_HOUR))]}, [BOUGHT, (1, -10, 85.0, LIQ)], cash=899.0),
]  # fmt: skip


@pytest.mark.parametrize("tape", NEW, ids=lambda tape: tape.name.replace(" ", "_"))
def test_tape(tape: Tape) -> None:
    exchange = run(tape)
    fills = [(f.ts_ns // NS_PER_HOUR, f.signed_lots, f.exit_kind) for f in exchange.fills(ME)]
    assert fills == [(bar, lots, kind) for bar, lots, _, kind in tape.fills], tape.reason
    assert [f.price for f in exchange.fills(ME)] == pytest.approx([p for _, _, p, _ in tape.fills], rel=1e-12)
    snapshot = exchange.snapshot(ME)
    for got, expected in ((snapshot.cash, tape.cash), (snapshot.equity, tape.equity)):
        if not math.isnan(expected):
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-9), tape.reason


# -- 5.1: open orders go before a position does ----------------------------------------------------------------------


def cross_with_a_resting_order(resting: object) -> SimulatedExchange:
    """Ten coins cross at 25x out of 100 USDT (cash 99 after the fee), one order resting in the other symbol."""
    exchange = SimulatedExchange([listed("AUSDT"), listed("BUSDT")], HIGH, 0)
    exchange.open_account(ME, 100.0, FeeSchedule(maker=0.0002, taker=0.001))
    exchange.set_leverage(ME, "BUSDT", MarginMode.ISOLATED, 10.0)
    exchange.begin_bar(venue_bar(0, AB))
    order(10, mode=CROSS)(exchange)
    resting(exchange)  # type: ignore[operator]
    exchange.end_bar()
    return exchange


def test_a_cross_ratio_of_one_less_what_orders_froze_cancels_them_and_spares_the_position() -> None:
    exchange = cross_with_a_resting_order(order(5, symbol="BUSDT", kind=LIMIT, price=99.0, client_id="rest"))
    # 5 x 99 / 10 + 0.495 = 49.995 frozen; 99 + 0 against 1000 x 0.011 = 11
    assert exchange.snapshot(ME).margin_ratio == pytest.approx((99.0 - 49.995) / 11.0)
    exchange.begin_bar(venue_bar(1, AB | {"AUSDT": fall(95.0)}))  # 99 - 50 - 49.995 < 0, but 49 is far above 10.45
    (gone,) = [o for o in exchange.orders(ME) if o.client_order_id == "rest"]
    assert (gone.status, gone.refusal.code) == (OrderStatus.CANCELED, RefusalCode.LIQUIDATED)  # type: ignore[union-attr]
    assert exchange.snapshot(ME).margin_ratio == pytest.approx(49.0 / 10.45)
    assert len(exchange.snapshot(ME).positions) == 1


def test_a_cross_order_freezes_its_fee_alone() -> None:
    exchange = cross_with_a_resting_order(order(5, symbol="BUSDT", kind=LIMIT, price=99.0, mode=CROSS))
    assert exchange.snapshot(ME).margin_ratio == pytest.approx((99.0 - 0.495) / 11.0)
    exchange.begin_bar(venue_bar(1, AB | {"AUSDT": fall(95.0)}))
    assert len(exchange.open_orders(ME)) == 1


def test_orders_are_cancelled_inside_the_bar_too() -> None:
    exchange = cross_with_a_resting_order(order(5, symbol="BUSDT", kind=LIMIT, price=99.0))
    exchange.begin_bar(venue_bar(1, AB | {"AUSDT": B(100, 100, 95, 100)}))
    assert len(exchange.open_orders(ME)) == 1
    exchange.end_bar()
    assert not exchange.open_orders(ME)
    assert len(exchange.snapshot(ME).positions) == 1


# -- 5.4 and 5.5: what a liquidation books ---------------------------------------------------------------------------


def test_a_full_liquidation_books_pnl_taker_fee_and_the_maintenance_margin_at_the_trigger_mark() -> None:
    exchange = run(next(t for t in ALL if t.name == "a liquidation nearer than the stop wins"))
    (event,) = [e for e in exchange.drain_events() if isinstance(e, Liquidated)]
    assert event.mark == pytest.approx(LONG_LIQ)
    assert event.fee == pytest.approx(0.001 * 10 * LONG_LIQ)
    assert event.penalty == pytest.approx(0.01 * 10 * LONG_LIQ)
    assert event.pnl - event.fee - event.penalty == pytest.approx(-100.0)  # the whole margin, nothing given back


# -- 4: prices a position shows --------------------------------------------------------------------------------------


def test_a_cross_position_shows_where_the_account_dies_and_where_it_is_worth_nothing() -> None:
    exchange = SimulatedExchange([listed("AUSDT"), listed("BUSDT")], HIGH, 0)
    exchange.open_account(ME, 100.0, FeeSchedule(maker=0.0002, taker=0.001))
    exchange.begin_bar(venue_bar(0, AB))
    order(10, mode=CROSS)(exchange)
    order(-5, symbol="BUSDT", mode=CROSS)(exchange)
    a, b = sorted(exchange.snapshot(ME).positions, key=lambda s: s.position.symbol)
    # equity 98.5; B needs 500 x 0.011 = 5.5: 98.5 + 10 (m - 100) = 10 m x 0.011 + 5.5
    assert a.liquidation_price == pytest.approx((1000 - 98.5 + 5.5) / (10 * 0.989))
    assert a.reported_liquidation_price == a.liquidation_price  # no tick in cross
    # closing B costs 0.5: 98.5 + 10 (m - 100) = 10 m x 0.001 + 0.5
    assert a.bankruptcy_price == pytest.approx((1000 - 98.5 + 0.5) / (10 * 0.999))
    assert b.bankruptcy_price == pytest.approx((500 + 98.5 - 1.0) / (5 * 1.001))


def test_an_isolated_position_is_shown_one_tick_early_and_triggers_at_the_exact_price() -> None:
    exchange = run(Tape("", "", [AB], {0: [order(10), order(-10, symbol="BUSDT")]}, []))
    a, b = sorted(exchange.snapshot(ME).positions, key=lambda s: s.position.symbol)
    assert a.reported_liquidation_price - a.liquidation_price == pytest.approx(0.01)
    assert b.reported_liquidation_price - b.liquidation_price == pytest.approx(-0.01)
    assert a.bankruptcy_price == pytest.approx(900 / 9.99)


# -- 8: fees by date and level ---------------------------------------------------------------------------------------


def test_a_fill_pays_the_rates_of_its_day() -> None:
    history = FeeHistory([FeeSchedule(0.0002, 0.001), FeeSchedule(0.0, 0.0004, valid_from_ns=NS_PER_HOUR)])
    exchange = SimulatedExchange([listed("AUSDT")], PLAIN, 0)
    exchange.open_account(ME, 1000.0, history)
    for k, signed in enumerate((10, -10)):
        exchange.begin_bar(venue_bar(k, {"AUSDT": FLAT}))
        order(signed)(exchange)
        exchange.end_bar()
    assert [f.fee for f in exchange.fills(ME)] == pytest.approx([1.0, 0.4])


def test_a_new_level_changes_fees_and_margin_ratio_from_now_on() -> None:
    exchange = run(Tape("", "", [FLAT], {0: [order(10)]}, []))
    exchange.set_fees(ME, FeeSchedule(-0.0001, 0.0005))
    assert exchange.snapshot(ME).positions[0].margin_ratio == pytest.approx(100.0 / (1000 * 0.0105))
    exchange.begin_bar(venue_bar(1, {"AUSDT": B(100, 103, 100, 100)}))
    order(-10, kind=OrderKind.POST_ONLY, price=102.0, reduce_only=True)(exchange)
    exchange.end_bar()
    assert exchange.fills(ME)[-1].fee == pytest.approx(-0.0001 * 1020)  # a rebate


SHOWN_BY = {
    "2 a partial close releases margin pro rata": "test_margin_properties: reducing never moves the average entry",
    "3 the whole position takes its tier's rate": "the whole position takes its tier's rate",
    "3 tiers hold from their day": "a new tier table holds from its day",
    "4 trigger on mark, not last": "liquidation looks at the mark even if last is far away",
    "5.2 tier by tier": "a tier-3 position is cut by two tiers first",
    "5.2 re-tested after a cut": "after the cut the rest can still die",
    "5.3 tiers 1 and 2 go whole": "an entry can be liquidated in its own bar",
    "5.5 the overshoot is the insurance fund's": "an isolated liquidation costs the margin and nothing else",
    "5.6 deleveraging is a switch": "the deleveraging switch closes the winner at the mark close",
    "5 cross is floored at zero": "a cross account dies at a gap of the mark open",
    "7 longs pay": "a long pays a positive rate",
    "7 notional at mark": "funding counts the mark, not the last price",
    "7 capped": "funding never takes the ratio below one",
    "7 isolated from margin": "a long pays a positive rate",
    "7 cross from cash": "funding of a cross position moves cash",
    "7 intervals change": "only bars with a settlement settle",
    "7 a fill at the instant pays": "an entry at the settlement instant is charged",
    "11.3a funding first": "funding comes before the gap test",
    "11.3a no credit at the instant": "an entry at the settlement instant is not credited",
    "11.3b gap test before stops": "a mark gap liquidates before the stop",
    "11.3c passed levels fill at the open": "a gapped stop fills at the open",
    "11.3d orders fill at open or limit": "a limit the open gaps through fills at the limit",
    "11.3f the nearer level": "a stop nearer than liquidation saves the position",
    "11.3f cannot be told: liquidation": "liquidation where stop and mark cannot be told apart",
    "11.3g liquidation beats take-profit": "liquidation beats take-profit",
    "11.3g stop beats take-profit": "stop beats take-profit",
    "11.3h trailing after the adverse extreme": "a trailing stop does not use this bar's high before its low",
    "11.4 the rest of the bar after an entry": "an entry inside the bar lives through the rest of it",
    "11.4 no take-profit in the entry bar": "no take-profit in the entry bar",
    "11.5 trade-through": "a touch does not fill a limit",
    "11.7 joint adverse extremes": "a cross account dies at the joint adverse extreme",
    "12 half spread": "half the spread is paid on entry",
    "12 square root": "four times the size pays twice the impact",
    "12 stops pay twice the spread": "a stop pays the spread twice",
}  # fmt: skip


@pytest.mark.parametrize("rule", SHOWN_BY)
def test_every_rule_names_a_tape_that_exists(rule: str) -> None:
    shown = SHOWN_BY[rule]
    assert shown.startswith("test_") or shown in {tape.name for tape in ALL}

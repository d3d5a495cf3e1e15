"""What the exchange refuses, and that each refusal names its rule and its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import InstrumentState
from crypto_qlib.core.order import MarginMode, OrderKind, OrderStatus, Protection
from crypto_qlib.venue.records import OrderUpdated, RefusalCode
from crypto_qlib.venue.simulator import SimulatedExchange
from crypto_qlib.venue.venue_config import VenueConfig
from tests.venue.venue_tape import FLAT, ME, PLAIN, B, Tape, instrument, listed, order, run, venue_bar

ISOLATED, CROSS = MarginMode.ISOLATED, MarginMode.CROSS
Code = RefusalCode


def market(cash: float = 1000.0, config: VenueConfig = PLAIN, **changes: object) -> SimulatedExchange:
    """Return an exchange with AUSDT at 100, its bar open."""
    exchange = SimulatedExchange([listed("AUSDT", **changes)], config, 0)
    exchange.open_account(ME, cash, FeeSchedule(maker=0.0002, taker=0.001))
    exchange.begin_bar(venue_bar(0, {"AUSDT": FLAT}))
    return exchange


@pytest.mark.parametrize(
    ("action", "changes", "code", "limit", "actual"),
    [
        (order(1, symbol="XUSDT"), {}, Code.UNKNOWN_INSTRUMENT, None, None),
        (order(1), {"listed_ns": NS_PER_HOUR}, Code.NOT_LISTED, None, None),
        (order(1), {"delisted_ns": 0}, Code.NOT_LISTED, None, None),
        (order(1), {"state": InstrumentState.SUSPEND}, Code.SUSPENDED, None, None),
        (order(1, client_id="a-b"), {}, Code.BAD_CLIENT_ORDER_ID, None, None),
        (order(1, client_id="a" * 33), {}, Code.BAD_CLIENT_ORDER_ID, None, None),
        (order(1), {"min_size": 2.0}, Code.BELOW_MIN_SIZE, 2.0, 1.0),
        (order(9), {"max_market_size": 8.0}, Code.ABOVE_MAX_MARKET_SIZE, 8.0, 9.0),
        (order(9, kind=OrderKind.LIMIT, price=90.0), {"max_limit_size": 8.0}, Code.ABOVE_MAX_LIMIT_SIZE, 8.0, 9.0),
        (order(1, kind=OrderKind.LIMIT, price=90.005), {}, Code.BAD_PRICE, 0.01, 90.005),  # between two ticks
        (order(1, kind=OrderKind.LIMIT, price=-1.0), {}, Code.BAD_PRICE, 0.01, -1.0),
        (order(1, reduce_only=True), {}, Code.REDUCE_ONLY_WITHOUT_POSITION, None, None),
        (order(1, stop=-5.0), {}, Code.BAD_PROTECTION, None, None),
        (order(1, stop=110.0, target=105.0), {}, Code.BAD_PROTECTION, 105.0, 110.0),  # a long's stop above its target
        (order(-1, stop=95.0, target=105.0), {}, Code.BAD_PROTECTION, 105.0, 95.0),  # a short's, the other way round
        (order(1, trailing=1.5), {}, Code.BAD_PROTECTION, 1.0, 1.5),
        (order(401), {}, Code.ABOVE_LAST_TIER, 400.0, 401.0),
        # margin 10 x 100 / 10 = 1000 and a fee of 10 against a wallet of 1000
        (order(100), {}, Code.INSUFFICIENT_MARGIN, 1000.0, 1010.0),
    ],
)
def test_a_bad_order_is_rejected_with_its_reason(
    action: object, changes: dict[str, object], code: RefusalCode, limit: float | None, actual: float | None
) -> None:
    exchange = market(**changes)
    result = action(exchange)  # type: ignore[operator]
    assert result.status is OrderStatus.REJECTED
    assert result.refusal.code is code
    if limit is not None:
        assert result.refusal.limit == pytest.approx(limit)
        assert result.refusal.actual == pytest.approx(actual)
    assert exchange.snapshot(ME).cash == 1000.0
    assert not exchange.fills(ME)
    assert not exchange.open_orders(ME)


def test_leverage_above_the_tier_of_the_resulting_size_is_refused() -> None:
    exchange = market(cash=1e6, max_leverage=100.0)
    assert exchange.set_leverage(ME, "AUSDT", ISOLATED, 30.0) is None
    assert order(100)(exchange).status is OrderStatus.FILLED  # tier 1 allows 50x
    refused = order(50)(exchange)  # 150 lots are tier 2: 25x
    assert (refused.refusal.code, refused.refusal.limit, refused.refusal.actual) == (Code.LEVERAGE_ABOVE_CAP, 25.0, 30.0)  # type: ignore[union-attr]


def test_pending_orders_count_towards_the_tier() -> None:
    exchange = market(cash=1e6)
    exchange.set_leverage(ME, "AUSDT", ISOLATED, 30.0)
    assert order(60, kind=OrderKind.LIMIT, price=90.0)(exchange).status is OrderStatus.LIVE
    refused = order(60)(exchange)
    assert refused.refusal is not None
    assert refused.refusal.code is Code.LEVERAGE_ABOVE_CAP


@pytest.mark.parametrize(
    ("leverage", "code", "limit"),
    [(0.5, Code.BAD_LEVERAGE, 1.0), (float("nan"), Code.BAD_LEVERAGE, 1.0), (51.0, Code.LEVERAGE_ABOVE_CAP, 50.0)],
)
def test_a_bad_leverage_is_refused(leverage: float, code: RefusalCode, limit: float) -> None:
    exchange = market()
    refusal = exchange.set_leverage(ME, "AUSDT", ISOLATED, leverage)
    assert refusal is not None
    assert (refusal.code, refusal.limit) == (code, limit)
    assert exchange.leverage(ME, "AUSDT", ISOLATED) == 10.0


def test_leverage_cannot_be_lowered_below_what_pending_orders_can_afford() -> None:
    exchange = market()
    order(50, kind=OrderKind.LIMIT, price=90.0)(exchange)  # 450 at 10x; 900 at 5x, and 4.5 of fee
    assert exchange.set_leverage(ME, "AUSDT", ISOLATED, 5.0) is None
    refused = exchange.set_leverage(ME, "AUSDT", ISOLATED, 4.0)  # 1125
    assert refused is not None
    assert refused.code is Code.INSUFFICIENT_MARGIN
    assert exchange.leverage(ME, "AUSDT", ISOLATED) == 5.0


def test_a_client_id_is_refused_while_its_order_is_pending_and_free_afterwards() -> None:
    exchange = market()
    order(1, kind=OrderKind.LIMIT, price=90.0, client_id="x")(exchange)
    assert order(1, client_id="x")(exchange).refusal.code is Code.DUPLICATE_CLIENT_ORDER_ID  # type: ignore[union-attr]
    assert exchange.cancel(ME, "AUSDT", "x") is None
    assert order(1, client_id="x")(exchange).status is OrderStatus.FILLED


def test_pending_orders_freeze_margin_and_fee() -> None:
    exchange = market()
    order(50, kind=OrderKind.LIMIT, price=90.0, client_id="x")(exchange)
    snapshot = exchange.snapshot(ME)
    assert snapshot.frozen == pytest.approx(450.0 + 4.5)  # 50 x 90 / 10, and the taker fee of 4500
    assert snapshot.available == pytest.approx(1000.0 - 454.5)
    assert order(55)(exchange).refusal.code is Code.INSUFFICIENT_MARGIN  # type: ignore[union-attr]  # 550 + 5.5 against 545.5
    exchange.cancel(ME, "AUSDT", "x")
    assert exchange.snapshot(ME).frozen == 0.0
    assert order(55)(exchange).status is OrderStatus.FILLED


def test_isolated_profit_backs_no_other_position_but_cross_profit_does() -> None:
    rising = venue_bar(1, {"AUSDT": B(150, 150, 150, 150)})
    for mode, backs in ((ISOLATED, False), (CROSS, True)):
        exchange = market(cash=510.0)
        order(50, mode=mode)(exchange)  # margin 500, fee 5
        exchange.end_bar()
        exchange.begin_bar(rising)  # 2500 of profit
        again = order(50, mode=mode)(exchange)
        assert (again.status is OrderStatus.FILLED) is backs


def test_cross_profit_cannot_be_given_to_an_isolated_position() -> None:
    exchange = market(cash=510.0)
    order(50, mode=CROSS)(exchange)  # 505 of cash stay, 500 of them back the position
    exchange.end_bar()
    exchange.begin_bar(venue_bar(1, {"AUSDT": B(150, 150, 150, 150)}))  # 2500 of profit, no cash
    assert order(40, mode=CROSS)(exchange).status is OrderStatus.FILLED
    refused = order(40)(exchange)  # 600 of margin and 6 of fee against 499 of cash
    assert refused.refusal is not None
    assert refused.refusal.code is Code.INSUFFICIENT_MARGIN
    assert refused.refusal.limit == pytest.approx(499.0)


def test_a_price_outside_the_band_is_refused() -> None:
    exchange = market(config=replace(PLAIN, price_band=0.05))
    assert order(1, kind=OrderKind.LIMIT, price=106.0)(exchange).refusal.code is Code.PRICE_OUTSIDE_BAND  # type: ignore[union-attr]
    assert order(-1, kind=OrderKind.LIMIT, price=94.0)(exchange).refusal.code is Code.PRICE_OUTSIDE_BAND  # type: ignore[union-attr]
    assert order(1, kind=OrderKind.LIMIT, price=90.0)(exchange).status is OrderStatus.LIVE  # far away on the passive side


def test_amending_moves_price_and_size_and_may_fill_at_once() -> None:
    exchange = market()
    order(10, kind=OrderKind.LIMIT, price=90.0, client_id="x")(exchange)
    assert exchange.amend(ME, "AUSDT", "x", lots=5) is None
    assert exchange.open_orders(ME)[0].lots == 5
    assert exchange.amend(ME, "AUSDT", "x", price=100.0) is None
    assert not exchange.open_orders(ME)
    assert exchange.fills(ME)[0].signed_lots == 5


def test_requests_about_unknown_orders_and_positions_are_refused() -> None:
    exchange = market()
    refusals = [
        exchange.cancel(ME, "AUSDT", "nope"),
        exchange.amend(ME, "AUSDT", "nope", lots=1),
        exchange.set_protection(ME, "AUSDT", ISOLATED, Protection(90.0)),
        exchange.adjust_margin(ME, "AUSDT", 1.0),
    ]
    assert [refusal.code for refusal in refusals if refusal] == [
        Code.UNKNOWN_ORDER, Code.UNKNOWN_ORDER, Code.NO_POSITION, Code.NO_POSITION
    ]  # fmt: skip


def test_margin_moves_only_within_what_is_free() -> None:
    exchange = market()
    order(10)(exchange)
    too_much = exchange.adjust_margin(ME, "AUSDT", 900.0)  # 899 of cash
    assert too_much is not None
    assert too_much.limit == pytest.approx(899.0)
    assert exchange.adjust_margin(ME, "AUSDT", 50.0) is None
    assert exchange.adjust_margin(ME, "AUSDT", -51.0) is not None  # the initial margin stays
    assert exchange.adjust_margin(ME, "AUSDT", -50.0) is None
    assert exchange.snapshot(ME).cash == pytest.approx(899.0)


def test_misuse_of_the_exchange_is_one_clear_error() -> None:
    exchange = market()
    with pytest.raises(UserError, match="was not ended"):
        exchange.begin_bar(venue_bar(1, {"AUSDT": FLAT}))
    exchange.end_bar()
    with pytest.raises(UserError, match="before the exchange's clock"):
        exchange.begin_bar(venue_bar(0, {"AUSDT": FLAT}))
    with pytest.raises(UserError, match="end_bar without"):
        exchange.end_bar()
    with pytest.raises(UserError, match="does not exist"):
        exchange.snapshot("nobody")
    with pytest.raises(UserError, match="exists already"):
        exchange.open_account(ME, 1.0, FeeSchedule())
    with pytest.raises(UserError, match="positive starting balance"):
        exchange.open_account("other", 0.0, FeeSchedule())


@pytest.mark.parametrize(
    "bad", [B(100, 99, 98, 99), B(-1, 1, -1, 1), B(100, 101, 99, 98), B(100, 100, 100, 100, mark=(0, 0, 0, 0))]
)
def test_a_broken_bar_names_symbol_and_time(bad: B) -> None:
    with pytest.raises(UserError, match="AUSDT at 1970-01-01T01:00:00Z"):
        venue_bar(1, {"AUSDT": bad})


def test_every_order_goes_through_the_life_cycle_table_and_is_told() -> None:
    tape = Tape(
        "orders", "", [FLAT, B(100, 101, 97, 99, volume=120), B(99, 99, 97, 99, volume=120)],
        {1: [order(10, kind=OrderKind.LIMIT, price=98.0, client_id="x")]}, [],
    )  # fmt: skip
    events = [e for e in run(tape).drain_events() if isinstance(e, OrderUpdated)]
    assert [event.order.status for event in events] == [OrderStatus.LIVE, OrderStatus.PARTIALLY_FILLED, OrderStatus.FILLED]
    assert events[-1].order.average_price == pytest.approx(98.0)
    assert events[-1].order.fee == pytest.approx(10 * 98 * 0.0002)
    assert instrument().symbol == events[-1].order.symbol

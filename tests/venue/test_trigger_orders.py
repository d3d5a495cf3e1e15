"""Trigger orders on tiny tapes: what sets them off, in which order, at which price, and what they become.

No spread, no impact; taker fee 0.1 %. Stops fill at the worse of level and open, take-profits at their level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from crypto_qlib.core.order import ExitKind, MarginMode, Protection, Side, TriggerSource
from crypto_qlib.venue.records import Refusal, RefusalCode
from crypto_qlib.venue.simulator import SimulatedExchange
from crypto_qlib.venue.trigger_records import Trailing, TriggerKind, TriggerLeg, TriggerOrder, TriggerRequest, TriggerState
from tests.venue.venue_tape import FEES, FLAT, ME, PLAIN, B, listed, order, venue_bar

STOP, TARGET = ExitKind.STOP, ExitKind.TAKE_PROFIT
SL = TriggerLeg(STOP, 96.0)
TP = TriggerLeg(TARGET, 104.0)


def started(*actions: Callable[[SimulatedExchange], object], cash: float = 1000.0) -> SimulatedExchange:
    exchange = SimulatedExchange([listed()], PLAIN, 0)
    exchange.open_account(ME, cash, FEES)
    exchange.begin_bar(venue_bar(0, {"AUSDT": FLAT}))
    for action in actions:
        action(exchange)
    return exchange


def ask(side: Side, lots: int, *legs: TriggerLeg, kind: TriggerKind = TriggerKind.CONDITIONAL, **more: Any) -> TriggerRequest:
    return TriggerRequest("", "child1", "AUSDT", side, lots, kind, legs, **more)


def placed(exchange: SimulatedExchange, request: TriggerRequest) -> TriggerOrder:
    made = exchange.place_trigger(ME, request)
    assert isinstance(made, TriggerOrder), made
    return made


def lived(exchange: SimulatedExchange, *bars: B, first: int = 1) -> list[tuple[int, float, ExitKind | None]]:
    """Live through the bars; return the fills since: (signed lots, price, exit kind)."""
    known = len(exchange.fills(ME))
    exchange.end_bar()
    for k, bar in enumerate(bars, start=first):
        exchange.begin_bar(venue_bar(k, {"AUSDT": bar}))
        exchange.end_bar()
    return [(f.signed_lots, f.price, f.exit_kind) for f in exchange.fills(ME)[known:]]


CASES = [
    # A stop over part of a position leaves the rest alone.
    ("part", ask(Side.SELL, 4, SL, reduce_only=True), [B(100, 101, 95, 97)], [(-4, 96.0, STOP)]),
    # A gap beyond it fills at the open, not at the level.
    ("gap", ask(Side.SELL, 4, SL, reduce_only=True), [B(93, 94, 92, 93)], [(-4, 93.0, STOP)]),
    # The take-profit fills at its level, and not in the bar the position was opened in.
    ("target", ask(Side.SELL, 4, TP, reduce_only=True), [B(100, 105, 99, 101)], [(-4, 104.0, TARGET)]),
    # Both reached in one bar: the losing side is taken to come first; the order is one, so the other leg is gone.
    ("oco", ask(Side.SELL, 4, SL, TP, kind=TriggerKind.OCO, reduce_only=True), [B(100, 105, 95, 100), B(100, 110, 99, 105)],
     [(-4, 96.0, STOP)]),
    # Lots 0: the whole position, whatever it is by then.
    ("whole", ask(Side.SELL, 0, SL), [B(100, 101, 95, 97)], [(-10, 96.0, STOP)]),
    # More than the position, reduce-only: cut down to it.
    ("cut", ask(Side.SELL, 15, SL, reduce_only=True), [B(100, 101, 95, 97)], [(-10, 96.0, STOP)]),
    # On the mark: last went below the level, the mark did not.
    ("mark", ask(Side.SELL, 4, TriggerLeg(STOP, 96.0, source=TriggerSource.MARK), reduce_only=True),
     [B(100, 101, 95, 97, mark=(100, 101, 97, 97))], []),
    # A limit child beyond the market rests instead of filling worse; the next bar trades through it.
    ("limit child", ask(Side.SELL, 4, TriggerLeg(STOP, 96.0, price=97.0), reduce_only=True),
     [B(100, 100, 95, 96), B(96, 98, 95, 96)], [(-4, 97.0, STOP)]),
    # Not reached: nothing.
    ("untouched", ask(Side.SELL, 4, SL, TP, kind=TriggerKind.OCO), [B(100, 103, 97, 100)], []),
    # A trailing stop 4 % behind the best price: 110 was the best of bar 1, so bar 2 is tested against 105.6.
    ("trailing", ask(Side.SELL, 4, kind=TriggerKind.TRAILING, trailing=Trailing(ratio=0.04), reduce_only=True),
     [B(100, 110, 100, 109), B(109, 109, 105, 106)], [(-4, 105.6, ExitKind.TRAILING)]),
    # By a distance, and only from 105 on: the fall to 97 comes before it is active.
    ("active later", ask(Side.SELL, 4, kind=TriggerKind.TRAILING, trailing=Trailing(spread=3.0, active_price=105.0),
                         reduce_only=True),
     [B(100, 101, 97, 100), B(100, 106, 100, 105), B(105, 105, 102, 103)], [(-4, 103.0, ExitKind.TRAILING)]),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "bars", "fills"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_closes_a_long_of_ten_bought_at_100(request_: TriggerRequest, bars: list[B], fills: list[Any]) -> None:
    exchange = started(order(10))
    placed(exchange, request_)
    found = lived(exchange, *bars)
    assert [f[0] for f in found] == [f[0] for f in fills]
    assert [f[1] for f in found] == pytest.approx([f[1] for f in fills])
    assert [f[2] for f in found] == [f[2] for f in fills]


def test_a_breakout_entry_pays_the_level_and_suffers_the_adverse_extreme_after_it() -> None:
    exchange = started()
    entry = ask(Side.BUY, 5, TriggerLeg(None, 102.0), kind=TriggerKind.TRIGGER, protection=Protection(stop_price=99.0))
    made = placed(exchange, entry)
    assert lived(exchange, B(100, 103, 98, 101)) == [(5, 102.0, None), (-5, 99.0, STOP)]
    after = exchange.triggers(ME)[0]
    assert (after.state, after.fired) == (TriggerState.EFFECTIVE, ExitKind.SIGNAL)
    assert after.order_id == exchange.orders(ME)[-1].order_id
    assert made.state is TriggerState.LIVE


def test_a_stop_nearer_than_liquidation_saves_the_rest_of_the_margin() -> None:
    # 10x: liquidation near 91; the stop at 95 comes first and closes half, the other half is liquidated.
    exchange = started(order(10))
    placed(exchange, ask(Side.SELL, 5, TriggerLeg(STOP, 95.0), reduce_only=True))
    found = lived(exchange, B(100, 100, 85, 86))
    assert [(f[0], f[2]) for f in found] == [(-5, STOP), (-5, ExitKind.LIQUIDATION)]


def test_a_fired_order_without_margin_fails_and_says_why() -> None:
    exchange = started(cash=50.0)
    placed(exchange, ask(Side.BUY, 50, TriggerLeg(None, 102.0), kind=TriggerKind.TRIGGER))
    assert lived(exchange, B(100, 103, 99, 101)) == []
    (after,) = exchange.triggers(ME)
    assert after.state is TriggerState.FAILED
    assert after.refusal is not None
    assert after.refusal.code is RefusalCode.INSUFFICIENT_MARGIN


def test_closing_orders_go_with_their_position() -> None:
    exchange = started(order(10))
    placed(exchange, ask(Side.SELL, 4, SL, reduce_only=True))
    order(-10)(exchange)
    assert exchange.triggers(ME)[0].state is TriggerState.CANCELED
    entry = placed(exchange, ask(Side.SELL, 4, SL))
    order(3)(exchange)
    order(-3)(exchange)
    assert exchange.triggers(ME)[entry.trigger_id - 1].state is TriggerState.LIVE, "one that may open stays"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (ask(Side.SELL, 4, TriggerLeg(STOP, 101.0)), RefusalCode.STOP_PASSED),
        (ask(Side.SELL, 4, TriggerLeg(TARGET, 99.0)), RefusalCode.TAKE_PROFIT_PASSED),
        (ask(Side.BUY, 4, TriggerLeg(STOP, 99.0)), RefusalCode.STOP_PASSED),
        (ask(Side.BUY, 4, TriggerLeg(TARGET, 101.0)), RefusalCode.TAKE_PROFIT_PASSED),
        (ask(Side.BUY, 4, TriggerLeg(STOP, 101.0), reduce_only=True), RefusalCode.REDUCE_ONLY_WITHOUT_POSITION),
        (ask(Side.SELL, 0, SL, margin_mode=MarginMode.CROSS), RefusalCode.REDUCE_ONLY_WITHOUT_POSITION),
    ],
)
def test_what_is_refused_with_a_long_held(request_: TriggerRequest, code: RefusalCode) -> None:
    refused = started(order(10)).place_trigger(ME, request_)
    assert isinstance(refused, Refusal)
    assert refused.code is code


def test_amended_and_cancelled_by_the_client() -> None:
    exchange = started(order(10))
    made = placed(exchange, ask(Side.SELL, 4, SL))
    assert exchange.amend_trigger(ME, made.trigger_id, ask(Side.SELL, 5, TriggerLeg(STOP, 98.0))) is None
    assert lived(exchange, B(100, 100, 97, 99)) == [(-5, 98.0, STOP)]
    gone = exchange.cancel_trigger(ME, made.trigger_id)
    assert gone is not None
    assert gone.code is RefusalCode.UNKNOWN_ORDER

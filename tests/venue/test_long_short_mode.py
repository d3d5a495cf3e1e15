"""Two positions of one symbol in one account: each by its own books, both against one mark."""

from __future__ import annotations

import pytest

from crypto_qlib.core.order import ExitKind, MarginMode, OrderKind, OrderRequest, PositionSide, Protection, Side
from crypto_qlib.venue.records import BillKind, RefusalCode, VenueOrder
from crypto_qlib.venue.simulator import SimulatedExchange
from tests.venue.venue_tape import FEES, FLAT, ME, PLAIN, B, listed, venue_bar

LONG, SHORT = PositionSide.LONG, PositionSide.SHORT


def hedged(cash: float = 1000.0) -> SimulatedExchange:
    exchange = SimulatedExchange([listed()], PLAIN, 0)
    exchange.open_account(ME, cash, FEES)
    assert exchange.set_position_mode(ME, hedged=True) is None
    exchange.begin_bar(venue_bar(0, {"AUSDT": FLAT}))
    return exchange


def send(
    exchange: SimulatedExchange, side: Side, lots: int, of: PositionSide, mode: MarginMode = MarginMode.CROSS, **more: object
) -> VenueOrder:
    return exchange.submit(ME, OrderRequest("", "AUSDT", side, lots, margin_mode=mode, position_side=of, **more))  # type: ignore[arg-type]


def then(exchange: SimulatedExchange, k: int, bar: B) -> None:
    exchange.end_bar()
    exchange.begin_bar(venue_bar(k, {"AUSDT": bar}))


def test_each_side_realises_its_own_result() -> None:
    exchange = hedged()
    send(exchange, Side.BUY, 10, LONG)
    send(exchange, Side.SELL, 4, SHORT)
    then(exchange, 1, B(95, 95, 95, 95))
    send(exchange, Side.SELL, 10, LONG)
    send(exchange, Side.BUY, 4, SHORT)
    # Fees: 0.1 % of 1000, 400, 950 and 380. The long loses 50, the short wins 20.
    assert [(c.position_side, c.pnl) for c in exchange.closed_positions(ME)] == [(LONG, -50.0), (SHORT, 20.0)]
    assert exchange.snapshot(ME).cash == pytest.approx(1000.0 - 50.0 + 20.0 - 1.0 - 0.4 - 0.95 - 0.38)


def test_a_closing_order_never_flips_and_protection_guards_one_side() -> None:
    exchange = hedged()
    send(exchange, Side.BUY, 10, LONG, protection=Protection(stop_price=98.0))
    send(exchange, Side.SELL, 4, SHORT)
    refused = send(exchange, Side.SELL, 11, LONG)
    assert refused.refusal is not None
    assert refused.refusal.code is RefusalCode.ABOVE_POSITION
    then(exchange, 1, B(100, 100, 97, 99))
    exchange.end_bar()
    (left,) = exchange.snapshot(ME).positions
    assert left.position.position_side is SHORT
    assert exchange.fills(ME)[-1].exit_kind is ExitKind.STOP


def test_sides_belong_to_their_mode() -> None:
    exchange = hedged()
    order = send(exchange, Side.BUY, 1, PositionSide.NET)
    assert order.refusal is not None
    assert order.refusal.code is RefusalCode.BAD_POSITION_SIDE
    net = SimulatedExchange([listed()], PLAIN, 0)
    net.open_account(ME, 1000.0, FEES)
    net.begin_bar(venue_bar(0, {"AUSDT": FLAT}))
    order = send(net, Side.BUY, 1, LONG)
    assert order.refusal is not None
    assert order.refusal.code is RefusalCode.BAD_POSITION_SIDE
    exchange.submit(ME, OrderRequest("", "AUSDT", Side.BUY, 1, OrderKind.LIMIT, 90.0, MarginMode.CROSS, position_side=LONG))
    busy = exchange.set_position_mode(ME, hedged=False)
    assert busy is not None
    assert busy.code is RefusalCode.MODE_IN_USE


def test_the_cross_account_dies_of_its_net_exposure() -> None:
    # Long 60, short 20 at 100; 1000 USDT less 8 of fees. At mark m: equity 992 + 40 (m - 100), requirement 80 m (1 % + 0.1 %).
    # They meet at m = 3008 / 39.12 = 76.89. There 20 of each side are netted for 0.1 % each: 0.04 m = 3.0757. What is left,
    # 40 long, dies where 992 - 3.0757 + 40 (m - 100) = 40 m x 1.1 %: at 3011.0757 / 39.56 = 76.11.
    exchange = hedged()
    send(exchange, Side.BUY, 60, LONG)
    send(exchange, Side.SELL, 20, SHORT)
    assert [p.liquidation_price for p in exchange.snapshot(ME).positions] == pytest.approx([3008 / 39.12] * 2)
    then(exchange, 1, B(100, 100, 77, 78))
    assert len(exchange.snapshot(ME).positions) == 2
    then(exchange, 2, B(78, 120, 76, 78))
    exchange.end_bar()
    assert exchange.snapshot(ME).positions == ()
    met, fills = 3008 / 39.12, exchange.fills(ME)[-3:]
    died = (3008 + 0.04 * met) / 39.56
    kinds = [ExitKind.PARTIAL_LIQUIDATION, ExitKind.PARTIAL_LIQUIDATION, ExitKind.LIQUIDATION]
    assert [fill.exit_kind for fill in fills] == kinds
    assert sorted(fill.signed_lots for fill in fills) == [-40, -20, 20]
    assert [fill.price for fill in fills] == pytest.approx([met, met, died], rel=1e-9)
    netted = [bill for bill in exchange.bills(ME) if bill.kind is BillKind.LIQUIDATION and abs(bill.signed_lots) == 20]
    assert [bill.penalty for bill in netted] == [0.0, 0.0]
    assert [bill.fee for bill in netted] == pytest.approx([0.02 * met] * 2)


def test_netting_alone_can_save_a_cross_account() -> None:
    # As above, but the bar ends its fall at 76.5, between the netting and the death of what is left.
    exchange = hedged()
    send(exchange, Side.BUY, 60, LONG)
    send(exchange, Side.SELL, 20, SHORT)
    then(exchange, 1, B(100, 100, 76.5, 90))
    exchange.end_bar()
    (left,) = exchange.snapshot(ME).positions
    assert left.position.lots == 40
    assert left.margin_ratio > 1.0


def test_cross_leverage_is_one_for_both_sides() -> None:
    exchange = hedged()
    send(exchange, Side.BUY, 10, LONG)
    send(exchange, Side.SELL, 10, SHORT)
    assert exchange.set_leverage(ME, "AUSDT", MarginMode.CROSS, 5.0) is None
    assert {p.position.leverage for p in exchange.snapshot(ME).positions} == {5.0}
    assert exchange.leverage(ME, "AUSDT", MarginMode.CROSS, LONG) == 5.0

"""Numbered acceptance cards of an account: ``pytest -m acceptance``; see docs/acceptance.md.

Cards A01 to A09 read only. Cards A10 to A19 place orders of the smallest size and leave nothing open or resting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_S, SystemClock
from crypto_qlib.core.errors import DoNotRetry
from crypto_qlib.core.order import MarginMode, OrderRequest, OrderStatus, Protection, Side
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.exchange.key_rights import key_rights
from crypto_qlib.exchange.okx_session import make_client
from tests.acceptance.desk import LIVE_CONSENT, ORDERS_NAME, SYMBOL, TARGET_NAME, Desk, Target, environment, open_desk

pytestmark = pytest.mark.acceptance
LEVERAGE = 3.0


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    with open_desk(Target.of(environment())) as opened:
        yield opened


@pytest.fixture
def trading(desk: Desk) -> Iterator[Desk]:
    """Give the desk to a card that places orders; skip on a live account without consent; leave the account flat."""
    if not desk.target.may_order:
        pytest.skip(f"no orders on a live account without {ORDERS_NAME}={LIVE_CONSENT}")
    if desk.held_lots():
        pytest.skip(f"the account holds {SYMBOL}: that is not this suite's to touch")
    yield desk
    desk.flat()
    assert desk.held_lots() == 0


def test_a01_the_exchanges_clock_is_within_half_a_minute_of_ours(desk: Desk) -> None:
    now = desk.run(desk.gateway.server_time_ns())
    assert now > 0
    if desk.target.mode != "embedded":  # its market lives in a time of its own
        assert abs(now - SystemClock().now_ns()) < 30 * NS_PER_S


def test_a02_the_contract_has_a_tick_a_lot_and_a_face_value(desk: Desk) -> None:
    item = desk.item
    assert item.inst_id == "BTC-USDT-SWAP"
    assert min(item.tick_size, item.lot_size, item.min_size, item.ct_val) > 0.0


def test_a03_position_tiers_ask_for_more_margin_as_they_grow(desk: Desk) -> None:
    tiers = desk.run(desk.gateway.tiers(SYMBOL))
    assert np.all(np.diff(tiers.max_contracts) > 0.0)
    assert np.all(np.diff(tiers.mmr) >= 0.0)
    assert np.all(np.diff(tiers.max_leverage) <= 0.0)


@pytest.mark.parametrize("kind", [PriceKind.LAST, PriceKind.MARK])
def test_a04_the_last_day_of_hours_is_whole_and_has_no_unfinished_bar(desk: Desk, kind: PriceKind) -> None:
    now = desk.run(desk.gateway.server_time_ns())
    end = now - now % NS_PER_HOUR
    bars = desk.run(desk.gateway.candles(SYMBOL, "1h", end - 24 * NS_PER_HOUR, now + NS_PER_HOUR, kind))
    assert bars.ts_open.tolist() == list(range(end - 24 * NS_PER_HOUR, end, NS_PER_HOUR))
    assert np.all((bars.low <= bars.close) & (bars.close <= bars.high))


def test_a05_settled_funding_is_known_and_small(desk: Desk) -> None:
    now = desk.run(desk.gateway.server_time_ns())
    funding = desk.run(desk.gateway.funding_history(SYMBOL, now - 72 * NS_PER_HOUR, now))
    assert len(funding.ts) >= 6
    assert np.all(np.abs(funding.rate) < 0.05)


def test_a06_the_book_is_sorted_and_not_crossed(desk: Desk) -> None:
    book = desk.run(desk.gateway.book(SYMBOL))
    assert np.all(np.diff(book.bids[:, 0]) < 0.0)
    assert np.all(np.diff(book.asks[:, 0]) > 0.0)
    assert book.bids[0, 0] < book.asks[0, 0]


def test_a07_the_account_can_be_read(desk: Desk) -> None:
    account = desk.run(desk.gateway.account())
    assert account.equity >= 0.0
    assert account.available <= account.equity * (1.0 + 1e-9) + 1.0


def test_a08_the_account_says_who_it_is_the_same_each_time(desk: Desk) -> None:
    ids = {desk.run(desk.gateway.account_id()) for _ in range(2)}
    assert len(ids) == 1
    assert "" not in ids


def test_a09_the_key_may_trade_and_may_not_withdraw(desk: Desk) -> None:
    rights = desk.run(key_rights(desk.connection))
    assert rights.may_read
    assert rights.may_trade
    assert not rights.may_withdraw, "make a key without the right to withdraw"


def test_a10_leverage_is_set_and_read_back(trading: Desk) -> None:
    async def shown() -> set[float]:
        async with make_client(trading.connection) as client:
            query = {"instId": trading.item.inst_id, "mgnMode": "isolated"}
            return {float(row["lever"]) for row in (await client.privateGetAccountLeverageInfo(query))["data"]}

    for leverage in (LEVERAGE + 1.0, LEVERAGE):
        trading.run(trading.gateway.set_leverage(SYMBOL, leverage, MarginMode.ISOLATED))
        assert trading.run(shown()) == {leverage}


def test_a11_a_resting_order_is_found_by_our_id_and_cancelled(trading: Desk) -> None:
    request = trading.resting()
    report = trading.run(trading.gateway.place(request))
    assert report.status is OrderStatus.LIVE
    assert SYMBOL in trading.run(trading.gateway.account()).pending_symbols
    trading.run(trading.gateway.cancel(SYMBOL, request.client_order_id))
    found = trading.run(trading.gateway.order(SYMBOL, request.client_order_id))
    assert found is None or (found.status, found.filled_lots) == (OrderStatus.CANCELED, 0)


def test_a12_an_id_in_use_is_refused_so_nothing_rests_twice(trading: Desk) -> None:
    request = trading.resting()
    trading.run(trading.gateway.place(request))
    try:
        with pytest.raises(DoNotRetry) as refused:
            trading.run(trading.gateway.place(trading.resting(request.client_order_id)))
        assert refused.value.code == "51016"
    finally:
        trading.run(trading.gateway.cancel(SYMBOL, request.client_order_id))


def test_a13_an_id_nobody_used_is_unknown_and_cancelling_it_is_no_error(trading: Desk) -> None:
    name = trading.name()
    assert trading.run(trading.gateway.order(SYMBOL, name)) is None
    trading.run(trading.gateway.cancel(SYMBOL, name))


def test_a14_an_entry_fills_with_its_stop_and_take_profit_at_the_exchange(trading: Desk) -> None:
    trading.run(trading.gateway.set_leverage(SYMBOL, LEVERAGE, MarginMode.ISOLATED))
    request = trading.entry(protected=True)
    report = trading.run(trading.gateway.place(request))
    assert (report.status, report.filled_lots) == (OrderStatus.FILLED, trading.least_lots)
    (position,) = (p for p in trading.run(trading.gateway.account()).positions if p.symbol == SYMBOL)
    assert request.protection is not None
    assert (position.stop_price, position.take_profit_price) == (
        request.protection.stop_price, request.protection.take_profit_price,
    )  # fmt: skip
    assert position.leverage == LEVERAGE
    assert position.liquidation_price < position.stop_price


def test_a15_the_fill_carries_our_id_and_its_fee(trading: Desk) -> None:
    since = trading.run(trading.gateway.server_time_ns()) - NS_PER_S
    request = trading.entry(protected=True)
    trading.run(trading.gateway.place(request))
    fills = [f for f in trading.run(trading.gateway.fills(since)) if f.client_order_id == request.client_order_id]
    assert sum(f.signed_lots for f in fills) == trading.least_lots
    assert sum(f.fee for f in fills) > 0.0


def test_a16_a_reduce_only_exit_closes_it_and_its_stops_go_with_it(trading: Desk) -> None:
    trading.run(trading.gateway.place(trading.entry(protected=True)))
    trading.flat()
    account = trading.run(trading.gateway.account())
    assert SYMBOL not in {p.symbol for p in account.positions}
    trading.run(trading.gateway.place(trading.entry(protected=False)))
    (position,) = (p for p in trading.run(trading.gateway.account()).positions if p.symbol == SYMBOL)
    assert math.isnan(position.stop_price), "a stop of the position before was left behind"


def test_a17_a_stop_that_stands_alone_protects_a_bare_position(trading: Desk) -> None:
    trading.run(trading.gateway.place(trading.entry(protected=False)))
    bid, _ = trading.best()
    level = trading.on_tick(0.9 * bid)
    stop = Protection(stop_price=level)
    trading.run(trading.gateway.protect(SYMBOL, trading.held_lots(), stop, MarginMode.ISOLATED, trading.name()))
    (position,) = (p for p in trading.run(trading.gateway.account()).positions if p.symbol == SYMBOL)
    assert position.stop_price == level


def test_a18_a_reduce_only_order_without_a_position_opens_nothing(trading: Desk) -> None:
    request = OrderRequest(
        trading.name(), SYMBOL, Side.SELL, trading.least_lots, margin_mode=MarginMode.ISOLATED, reduce_only=True
    )
    with pytest.raises(DoNotRetry):
        trading.run(trading.gateway.place(request))
    assert trading.held_lots() == 0


def test_a19_the_dead_mans_countdown_is_taken_and_ended(trading: Desk) -> None:
    request = trading.resting()
    trading.run(trading.gateway.place(request))
    try:
        trading.run(trading.gateway.cancel_all_after(60))
        with pytest.raises(DoNotRetry):  # from 10 s on: the answer is OKX's, not ours
            trading.run(trading.gateway.cancel_all_after(5))
        trading.run(trading.gateway.cancel_all_after(0))
        assert SYMBOL in trading.run(trading.gateway.account()).pending_symbols, "it ended before anything was cancelled"
    finally:
        trading.run(trading.gateway.cancel(SYMBOL, request.client_order_id))


@pytest.mark.parametrize(
    ("name", "given", "mode", "may_order"),
    [
        ("nothing said: the embedded exchange", {}, "embedded", True),
        ("demo money may be spent", {TARGET_NAME: "demo"}, "demo", True),
        ("a live account is only read", {TARGET_NAME: "live"}, "live", False),
        ("consent in other words is none", {TARGET_NAME: "live", ORDERS_NAME: "yes"}, "live", False),
        ("consent in these very words", {TARGET_NAME: "live", ORDERS_NAME: LIVE_CONSENT}, "live", True),
    ],
)
def test_a20_no_order_on_a_live_account_without_consent(name: str, given: dict[str, str], mode: str, may_order: bool) -> None:
    assert Target.of(given) == Target(mode, may_order), name

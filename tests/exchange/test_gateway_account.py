"""Cards 20-49: account and orders through the real ccxt client against the embedded server."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.costs import trading_fee
from crypto_qlib.core.errors import BadAnswer, DoNotRetry, OutcomeUnknown, RetryLater, UserError
from crypto_qlib.core.order import ExitKind, MarginMode, OrderKind, OrderRequest, OrderStatus, Protection, Side
from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from tests.exchange.fake_market import START_NS, FakeMarket

NOW_NS = START_NS + 62 * NS_PER_DAY


def order(name: str, side: Side = Side.BUY, lots: int = 20, **fields: object) -> OrderRequest:
    return OrderRequest(name, "BTCUSDT", side, lots, **fields)  # type: ignore[arg-type]


def opening(market: FakeMarket, at_ns: int = NOW_NS) -> float:
    return float(market.bars("BTCUSDT", NS_PER_HOUR, at_ns, at_ns + NS_PER_HOUR).open[0])


async def test_card_20_a_fresh_account_holds_its_starting_balance(gateway: OkxGateway) -> None:
    state = await gateway.account()
    assert (state.equity, state.available, state.positions, state.as_of_ns) == (100_000.0, 100_000.0, (), NOW_NS)
    assert math.isinf(state.margin_ratio)


@pytest.mark.parametrize(
    "details", [[], [{"ccy": "BTC", "eq": "1"}], [{"ccy": "USDT", "eq": ""}]], ids=["none", "others", "empty"]
)
async def test_a_balance_without_usdt_is_no_equity_of_zero(
    gateway: OkxGateway, details: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gateway._session.private

    async def answered(what: str, endpoint: str, query: dict[str, str]) -> list[Any]:
        rows = await real(what, endpoint, query)
        return [rows[0] | {"details": details}] if endpoint == "privateGetAccountBalance" else rows

    monkeypatch.setattr(gateway._session, "private", answered)
    with pytest.raises(BadAnswer, match="no USDT"):
        await gateway.account()


async def test_card_21_a_market_order_fills_at_the_open_with_the_core_fee(gateway: OkxGateway, market: FakeMarket) -> None:
    report = await gateway.place(order("a1"))
    assert report.status is OrderStatus.FILLED
    assert report.filled_lots == 20
    assert report.average_price > opening(market), "a buy pays the spread and its impact"
    assert report.average_price == pytest.approx(opening(market), rel=2e-3)
    qty = 20 * 0.1 * 0.01
    assert report.fee == pytest.approx(trading_fee(qty, report.average_price, 0.0005), rel=1e-12)


async def test_card_22_account_figures_equal_the_venues_snapshot(exchange: EmbeddedExchange, gateway: OkxGateway) -> None:
    await gateway.set_leverage("BTCUSDT", 5.0, MarginMode.ISOLATED)
    await gateway.place(order("a1", protection=Protection(stop_price=90_000.0, take_profit_price=150_000.0)))
    await exchange.step()
    state = await gateway.account()
    true = exchange.venue.exchange.snapshot(exchange.credentials.key)
    held, position = true.positions[0], state.positions[0]
    assert (state.equity, state.available) == (true.equity, true.available)
    assert state.margin_ratio == held.margin_ratio
    assert (position.lots, position.avg_entry, position.mark) == (20, held.position.avg_entry, held.mark)
    assert (position.margin, position.leverage) == (held.position.isolated_margin, 5.0)
    assert position.liquidation_price == held.reported_liquidation_price
    assert (position.stop_price, position.take_profit_price) == (90_000.0, 150_000.0)
    assert position.opened_ns == NOW_NS


async def test_card_23_reads_show_the_close_until_the_first_order_begins_the_bar(
    exchange: EmbeddedExchange, gateway: OkxGateway, market: FakeMarket
) -> None:
    await gateway.place(order("a1"))
    await exchange.step()
    now = NOW_NS + NS_PER_HOUR
    at_close = (await gateway.account()).positions[0].mark
    assert at_close == market.mark_bars("BTCUSDT", NS_PER_HOUR, NOW_NS, now).close[0]
    await gateway.place(order("a2", lots=1))
    at_open = (await gateway.account()).positions[0].mark
    assert at_open == market.mark_bars("BTCUSDT", NS_PER_HOUR, now, now + NS_PER_HOUR).open[0]


async def test_card_24_a_round_trip_costs_fees_and_slippage_only(exchange: EmbeddedExchange, gateway: OkxGateway) -> None:
    await exchange.step()  # away from midnight, whose funding settlement would be charged on the opening fill
    first = await gateway.place(order("a1"))
    last = await gateway.place(order("a2", Side.SELL, reduce_only=True))
    state = await gateway.account()
    qty = 20 * 0.1 * 0.01
    expected = 100_000.0 + qty * (last.average_price - first.average_price) - first.fee - last.fee
    assert state.equity == pytest.approx(expected, abs=1e-9)
    assert state.positions == ()


async def test_card_25_fills_come_oldest_first_with_own_ids(exchange: EmbeddedExchange, gateway: OkxGateway) -> None:
    await gateway.place(order("a1"))
    await exchange.step()
    await gateway.place(order("a2", Side.SELL, lots=5, reduce_only=True))
    fills = await gateway.fills(0)
    assert [(f.client_order_id, f.signed_lots, f.ts_ns) for f in fills] == [
        ("a1", 20, NOW_NS),
        ("a2", -5, NOW_NS + NS_PER_HOUR),
    ]
    true = exchange.venue.exchange.fills(exchange.credentials.key)
    assert [(f.price, f.fee, f.is_maker) for f in fills] == [(f.price, f.fee, f.is_maker) for f in true]
    assert [f.client_order_id for f in await gateway.fills(NOW_NS + 1)] == ["a2"]


async def test_card_26_more_fills_than_a_page_are_all_returned(gateway: OkxGateway) -> None:
    for k in range(103):
        await gateway.place(order(f"p{k}", lots=1))
    assert [f.client_order_id for f in await gateway.fills(0)] == [f"p{k}" for k in range(103)]


async def test_card_27_a_stop_that_fires_is_told_as_a_stop(exchange: EmbeddedExchange, gateway: OkxGateway) -> None:
    report = await gateway.place(order("a1", protection=Protection(stop_price=104_000.0)))
    assert report.average_price > 104_000.0
    for _ in range(24):
        await exchange.step()
        if not (await gateway.account()).positions:
            break
    fills = await gateway.fills(0)
    assert [f.signed_lots for f in fills] == [20, -20]
    assert fills[1].exit_kind is ExitKind.STOP
    assert fills[1].client_order_id == ""
    assert fills[1].price <= 104_000.0


async def test_card_28_a_take_profit_that_fires_is_told_as_one(exchange: EmbeddedExchange, gateway: OkxGateway) -> None:
    await gateway.place(order("a1", Side.SELL, protection=Protection(take_profit_price=104_000.0)))
    for _ in range(24):
        await exchange.step()
    fills = await gateway.fills(0)
    assert [f.exit_kind for f in fills] == [None, ExitKind.TAKE_PROFIT]


async def test_card_29_a_resting_limit_order_is_pending_until_cancelled(gateway: OkxGateway) -> None:
    report = await gateway.place(order("l1", kind=OrderKind.LIMIT, price=50_000.0))
    assert (report.status, report.filled_lots) == (OrderStatus.LIVE, 0)
    assert math.isnan(report.average_price)
    assert (await gateway.account()).pending_symbols == ("BTCUSDT",)
    await gateway.cancel("BTCUSDT", "l1")
    gone = await gateway.order("BTCUSDT", "l1")
    assert gone is not None
    assert gone.status is OrderStatus.CANCELED
    await gateway.cancel("BTCUSDT", "l1")  # gone already: no error


async def test_card_30_an_id_the_exchange_never_saw_is_none(gateway: OkxGateway) -> None:
    assert await gateway.order("BTCUSDT", "never") is None


async def test_an_order_that_arrives_after_its_time_limit_does_nothing(exchange: EmbeddedExchange) -> None:
    settings = ExchangeSettings(timeout_s=0.5)
    async with OkxGateway(settings, exchange.credentials, exchange.base_url) as hasty:
        assert (await hasty.place(order("b1"))).status is OrderStatus.FILLED  # within the limit: as ever
        exchange.faults.latency_s = 1.2  # on its way for longer than its answer is waited for
        with pytest.raises(OutcomeUnknown):
            await hasty.place(order("b2"))
        exchange.faults.latency_s = 0.0
        await asyncio.sleep(1.2)  # by now it has arrived
        assert await hasty.order("BTCUSDT", "b2") is None
        assert [p.lots for p in (await hasty.account()).positions] == [20]
        exchange.faults.latency_s = 0.1
        await hasty.cancel("BTCUSDT", "b2")  # a cancel has no deadline, and what is gone is no error
        assert (await hasty.place(order("b3", Side.SELL, reduce_only=True))).status is OrderStatus.FILLED


async def test_card_31_leverage_is_set_and_verified(gateway: OkxGateway, exchange: EmbeddedExchange) -> None:
    await gateway.set_leverage("BTCUSDT", 7.0, MarginMode.CROSS)
    assert exchange.venue.exchange.leverage(exchange.credentials.key, "BTCUSDT", MarginMode.CROSS) == 7.0


async def test_card_32_leverage_above_the_instruments_maximum_is_refused(gateway: OkxGateway) -> None:
    with pytest.raises(DoNotRetry, match="lower the leverage") as refused:
        await gateway.set_leverage("BTCUSDT", 101.0, MarginMode.ISOLATED)
    assert refused.value.code == "59102"


@pytest.mark.parametrize(
    ("request_", "code", "why"),
    [
        (order("x", lots=200_000), "51202", "above maxMktSz of 12000 contracts"),
        (order("x", lots=100_000), "51008", "ten million dollars at 3x on an account of a hundred thousand"),
        (order("x", Side.SELL, reduce_only=True), "51169", "nothing to reduce"),
        (order("bad-id"), "51000", "hyphens are not allowed in clOrdId"),
        (order("x", kind=OrderKind.LIMIT, price=100_000.0, reduce_only=True), "51169", "nothing to reduce"),
    ],
)
async def test_card_33_a_refused_order_says_why(gateway: OkxGateway, request_: OrderRequest, code: str, why: str) -> None:
    with pytest.raises(DoNotRetry) as refused:
        await gateway.place(request_)
    assert refused.value.code == code, why
    assert await gateway.order("BTCUSDT", request_.client_order_id) is None, "a refused order never existed"


async def test_card_34_leverage_above_the_tier_of_the_size_is_refused(gateway: OkxGateway) -> None:
    await gateway.set_leverage("BTCUSDT", 100.0, MarginMode.ISOLATED)
    with pytest.raises(DoNotRetry) as refused:  # 1100 contracts: tier 2, 40x at most
        await gateway.place(order("x", lots=11_000))
    assert refused.value.code == "51004"


async def test_card_35_an_id_of_a_pending_order_cannot_be_used_twice(gateway: OkxGateway) -> None:
    resting = order("l1", kind=OrderKind.LIMIT, price=50_000.0)
    await gateway.place(resting)
    with pytest.raises(DoNotRetry) as refused:
        await gateway.place(resting)
    assert refused.value.code == "51016"


async def test_card_36_a_reused_id_names_the_latest_order(gateway: OkxGateway) -> None:
    await gateway.place(order("again", lots=3))
    report = await gateway.place(order("again", lots=4))
    assert report.filled_lots == 4


@pytest.mark.parametrize("field", ["key", "secret", "passphrase"])
async def test_card_37_a_wrong_key_is_a_clear_user_error(exchange: EmbeddedExchange, field: str) -> None:
    wrong = replace(exchange.credentials, **{field: "wrong"})
    async with OkxGateway(ExchangeSettings(), wrong, exchange.base_url) as gateway:
        with pytest.raises(UserError, match="OKX_API_KEY"):
            await gateway.account()


async def test_card_38_without_a_key_private_calls_say_so(exchange: EmbeddedExchange) -> None:
    async with OkxGateway(ExchangeSettings(), None, exchange.base_url) as gateway:
        with pytest.raises(UserError, match="without an API key"):
            await gateway.account()


async def test_card_39_an_unreachable_exchange_is_said_with_a_hint(exchange: EmbeddedExchange) -> None:
    url = exchange.base_url
    await exchange.stop()
    async with OkxGateway(ExchangeSettings(timeout_s=1.0), None, url) as gateway:
        with pytest.raises(RetryLater, match="reachable"):
            await gateway.server_time_ns()


async def test_card_40_funding_moves_the_margin_of_an_isolated_position(
    exchange: EmbeddedExchange, gateway: OkxGateway, market: FakeMarket
) -> None:
    await exchange.step()
    await gateway.place(order("a1"))
    await exchange.step(8)  # over the settlement at 08:00
    rows = exchange.venue.exchange.bills(exchange.credentials.key)
    paid = [bill for bill in rows if bill.kind.value == "funding"]
    settled = NOW_NS + 8 * NS_PER_HOUR
    rate = market.funding("BTCUSDT", settled, settled + 1).rate[0]
    mark = market.mark_bars("BTCUSDT", NS_PER_HOUR, settled, settled + NS_PER_HOUR).open[0]
    assert [bill.ts_ns for bill in paid] == [settled]
    assert paid[0].funding == pytest.approx(-20 * 0.1 * 0.01 * mark * rate)


async def test_card_41_an_order_that_got_no_answer_is_unknown_and_is_not_sent_again(
    exchange: EmbeddedExchange, gateway: OkxGateway
) -> None:
    await gateway.place(order("a1", lots=1))
    await exchange.stop()
    with pytest.raises(OutcomeUnknown) as lost:
        await gateway.place(order("a2", lots=1))
    assert lost.value.client_order_id == "a2"
    sent = [taken.client_order_id for taken in exchange.venue.exchange.orders(exchange.credentials.key)]
    assert sent == ["a1"]

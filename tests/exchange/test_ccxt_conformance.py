"""Cards 50-79 and 211: the unmodified ccxt async client, called the way any of its users would, against the embedded server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ccxt
import ccxt.async_support as ccxt_async
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from tests.exchange.fake_market import START_NS, FakeMarket

NOW_MS = (START_NS + 62 * NS_PER_DAY) // 10**6
BTC = "BTC/USDT:USDT"


@pytest.fixture
async def client(exchange: EmbeddedExchange) -> AsyncIterator[Any]:
    key = exchange.credentials
    made = ccxt_async.okx(
        {
            "apiKey": key.key,
            "secret": key.secret,
            "password": key.passphrase,
            "enableRateLimit": False,
            "urls": {"api": {"rest": exchange.base_url}},
            "options": {"defaultType": "swap"},
        }
    )
    yield made
    await made.close()


async def test_card_50_load_markets_with_all_its_six_calls(client: Any) -> None:
    markets = await client.load_markets()
    assert {name for name, market in markets.items() if market["active"]} == {BTC, "DOGE/USDT:USDT"}
    btc = markets[BTC]
    assert (btc["swap"], btc["linear"], btc["active"], btc["contractSize"]) == (True, True, True, 0.01)
    assert (btc["precision"], btc["limits"]["leverage"]["max"]) == ({"amount": 0.1, "price": 0.1}, 100.0)
    assert "USDT" in client.currencies


async def test_card_51_time_and_status(client: Any) -> None:
    assert await client.fetch_time() == NOW_MS
    assert (await client.fetch_status())["status"] == "ok"


async def test_card_52_candles_with_the_unfinished_last_bar(client: Any, market: FakeMarket) -> None:
    rows = await client.fetch_ohlcv(BTC, "1h", limit=3)
    true = market.bars("BTCUSDT", NS_PER_HOUR, START_NS, START_NS + 63 * NS_PER_DAY)
    at = 62 * 24
    assert [row[0] for row in rows] == [NOW_MS - 7_200_000, NOW_MS - 3_600_000, NOW_MS]
    assert rows[1][1:5] == [true.open[at - 1], true.high[at - 1], true.low[at - 1], true.close[at - 1]]
    assert rows[1][5] == pytest.approx(true.volume[at - 1])
    assert rows[2][1:] == [true.open[at]] * 4 + [0.0]


async def test_card_53_candles_since_long_ago_come_from_history(client: Any) -> None:
    rows = await client.fetch_ohlcv(BTC, "1h", since=START_NS // 10**6, limit=300)
    assert rows[0][0] == START_NS // 10**6
    assert len(rows) == 300


async def test_card_54_mark_and_index_candles(client: Any) -> None:
    for kind in ("mark", "index"):
        rows = await client.fetch_ohlcv(BTC, "4h", limit=2, params={"price": kind})
        assert len(rows) == 2
        assert rows[0][5] is None


async def test_card_55_tickers_book_and_trades(client: Any, market: FakeMarket) -> None:
    tickers = await client.fetch_tickers()
    assert set(tickers) == {BTC, "DOGE/USDT:USDT"}
    one = await client.fetch_ticker(BTC)
    book = await client.fetch_order_book(BTC, 5)
    assert one["bid"] == book["bids"][0][0] < one["last"] < book["asks"][0][0] == one["ask"]
    assert len(book["asks"]) == 5
    trades = await client.fetch_trades(BTC, limit=50)
    bar = market.bars("BTCUSDT", NS_PER_HOUR, START_NS, START_NS + 62 * NS_PER_DAY)
    assert len(trades) == 50
    assert all(bar.low[-1] <= trade["price"] <= bar.high[-1] for trade in trades)
    assert trades == sorted(trades, key=lambda trade: trade["timestamp"])
    assert trades[-1]["timestamp"] < NOW_MS


async def test_card_56_funding(client: Any, market: FakeMarket) -> None:
    coming = await client.fetch_funding_rate(BTC)
    assert (coming["fundingTimestamp"], coming["interval"]) == (NOW_MS, "8h")
    rates = await client.fetch_funding_rates()
    assert set(rates) == {BTC, "DOGE/USDT:USDT"}
    history = await client.fetch_funding_rate_history(BTC, limit=5)
    true = market.funding("BTCUSDT", START_NS, START_NS + 62 * NS_PER_DAY)
    assert [row["fundingRate"] for row in history] == true.rate[-5:].tolist()
    assert coming["fundingRate"] == true.rate[-1], "the coming rate is not known: the last settled one is shown"


async def test_card_57_open_interest_mark_prices_tiers_and_limits(client: Any) -> None:
    assert (await client.fetch_open_interest(BTC))["openInterestAmount"] == 123_450.0
    assert (await client.fetch_mark_price(BTC))["markPrice"] > 0
    tiers = await client.fetch_market_leverage_tiers(BTC)
    assert [tier["maxLeverage"] for tier in tiers] == [100.0, 40.0, 20.0]
    (limits,) = (await client.publicGetPublicPriceLimit({"instId": "BTC-USDT-SWAP"}))["data"]
    assert float(limits["sellLmt"]) < float(limits["buyLmt"])


async def test_card_211_statistics_of_whole_periods_are_paged_by_since_and_limit(client: Any) -> None:
    rows = await client.fetch_long_short_ratio_history(BTC, "1h", since=NOW_MS - 5 * 3_600_000, limit=3)
    assert [row["timestamp"] for row in rows] == [NOW_MS - k * 3_600_000 for k in (5, 4, 3)]
    assert [row["longShortRatio"] for row in rows] == pytest.approx([1.0 + hour / 24 for hour in (19, 20, 21)])
    newest = await client.fetch_long_short_ratio_history(BTC, "1h")
    assert (len(newest), newest[-1]["timestamp"]) == (100, NOW_MS - 3_600_000), "the period that runs is not told"
    interest = await client.fetch_open_interest_history(BTC, "1h", since=NOW_MS - 5 * 3_600_000, limit=3)
    assert [row["openInterestAmount"] for row in interest] == [123_450.0] * 3
    with pytest.raises(ccxt.BadRequest):
        await client.fetch_long_short_ratio_history(BTC, "7m")


async def test_card_58_balance_and_account_settings(client: Any) -> None:
    balance = await client.fetch_balance()
    assert balance["USDT"] == {"free": 100_000.0, "used": 0.0, "total": 100_000.0}
    assert (await client.fetch_position_mode())["hedged"] is False
    await client.set_position_mode(False)
    fee = await client.fetch_trading_fee(BTC)
    assert float(fee["info"]["takerU"]) == -0.0005
    await client.set_leverage(5, BTC, {"mgnMode": "isolated"})
    await client.set_leverage(4, BTC)
    leverage = await client.fetch_leverage(BTC, {"mgnMode": "isolated"})
    assert leverage["longLeverage"] == 5


async def test_card_59_order_round_trip_through_the_default_batch_path(client: Any, exchange: EmbeddedExchange) -> None:
    made = await client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "isolated", "clOrdId": "mine1"})
    assert made["clientOrderId"] == "mine1"
    seen = await client.fetch_order(made["id"], BTC)
    assert (seen["status"], seen["filled"], seen["amount"], seen["reduceOnly"]) == ("closed", 2.0, 2.0, False)
    assert seen["fee"]["cost"] == pytest.approx(0.0005 * 0.02 * seen["average"])
    (position,) = await client.fetch_positions()
    assert (position["side"], position["contracts"], position["marginMode"], position["hedged"]) == (
        "long",
        2.0,
        "isolated",
        False,
    )
    true = exchange.venue.exchange.snapshot(exchange.credentials.key).positions[0]
    assert position["unrealizedPnl"] == pytest.approx(true.upl)
    assert position["maintenanceMargin"] == pytest.approx(true.mmr)
    assert position["liquidationPrice"] == true.reported_liquidation_price
    assert position["collateral"] == pytest.approx(true.position.isolated_margin + true.upl)
    await client.close_position(BTC, None, {"marginMode": "isolated"})
    assert await client.fetch_positions() == []
    closed = await client.fetch_closed_orders(BTC)
    assert sorted(order["side"] for order in closed) == ["buy", "sell"]
    trades = await client.fetch_my_trades(BTC)
    assert {trade["order"] for trade in trades} == {order["id"] for order in closed}
    assert all(trade["fee"]["cost"] > 0 for trade in trades)
    (past,) = await client.fetch_positions_history([BTC])
    assert past["realizedPnl"] == pytest.approx((await client.fetch_balance())["USDT"]["total"] - 100_000.0, abs=1e-6)


async def test_card_60_limit_orders_amend_and_cancel(client: Any) -> None:
    made = await client.create_order(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})
    (resting,) = await client.fetch_open_orders(BTC)
    assert (resting["id"], resting["price"], resting["status"]) == (made["id"], 50_000.0, "open")
    assert (await client.fetch_balance())["USDT"]["used"] > 0
    await client.edit_order(made["id"], BTC, "limit", "buy", 2.0, 51_000.0)
    (changed,) = await client.fetch_open_orders(BTC)
    assert (changed["amount"], changed["price"]) == (2.0, 51_000.0)
    await client.cancel_order(made["id"], BTC)
    assert await client.fetch_open_orders(BTC) == []
    assert [order["id"] for order in await client.fetch_canceled_orders(BTC)] == [made["id"]]
    with pytest.raises(ccxt.OrderNotFound):
        await client.cancel_order(made["id"], BTC)


async def test_card_61_a_batch_says_which_of_its_orders_failed(client: Any) -> None:
    resting = {"symbol": BTC, "type": "limit", "side": "buy", "price": 50_000.0, "params": {"tdMode": "cross"}}
    made = await client.create_orders([resting | {"amount": 1.0}, resting | {"amount": 99_999_999.0}])
    assert [order["info"]["sCode"] for order in made] == ["0", "51101"]
    ids = [order["id"] for order in await client.fetch_open_orders(BTC)]
    await client.cancel_orders(ids, BTC)


async def test_card_62_attached_protection_is_an_oco_until_the_position_closes(client: Any) -> None:
    protection = {"stopLoss": {"triggerPrice": 90_000.0}, "takeProfit": {"triggerPrice": 150_000.0}, "tdMode": "isolated"}
    await client.create_order(BTC, "market", "buy", 2.0, None, protection)
    (algo,) = await client.fetch_open_orders(BTC, params={"trigger": True, "ordType": "oco"})
    assert (algo["stopLossPrice"], algo["takeProfitPrice"], algo["side"]) == (90_000.0, 150_000.0, "sell")
    assert await client.fetch_open_orders(BTC, params={"trigger": True, "ordType": "conditional"}) == []
    await client.close_position(BTC, None, {"marginMode": "isolated"})
    assert await client.fetch_open_orders(BTC, params={"trigger": True, "ordType": "oco"}) == []
    (gone,) = await client.fetch_canceled_orders(BTC, params={"trigger": True, "ordType": "oco"})
    assert gone["id"] == algo["id"]


async def test_card_63_a_stand_alone_stop_protects_an_open_position(client: Any, exchange: EmbeddedExchange) -> None:
    await client.create_order(BTC, "market", "sell", 2.0, None, {"tdMode": "isolated"})
    stop = {"stopLossPrice": 106_000.0, "tdMode": "isolated", "reduceOnly": True}
    made = await client.create_order(BTC, "market", "buy", 2.0, None, stop)
    (algo,) = await client.fetch_open_orders(BTC, params={"trigger": True, "ordType": "conditional"})
    assert algo["id"] == made["id"]
    await client.cancel_orders([made["id"]], BTC, {"trigger": True})
    assert await client.fetch_open_orders(BTC, params={"trigger": True, "ordType": "conditional"}) == []
    await client.create_order(BTC, "market", "buy", 2.0, None, stop | {"stopLossPrice": 105_500.0})
    await exchange.step(24 * 3)
    assert await client.fetch_positions() == []
    history = await client.privateGetTradeOrdersAlgoHistory({"ordType": "conditional", "state": "effective"})
    (fired,) = history["data"]
    child = await client.fetch_order(fired["ordId"], BTC)
    assert (fired["actualSide"], child["status"], child["side"]) == ("sl", "closed", "buy")


@pytest.mark.parametrize(
    ("amount", "params", "error", "why"),
    [
        (1.0, {"tdMode": "cross", "posSide": "long"}, ccxt.BadRequest, "posSide long in net mode: 51000"),
        (1.0, {"tdMode": "cash"}, ccxt.BadRequest, "no cash trading of swaps: 51000"),
        (1.0, {"tdMode": "cross", "clOrdId": "with-hyphen"}, ccxt.BadRequest, "51000"),
        (9_000.0, {"tdMode": "cross"}, ccxt.InsufficientFunds, "51008"),
        (13_000.0, {"tdMode": "cross"}, ccxt.InvalidOrder, "51202 above maxMktSz"),
        (1.0, {"tdMode": "cross", "reduceOnly": True}, ccxt.ExchangeError, "51169, which ccxt leaves unmapped"),
    ],
)
async def test_card_64_refusals_raise_what_ccxt_raises_at_okx(
    client: Any, amount: float, params: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error) as refused:
        await client.create_order(BTC, "market", "buy", amount, None, params)
    assert type(refused.value) is error, why


async def test_card_65_ledger_and_funding_payments(client: Any, exchange: EmbeddedExchange) -> None:
    await client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "cross"})
    await exchange.step(10)
    (paid, opening) = (await client.fetch_funding_history(BTC))[::-1]
    bills = [bill for bill in exchange.venue.exchange.bills(exchange.credentials.key) if bill.kind.value == "funding"]
    assert [opening["amount"], paid["amount"]] == pytest.approx([bill.funding for bill in bills])
    ledger = await client.fetch_ledger("USDT", params={"instType": "SWAP"})
    assert {entry["type"] for entry in ledger} >= {"trade", "fee"} or len(ledger) >= 3
    total = (await client.fetch_balance())["info"]["data"][0]["details"][0]["cashBal"]
    rows = exchange.venue.exchange.bills(exchange.credentials.key)
    assert float(total) == pytest.approx(sum(bill.cash_change for bill in rows))


def samples(shared: Path) -> dict[str, Any]:
    path = shared / "reference" / "okx_v5_samples.json"
    if not path.exists():
        pytest.skip("recorded OKX samples are not here")
    rest: dict[str, Any] = json.loads(path.read_text())["rest"]
    return rest


ROWS: list[tuple[str, dict[str, str]]] = [
    ("GET public/instruments", {"instType": "SWAP"}),
    ("GET market/ticker", {"instId": "BTC-USDT-SWAP"}),
    ("GET market/books", {"instId": "BTC-USDT-SWAP", "sz": "5"}),
    ("GET market/trades", {"instId": "BTC-USDT-SWAP"}),
    ("GET public/open-interest", {"instType": "SWAP", "instId": "BTC-USDT-SWAP"}),
    ("GET public/mark-price", {"instType": "SWAP"}),
    ("GET public/funding-rate", {"instId": "BTC-USDT-SWAP"}),
    ("GET public/funding-rate-history", {"instId": "BTC-USDT-SWAP"}),
    ("GET public/position-tiers", {"instType": "SWAP", "instFamily": "BTC-USDT", "tdMode": "cross"}),
    ("GET account/config", {}),
    ("GET account/balance", {}),
    ("GET account/positions", {}),
    ("GET account/trade-fee", {"instType": "SWAP"}),
    ("GET account/leverage-info", {"instId": "BTC-USDT-SWAP", "mgnMode": "cross"}),
    ("GET account/bills", {}),
    ("GET account/positions-history", {}),
    ("GET trade/orders-history", {"instType": "SWAP"}),
    ("GET trade/orders-pending", {}),
    ("GET trade/fills-history", {"instType": "SWAP"}),
    ("GET trade/orders-algo-pending", {"ordType": "conditional"}),
]


@pytest.mark.real_data
async def test_card_70_rows_carry_every_field_okx_sends_and_of_its_type(client: Any, shared: Path) -> None:
    await client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "cross", "stopLoss": {"triggerPrice": 90_000.0}})
    await client.create_order(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})
    await client.create_order("DOGE/USDT:USDT", "market", "buy", 2.0, None, {"tdMode": "isolated"})
    await client.close_position("DOGE/USDT:USDT", None, {"marginMode": "isolated"})
    problems: dict[str, list[str]] = {}
    for endpoint, query in ROWS:
        recorded = samples(shared)[endpoint][-1]["response"]["data"][0]
        method, path = endpoint.split()
        scope = "private" if path.split("/")[0] in ("account", "trade") else "public"
        ours = (await client.request(path, [scope], method, query))["data"][0]
        wrong = [name for name, value in recorded.items() if value is not None and type(ours.get(name)) is not type(value)]
        inner = recorded.get("details", [])
        wrong += [f"details.{name}" for name in (inner[0] if inner else {}) if name not in ours["details"][0]]
        if wrong:
            problems[endpoint] = wrong
    assert problems == {}

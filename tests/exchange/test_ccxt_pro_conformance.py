"""Cards 100-129: the unmodified ccxt.pro client on the embedded server's sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ccxt
import ccxt.pro as ccxt_pro
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from tests.exchange.fake_market import START_NS

NOW_MS = (START_NS + 62 * NS_PER_DAY) // 10**6
HOUR_MS = NS_PER_HOUR // 10**6
BTC = "BTC/USDT:USDT"


@pytest.fixture
async def client(exchange: EmbeddedExchange) -> AsyncIterator[Any]:
    key = exchange.credentials
    urls = {"api": {"rest": exchange.base_url, "ws": exchange.base_url.replace("http", "ws") + "/ws/v5"}}
    options = {"defaultType": "swap", "fetchMarkets": {"types": ["swap"]}}
    made = ccxt_pro.okx({"apiKey": key.key, "secret": key.secret, "password": key.passphrase, "urls": urls, "options": options})
    made.enableRateLimit = False
    await made.load_markets()
    yield made
    await made.close()


async def after(waiting: Any, what: Any) -> Any:
    """Return what a watch gives that was waiting when ``what`` was done."""
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0.1)
    await what
    return await asyncio.wait_for(task, 5)


async def test_card_100_ticker_at_once_and_after_each_step(client: Any, exchange: EmbeddedExchange) -> None:
    assert (await client.watch_ticker(BTC))["last"] == (await client.fetch_ticker(BTC))["last"]
    moved = await after(client.watch_ticker(BTC), exchange.step())
    assert moved["timestamp"] == NOW_MS + HOUR_MS
    both = await client.watch_tickers([BTC, "DOGE/USDT:USDT"])
    assert set(both) <= {BTC, "DOGE/USDT:USDT"}


async def test_card_101_candles_close_before_the_next_opens(client: Any, exchange: EmbeddedExchange) -> None:
    first = await client.watch_ohlcv(BTC, "1h")
    assert first[-1][0] == NOW_MS
    told = await after(client.watch_ohlcv(BTC, "1h"), exchange.step())
    await asyncio.sleep(0.05)
    assert list(client.ohlcvs[BTC]["1h"]) == await client.fetch_ohlcv(BTC, "1h", limit=2)
    assert told[-1][0] == NOW_MS


async def test_card_102_the_book_follows_by_sequence_ids(client: Any, exchange: EmbeddedExchange) -> None:
    book = await client.watch_order_book(BTC)
    assert (len(book["asks"]), len(book["bids"])) == (400, 400)
    for _ in range(3):
        book = await after(client.watch_order_book(BTC), exchange.step())
        rest = await client.fetch_order_book(BTC, 400)
        assert book["asks"] == [level[:2] for level in rest["asks"]]
        assert book["bids"] == [level[:2] for level in rest["bids"]]
    small = await client.watch_order_book("DOGE/USDT:USDT", 5)
    assert len(small["bids"]) == 5
    best = await client.watch_bids_asks([BTC])
    assert best[BTC]["bid"] == book["bids"][0][0]


async def test_card_103_trades_of_a_step(client: Any, exchange: EmbeddedExchange) -> None:
    trades = await after(client.watch_trades(BTC), exchange.step())
    assert trades
    assert {t["id"] for t in trades} <= {t["id"] for t in await client.fetch_trades(BTC, limit=200)}


async def test_card_104_mark_price_and_funding(client: Any, exchange: EmbeddedExchange) -> None:
    assert (await client.watch_mark_price(BTC))["markPrice"] == (await client.fetch_mark_price(BTC))["markPrice"]
    assert (await client.watch_funding_rate(BTC))["fundingRate"] == (await client.fetch_funding_rate(BTC))["fundingRate"]


async def test_card_110_an_order_is_told_from_arrival_to_fill(client: Any) -> None:
    watching = client.watch_orders(BTC)
    orders = await after(watching, client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "cross", "clOrdId": "w1"}))
    assert [order["clientOrderId"] for order in orders] == ["w1"]
    await asyncio.sleep(0.1)
    orders = list(client.orders)
    fetched = await client.fetch_order(orders[-1]["id"], BTC)
    for name in ("id", "clientOrderId", "status", "filled", "average", "amount", "side", "type", "reduceOnly", "fee"):
        assert orders[-1][name] == fetched[name], name


async def test_card_111_balance_and_positions_follow_a_fill(client: Any, exchange: EmbeddedExchange) -> None:
    before = await client.watch_balance()
    assert before["USDT"]["total"] == 100_000.0
    assert await after(client.watch_positions(), asyncio.sleep(0)) == []
    task = asyncio.ensure_future(client.watch_positions())
    await client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "isolated"})
    (position,) = await asyncio.wait_for(task, 5)
    (fetched,) = await client.fetch_positions()
    for name in ("contracts", "side", "entryPrice", "marginMode", "liquidationPrice", "maintenanceMargin", "collateral"):
        assert position[name] == fetched[name], name
    before_step = position["markPrice"]  # the client updates its positions in place
    (moved,) = await after(client.watch_positions(), exchange.step())
    assert moved["markPrice"] != before_step
    gone = await after(client.watch_positions(), client.close_position(BTC, None, {"marginMode": "isolated"}))
    assert {position["contracts"] for position in gone} == {0}
    await asyncio.sleep(0.1)
    assert client.balance["USDT"]["total"] == (await client.fetch_balance())["USDT"]["total"]


async def test_card_112_my_trades_come_from_the_orders_channel(client: Any) -> None:
    watching = client.watch_my_trades(BTC)
    (trade,) = await after(watching, client.create_order(BTC, "market", "sell", 1.0, None, {"tdMode": "cross"}))
    (fetched,) = await client.fetch_my_trades(BTC)
    for name in ("id", "order", "side", "price", "amount", "takerOrMaker", "timestamp"):
        assert trade[name] == fetched[name], name


async def test_card_113_orders_over_the_socket(client: Any) -> None:
    made = await client.create_order_ws(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})
    await client.edit_order_ws(made["id"], BTC, "limit", "buy", 2.0, 51_000.0)
    (resting,) = await client.fetch_open_orders(BTC)
    assert (resting["id"], resting["amount"], resting["price"]) == (made["id"], 2.0, 51_000.0)
    await client.cancel_order_ws(made["id"], BTC)
    assert await client.fetch_open_orders(BTC) == []
    two = [(await client.create_order_ws(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"}))["id"] for _ in range(2)]
    await client.cancel_orders_ws(two, BTC)
    assert await client.fetch_open_orders(BTC) == []
    with pytest.raises(ccxt.InvalidOrder):
        await client.create_order_ws(BTC, "limit", "buy", 99_999_999.0, 50_000.0, {"tdMode": "cross"})


async def test_card_114_a_wrong_secret_is_an_authentication_error(client: Any) -> None:
    client.secret = "wrong"
    with pytest.raises(ccxt.AuthenticationError):
        await client.watch_balance()


async def test_card_115_a_channel_that_does_not_exist_is_refused(client: Any) -> None:
    with pytest.raises(ccxt.BadRequest):
        await client.watch_ohlcv(BTC, "1m")  # finer than the market's own bars

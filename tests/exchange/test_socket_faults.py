"""Faults of the sockets, as the real ccxt.pro client meets them."""

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


async def after_step(exchange: EmbeddedExchange, waiting: Any) -> Any:
    """Return what a watch gives that was waiting when the market moved."""
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0.1)
    await exchange.step()
    return await asyncio.wait_for(task, 2)


@pytest.mark.parametrize("fault", ["socket_drop", "notice"])
async def test_a_broken_socket_is_an_error_and_the_next_call_connects_again(
    client: Any, exchange: EmbeddedExchange, fault: str
) -> None:
    await client.watch_ticker(BTC)
    exchange.switchboard.switch({"fault": fault, "times": 1})
    with pytest.raises(ccxt.NetworkError):
        await after_step(exchange, client.watch_ticker(BTC))
    assert (await asyncio.wait_for(client.watch_ticker(BTC), 2))["timestamp"] == NOW_MS + HOUR_MS


async def test_the_notice_before_the_end_is_64008(client: Any, exchange: EmbeddedExchange) -> None:
    heard: list[Any] = []
    ours = client.handle_message
    client.handle_message = lambda socket, message: (heard.append(message), ours(socket, message))[1]
    await client.watch_ticker(BTC)
    exchange.switchboard.switch({"fault": "notice", "times": 1})
    with pytest.raises(ccxt.NetworkError):
        await after_step(exchange, client.watch_ticker(BTC))
    assert [(m["event"], m["code"]) for m in heard if isinstance(m, dict) and "code" in m] == [("notice", "64008")]


async def test_a_silent_socket_stays_open_and_says_nothing(client: Any, exchange: EmbeddedExchange) -> None:
    await client.watch_ticker(BTC)
    exchange.switchboard.switch({"fault": "socket_silent", "times": 1})
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await after_step(exchange, asyncio.wait_for(client.watch_ticker(BTC), 0.5))
    assert len(exchange.sockets.sessions) == 1, "it looks alive; only a watchdog on the last message finds out"


async def test_a_lost_book_message_does_not_fit_the_sequence(client: Any, exchange: EmbeddedExchange) -> None:
    await client.watch_order_book(BTC)
    exchange.switchboard.switch({"fault": "sequence_gap", "times": 1})
    await exchange.step()
    with pytest.raises(ccxt.InvalidNonce):
        await after_step(exchange, client.watch_order_book(BTC))
    book = await asyncio.wait_for(client.watch_order_book(BTC), 2)
    assert book["bids"][0][:2] == (await client.fetch_order_book(BTC))["bids"][0][:2], "subscribed anew, it is whole again"


async def test_a_doubled_message_is_told_twice(client: Any, exchange: EmbeddedExchange) -> None:
    exchange.switchboard.switch({"fault": "duplicate", "where": "trades"})
    await after_step(exchange, client.watch_trades(BTC))
    await asyncio.sleep(0.1)
    ids = [trade["id"] for trade in client.trades[BTC] if trade["timestamp"] > NOW_MS]
    assert len(ids) > len(set(ids)), "the client does not notice; whoever counts volume must go by trade id"


async def test_a_late_message_comes_after_the_next_one(client: Any, exchange: EmbeddedExchange) -> None:
    await client.watch_ticker(BTC)
    exchange.switchboard.switch({"fault": "reorder", "times": 1, "where": "tickers"})
    await exchange.step(2)
    await asyncio.sleep(0.1)
    assert client.tickers[BTC]["timestamp"] == NOW_MS + HOUR_MS, "the newest the client knows is the older one"
    await exchange.step()
    await asyncio.sleep(0.1)
    assert client.tickers[BTC]["timestamp"] == NOW_MS + 3 * HOUR_MS


async def test_one_socket_breaks_and_the_others_live(client: Any, exchange: EmbeddedExchange) -> None:
    await client.watch_ticker(BTC)
    await client.watch_balance()
    exchange.switchboard.switch({"fault": "socket_drop", "times": 1, "where": "tickers"})
    with pytest.raises(ccxt.NetworkError):
        await after_step(exchange, client.watch_ticker(BTC))
    waiting = asyncio.ensure_future(client.watch_orders())
    await asyncio.sleep(0.1)
    await client.create_order(BTC, "market", "buy", 1, None, {"tdMode": "isolated"})
    assert (await asyncio.wait_for(waiting, 2))[0]["status"] == "closed"

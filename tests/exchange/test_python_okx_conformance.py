"""Cards 130-149: OKX's own Python SDK, REST and sockets, unmodified, over TLS.

The SDK's sockets speak TLS only and trust what ``SSL_CERT_FILE`` names; its REST client sends every optional argument as an
empty string, JSON with spaces, a bare comma in queries, and the demo header unless told otherwise.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from crypto_qlib.core.clock import SystemClock
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from crypto_qlib.exchange.embedded.tls import own_certificate
from tests.exchange.fake_market import FakeMarket
from tests.exchange.test_embedded_server import NOW_NS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK's own
    pytest.importorskip("okx", reason="the official SDK is an extra of the tests: python-okx")
    from okx.Account import AccountAPI
    from okx.MarketData import MarketAPI
    from okx.PublicData import PublicAPI
    from okx.Trade import TradeAPI
    from okx.websocket.WsPrivateAsync import WsPrivateAsync
    from okx.websocket.WsPublicAsync import WsPublicAsync

SWAP = "BTC-USDT-SWAP"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[EmbeddedExchangeThread]:
    with EmbeddedExchangeThread(EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS))) as thread:
        yield thread


@pytest.fixture
def rest(served: EmbeddedExchangeThread) -> Iterator[dict[str, Any]]:
    key = served.exchange.credentials
    terms = {"flag": "0", "domain": served.base_url}
    signed = {"api_key": key.key, "api_secret_key": key.secret, "passphrase": key.passphrase} | terms
    made = {
        "account": AccountAPI(**signed),
        "trade": TradeAPI(**signed),
        "market": MarketAPI(**terms),
        "public": PublicAPI(**terms),
    }
    yield made
    for client in made.values():
        client.close()


def data(answer: dict[str, Any]) -> list[Any]:
    assert answer["code"] == "0", answer
    return list(answer["data"])


def test_card_130_public_data(rest: dict[str, Any]) -> None:
    public, market = rest["public"], rest["market"]
    assert data(public.get_system_time())[0]["ts"] == str(NOW_NS // 10**6)
    live = {row["instId"] for row in data(public.get_instruments("SWAP")) if row["state"] == "live"}
    assert live == {SWAP, "DOGE-USDT-SWAP"}
    assert len(data(market.get_candlesticks(SWAP, bar="1H", limit="5"))) == 5
    assert len(data(market.get_history_candlesticks(SWAP, bar="1H", limit="300"))) == 300
    assert len(data(market.get_mark_price_candlesticks(SWAP, bar="1H"))) == 100
    assert data(market.get_ticker(SWAP))[0]["instId"] == SWAP
    assert len(data(market.get_orderbook(SWAP, sz="10"))[0]["asks"]) == 10
    assert len(data(market.get_trades(SWAP, limit="20"))) == 20
    for answer in (
        public.get_funding_rate(SWAP), public.funding_rate_history(SWAP), public.get_price_limit(SWAP),
        public.get_open_interest("SWAP"), public.get_mark_price("SWAP"), market.get_tickers("SWAP"),
        public.get_position_tiers("SWAP", "cross", instFamily="BTC-USDT"), market.get_index_tickers(instId="BTC-USDT"),
    ):  # fmt: skip
        assert data(answer)


def test_card_131_account_settings(rest: dict[str, Any]) -> None:
    account = rest["account"]
    assert data(account.get_account_config())[0]["posMode"] == "net_mode"
    assert data(account.get_account_balance())[0]["details"][0]["eq"] == "100000"
    assert data(account.set_leverage("7", "isolated", instId=SWAP))[0]["lever"] == "7"
    assert data(account.get_leverage("isolated", instId=f"{SWAP},DOGE-USDT-SWAP"))[0]["lever"] == "7", (
        "a bare comma is signed too"
    )
    assert data(account.get_fee_rates("SWAP", instFamily="BTC-USDT"))[0]["takerU"] == "-0.0005"
    assert data(account.set_position_mode("long_short_mode"))[0]["posMode"] == "long_short_mode"


def test_card_132_an_order_through_its_life(rest: dict[str, Any], served: EmbeddedExchangeThread) -> None:
    trade, account = rest["trade"], rest["account"]
    made = data(trade.place_order(SWAP, "cross", "buy", "limit", "2", px="50000", clOrdId="sdk1"))[0]
    assert made["sCode"] == "0"
    data(trade.amend_order(SWAP, ordId=made["ordId"], newSz="3", newPx="51000"))
    (waiting,) = data(trade.get_order_list(instId=SWAP))
    assert (waiting["sz"], waiting["px"], waiting["clOrdId"]) == ("3", "51000", "sdk1")
    data(trade.cancel_order(SWAP, clOrdId="sdk1"))
    assert data(trade.get_order(SWAP, ordId=made["ordId"]))[0]["state"] == "canceled"
    market = {"instId": SWAP, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": "1"}
    rows = data(trade.place_multiple_orders([market, market | {"sz": "2"}]))
    assert [row["sCode"] for row in rows] == ["0", "0"]
    (position,) = data(account.get_positions(instId=SWAP))
    assert (position["pos"], position["mgnMode"]) == ("3", "cross")
    served.step(10)
    assert len(data(account.get_account_bills())) >= 3
    assert len(data(account.get_account_bills_archive(type="8"))) >= 1, "funding was settled meanwhile"
    data(trade.close_positions(SWAP, "cross"))
    assert data(account.get_positions()) == []
    assert len(data(trade.get_orders_history("SWAP"))) == 3, "an unfilled order that was cancelled is kept for two hours"
    assert len(data(trade.get_fills())) == len(data(trade.get_fills_history("SWAP"))) == 3
    assert data(account.get_positions_history())[0]["instId"] == SWAP


def test_card_133_algo_orders(rest: dict[str, Any]) -> None:
    trade = rest["trade"]
    data(trade.place_order(SWAP, "cross", "buy", "market", "2"))
    stop = {"slTriggerPx": "90000", "slOrdPx": "-1", "algoClOrdId": "stop1"}
    made = data(trade.place_algo_order(SWAP, "cross", "sell", "conditional", "2", reduceOnly="true", **stop))[0]
    (waiting,) = data(trade.order_algos_list(ordType="conditional"))
    assert (waiting["algoId"], waiting["algoClOrdId"], waiting["slTriggerPx"]) == (made["algoId"], "stop1", "90000")
    data(trade.amend_algo_order(instId=SWAP, algoId=made["algoId"], newSlTriggerPx="91000"))
    assert data(trade.get_algo_order_details(algoId=made["algoId"]))[0]["slTriggerPx"] == "91000"
    data(trade.cancel_algo_order([{"instId": SWAP, "algoId": made["algoId"]}]))
    assert data(trade.order_algos_history("conditional", state="canceled"))[0]["algoId"] == made["algoId"]


def test_card_134_refusals_keep_okx_form(rest: dict[str, Any]) -> None:
    answer = rest["trade"].place_order(SWAP, "cross", "buy", "market", "9000")
    assert (answer["code"], answer["data"][0]["sCode"]) == ("1", "51008")
    answer = rest["account"].set_leverage("1000", "cross", instId=SWAP)
    assert (answer["code"], answer["data"]) == ("59102", [])
    rest["account"].PASSPHRASE = "wrong"
    answer = rest["account"].get_account_balance()
    assert (answer["code"], "data" in answer) == ("50105", False)


@pytest.fixture
async def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EmbeddedExchange]:
    files = own_certificate(tmp_path, "127.0.0.1", SystemClock())
    monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))
    async with EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS, tls=files)) as exchange:
        yield exchange


async def until(messages: list[dict[str, Any]], what: Any, seconds: float = 10.0) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        while True:
            found = [message for message in messages if what(message)]
            if found:
                return found[0]
            await asyncio.sleep(0.02)


async def test_card_140_public_socket_over_tls(secure: EmbeddedExchange) -> None:
    heard: list[dict[str, Any]] = []
    socket = WsPublicAsync(url=secure.base_url.replace("https", "wss") + "/ws/v5/public")
    listening = await socket.start()
    await socket.subscribe([{"channel": "tickers", "instId": SWAP}], callback=lambda text: heard.append(json.loads(text)))
    await until(heard, lambda m: m.get("event") == "subscribe")
    await until(heard, lambda m: m.get("data"))
    heard.clear()
    await secure.step()
    assert (await until(heard, lambda m: m.get("data")))["arg"] == {"channel": "tickers", "instId": SWAP}
    await socket.stop()
    await listening


@pytest.mark.slow
async def test_card_141_private_socket_logs_in_subscribes_and_trades(secure: EmbeddedExchange) -> None:
    heard: list[dict[str, Any]] = []
    key = secure.credentials
    url = secure.base_url.replace("https", "wss") + "/ws/v5/private"
    socket = WsPrivateAsync(apiKey=key.key, passphrase=key.passphrase, secretKey=key.secret, url=url)
    listening = await socket.start()
    # The SDK waits five seconds after its login and never pings.
    channels = [{"channel": "orders", "instType": "ANY"}, {"channel": "account"}]
    await socket.subscribe(channels, callback=lambda text: heard.append(json.loads(text)))
    await until(heard, lambda m: m.get("arg", {}).get("channel") == "account" and m.get("data"))
    row = {"instIdCode": 100_000, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": "1"}
    await socket.place_order([row], id="17")
    answer = await until(heard, lambda m: m.get("id") == "17")
    assert (answer["op"], answer["code"], answer["data"][0]["sCode"]) == ("order", "0", "0")
    filled = await until(heard, lambda m: m.get("data") and m["data"][0].get("state") == "filled")
    assert filled["data"][0]["ordId"] == answer["data"][0]["ordId"]
    await socket.stop()
    await listening

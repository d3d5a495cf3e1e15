"""Cards 71-79: the unmodified synchronous ccxt client, against the server in its thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ccxt
import pytest

from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from tests.exchange.fake_market import FakeMarket
from tests.exchange.test_embedded_server import NOW_NS

BTC = "BTC/USDT:USDT"


@pytest.fixture
def served() -> Iterator[EmbeddedExchangeThread]:
    with EmbeddedExchangeThread(EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS))) as thread:
        yield thread


@pytest.fixture
def client(served: EmbeddedExchangeThread) -> Iterator[Any]:
    key = served.exchange.credentials
    made = ccxt.okx(
        {
            "apiKey": key.key, "secret": key.secret, "password": key.passphrase, "enableRateLimit": False,
            "urls": {"api": {"rest": served.base_url}}, "options": {"defaultType": "swap"},
        }
    )  # fmt: skip
    yield made
    made.session.close()


def test_card_71_public_data(client: Any) -> None:
    assert BTC in client.load_markets()
    assert client.fetch_time() == NOW_NS // 10**6
    assert len(client.fetch_ohlcv(BTC, "1h", limit=5)) == 5
    ticker, book = client.fetch_ticker(BTC), client.fetch_order_book(BTC, 5)
    assert book["bids"][0][0] == ticker["bid"] < ticker["ask"] == book["asks"][0][0]
    assert len(client.fetch_trades(BTC, limit=10)) == 10
    assert client.fetch_funding_rate(BTC)["interval"] == "8h"
    assert client.fetch_funding_rate_history(BTC, limit=3)
    assert [tier["maxLeverage"] for tier in client.fetch_market_leverage_tiers(BTC)] == [100.0, 40.0, 20.0]


def test_card_72_orders_positions_and_history(client: Any, served: EmbeddedExchangeThread) -> None:
    client.set_leverage(5, BTC, {"mgnMode": "cross"})
    resting = client.create_order(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})
    client.edit_order(resting["id"], BTC, "limit", "buy", 2.0, 51_000.0)
    assert [(o["amount"], o["price"]) for o in client.fetch_open_orders(BTC)] == [(2.0, 51_000.0)]
    client.cancel_order(resting["id"], BTC)
    bought = client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "cross", "stopLoss": {"triggerPrice": 90_000.0}})
    assert client.fetch_order(bought["id"], BTC)["status"] == "closed"
    (stop,) = client.fetch_open_orders(BTC, params={"trigger": True, "ordType": "conditional"})
    assert stop["stopLossPrice"] == 90_000.0
    served.step(9)
    (position,) = client.fetch_positions()
    assert (position["side"], position["contracts"], position["leverage"]) == ("long", 2.0, 5.0)
    assert client.fetch_funding_history(BTC)
    client.close_position(BTC, None, {"marginMode": "cross"})
    assert client.fetch_positions() == []
    assert len(client.fetch_my_trades(BTC)) == 2
    assert client.fetch_positions_history([BTC])[0]["info"]["closeTotalPos"] == "2"


def test_card_73_refusals(client: Any) -> None:
    with pytest.raises(ccxt.InsufficientFunds):
        client.create_order(BTC, "market", "buy", 9_000.0, None, {"tdMode": "cross"})
    with pytest.raises(ccxt.OrderNotFound):
        client.cancel_order("1", BTC)
    client.password = "wrong"
    with pytest.raises(ccxt.AuthenticationError):
        client.fetch_balance()


@pytest.mark.parametrize(("side", "factor"), [("buy", 1.06), ("sell", 0.94)])
def test_card_74_a_price_beyond_the_band_is_refused_and_the_other_side_is_free(client: Any, side: str, factor: float) -> None:
    limits = client.publicGetPublicPriceLimit({"instId": "BTC-USDT-SWAP"})["data"][0]
    last = client.fetch_ticker(BTC)["last"]
    with pytest.raises(ccxt.InvalidOrder, match="51006"):
        client.create_order(BTC, "limit", side, 1.0, round(last * factor, 1), {"tdMode": "cross"})
    client.create_order(BTC, "limit", side, 1.0, float(limits["buyLmt" if side == "buy" else "sellLmt"]), {"tdMode": "cross"})
    other = round(last * (0.5 if side == "buy" else 1.5), 1)
    made = client.create_order(BTC, "limit", side, 1.0, other, {"tdMode": "cross"})
    with pytest.raises(ccxt.InvalidOrder, match="51006"):
        client.edit_order(made["id"], BTC, "limit", side, 1.0, round(last * factor, 1))

"""Cards 85-92: algo orders as orders of their own, through the unmodified ccxt client."""

from __future__ import annotations

from typing import Any

import ccxt
import pytest

from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from tests.exchange.test_ccxt_conformance import BTC, client

__all__ = ["client"]


async def pending(client: Any, kind: str) -> list[Any]:
    return list(await client.fetch_open_orders(BTC, params={"trigger": True, "ordType": kind}))


async def last(client: Any) -> float:
    return float((await client.fetch_ticker(BTC))["last"])


async def test_card_85_two_stops_of_half_the_position_each_stand_side_by_side(client: Any) -> None:
    await client.create_order(BTC, "market", "buy", 4.0, None, {"tdMode": "cross"})
    for level in (100_000.0, 101_000.0):
        await client.create_order(BTC, "market", "sell", 2.0, None, {"tdMode": "cross", "stopLossPrice": level})
    assert sorted(algo["stopLossPrice"] for algo in await pending(client, "conditional")) == [100_000.0, 101_000.0]
    assert [algo["amount"] for algo in await pending(client, "conditional")] == [2.0, 2.0]


async def test_card_86_a_trigger_entry_becomes_an_order_that_names_it(client: Any, exchange: EmbeddedExchange) -> None:
    level = round(await last(client) * 1.001, 1)
    params = {"tdMode": "cross", "triggerPrice": level, "clOrdId": "entry1"}
    made = await client.create_order(BTC, "market", "buy", 1.0, None, params)
    (waiting,) = await pending(client, "trigger")
    assert (waiting["id"], waiting["triggerPrice"], waiting["clientOrderId"]) == (made["id"], level, "entry1")
    assert (await client.fetch_balance())["USDT"]["used"] == 0, "a waiting trigger order holds no margin"
    await exchange.step()
    assert await pending(client, "trigger") == []
    algo = await client.fetch_order(made["id"], BTC, {"trigger": True})
    assert algo["status"] == "closed"
    child = await client.fetch_order(algo["info"]["ordId"], BTC)
    assert (child["status"], child["info"]["algoId"], child["info"]["algoClOrdId"]) == ("closed", made["id"], "entry1")
    assert child["average"] >= level


async def test_card_87_one_cancels_the_other(client: Any, exchange: EmbeddedExchange) -> None:
    await client.create_order(BTC, "market", "buy", 1.0, None, {"tdMode": "cross"})
    now = await last(client)
    levels = {"stopLossPrice": round(now * 0.9, 1), "takeProfitPrice": round(now * 1.002, 1)}
    made = await client.create_order(BTC, "market", "sell", 1.0, None, {"tdMode": "cross", "reduceOnly": True} | levels)
    assert [algo["id"] for algo in await pending(client, "oco")] == [made["id"]]
    await exchange.step(2)
    assert await client.fetch_positions() == []
    done = await client.fetch_order(made["id"], BTC, {"trigger": True})
    assert (done["status"], done["info"]["actualSide"]) == ("closed", "tp")


async def test_card_88_trailing_by_ratio(client: Any, exchange: EmbeddedExchange) -> None:
    await client.create_order(BTC, "market", "buy", 1.0, None, {"tdMode": "cross"})
    made = await client.create_order(BTC, "market", "sell", 1.0, None, {"tdMode": "cross", "trailingPercent": "1"})
    (algo,) = await pending(client, "move_order_stop")
    assert (algo["id"], algo["info"]["callbackRatio"], algo["info"]["moveTriggerPx"]) == (
        made["id"], "0.01", str(await last(client)),
    )  # fmt: skip
    await exchange.step(24 * 4)
    assert await client.fetch_positions() == []
    assert (await client.fetch_order(made["id"], BTC, {"trigger": True}))["status"] == "closed"


async def test_card_89_amended_then_cancelled(client: Any) -> None:
    await client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "cross"})
    made = await client.create_order(BTC, "market", "sell", 2.0, None, {"tdMode": "cross", "stopLossPrice": 100_000.0})
    change = {"instId": "BTC-USDT-SWAP", "algoId": made["id"], "newSlTriggerPx": "99000", "newSz": "1"}
    await client.privatePostTradeAmendAlgos(change)
    (algo,) = await pending(client, "conditional")
    assert (algo["id"], algo["stopLossPrice"], algo["amount"]) == (made["id"], 99_000.0, 1.0)
    await client.cancel_order(made["id"], BTC, {"trigger": True})
    assert await pending(client, "conditional") == []
    with pytest.raises(ccxt.OrderNotFound):
        await client.cancel_order(made["id"], BTC, {"trigger": True})


@pytest.mark.parametrize(
    ("side", "params", "code"),
    [
        ("sell", {"stopLossPrice": 1.02}, "51280"),
        ("sell", {"takeProfitPrice": 0.98}, "51279"),
        ("buy", {"stopLossPrice": 0.98}, "51278"),
        ("buy", {"takeProfitPrice": 1.02}, "51277"),
    ],
)
async def test_card_90_a_level_already_passed_is_refused(client: Any, side: str, params: dict[str, float], code: str) -> None:
    now = await last(client)
    levels = {name: round(factor * now, 1) for name, factor in params.items()}
    with pytest.raises(ccxt.InvalidOrder, match=code):
        await client.create_order(BTC, "market", side, 1.0, None, {"tdMode": "cross"} | levels)


async def test_card_91_closing_the_position_takes_its_closing_orders_with_it(client: Any) -> None:
    await client.create_order(BTC, "market", "buy", 2.0, None, {"tdMode": "cross"})
    params = {"tdMode": "cross", "stopLossPrice": 100_000.0, "reduceOnly": True}
    made = await client.create_order(BTC, "market", "sell", 2.0, None, params)
    await client.close_position(BTC, None, {"marginMode": "cross"})
    gone = await client.fetch_order(made["id"], BTC, {"trigger": True})
    assert gone["status"] == "canceled"


async def test_card_92_iceberg_and_twap_are_refused(client: Any) -> None:
    row = {"instId": "BTC-USDT-SWAP", "tdMode": "cross", "side": "buy", "ordType": "twap", "sz": "1"}
    with pytest.raises(ccxt.BadRequest, match="ordType"):
        await client.privatePostTradeOrderAlgo(row)

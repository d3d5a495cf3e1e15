"""The life of an instrument as clients meet it: preopen, live, suspended, delisted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import ccxt
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MS
from crypto_qlib.exchange.embedded.market_window import ANNOUNCED_NS
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from tests.exchange.ccxt_clients import okx_client
from tests.exchange.fake_market import START_NS, FakeMarket
from tests.exchange.raw_socket import dialled

LATE, LATE_ID = "LATE/USDT:USDT", "LATE-USDT-SWAP"
LISTED_NS, DELISTED_NS = START_NS + 20 * NS_PER_DAY, START_NS + 50 * NS_PER_DAY


@pytest.fixture
async def young() -> AsyncIterator[EmbeddedExchange]:
    """An exchange two hours before LATE is announced."""
    start = LISTED_NS - ANNOUNCED_NS - 2 * NS_PER_HOUR
    async with EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=start)) as running:
        yield running


async def states(client: Any) -> dict[str, str]:
    return {row["instId"]: row["state"] for row in (await client.public_get_public_instruments({"instType": "SWAP"}))["data"]}


async def test_a_swap_is_announced_traded_suspended_and_delisted(young: EmbeddedExchange) -> None:
    client = okx_client(young.base_url, young.credentials)
    raw = {"instId": LATE_ID, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": "1"}

    async def refusal() -> str:
        answer = await client.private_post_trade_order(raw)
        return str(answer["data"][0]["sCode"])

    client.handle_errors = lambda *_: None
    try:
        assert LATE_ID not in await states(client)
        assert await refusal() == "51001"
        await young.step(2)
        assert (await states(client))[LATE_ID] == "preopen"
        row = (await client.public_get_public_instruments({"instType": "SWAP", "instId": LATE_ID}))["data"][0]
        assert row["listTime"] == str(LISTED_NS // NS_PER_MS)
        assert await refusal() == "51021"
        algo = raw | {"ordType": "trigger", "triggerPx": "1", "orderPx": "-1"}
        assert (await client.private_post_trade_order_algo(algo))["data"][0]["sCode"] == "51021"
        assert LATE_ID not in {t["instId"] for t in (await client.public_get_market_tickers({"instType": "SWAP"}))["data"]}
        await young.step(24)
        assert (await states(client))[LATE_ID] == "live"
        assert await refusal() == "0"
        young.switchboard.switch({"fault": "suspend", "symbol": LATE_ID, "on": True})
        assert (await states(client))[LATE_ID] == "suspend"
        assert await refusal() == "51022"
        young.switchboard.switch({"fault": "suspend", "symbol": LATE_ID, "on": False})
        await young.step()
        resting = await client.private_post_trade_order(raw | {"ordType": "limit", "px": "19"})
        assert resting["data"][0]["sCode"] == "0"
        await young.step((DELISTED_NS - young.clock.market_ns) // NS_PER_HOUR + 1)
        assert (await states(client))[LATE_ID] == "suspend"
        assert await refusal() == "51001"
        gone = (await client.private_get_account_positions_history({}))["data"][0]
        assert (gone["instId"], gone["uTime"]) == (LATE_ID, str(DELISTED_NS // NS_PER_MS))
        bills = (await client.private_get_account_bills_archive({"type": "3"}))["data"]
        assert [bill["subType"] for bill in bills] == ["112"]
        orders = (await client.private_get_trade_orders_history_archive({"instType": "SWAP", "instId": LATE_ID}))["data"]
        assert {order["category"] for order in orders} >= {"delivery"}
    finally:
        await client.close()


async def test_the_instruments_channel_tells_each_change_of_state(young: EmbeddedExchange) -> None:
    async with dialled(young.base_url, "public") as socket:
        await socket.subscribe(channel="instruments", instType="SWAP")
        assert LATE_ID not in {row["instId"] for row in (await socket.read())["data"]}
        await young.step(2)
        assert [(row["instId"], row["state"]) for row in (await socket.read())["data"]] == [(LATE_ID, "preopen")]
        await young.step(24)
        assert [(row["instId"], row["state"]) for row in (await socket.read())["data"]] == [(LATE_ID, "live")]
        young.switchboard.switch({"fault": "suspend", "symbol": LATE_ID, "on": True})
        await young.step()
        assert [(row["instId"], row["state"]) for row in (await socket.read())["data"]] == [(LATE_ID, "suspend")]


async def test_ccxt_sees_an_announced_swap_as_inactive(young: EmbeddedExchange) -> None:
    await young.step(2)
    client = okx_client(young.base_url, young.credentials)
    try:
        markets = await client.load_markets()
        assert markets[LATE]["active"] is False
        with pytest.raises(ccxt.ContractUnavailable, match="51021"):
            await client.create_order(LATE, "market", "buy", 1)
    finally:
        await client.close()

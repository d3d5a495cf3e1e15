"""Every fault, as the real ccxt client meets it: what it sees, and whether the order exists afterwards."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import ccxt.async_support as ccxt
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.exchange.embedded.fault_switchboard import NAMES
from crypto_qlib.exchange.embedded.faults import Fault, FaultOptions, FaultRule, Faults
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.scheduler.exchange_access import fault_options
from crypto_qlib.settings.schema import FaultSettings
from tests.exchange.ccxt_clients import okx_client
from tests.exchange.fake_market import START_NS, FakeMarket

NOW_NS = START_NS + 62 * NS_PER_DAY
BTC = "BTC/USDT:USDT"


@pytest.fixture
async def okx(exchange: EmbeddedExchange) -> AsyncIterator[Any]:
    client = okx_client(exchange.base_url, exchange.credentials)
    try:
        await client.load_markets()
        yield client
    finally:
        await client.close()


async def switch(exchange: EmbeddedExchange, **posted: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{exchange.base_url}/admin/fault", json=posted) as answer,
    ):
        return answer.status, await answer.json()


async def buy(okx: Any, name: str, kind: str = "market", price: float | None = None, **more: Any) -> Any:
    return await okx.create_order(BTC, kind, "buy", 1, price, {"clOrdId": name, "tdMode": "isolated"} | more)


async def exists(okx: Any, name: str) -> bool:
    try:
        await okx.fetch_order(None, BTC, {"clientOrderId": name})
    except ccxt.OrderNotFound:
        return False
    return True


CARDS = [
    ("rate_limit", ccxt.RateLimitExceeded, False, "refused before it was looked at"),
    ("unavailable", ccxt.OnMaintenance, False, "refused before it was looked at"),
    ("timeout", ccxt.RequestTimeout, True, "50004 says nothing, and here the order was placed"),
    ("server_error", ccxt.ExchangeError, True, "HTTP 500 with 51149, and the order was placed"),
    ("drop", ccxt.NetworkError, True, "the answer never came, and the order was placed"),
]


@pytest.mark.parametrize(("name", "error", "is_placed", "why"), CARDS, ids=[row[0] for row in CARDS])
async def test_an_order_meets_the_fault_and_exists_or_not(
    exchange: EmbeddedExchange, okx: Any, name: str, error: type[Exception], is_placed: bool, why: str
) -> None:
    status, shown = await switch(exchange, fault=name, times=1, where="trade/")
    assert (status, shown["on"][name]["times"]) == (200, 1)
    with pytest.raises(error):
        await buy(okx, "f1")
    await switch(exchange, fault="off")
    assert await exists(okx, "f1") is is_placed, why
    assert (await buy(okx, "f2"))["id"], "it is over after the one time"


async def test_a_bad_gateway_answers_html_and_leaves_open_what_happened(exchange: EmbeddedExchange, okx: Any) -> None:
    await switch(exchange, fault="bad_gateway", where="trade/batch-orders")
    for k in range(12):
        with pytest.raises(ccxt.ExchangeNotAvailable, match="502"):
            await buy(okx, f"g{k}")
    placed = [await exists(okx, f"g{k}") for k in range(12)]
    assert 0 < sum(placed) < 12, "some were carried out and some were not; the answer does not tell which"


async def test_a_burst_of_refusals_lasts_five_requests(exchange: EmbeddedExchange, okx: Any) -> None:
    await switch(exchange, fault="rate_limit", times=1, where="account/balance")
    for _ in range(5):
        with pytest.raises(ccxt.RateLimitExceeded):
            await okx.fetch_balance()
    assert (await okx.fetch_balance())["USDT"]["total"] == 100_000.0


async def test_answers_come_late(exchange: EmbeddedExchange, okx: Any) -> None:
    began = time.perf_counter()
    await okx.fetch_time()
    at_once = time.perf_counter() - began
    await switch(exchange, fault="latency", ms=200)
    await switch(exchange, fault="jitter", ms=20)
    began = time.perf_counter()
    await okx.fetch_time()
    assert time.perf_counter() - began > 0.2 > at_once
    okx.timeout = 100
    with pytest.raises(ccxt.RequestTimeout):
        await okx.fetch_time()


async def test_a_skewed_clock_is_refused_until_the_client_asks_the_time(exchange: EmbeddedExchange, okx: Any) -> None:
    await okx.fetch_balance()
    await switch(exchange, fault="clock_skew", ms=60_000)
    with pytest.raises(ccxt.InvalidNonce, match="50102"):
        await okx.fetch_balance()
    await okx.load_time_difference()
    await okx.fetch_balance()


async def test_a_suspended_instrument_says_so_and_trades_nothing(exchange: EmbeddedExchange, okx: Any) -> None:
    await buy(okx, "s1")
    resting = await buy(okx, "s2", "limit", 60_000.0)
    await switch(exchange, fault="suspend", symbol="BTC-USDT-SWAP")
    with pytest.raises(ccxt.ContractUnavailable, match="51022"):
        await buy(okx, "s3")
    assert (await okx.fetch_markets())[0]["active"] is False
    await exchange.step(24)
    assert (await okx.fetch_order(resting["id"], BTC))["status"] == "open", "nothing fills while it is suspended"
    await switch(exchange, fault="suspend", symbol="BTCUSDT", on=False)
    await exchange.step(1)
    await buy(okx, "s4")


async def test_funding_steps_from_eight_hours_to_four_and_is_paid_twice_as_often(exchange: EmbeddedExchange, okx: Any) -> None:
    await buy(okx, "p1")
    await exchange.step(24)
    usual = len(await okx.fetch_funding_history(BTC))
    assert (await okx.fetch_funding_rate(BTC))["interval"] == "8h"
    await switch(exchange, fault="funding_step", symbol="BTCUSDT", hours=4)
    assert (await okx.fetch_funding_rate(BTC))["interval"] == "4h"
    await exchange.step(24)
    assert len(await okx.fetch_funding_history(BTC)) - usual == 6
    rates = await okx.fetch_funding_rate_history(BTC, limit=6)
    gaps = {(b["timestamp"] - a["timestamp"]) * 10**6 for a, b in itertools.pairwise(rates)}
    assert gaps == {4 * NS_PER_HOUR}


async def test_an_order_fills_in_part_and_stalls(exchange: EmbeddedExchange, okx: Any) -> None:
    await switch(exchange, fault="partial_fill", fraction=0.4)
    last = (await okx.fetch_ticker(BTC))["last"]
    made = await buy(okx, "h1", "limit", round(last * 1.02, 1))
    await exchange.step(5)
    order = await okx.fetch_order(made["id"], BTC)
    assert (order["status"], order["filled"], order["info"]["state"]) == ("open", 0.4, "partially_filled")
    await switch(exchange, fault="partial_fill", on=False)
    await exchange.step(30)
    assert (await okx.fetch_order(made["id"], BTC))["filled"] == 1.0, "switched off, it goes on"


async def test_post_only_orders_are_accepted_and_then_canceled(exchange: EmbeddedExchange, okx: Any) -> None:
    await switch(exchange, fault="post_only_cancel")
    made = await buy(okx, "o1", "limit", 50_000.0, postOnly=True)
    assert (await okx.fetch_order(made["id"], BTC))["status"] == "canceled"
    await switch(exchange, fault="off")
    made = await buy(okx, "o2", "limit", 50_000.0, postOnly=True)
    assert (await okx.fetch_order(made["id"], BTC))["status"] == "open"


REFUSED = [
    ({"fault": "gremlins"}, "there is no fault"),
    ({"fault": "drop", "rate": 2}, "from 0 to 1"),
    ({"fault": "drop", "rate": "x"}, "must be a number"),
    ({"fault": "drop", "times": 0}, "at least once"),
    ({"fault": "drop", "where": 3}, "beginning of an endpoint"),
    ({"fault": "latency", "ms": -1}, "milliseconds"),
    ({"fault": "suspend", "symbol": "NOUSDT"}, "no instrument"),
    ({"fault": "funding_step", "symbol": "BTCUSDT", "hours": 5}, "every 5 hours"),
    ({"fault": "partial_fill", "fraction": 3}, "from 0 to 1"),
]


@pytest.mark.parametrize(("posted", "reason"), REFUSED, ids=[str(row[0]) for row in REFUSED])
async def test_a_switch_that_makes_no_sense_is_refused(exchange: EmbeddedExchange, posted: dict[str, Any], reason: str) -> None:
    status, shown = await switch(exchange, **posted)
    assert (status, reason in shown["error"]) == (409, True), shown
    assert exchange.switchboard.shown()["on"] == {}


def test_the_same_seed_gives_the_same_faults_whatever_else_is_asked() -> None:
    rules = {Fault.TIMEOUT: FaultRule(0.3), Fault.BAD_GATEWAY: FaultRule(0.3)}

    def drawn(seed: int, *, with_reads: bool) -> list[Any]:
        faults = Faults(seed, rules, jitter_s=0.1)
        verdicts = []
        for k in range(60):
            if with_reads and k % 3:
                faults.verdict("account/balance")
            verdicts.append(faults.verdict("trade/order"))
        return verdicts

    assert drawn(7, with_reads=False) == drawn(7, with_reads=True)
    assert drawn(7, with_reads=False) != drawn(8, with_reads=False)
    assert len({v.fault for v in drawn(7, with_reads=False)}) == 3


async def test_settings_switch_faults_on_from_the_start() -> None:
    options = fault_options(FaultSettings(seed=3, unavailable=1.0, latency_ms=1.0, clock_skew_ms=5.0))
    assert options == FaultOptions(3, ((Fault.UNAVAILABLE, FaultRule(1.0)),), 0.001, 0.0, 5_000_000)
    async with EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS, faults=options)) as exchange:
        client = okx_client(exchange.base_url, exchange.credentials)
        try:
            with pytest.raises(ccxt.OnMaintenance):
                await client.fetch_time()
        finally:
            await client.close()


def test_every_transport_fault_has_a_setting_and_every_fault_is_off_by_default() -> None:
    assert {fault.value for fault in Fault} <= set(FaultSettings.model_fields)
    assert fault_options(FaultSettings()) == FaultOptions()
    assert len(NAMES) == len(set(NAMES))


async def test_admin_is_not_for_pages_of_other_sites(exchange: EmbeddedExchange) -> None:
    cases = [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Origin": exchange.base_url}, 200),
        ({}, 200),
    ]
    async with aiohttp.ClientSession() as http:
        for headers, expected in cases:
            async with http.post(f"{exchange.base_url}/admin/fault", json={"fault": "off"}, headers=headers) as answer:
                assert answer.status == expected, headers

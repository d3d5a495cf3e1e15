"""Cards 93-97: request limits, demo keys, the dead-man's countdown, order kinds."""

from __future__ import annotations

from typing import Any

import ccxt
import pytest

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.exchange.embedded.rate_limits import MOST_ORDERS, Asked, RateLimiter
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.wire import WireRefusal
from tests.exchange.fake_market import FakeMarket
from tests.exchange.test_ccxt_conformance import BTC, client
from tests.exchange.test_embedded_server import NOW_NS

__all__ = ["client"]


def order_of(inst_id: str, n: int = 1, endpoint: str = "trade/batch-orders") -> Asked:
    return Asked(endpoint, "POST", "me", rows=[{"instId": inst_id}] * n)


def refused(limiter: RateLimiter, asked: Asked, at: int = 0) -> str:
    try:
        limiter.check(asked, at)
    except WireRefusal as refusal:
        return refusal.code
    return ""


def test_card_93_a_batch_of_one_counts_as_a_single_order_and_instruments_are_counted_apart() -> None:
    limiter = RateLimiter(is_on=True)
    assert [refused(limiter, order_of("A")) for _ in range(61)] == [""] * 60 + ["50011"]
    assert refused(limiter, order_of("A", endpoint="trade/order")) == "50011", "the same count as a single order"
    assert refused(limiter, order_of("B")) == ""
    assert refused(limiter, Asked("trade/order", "GET", "me", query={"instId": "A"})) == "", "reading has its own"
    assert [refused(limiter, order_of("A", 20)) for _ in range(16)] == [""] * 15 + ["50011"], "300 orders in batches"
    assert refused(limiter, order_of("A"), 2 * NS_PER_S) == ""


def test_card_94_all_orders_of_an_account_have_a_limit_with_its_own_code() -> None:
    limiter = RateLimiter(is_on=True)
    codes = [refused(limiter, order_of(f"{k}", 20)) for k in range(MOST_ORDERS // 20 + 1)]
    assert codes == [""] * (MOST_ORDERS // 20) + ["50061"]


async def test_card_95_a_demo_key_needs_its_header_and_a_live_one_must_not_have_it(client: Any) -> None:
    for is_demo in (True, False):
        async with EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS, is_demo=is_demo)) as exchange:
            key = exchange.credentials
            client.apiKey, client.secret, client.password = key.key, key.secret, key.passphrase
            client.urls["api"]["rest"] = exchange.base_url
            for sends in (True, False):
                client.headers = {"x-simulated-trading": "1"} if sends else {}
                if sends is is_demo:
                    assert (await client.fetch_balance())["USDT"]["total"] == 100_000.0
                else:
                    with pytest.raises(ccxt.AuthenticationError, match="50101"):
                        await client.fetch_balance()


async def test_card_96_orders_go_when_the_client_falls_silent(client: Any, exchange: EmbeddedExchange) -> None:
    made = await client.create_order(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})
    answer = await client.cancel_all_orders_after(10_000)
    assert int(answer["data"][0]["triggerTime"]) == NOW_NS // 10**6 + 10_000
    await client.cancel_all_orders_after(0)
    await exchange.step()
    assert len(await client.fetch_open_orders(BTC)) == 1, "a countdown that was ended does nothing"
    await client.cancel_all_orders_after(60_000)
    await exchange.step()
    gone = await client.fetch_order(made["id"], BTC)
    assert (gone["status"], gone["info"]["cancelSource"]) == ("canceled", "20")
    for timeout in (5_000, 121_000):
        with pytest.raises(ccxt.BadRequest):
            await client.cancel_all_orders_after(timeout)


async def test_an_order_that_comes_after_its_own_deadline_is_refused(client: Any) -> None:
    for deadline, code in (("soon", "50036"), (str(NOW_NS // 10**6 - 1), "50037"), (str(NOW_NS // 10**6 + 1), "")):
        client.headers = {"expTime": deadline}
        if code:
            with pytest.raises(ccxt.BaseError, match=code):
                await client.create_order(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})
        else:
            await client.create_order(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})


async def test_card_97_order_kinds_end_as_okx_ends_them(client: Any, exchange: EmbeddedExchange) -> None:
    last = float((await client.fetch_ticker(BTC))["last"])
    cases = [
        ("limit", round(last * 0.9, 1), {"timeInForce": "IOC"}, "canceled", "14"),
        ("limit", round(last * 0.9, 1), {"timeInForce": "FOK"}, "canceled", "13"),
        ("limit", round(last * 1.02, 1), {"timeInForce": "IOC"}, "closed", ""),
        ("limit", round(last * 1.02, 1), {"timeInForce": "FOK"}, "closed", ""),
        ("limit", round(last * 1.02, 1), {"postOnly": True}, "canceled", "31"),
        ("limit", round(last * 0.9, 1), {"postOnly": True}, "open", ""),
        ("market", None, {"timeInForce": "IOC"}, "closed", ""),
    ]
    for kind, price, params, status, source in cases:
        made = await client.create_order(BTC, kind, "buy", 1.0, price, {"tdMode": "cross"} | params)
        seen = await client.fetch_order(made["id"], BTC)
        assert (seen["status"], seen["info"]["cancelSource"]) == (status, source), (kind, params)


async def test_card_98_a_large_limit_order_fills_over_several_bars(client: Any, exchange: EmbeddedExchange) -> None:
    # A bar of the test market trades about 100 to 250 coins; an order takes at most 5 % of it: 5 to 12 coins.
    last = float((await client.fetch_ticker(BTC))["last"])
    await client.set_leverage(10, BTC)
    made = await client.create_order(BTC, "limit", "buy", 700.0, round(last * 1.03, 1), {"tdMode": "cross"})
    seen = [await client.fetch_order(made["id"], BTC)]
    for _ in range(3):
        await exchange.step()
        seen.append(await client.fetch_order(made["id"], BTC))
    filled = [order["filled"] for order in seen]
    assert filled == sorted(filled)
    assert seen[0]["info"]["state"] == "partially_filled"
    assert 0 < filled[0] < filled[-1]
    fills = await client.fetch_my_trades(BTC)
    assert sum(fill["amount"] for fill in fills) == pytest.approx(filled[-1])
    assert len(fills) >= 2

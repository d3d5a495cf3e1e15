"""Partial and full liquidation as clients see them: order, fill, bill, position, history, and what the sockets push.

One swap of one coin a contract, entry at 100 with 10x isolated; tiers of 10, 20, 30 and 40 contracts with maintenance 1 % to
4 %. The margin of a coin is 10, so that at a mark P the ratio is (P - 90) / (P x (mmr + 0.0005)): 35 contracts (4 %) are due at
93.80 and are cut by two tiers, to 20 (2 %), which are due at 91.88 and go whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.tiers import TierTable
from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from tests.exchange.raw_socket import dialled, login_of
from tests.exchange.scripted_market import Bar, ScriptedMarket
from tests.exchange.test_margin_cases_served import done, served
from tests.exchange.test_recorded_samples import posted

SWAP = "ABC-USDT-SWAP"
TIERS = TierTable(
    np.array([10.0, 20.0, 30.0, 40.0]), np.array([0.01, 0.02, 0.03, 0.04]), np.array([0.02, 0.04, 0.0625, 0.1]),
    np.array([50.0, 25.0, 16.0, 10.0]),
)  # fmt: skip


def falling_to(*marks: float) -> EmbeddedExchange:
    item = Instrument("ABCUSDT", SWAP, "ABC", ct_val=1.0, tick_size=0.01, lot_size=1.0, min_size=1.0, max_leverage=50.0)
    market = ScriptedMarket(item, [Bar.flat(100.0), Bar.flat(100.0), *map(Bar.flat, marks), Bar.flat(marks[-1])], 0.01, 50.0)
    market.become(TIERS)
    return served(market)


def long_of(exchange: EmbeddedExchange, contracts: int) -> None:
    done(exchange, "account/set-leverage", {"instId": SWAP, "lever": "10", "mgnMode": "isolated"})
    order = {"instId": SWAP, "tdMode": "isolated", "side": "buy", "ordType": "market", "sz": str(contracts)}
    done(exchange, "trade/order", order)


def rows(exchange: EmbeddedExchange, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = posted(exchange, "GET", f"/api/v5/{path}")["data"]
    return found


async def test_a_large_position_is_cut_by_two_tiers_and_goes_on() -> None:
    exchange = falling_to(93.5)
    long_of(exchange, 35)
    await exchange.step(2)
    (order, first) = rows(exchange, "trade/orders-history?instType=SWAP")
    assert (order["category"], order["state"], order["sz"], order["side"]) == ("partial_liquidation", "filled", "15", "sell")
    assert (order["reduceOnly"], first["category"]) == ("true", "normal")
    fill = rows(exchange, "trade/fills?instType=SWAP")[0]
    assert (fill["subType"], fill["ordId"], fill["fillPx"]) == ("100", order["ordId"], "93.5")
    (bill,) = rows(exchange, "account/bills?type=5")
    assert (bill["subType"], bill["sz"], bill["mgnMode"]) == ("100", "15", "isolated")
    (held,) = rows(exchange, "account/positions")
    assert (held["pos"], held["avgPx"]) == ("20", "100")
    # Fifteen coins lost 6.50 each and the fee; all of it came out of the margin, none out of the cash.
    (balance,) = rows(exchange, "account/balance")
    assert float(held["margin"]) == pytest.approx(350.0 - 15 * 6.5 - 15 * 93.5 * 0.0005 + float(held["liqPenalty"]))
    assert float(balance["details"][0]["cashBal"]) == pytest.approx(100_000.0 - 350.0 - 35 * 100 * 0.0005)
    assert rows(exchange, "account/positions-history") == []


async def test_a_fall_beyond_all_tiers_ends_the_position_and_costs_its_margin_only() -> None:
    exchange = falling_to(93.5, 85.0)
    long_of(exchange, 35)
    await exchange.step(3)
    assert rows(exchange, "account/positions") == []
    (gone,) = rows(exchange, "account/positions-history")
    assert (gone["type"], gone["openMaxPos"], gone["direction"]) == ("3", "35", "long")
    kinds = [order["category"] for order in rows(exchange, "trade/orders-history?instType=SWAP")]
    assert kinds[-2:] == ["partial_liquidation", "normal"]
    assert kinds[0] == "full_liquidation"
    (balance,) = rows(exchange, "account/balance")
    assert float(balance["totalEq"]) == pytest.approx(100_000.0 - 350.0 - 35 * 100 * 0.0005)


async def test_the_sockets_tell_a_liquidation() -> None:
    async with falling_to(93.5) as exchange:
        long_of(exchange, 35)
        async with dialled(exchange.base_url, "private") as private, dialled(exchange.base_url, "public") as public:
            await private.ask(login_of(exchange))
            await private.subscribe(channel="orders", instType="SWAP")
            await public.subscribe(channel="liquidation-orders", instType="SWAP")
            await exchange.step(2)
            pushed = (await private.read())["data"][0]
            assert (pushed["category"], pushed["fillSz"], pushed["state"]) == ("partial_liquidation", "15", "filled")
            (detail,) = (await public.read())["data"][0]["details"]
            assert (detail["sz"], detail["posSide"], detail["bkPx"]) == ("15", "long", "93.5")

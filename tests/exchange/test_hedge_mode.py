"""Cards 80-84: long/short position mode through the unmodified ccxt client."""

from __future__ import annotations

from typing import Any

import ccxt
import pytest

from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from tests.exchange.test_ccxt_conformance import BTC, client

__all__ = ["client"]


async def both_sides(client: Any) -> None:
    await client.set_position_mode(True)
    await client.create_order(BTC, "market", "buy", 3.0, None, {"tdMode": "cross", "posSide": "long"})
    await client.create_order(BTC, "market", "sell", 2.0, None, {"tdMode": "cross", "posSide": "short"})


async def test_card_80_long_and_short_of_one_instrument_stand_side_by_side(client: Any) -> None:
    await both_sides(client)
    assert (await client.fetch_position_mode())["hedged"] is True
    long, short = await client.fetch_positions()
    assert [(p["side"], p["contracts"], p["hedged"]) for p in (long, short)] == [("long", 3.0, True), ("short", 2.0, True)]
    assert long["info"]["posId"] != short["info"]["posId"]
    assert float(short["info"]["pos"]) == 2.0, "in long/short mode a short's size is positive"


async def test_card_81_an_order_without_a_side_or_beyond_the_position_is_refused(client: Any) -> None:
    await both_sides(client)
    with pytest.raises(ccxt.BadRequest, match="posSide"):
        await client.create_order(BTC, "market", "buy", 1.0, None, {"tdMode": "cross"})
    with pytest.raises(ccxt.BaseError, match="51112"):
        await client.create_order(BTC, "market", "sell", 3.1, None, {"tdMode": "cross", "posSide": "long"})
    await client.create_order(BTC, "limit", "sell", 2.0, 150_000.0, {"tdMode": "cross", "posSide": "long"})
    with pytest.raises(ccxt.BaseError, match="51112"):  # one contract is left that no other closing order speaks for
        await client.create_order(BTC, "limit", "sell", 1.1, 150_000.0, {"tdMode": "cross", "posSide": "long"})
    with pytest.raises(ccxt.BaseError, match="51169"):
        await client.create_order("DOGE/USDT:USDT", "market", "buy", 1.0, None, {"tdMode": "cross", "posSide": "short"})


async def test_card_82_each_side_closes_alone(client: Any) -> None:
    await both_sides(client)
    await client.create_order(BTC, "market", "buy", 0.5, None, {"tdMode": "cross", "hedged": True, "reduceOnly": True})
    long, short = await client.fetch_positions()
    assert (long["contracts"], short["contracts"]) == (3.0, 1.5)
    await client.close_position(BTC, "buy")
    (left,) = await client.fetch_positions()
    assert (left["side"], left["contracts"]) == ("short", 1.5)
    (past,) = await client.fetch_positions_history([BTC])
    assert (past["side"], past["info"]["posSide"]) == ("long", "long")
    # Newest first: long closed, short reduced, short opened, long opened.
    fills = (await client.private_get_trade_fills({"instType": "SWAP"}))["data"]
    bills = (await client.private_get_account_bills({"type": "2"}))["data"]
    assert [row["subType"] for row in fills] == [row["subType"] for row in bills] == ["5", "6", "4", "3"]


async def test_card_83_the_mode_cannot_change_while_something_is_open(client: Any) -> None:
    made = await client.create_order(BTC, "limit", "buy", 1.0, 50_000.0, {"tdMode": "cross"})
    with pytest.raises(ccxt.ExchangeError, match="59000"):
        await client.set_position_mode(True)
    await client.cancel_order(made["id"], BTC)
    await both_sides(client)
    with pytest.raises(ccxt.ExchangeError, match="59000"):
        await client.set_position_mode(False)
    await client.set_position_mode(True)  # no change: allowed


async def test_card_84_isolated_leverage_is_per_side_and_cross_leverage_is_one(client: Any, exchange: EmbeddedExchange) -> None:
    await client.set_position_mode(True)
    with pytest.raises(ccxt.BadRequest, match="posSide"):
        await client.set_leverage(5, BTC, {"mgnMode": "isolated"})
    await client.set_leverage(5, BTC, {"mgnMode": "isolated", "posSide": "long"})
    await client.set_leverage(7, BTC, {"mgnMode": "isolated", "posSide": "short"})
    found = await client.fetch_leverage(BTC, {"mgnMode": "isolated"})
    assert (found["longLeverage"], found["shortLeverage"]) == (5, 7)
    await client.set_leverage(9, BTC, {"mgnMode": "cross", "posSide": "long"})
    found = await client.fetch_leverage(BTC, {"mgnMode": "cross"})
    assert (found["longLeverage"], found["shortLeverage"]) == (9, 9)
    await exchange.step()  # off the settlement: an order at its very instant pays but does not receive
    for side, pos in (("buy", "long"), ("sell", "short")):
        await client.create_order(BTC, side=side, type="market", amount=1.0, params={"tdMode": "isolated", "posSide": pos})
    margins = {p["side"]: p["initialMargin"] for p in await client.fetch_positions()}
    assert margins["long"] / margins["short"] == pytest.approx(7 / 5, rel=1e-3)
    await exchange.step(24)
    state = exchange.venue.exchange.snapshot(exchange.credentials.key)
    paid = {p.position.position_side.value: p.position.funding for p in state.positions}
    assert paid["long"] == pytest.approx(-paid["short"], rel=1e-9), "one side pays what the other receives"

"""How ours is got for each of OKX's recorded answers: what to do first, and which call of ccxt to make.

What may differ stands in ``docs/conformance.md``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

LTC, ADA, BTC = "LTC/USDT:USDT", "ADA/USDT:USDT", "BTC/USDT:USDT"

Ids = dict[str, Any]
Call = Callable[[Any, Ids], Awaitable[Any]]
Prepare = Callable[[Any], Awaitable[Ids]]


async def nothing(_client: Any) -> Ids:
    return {}


async def resting(client: Any) -> Ids:
    levels = {"takeProfit": {"triggerPrice": 1.6}, "stopLoss": {"triggerPrice": 0.1}}
    made = await client.create_order(ADA, "limit", "buy", 50, 0.2, {"tdMode": "cross"} | levels)
    return {"id": made["id"]}


async def post_only(client: Any) -> Ids:
    made = await client.create_order(ADA, "limit", "buy", 50, 0.2, {"tdMode": "cross", "postOnly": True})
    return {"id": made["id"]}


async def plain(client: Any) -> Ids:
    return {"id": (await client.create_order(ADA, "limit", "buy", 50, 0.2, {"tdMode": "cross"}))["id"]}


async def canceled(client: Any) -> Ids:
    await client.cancel_order((await plain(client))["id"], ADA)
    return {}


async def held(client: Any) -> Ids:
    await client.create_order(LTC, "market", "buy", 2, None, {"tdMode": "cross"})
    return {}


async def hedged(client: Any) -> Ids:
    await client.set_position_mode(True)
    await client.create_order(LTC, "market", "buy", 2, None, {"tdMode": "cross", "posSide": "long"})
    return {}


async def with_stop(client: Any) -> Ids:
    await held(client)
    params = {"tdMode": "cross", "stopLossPrice": 50.0, "reduceOnly": True}
    return {"id": (await client.create_order(LTC, "market", "sell", 2, None, params))["id"]}


async def with_trigger(client: Any) -> Ids:
    made = await client.create_order(BTC, "market", "buy", 1, None, {"tdMode": "cross", "triggerPrice": 120_000.0})
    return {"id": made["id"]}


async def trigger_gone(client: Any) -> Ids:
    ids = await with_trigger(client)
    await client.cancel_order(ids["id"], BTC, {"trigger": True})
    return ids


async def closed(client: Any) -> Ids:
    await held(client)
    await client.close_position(LTC, None, {"marginMode": "cross"})
    return {}


async def more_margin(client: Any) -> Ids:
    await client.create_order(LTC, "market", "buy", 2, None, {"tdMode": "isolated"})
    row = {"instId": "LTC-USDT-SWAP", "posSide": "net", "type": "add", "amt": "5"}
    await client.privatePostAccountPositionMarginBalance(row)  # the client's own add_margin cannot read OKX's answer
    return {}


@dataclass(frozen=True)
class Case:
    """One recorded answer (endpoint, number) and how to get ours."""

    endpoint: str
    at: int
    call: Call
    prepare: Prepare = nothing

    @property
    def name(self) -> str:
        """Return what the page calls it."""
        return f"{self.endpoint} {self.at}"


async def trade_objects(client: Any, _ids: Ids) -> Any:
    return [client.parse_trade(row) for row in (await client.publicGetMarketTrades({"instId": "BTC-USDT-SWAP"}))["data"]]


async def usdt(client: Any, _ids: Ids) -> Any:
    return (await client.fetch_balance({"type": "swap"}))["USDT"]


async def bills_of(client: Any, kind: str) -> Any:
    return [entry for entry in await client.fetch_ledger() if entry["info"]["type"] == kind]


async def less_margin(client: Any, _ids: Ids) -> Any:
    row = {"instId": "LTC-USDT-SWAP", "posSide": "net", "type": "reduce", "amt": "0.01"}
    return await client.privatePostAccountPositionMarginBalance(row)


async def paid(client: Any) -> Ids:
    """Hold a position over a settlement: the market is moved through the owner's own path."""
    await held(client)
    async with aiohttp.ClientSession() as http, http.post(f"{client.urls['api']['rest']}/admin/step", json={"bars": 9}) as done:
        assert done.status == 200
    return {}


async def usdt_currency(client: Any, _ids: Ids) -> Any:
    return (await client.fetch_currencies())["USDT"]


CASES = [
    Case("POST trade/batch-orders", 0,
         lambda c, i: c.create_order(BTC, "market", "buy", 0.1, None, {"stopLoss": {"triggerPrice": 100_333}})),
    Case("POST trade/order-algo", 0,
         lambda c, i: c.create_order(BTC, "market", "buy", 0.1, None, {"triggerPrice": 100_444})),
    Case("GET account/balance", 0, usdt),
    Case("GET public/time", 0, lambda c, i: c.fetch_time()),
    Case("GET system/status", 0, lambda c, i: c.fetch_status()),
    Case("GET account/config", 0, lambda c, i: c.fetch_accounts()),
    Case("GET account/config", 1, lambda c, i: c.fetch_position_mode()),
    Case("GET trade/orders-algo-pending", 0,
         lambda c, i: c.fetch_open_orders(LTC, params={"trigger": True, "ordType": "conditional"}), with_stop),
    Case("GET trade/orders-algo-pending", 1, lambda c, i: c.fetch_open_orders(None, params={"trigger": True}), with_trigger),
    Case("GET trade/orders-pending", 0, lambda c, i: c.fetch_open_orders(ADA), post_only),
    Case("GET trade/fills-history", 0, lambda c, i: c.fetch_my_trades(), held),
    Case("GET account/positions", 0, lambda c, i: c.fetch_positions([LTC]), hedged),
    Case("GET account/positions", 3, lambda c, i: c.fetch_positions(), held),
    Case("GET market/books", 0, lambda c, i: c.fetch_order_book(BTC, 2)),
    Case("GET market/candles", 1, lambda c, i: c.fetch_ohlcv(BTC, "1h", limit=2)),
    Case("GET market/ticker", 0, lambda c, i: c.fetch_ticker(BTC)),
    Case("GET public/open-interest", 0, lambda c, i: c.fetch_open_interest(BTC)),
    Case("GET public/mark-price", 0, lambda c, i: c.fetch_mark_price(BTC)),
    Case("GET market/trades", 0, trade_objects),
    Case("GET public/funding-rate-history", 0, lambda c, i: c.fetch_funding_rate_history(BTC)),
    Case("GET account/trade-fee", 0, lambda c, i: c.fetch_trading_fee(BTC)),
    Case("POST trade/amend-order", 0, lambda c, i: c.edit_order(i.get("id", "1"), ADA, "limit", "buy", 51, 0.2), resting),
    Case("POST trade/cancel-order", 0, lambda c, i: c.cancel_order(i.get("id", "1"), ADA), resting),
    Case("POST trade/cancel-batch-orders", 0, lambda c, i: c.cancel_orders([i.get("id", "1")], ADA), resting),
    Case("POST trade/cancel-algos", 0, lambda c, i: c.cancel_order(i.get("id", "1"), BTC, {"trigger": True}), with_trigger),
    Case("GET trade/order", 0, lambda c, i: c.fetch_order(i.get("id", "1"), ADA), plain),
    Case("GET trade/order-algo", 0, lambda c, i: c.fetch_order(i.get("id", "1"), BTC, {"trigger": True}), with_trigger),
    Case("GET trade/orders-history", 0, lambda c, i: c.fetch_canceled_orders(None), canceled),
    Case("GET trade/orders-algo-history", 0,
         lambda c, i: c.fetch_canceled_orders(None, params={"trigger": True, "ordType": "trigger"}), trigger_gone),
    Case("GET account/bills", 0, lambda c, i: bills_of(c, "2"), held),
    Case("GET account/bills", 1, lambda c, i: bills_of(c, "6"), more_margin),
    Case("GET account/leverage-info", 0, lambda c, i: c.fetch_leverage(BTC)),
    Case("GET account/positions-history", 0, lambda c, i: c.fetch_positions_history(), closed),
    Case("GET public/funding-rate", 0, lambda c, i: c.fetch_funding_rate(BTC)),
    Case("GET public/position-tiers", 0, lambda c, i: c.fetch_market_leverage_tiers(BTC)),
    Case("GET public/instruments", 0, lambda c, i: c.fetch_markets()),
    Case("POST trade/batch-orders", 1,
         lambda c, i: c.create_order(BTC, "market", "buy", 0.1, None, {"stopLoss": {"triggerPrice": 100_333}})),
    Case("GET account/balance", 1, usdt),
    Case("GET account/positions", 1, lambda c, i: c.fetch_position(LTC), hedged),
    Case("GET market/candles", 0, lambda c, i: c.fetch_ohlcv(BTC, "1h", limit=3)),
    Case("POST trade/cancel-all-after", 0, lambda c, i: c.cancel_all_orders_after(60_000)),
    Case("GET trade/orders-algo-history", 1,
         lambda c, i: c.fetch_canceled_orders(None, params={"trigger": True, "ordType": "trigger"}), trigger_gone),
    Case("POST account/set-leverage", 0, lambda c, i: c.set_leverage(5, BTC, {"mgnMode": "isolated"})),
    Case("POST account/set-position-mode", 0, lambda c, i: c.set_position_mode(False)),
    Case("POST account/position/margin-balance", 0, less_margin, more_margin),
    Case("GET rubik/stat/contracts/open-interest-history", 0, lambda c, i: c.fetch_open_interest_history(BTC, "1h")),
    Case("GET rubik/stat/contracts/long-short-account-ratio-contract", 0,
         lambda c, i: c.fetch_long_short_ratio_history(BTC, "1h")),
    Case("GET account/bills-archive", 0, lambda c, i: c.fetch_funding_history(), paid),
    Case("GET market/index-tickers", 0, lambda c, i: c.publicGetMarketIndexTickers({"instId": "LTC-USDT"})),
    Case("GET asset/currencies", 0, usdt_currency),
]  # fmt: skip

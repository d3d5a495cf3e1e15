"""``/openapi.json``: what the REST surface takes, for people, tools and fuzzers. Derived from the table of routes.

Parameters are those OKX documents for each endpoint; values are strings throughout, as OKX has them, and every answer is the
envelope. Source: OKX API v5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from crypto_qlib.exchange.embedded.router import API_ROOT, Endpoint

PATH: Final = "/openapi.json"
_PAGE: Final = ("after", "before", "limit")
_SPAN: Final = (*_PAGE, "begin", "end")
_STATISTIC: Final = ("instId", "period", "begin", "end", "limit")
_ENUMS: Final[dict[str, tuple[str, ...]]] = {
    "instType": ("SWAP", "SPOT", "FUTURES", "OPTION"),
    "bar": ("1m", "5m", "1H", "4H", "6Hutc", "1Dutc", "1D"),
    "tdMode": ("isolated", "cross"),
    "mgnMode": ("isolated", "cross"),
    "side": ("buy", "sell"),
    "posSide": ("net", "long", "short"),
    "posMode": ("net_mode", "long_short_mode"),
    "type": ("add", "reduce"),
    "reduceOnly": ("true", "false"),
    "slTriggerPxType": ("last", "mark", "index"),
    "tpTriggerPxType": ("last", "mark", "index"),
}
_ORDER_TYPES: Final = ("market", "limit", "post_only", "ioc", "fok", "optimal_limit_ioc")
_ALGO_TYPES: Final = ("conditional", "oco", "trigger", "move_order_stop")
_QUERIES: Final[dict[str, tuple[str, ...]]] = {
    "public/instruments": ("instType", "instId", "instFamily", "uly"),
    "public/funding-rate": ("instId",),
    "public/funding-rate-history": ("instId", *_PAGE),
    "public/mark-price": ("instType", "instId", "instFamily"),
    "public/open-interest": ("instType", "instId", "instFamily"),
    "public/position-tiers": ("instType", "tdMode", "instFamily", "uly"),
    "public/price-limit": ("instId",),
    "market/ticker": ("instId",),
    "market/tickers": ("instType",),
    "market/index-tickers": ("instId",),
    "market/books": ("instId", "sz"),
    "market/trades": ("instId", "limit"),
    "account/balance": ("ccy",),
    "account/positions": ("instId", "instType"),
    "account/positions-history": ("instId", *_PAGE),
    "account/leverage-info": ("instId", "mgnMode"),
    "account/trade-fee": ("instType", "instFamily"),
    "account/bills": ("instType", "instId", "type", *_SPAN),
    "account/bills-archive": ("instType", "instId", "type", *_SPAN),
    "trade/order": ("instId", "ordId", "clOrdId"),
    "trade/orders-pending": ("instType", "instId", *_PAGE),
    "trade/orders-history": ("instType", "instId", "state", *_SPAN),
    "trade/orders-history-archive": ("instType", "instId", "state", *_SPAN),
    "trade/fills": ("instType", "instId", "ordId", *_SPAN),
    "trade/fills-history": ("instType", "instId", "ordId", *_SPAN),
    "trade/order-algo": ("algoId", "algoClOrdId"),
    "trade/orders-algo-pending": ("ordType", "instId", "algoId", *_PAGE),
    "trade/orders-algo-history": ("ordType", "instId", "algoId", "state", *_PAGE),
    "rubik/stat/contracts/open-interest-history": _STATISTIC,
    "rubik/stat/taker-volume-contract": (*_STATISTIC, "unit"),
    "rubik/stat/contracts/long-short-account-ratio-contract": _STATISTIC,
}
_CANDLES: Final = ("instId", "bar", *_PAGE)
_ATTACHED: Final = (
    "slTriggerPx",
    "slOrdPx",
    "slTriggerPxType",
    "tpTriggerPx",
    "tpOrdPx",
    "tpTriggerPxType",
    "attachAlgoClOrdId",
)
_ORDER: Final = ("instId", "tdMode", "side", "posSide", "ordType", "sz", "px", "reduceOnly", "clOrdId", "tag", "attachAlgoOrds")
_ALGO: Final = (
    "instId", "tdMode", "side", "posSide", "ordType", "sz", "closeFraction", "reduceOnly", "algoClOrdId", "tag", "triggerPx",
    "orderPx", "callbackRatio", "callbackSpread", "activePx", *_ATTACHED[:-1],
)  # fmt: skip
_AMENDED: Final = ("instId", "ordId", "clOrdId", "newSz", "newPx", "reqId")
_BODIES: Final[dict[str, tuple[str, ...]]] = {
    "account/set-position-mode": ("posMode",),
    "account/set-leverage": ("instId", "lever", "mgnMode", "posSide"),
    "account/position/margin-balance": ("instId", "posSide", "type", "amt"),
    "trade/order": _ORDER,
    "trade/batch-orders": _ORDER,
    "trade/cancel-order": ("instId", "ordId", "clOrdId"),
    "trade/cancel-batch-orders": ("instId", "ordId", "clOrdId"),
    "trade/amend-order": _AMENDED,
    "trade/amend-batch-orders": _AMENDED,
    "trade/close-position": ("instId", "mgnMode", "posSide", "autoCxl", "clOrdId"),
    "trade/order-algo": _ALGO,
    "trade/cancel-algos": ("instId", "algoId", "algoClOrdId"),
    "trade/amend-algos": ("instId", "algoId", "algoClOrdId", "newSlTriggerPx", "newTpTriggerPx", "newSz"),
    "trade/cancel-all-after": ("timeOut", "tag"),
}
_LISTS: Final = (
    "trade/batch-orders", "trade/cancel-batch-orders", "trade/amend-batch-orders", "trade/cancel-algos",
)  # fmt: skip


def document(endpoints: Mapping[tuple[str, str], Endpoint], inst_ids: Iterable[str]) -> bytes:
    """Return the description of ``endpoints`` as JSON.

    Parameters
    ----------
    endpoints : mapping
        The router's own table.
    inst_ids : iterable of str
        Instruments that are listed.
    """
    names = list(inst_ids)
    paths: dict[str, dict[str, Any]] = {}
    for (method, name), endpoint in endpoints.items():
        if not name.startswith("/"):
            paths.setdefault(f"{API_ROOT}{name}", {})[method.lower()] = _operation(method, name, endpoint, names)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Embedded exchange, OKX v5 subset", "version": "5"},
            "paths": paths,
            "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "OK-ACCESS-KEY"}}},
        }
    )


def _operation(method: str, name: str, endpoint: Endpoint, inst_ids: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"operationId": f"{method} {name}", "responses": {"default": _answer()}}
    if endpoint.is_private:
        made["security"] = [{"key": []}]
    if method == "GET":
        wanted = _CANDLES if name.endswith("candles") else _QUERIES.get(name, ())
        made["parameters"] = [{"name": field, "in": "query", "schema": _schema(name, field, inst_ids)} for field in wanted]
        return made
    row: dict[str, Any] = {
        "type": "object",
        "properties": {field: _schema(name, field, inst_ids) for field in _BODIES.get(name, ())},
    }
    schema = {"type": "array", "items": row, "maxItems": 20} if name in _LISTS else row
    made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return made


def _schema(name: str, field: str, inst_ids: list[str]) -> dict[str, Any]:
    if field == "attachAlgoOrds":
        levels = {key: _schema(name, key, inst_ids) for key in _ATTACHED}
        return {"type": "array", "maxItems": 1, "items": {"type": "object", "properties": levels}}
    if field == "instId":
        return {"type": "string", "examples": inst_ids[:1], "anyOf": [{"enum": inst_ids}, {"maxLength": 40}]}
    if field == "ordType":
        return {"type": "string", "enum": list(_ALGO_TYPES if "algo" in name else _ORDER_TYPES)}
    if field in _ENUMS:
        return {"type": "string", "enum": list(_ENUMS[field])}
    return {"type": "string", "maxLength": 64}


def _answer() -> dict[str, Any]:
    envelope = {
        "type": "object",
        "required": ["code", "msg"],
        "properties": {"code": {"type": "string"}, "msg": {"type": "string"}, "data": {"type": "array"}},
    }
    return {"description": "OKX's envelope", "content": {"application/json": {"schema": envelope}}}

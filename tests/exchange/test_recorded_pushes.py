"""Cards 161-169: OKX's recorded socket messages and errors beside ours.

Each recorded message has one of ours beside it, read off a real socket: it must carry every field OKX's carries, and ccxt must
make the same unified object of it. Errors must have OKX's HTTP status, shape and code, and become the same ccxt exception.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import ccxt
import ccxt.pro
import orjson
import pytest

from crypto_qlib.core.clock import utc
from crypto_qlib.exchange.embedded.faults import Fault, FaultRule
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.signature import sign
from tests.exchange.cards import HERE, allowed, not_served
from tests.exchange.raw_socket import Socket, dialled, login_of
from tests.exchange.sample_market import SampleMarket
from tests.exchange.test_embedded_server import NOW_NS
from tests.exchange.test_liquidation_served import falling_to, long_of
from tests.exchange.test_recorded_samples import filled, recorded

pytestmark = pytest.mark.real_data
SAMPLES = HERE.parents[2] / "shared" / "reference" / "okx_v5_samples.json"
BTC = "BTC-USDT-SWAP"
ORDER = {"instId": BTC, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": "0.1"}
TRIGGER = ORDER | {"ordType": "trigger", "triggerPx": "120000", "orderPx": "-1"}
CLOSE = {"instId": BTC, "mgnMode": "cross"}
RESTING = ORDER | {"ordType": "limit", "px": "99000", "clOrdId": "rest1"}
NAMES = (
    "trades", "tickers", "bbo-tbt", "candle1m", "books-l2-tbt", "books5", "account", "positions", "orders",
    "balance_and_position", "liquidation-orders", "op:batch-orders", "op:batch-cancel-orders", "event:subscribe",
    "event:unsubscribe", "event:error", "funding-rate",
)  # fmt: skip


async def _told(socket: Socket, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while not wanted(message := await socket.read()):
        pass
    found: dict[str, Any] = message
    return found


def _pushed(channel: str) -> Callable[[dict[str, Any]], bool]:
    return lambda m: m.get("arg", {}).get("channel") == channel and "data" in m


async def _public(exchange: EmbeddedExchange) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with dialled(exchange.base_url, "public") as socket:
        for name, ours in (
            ("tickers",) * 2,
            ("bbo-tbt",) * 2,
            ("books-l2-tbt", "books"),
            ("books5",) * 2,
            ("funding-rate",) * 2,
        ):
            event = await socket.subscribe(channel=ours, instId=BTC)
            found["event:subscribe"] = event
            found[name] = await _told(socket, _pushed(ours))
        await socket.subscribe(channel="trades", instId=BTC)
        await exchange.step()
        found["trades"] = await _told(socket, _pushed("trades"))
        await socket.send({"op": "unsubscribe", "args": [{"channel": "tickers", "instId": BTC}]})
        found["event:unsubscribe"] = await _told(socket, lambda m: m.get("event") == "unsubscribe")
    async with dialled(exchange.base_url, "business") as socket:
        await socket.subscribe(channel="candle1H", instId=BTC)
        found["candle1m"] = await _told(socket, _pushed("candle1H"))
    async with dialled(exchange.base_url, "private") as socket:
        found["event:error"] = await socket.ask(login_of(exchange, apiKey="nobody"))
    return found


async def _private(exchange: EmbeddedExchange) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with dialled(exchange.base_url, "private") as socket:
        await socket.ask(login_of(exchange))
        await socket.send({"id": "1", "op": "batch-orders", "args": [RESTING]})
        found["op:batch-orders"] = await _told(socket, lambda m: m.get("op") == "batch-orders")
        await socket.subscribe(channel="orders", instType="SWAP")
        await socket.send({"id": "2", "op": "batch-cancel-orders", "args": [{"instId": BTC, "clOrdId": "rest1"}]})
        found["op:batch-cancel-orders"] = await _told(socket, lambda m: m.get("op") == "batch-cancel-orders")
        await socket.send({"id": "3", "op": "order", "args": [RESTING | {"clOrdId": "rest2"}]})
        found["orders"] = await _told(socket, lambda m: _pushed("orders")(m) and m["data"][0]["state"] == "live")
        await socket.subscribe(channel="balance_and_position")
        await socket.send({"id": "4", "op": "order", "args": [ORDER]})
        traded = await _told(socket, lambda m: _pushed("balance_and_position")(m) and m["data"][0]["trades"])
        found["balance_and_position"] = traded
        for channel in ("account", "positions"):
            await socket.send({"op": "subscribe", "args": [{"channel": channel, "instType": "ANY"}]})
            found[channel] = await _told(socket, _pushed(channel))
    return found


async def _liquidation() -> dict[str, Any]:
    async with falling_to(93.5) as exchange:
        long_of(exchange, 35)
        async with dialled(exchange.base_url, "public") as socket:
            await socket.subscribe(channel="liquidation-orders", instType="SWAP")
            await exchange.step(2)
            return {"liquidation-orders": await _told(socket, _pushed("liquidation-orders"))}


@cache
def ours() -> dict[str, Any]:
    """Return one message of ours for each recorded one."""

    async def _all() -> dict[str, Any]:
        async with EmbeddedExchange(SampleMarket(), EmbeddedOptions(start_ns=NOW_NS)) as exchange:
            return await _public(exchange) | await _private(exchange) | await _liquidation()

    return asyncio.run(_all())


@cache
def client() -> Any:
    """Return a ccxt client that knows the recorded swaps; nothing is sent."""
    made = ccxt.pro.okx({"options": {"defaultType": "swap"}})
    text = re.sub(r'"(-?[\d.]+) ([\d.]+)"', r'"\1\2"', SAMPLES.read_text())
    rows = [row for case in orjson.loads(text)["rest"]["GET public/instruments"] for row in case["response"]["data"]]
    made.set_markets(made.parse_markets(rows))
    return made


UNIFIED: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "trades": lambda c, m: c.parse_trade(m["data"][0]),
    "tickers": lambda c, m: c.parse_ticker(m["data"][0]),
    "bbo-tbt": lambda c, m: c.parse_order_book(m["data"][0], "X", 1, "bids", "asks"),
    "books-l2-tbt": lambda c, m: c.parse_order_book(m["data"][0], "X", 1, "bids", "asks"),
    "books5": lambda c, m: c.parse_order_book(m["data"][0], "X", 1, "bids", "asks"),
    "account": lambda c, m: next(v for k, v in c.parse_trading_balance(m).items() if k in ("USDT", "TUSD")),
    "positions": lambda c, m: c.parse_position(m["data"][0]),
    "orders": lambda c, m: c.parse_order(m["data"][0]),
    "op:batch-orders": lambda c, m: c.parse_order(m["data"][0]),
    "op:batch-cancel-orders": lambda c, m: c.parse_order(m["data"][0]),
    "funding-rate": lambda c, m: c.parse_funding_rate(m["data"][0]),
}
"""What ccxt makes of a message; the others it hands on as they are."""


@pytest.mark.parametrize("name", NAMES)
def test_card_161_a_message_carries_every_field_of_okx_own(shared: Path, name: str) -> None:
    (first, *_) = recorded(shared)["ws"][name]
    theirs, mine = filled(first["message"]), filled(ours()[name])
    missing = [place for place in theirs if place not in mine and ".data[][]" not in place]
    typed = [f"{place}: {theirs[place]} -> {mine[place]}" for place in theirs if place in mine and theirs[place] != mine[place]]
    assert [text for text in [*missing, *typed] if text.split(":")[0] not in allowed(f"ws {name}")] == []


@pytest.mark.parametrize("name", UNIFIED)
def test_card_162_ccxt_makes_the_same_of_our_message_as_of_okx_own(shared: Path, name: str) -> None:
    (first, *_) = recorded(shared)["ws"][name]
    theirs, mine = (filled(UNIFIED[name](client(), message)) for message in (first["message"], ours()[name]))
    differing = [f"{n}: {theirs.get(n)} -> {mine.get(n)}" for n in sorted({*theirs, *mine}) if theirs.get(n) != mine.get(n)]
    assert [text for text in differing if text.split(":")[0] not in allowed(f"ws {name}")] == []


def test_card_163_no_recorded_message_is_forgotten(shared: Path) -> None:
    assert set(recorded(shared)["ws"]) == set(NAMES)


Ask = tuple[str, str, dict[str, Any] | None, dict[str, str]]
ERRORS: dict[str, tuple[str, Ask, bool]] = {
    "no key on a private path (body has no data key)": ("", ("GET", "account/balance", None, {"OK-ACCESS-KEY": ""}), False),
    "clock skew": ("", ("GET", "account/balance", None, {"OK-ACCESS-TIMESTAMP": "2020-01-01T00:00:00.000Z"}), False),
    "rate limit": ("rate_limit", ("GET", "public/time", None, {}), False),
    "single/batch order refused": ("", ("POST", "trade/order", ORDER | {"sz": "900"}, {}), False),
    "algo order with wrong tdMode": ("", ("POST", "trade/order-algo", TRIGGER | {"tdMode": "cash"}, {}), False),
    "hedge account, order without posSide": ("", ("POST", "trade/order", ORDER, {}), True),
    "close-position in wrong position mode": ("", ("POST", "trade/close-position", CLOSE, {}), True),
    "set-leverage isolated without posSide in long/short mode": (
        "", ("POST", "account/set-leverage", {"instId": BTC, "mgnMode": "isolated", "lever": "5"}, {}), True,
    ),
    "leverage/position mode change refused: open orders or positions": (
        "held", ("POST", "account/set-position-mode", {"posMode": "long_short_mode"}, {}), False,
    ),
}  # fmt: skip


async def _answer(exchange: EmbeddedExchange, ask: Ask) -> tuple[int, dict[str, Any]]:
    method, path, body, changed = ask
    key, target, raw = exchange.credentials, f"/api/v5/{path}", b"" if body is None else orjson.dumps(body)
    stamp = changed.get("OK-ACCESS-TIMESTAMP", utc(exchange.clock.now_ns()).isoformat(timespec="milliseconds"))
    headers = {
        "OK-ACCESS-KEY": key.key, "OK-ACCESS-PASSPHRASE": key.passphrase, "OK-ACCESS-TIMESTAMP": stamp,
        "OK-ACCESS-SIGN": sign(key.secret, stamp, method, target, raw),
    } | changed  # fmt: skip
    sent = {name: value for name, value in headers.items() if value}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, exchange.base_url + target, data=raw, headers=sent) as answer,
    ):
        return answer.status, orjson.loads(await answer.read())


@pytest.mark.parametrize("case", ERRORS)
async def test_card_164_an_error_has_okx_own_status_shape_code_and_exception(shared: Path, case: str) -> None:
    (recorded_error,) = [error for error in recorded(shared)["errors"] if error["case"] == case]
    before, ask, hedged = ERRORS[case]
    async with EmbeddedExchange(SampleMarket(), EmbeddedOptions(start_ns=NOW_NS, paper_equity=5_000.0)) as exchange:
        if hedged:
            await _answer(exchange, ("POST", "account/set-position-mode", {"posMode": "long_short_mode"}, {}))
        if before == "held":
            await _answer(exchange, ("POST", "trade/order", ORDER, {}))
        if before == "rate_limit":
            exchange.faults.switch(Fault.RATE_LIMIT, FaultRule(1.0))
        status, body = await _answer(exchange, ask)
    theirs = recorded_error["body"]
    codes = [answer["data"][0]["sCode"] if answer.get("data") else answer["code"] for answer in (theirs, body)]
    wrong = [
        f"{what}: {a} -> {b}"
        for what, a, b in (
            ("status", recorded_error["http"], status), ("code", codes[0], codes[1]),
            ("data", "data" in theirs, "data" in body), ("rows", bool(theirs.get("data")), bool(body.get("data"))),
        )
        if a != b
    ]  # fmt: skip
    assert [text for text in wrong if text.split(":")[0] not in allowed(f"error {case}")] == []
    raised = []
    for answer in (theirs, body):
        with pytest.raises(ccxt.BaseError) as caught:
            client().handle_errors(status, "", "u", "GET", {}, orjson.dumps(answer).decode(), answer, {}, "")
        raised.append(type(caught.value).__name__)
    assert raised[0] == recorded_error["ccxt"]
    assert raised[1] == raised[0]


def test_card_165_no_recorded_error_is_forgotten(shared: Path) -> None:
    cases = {error["case"] for error in recorded(shared)["errors"]}
    assert cases == set(ERRORS) | {name.removeprefix("error ") for name in not_served() if name.startswith("error ")}

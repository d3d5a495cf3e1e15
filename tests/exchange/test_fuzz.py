"""Fuzz of the HTTP and socket surfaces: no 500, no crash, and no state change from input that is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_qlib.exchange.embedded.openapi import document
from crypto_qlib.exchange.embedded.push_hub import Frame
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.signature import SignedRequest, sign
from crypto_qlib.exchange.embedded.socket_channels import Path
from crypto_qlib.exchange.embedded.socket_session import SocketSession
from crypto_qlib.exchange.embedded.state_tables import books_of
from tests.exchange.fake_market import FakeMarket
from tests.exchange.test_persistence import KEY, NOW_NS

FUZZED = EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS), KEY)
SCHEMA = schemathesis.openapi.from_dict(
    orjson.loads(document(FUZZED.router.endpoints, [item.inst_id for item in FakeMarket().instruments()]))
)
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
STAMP = "2025-03-04T00:00:00.000Z"


def books(exchange: EmbeddedExchange) -> tuple[Any, ...]:
    """Everything an account is, but for the numbers refused orders use up."""
    venue = exchange.venue.exchange
    state = venue.snapshot(KEY.key)
    n_fills, n_bills = venue.counts(KEY.key)[1:]
    levers = [
        venue.leverage(KEY.key, item.symbol, mode) for item in FakeMarket().instruments() for mode in ("isolated", "cross")
    ]
    return state, n_fills, n_bills, venue.open_orders(KEY.key), venue.is_hedged(KEY.key), levers, exchange.clock.market_ns


def send(method: str, target: str, raw: bytes) -> tuple[int, dict[str, Any]]:
    headers = {
        "OK-ACCESS-KEY": KEY.key, "OK-ACCESS-PASSPHRASE": KEY.passphrase, "OK-ACCESS-TIMESTAMP": STAMP,
        "OK-ACCESS-SIGN": sign(KEY.secret, STAMP, method, target, raw),
    }  # fmt: skip
    answer = FUZZED.router.answer(SignedRequest(method, target, raw, headers), "127.0.0.1")
    return answer.status, orjson.loads(answer.body)


def is_refused(answer: dict[str, Any]) -> bool:
    rows = answer.get("data") or []
    return answer["code"] != "0" and all(row.get("sCode") != "0" for row in rows if isinstance(row, dict))


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
def test_no_request_the_description_allows_or_forbids_fails_the_server(case: Any) -> None:
    query = urlencode(dict(case.query or {}), doseq=True)
    target = case.formatted_path + (f"?{query}" if query else "")
    body = case.body if isinstance(case.body, dict | list | str | int | float) else None
    raw = b"" if case.method == "GET" or body is None else json.dumps(body, default=str).encode()
    before = books(FUZZED)
    status, answer = send(case.method, target, raw)
    assert status < 500, answer
    assert {"code", "msg"} <= set(answer)
    if is_refused(answer):
        assert books(FUZZED) == before, answer


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "x"]),
    path=st.text(max_size=30),
    query=st.text(max_size=40),
    raw=st.binary(max_size=60),
)
def test_no_target_or_bytes_fail_the_router(method: str, path: str, query: str, raw: bytes) -> None:
    before = books(FUZZED)
    for target in (f"/api/v5/{path}?{query}", f"/api/v5/trade/order?{query}", path):
        status, answer = send(method, target, raw)
        assert status < 500
        # Hypothesis also tries strings of the loaded sources: one of them may be a path of the outside world (`/fng/`).
        assert "code" in answer or not target.startswith("/api/v5/")
    assert books(FUZZED) == before


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ops = st.sampled_from(
    ["login", "subscribe", "unsubscribe", "order", "batch-orders", "cancel-order", "amend-order", "nonsense", ""]
)
channels = st.sampled_from(["tickers", "books", "candle1H", "orders", "positions", "account", "orders-algo", "none"])
args = st.fixed_dictionaries(
    {},
    optional={
        "channel": channels | json_values, "instId": st.sampled_from(["BTC-USDT-SWAP", "NO"]) | json_values,
        "instType": st.sampled_from(["SWAP", "ANY"]) | json_values, "sz": json_values, "side": json_values,
        "apiKey": json_values,
        "timestamp": json_values, "sign": json_values, "passphrase": json_values, "ordType": json_values, "tdMode": json_values,
    },
)  # fmt: skip
messages = st.one_of(
    st.text(max_size=60),
    json_values.map(lambda value: orjson.dumps(value).decode()),
    st.builds(
        lambda op, items, name: orjson.dumps({"op": op, "args": items, "id": name}).decode(),
        ops | json_values, st.lists(args | json_values, max_size=3) | json_values, json_values,
    ),
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
@given(path=st.sampled_from(list(Path)), texts=st.lists(messages, min_size=1, max_size=4), is_known=st.booleans())
def test_no_socket_message_fails_a_session(path: Path, texts: list[str], is_known: bool) -> None:
    session = SocketSession(FUZZED.sockets._parts, path, 1, "127.0.0.1")
    session.account_id = KEY.key if is_known and path is Path.PRIVATE else ""
    before = books(FUZZED)
    for text in texts:
        session.receive(text)
    frames: list[Frame] = []
    while not session.outbox.empty():
        frame = session.outbox.get_nowait()
        if frame is not None:
            frames.append(frame)
    session.close()
    assert len(frames) >= 1, "every message is answered"
    assert all(frame.body == b"pong" or isinstance(orjson.loads(frame.body), dict) for frame in frames)
    assert books(FUZZED) == before


ORDER = b"POST /api/v5/trade/order HTTP/1.1\r\nHost: x\r\n"
GARBAGE = [
    b"\x00" * 64,
    b"GET / HTTP/9.9\r\n\r\n",
    ORDER + b"Content-Length: -5\r\n\r\n",
    ORDER + b"Content-Length: 999999999999\r\n\r\nx",
    b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /admin/fault HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /admin/step HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00\x01",
    b"GET /ws/v5/private HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]


async def test_raw_garbage_on_the_wire_leaves_the_server_standing(exchange: EmbeddedExchange) -> None:
    host, port = urlsplit(exchange.base_url).netloc.split(":")
    before = exchange.clock.market_ns, books_of(exchange.venue.exchange)
    for sent in GARBAGE:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        await writer.drain()
        with contextlib.suppress(TimeoutError, ConnectionError):  # an unfinished body is waited for
            assert b" 500 " not in await asyncio.wait_for(reader.read(200), 0.5), sent[:60]
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(exchange.base_url.replace("http", "ws") + "/ws/v5/public") as socket:
            for text in (b"\xff\xfe", b"{", b"[]"):
                await socket.send_bytes(text)
                assert "60012" in (await socket.receive_str(timeout=2))
        async with http.get(f"{exchange.base_url}/api/v5/public/time") as answer:
            assert answer.status == 200
        async with http.get(f"{exchange.base_url}/openapi.json") as answer:
            assert "/api/v5/trade/order" in (await answer.json())["paths"]
    assert (exchange.clock.market_ns, books_of(exchange.venue.exchange)) == before


ADMIN = ("step", "fund", "fault", "operate")


@pytest.mark.parametrize("name", ADMIN)
async def test_no_posted_value_fails_an_admin_path(exchange: EmbeddedExchange, name: str) -> None:
    values: list[Any] = [None, True, -1, 1.5, 10**30, "", "x", [], {}, [[]], {"a": 1}, float("1e300")]
    known = ["bars", "to", "amount", "fault", "rate", "times", "where", "ms", "symbol", "hours", "fraction", "on", "row"]
    before = exchange.clock.market_ns, books_of(exchange.venue.exchange)
    async with aiohttp.ClientSession() as http:
        for key in known:
            for value in values:
                posted = {key: value}
                if name == "step" and not {"bars", "to"} & set(posted):
                    continue
                posted |= {"fault": "drop"} if key in ("rate", "times", "where") and name == "fault" else {}
                async with http.post(f"{exchange.base_url}/admin/{name}", data=json.dumps(posted).encode()) as answer:
                    assert answer.status < 500, posted
    exchange.switchboard.switch({"fault": "off"})
    now = exchange.clock.market_ns, books_of(exchange.venue.exchange)
    assert now == before or name == "fund"

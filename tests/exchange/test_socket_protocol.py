"""The socket protocol below the clients: events, refusals, limits, idle cut, order of pushes, the outlet."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, ManualClock
from crypto_qlib.exchange.embedded.book_stream import checksum
from crypto_qlib.exchange.embedded.push_hub import Frame, Receiver
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.socket_server import IDLE_NS
from tests.exchange.fake_market import START_NS, FakeMarket
from tests.exchange.raw_socket import Socket, login_of

NOW_NS = START_NS + 62 * NS_PER_DAY
SWAP = "BTC-USDT-SWAP"


Dial = Callable[..., AbstractAsyncContextManager[Socket]]


@pytest.fixture
def dial(exchange: EmbeddedExchange) -> Dial:
    @asynccontextmanager
    async def dialled(path: str, *, login: bool = False, of: EmbeddedExchange | None = None) -> AsyncIterator[Socket]:
        served = of or exchange
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{served.base_url}/ws/v5/{path}") as raw:
            socket = Socket(raw)
            if login:
                assert (await socket.ask(login_of(served)))["event"] == "login"
            yield socket

    return dialled


async def test_a_subscription_is_confirmed_then_filled_with_its_own_arg_echoed(dial: Dial) -> None:
    async with dial("public") as socket:
        event = await socket.subscribe(channel="tickers", instId=SWAP)
        assert (event["event"], event["arg"]) == ("subscribe", {"channel": "tickers", "instId": SWAP})
        push = await socket.read()
        assert push["arg"] == event["arg"]
        assert push["data"][0]["instId"] == SWAP
        gone = await socket.ask({"op": "unsubscribe", "args": [{"channel": "tickers", "instId": SWAP}], "id": "7"})
        assert (gone["event"], gone["id"]) == ("unsubscribe", "7")


async def test_nothing_is_pushed_after_an_unsubscription(dial: Dial, exchange: EmbeddedExchange) -> None:
    async with dial("public") as socket:
        await socket.subscribe(channel="mark-price", instId=SWAP)
        await socket.read()
        await socket.ask({"op": "unsubscribe", "args": [{"channel": "mark-price", "instId": SWAP}]})
        await exchange.step()
        assert await socket.ask("ping") == "pong"


@pytest.mark.parametrize(
    ("path", "message", "code"),
    [
        ("public", "no json", "60012"),
        ("public", "[1]", "60012"),
        ("public", {"op": "dance", "args": [{}]}, "60012"),
        ("public", {"op": "subscribe", "args": "tickers"}, "60012"),
        ("public", {"op": "subscribe", "args": []}, "60012"),
        ("public", {"op": "subscribe", "args": [{"channel": "nothing", "instId": SWAP}]}, "60018"),
        ("public", {"op": "subscribe", "args": [{"channel": "tickers", "instId": "NO-USDT-SWAP"}]}, "60018"),
        ("public", {"op": "subscribe", "args": [{"channel": "candle1H", "instId": SWAP}]}, "60018"),
        ("business", {"op": "subscribe", "args": [{"channel": "candle7H", "instId": SWAP}]}, "60018"),
        ("public", {"op": "subscribe", "args": [{"channel": "books50-l2-tbt", "instId": SWAP}]}, "60030"),
        ("private", {"op": "subscribe", "args": [{"channel": "account"}]}, "60011"),
        ("private", {"op": "order", "id": "1", "args": [{}]}, "60011"),
        ("public", {"op": "order", "id": "1", "args": [{}]}, "60028"),
        ("public", {"op": "login", "args": [{"apiKey": "x"}]}, "60028"),
    ],
)
async def test_a_bad_message_is_answered_with_okx_code_and_the_socket_lives(
    dial: Dial, path: str, message: Any, code: str
) -> None:
    async with dial(path) as socket:
        event = await socket.ask(message)
        assert (event["event"], event["code"]) == ("error", code)
        assert await socket.ask("ping") == "pong"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"apiKey": ""}, "60001"),
        ({"sign": ""}, "60002"),
        ({"passphrase": ""}, "60003"),
        ({"timestamp": "soon"}, "60004"),
        ({"apiKey": "unknown"}, "60005"),
        ({"timestamp": "1000000000"}, "60006"),
        ({"sign": "bm90IGl0"}, "60007"),
        ({"passphrase": "wrong"}, "60024"),
    ],
)
async def test_a_bad_login_has_okx_code(dial: Dial, exchange: EmbeddedExchange, changed: dict[str, str], code: str) -> None:
    async with dial("private") as socket:
        event = await socket.ask(login_of(exchange, **changed))
        assert (event["event"], event["code"]) == ("error", code)


async def test_a_login_may_be_stamped_with_a_number_and_not_be_repeated(dial: Dial, exchange: EmbeddedExchange) -> None:
    async with dial("private") as socket:
        assert (await socket.ask(login_of(exchange, timestamp=int(time.time()))))["code"] == "0"
        assert (await socket.ask(login_of(exchange)))["code"] == "60031"


async def test_a_fill_is_told_as_order_then_account_then_positions(dial: Dial, exchange: EmbeddedExchange) -> None:
    async with dial("private", login=True) as socket:
        for arg in ({"channel": "orders", "instType": "SWAP"}, {"channel": "account"}, {"channel": "balance_and_position"}):
            await socket.subscribe(**arg)
            if arg["channel"] != "orders":
                await socket.read()
        row = {"instIdCode": 100_000, "tdMode": "cross", "side": "buy", "ordType": "market", "sz": "2", "clOrdId": "s1"}
        answer = await socket.ask({"id": "9", "op": "order", "args": [row]})
        assert (answer["id"], answer["op"], answer["code"], answer["msg"]) == ("9", "order", "0", "")
        told = [await socket.read() for _ in range(4)]
        assert [push["arg"]["channel"] for push in told] == ["orders", "orders", "account", "balance_and_position"]
        live, filled = told[0]["data"][0], told[1]["data"][0]
        assert (live["state"], live["fillSz"], live["tradeId"]) == ("live", "0", "")
        assert (filled["state"], filled["fillSz"], filled["accFillSz"]) == ("filled", "2", "2")
        assert (told[2]["eventType"], told[3]["data"][0]["eventType"]) == ("event_update", "filled")
        assert told[3]["data"][0]["trades"] == [{"instId": SWAP, "tradeId": filled["tradeId"]}]


async def test_rows_of_other_instruments_are_kept_out(dial: Dial, exchange: EmbeddedExchange) -> None:
    async with dial("private", login=True) as socket:
        await socket.subscribe(channel="orders", instType="SWAP", instId="DOGE-USDT-SWAP")
        for inst_id in (SWAP, "DOGE-USDT-SWAP"):
            row = {"instId": inst_id, "tdMode": "cross", "side": "buy", "ordType": "limit", "px": "0.1", "sz": "2"}
            await socket.send({"id": "1", "op": "order", "args": [row]})
        seen = [await socket.read() for _ in range(3)]
        assert [m["data"][0]["instId"] for m in seen if "arg" in m] == ["DOGE-USDT-SWAP"]


async def test_the_checksum_is_the_signed_crc32_of_the_best_25_levels(dial: Dial, exchange: EmbeddedExchange) -> None:
    # The example of OKX's documentation: bids 3366.1:7, 3366:6; asks 3366.8:9, 3368:8, 3372:8.
    bids, asks = [["3366.1", "7"], ["3366", "6"]], [["3366.8", "9"], ["3368", "8"], ["3372", "8"]]
    text = b"3366.1:7:3366.8:9:3366:6:3368:8:3372:8"
    assert checksum(bids, asks) & 0xFFFFFFFF == zlib.crc32(text)
    async with dial("public") as socket:
        await socket.subscribe(channel="books", instId=SWAP)
        snapshot = await socket.read()
        assert (snapshot["action"], snapshot["data"][0]["prevSeqId"]) == ("snapshot", -1)
        sides = {name: {level[0]: level for level in snapshot["data"][0][name]} for name in ("bids", "asks")}
        seq = snapshot["data"][0]["seqId"]
        for _ in range(3):
            await exchange.step()
            (update,) = (await socket.read())["data"]
            assert update["prevSeqId"] == seq
            seq = update["seqId"]
            for name, levels in sides.items():
                for level in update[name]:
                    levels.pop(level[0], None)
                    if level[1] != "0":
                        levels[level[0]] = level
            book = [sorted(sides[n].values(), key=lambda x: float(x[0]), reverse=n == "bids") for n in ("bids", "asks")]
            assert checksum(*book) == update["checksum"]
            assert [len(side) for side in book] == [400, 400]


async def test_a_silent_socket_is_cut_after_thirty_seconds_and_a_ping_keeps_it() -> None:
    wall = ManualClock(NOW_NS)
    exchange = EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS), wall_clock=wall)
    async with exchange, aiohttp.ClientSession() as http:
        silent = await http.ws_connect(f"{exchange.base_url}/ws/v5/public")
        pinging = await http.ws_connect(f"{exchange.base_url}/ws/v5/public?brokerId=9999")
        wall.advance_to(NOW_NS + IDLE_NS)
        await pinging.send_str("ping")
        assert await pinging.receive_str() == "pong"
        wall.advance_to(NOW_NS + IDLE_NS + 1)
        assert (await silent.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await pinging.send_str("ping")
        assert await pinging.receive_str() == "pong"


async def test_a_fourth_connection_within_a_second_and_a_481st_request_are_refused() -> None:
    exchange = EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS, rate_limits=True))
    async with exchange, aiohttp.ClientSession() as http:
        url = f"{exchange.base_url}/ws/v5/public"
        first, *_ = [await http.ws_connect(url) for _ in range(3)]
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await http.ws_connect(url)
        codes = []
        for _ in range(481):
            await first.send_str('{"op":"unsubscribe","args":[{"channel":"tickers","instId":"BTC-USDT-SWAP"}]}')
            codes.append(orjson.loads(await first.receive_str()).get("code"))
        assert codes == [None] * 480 + ["60014"]


async def test_every_frame_leaves_through_the_outlet(dial: Dial, exchange: EmbeddedExchange) -> None:
    passed: list[Frame] = []

    def doubled(receiver: Receiver, frame: Frame) -> None:
        passed.append(frame)
        for _ in range(2 if frame.channel else 1):
            receiver.enqueue(frame)

    exchange.hub.outlet = doubled
    async with dial("public") as socket:
        await socket.subscribe(channel="mark-price", instId=SWAP)
        assert await socket.read() == await socket.read()
        assert await socket.ask("ping") == "pong"
    assert [frame.channel for frame in passed] == ["", "mark-price", ""]

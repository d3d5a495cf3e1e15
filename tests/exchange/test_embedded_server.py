"""The server as a whole: admin, threads, market caps, malformed input, key files, the running clock."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, ManualClock, SystemClock
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.credentials import ApiCredentials, credentials_from, load_or_create_credentials
from crypto_qlib.exchange.embedded.rate_limits import LIMITS, Asked, RateLimiter
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.signature import SignedRequest, sign
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from crypto_qlib.exchange.embedded.wire import WireRefusal, num
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.request_budget import LIMITS as BUDGET
from crypto_qlib.exchange.request_budget import PER_INSTRUMENT
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.settings.secrets import Secrets
from tests.exchange.fake_market import START_NS, FakeMarket

NOW_NS = START_NS + 62 * NS_PER_DAY


async def ask(exchange: EmbeddedExchange, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.request(method, exchange.base_url + path, data=body) as answer:
        return answer.status, orjson.loads(await answer.read())


async def test_status_says_that_prices_are_simulated(exchange: EmbeddedExchange) -> None:
    status, row = await ask(exchange, "GET", "/admin/status")
    assert status == 200
    assert row["is_simulated"] is True
    assert row["market"] == "simulated"
    assert (row["now_ms"], row["symbols"]) == (NOW_NS // 10**6, ["BTCUSDT", "DOGEUSDT"])


@pytest.mark.parametrize(
    ("body", "hours"),
    [(b'{"bars": 3}', 3), (b"", 1), (b'{"to": %d}' % ((NOW_NS + 5 * NS_PER_HOUR) // 10**6), 5), (b'{"bars": 0}', 0)],
)
async def test_a_client_moves_the_clock(exchange: EmbeddedExchange, body: bytes, hours: int) -> None:
    status, row = await ask(exchange, "POST", "/admin/step", body)
    assert (status, row["now_ms"]) == (200, (NOW_NS + hours * NS_PER_HOUR) // 10**6)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"bars": -1}', b'{"bars": "x"}', b'{"to": 5}'])
async def test_nonsense_does_not_move_the_clock(exchange: EmbeddedExchange, body: bytes) -> None:
    status, _ = await ask(exchange, "POST", "/admin/step", body)
    assert status == 400
    assert exchange.clock.market_ns == NOW_NS


async def test_the_end_of_the_data_is_said_not_passed(exchange: EmbeddedExchange, market: FakeMarket) -> None:
    status, row = await ask(exchange, "POST", "/admin/step", b'{"bars": 1000000}')
    assert status == 409
    assert "data end" in row["error"]
    assert exchange.clock.market_ns == market.end_ns


async def test_market_caps_are_served_the_way_coingecko_does(exchange: EmbeddedExchange) -> None:
    _, rows = await ask(exchange, "GET", "/api/v3/coins/markets?vs_currency=usd&order=market_cap_desc&per_page=250&page=1")
    assert [(r["id"], r["symbol"], r["market_cap_rank"]) for r in rows] == [
        ("bitcoin", "btc", 1),
        ("dogecoin", "doge", 2),
        ("noswap", "noswap", 3),
    ]
    assert rows[2]["current_price"] is None, "a coin without a swap has a cap but no price here"
    _, second = await ask(exchange, "GET", "/api/v3/coins/markets?vs_currency=usd&per_page=2&page=2")
    assert [r["id"] for r in second] == ["noswap"]
    _, coins = await ask(exchange, "GET", "/api/v3/coins/list")
    assert {"id": "bitcoin", "symbol": "btc", "name": "BTC"} in coins


async def test_an_unknown_path_is_refused_in_okx_form(exchange: EmbeddedExchange) -> None:
    status, row = await ask(exchange, "GET", "/api/v5/market/nothing")
    assert (status, row["code"], row["data"]) == (404, "404", [])


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("market/candles", "50014"),
        ("market/candles?instId=NO-USDT-SWAP&bar=1H", "51001"),
        ("market/candles?instId=BTC-USDT-SWAP&bar=7m", "51000"),
        ("market/candles?instId=BTC-USDT-SWAP&bar=1m", "51000"),
        ("market/candles?instId=BTC-USDT-SWAP&bar=1H&after=x", "51000"),
        ("public/position-tiers?instType=SWAP", "50014"),
        ("public/instruments?instType=SWAP&instId=NO", "51001"),
        ("account/balance", "50103"),
    ],
)
async def test_a_bad_public_request_has_okx_code(exchange: EmbeddedExchange, path: str, code: str) -> None:
    _, row = await ask(exchange, "GET", f"/api/v5/{path}")
    assert row["code"] == code


async def test_page_sizes_are_cut_like_okx_does(exchange: EmbeddedExchange) -> None:
    for path, most in (("history-candles", 300), ("history-mark-price-candles", 100), ("history-index-candles", 100)):
        name = "BTC-USDT" if "index" in path else "BTC-USDT-SWAP"
        _, row = await ask(exchange, "GET", f"/api/v5/market/{path}?instId={name}&bar=1H&limit=500")
        assert len(row["data"]) == most


async def test_before_alone_returns_the_newest_page(exchange: EmbeddedExchange) -> None:
    path = f"/api/v5/market/history-candles?instId=BTC-USDT-SWAP&bar=1H&limit=3&before={START_NS // 10**6}"
    _, row = await ask(exchange, "GET", path)
    newest = (NOW_NS - NS_PER_HOUR) // 10**6
    assert [int(r[0]) for r in row["data"]] == [newest, newest - 3_600_000, newest - 7_200_000]


async def test_the_unfinished_bar_shows_only_what_is_known(exchange: EmbeddedExchange, market: FakeMarket) -> None:
    await exchange.step(2)
    _, row = await ask(exchange, "GET", "/api/v5/market/candles?instId=BTC-USDT-SWAP&bar=4H&limit=1")
    now = NOW_NS + 2 * NS_PER_HOUR
    done = market.bars("BTCUSDT", NS_PER_HOUR, NOW_NS, now)
    starting = market.bars("BTCUSDT", NS_PER_HOUR, now, now + NS_PER_HOUR).open[0]
    (bar,) = row["data"]
    assert [float(x) for x in bar[:5]] == [
        NOW_NS // 10**6, done.open[0], max(done.high.max(), starting), min(done.low.min(), starting), starting,
    ]  # fmt: skip
    assert float(bar[6]) == pytest.approx(done.volume.sum())
    assert bar[8] == "0"


async def test_rate_limits_apply_when_switched_on() -> None:
    options = EmbeddedOptions(start_ns=NOW_NS, rate_limits=True)
    async with EmbeddedExchange(FakeMarket(), options) as exchange:
        codes = [(await ask(exchange, "GET", "/api/v5/public/time"))[1]["code"] for _ in range(12)]
    assert codes == ["0"] * 10 + ["50011"] * 2


def test_the_client_waits_by_the_very_limits_the_server_enforces() -> None:
    def named(path: str, method: str) -> str:
        return method + "".join(word.capitalize() for word in re.split("[/-]", path))

    of_server = {named(path, m): limit for path, limit in LIMITS.items() for m in ("publicGet", "privateGet", "privatePost")}
    assert BUDGET.keys() <= of_server.keys()
    assert {name: of_server[name].most for name in BUDGET} == BUDGET
    assert {name for name in BUDGET if "Rubik" in name} <= PER_INSTRUMENT
    assert all(of_server[name].scope.is_by_instrument for name in PER_INSTRUMENT)


def test_a_window_of_requests_slides() -> None:
    limiter = RateLimiter(is_on=True)
    for _ in range(10):
        limiter.check(Asked("public/time", remote="me"), 0)
    with pytest.raises(WireRefusal):
        limiter.check(Asked("public/time", remote="me"), 1_999_999_999)
    limiter.check(Asked("public/time", remote="other"), 0)
    limiter.check(Asked("public/time", remote="me"), 2_000_000_000)


def test_a_thread_serves_synchronous_callers() -> None:
    exchange = EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS))

    async def read(url: str) -> int:
        async with OkxGateway(ExchangeSettings(), exchange.credentials, url) as gateway:
            return await gateway.server_time_ns()

    with EmbeddedExchangeThread(exchange) as thread:
        assert asyncio.run(read(thread.base_url)) == NOW_NS
        assert thread.step(2) == NOW_NS + 2 * NS_PER_HOUR
        with pytest.raises(UserError, match="data end"):
            thread.step(10**6)
    with pytest.raises(RuntimeError, match="not running"):
        thread.step()


def test_a_taken_port_is_a_user_error_and_leaves_no_thread() -> None:
    with EmbeddedExchangeThread(EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS))) as first:
        port = int(first.base_url.rsplit(":", 1)[1])
        second = EmbeddedExchangeThread(EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS, port=port)))
        with pytest.raises(UserError, match=str(port)):
            second.start()


def test_a_public_address_is_refused() -> None:
    with pytest.raises(UserError, match="loopback"):
        EmbeddedExchange(FakeMarket(), EmbeddedOptions(host="0.0.0.0"))


def test_a_start_outside_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="data end"):
        EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=START_NS + 500 * NS_PER_DAY))
    with pytest.raises(UserError, match="grid"):
        EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS + 1))


async def test_a_running_clock_steps_by_itself() -> None:
    options = EmbeddedOptions(start_ns=NOW_NS, speed=3600.0 * 50)  # fifty hours a second
    async with EmbeddedExchange(FakeMarket(), options, wall_clock=SystemClock()) as exchange:
        for _ in range(200):
            await asyncio.sleep(0.01)
            if exchange.clock.market_ns >= NOW_NS + 3 * NS_PER_HOUR:
                break
        assert exchange.clock.market_ns >= NOW_NS + 3 * NS_PER_HOUR


def test_time_flows_between_boundaries_but_never_past_the_next() -> None:
    wall = ManualClock(0)
    clock = ServerClock(NOW_NS, NOW_NS + NS_PER_DAY, NS_PER_HOUR, wall, speed=60.0)
    wall.advance_to(30 * 10**9)
    assert clock.now_ns() == NOW_NS + 30 * 60 * 10**9
    wall.advance_to(90 * 10**9)
    assert clock.now_ns() == NOW_NS + NS_PER_HOUR - 1
    clock.advance()
    assert clock.now_ns() == NOW_NS + NS_PER_HOUR + 30 * 60 * 10**9, "a late step does not lose time"


def test_the_key_file_is_the_owners_alone_and_stays(tmp_path: Path) -> None:
    made = load_or_create_credentials(tmp_path / "exchange")
    (path,) = (tmp_path / "exchange").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_credentials(tmp_path / "exchange") == made
    assert made.secret not in repr(made)
    assert made.passphrase not in repr(made)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": "k"}'])
def test_a_broken_key_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "api_key.json").write_text(text)
    with pytest.raises(UserError, match=r"api_key\.json"):
        load_or_create_credentials(tmp_path)


def test_part_of_a_key_in_the_environment_is_named() -> None:
    assert credentials_from(Secrets()) is None
    with pytest.raises(UserError, match="OKX_API_PASSPHRASE missing"):
        credentials_from(Secrets(okx_api_key="a", okx_api_secret="b"))
    assert credentials_from(Secrets("a", "b", "c")) == ApiCredentials("a", "b", "c")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KNOWN = ("instId", "tdMode", "side", "ordType", "sz", "px", "clOrdId", "attachAlgoOrds", "lever", "mgnMode", "algoId", "newSz")
plausible = st.sampled_from(["BTC-USDT-SWAP", "isolated", "buy", "market", "limit", "1", "0", "-1", "1e400", "NaN", "", "a-b"])
GOOD = {
    "instId": "BTC-USDT-SWAP", "tdMode": "isolated", "mgnMode": "isolated", "side": "buy", "ordType": "market", "sz": "1",
    "lever": "3", "posMode": "net_mode", "type": "add", "amt": "1", "slTriggerPx": "90000", "newSz": "2",
}  # fmt: skip
bodies = st.one_of(
    json_values,
    # One thing wrong in something otherwise well-formed reaches further than noise does.
    st.builds(lambda good, name, value: good | {name: value}, st.just(GOOD), st.sampled_from(KNOWN), plausible | json_values),
    st.dictionaries(st.sampled_from(KNOWN), plausible | json_values, max_size=8),
    st.lists(st.dictionaries(st.sampled_from(KNOWN), plausible | json_values, max_size=8), max_size=3),
)
POSTS = (
    "trade/order", "trade/batch-orders", "trade/cancel-order", "trade/amend-order", "trade/close-position",
    "trade/order-algo", "trade/cancel-algos", "account/set-leverage", "account/set-position-mode",
    "account/position/margin-balance",
)  # fmt: skip


@pytest.fixture(scope="module")
def silent_exchange() -> EmbeddedExchange:
    return EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS))


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(POSTS), body=bodies)
def test_no_posted_body_makes_the_server_fail(silent_exchange: EmbeddedExchange, path: str, body: Any) -> None:
    key = silent_exchange.credentials
    raw = json.dumps(body).encode()
    target, stamp = f"/api/v5/{path}", "2025-03-04T00:00:00.000Z"
    headers = {
        "OK-ACCESS-KEY": key.key,
        "OK-ACCESS-PASSPHRASE": key.passphrase,
        "OK-ACCESS-TIMESTAMP": stamp,
        "OK-ACCESS-SIGN": sign(key.secret, stamp, "POST", target, raw),
    }
    answer = silent_exchange.router.answer(SignedRequest("POST", target, raw, headers), "127.0.0.1")
    assert answer.status < 500
    assert set(orjson.loads(answer.body)) >= {"code", "msg"}


async def test_a_ticker_names_the_prices_its_day_began_with(exchange: EmbeddedExchange, market: FakeMarket) -> None:
    await exchange.step(20)
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{exchange.base_url}/api/v5/market/ticker?instId=BTC-USDT-SWAP") as answer,
    ):
        row = (await answer.json())["data"][0]
    bars = market.bars("BTCUSDT", NS_PER_HOUR, NOW_NS, NOW_NS + NS_PER_DAY)
    # Twenty hours into the UTC day; the day of UTC+8 began at 16:00.
    assert (float(row["sodUtc0"]), float(row["sodUtc8"])) == (bars.open[0], bars.open[16])


def test_zero_has_no_sign_on_the_wire() -> None:
    assert (num(-0.0), num(-0.5)) == ("0", "-0.5")

"""What was acknowledged outlives the server: stops, kills, other code, other markets, full disks, two servers at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import ccxt.async_support as ccxt
import orjson
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.credentials import ApiCredentials, load_or_create_credentials
from crypto_qlib.exchange.embedded import recovery
from crypto_qlib.exchange.embedded.house import FUND
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.signature import SignedRequest, sign
from crypto_qlib.exchange.embedded.state_file import FILE_NAME, StateFile
from tests.exchange.ccxt_clients import okx_client
from tests.exchange.fake_market import START_NS, FakeMarket

NOW_NS = START_NS + 62 * NS_PER_DAY
KEY = ApiCredentials("key", "secret", "phrase")
VIEWS = (
    "account/balance", "account/positions", "account/positions-history", "account/bills", "trade/orders-pending",
    "trade/orders-history?instType=SWAP", "trade/fills-history?instType=SWAP",
    "trade/orders-algo-pending?ordType=oco,conditional,trigger,move_order_stop",
    "trade/orders-algo-history?ordType=oco&state=canceled",
    "account/leverage-info?instId=BTC-USDT-SWAP&mgnMode=isolated",
)  # fmt: skip


def opened(folder: Path, **about: str) -> EmbeddedExchange:
    state = StateFile(folder, about)
    try:
        return EmbeddedExchange(FakeMarket(), EmbeddedOptions(start_ns=NOW_NS), KEY, state=state)
    except UserError:
        state.close()
        raise


def ask(exchange: EmbeddedExchange, method: str, path: str, body: Any = None) -> dict[str, Any]:
    raw, target = b"" if body is None else orjson.dumps(body), f"/api/v5/{path}"
    stamp = utc(exchange.clock.now_ns()).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    headers = {
        "OK-ACCESS-KEY": KEY.key, "OK-ACCESS-PASSPHRASE": KEY.passphrase, "OK-ACCESS-TIMESTAMP": stamp,
        "OK-ACCESS-SIGN": sign(KEY.secret, stamp, method, target, raw),
    }  # fmt: skip
    return dict(orjson.loads(exchange.router.answer(SignedRequest(method, target, raw, headers), "127.0.0.1").body))


def order(name: str, side: str = "buy", **more: Any) -> dict[str, Any]:
    plain = {"instId": "BTC-USDT-SWAP", "tdMode": "isolated", "side": side, "ordType": "market", "sz": "1", "clOrdId": name}
    return plain | more


async def trade_a_while(exchange: EmbeddedExchange) -> None:
    """Every kind of operation: fills, a resting order, an amendment, a cancellation, refusals, protection, funding, steps."""
    ask(exchange, "POST", "account/set-leverage", {"instId": "BTC-USDT-SWAP", "lever": "5", "mgnMode": "isolated"})
    guarded = {"attachAlgoOrds": [{"slTriggerPx": "50000", "slOrdPx": "-1", "tpTriggerPx": "200000", "tpOrdPx": "-1"}]}
    ask(exchange, "POST", "trade/batch-orders", [order("a1", **guarded), order("a2", sz="0.3")])
    ask(exchange, "POST", "trade/order", order("b1", ordType="limit", px="50000"))
    ask(exchange, "POST", "trade/amend-order", {"instId": "BTC-USDT-SWAP", "clOrdId": "b1", "newPx": "51000"})
    ask(exchange, "POST", "trade/order", order("b2", ordType="limit", px="52000"))
    ask(exchange, "POST", "trade/cancel-order", {"instId": "BTC-USDT-SWAP", "clOrdId": "b2"})
    ask(exchange, "POST", "trade/order", order("", sz="100000000"))
    await exchange.step(30)
    ask(exchange, "POST", "trade/order", {**order("c1", "sell", sz="0.5"), "reduceOnly": True})
    ask(exchange, "POST", "trade/order", {**order("d1", "sell"), "instId": "DOGE-USDT-SWAP", "tdMode": "cross"})
    ask(exchange, "POST", "trade/close-position", {"instId": "BTC-USDT-SWAP", "mgnMode": "isolated"})
    ask(exchange, "POST", "trade/order", order("c2", **guarded))
    exchange._keeper.operations.perform(FUND, KEY.key, [{"amount": 123.0}])
    await exchange.step(3)


def views(exchange: EmbeddedExchange) -> dict[str, Any]:
    return {path: ask(exchange, "GET", path)["data"] for path in VIEWS}


def killed(folder: Path, target: Path) -> Path:
    """Return a copy of the files as a kill at this moment leaves them (the log beside the database not folded in)."""
    shutil.copytree(folder, target)
    return target


async def test_a_killed_exchange_comes_back_with_every_answer_the_same(tmp_path: Path) -> None:
    first = opened(tmp_path / "a")
    await trade_a_while(first)
    told = views(first)
    assert all(told.values()), {path for path, rows in told.items() if not rows}
    second = opened(killed(tmp_path / "a", tmp_path / "b"))
    assert views(second) == told
    assert second.clock.market_ns == NOW_NS + 33 * NS_PER_HOUR
    # It goes on where it was: the next order has the next number, the pending order's name is taken.
    answers = [ask(exchange, "POST", "trade/order", order("e1")) for exchange in (first, second)]
    assert answers[0]["data"] == answers[1]["data"]
    assert ask(second, "POST", "trade/order", order("b1", ordType="limit", px="50000"))["data"][0]["sCode"] == "51016"
    await first.stop()
    await second.stop()


async def test_a_stopped_exchange_comes_back_from_its_snapshot_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(tmp_path)
    await trade_a_while(first)
    told = views(first)
    await first.stop()
    monkeypatch.setattr(recovery.Operations, "_carry_out", lambda *_: pytest.fail("the journal was carried out again"))
    second = opened(tmp_path)
    assert views(second) == told
    monkeypatch.undo()
    ask(second, "POST", "trade/order", order("e1"))
    told = views(second)
    third = opened(killed(tmp_path, tmp_path / "copy"))
    assert views(third) == told, "the snapshot and the journal's tail together"
    await second.stop()
    await third.stop()


async def test_an_acknowledged_countdown_outlives_a_kill(tmp_path: Path) -> None:
    first = opened(tmp_path / "a")
    ask(first, "POST", "trade/order", order("r1", ordType="limit", px="50000"))
    assert ask(first, "POST", "trade/cancel-all-after", {"timeOut": "60"})["code"] == "0"
    for source, target in (("a", "b"), ("b", "c")):
        second = opened(killed(tmp_path / source, tmp_path / target))
        await second.stop()
    second = opened(tmp_path / "c")
    assert views(second)["trade/orders-pending"]
    await second.step(1)
    assert views(second)["trade/orders-pending"] == [], "nobody said in time that the client is alive"
    await first.stop()
    await second.stop()


async def test_faults_of_the_market_are_in_force_again_after_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path / "a")
    for fault in ({"fault": "suspend", "symbol": "BTCUSDT"}, {"fault": "funding_step", "symbol": "DOGEUSDT"}):
        first.switchboard.switch(fault)
    first.switchboard.switch({"fault": "partial_fill", "fraction": 0.25})
    await first.step(9)
    told = first.switchboard.shown()["on"]
    second = opened(killed(tmp_path / "a", tmp_path / "b"))
    assert second.switchboard.shown()["on"] == told
    await second.stop()
    third = opened(tmp_path / "b")
    assert third.switchboard.shown()["on"] == told, "from the snapshot too"
    assert ask(third, "POST", "trade/order", order("a1"))["data"][0]["sCode"] == "51022"
    await first.stop()
    await third.stop()


async def test_other_code_is_let_in_if_it_gives_the_same_books_and_refused_if_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path)
    await trade_a_while(first)
    told = views(first)
    await first.stop()
    monkeypatch.setattr(recovery, "code_identity", lambda: "other code")
    second = opened(tmp_path)
    assert views(second) == told
    await second.stop()
    monkeypatch.setattr(recovery, "code_identity", lambda: "code with dearer trades")
    fees = recovery.PaperDesk.fresh

    def dearer(around: Any, config: Any, costs: Any) -> Any:
        desk = fees(around, config, costs)
        desk.venue.exchange._execution.config = type(config)(half_spread_bps=50.0)
        return desk

    monkeypatch.setattr("crypto_qlib.exchange.embedded.server.PaperDesk.fresh", dearer)
    with pytest.raises(UserError, match="does not arrive at the books") as refused:
        opened(tmp_path)
    assert "exchange reset" in refused.value.hint
    monkeypatch.undo()
    third = opened(tmp_path)
    assert views(third) == told, "a refusal leaves the file as it was"
    await third.stop()


async def test_people_read_the_same_state_in_plain_tables(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    await trade_a_while(exchange)
    state, venue = exchange.venue.exchange.snapshot(KEY.key), exchange.venue.exchange
    await exchange.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        assert db.execute("select cash, equity from accounts").fetchall() == [(state.cash, state.equity)]
        assert db.execute("select sum(cash_change) from bills").fetchone()[0] == pytest.approx(state.cash)
        assert db.execute("select count(*) from fills").fetchone()[0] == len(venue.fills(KEY.key))
        held = dict(db.execute("select symbol, lots from positions"))
        assert held == {p.position.symbol: p.position.lots for p in state.positions}
        rows = dict(db.execute("select client_order_id, status from orders where client_order_id in ('a1', 'b1', 'b2')"))
        assert rows == {"a1": "filled", "b1": "live", "b2": "canceled"}
        assert db.execute("select count(*) from orders").fetchone()[0] == len(venue.orders(KEY.key))


def test_a_state_of_something_else_is_refused_with_a_way_out(tmp_path: Path) -> None:
    StateFile(tmp_path, {"market": "one"}).close()
    with pytest.raises(UserError, match="begun with another market: one, not two") as refused:
        StateFile(tmp_path, {"market": "two"})
    assert "exchange reset" in refused.value.hint
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as db, db:
        db.execute("update about set value = '999' where name = 'layout'")
    with pytest.raises(UserError, match="layout 999"):
        StateFile(tmp_path, {"market": "one"})
    (tmp_path / FILE_NAME).write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="not a state file"):
        StateFile(tmp_path, {})


def test_two_servers_never_share_a_state(tmp_path: Path) -> None:
    with StateFile(tmp_path, {}), pytest.raises(UserError, match="another process serves"):
        StateFile(tmp_path, {})
    StateFile(tmp_path, {}).close()


async def test_an_order_the_disk_does_not_take_is_refused_and_never_happened(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    file = exchange._keeper._file
    assert file is not None
    ask(exchange, "POST", "trade/order", order("a1"))
    before = views(exchange)
    (used,) = file._db.execute("pragma page_count").fetchone()
    file._db.execute(f"pragma max_page_count = {used}")
    answers = [ask(exchange, "POST", "trade/order", order(f"f{k}", tag="x" * 16, note="y" * 3000)) for k in range(5)]
    assert answers[-1]["code"] == "50001"
    exchange._keeper.keep_up()
    file._db.execute("pragma max_page_count = 1000000")
    refused = [f"f{k}" for k, answer in enumerate(answers) if answer["code"] != "0"]
    for name in refused:
        assert ask(exchange, "GET", f"trade/order?instId=BTC-USDT-SWAP&clOrdId={name}")["code"] == "51603"
    fills = "trade/fills-history?instType=SWAP"
    assert len(views(exchange)[fills]) == len(before[fills]) + 5 - len(refused)
    assert ask(exchange, "POST", "trade/order", order("g1"))["code"] == "0", "with room again it goes on"
    n_orders = exchange.venue.exchange.counts(KEY.key)[0]
    await exchange.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        assert db.execute("select count(*) from orders").fetchone()[0] == n_orders, "the tables caught up"


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve the fake market from a process of its own; killed without warning at the end."""
    command = [sys.executable, "-m", "tests.exchange.served_fake", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


async def until_killed(
    okx: Any, process: subprocess.Popen[str], start: int, kill_after: int
) -> tuple[dict[str, str], set[str]]:
    """Send named orders from four tasks until the server is killed at a random moment; return acknowledged and unheard ones."""
    heard: dict[str, str] = {}
    unheard: set[str] = set()
    names = iter(range(start, start + 10_000))

    async def one_client() -> None:
        while process.poll() is None:
            name = f"k{next(names)}"
            is_resting = int(name[1:]) % 2
            price = 50_000 + int(name[1:]) % 1000 if is_resting else None
            unheard.add(name)
            try:
                kind, own = "limit" if is_resting else "market", {"clOrdId": name, "tdMode": "cross"}
                made = await okx.create_order("BTC/USDT:USDT", kind, "buy", 0.1, price, own)
            except (ccxt.NetworkError, ccxt.ExchangeError):
                continue
            unheard.discard(name)
            heard[name] = made["id"]
            if len(heard) == kill_after:
                asyncio.get_running_loop().call_later(
                    random.Random(start).uniform(0.0, 0.01), process.send_signal, signal.SIGKILL
                )

    await asyncio.gather(*(one_client() for _ in range(4)))
    return heard, unheard


@pytest.mark.slow
async def test_kills_at_random_moments_lose_nothing_acknowledged_and_double_nothing(tmp_path: Path) -> None:
    key, heard, unheard = load_or_create_credentials(tmp_path), {}, set()
    for round_number in range(5):
        with server(tmp_path) as (process, url):
            okx = okx_client(url, key)
            try:
                await okx.load_markets()
                rows = await all_orders(okx)
                names = [row["clientOrderId"] for row in rows]
                assert len(names) == len(set(names)), "no order exists twice"
                known = {row["clientOrderId"]: row["id"] for row in rows}
                assert {name: known.get(name) for name in heard} == heard, "what was acknowledged is there, under its id"
                assert set(known) <= set(heard) | unheard, "nothing exists that nobody sent"
                resting = [row["clientOrderId"] for row in rows if row["status"] == "open"]
                if resting:
                    with pytest.raises(ccxt.InvalidOrder, match="51016"):
                        await okx.create_order("BTC/USDT:USDT", "limit", "buy", 0.1, 40_000, {"clOrdId": resting[-1]})
                if round_number < 4:
                    await misbehave(url)
                    told, lost = await until_killed(okx, process, 10_000 * round_number, 20 + 7 * round_number)
                    heard |= told
                    unheard |= lost
            finally:
                await okx.close()
    assert len(heard) > 100


async def misbehave(url: str) -> None:
    """Let every tenth answer get lost in one way or another, besides the kills."""
    async with aiohttp.ClientSession() as http:
        for fault in ("timeout", "drop", "bad_gateway"):
            async with http.post(f"{url}/admin/fault", json={"fault": fault, "rate": 0.03, "where": "trade/batch"}) as answer:
                assert answer.status == 200


async def all_orders(okx: Any) -> list[dict[str, Any]]:
    """Return every order there is, page by page."""
    rows: list[dict[str, Any]] = []
    for read, key in ((okx.private_get_trade_orders_pending, "ordId"), (okx.private_get_trade_orders_history_archive, "ordId")):
        page = (await read({"instType": "SWAP"}))["data"]
        while page:
            rows += page
            page = (await read({"instType": "SWAP", "after": page[-1][key]}))["data"]
    return okx.parse_orders(rows)

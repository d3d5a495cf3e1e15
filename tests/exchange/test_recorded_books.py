"""Recorded order books: imported, followed by their sequence ids, served, and traded against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.recording import Recording
from crypto_qlib.exchange.embedded.recording_import import import_recording
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from tests.exchange.ccxt_clients import okx_client
from tests.exchange.raw_socket import dialled

T0 = 1_700_000_000_000
"""First millisecond of the made-up recording."""


def _book(action: str, at_ms: int, seq: int, prev: int, bids: list[Any], asks: list[Any]) -> dict[str, Any]:
    rows = {"bids": [[*b, "0", "1"] for b in bids], "asks": [[*a, "0", "1"] for a in asks]}
    return {"arg": {"channel": "books"}, "action": action, "data": [rows | {"ts": str(at_ms), "seqId": seq, "prevSeqId": prev}]}


MESSAGES = [
    _book("update", T0 - 10, 8, 7, [["99", "1"]], []),
    # What a snapshot already holds is not applied again.
    _book("snapshot", T0, 10, -1, [["100", "20"], ["99.9", "50"]], [["100.1", "30"], ["100.2", "40"]]),
    _book("update", T0 + 1_000, 12, 10, [["100", "0"]], [["100.1", "25"]]),
    _book("update", T0 + 2_000, 15, 12, [["100", "7"]], [["100.3", "9"]]),
    # Number 18 is lost: from here on nothing is known until the next snapshot.
    _book("update", T0 + 3_000, 20, 18, [["90", "1"]], []),
    _book("snapshot", T0 + 20_000, 40, -1, [["101", "20"]], [["101.1", "10"]]),
    # Keeps the recording known to its end.
    *(_book("update", T0 + 20_000 + 1_000 * k, 40 + k, 39 + k, [["101", str(20 + k)]], []) for k in range(1, 41)),
]
TRADES = [
    {
        "instId": "ABC-USDT-SWAP",
        "tradeId": str(k),
        "px": str(100 + k % 3 / 10),
        "sz": "2",
        "side": "buy",
        "ts": str(T0 + 500 * k),
    }
    for k in range(120)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    books, trades = tmp_path / "books.jsonl", tmp_path / "trades.jsonl"
    books.write_bytes(b"\n".join(orjson.dumps(m) for m in MESSAGES))
    trades.write_bytes(b"\n".join(orjson.dumps({"data": [row]}) for row in TRADES))
    done = import_recording(books, trades, "ABCUSDT", tmp_path / "recording", ct_val=0.1)
    assert (done.n_messages, done.n_holes, done.n_trades) == (44, 1, 120)
    return tmp_path / "recording"


def test_a_book_is_followed_until_its_sequence_breaks(folder: Path) -> None:
    recording = Recording(folder)
    at = [T0 - 1, T0, T0 + 1_500, T0 + 2_000, T0 + 9_000, T0 + 20_000, T0]
    seen = [recording.book("ABCUSDT", ms * NS_PER_MS) for ms in at]
    assert [view and view.seq for view in seen] == [None, 10, 12, 15, None, 40, 10]
    third = seen[3]
    assert third is not None
    assert third.depth.bids.ravel().tolist() == pytest.approx([100.0, 0.7, 99.9, 5.0])
    assert [price for price, _ in third.depth.asks.tolist()] == [100.1, 100.2, 100.3]


def test_candles_of_a_recording_are_made_from_its_trades(folder: Path) -> None:
    market = ReplayMarket(folder)
    bars = market.bars("ABCUSDT", NS_PER_S, market.start_ns, market.start_ns + 3 * NS_PER_S)
    columns = [getattr(bars, name).tolist() for name in ("open", "high", "low", "close")]
    assert columns == [[100.0, 100.2, 100.1], [100.1, 100.2, 100.2], [100.0, 100.0, 100.1], [100.1, 100.0, 100.2]]
    assert bars.volume.tolist() == pytest.approx([0.4] * 3)


@pytest.fixture
async def served(folder: Path) -> Any:
    start_ns = (T0 + 1_000) * NS_PER_MS
    options = EmbeddedOptions(start_ns=start_ns, step_frame_ns=NS_PER_S)
    async with EmbeddedExchange(ReplayMarket(folder), options) as running:
        yield running


async def test_the_recorded_book_is_served_and_an_order_walks_it(served: EmbeddedExchange) -> None:
    client = okx_client(served.base_url, served.credentials)
    try:
        symbol = "ABC/USDT:USDT"
        await client.load_markets()
        lot = client.markets[symbol]["precision"]["amount"] * client.markets[symbol]["contractSize"]
        book = await client.fetch_order_book(symbol)
        coins = [[price, size * client.markets[symbol]["contractSize"]] for price, size, *_ in book["asks"]]
        assert coins == [[100.1, pytest.approx(2.5, abs=lot)], [100.2, pytest.approx(4.0, abs=lot)]]
        assert (await client.fetch_ticker(symbol))["ask"] == 100.1
        # 2.5 at 100.1 and 1.5 at 100.2: on average 100.1375, a worse tick for a buyer.
        size = 4.0 / client.markets[symbol]["contractSize"]
        bought = await client.create_order(symbol, "market", "buy", size)
        order = await client.fetch_order(bought["id"], symbol)
        assert order["status"] == "closed"
        assert order["average"] == pytest.approx(100.2)
        trades = await client.fetch_trades(symbol, limit=3)
        assert [t["id"] for t in trades] == ["0", "1"]
    finally:
        await client.close()


async def test_books_carry_the_recorded_sequence_ids_and_the_model_where_nothing_is_recorded(served: EmbeddedExchange) -> None:
    async with dialled(served.base_url, "public") as socket:
        await socket.subscribe(channel="books", instId="ABC-USDT-SWAP")
        first = (await socket.read())["data"][0]
        await served.step()
        second = (await socket.read())["data"][0]
        assert [(m["prevSeqId"], m["seqId"]) for m in (first, second)] == [(-1, 12), (12, 15)]
        assert [level[0] for level in second["bids"] + second["asks"]] == ["100", "100.3"]
        # In the hole of the recording the levels are the model's, as many as a full book has, and the numbers go on.
        await served.step(8)
        model = [(await socket.read())["data"][0] for _ in range(8)][-1]
        assert model["prevSeqId"] >= 15
    async with dialled(served.base_url, "public") as socket:
        await socket.subscribe(channel="books", instId="ABC-USDT-SWAP")
        assert len((await socket.read())["data"][0]["asks"]) == 400


@pytest.mark.parametrize(
    ("books", "says"),
    [(MESSAGES[2:4], "no snapshot"), (None, "cannot be read")],
    ids=["differences alone", "missing file"],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, books: list[dict[str, Any]] | None, says: str) -> None:
    path, trades = tmp_path / "books.jsonl", tmp_path / "trades.jsonl"
    trades.write_bytes(orjson.dumps({"data": [TRADES[0]]}))
    if books is not None:
        path.write_bytes(b"\n".join(orjson.dumps(m) for m in books))
    with pytest.raises(UserError, match=says):
        import_recording(path, trades, "ABCUSDT", tmp_path / "to")


@pytest.mark.slow
def test_a_real_book_has_the_best_prices_that_were_published_beside_it(shared: Path, tmp_path: Path) -> None:
    base = shared / "data" / "l2_binance_um_btcusdt_20240808"
    done = import_recording(Path(f"{base}_depth.parquet"), Path(f"{base}_trades.parquet"), "BTCUSDT", tmp_path)
    assert (done.n_messages, done.n_holes, done.n_trades) == (6548, 0, 21313)
    best = pd.read_parquet(f"{base}_bbo.parquet").drop_duplicates("update_id").set_index("update_id")
    published = dict(zip(best.index.tolist(), best[["bid", "bid_qty", "ask", "ask_qty"]].to_numpy().tolist(), strict=True))
    stamps = pd.read_parquet(tmp_path / "books" / "BTCUSDT.parquet", columns=["seq", "ts"]).drop_duplicates("seq")
    recording, compared = Recording(tmp_path), 0
    for seq, ts in zip(stamps["seq"].tolist(), stamps["ts"].tolist(), strict=True):
        view = recording.book("BTCUSDT", ts) if seq in published else None
        if view is not None and view.seq == seq:
            assert [*view.depth.bids[0].tolist(), *view.depth.asks[0].tolist()] == published[seq]
            compared += 1
    assert compared > 500

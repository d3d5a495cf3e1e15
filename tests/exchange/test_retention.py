"""A server that runs for months lets go of what no answer reaches, and a page costs what it shows, not what there is."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.exchange.embedded.paging import page
from crypto_qlib.exchange.embedded.recovery import KEPT_NS
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.state_file import StateFile
from crypto_qlib.exchange.embedded.wire import Call
from tests.exchange.fake_market import START_NS, FakeMarket
from tests.exchange.test_persistence import KEY, ask

DAYS = 110
BTC = {"instId": "BTC-USDT-SWAP", "tdMode": "isolated"}
LISTS = (
    "trade/orders-history?instType=SWAP", "trade/orders-history-archive?instType=SWAP", "trade/fills-history?instType=SWAP",
    "account/bills-archive", "account/positions-history", "trade/orders-algo-history?ordType=conditional&state=canceled",
)  # fmt: skip


async def lived(exchange: EmbeddedExchange, days: int, *, tidies: bool) -> None:
    """A round trip, a canceled order and a stop each day."""
    for day in range(days):
        for k, side in enumerate(("buy", "sell")):
            row = BTC | {"side": side, "ordType": "market", "sz": "1", "clOrdId": f"d{day}x{k}"}
            guard = {"attachAlgoOrds": [{"slTriggerPx": "40000", "slOrdPx": "-1"}]} if side == "buy" else {"reduceOnly": True}
            ask(exchange, "POST", "trade/order", row | guard)
            await exchange.step()
        ask(
            exchange,
            "POST",
            "trade/order",
            BTC | {"side": "buy", "ordType": "limit", "px": "85000", "sz": "1", "clOrdId": f"r{day}"},
        )
        ask(exchange, "POST", "trade/cancel-order", {"instId": BTC["instId"], "clOrdId": f"r{day}"})
        await exchange.step(22)
        if tidies:
            exchange._keeper.keep_up()


def shown(exchange: EmbeddedExchange) -> dict[str, Any]:
    return {path: ask(exchange, "GET", path)["data"] for path in LISTS}


@pytest.mark.slow
async def test_months_later_the_answers_are_the_same_and_the_old_records_gone(tmp_path: Path) -> None:
    market = FakeMarket(n_hours=24 * (DAYS + 2))
    options = EmbeddedOptions(start_ns=START_NS + NS_PER_HOUR)
    keeping = EmbeddedExchange(market, options, KEY)
    letting_go = EmbeddedExchange(market, options, KEY, state=StateFile(tmp_path, {}))
    await lived(keeping, DAYS, tidies=False)
    await lived(letting_go, DAYS, tidies=True)
    assert shown(letting_go) == shown(keeping)
    old, new = (exchange.venue.exchange for exchange in (keeping, letting_go))
    assert new.counts(KEY.key) == old.counts(KEY.key)
    assert len(old.fills(KEY.key)) == 2 * DAYS
    oldest = letting_go.clock.market_ns - KEPT_NS - NS_PER_DAY
    assert min(fill.ts_ns for fill in new.fills(KEY.key)) >= oldest
    assert min(bill.ts_ns for bill in new.bills(KEY.key)) >= oldest
    # Of the unfilled orders a week is kept, of the filled ones three months.
    assert len(new.orders(KEY.key)) < 2 * 95 + 9 < len(old.orders(KEY.key))
    book = letting_go._keeper.desk.book._accounts[KEY.key]
    assert max(map(len, (book.ended, book.named, book.algos, book.last_fills, book.by_bill, book.fills))) < 2 * 95 + 9
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        assert db.execute("select count(*) from fills").fetchone()[0] == 2 * DAYS
        assert db.execute("select count(*) from orders").fetchone()[0] == 3 * DAYS
    # The next records go on with the next numbers, and a restart from the journal alone comes to the same.
    told = shown(letting_go)
    await letting_go.stop()
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        db.execute("delete from snapshot")
    again = EmbeddedExchange(market, options, KEY, state=StateFile(tmp_path, {}))
    assert shown(again) == told
    for exchange in (keeping, again):
        ask(exchange, "POST", "trade/order", BTC | {"side": "buy", "ordType": "market", "sz": "1", "clOrdId": "last"})
    fills = [ask(exchange, "GET", "trade/fills?instType=SWAP")["data"][0] for exchange in (keeping, again)]
    assert fills[0] == fills[1]
    await again.stop()


def test_a_page_of_a_long_history_is_read_from_its_end() -> None:
    records, looked_at = list(range(200_000)), 0

    def ts_of(record: int) -> int:
        nonlocal looked_at
        looked_at += 1
        return record

    assert page(records, Call({"limit": "3"}), lambda r: r, ts_of) == [199_999, 199_998, 199_997]
    assert looked_at < 10
    looked_at = 0
    # What is no longer kept ends the walk too.
    assert page(records, Call({}), lambda r: r, ts_of, 199_990, lambda r: r % 2 == 0) == [
        199_998,
        199_996,
        199_994,
        199_992,
        199_990,
    ]
    assert looked_at < 30

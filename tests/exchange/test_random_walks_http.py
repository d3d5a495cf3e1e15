"""Random walks over real HTTP, through faults of transport: nothing is lost, nothing is doubled, every answer is the truth.

A client of raw requests does what ``test_random_walks`` does, while the server answers late, not at all, with errors after it
carried a request out, or breaks the connection. Whoever does not know what became of an order asks by its client id. At the end
of each burst the answers of the API are compared with the books, and the books with the bills.

``CRYPTO_QLIB_WALKS=20 pytest tests/exchange/test_random_walks_http.py`` walks twenty times as far.
"""

from __future__ import annotations

import http.client
import sys
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from crypto_qlib.core.clock import utc
from crypto_qlib.exchange.embedded.faults import Fault, FaultOptions, FaultRule
from crypto_qlib.exchange.embedded.house import FUND, STEP
from crypto_qlib.exchange.embedded.paper_book import ORDER_ID_BASE
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.signature import sign
from crypto_qlib.exchange.embedded.state_file import StateFile
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from tests.exchange.fake_market import FakeMarket
from tests.exchange.test_persistence import KEY, NOW_NS
from tests.exchange.test_random_walks import EQUITY, FURTHER, REACHED, WALKS, Clients

RATES = {
    Fault.RATE_LIMIT: 0.005, Fault.UNAVAILABLE: 0.03, Fault.TIMEOUT: 0.04, Fault.SERVER_ERROR: 0.03, Fault.BAD_GATEWAY: 0.04,
    Fault.DROP: 0.04,
}  # fmt: skip
PLACING = ("trade/order", "trade/batch-orders")
MOST_TRIES = 60


class HttpClients(Clients):
    """The same walk, every request on the wire."""

    def start(self) -> None:
        self.ids: dict[str, int] = {}
        rules = tuple((fault, FaultRule(rate)) for fault, rate in RATES.items())
        options = EmbeddedOptions(start_ns=NOW_NS, paper_equity=EQUITY, faults=FaultOptions(seed=7, rules=rules))
        self.exchange = EmbeddedExchange(FakeMarket(), options, KEY, state=StateFile(self.folder, {}))
        self.exchange._keeper.desk.book.tell(self.follow)
        self.thread = EmbeddedExchangeThread(self.exchange)
        self.thread.start()
        self.wire = http.client.HTTPConnection(urlsplit(self.exchange.base_url).netloc, timeout=10)

    def teardown(self) -> None:
        if hasattr(self, "thread"):
            REACHED.update({f"fault {fault.value}": count for fault, count in self.exchange.faults.fired.items()})
            self.wire.close()
            self.thread.stop()
        super().teardown()

    def come_back(self, killed: bool) -> None:
        """Stop the server and start it again: everything a client can ask is the same."""
        before = self.told()
        self.wire.close()
        self.thread.stop()
        self.start()
        assert self.told() == before

    def once(self, method: str, target: str, body: Any = None) -> dict[str, Any] | None:
        """Send one request; return the answer, or ``None`` where none came that says what became of it."""
        raw = b"" if body is None else orjson.dumps(body)
        stamp = utc(self.exchange.clock.now_ns()).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        headers = {
            "OK-ACCESS-KEY": KEY.key, "OK-ACCESS-PASSPHRASE": KEY.passphrase, "OK-ACCESS-TIMESTAMP": stamp,
            "OK-ACCESS-SIGN": sign(KEY.secret, stamp, method, target, raw), "Content-Type": "application/json",
        }  # fmt: skip
        try:
            self.wire.request(method, target, raw or None, headers)
            text = self.wire.getresponse().read()
            answer: dict[str, Any] = orjson.loads(text)
        except (OSError, http.client.HTTPException, orjson.JSONDecodeError):
            self.wire.close()
            return None
        # Unknown outcome: it may have been carried out. The admin paths have no codes.
        return None if answer.get("code") in ("50004", "51149") else answer

    def read(self, path: str) -> list[dict[str, Any]]:
        """Ask until an answer comes."""
        for _ in range(MOST_TRIES):
            answer = self.once("GET", f"/api/v5/{path}")
            if answer is not None and answer["code"] == "0":
                rows: list[dict[str, Any]] = answer["data"]
                return rows
            if answer is not None and answer["code"] in ("51603", "51001"):
                return []
        raise AssertionError(f"{path} was never answered")

    def post(self, path: str, row: Any) -> None:
        if path in PLACING:
            self.place(path, row if isinstance(row, list) else [row])
            return
        answer = self.once("POST", f"/api/v5/{path}", row)
        assert answer is None or answer["code"] != "50026"
        self.done[path] += 1

    def place(self, path: str, rows: list[dict[str, Any]]) -> None:
        """Send orders under names of their own; where the outcome is unknown, look each of them up."""
        number = sum(self.done.values())
        rows = [row | {"clOrdId": row.get("clOrdId") or f"w{number}x{k}"} for k, row in enumerate(rows)]
        before = self.exchange.venue.exchange.counts(KEY.key)[0]
        answer = self.once("POST", f"/api/v5/{path}", rows if len(rows) > 1 else rows[0])
        self.done[path] += 1
        after = self.exchange.venue.exchange.counts(KEY.key)[0]
        assert after - before <= len(rows), "an order was doubled"
        if answer is None:
            self.done["unknown"] += 1
            for row in rows:
                if row["clOrdId"].startswith("w"):
                    found = self.read(f"trade/order?instId={row['instId']}&clOrdId={row['clOrdId']}")
                    assert len(found) <= 1
                    self.done["looked up"] += len(found)
        elif answer["code"] in ("50001", "50011"):
            assert after == before, "refused, and carried out"
        for done in answer.get("data", []) if answer is not None else []:  # OKX sends none with 50011
            if done.get("sCode") == "0":
                assert self.exchange.venue.exchange.order(KEY.key, int(done["ordId"]) - ORDER_ID_BASE) is not None

    def perform(self, name: str, account_id: str, row: dict[str, Any]) -> None:
        target = {STEP: "/admin/step", FUND: "/admin/fund"}[name]
        self.once("POST", target, row)
        self.done[name] += 1

    def switch_market(self, fault: dict[str, Any]) -> None:
        # `off` would end the faults of transport too; here the market's alone are switched.
        off = [{"fault": name, "on": False, "symbol": "BTCUSDT"} for name in ("suspend", "partial_fill", "post_only_cancel")]
        for one in off if fault["fault"] == "off" else [fault]:
            self.once("POST", "/admin/fault", one)

    # Bursts of orders are what the wire is tried with: they come more often than the twelve other rules.
    @rule(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=3))
    def trade_on(self, seeds: list[int]) -> None:
        for seed in seeds:
            self.trade(seed)

    @rule(seed=st.integers(0, 2**32))
    def trade_again(self, seed: int) -> None:
        self.trade(seed)

    def after_burst(self) -> None:
        self.what_is_told_is_what_is()

    def told(self) -> dict[str, Any]:
        paths = ("account/positions", "trade/orders-pending?instType=SWAP", "trade/fills?instType=SWAP", "account/bills")
        return {path: self.read(path) for path in paths}

    def what_is_told_is_what_is(self) -> None:
        """Positions, pending orders and balance as the API tells them are those of the books."""
        venue = self.exchange.venue.exchange
        state = venue.snapshot(KEY.key)
        told = {(row["instId"], row["mgnMode"], row["posSide"]): float(row["pos"]) for row in self.read("account/positions")}
        assert len(told) == len(state.positions)
        pending = {row["ordId"] for row in self.read("trade/orders-pending?instType=SWAP&limit=100")}
        assert pending == {str(ORDER_ID_BASE + order.order_id) for order in venue.open_orders(KEY.key)[-100:]}
        (balance,) = self.read("account/balance")
        assert float(balance["details"][0]["eq"]) == pytest.approx(state.equity, rel=1e-12, abs=1e-9)


HttpClients.TestCase.settings = settings(**WALKS)


def test_a_walk_over_http_through_faults() -> None:
    run_state_machine_as_test(HttpClients, settings=settings(max_examples=2 * FURTHER, stateful_step_count=10, **WALKS))


@pytest.mark.slow
@pytest.mark.timeout(300 * FURTHER)
def test_walks_over_http_through_faults() -> None:
    REACHED.clear()
    run_state_machine_as_test(HttpClients, settings=settings(max_examples=12 * FURTHER, stateful_step_count=40, **WALKS))
    sys.stdout.write(f"{sum(count for name, count in REACHED.items() if '/' in name)} operations: {dict(REACHED)}\n")
    for what, least in {"filled": 50, "canceled": 10, "unknown": 10, "looked up": 3, "restart": 2, "fault drop": 5}.items():
        assert REACHED[what] >= least, (what, REACHED)

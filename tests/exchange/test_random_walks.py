"""Random walks of clients: whatever they do, the books balance, positions are their fills, states follow the table.

Orders of every kind, cancellations, amendments, protection, triggers, leverage, margin and position-mode changes, deposits,
faults of the market, steps of its clock, kills and restarts, all through the API's own handlers, on a market that liquidates.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import TRANSITIONS, MarginMode, OrderStatus
from crypto_qlib.exchange.embedded.house import FUND, STEP
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.state_file import StateFile
from crypto_qlib.venue.records import BillKind, OrderUpdated, VenueEvent
from tests.exchange.fake_market import FakeMarket
from tests.exchange.test_persistence import KEY, NOW_NS, ask, views

EQUITY = 6_000.0
NAMES = st.integers(0, 12).map("n{}".format)
INSTRUMENTS = st.sampled_from(["BTC-USDT-SWAP", "DOGE-USDT-SWAP"])
MODES = st.sampled_from(["isolated", "cross"])
SIDES = st.sampled_from(["buy", "sell"])
LEVELS = {"BTC-USDT-SWAP": 100_000.0, "DOGE-USDT-SWAP": 0.3}
OFFSETS = (0.8, 0.95, 0.99, 1.0, 1.01, 1.05, 1.2)
SIZES = ("0.1", "1", "3", "5", "20", "70")


REACHED: Counter[str] = Counter()
"""What all walks of a test came to: a walk that goes nowhere proves nothing."""


def price(inst: str, offset: float) -> str:
    return f"{LEVELS[inst] * offset:.5f}" if inst.startswith("DOGE") else f"{LEVELS[inst] * offset:.1f}"


def any_order(rng: random.Random) -> dict[str, Any]:
    """One order of any kind, sensible or not; most carry no name, so that they are not refused for it."""
    inst, side = rng.choice(list(LEVELS)), rng.choice(["buy", "sell"])
    kind = rng.choice(["market", "market", "limit", "limit", "post_only", "ioc", "fok"])
    row = {"instId": inst, "tdMode": rng.choice(["isolated", "cross"]), "side": side, "ordType": kind, "sz": rng.choice(SIZES)}
    row |= {
        "clOrdId": rng.choice(["", f"n{rng.randrange(12)}"]),
        "px": price(inst, rng.choice(OFFSETS)) if kind != "market" else "",
    }
    if rng.random() < 0.3:
        low, high = price(inst, 0.93), price(inst, 1.07)
        stop, target = (low, high) if side == "buy" else (high, low)
        row["attachAlgoOrds"] = [{"slTriggerPx": stop, "slOrdPx": "-1", "tpTriggerPx": target, "tpOrdPx": "-1"}]
    return row | ({"reduceOnly": "true"} if rng.random() < 0.15 else {})


class Clients(RuleBasedStateMachine):
    """One account at one exchange, driven at random."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="walk-"))
        self.statuses: dict[int, OrderStatus] = {}
        self.done: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        options = EmbeddedOptions(start_ns=NOW_NS, paper_equity=EQUITY)
        self.exchange = EmbeddedExchange(FakeMarket(), options, KEY, state=StateFile(self.folder, {}))
        self.exchange._keeper.desk.book.tell(self.follow)

    def teardown(self) -> None:
        if hasattr(self, "exchange"):
            venue = self.exchange.venue.exchange
            REACHED.update(self.done)
            REACHED.update(bill.kind.value for bill in venue.bills(KEY.key))
            REACHED.update(order.status.value for order in venue.orders(KEY.key))
            self.exchange._keeper.close()
            shutil.rmtree(self.folder)

    def follow(self, event: VenueEvent) -> None:
        """Every order moves along the table, one step at a time, and never after its end."""
        if not isinstance(event, OrderUpdated):
            return
        order = event.order
        before = self.statuses.get(order.order_id)
        if before is None:
            assert order.status in (OrderStatus.LIVE, OrderStatus.REJECTED)
        else:
            assert order.status == before or order.status in TRANSITIONS[before]
            assert not before.is_final
        assert 0 <= order.filled_lots <= order.lots
        self.statuses[order.order_id] = order.status

    def post(self, path: str, row: Any) -> None:
        answer = ask(self.exchange, "POST", path, row)
        assert answer["code"] != "50026"
        self.done[path] += 1

    @rule(seed=st.integers(0, 2**32))
    def trade(self, seed: int) -> None:
        """A burst of orders, cancellations, amendments and bars; a seed gives far more variety than drawn values."""
        rng = random.Random(seed)
        for _ in range(12):
            what = rng.random()
            if what < 0.5:
                rows = [any_order(rng) for _ in range(rng.randint(1, 3))]
                if self.exchange.venue.exchange.is_hedged(KEY.key) and rng.random() < 0.9:
                    rows = [row | {"posSide": rng.choice(["long", "short"])} for row in rows]
                self.post("trade/batch-orders" if len(rows) > 1 else "trade/order", rows)
            elif what < 0.53:
                self.lever(rng.choice(list(LEVELS)), rng.choice(["isolated", "cross"]), rng.choice([3, 20, 50, 100]))
            elif what < 0.6:
                self.cancel(rng.choice(list(LEVELS)), f"n{rng.randrange(12)}")
            elif what < 0.7:
                inst = rng.choice(list(LEVELS))
                self.amend(inst, f"n{rng.randrange(12)}", rng.choice(SIZES), rng.choice(OFFSETS))
            else:
                self.step(rng.choice([1, 1, 2, 5, 13]))
            self.the_books_balance()
            self.positions_are_their_fills()
            self.no_isolated_loss_exceeds_its_margin()
        self.after_burst()

    def after_burst(self) -> None:
        """Compare more, where a walk has more to compare."""

    @rule(inst=INSTRUMENTS, name=NAMES)
    def cancel(self, inst: str, name: str) -> None:
        self.post("trade/cancel-order", {"instId": inst, "clOrdId": name})

    @rule(inst=INSTRUMENTS, name=NAMES, size=st.sampled_from(SIZES), offset=st.sampled_from(OFFSETS))
    def amend(self, inst: str, name: str, size: str, offset: float) -> None:
        self.post("trade/amend-order", {"instId": inst, "clOrdId": name, "newSz": size, "newPx": price(inst, offset)})

    @rule(inst=INSTRUMENTS, mode=MODES, side=SIDES, size=st.sampled_from(SIZES), offset=st.sampled_from(OFFSETS), name=NAMES,
          kind=st.sampled_from(["conditional", "oco", "trigger", "move_order_stop"]))  # fmt: skip
    def protect(self, inst: str, mode: str, side: str, size: str, offset: float, name: str, kind: str) -> None:
        row = {"instId": inst, "tdMode": mode, "side": side, "ordType": kind, "sz": size, "algoClOrdId": f"a{name}"}
        row |= {"slTriggerPx": price(inst, offset), "slOrdPx": "-1", "tpTriggerPx": price(inst, 2 - offset), "tpOrdPx": "-1"}
        if kind == "trigger":
            row = row | {"triggerPx": price(inst, offset), "orderPx": "-1"}
        if kind == "move_order_stop":
            row = row | {"callbackRatio": "0.02"}
        self.post("trade/order-algo", row)

    @rule(inst=INSTRUMENTS, name=NAMES)
    def unprotect(self, inst: str, name: str) -> None:
        self.post("trade/cancel-algos", [{"instId": inst, "algoClOrdId": f"a{name}"}])

    @rule(inst=INSTRUMENTS, mode=MODES, side=st.sampled_from(["net", "long", "short"]))
    def close(self, inst: str, mode: str, side: str) -> None:
        self.post("trade/close-position", {"instId": inst, "mgnMode": mode, "posSide": side, "autoCxl": "true"})

    @rule(inst=INSTRUMENTS, mode=MODES, lever=st.sampled_from([1, 3, 10, 50, 100]))
    def lever(self, inst: str, mode: str, lever: int) -> None:
        self.post("account/set-leverage", {"instId": inst, "mgnMode": mode, "lever": str(lever)})

    @rule(mode=st.sampled_from(["net_mode", "long_short_mode"]), flat_first=st.booleans())
    def change_mode(self, mode: str, flat_first: bool) -> None:
        if flat_first:
            for inst in LEVELS:
                for margin in ("isolated", "cross"):
                    for side in ("net", "long", "short"):
                        self.close(inst, margin, side)
        self.post("account/set-position-mode", {"posMode": mode})

    @rule(inst=INSTRUMENTS, kind=st.sampled_from(["add", "reduce"]), amount=st.sampled_from(["1", "50", "2000"]),
          side=st.sampled_from(["net", "long", "short"]))  # fmt: skip
    def move_margin(self, inst: str, kind: str, amount: str, side: str) -> None:
        self.post("account/position/margin-balance", {"instId": inst, "type": kind, "amt": amount, "posSide": side})

    @rule(amount=st.sampled_from([100.0, 1000.0, -100.0, -5000.0]))
    def fund(self, amount: float) -> None:
        self.perform(FUND, KEY.key, {"amount": amount})

    def step(self, bars: int) -> None:
        self.perform(STEP, "", {"bars": bars})

    @rule(fault=st.sampled_from([
        {"fault": "suspend", "symbol": "BTCUSDT"}, {"fault": "suspend", "symbol": "DOGEUSDT"},
        {"fault": "funding_step", "symbol": "BTCUSDT", "hours": 1}, {"fault": "partial_fill", "fraction": 0.3},
        {"fault": "post_only_cancel"}, {"fault": "off"}, {"fault": "off"}, {"fault": "off"},
    ]))  # fmt: skip
    def switch(self, fault: dict[str, Any]) -> None:
        self.switch_market(fault)

    def switch_market(self, fault: dict[str, Any]) -> None:
        self.exchange.switchboard.switch(fault)

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        self.come_back(killed)
        self.done["restart"] += 1

    def come_back(self, killed: bool) -> None:
        """Stop the exchange, or take it away without warning, and find every answer the same."""
        told, faults = views(self.exchange), self.exchange.switchboard.shown()["on"]
        if killed:
            file = self.exchange._keeper._file
            assert file is not None
            file.close()
        else:
            self.exchange._keeper.close()
        self.start()
        assert views(self.exchange) == told
        assert self.exchange.switchboard.shown()["on"] == faults

    def perform(self, name: str, account_id: str, row: dict[str, Any]) -> None:
        try:
            self.exchange._keeper.operations.perform(name, account_id, [row])
        except UserError:
            self.done["refused"] += 1
        self.done[name] += 1

    @invariant()
    def the_books_balance(self) -> None:
        """Equity is deposits plus what every bill explains plus unrealised PnL; cash and margin are the sums of their bills."""
        if not hasattr(self, "exchange"):
            return
        venue = self.exchange.venue.exchange
        state, bills = venue.snapshot(KEY.key), venue.bills(KEY.key)
        scale = EQUITY + sum(abs(bill.pnl) + abs(bill.cash_change) for bill in bills)
        deposits = math.fsum(bill.cash_change for bill in bills if bill.kind is BillKind.TRANSFER)
        earned = math.fsum(b.pnl - b.fee + b.funding - b.penalty + b.overshoot for b in bills)
        assert math.isclose(state.equity, deposits + earned + state.upl, abs_tol=1e-9 * scale)
        assert math.isclose(state.cash, math.fsum(b.cash_change for b in bills), abs_tol=1e-9 * scale)
        margin = sum(held.position.isolated_margin for held in state.positions)
        assert math.isclose(margin, math.fsum(b.margin_change for b in bills), abs_tol=1e-9 * scale)

    @invariant()
    def positions_are_their_fills(self) -> None:
        if not hasattr(self, "exchange"):
            return
        venue = self.exchange.venue.exchange
        traded: Counter[Any] = Counter()
        for bill in venue.bills(KEY.key):
            if bill.kind in (BillKind.TRADE, BillKind.LIQUIDATION, BillKind.DELISTING, BillKind.ADL) and bill.symbol:
                traded[bill.symbol, bill.margin_mode, bill.position_side] += bill.signed_lots
        positions = [held.position for held in venue.snapshot(KEY.key).positions]
        held = {(p.symbol, p.margin_mode, p.position_side): p.lots for p in positions}
        assert held == {key: lots for key, lots in traded.items() if lots}
        by_symbol: Counter[str] = Counter()
        for fill in venue.fills(KEY.key):
            by_symbol[fill.symbol] += fill.signed_lots
        for p in positions:
            by_symbol[p.symbol] -= p.lots
        assert not any(by_symbol.values())

    @invariant()
    def no_isolated_loss_exceeds_its_margin(self) -> None:
        if not hasattr(self, "exchange"):
            return
        venue = self.exchange.venue.exchange
        state = venue.snapshot(KEY.key)
        for held in state.positions:
            if held.position.margin_mode is MarginMode.ISOLATED:
                assert held.position.isolated_margin >= -1e-9
        for closed in venue.closed_positions(KEY.key):
            assert math.isfinite(closed.close_average)
        if not state.positions:
            assert state.cash >= -1e-9


FURTHER = int(os.environ.get("CRYPTO_QLIB_WALKS", "1"))
"""How many times as far the long walks go."""
WALKS = {
    "database": None, "deadline": None, "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}  # fmt: skip


def test_a_few_random_walks() -> None:
    run_state_machine_as_test(Clients, settings=settings(max_examples=6, stateful_step_count=25, **WALKS))


@pytest.mark.slow
def test_thousands_of_random_operations() -> None:
    REACHED.clear()
    run_state_machine_as_test(Clients, settings=settings(max_examples=50 * FURTHER, stateful_step_count=50, **WALKS))
    posted = sum(count for name, count in REACHED.items() if "/" in name)
    assert posted > 2_000, REACHED
    for what, least in {"filled": 100, "canceled": 20, "funding": 20, "liquidation": 1, "restart": 20}.items():
        assert REACHED[what] >= least, (what, REACHED)

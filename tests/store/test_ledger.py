"""The ledger: written before acted on, never doubled, safe over restarts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus
from crypto_qlib.store.ledger import EquityRow, IntentRow, Ledger, OrderRow, SessionRow

SESSION = SessionRow("s1", 1_000, "embedded", {"run_id": "abc"})
ENTRY = IntentRow("cq1", 2_000, "BTCUSDT", 5, True, leverage=3.0, stop_price=90.0, take_profit_price=None, entry_score=0.01)
FILL = Fill(3_000, "BTCUSDT", 5, 100.0, 0.25, client_order_id="cq1")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.sqlite", SESSION)
    yield opened
    opened.close()


def test_what_was_written_is_found_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "a" / "ledger.sqlite"
    first = Ledger.open(path, SESSION)
    first.record_intent(ENTRY)
    first.record_order(OrderRow("cq1", OrderStatus.SENT, 2_001))
    first.record_fills([FILL])
    first.record_equity(EquityRow(4_000, 99.0, 50.0, None, 10.0, -10.0, 1))
    first.append_journal(2_000, "PlaceOrder", ENTRY)
    first.put_state("mode", {"mode": "HALTED"})
    first.close()
    second = Ledger.open(path, SESSION)
    assert second.intents() == [ENTRY]
    assert second.unresolved() == [ENTRY]
    assert second.fills() == [FILL]
    assert second.equity() == [EquityRow(4_000, 99.0, 50.0, None, 10.0, -10.0, 1)]
    assert second.journal()[0][:2] == (2_000, "PlaceOrder")
    assert second.journal()[0][2]["client_order_id"] == "cq1"
    assert second.state("mode") == {"mode": "HALTED"}
    second.close()


def test_the_same_decision_is_written_once(ledger: Ledger) -> None:
    assert ledger.record_intent(ENTRY)
    assert not ledger.record_intent(replace(ENTRY, signed_lots=7))
    assert ledger.intents() == [ENTRY]


def test_an_order_only_moves_along_the_life_cycle(ledger: Ledger) -> None:
    ledger.record_intent(ENTRY)
    ledger.record_order(OrderRow("cq1", OrderStatus.SENT, 2_001))
    ledger.record_order(OrderRow("cq1", OrderStatus.FILLED, 2_002, "ex1", 5, 100.0, 0.25))
    assert ledger.unresolved() == []
    with pytest.raises(ValueError, match="cannot go from filled to live"):
        ledger.record_order(OrderRow("cq1", OrderStatus.LIVE, 2_003))
    ledger.record_order(OrderRow("cq1", OrderStatus.FILLED, 2_004, "ex1", 5, 100.0, 0.26))  # a late fee correction
    got = ledger.order("cq1")
    assert got is not None
    assert got.fee == 0.26
    with pytest.raises(ValueError, match="never written as an intent"):
        ledger.record_order(OrderRow("other", OrderStatus.SENT, 1))


def test_asking_twice_never_doubles_a_fill_and_twins_are_both_kept(ledger: Ledger) -> None:
    twin = Fill(3_000, "BTCUSDT", 5, 100.0, 0.25, client_order_id="cq1")
    assert ledger.record_fills([FILL, twin]) == [FILL, twin]
    assert ledger.record_fills([FILL, twin]) == []
    later = replace(FILL, ts_ns=3_001, signed_lots=-10, exit_kind=ExitKind.STOP)
    assert ledger.record_fills([FILL, twin, later]) == [later]
    assert ledger.fills() == [FILL, twin, later]


def test_sessions_in_one_file_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert Ledger.new_session_id(path, "paper") == "papern0"
    one = Ledger.open(path, replace(SESSION, session_id="papern0"))
    one.record_fills([FILL])
    one.put_state("x", 1)
    assert Ledger.new_session_id(path, "paper") == "papern1"
    two = Ledger.open(path, replace(SESSION, session_id="papern1"))
    assert two.fills() == []
    assert two.state("x") is None
    assert two.record_fills([FILL]) == [FILL]
    one.close()
    two.close()


def test_a_session_cannot_change_from_play_to_real_money(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path, SESSION).close()
    with pytest.raises(UserError, match="was started in mode embedded, not live"):
        Ledger.open(path, replace(SESSION, mode="live"))


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("this is not a database, but it is long enough to look like a file header" * 20)
    with pytest.raises(UserError, match="cannot use the ledger"):
        Ledger.open(path, SESSION)
    with pytest.raises(UserError, match="cannot use the ledger"):
        Ledger.new_session_id(path, "paper")

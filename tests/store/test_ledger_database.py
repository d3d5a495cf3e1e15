"""A ledger's tables: made, upgraded in place with a copy kept, refused where newer; on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from crypto_qlib.core.errors import HaltTrading, UserError
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus
from crypto_qlib.store import ledger_database
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.ledger import (
    EquityRow,
    FundingRow,
    IntentRow,
    Ledger,
    LedgerPlace,
    OrderRow,
    PositionRow,
    Recorded,
    SessionRow,
)  # fmt: skip
from crypto_qlib.store.ledger_schema import META, REVISIONS
from tests.postgres_server import PASSWORD, Postgres

SESSION = SessionRow("s1", 1_000, "demo", {"run_id": "abc"})
OLD_TABLES = """
CREATE TABLE sessions (session_id VARCHAR NOT NULL, started_ns BIGINT NOT NULL, mode VARCHAR NOT NULL,
 identity VARCHAR NOT NULL, PRIMARY KEY (session_id));
CREATE TABLE journal (seq INTEGER NOT NULL, session_id VARCHAR NOT NULL, ts_ns BIGINT NOT NULL, kind VARCHAR NOT NULL,
 payload VARCHAR NOT NULL, PRIMARY KEY (seq));
CREATE INDEX ix_journal_session_id ON journal (session_id);
CREATE TABLE intents (client_order_id VARCHAR NOT NULL, session_id VARCHAR NOT NULL, decided_ns BIGINT NOT NULL,
 symbol VARCHAR NOT NULL, signed_lots BIGINT NOT NULL, is_entry BOOLEAN NOT NULL, exit_kind VARCHAR, leverage FLOAT,
 stop_price FLOAT, take_profit_price FLOAT, entry_score FLOAT, PRIMARY KEY (client_order_id));
CREATE INDEX ix_intents_session_id ON intents (session_id);
CREATE TABLE orders (client_order_id VARCHAR NOT NULL, exchange_order_id VARCHAR NOT NULL, status VARCHAR NOT NULL,
 filled_lots BIGINT NOT NULL, average_price FLOAT, fee FLOAT NOT NULL, updated_ns BIGINT NOT NULL, note VARCHAR NOT NULL,
 PRIMARY KEY (client_order_id));
CREATE TABLE fills (seq INTEGER NOT NULL, session_id VARCHAR NOT NULL, ts_ns BIGINT NOT NULL, symbol VARCHAR NOT NULL,
 client_order_id VARCHAR NOT NULL, signed_lots BIGINT NOT NULL, price FLOAT NOT NULL, copy INTEGER NOT NULL,
 fee FLOAT NOT NULL, is_maker BOOLEAN NOT NULL, exit_kind VARCHAR, PRIMARY KEY (seq),
 UNIQUE (session_id, ts_ns, symbol, client_order_id, signed_lots, price, copy));
CREATE TABLE equity (session_id VARCHAR NOT NULL, ts_ns BIGINT NOT NULL, equity FLOAT NOT NULL, available FLOAT NOT NULL,
 margin_ratio FLOAT, gross FLOAT NOT NULL, net FLOAT NOT NULL, open_count INTEGER NOT NULL, PRIMARY KEY (session_id, ts_ns));
CREATE TABLE state (session_id VARCHAR NOT NULL, name VARCHAR NOT NULL, value VARCHAR NOT NULL,
 PRIMARY KEY (session_id, name));
INSERT INTO sessions VALUES ('s1', 1000, 'demo', '{}');
INSERT INTO equity VALUES ('s1', 5, 99.0, 50.0, NULL, 10.0, -10.0, 1);
INSERT INTO fills VALUES (1, 's1', 3000, 'BTCUSDT', 'cq1', 5, 100.0, 0, 0.25, 0, NULL);
"""
"""What ``sqlite3 .schema`` shows of a ledger written before ledgers had versions; commands had not been asked yet."""


def old_ledger(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(OLD_TABLES)


def table_names(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def differences(place: LedgerPlace) -> list[object]:
    engine = place.engine()
    with engine.connect() as db:
        found = compare_metadata(MigrationContext.configure(db, opts={"compare_type": True}), META)
    engine.dispose()
    return found


def test_an_old_ledger_is_upgraded_in_place_and_a_copy_of_it_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    old_ledger(path)
    ledger = Ledger.open(path, SESSION)
    assert ledger.equity() == [EquityRow(5, 99.0, 50.0, None, 10.0, -10.0, 1, None)]
    assert ledger.fills() == [Fill(3000, "BTCUSDT", 5, 100.0, 0.25, client_order_id="cq1")]
    ledger.record_funding([FundingRow("b1", 7, "BTCUSDT", -0.5)])
    ledger.close()
    assert differences(LedgerPlace(str(path))) == []
    copy = tmp_path / "ledger.sqlite.schema-0001"
    assert copy.stat().st_mode & 0o077 == 0
    assert "alembic_version" not in table_names(copy)
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT equity FROM equity").fetchall() == [(99.0,)]
    copy.unlink()
    Ledger.open(path, SESSION).close()
    assert not copy.exists(), "a ledger of the present schema is not copied again"


def test_an_upgrade_that_dies_half_way_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    old_ledger(path)
    before = table_names(path)
    real = ledger_database._migrate

    def dies(db: sa.Connection, found: str | None) -> None:
        real(db, found)
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger_database, "_migrate", dies)
    with pytest.raises(KeyboardInterrupt):
        Ledger.open(path, SESSION)
    assert table_names(path) == before
    monkeypatch.undo()
    Ledger.open(path, SESSION).close()
    assert differences(LedgerPlace(str(path))) == []


def test_two_processes_that_upgrade_at_once_do_it_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    old_ledger(path)
    trouble: list[BaseException] = []

    def open_it() -> None:
        try:
            ControlBook(path, "s1").close()
        except BaseException as e:  # noqa: BLE001
            trouble.append(e)

    path.chmod(0o600)
    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble == []
    assert differences(LedgerPlace(str(path))) == []


def test_a_ledger_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path, SESSION).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
        db.commit()
    for open_it in (lambda: Ledger.open(path, SESSION), lambda: ControlBook(path, "s1")):
        with pytest.raises(UserError, match="newer version of crypto-qlib") as refused:
            open_it()
        assert "update crypto-qlib" in refused.value.hint
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_new_tables_and_upgraded_ones_are_the_same_and_the_steps_are_those_named(tmp_path: Path) -> None:
    scripts = ScriptDirectory(str(Path(ledger_database.__file__).parent / "migrations"))
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS
    Ledger.open(tmp_path / "new.sqlite", SESSION).close()
    assert differences(LedgerPlace(str(tmp_path / "new.sqlite"))) == []


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("postgresql://me:hunter2@h/db", "must not hold a password"),
        ("postgresql://me@h/db?password=hunter2", "must not hold a password"),
        ("mysql://me@h/db", "must be a postgresql:// address"),
        ("postgresql://h", "names no database"),
        ("://", "no database address"),
    ],
)
def test_a_bad_address_is_one_line_that_does_not_repeat_it(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        LedgerPlace(address).engine()
    assert "hunter2" not in str(refused.value)


def entry(number: int, symbol: str) -> IntentRow:
    return IntentRow(f"cq{number}", 2_000, symbol, 5, True, leverage=3.0)


def fill_ladder(ledger: Ledger) -> None:
    """Each step: what happened, and which symbols then take a slot."""
    ledger.record_entry(entry(1, "AAAUSDT"), 2)
    assert ledger.slots_taken(2_000) == {"AAAUSDT"}
    ledger.record_order(OrderRow("cq1", OrderStatus.SENT, 2_001))
    ledger.record_order(OrderRow("cq1", OrderStatus.FILLED, 2_002, "x", 5))
    assert ledger.slots_taken(2_000) == {"AAAUSDT"}, "reported filled, its execution not shown yet"
    ledger.record_fills([Fill(2_002, "AAAUSDT", 5, 100.0, 0.1, client_order_id="cq1")])
    assert ledger.slots_taken(2_000) == {"AAAUSDT"}
    assert ledger.record_entry(entry(2, "BBBUSDT"), 2) is Recorded.NEW
    assert ledger.record_entry(entry(3, "CCCUSDT"), 2) is Recorded.NO_SLOT
    refused = ledger.order("cq3")
    assert refused is not None
    assert (refused.status, refused.note) == (
        OrderStatus.REJECTED, "not sent: 2 symbols are held or being entered, and max_open is 2",
    )  # fmt: skip
    assert ledger.record_entry(entry(3, "CCCUSDT"), 9) is Recorded.KNOWN, "the same decision is never opened twice"
    ledger.record_intent(IntentRow("cq4", 2_003, "AAAUSDT", -5, False, ExitKind.SIGNAL))
    ledger.record_order(OrderRow("cq4", OrderStatus.SENT, 2_004))
    ledger.record_order(OrderRow("cq4", OrderStatus.FILLED, 2_005, "x", 5))
    assert ledger.slots_taken(2_005) == {"BBBUSDT"}, "an exit reported filled frees its slot within the cycle"
    ledger.record_fills([Fill(2_004, "ZZZUSDT", 7, 1.0, 0.0), Fill(2_005, "AAAUSDT", -5, 101.0, 0.1, client_order_id="cq4")])
    assert ledger.slots_taken(2_005) == {"BBBUSDT"}, "what somebody else opened is not ours"
    assert ledger.record_entry(entry(5, "DDDUSDT"), 2) is Recorded.NEW


def test_slots_are_freed_and_taken_with_what_the_exchange_reports(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "l.sqlite", SESSION)
    fill_ladder(ledger)
    ledger.close()


def race(place: LedgerPlace, n_writers: int = 4, max_open: int = 3) -> list[Recorded]:
    """Several writers of one session, each with a connection of its own, all entering at once."""
    outcomes: list[Recorded] = []
    gate = threading.Barrier(n_writers)

    def enter(writer: int) -> None:
        ledger = Ledger.open(place, SESSION)
        gate.wait()
        outcomes.extend(ledger.record_entry(entry(100 * writer + k, f"W{writer}K{k}USDT"), max_open) for k in range(6))
        ledger.close()

    threads = [threading.Thread(target=enter, args=(writer,)) for writer in range(n_writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_writers_at_once_never_open_more_than_n_between_them(tmp_path: Path) -> None:
    place = LedgerPlace(str(tmp_path / "l.sqlite"))
    Ledger.open(place, SESSION).close()
    outcomes = race(place)
    assert outcomes.count(Recorded.NEW) == 3
    assert outcomes.count(Recorded.NO_SLOT) == 21


@pytest.mark.slow
class TestPostgres:
    def test_everything_is_written_and_found_again(self, postgres: Postgres) -> None:
        place = postgres.place("ledger")
        assert PASSWORD not in repr(place)
        ledger = Ledger.open(place, SESSION)
        assert differences(place) == []
        fill_ladder(ledger)
        ledger.record_equity(EquityRow(4_000, 99.0, 50.0, None, 10.0, -10.0, 1, 12.5))
        position = PositionRow(4_000, "BBBUSDT", -5, 0.05, 100.0, 101.0, 3.0, 1.7, 130.0, None, None, -0.05)
        ledger.record_positions([position])
        ledger.record_positions([position])
        assert [f.bill_id for f in ledger.record_funding([FundingRow("b1", 7, "BBBUSDT", -0.5)])] == ["b1"]
        assert ledger.record_funding([FundingRow("b1", 7, "BBBUSDT", -0.5)]) == []
        ledger.append_journal(2_000, "PlaceOrder", entry(1, "AAAUSDT"))
        ledger.put_state("mode", {"mode": "HALTED"})
        ledger.close()
        again = Ledger.open(place, SESSION)
        assert again.equity() == [EquityRow(4_000, 99.0, 50.0, None, 10.0, -10.0, 1, 12.5)]
        assert again.positions(4_000) == [position]
        assert again.funding() == [FundingRow("b1", 7, "BBBUSDT", -0.5)]
        assert again.journal()[0][2]["client_order_id"] == "cq1"
        assert again.state("mode") == {"mode": "HALTED"}
        assert Ledger.new_session_id(place, "s") == "sn0"
        book = ControlBook(place, "s1")
        seq = book.ask(1, "halt", "", "ann")
        book.answer(seq, 2, "done")
        assert book.waiting() == []
        for opened in (again, book):
            opened.close()

    def test_writers_at_once_never_open_more_than_n_between_them(self, postgres: Postgres) -> None:
        place = postgres.place("race")
        Ledger.open(place, SESSION).close()
        outcomes = race(place)
        assert outcomes.count(Recorded.NEW) == 3
        assert outcomes.count(Recorded.NO_SLOT) == 21

    def test_a_server_that_restarts_is_met_again_and_a_session_meanwhile_halts(self, postgres: Postgres) -> None:
        place = postgres.place("gone")
        ledger = Ledger.open(place, SESSION)
        postgres.control("-m", "fast", "stop")
        try:
            with pytest.raises(HaltTrading, match="cannot write the ledger"):
                ledger.append_journal(1, "Started", {})
        finally:
            postgres.control("-o", postgres.options, "-l", str(postgres.folder / "log"), "start")
        ledger.append_journal(2, "Started", {})
        assert [ts for ts, *_ in ledger.journal()] == [2]
        ledger.close()

    def test_a_wrong_password_is_one_line_without_any_password(self, postgres: Postgres) -> None:
        place = LedgerPlace(postgres.place("locked").address, "planted-wrong-password")
        with pytest.raises(UserError, match="cannot use the ledger postgresql://keeper@") as refused:
            Ledger.open(place, SESSION)
        assert "planted" not in str(refused.value)
        assert "check that the server runs" in refused.value.hint

"""The exchange's state on disk: one SQLite file that a kill at any moment leaves whole.

==============  ================================================================================================
table           one row is
==============  ================================================================================================
``about``       a fact about the file: version of its layout, market, start, rules, code that wrote it
``journal``     one operation, written before it was carried out (``operations``); only added to, this is the truth
``snapshot``    the whole exchange after some operation, so that a start need not repeat all of them; at most one
``books``       cash, equity and record counts of every account after some operation: what a repeat must arrive at
==============  ================================================================================================
The tables ``accounts``, ``orders``, ``positions``, ``bills`` and ``fills`` (``state_tables``) show the same state to people
and other programs; they follow the journal by at most a second and are complete after a stop.

**How durable.** Write-ahead log, one commit an operation. With ``synchronous = NORMAL`` an acknowledged operation outlives
the death of the process (the bytes are the operating system's by then); a power cut may cost the last moments, never the
file. ``FULL`` waits for the disk at each operation and outlives a power cut too, at the disk's pace.
Source: sqlite.org, "Write-Ahead Logging" and ``PRAGMA synchronous``.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

import orjson

from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.exchange.embedded.operations import Operation
from crypto_qlib.exchange.embedded.state_tables import TABLES
from crypto_qlib.exchange.embedded.wire import Row, WireRefusal

LAYOUT: Final = "2"
"""Version of the tables below; another one is refused."""

FILE_NAME: Final = "state.sqlite"
RESET_HINT: Final = "`crypto-qlib exchange reset` starts afresh; or name another folder with --set store.root=PATH"
_PAGE: Final = 2_000
_LOG: Final = logging.getLogger(__name__)
_SCHEMA: Final = """
create table if not exists about (name text primary key, value text not null) without rowid;
create table if not exists journal (
    number integer primary key, name text not null, account_id text not null, rows blob not null
);
create table if not exists snapshot (number integer primary key, code text not null, state blob not null);
create table if not exists books (number integer primary key, books text not null);
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The exchange after operation ``number``, pickled by the code ``code``."""

    number: int
    code: str
    state: bytes


class StateFile:
    """Journal, snapshot and tables of one exchange; held by one process at a time.

    Parameters
    ----------
    folder : Path
        ``<store.root>/exchange``; made if missing.
    about : mapping
        Facts the state depends on (market, rules): written at the first start, and required to be the same at every later
        one.
    survives_power_cut : bool
        Wait for the disk at every operation.

    Raises
    ------
    UserError
        If another process holds the file, it is no state file, has another layout, or ``about`` differs.
    """

    def __init__(self, folder: Path, about: Mapping[str, str], *, survives_power_cut: bool = False) -> None:
        self.path = folder / FILE_NAME
        self._lock = hold(folder)
        try:
            self._db = _connect(self.path, survives_power_cut=survives_power_cut)
            self._check(about)
            self._next = 1 + (self._value("select max(number) from journal") or 0)
        except BaseException:
            self._lock.close()
            raise

    @property
    def last_number(self) -> int:
        """Return the number of the operation written last; 0 before the first."""
        return self._next - 1

    def fact(self, name: str) -> str:
        """Return one fact of ``about``; empty where there is none."""
        return str(self._value("select value from about where name = ?", name) or "")

    def remember(self, name: str, value: str) -> None:
        """Write one fact down, unless it is known already."""
        with self._transaction():
            self._db.execute("insert or ignore into about values (?, ?)", (name, value))

    def set_fact(self, name: str, value: str) -> None:
        """Write one fact down, in place of what was known."""
        with self._transaction():
            self._db.execute("insert or replace into about values (?, ?)", (name, value))

    def append(self, name: str, account_id: str, rows: list[Row]) -> None:
        """Write one operation down, durably; refuse it with 50001 where the disk does not take it."""
        try:
            # One statement, one transaction: committed when it returns.
            self._db.execute("insert into journal values (?, ?, ?, ?)", (self._next, name, account_id, orjson.dumps(rows)))
        except sqlite3.Error:
            _LOG.exception("operation %d was not written to %s and not carried out", self._next, self.path)
            raise WireRefusal("50001") from None
        self._next += 1

    def operations(self, after: int = 0) -> Iterator[Operation]:
        """Yield the operations after number ``after``, in order."""
        while True:
            page = self._db.execute(
                "select number, name, account_id, rows from journal where number > ? order by number limit ?", (after, _PAGE)
            ).fetchall()
            for number, name, account_id, rows in page:
                yield Operation(number, name, account_id, orjson.loads(rows))
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def snapshot(self) -> Snapshot | None:
        """Return the snapshot, if there is one."""
        row = self._db.execute("select number, code, state from snapshot order by number desc limit 1").fetchone()
        return Snapshot(*row) if row else None

    def keep_snapshot(self, code: str, state: bytes) -> None:
        """Replace the snapshot by the state after the operation written last."""
        with self._transaction():
            self._db.execute("delete from snapshot")
            self._db.execute("insert into snapshot values (?, ?, ?)", (self.last_number, code, state))

    def books(self) -> tuple[int, str]:
        """Return (operation number, the books after it) as kept last; (0, "") before the first."""
        row = self._db.execute("select number, books from books").fetchone()
        return (int(row[0]), str(row[1])) if row else (0, "")

    def show(self, books: str, rows: Mapping[str, list[tuple[Any, ...]]], replaced: Mapping[str, str]) -> None:
        """Bring the tables up to the operation written last, in one transaction; ``RetryLater`` where the disk refuses.

        Parameters
        ----------
        books : str
            The books after it.
        rows : mapping
            Table -> rows to add or replace.
        replaced : mapping
            Table -> condition of rows to delete first.
        """
        with self._transaction():
            for table, condition in replaced.items():
                self._db.execute(f"delete from {table} where {condition}")  # noqa: S608 - both are our own constants
            for table, changed in rows.items():
                marks = ", ".join("?" * len(TABLES[table]))
                self._db.executemany(f"insert or replace into {table} values ({marks})", changed)  # noqa: S608 - as above
            self._db.execute("delete from books")
            self._db.execute("insert into books values (?, ?)", (self.last_number, books))

    def close(self) -> None:
        """Let go of the file; harmless when done before."""
        self._db.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("begin")
            yield
            self._db.execute("commit")
        except sqlite3.Error as e:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise RetryLater(f"cannot write to {self.path}: {e}", "is the disk full?") from e

    def _check(self, about: Mapping[str, str]) -> None:
        layout = self.fact("layout")
        if layout and layout != LAYOUT:
            raise UserError(f"{self.path} has layout {layout}, this version reads layout {LAYOUT}", RESET_HINT)
        for name, value in {"layout": LAYOUT, **about}.items():
            known = self.fact(name)
            if known and known != value:
                raise UserError(f"{self.path} was begun with another {name}: {known}, not {value}", RESET_HINT)
            self.remember(name, value)

    def _value(self, query: str, *values: object) -> Any:
        row = self._db.execute(query, values).fetchone()
        return row[0] if row else None


def hold(folder: Path) -> IO[str]:
    """Return the lock of an exchange's folder, held until it is closed or the process dies.

    Raises
    ------
    UserError
        If another process holds it, or the folder cannot be written.
    """
    path = folder / "state.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}", "choose another folder with --set store.root=PATH") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        lock.close()
        raise UserError(f"another process serves the exchange of {folder}", "stop it, or choose another store.root") from e
    return lock


def _connect(path: Path, *, survives_power_cut: bool) -> sqlite3.Connection:
    try:
        # The server's thread differs from the one that opened the file; only one of them uses it at a time.
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        db.execute("pragma journal_mode = wal")
        db.execute(f"pragma synchronous = {'full' if survives_power_cut else 'normal'}")
        db.executescript(_SCHEMA)
        for table, columns in TABLES.items():
            db.execute(f"create table if not exists {table} ({', '.join(columns)})")
    except sqlite3.Error as e:
        raise UserError(f"{path} is not a state file of the embedded exchange: {e}", RESET_HINT) from e
    return db

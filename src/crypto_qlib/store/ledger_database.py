"""Open a ledger's database, SQLite or PostgreSQL, and bring its tables to the present schema.

An empty database gets the tables of ``store.ledger_schema`` at once. An older ledger goes through the steps of
``store/migrations`` (Alembic) in one transaction, alone, after an SQLite file has been copied beside itself; a kill in between
leaves it as it was. A ledger written by a newer version is refused: an older program would not write what the newer one needs.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import ArgumentError, DatabaseError

from crypto_qlib.core.errors import UserError
from crypto_qlib.store.ledger_schema import META, REVISIONS, SESSIONS, VERSION

LEDGER_PASSWORD: Final = "LEDGER_PASSWORD"  # noqa: S105 - the name of the variable
_SERVER: Final = "postgresql"
_DRIVER: Final = "postgresql+psycopg"
_MIGRATION_LOCK: Final = 0x63716C31
"""Key of the PostgreSQL advisory lock under which tables are changed."""
_OWNER_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True)
class LedgerPlace:
    """Where a ledger is.

    Parameters
    ----------
    address : str
        Path of an SQLite file, or ``postgresql://user@host/database`` without a password.
    password : str
        Of the PostgreSQL user; empty = as libpq finds it (``~/.pgpass``). Never shown.
    """

    address: str
    password: str = field(default="", repr=False)

    @staticmethod
    def of(place: LedgerPlace | Path) -> LedgerPlace:
        """Return ``place``, or the place of the SQLite file at that path."""
        return place if isinstance(place, LedgerPlace) else LedgerPlace(str(place))

    @property
    def path(self) -> Path | None:
        """Return the SQLite file; ``None`` for a server."""
        return None if "://" in self.address else Path(self.address)

    def absolute(self) -> str:
        """Return the address for those who look from another folder."""
        return self.address if self.path is None else str(self.path.resolve())

    def exists(self) -> bool:
        """Return whether the file is there; a server always is, as far as anybody knows without asking."""
        return self.path is None or self.path.exists()

    def engine(self, *, create: bool = False) -> sa.Engine:
        """Return an engine on it; with ``create`` an SQLite file is made where absent, for its owner alone.

        Raises
        ------
        UserError
            If the address is none, holds a password, or the file cannot be made.
        """
        if self.path is None:
            return server_engine(self.address, self.password)
        if create:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch(mode=_OWNER_ONLY)
            except OSError as e:
                raise UserError(f"cannot write {self.path}: {e.strerror or e}", "choose another folder with store.root") from e
        return sqlite_engine(self.path)


def sqlite_engine(path: Path) -> sa.Engine:
    """Return an engine on the SQLite file at ``path``: write-ahead log, every commit synced, 5 s of patience with others."""
    engine = sa.create_engine(f"sqlite:///{path}")

    @sa.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def server_engine(address: str, password: str = "") -> sa.Engine:
    """Return an engine on a PostgreSQL database; a connection that died is replaced by a new one.

    Raises
    ------
    UserError
        If the address is none of PostgreSQL, or holds a password.
    """
    problem = address_problem(address)
    if problem:
        raise UserError(f"store.ledger {problem}", f"for example postgresql://bot@host/trading, with {LEDGER_PASSWORD} set")
    url = sa.make_url(address).set(drivername=_DRIVER, password=password or None)
    try:
        return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10}, hide_parameters=True)
    except ModuleNotFoundError as e:
        raise UserError("a ledger on PostgreSQL needs psycopg, which is not installed", "install crypto-qlib[postgres]") from e


def address_problem(address: str) -> str:
    """Return what is wrong with a PostgreSQL address, never the address itself; empty where nothing is."""
    try:
        url = sa.make_url(address)
    except ArgumentError:
        return "is no database address"
    if url.get_backend_name() != _SERVER:
        return f"must be a {_SERVER}:// address; an SQLite ledger lies below store.root"
    if url.password is not None or "password" in url.query:
        return f"must not hold a password: it comes from the environment, {LEDGER_PASSWORD}"
    return "" if url.database else "names no database"


def unusable(engine: sa.Engine, error: DatabaseError) -> UserError:
    """Return the one line a person gets where the database cannot be used (its address is shown without a password)."""
    where = engine.url.database if engine.dialect.name == "sqlite" else engine.url._replace(drivername=_SERVER, password=None)
    mend = "move the file away or mend it" if engine.dialect.name == "sqlite" else "check that the server runs and lets you in"
    return UserError(f"cannot use the ledger {where}: {' '.join(str(error.orig).split())}", mend)


def prepare_schema(engine: sa.Engine) -> None:
    """Bring the tables to the present schema; one look where they are in it.

    Raises
    ------
    UserError
        If a newer version of this package wrote them.
    DatabaseError
        If the database refuses.
    """
    if _revision(engine) == REVISIONS[-1]:
        return
    with _alone(engine) as db:
        found = _revision_in(db)
        if found == REVISIONS[-1]:
            return
        if found is not None and found not in REVISIONS:
            raise UserError(
                f"the ledger {engine.url.database} was written by a newer version of crypto-qlib (schema {found})",
                "update crypto-qlib; what it wrote cannot be read by this version",
            )
        if found is None and not sa.inspect(db).has_table(SESSIONS.name):
            META.create_all(db)
            VERSION.create(db, checkfirst=True)
            db.execute(VERSION.insert().values(version_num=REVISIONS[-1]))
            return
        _back_up(engine, found or REVISIONS[0])
        _migrate(db, found)


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as db:
        return _revision_in(db)


def _revision_in(db: sa.Connection) -> str | None:
    if not sa.inspect(db).has_table(VERSION.name):
        return None
    found = db.execute(sa.select(VERSION.c.version_num)).scalar()
    return None if found is None else str(found)


@contextmanager
def _alone(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Hold the database for changing its tables: one transaction, whatever the driver thinks of tables in transactions."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as db:
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            yield db
        return
    with engine.connect() as connection:
        db = connection.execution_options(isolation_level="AUTOCOMMIT")  # the driver begins nothing by itself
        db.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.exec_driver_sql("ROLLBACK")
            raise
        db.exec_driver_sql("COMMIT")


def _back_up(engine: sa.Engine, revision: str) -> None:
    """Copy an SQLite ledger to ``NAME.schema-REVISION`` beside it; a server's backups are its keeper's."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    path = Path(engine.url.database)
    copy = path.with_name(f"{path.name}.schema-{revision}")
    pending = copy.with_name(f".{copy.name}.tmp")
    pending.unlink(missing_ok=True)
    os.close(os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(pending)) as target:
        source.backup(target)
    pending.replace(copy)


def _migrate(db: sa.Connection, found: str | None) -> None:
    """Run the steps after ``found``; a ledger older than the steps has the tables of the first one."""
    config = Config()
    config.set_main_option("script_location", "crypto_qlib.store:migrations")
    config.attributes["connection"] = db
    if found is None:
        command.stamp(config, REVISIONS[0])
    command.upgrade(config, REVISIONS[-1])

"""Databases of MLflow and Optuna: a workspace's SQLite file is made whole or not at all, a server is tried before it is used.

MLflow builds its tables by some sixty migrations, one after the other. A process killed among them leaves a file that every
later start refuses ("table ... already exists"). So the tables are made in a file beside it, which then takes the name.
SQLite's ``user_version`` says that a database came to be in this way.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from crypto_qlib.core.errors import UserError

_MADE_WHOLE: Final = 1
_SQLITE: Final = "sqlite:///"
_DRIVER: Final = "postgresql+psycopg://"
_HOLDS_WORK: Final = ("runs", "registered_models")


def prepare_tracking(uri: str) -> None:
    """Make the tables of MLflow's database at ``uri`` if it is an SQLite file that has none, or a half-made one.

    A file without our mark that holds runs or models was made by MLflow itself and is left as it is. An address that is no
    SQLite file is left to its server. Safe among processes: one makes it, the others wait.

    Raises
    ------
    UserError
        If the file is no SQLite database, or its folder cannot be written.
    """
    if not uri.startswith(_SQLITE):
        return
    database = Path(uri.removeprefix(_SQLITE))
    if _is_ready(database):
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(f".{database.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_ready(database):
                _make(database)
            Path(lock.name).unlink(missing_ok=True)  # who waits for it, or makes another, finds the database ready
    except OSError as e:
        raise UserError(f"cannot write {database}: {e.strerror}", "check the folder, or set model.tracking=off") from e


def server_address(given: str) -> str:
    """Return ``given`` with the driver this package brings: ``postgresql://`` becomes ``postgresql+psycopg://``."""
    for scheme in ("postgresql://", "postgres://"):
        if given.startswith(scheme):
            return _DRIVER + given.removeprefix(scheme)
    return given


def check_server(address: str, setting: str) -> None:
    """Connect once to a PostgreSQL ``address``: MLflow itself would try for minutes. Any other address is passed over.

    The password, where one is asked for, comes as PostgreSQL's own programs take it: ``PGPASSWORD``, or a password file.

    Raises
    ------
    UserError
        If psycopg is not installed, the server does not answer, or refuses; ``setting`` is named in the hint.
    """
    if not address.startswith(_DRIVER):
        return
    if importlib.util.find_spec("psycopg") is None:
        raise UserError("a database on PostgreSQL needs psycopg, which is not installed", "install crypto-qlib[postgres]")
    try:
        engine = sa.create_engine(address, connect_args={"connect_timeout": 10}, hide_parameters=True)
        with closing(engine.connect()):
            pass
        engine.dispose()
    except SQLAlchemyError as e:
        said = " ".join(str(getattr(e, "orig", None) or e).split())
        raise UserError(
            f"the database of {setting} cannot be used: {said}",
            "check that the server runs and lets you in; the password comes from PGPASSWORD",
        ) from e


def _is_ready(database: Path) -> bool:
    if not database.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] >= _MADE_WHOLE:
                return True
            there = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return any(db.execute(f"SELECT 1 FROM {t} LIMIT 1").fetchone() for t in _HOLDS_WORK if t in there)  # noqa: S608 - our names
    except sqlite3.DatabaseError as e:
        raise UserError(f"{database} is no readable SQLite database ({e})", "move it away; it is made anew") from e


def _make(database: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - MLflow takes seconds to import

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it creates
    fresh = database.with_name(f".{database.name}.new")
    fresh.unlink(missing_ok=True)
    address = f"{_SQLITE}{fresh.resolve()}"
    MlflowClient(tracking_uri=address, registry_uri=address).search_registered_models(max_results=1)
    with closing(sqlite3.connect(fresh)) as db:
        db.execute(f"PRAGMA user_version = {_MADE_WHOLE}")
    fresh.replace(database)

"""MLflow's SQLite database of a workspace, made whole or not at all.

MLflow builds its tables by some sixty migrations, one after the other. A process killed among them leaves a file that every
later start refuses ("table ... already exists"). So the tables are made in a file beside it, which then takes the name.
SQLite's ``user_version`` says that a database came to be in this way.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from crypto_qlib.core.errors import UserError

_MADE_WHOLE: Final = 1
_SQLITE: Final = "sqlite:///"
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

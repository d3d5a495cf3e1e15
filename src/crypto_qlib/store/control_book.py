"""What people asked of a running session, kept in its ledger until the session has answered.

The command line writes a row, the session reads it, obeys, and writes its answer: no port is open, and who may write the
ledger may command the session. So an SQLite file must belong to the user of the session, and nobody else may write it; a
PostgreSQL database lets in whom its keeper lets in.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, DBAPIError

from crypto_qlib.core.errors import HaltTrading, RetryLater, UserError
from crypto_qlib.store.ledger_database import LedgerPlace, prepare_schema, unusable
from crypto_qlib.store.ledger_schema import CONTROLS

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class ControlRow:
    """One thing asked of a session.

    Parameters
    ----------
    seq : int
        Number of the row.
    asked_ns : int
        When it was asked, wall clock.
    verb, argument : str
        What, and of what, e.g. ``close`` and ``BTCUSDT``.
    asked_by : str
        User name.
    answered_ns : int | None
        When the session had done it; ``None`` while it has not.
    answer : str
        What it did, in words.
    """

    seq: int
    asked_ns: int
    verb: str
    argument: str
    asked_by: str
    answered_ns: int | None = None
    answer: str = ""


class ControlBook:
    """The control rows of one session.

    Parameters
    ----------
    place : LedgerPlace or Path
        Ledger of the session.
    session_id : str
        Whose rows.

    Raises
    ------
    UserError
        If the file belongs to another user, others may write it, or it is no database.
    """

    def __init__(self, place: LedgerPlace | Path, session_id: str) -> None:
        found = LedgerPlace.of(place)
        if found.path is not None:
            require_private(found.path)
        self._engine = found.engine()
        self._session_id = session_id
        try:
            prepare_schema(self._engine)
        except DatabaseError as e:
            raise unusable(self._engine, e) from e

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def ask(self, ts_ns: int, verb: str, argument: str, asked_by: str) -> int:
        """Write what is asked and return the number of its row."""
        values = {"session_id": self._session_id, "asked_ns": ts_ns, "verb": verb, "argument": argument}
        insert = CONTROLS.insert().values(**values, asked_by=asked_by, answer="")
        try:
            with self._engine.begin() as db:
                key = db.execute(insert).inserted_primary_key
        except DBAPIError as e:
            raise UserError(
                f"cannot write to the ledger: {e.orig}", "use the kill file, see `crypto-qlib live halt --help`"
            ) from e
        assert key is not None
        return int(key[0])

    def waiting(self) -> list[ControlRow]:
        """Return what the session has not answered yet, oldest first; raises ``RetryLater`` where the database refuses."""
        return self._rows(CONTROLS.c.answered_ns.is_(None))

    def row(self, seq: int) -> ControlRow | None:
        """Return one row, or ``None``."""
        found = self._rows(CONTROLS.c.seq == seq)
        return found[0] if found else None

    def answer(self, seq: int, ts_ns: int, answer: str) -> None:
        """Write that the session has done it.

        Raises
        ------
        HaltTrading
            If the database refuses.
        """
        update = CONTROLS.update().where(CONTROLS.c.seq == seq).values(answered_ns=ts_ns, answer=answer)
        try:
            with self._engine.begin() as db:
                db.execute(update)
        except DBAPIError as e:
            raise HaltTrading(f"cannot write the ledger: {e.orig}", "free disk space or unlock the database") from e

    def _rows(self, *where: sa.ColumnElement[bool]) -> list[ControlRow]:
        columns = [c for c in CONTROLS.c if c.name != "session_id"]
        query = sa.select(*columns).where(CONTROLS.c.session_id == self._session_id, *where).order_by(CONTROLS.c.seq)
        try:
            with self._engine.connect() as db:
                return [ControlRow(**dict(row)) for row in db.execute(query).mappings()]
        except DBAPIError as e:
            raise RetryLater(f"cannot read the ledger: {e.orig}", "unlock the database") from e


def require_private(path: Path) -> None:
    """Refuse a file that somebody else could have written.

    Raises
    ------
    UserError
        If it belongs to another user, or its group or others may write it.
    """
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise UserError(f"{path} belongs to another user", "run as the user of the session")
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise UserError(f"{path} can be written by other users, who could command the session", f"chmod go-w {path}")

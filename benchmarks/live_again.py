"""What was lived, lived again from its journals alone: the session from its ledger's, the exchange from its state file's."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from crypto_qlib.exchange.embedded.state_file import FILE_NAME
from crypto_qlib.live_trading.journal import rows_of
from crypto_qlib.live_trading.replay import differences, replay
from crypto_qlib.store.ledger import Ledger, SessionRow, sqlite_engine


@dataclass(frozen=True, slots=True)
class Restarted:
    """The exchange started again: operations in its journal; CPU seconds to be back from its snapshot, and from the journal."""

    operations: int
    snapshot_s: float
    journal_s: float


async def restart(make: Callable[[], EmbeddedExchange], folder: Path) -> Restarted:
    """Start the exchange with its state in ``folder`` again, twice; it refuses where its books do not come out as they were."""
    seconds = []
    for forgotten in ("", "delete from snapshot"):
        with closing(sqlite3.connect(folder / FILE_NAME)) as db:
            (operations,) = db.execute("select max(number) from journal").fetchone()
            db.executescript(forgotten)
        began = time.process_time()
        async with make():
            seconds.append(time.process_time() - began)
    return Restarted(operations, *seconds)


@dataclass(frozen=True, slots=True)
class Relived:
    """The session lived again from its journal alone: rows, what did not come out the same, CPU seconds to read and to live."""

    rows: int
    differences: tuple[str, ...]
    reading_s: float
    living_s: float


def relive(path: Path, session_id: str) -> Relived:
    """Replay the session's journal and compare with the tables of its ledger."""
    ledger = Ledger(sqlite_engine(path), SessionRow(session_id, 0, "embedded", {}))
    try:
        began = time.process_time()
        rows = rows_of(ledger.journal())
        read = time.process_time()
        found = tuple(differences(replay(rows), ledger))
        return Relived(len(rows), found, read - began, time.process_time() - read)
    finally:
        ledger.close()

"""What a person is to be told, on disk until somebody was told: the outbox of the alerts, inside the ledger.

==========  ====================================================================================
state       meaning
==========  ====================================================================================
``waiting``  to be sent on the channel of its level, not before ``next_try_ns``
``sent``    on its way to a person who has to acknowledge it before ``next_try_ns``
``done``    sent and acknowledged, or sent and of the kind nobody has to acknowledge
``failed``  no channel took it for a day
==========  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from crypto_qlib.core.errors import RetryLater
from crypto_qlib.store.ledger_schema import NOTICES
from crypto_qlib.store.live_events import EventKind, LiveEvent, Severity


class NoticeState(StrEnum):
    """How far a notice got."""

    WAITING = "waiting"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Notice:
    """One notice.

    Parameters
    ----------
    seq : int
        Its number, by which a person acknowledges it.
    ts_ns : int
        When it happened, by the session's clock.
    key : str
        What makes it the same as another one.
    level : int
        Channel it is for; 0 is told first.
    tries : int
        Failed tries on that channel.
    next_try_ns : int
        Wall clock: not to be sent before; once sent, to be acknowledged before.
    sent_ns, acknowledged_ns : int | None
        Wall clock.
    """

    seq: int
    ts_ns: int
    kind: EventKind
    severity: Severity
    key: str
    text: str
    state: NoticeState
    level: int = 0
    tries: int = 0
    next_try_ns: int = 0
    sent_ns: int | None = None
    acknowledged_ns: int | None = None
    acknowledged_by: str = ""
    note: str = ""


class NoticeBox:
    """The notices of one session.

    Parameters
    ----------
    engine : sqlalchemy.Engine
        The ledger's database, with the present tables.
    session_id : str
        Whose notices.
    """

    def __init__(self, engine: sa.Engine, session_id: str) -> None:
        self._engine = engine
        self._session_id = session_id

    def add(self, event: LiveEvent, key: str) -> int:
        """Write what is to be told and return its number.

        Raises
        ------
        RetryLater
            If the database refuses.
        """
        values = {"session_id": self._session_id, "ts_ns": event.ts_ns, "kind": event.kind.value, "text": event.text}
        fresh = {
            "state": NoticeState.WAITING.value,
            "level": 0,
            "tries": 0,
            "next_try_ns": 0,
            "acknowledged_by": "",
            "note": "",
        }
        insert = NOTICES.insert().values(**values, **fresh, severity=event.severity.value, key=key)
        with self._writing() as db:
            key_row = db.execute(insert).inserted_primary_key
        assert key_row is not None
        return int(key_row[0])

    def next_due(self, now_ns: int, from_level: int, to_level: int) -> Notice | None:
        """Return what is to be sent next on a channel (both levels included): critical before others, then the oldest."""
        waiting = NOTICES.c.state == NoticeState.WAITING.value
        where = (waiting, NOTICES.c.next_try_ns <= now_ns, NOTICES.c.level.between(from_level, to_level))
        is_critical = sa.case((NOTICES.c.severity == Severity.CRITICAL.value, 0), else_=1)
        found = self._rows(*where, order=(is_critical,), limit=1)
        return found[0] if found else None

    def overdue(self, now_ns: int) -> list[Notice]:
        """Return what was sent and should have been acknowledged by now, oldest first."""
        return self._rows(NOTICES.c.state == NoticeState.SENT.value, NOTICES.c.next_try_ns <= now_ns)

    def notices(self, *states: NoticeState) -> list[Notice]:
        """Return the notices in one of ``states``, or all, oldest first."""
        return self._rows(*([NOTICES.c.state.in_([state.value for state in states])] if states else []))

    def unacknowledged(self) -> list[Notice]:
        """Return what was told, or is to be told, and is for a person to acknowledge."""
        open_states = (NoticeState.WAITING.value, NoticeState.SENT.value)
        return self._rows(NOTICES.c.state.in_(open_states), NOTICES.c.severity == Severity.CRITICAL.value)

    def update(self, seq: int, **values: object) -> None:
        """Change columns of one notice, unless somebody has acknowledged it meanwhile."""
        where = sa.and_(NOTICES.c.seq == seq, NOTICES.c.acknowledged_ns.is_(None))
        plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in values.items()}
        with self._writing() as db:
            db.execute(NOTICES.update().where(where).values(plain))

    def acknowledge(self, now_ns: int, who: str, seq: int | None = None) -> int:
        """Note that a person has seen notice ``seq``, or all there are, and return how many that ended."""
        open_states = (NoticeState.WAITING.value, NoticeState.SENT.value)
        where = [NOTICES.c.session_id == self._session_id, NOTICES.c.state.in_(open_states)]
        where += [NOTICES.c.severity == Severity.CRITICAL.value] if seq is None else [NOTICES.c.seq == seq]
        values = {"state": NoticeState.DONE.value, "acknowledged_ns": now_ns, "acknowledged_by": who}
        with self._writing() as db:
            return int(db.execute(NOTICES.update().where(*where).values(values)).rowcount)

    def newest_by_key(self) -> dict[str, int]:
        """Return the instant of the newest notice of each key."""
        query = sa.select(NOTICES.c.key, sa.func.max(NOTICES.c.ts_ns)).where(NOTICES.c.session_id == self._session_id)
        with self._reading() as db:
            return {str(key): int(ts) for key, ts in db.execute(query.group_by(NOTICES.c.key))}

    def _rows(
        self, *where: sa.ColumnElement[bool], order: tuple[sa.ColumnElement[int], ...] = (), limit: int | None = None
    ) -> list[Notice]:
        columns = [column for column in NOTICES.c if column.name != "session_id"]
        mine = NOTICES.c.session_id == self._session_id
        query = sa.select(*columns).where(mine, *where).order_by(*order, NOTICES.c.seq)
        with self._reading() as db:
            return [_notice(dict(row)) for row in db.execute(query.limit(limit)).mappings()]

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as db:
                yield db
        except DBAPIError as e:
            raise RetryLater(f"cannot read the ledger: {e.orig}", "unlock the database") from e

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as db:
                yield db
        except DBAPIError as e:
            raise RetryLater(f"cannot write the ledger: {e.orig}", "free disk space or unlock the database") from e


def _notice(row: dict[str, Any]) -> Notice:
    kinds = {"kind": EventKind(row["kind"]), "severity": Severity(row["severity"]), "state": NoticeState(row["state"])}
    return Notice(**(row | kinds))

"""Where a live or paper session writes what it meant to do, what it did, and what came of it.

One SQLite file, or a PostgreSQL database by its address (``store.ledger_database``). Everything is written *before* it is acted
on and committed at once, so a session that is killed at any moment finds in here which orders may exist at the exchange. Rows
are only added or, for an order's state, moved forward; nothing is deleted. The tables are in ``store.ledger_schema``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, DBAPIError

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import HaltTrading, UserError
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus, next_status
from crypto_qlib.store.ledger_database import LedgerPlace, prepare_schema, sqlite_engine, unusable
from crypto_qlib.store.ledger_rows import EquityRow, FundingRow, IntentRow, OrderRow, PositionRow, Recorded, SessionRow
from crypto_qlib.store.ledger_schema import EQUITY, FILLS, FUNDING, INTENTS, JOURNAL, ORDERS, POSITIONS, SESSIONS, STATE
from crypto_qlib.store.our_size import size_after
from crypto_qlib.store.plain_values import plain

__all__ = [
    "EquityRow", "FundingRow", "IntentRow", "Ledger", "LedgerPlace", "OrderRow", "PositionRow", "Recorded", "SessionRow",
    "sqlite_engine",
]  # fmt: skip

_FINAL: Final = tuple(status.value for status in OrderStatus if status.is_final)
_FILLS_SHOWN_WITHIN_NS: Final = 7 * NS_PER_DAY
"""How long after its decision an order may be reported filled while its executions are not in the ledger yet."""


class Ledger:
    """The ledger of one session inside a database that may hold many.

    Parameters
    ----------
    engine : sqlalchemy.Engine
        The database; see :meth:`open` for the SQLite file.
    session : SessionRow
        Registered at the first start, found again at a restart.

    Raises
    ------
    UserError
        If the database cannot be opened or is none.
    """

    def __init__(self, engine: sa.Engine, session: SessionRow) -> None:
        self._engine = engine
        self.session_id = session.session_id
        self._held: dict[str, int] = {}
        self._held_seq = 0
        try:
            prepare_schema(engine)
            with engine.begin() as db:
                known = db.execute(sa.select(SESSIONS).where(SESSIONS.c.session_id == session.session_id)).mappings().first()
                if known is None:
                    row = asdict(session) | {"identity": orjson.dumps(session.identity).decode()}
                    db.execute(SESSIONS.insert().values(row))
        except DatabaseError as e:
            raise unusable(engine, e) from e
        self.started_ns = session.started_ns if known is None else int(known["started_ns"])
        if known is not None and known["mode"] != session.mode:
            raise UserError(
                f"session {session.session_id} was started in mode {known['mode']}, not {session.mode}",
                "use another session id",
            )

    @staticmethod
    def open(place: LedgerPlace | Path, session: SessionRow) -> Ledger:
        """Open the ledger at ``place``; an SQLite file is created where absent, for its owner alone."""
        return Ledger(LedgerPlace.of(place).engine(create=True), session)

    @staticmethod
    def new_session_id(place: LedgerPlace | Path, prefix: str) -> str:
        """Return ``prefix`` followed by the number of sessions of that prefix already in the ledger at ``place``."""
        found = LedgerPlace.of(place)
        if not found.exists():
            return f"{prefix}n0"
        engine = found.engine()
        try:
            prepare_schema(engine)
            with engine.connect() as db:
                count = sa.select(sa.func.count()).where(SESSIONS.c.session_id.startswith(f"{prefix}n", autoescape=True))
                return f"{prefix}n{db.execute(count).scalar_one()}"
        except DatabaseError as e:
            raise unusable(engine, e) from e
        finally:
            engine.dispose()

    @property
    def engine(self) -> sa.Engine:
        """Return the database, for what is kept beside the session's own rows (``store.notice_box``)."""
        return self._engine

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def _write(self, *statements: sa.Executable) -> None:
        """Carry out all ``statements`` in one transaction, on disk when this returns.

        Raises
        ------
        HaltTrading
            If the database refuses: without a journal nothing may be sent.
        """
        with self._writing() as db:
            for statement in statements:
                db.execute(statement)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as db:
                yield db
        except DBAPIError as e:
            raise HaltTrading(f"cannot write the ledger: {e.orig}", "free disk space or unlock the database") from e

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as db:
                yield db
        except DBAPIError as e:  # not RetryLater: whoever asks may have sent an order, which must not be sent again
            raise HaltTrading(f"cannot read the ledger: {e.orig}", "free disk space or unlock the database") from e

    @contextmanager
    def _alone(self) -> Iterator[sa.Connection]:
        """Write with nobody else writing for this session: the first statement takes the session's row."""
        with self._writing() as db:
            mine = SESSIONS.c.session_id == self.session_id
            db.execute(SESSIONS.update().where(mine).values(session_id=self.session_id))
            yield db

    def append_journal(self, ts_ns: int, kind: str, payload: object) -> None:
        """Append one event or instruction (a dataclass or JSON-able value)."""
        text = orjson.dumps(plain(payload), option=orjson.OPT_NON_STR_KEYS).decode()
        self._write(JOURNAL.insert().values(session_id=self.session_id, ts_ns=ts_ns, kind=kind, payload=text))

    def journal(self) -> list[tuple[int, str, Any]]:
        """Return ``(ts_ns, kind, payload)`` of this session in order."""
        query = sa.select(JOURNAL.c.ts_ns, JOURNAL.c.kind, JOURNAL.c.payload)
        with self._reading() as db:
            rows = db.execute(query.where(JOURNAL.c.session_id == self.session_id).order_by(JOURNAL.c.seq)).all()
        return [(int(ts), str(kind), orjson.loads(payload)) for ts, kind, payload in rows]

    def record_intent(self, intent: IntentRow) -> bool:
        """Write one decided order in state ``INTENT``; return ``False`` if this very decision was written before."""
        if self.intent(intent.client_order_id) is not None:
            return False
        order = OrderRow(intent.client_order_id, OrderStatus.INTENT, intent.decided_ns)
        self._write(INTENTS.insert().values(self._intent_values(intent)), ORDERS.insert().values(_order_values(order)))
        return True

    def record_entry(self, intent: IntentRow, max_open: int) -> Recorded:
        """Write a decided entry if fewer than ``max_open`` symbols are held or being entered, whoever else writes meanwhile.

        Looking and writing are one transaction that begins by taking the session's row for itself, so two writers come one
        after the other. Without a slot the entry is written as ``REJECTED``, with the reason as its note.
        """
        with self._alone() as db:
            known = sa.select(INTENTS.c.client_order_id).where(INTENTS.c.client_order_id == intent.client_order_id)
            if db.execute(known).first() is not None:
                return Recorded.KNOWN
            taken = self._slots(db, intent.decided_ns) - {intent.symbol}
            order = OrderRow(intent.client_order_id, OrderStatus.INTENT, intent.decided_ns)
            if len(taken) >= max_open:
                note = f"not sent: {len(taken)} symbols are held or being entered, and max_open is {max_open}"
                order = replace(order, status=OrderStatus.REJECTED, note=note)
            db.execute(INTENTS.insert().values(self._intent_values(intent)))
            db.execute(ORDERS.insert().values(_order_values(order)))
        return Recorded.NO_SLOT if order.status is OrderStatus.REJECTED else Recorded.NEW

    def slots_taken(self, as_of_ns: int) -> frozenset[str]:
        """Return the symbols that are held or being entered, by what the ledger knows."""
        with self._reading() as db:
            return frozenset(self._slots(db, as_of_ns))

    def _slots(self, db: sa.Connection, as_of_ns: int) -> set[str]:
        """Return the symbols that are held or entered; what an order reports as filled counts before its fills are shown."""
        ours = INTENTS.c.session_id == self.session_id
        known = sa.case((INTENTS.c.client_order_id.is_not(None), 1), else_=0)
        fills = (
            sa.select(FILLS.c.seq, FILLS.c.symbol, FILLS.c.signed_lots, known)
            .join(INTENTS, INTENTS.c.client_order_id == FILLS.c.client_order_id, isouter=True)
            .where(FILLS.c.session_id == self.session_id, FILLS.c.seq > self._held_seq)
            .order_by(FILLS.c.seq)
        )
        for seq, symbol, lots, is_ours in db.execute(fills):
            self._held_seq = max(self._held_seq, seq)
            self._held[symbol] = size_after(self._held.get(symbol, 0), lots, is_ours=bool(is_ours))
        seen = sa.func.coalesce(sa.func.sum(FILLS.c.signed_lots), 0)
        reported = (
            sa.select(INTENTS.c.symbol, INTENTS.c.signed_lots, ORDERS.c.filled_lots, seen)
            .join(ORDERS, ORDERS.c.client_order_id == INTENTS.c.client_order_id)
            .join(FILLS, FILLS.c.client_order_id == INTENTS.c.client_order_id, isouter=True)
            .where(ours, INTENTS.c.decided_ns > as_of_ns - _FILLS_SHOWN_WITHIN_NS, ORDERS.c.filled_lots > 0)
            .group_by(INTENTS.c.client_order_id, INTENTS.c.symbol, INTENTS.c.signed_lots, ORDERS.c.filled_lots)
        )
        held = dict(self._held)
        for symbol, wanted, filled, shown in db.execute(reported):
            ahead = max(filled - abs(int(shown)), 0)
            held[symbol] = held.get(symbol, 0) + (ahead if wanted > 0 else -ahead)
        entering = (
            sa.select(INTENTS.c.symbol)
            .join(ORDERS, ORDERS.c.client_order_id == INTENTS.c.client_order_id)
            .where(ours, INTENTS.c.is_entry, ORDERS.c.status.not_in(_FINAL))
        )
        return {symbol for symbol, lots in held.items() if lots} | set(db.execute(entering).scalars())

    def _intent_values(self, intent: IntentRow) -> dict[str, Any]:
        return asdict(intent) | {"session_id": self.session_id, "exit_kind": intent.exit_kind and intent.exit_kind.value}

    def record_order(self, order: OrderRow) -> None:
        """Move an order forward along the life-cycle table; a repeated report of the same state only updates its figures.

        Raises
        ------
        ValueError
            If the order was never intended, or the step is not in the table.
        """
        current = self.order(order.client_order_id)
        if current is None:
            raise ValueError(f"order {order.client_order_id} was never written as an intent")
        if order.status is not current.status:
            next_status(current.status, order.status)
        where = ORDERS.c.client_order_id == order.client_order_id
        self._write(ORDERS.update().where(where).values(_order_values(order)))

    def intent(self, client_order_id: str) -> IntentRow | None:
        """Return the decided order of that id, or ``None``."""
        found = self._intents(INTENTS.c.client_order_id == client_order_id)
        return found[0] if found else None

    def intents(self) -> list[IntentRow]:
        """Return every decided order of this session, oldest first."""
        return self._intents(INTENTS.c.session_id == self.session_id)

    def unresolved(self) -> list[IntentRow]:
        """Return decided orders whose last known state is not final: they may exist at the exchange."""
        open_ids = sa.select(ORDERS.c.client_order_id).where(ORDERS.c.status.not_in(_FINAL))
        return self._intents(INTENTS.c.session_id == self.session_id, INTENTS.c.client_order_id.in_(open_ids))

    def _intents(self, *where: sa.ColumnElement[bool]) -> list[IntentRow]:
        query = sa.select(INTENTS).where(*where).order_by(INTENTS.c.decided_ns, INTENTS.c.client_order_id)
        with self._reading() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        for row in rows:
            row.pop("session_id")
            row["exit_kind"] = ExitKind(row["exit_kind"]) if row["exit_kind"] else None
        return [IntentRow(**row) for row in rows]

    def order(self, client_order_id: str) -> OrderRow | None:
        """Return the last known state of the order, or ``None`` if it was never intended."""
        with self._reading() as db:
            row = db.execute(sa.select(ORDERS).where(ORDERS.c.client_order_id == client_order_id)).mappings().first()
        return None if row is None else OrderRow(**(dict(row) | {"status": OrderStatus(row["status"])}))

    def record_fills(self, fills: Sequence[Fill]) -> list[Fill]:
        """Write executions not yet in the ledger and return them; asking the exchange twice never doubles one.

        Executions that look exactly alike are told apart by their count, so ``fills`` must hold *all* of an instant.
        """
        copies: dict[tuple[object, ...], int] = {}
        fresh: list[Fill] = []
        if not fills:
            return fresh
        with self._alone() as db:
            known = self._fill_keys(db, {f.ts_ns for f in fills})
            for fill in fills:
                key = (fill.ts_ns, fill.symbol, fill.client_order_id, fill.signed_lots, fill.price)
                copies[key] = copies.get(key, -1) + 1
                if (*key, copies[key]) in known:
                    continue
                row = asdict(fill) | {"session_id": self.session_id, "copy": copies[key]}
                db.execute(FILLS.insert().values(row | {"exit_kind": fill.exit_kind and fill.exit_kind.value}))
                fresh.append(fill)
        return fresh

    def _fill_keys(self, db: sa.Connection, instants: Iterable[int]) -> set[tuple[object, ...]]:
        columns = [FILLS.c[name] for name in ("ts_ns", "symbol", "client_order_id", "signed_lots", "price", "copy")]
        query = sa.select(*columns).where(FILLS.c.session_id == self.session_id, FILLS.c.ts_ns.in_(list(instants)))
        return {tuple(row) for row in db.execute(query)}

    def fills(self) -> list[Fill]:
        """Return every execution of this session, oldest first, those of one instant in the order they were told."""
        return self._fills()

    def _fills(self, *where: sa.ColumnElement[bool]) -> list[Fill]:
        mine = FILLS.c.session_id == self.session_id
        query = sa.select(FILLS).where(mine, *where).order_by(FILLS.c.ts_ns, FILLS.c.seq)
        with self._reading() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        for row in rows:
            del row["seq"], row["session_id"], row["copy"]
            row["exit_kind"] = ExitKind(row["exit_kind"]) if row["exit_kind"] else None
        return [Fill(**row) for row in rows]

    def unjournalled_fills(self) -> list[Fill]:
        """Return the executions written after the last one the journal tells of: a session died between the two."""
        mine = JOURNAL.c.session_id == self.session_id
        told = sa.select(JOURNAL.c.payload).where(mine, JOURNAL.c.kind.in_(("FillsRead", "Restored")))
        told = told.where(JOURNAL.c.payload.not_like('%"fills":[]%')).order_by(JOURNAL.c.seq.desc()).limit(1)
        with self._reading() as db:
            payload = db.execute(told).scalar()
            seen = 0
            if payload is not None:
                last = orjson.loads(payload)["fills"][-1]
                same = [FILLS.c[name] == last[name] for name in ("ts_ns", "symbol", "client_order_id", "signed_lots", "price")]
                found = sa.select(sa.func.max(FILLS.c.seq)).where(FILLS.c.session_id == self.session_id, *same)
                seen = int(db.execute(found).scalar() or 0)
        return self._fills(FILLS.c.seq > seen)

    def record_equity(self, row: EquityRow) -> None:
        """Write the account at one bar close; the first snapshot of an instant stands."""
        where = sa.and_(EQUITY.c.session_id == self.session_id, EQUITY.c.ts_ns == row.ts_ns)
        with self._reading() as db:
            if db.execute(sa.select(EQUITY.c.ts_ns).where(where)).first() is not None:
                return
        self._write(EQUITY.insert().values(asdict(row) | {"session_id": self.session_id}))

    def equity(self) -> list[EquityRow]:
        """Return the account at every bar close of this session, oldest first."""
        query = sa.select(EQUITY).where(EQUITY.c.session_id == self.session_id).order_by(EQUITY.c.ts_ns)
        with self._reading() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        return [EquityRow(**{k: v for k, v in row.items() if k != "session_id"}) for row in rows]

    def record_positions(self, rows: Sequence[PositionRow]) -> None:
        """Write the open positions at one bar close; the first snapshot of an instant stands."""
        if not rows:
            return
        where = sa.and_(POSITIONS.c.session_id == self.session_id, POSITIONS.c.ts_ns == rows[0].ts_ns)
        with self._reading() as db:
            if db.execute(sa.select(POSITIONS.c.ts_ns).where(where)).first() is not None:
                return
        self._write(*(POSITIONS.insert().values(asdict(row) | {"session_id": self.session_id}) for row in rows))

    def positions(self, ts_ns: int | None = None) -> list[PositionRow]:
        """Return the open positions at the bar close ``ts_ns``, or at every one, oldest first and by symbol."""
        where = [POSITIONS.c.session_id == self.session_id]
        where += [] if ts_ns is None else [POSITIONS.c.ts_ns == ts_ns]
        query = sa.select(POSITIONS).where(*where).order_by(POSITIONS.c.ts_ns, POSITIONS.c.symbol)
        with self._reading() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        return [PositionRow(**{k: v for k, v in row.items() if k != "session_id"}) for row in rows]

    def record_funding(self, rows: Sequence[FundingRow]) -> list[FundingRow]:
        """Write settlements not yet in the ledger and return them; asking the exchange twice never doubles one."""
        asked = [row.bill_id for row in rows]
        known_ids = sa.select(FUNDING.c.bill_id).where(FUNDING.c.session_id == self.session_id, FUNDING.c.bill_id.in_(asked))
        with self._reading() as db:
            known = set(db.execute(known_ids).scalars())
        fresh = [row for row in rows if row.bill_id not in known]
        if fresh:
            self._write(*(FUNDING.insert().values(asdict(row) | {"session_id": self.session_id}) for row in fresh))
        return fresh

    def funding(self) -> list[FundingRow]:
        """Return every settlement of this session, oldest first."""
        query = sa.select(FUNDING).where(FUNDING.c.session_id == self.session_id).order_by(FUNDING.c.ts_ns, FUNDING.c.bill_id)
        with self._reading() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        return [FundingRow(**{k: v for k, v in row.items() if k != "session_id"}) for row in rows]

    def put_state(self, name: str, value: object) -> None:
        """Keep a small JSON-able fact under ``name``, replacing the last one."""
        where = sa.and_(STATE.c.session_id == self.session_id, STATE.c.name == name)
        text = orjson.dumps(plain(value)).decode()
        insert = STATE.insert().values(session_id=self.session_id, name=name, value=text)
        self._write(STATE.delete().where(where), insert)

    def state(self, name: str) -> Any:
        """Return the fact kept under ``name``, or ``None``."""
        where = sa.and_(STATE.c.session_id == self.session_id, STATE.c.name == name)
        with self._reading() as db:
            text = db.execute(sa.select(STATE.c.value).where(where)).scalar()
        return None if text is None else orjson.loads(text)


def _order_values(order: OrderRow) -> dict[str, Any]:
    return asdict(order) | {"status": order.status.value}

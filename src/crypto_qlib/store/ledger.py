"""Where a live or paper session writes what it meant to do, what it did, and what came of it.

One SQLite file (or any database SQLAlchemy speaks to). Everything is written *before* it is acted on and committed at once,
so a session that is killed at any moment finds in here which orders may exist at the exchange. Rows are only added or, for
an order's state, moved forward; nothing is deleted.

=============  ==========================================================================================
table          one row is
=============  ==========================================================================================
``sessions``   one start of a session: mode, run identity
``journal``    one event or instruction of the session machine, in order, as JSON
``intents``    one order that was decided, before it was sent (keyed by client order id)
``orders``     the last known state of that order
``fills``      one execution
``equity``     the account at one bar close
``controls``   what people asked of the session, and its answer (``store.control_book``)
``state``      small facts that outlive a restart (tripped limits, peak equity, cool-downs), as JSON
=============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, OperationalError

from crypto_qlib.core.errors import HaltTrading, UserError
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus, next_status

_META: Final = sa.MetaData()
_SESSIONS: Final = sa.Table(
    "sessions",
    _META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("started_ns", sa.BigInteger, nullable=False),
    sa.Column("mode", sa.String, nullable=False),
    sa.Column("identity", sa.String, nullable=False),
)
_JOURNAL: Final = sa.Table(
    "journal",
    _META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.String, nullable=False, index=True),
    sa.Column("ts_ns", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("payload", sa.String, nullable=False),
)
_INTENTS: Final = sa.Table(
    "intents",
    _META,
    sa.Column("client_order_id", sa.String, primary_key=True),
    sa.Column("session_id", sa.String, nullable=False, index=True),
    sa.Column("decided_ns", sa.BigInteger, nullable=False),
    sa.Column("symbol", sa.String, nullable=False),
    sa.Column("signed_lots", sa.BigInteger, nullable=False),
    sa.Column("is_entry", sa.Boolean, nullable=False),
    sa.Column("exit_kind", sa.String),
    sa.Column("leverage", sa.Float),
    sa.Column("stop_price", sa.Float),
    sa.Column("take_profit_price", sa.Float),
    sa.Column("entry_score", sa.Float),
)
_ORDERS: Final = sa.Table(
    "orders",
    _META,
    sa.Column("client_order_id", sa.String, primary_key=True),
    sa.Column("exchange_order_id", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("filled_lots", sa.BigInteger, nullable=False),
    sa.Column("average_price", sa.Float),
    sa.Column("fee", sa.Float, nullable=False),
    sa.Column("updated_ns", sa.BigInteger, nullable=False),
    sa.Column("note", sa.String, nullable=False),
)
_FILLS: Final = sa.Table(
    "fills",
    _META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.String, nullable=False),
    sa.Column("ts_ns", sa.BigInteger, nullable=False),
    sa.Column("symbol", sa.String, nullable=False),
    sa.Column("client_order_id", sa.String, nullable=False),
    sa.Column("signed_lots", sa.BigInteger, nullable=False),
    sa.Column("price", sa.Float, nullable=False),
    sa.Column("copy", sa.Integer, nullable=False),  # the n-th of executions that look exactly alike
    sa.Column("fee", sa.Float, nullable=False),
    sa.Column("is_maker", sa.Boolean, nullable=False),
    sa.Column("exit_kind", sa.String),
    sa.UniqueConstraint("session_id", "ts_ns", "symbol", "client_order_id", "signed_lots", "price", "copy"),
)
_EQUITY: Final = sa.Table(
    "equity",
    _META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("ts_ns", sa.BigInteger, primary_key=True),
    sa.Column("equity", sa.Float, nullable=False),
    sa.Column("available", sa.Float, nullable=False),
    sa.Column("margin_ratio", sa.Float),
    sa.Column("gross", sa.Float, nullable=False),
    sa.Column("net", sa.Float, nullable=False),
    sa.Column("open_count", sa.Integer, nullable=False),
)
_STATE: Final = sa.Table(
    "state",
    _META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session.

    Parameters
    ----------
    session_id : str
        Names one account at one exchange over restarts; part of every client order id.
    started_ns : int
        First start.
    mode : str
        ``embedded``, ``demo`` or ``live``.
    identity : dict
        The run identity the model and settings came from.
    """

    session_id: str
    started_ns: int
    mode: str
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IntentRow:
    """One decided order.

    Parameters
    ----------
    client_order_id : str
        Deterministic id of the decision.
    decided_ns : int
        ``as_of`` of the decision.
    signed_lots : int
        + buy, - sell.
    is_entry : bool
        Whether it opens a position.
    exit_kind : ExitKind | None
        Why it closes one; ``None`` for entries.
    leverage, stop_price, take_profit_price, entry_score : float | None
        Terms of an entry; ``None`` where there are none.
    """

    client_order_id: str
    decided_ns: int
    symbol: str
    signed_lots: int
    is_entry: bool
    exit_kind: ExitKind | None = None
    leverage: float | None = None
    stop_price: float | None = None
    take_profit_price: float | None = None
    entry_score: float | None = None


@dataclass(frozen=True, slots=True)
class OrderRow:
    """Last known state of one order (prices in quote units, fee in USDT; ``note`` says why it was refused)."""

    client_order_id: str
    status: OrderStatus
    updated_ns: int
    exchange_order_id: str = ""
    filled_lots: int = 0
    average_price: float | None = None
    fee: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class EquityRow:
    """The account at one bar close, USDT; ``margin_ratio`` is ``None`` without positions."""

    ts_ns: int
    equity: float
    available: float
    margin_ratio: float | None
    gross: float
    net: float
    open_count: int


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
        try:
            _META.create_all(engine)
            with engine.begin() as db:
                known = db.execute(sa.select(_SESSIONS.c.mode).where(_SESSIONS.c.session_id == session.session_id)).scalar()
                if known is None:
                    row = asdict(session) | {"identity": orjson.dumps(session.identity).decode()}
                    db.execute(_SESSIONS.insert().values(row))
        except DatabaseError as e:
            raise UserError(f"cannot use the ledger {engine.url}: {e.orig}", "move the file away or mend it") from e
        if known is not None and known != session.mode:
            raise UserError(
                f"session {session.session_id} was started in mode {known}, not {session.mode}", "use another session id"
            )

    @staticmethod
    def open(path: Path, session: SessionRow) -> Ledger:
        """Open the SQLite ledger at ``path``, creating it where absent, for its owner alone (every commit synced to disk)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        engine = sqlite_engine(path)
        return Ledger(engine, session)

    @staticmethod
    def new_session_id(path: Path, prefix: str) -> str:
        """Return ``prefix`` followed by the number of sessions of that prefix already in the ledger at ``path``."""
        if not path.exists():
            return f"{prefix}n0"
        engine = sa.create_engine(f"sqlite:///{path}")
        try:
            _META.create_all(engine)
            with engine.connect() as db:
                count = sa.select(sa.func.count()).where(_SESSIONS.c.session_id.startswith(f"{prefix}n", autoescape=True))
                return f"{prefix}n{db.execute(count).scalar_one()}"
        except DatabaseError as e:
            raise UserError(f"cannot use the ledger {path}: {e.orig}", "move the file away or mend it") from e
        finally:
            engine.dispose()

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
        try:
            with self._engine.begin() as db:
                for statement in statements:
                    db.execute(statement)
        except OperationalError as e:
            raise HaltTrading(f"cannot write the ledger: {e.orig}", "free disk space or unlock the database") from e

    def append_journal(self, ts_ns: int, kind: str, payload: object) -> None:
        """Append one event or instruction (a dataclass or JSON-able value)."""
        text = orjson.dumps(payload, default=_jsonable, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
        self._write(_JOURNAL.insert().values(session_id=self.session_id, ts_ns=ts_ns, kind=kind, payload=text))

    def journal(self) -> list[tuple[int, str, Any]]:
        """Return ``(ts_ns, kind, payload)`` of this session in order."""
        query = sa.select(_JOURNAL.c.ts_ns, _JOURNAL.c.kind, _JOURNAL.c.payload)
        with self._engine.connect() as db:
            rows = db.execute(query.where(_JOURNAL.c.session_id == self.session_id).order_by(_JOURNAL.c.seq)).all()
        return [(int(ts), str(kind), orjson.loads(payload)) for ts, kind, payload in rows]

    def record_intent(self, intent: IntentRow) -> bool:
        """Write one decided order in state ``INTENT``; return ``False`` if this very decision was written before."""
        if self.intent(intent.client_order_id) is not None:
            return False
        row = asdict(intent) | {"session_id": self.session_id, "exit_kind": intent.exit_kind and intent.exit_kind.value}
        order = OrderRow(intent.client_order_id, OrderStatus.INTENT, intent.decided_ns)
        self._write(_INTENTS.insert().values(row), _ORDERS.insert().values(_order_values(order)))
        return True

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
        where = _ORDERS.c.client_order_id == order.client_order_id
        self._write(_ORDERS.update().where(where).values(_order_values(order)))

    def intent(self, client_order_id: str) -> IntentRow | None:
        """Return the decided order of that id, or ``None``."""
        found = self._intents(_INTENTS.c.client_order_id == client_order_id)
        return found[0] if found else None

    def intents(self) -> list[IntentRow]:
        """Return every decided order of this session, oldest first."""
        return self._intents(_INTENTS.c.session_id == self.session_id)

    def unresolved(self) -> list[IntentRow]:
        """Return decided orders whose last known state is not final: they may exist at the exchange."""
        final = [status.value for status in OrderStatus if status.is_final]
        open_ids = sa.select(_ORDERS.c.client_order_id).where(_ORDERS.c.status.not_in(final))
        return self._intents(_INTENTS.c.session_id == self.session_id, _INTENTS.c.client_order_id.in_(open_ids))

    def _intents(self, *where: sa.ColumnElement[bool]) -> list[IntentRow]:
        query = sa.select(_INTENTS).where(*where).order_by(_INTENTS.c.decided_ns, _INTENTS.c.client_order_id)
        with self._engine.connect() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        for row in rows:
            row.pop("session_id")
            row["exit_kind"] = ExitKind(row["exit_kind"]) if row["exit_kind"] else None
        return [IntentRow(**row) for row in rows]

    def order(self, client_order_id: str) -> OrderRow | None:
        """Return the last known state of the order, or ``None`` if it was never intended."""
        with self._engine.connect() as db:
            row = db.execute(sa.select(_ORDERS).where(_ORDERS.c.client_order_id == client_order_id)).mappings().first()
        return None if row is None else OrderRow(**(dict(row) | {"status": OrderStatus(row["status"])}))

    def record_fills(self, fills: Sequence[Fill]) -> list[Fill]:
        """Write executions not yet in the ledger and return them; asking the exchange twice never doubles one.

        Executions that look exactly alike are told apart by their count, so ``fills`` must hold *all* of an instant.
        """
        copies: dict[tuple[object, ...], int] = {}
        fresh: list[Fill] = []
        rows = []
        known = self._fill_keys({f.ts_ns for f in fills})
        for fill in fills:
            key = (fill.ts_ns, fill.symbol, fill.client_order_id, fill.signed_lots, fill.price)
            copies[key] = copies.get(key, -1) + 1
            if (*key, copies[key]) in known:
                continue
            row = asdict(fill) | {"session_id": self.session_id, "copy": copies[key]}
            rows.append(row | {"exit_kind": fill.exit_kind and fill.exit_kind.value})
            fresh.append(fill)
        if rows:
            self._write(*(_FILLS.insert().values(row) for row in rows))
        return fresh

    def _fill_keys(self, instants: Iterable[int]) -> set[tuple[object, ...]]:
        columns = [_FILLS.c[name] for name in ("ts_ns", "symbol", "client_order_id", "signed_lots", "price", "copy")]
        query = sa.select(*columns).where(_FILLS.c.session_id == self.session_id, _FILLS.c.ts_ns.in_(list(instants)))
        with self._engine.connect() as db:
            return {tuple(row) for row in db.execute(query)}

    def fills(self) -> list[Fill]:
        """Return every execution of this session, oldest first, those of one instant in the order they were told."""
        query = sa.select(_FILLS).where(_FILLS.c.session_id == self.session_id).order_by(_FILLS.c.ts_ns, _FILLS.c.seq)
        with self._engine.connect() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        for row in rows:
            del row["seq"], row["session_id"], row["copy"]
            row["exit_kind"] = ExitKind(row["exit_kind"]) if row["exit_kind"] else None
        return [Fill(**row) for row in rows]

    def record_equity(self, row: EquityRow) -> None:
        """Write the account at one bar close; the first snapshot of an instant stands."""
        where = sa.and_(_EQUITY.c.session_id == self.session_id, _EQUITY.c.ts_ns == row.ts_ns)
        with self._engine.connect() as db:
            if db.execute(sa.select(_EQUITY.c.ts_ns).where(where)).first() is not None:
                return
        self._write(_EQUITY.insert().values(asdict(row) | {"session_id": self.session_id}))

    def equity(self) -> list[EquityRow]:
        """Return the account at every bar close of this session, oldest first."""
        query = sa.select(_EQUITY).where(_EQUITY.c.session_id == self.session_id).order_by(_EQUITY.c.ts_ns)
        with self._engine.connect() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        return [EquityRow(**{k: v for k, v in row.items() if k != "session_id"}) for row in rows]

    def put_state(self, name: str, value: object) -> None:
        """Keep a small JSON-able fact under ``name``, replacing the last one."""
        where = sa.and_(_STATE.c.session_id == self.session_id, _STATE.c.name == name)
        text = orjson.dumps(value, default=_jsonable).decode()
        insert = _STATE.insert().values(session_id=self.session_id, name=name, value=text)
        self._write(_STATE.delete().where(where), insert)

    def state(self, name: str) -> Any:
        """Return the fact kept under ``name``, or ``None``."""
        where = sa.and_(_STATE.c.session_id == self.session_id, _STATE.c.name == name)
        with self._engine.connect() as db:
            text = db.execute(sa.select(_STATE.c.value).where(where)).scalar()
        return None if text is None else orjson.loads(text)


def sqlite_engine(path: Path) -> sa.Engine:
    """Return an engine on the SQLite file at ``path``: write-ahead log, every commit synced, 5 s of patience with others."""
    engine = sa.create_engine(f"sqlite:///{path}")

    @sa.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _order_values(order: OrderRow) -> dict[str, Any]:
    return asdict(order) | {"status": order.status.value}


def _jsonable(value: object) -> object:
    if isinstance(value, frozenset | set | tuple):
        return sorted(value) if isinstance(value, frozenset | set) else list(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written to the journal")

"""The tables of a ledger; every change of them is a step in ``store/migrations``.

=============  ==========================================================================================
table          one row is
=============  ==========================================================================================
``sessions``   one session: mode, run identity
``journal``    one event or instruction of the session machine, in order, as JSON
``intents``    one order that was decided, before it was sent (keyed by client order id)
``orders``     the last known state of that order
``fills``      one execution, with its fee
``funding``    one settlement of funding, as the exchange booked it
``equity``     the account at one bar close: equity, margin ratio, margin in use
``positions``  one open position at that close: size, prices, leverage, margin, liquidation price, protection
``controls``   what people asked of the session, and its answer (``store.control_book``)
``notices``    what a person is to be told, and how far that got (``store.notice_box``)
``state``      small facts that outlive a restart (tripped limits, peak equity, cool-downs), as JSON
=============  ==========================================================================================
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

REVISIONS: Final = ("0001", "0002", "0003")
"""Steps of ``store/migrations``, oldest first; the last one is the schema below."""

META: Final = sa.MetaData()
SESSIONS: Final = sa.Table(
    "sessions",
    META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("started_ns", sa.BigInteger, nullable=False),
    sa.Column("mode", sa.String, nullable=False),
    sa.Column("identity", sa.String, nullable=False),
)
JOURNAL: Final = sa.Table(
    "journal",
    META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.String, nullable=False, index=True),
    sa.Column("ts_ns", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("payload", sa.String, nullable=False),
)
INTENTS: Final = sa.Table(
    "intents",
    META,
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
    sa.Column("limit_price", sa.Float),
    sa.Column("expires_ns", sa.BigInteger),
    sa.Column("trailing_ratio", sa.Float),
)
ORDERS: Final = sa.Table(
    "orders",
    META,
    sa.Column("client_order_id", sa.String, primary_key=True),
    sa.Column("exchange_order_id", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("filled_lots", sa.BigInteger, nullable=False),
    sa.Column("average_price", sa.Float),
    sa.Column("fee", sa.Float, nullable=False),
    sa.Column("updated_ns", sa.BigInteger, nullable=False),
    sa.Column("note", sa.String, nullable=False),
)
FILLS: Final = sa.Table(
    "fills",
    META,
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
EQUITY: Final = sa.Table(
    "equity",
    META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("ts_ns", sa.BigInteger, primary_key=True),
    sa.Column("equity", sa.Float, nullable=False),
    sa.Column("available", sa.Float, nullable=False),
    sa.Column("margin_ratio", sa.Float),
    sa.Column("gross", sa.Float, nullable=False),
    sa.Column("net", sa.Float, nullable=False),
    sa.Column("open_count", sa.Integer, nullable=False),
    sa.Column("used_margin", sa.Float),
)
STATE: Final = sa.Table(
    "state",
    META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)
CONTROLS: Final = sa.Table(
    "controls",
    META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.String, nullable=False, index=True),
    sa.Column("asked_ns", sa.BigInteger, nullable=False),
    sa.Column("verb", sa.String, nullable=False),
    sa.Column("argument", sa.String, nullable=False),
    sa.Column("asked_by", sa.String, nullable=False),
    sa.Column("answered_ns", sa.BigInteger),
    sa.Column("answer", sa.String, nullable=False),
)
FUNDING: Final = sa.Table(
    "funding",
    META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("bill_id", sa.String, primary_key=True),
    sa.Column("ts_ns", sa.BigInteger, nullable=False),
    sa.Column("symbol", sa.String, nullable=False),
    sa.Column("amount", sa.Float, nullable=False),
)
POSITIONS: Final = sa.Table(
    "positions",
    META,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("ts_ns", sa.BigInteger, primary_key=True),
    sa.Column("symbol", sa.String, primary_key=True),
    sa.Column("lots", sa.BigInteger, nullable=False),
    sa.Column("qty", sa.Float, nullable=False),
    sa.Column("entry", sa.Float, nullable=False),
    sa.Column("mark", sa.Float, nullable=False),
    sa.Column("leverage", sa.Float, nullable=False),
    sa.Column("margin", sa.Float, nullable=False),
    sa.Column("liquidation_price", sa.Float),
    sa.Column("stop_price", sa.Float),
    sa.Column("take_profit_price", sa.Float),
    sa.Column("unrealised_pnl", sa.Float, nullable=False),
)
NOTICES: Final = sa.Table(
    "notices",
    META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.String, nullable=False, index=True),
    sa.Column("ts_ns", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("severity", sa.String, nullable=False),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("text", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("level", sa.Integer, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_try_ns", sa.BigInteger, nullable=False),
    sa.Column("sent_ns", sa.BigInteger),
    sa.Column("acknowledged_ns", sa.BigInteger),
    sa.Column("acknowledged_by", sa.String, nullable=False),
    sa.Column("note", sa.String, nullable=False),
)
VERSION: Final = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))
"""Alembic's own table, read here so that opening a ledger of the present schema needs no Alembic."""

"""The tables of the first ledgers, which carry no version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("started_ns", sa.BigInteger, nullable=False),
        sa.Column("mode", sa.String, nullable=False),
        sa.Column("identity", sa.String, nullable=False),
    )
    op.create_table(
        "journal",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("ts_ns", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("payload", sa.String, nullable=False),
    )
    op.create_index("ix_journal_session_id", "journal", ["session_id"])
    op.create_table(
        "intents",
        sa.Column("client_order_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, nullable=False),
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
    op.create_index("ix_intents_session_id", "intents", ["session_id"])
    op.create_table(
        "orders",
        sa.Column("client_order_id", sa.String, primary_key=True),
        sa.Column("exchange_order_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("filled_lots", sa.BigInteger, nullable=False),
        sa.Column("average_price", sa.Float),
        sa.Column("fee", sa.Float, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
        sa.Column("note", sa.String, nullable=False),
    )
    op.create_table(
        "fills",
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
    op.create_table(
        "equity",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("ts_ns", sa.BigInteger, primary_key=True),
        sa.Column("equity", sa.Float, nullable=False),
        sa.Column("available", sa.Float, nullable=False),
        sa.Column("margin_ratio", sa.Float),
        sa.Column("gross", sa.Float, nullable=False),
        sa.Column("net", sa.Float, nullable=False),
        sa.Column("open_count", sa.Integer, nullable=False),
    )
    op.create_table(
        "state",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    op.create_table(
        "controls",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("asked_ns", sa.BigInteger, nullable=False),
        sa.Column("verb", sa.String, nullable=False),
        sa.Column("argument", sa.String, nullable=False),
        sa.Column("asked_by", sa.String, nullable=False),
        sa.Column("answered_ns", sa.BigInteger),
        sa.Column("answer", sa.String, nullable=False),
    )
    op.create_index("ix_controls_session_id", "controls", ["session_id"])

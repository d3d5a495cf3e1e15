"""Positions, funding and notices get tables, the account its margin in use.

The table of commands was made when the first command was asked: it may be missing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them."""
    if not sa.inspect(op.get_bind()).has_table("controls"):
        make_controls()
    op.add_column("equity", sa.Column("used_margin", sa.Float))
    op.create_table(
        "funding",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("bill_id", sa.String, primary_key=True),
        sa.Column("ts_ns", sa.BigInteger, nullable=False),
        sa.Column("symbol", sa.String, nullable=False),
        sa.Column("amount", sa.Float, nullable=False),
    )
    op.create_table(
        "positions",
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
    op.create_table(
        "notices",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("ts_ns", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("severity", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("level", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("next_try_ns", sa.BigInteger, nullable=False),
        sa.Column("sent_ns", sa.BigInteger),
        sa.Column("acknowledged_ns", sa.BigInteger),
        sa.Column("acknowledged_by", sa.String, nullable=False),
        sa.Column("note", sa.String, nullable=False),
    )
    op.create_index("ix_notices_session_id", "notices", ["session_id"])
    op.create_index("ix_notices_state", "notices", ["state"])


def make_controls() -> None:
    """Make the table of commands."""
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

"""Intents keep the limit and the end of entries that rest, and the trailing stop."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("intents", sa.Column("limit_price", sa.Float))
    op.add_column("intents", sa.Column("expires_ns", sa.BigInteger))
    op.add_column("intents", sa.Column("trailing_ratio", sa.Float))

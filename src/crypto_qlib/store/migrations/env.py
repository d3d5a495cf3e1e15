"""Alembic's entry: run the steps on the connection ``store.ledger_database`` holds, inside its transaction."""

from __future__ import annotations

from alembic import context

from crypto_qlib.store.ledger_schema import META

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=META,
    transactional_ddl=False,  # the transaction is the caller's: it begins before the schema is looked at
    render_as_batch=True,
)
context.run_migrations()

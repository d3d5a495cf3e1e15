"""``crypto-qlib live journal``: what a session was told and what it asked for, row by row; lived again to prove it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, out
from crypto_qlib.cli.live_card import last_card
from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import HaltTrading, UserError

if TYPE_CHECKING:
    from crypto_qlib.live_trading.journal import JournalRow
    from crypto_qlib.store.ledger import Ledger


def register(live: typer.Typer) -> None:
    """Add the command to the group ``live``."""
    live.command(name="journal")(journal)


def journal(
    context: typer.Context,
    last: Annotated[int, typer.Option("--last", min=0, help="Rows from the end; 0 = all.")] = 50,
    kind: Annotated[str, typer.Option("--kind", help="Only rows of these kinds, e.g. PlaceOrder,Alert.")] = "",
    replayed: Annotated[
        bool, typer.Option("--replay", help="Live the session again from its journal and compare it with the ledger.")
    ] = False,
) -> None:
    """Show the journal of the last session of this mode; `->` marks what happened, the rest is what the session asked for."""
    from crypto_qlib.live_trading.journal import STEPS, readable, rows_of
    from crypto_qlib.live_trading.session_status import ledger_of
    from crypto_qlib.store.ledger import Ledger, SessionRow

    kinds = {part.strip() for part in kind.split(",") if part.strip()}
    unknown = sorted(kinds - STEPS.keys())
    if unknown:
        raise UserError(f"--kind {unknown[0]} is no kind of row", f"there are {', '.join(sorted(STEPS))}")
    card, _ = last_card(context)
    place = ledger_of(card, asked(context).secrets().ledger_password)
    ledger = Ledger.open(place, SessionRow(card.session_id, card.started_ns, card.mode, {}))
    try:
        rows = rows_of(ledger.journal())
        console = out()
        if replayed:
            for line in _lived_again(ledger, rows):
                console.print(escape(line))
            return
        wanted = [row for row in rows if not kinds or row.kind in kinds]
        for row in wanted[-last:] if last else wanted:
            console.print(escape(readable(row)))
    finally:
        ledger.close()


def _lived_again(ledger: Ledger, rows: list[JournalRow]) -> Iterator[str]:
    from crypto_qlib.live_trading.replay import differences, replay

    lived = replay(rows)
    filled = sum(known is not None and known[0].value == "filled" for known in lived.orders.values())
    yield f"session {ledger.session_id}: {lived.steps} rows, {lived.starts} starts, mode {lived.mode.name}"
    yield f"  orders     {len(lived.orders)} decided, {filled} filled"
    yield f"  executions {len(lived.fills)}"
    held = ", ".join(f"{symbol} {lots:+d} lots" for symbol, lots in sorted(lived.positions.items()))
    yield f"  positions  {held or 'none'}"
    if lived.equity:
        last_ns = max(lived.equity)
        yield f"  equity     {lived.equity[last_ns]:,.2f} USDT at {iso(last_ns)}"
    found = list(differences(lived, ledger))
    yield from (f"  differs    {line}" for line in found)
    if found:
        raise HaltTrading(
            f"the journal and the ledger of session {ledger.session_id} do not agree in {len(found)} things",
            "halt it, and compare both with the exchange: see the runbook, Reconcile",
        )
    yield "  the journal alone gives the orders, positions and equity of the ledger"

"""``crypto-qlib live``: look at a running session, and tell it what to do, through its ledger."""

from __future__ import annotations

import getpass
import math
import time
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from crypto_qlib.cli import live_gap, live_journal, live_notices, live_telegram
from crypto_qlib.cli.asked import asked, out
from crypto_qlib.cli.live_card import last_card
from crypto_qlib.cli.live_start import start
from crypto_qlib.core.errors import RetryLater, UserError

_app = typer.Typer(help="The running session: how it is, and what it should do.", no_args_is_help=True)
_POLL_S: Final = 0.1

_Wait = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the session's answer.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    _app.command("start")(start)
    live_journal.register(_app)
    live_gap.register(_app)
    live_notices.register(_app)
    live_telegram.register(_app)
    root.add_typer(_app, name="live")


@_app.command()
def status(context: typer.Context) -> None:
    """Show the last session of this mode: running or not, mode and who asked for it, account, positions, orders under way."""
    found = last_card(context)
    from crypto_qlib.live_trading.session_status import session_status

    console = out()
    for line in session_status(*found, asked(context).secrets().ledger_password).lines():
        console.print(escape(line))


@_app.command()
def halt(
    context: typer.Context,
    reduce: Annotated[bool, typer.Option("--reduce", help="Only forbid new positions; exits go on.")] = False,
    wait: _Wait = 10.0,
) -> None:
    """Send nothing any more, over restarts, until `live resume`. Stops at the exchange stay.

    A file HALT in the folder `live` of the workspace does the same without this command, and so does SIGUSR1.
    """
    _tell(context, "reduce" if reduce else "halt", "", wait, needs_running=False)


@_app.command()
def resume(
    context: typer.Context,
    drawdown: Annotated[
        bool, typer.Option("--drawdown", help="Forgive a tripped drawdown too: the peak starts anew from the equity now.")
    ] = False,
    wait: _Wait = 10.0,
) -> None:
    """Take back a halt, and what failures asked for. Limits that still hold stay in force."""
    _tell(context, "resume", "drawdown" if drawdown else "", wait, needs_running=False)


@_app.command()
def close(
    context: typer.Context,
    symbol: Annotated[str, typer.Argument(help="For example BTCUSDT; `all` for every position of ours.")],
    yes: _Yes = False,
    wait: _Wait = 30.0,
) -> None:
    """Close a position of ours at market, in whatever mode; foreign positions are left alone."""
    what = "every position of the session" if symbol == "all" else symbol
    if not yes and not typer.confirm(f"close {what} at market?"):
        raise typer.Abort
    _tell(context, "close", "" if symbol == "all" else symbol.upper(), wait)


@_app.command()
def reconcile(context: typer.Context, wait: _Wait = 30.0) -> None:
    """Compare orders, positions, stops and balance of the exchange with the ledger now, and mend what can be mended."""
    _tell(context, "reconcile", "", wait)


@_app.command()
def adopt(
    context: typer.Context,
    symbol: Annotated[str, typer.Argument(help="For example BTCUSDT; `all` for every position that is not ours.")],
    yes: _Yes = False,
    wait: _Wait = 30.0,
) -> None:
    """Take over a position the session did not open: it gets a stop, counts, and leaves as the session's own do."""
    what = "every position that is not the session's own" if symbol == "all" else symbol
    if not yes and not typer.confirm(f"let the session take over {what}?"):
        raise typer.Abort
    _tell(context, "adopt", "" if symbol == "all" else symbol.upper(), wait)


@_app.command()
def stop(
    context: typer.Context,
    flatten: Annotated[
        bool | None,
        typer.Option("--flatten/--leave", help="Close our positions, or leave them to their stops.", show_default="as set"),
    ] = None,
    yes: _Yes = False,
    wait: _Wait = 60.0,
) -> None:
    """End the session after the cycle under way."""
    if flatten and not yes and not typer.confirm("close every position of the session at market?"):
        raise typer.Abort
    _tell(context, "stop", {None: "", True: "flatten", False: "leave"}[flatten], wait)


def _tell(context: typer.Context, verb: str, argument: str, wait_s: float, *, needs_running: bool = True) -> None:
    card, is_running = last_card(context)
    if needs_running and not is_running:
        raise UserError(f"session {card.session_id} does not run", "positions can be closed on the exchange itself")
    exchange = asked(context).settings().exchange
    if not is_running and card.mode == "embedded" and exchange.market != "okx_public":
        raise UserError(
            f"session {card.session_id} does not run, and the next one begins anew with its market", "start it first"
        )
    from crypto_qlib.core.clock import SystemClock
    from crypto_qlib.live_trading.session_status import ledger_of
    from crypto_qlib.store.control_book import ControlBook

    book = ControlBook(ledger_of(card, asked(context).secrets().ledger_password), card.session_id)
    try:
        seq = book.ask(SystemClock().now_ns(), verb, argument, getpass.getuser())
        if not is_running:
            out().print(escape(f"session {card.session_id} does not run: it will obey when it starts"))
            return
        _await_answer(book, seq, wait_s, out())
    finally:
        book.close()


def _await_answer(book: Any, seq: int, wait_s: float, console: Console) -> None:
    for _ in range(math.ceil(wait_s / _POLL_S) + 1):
        row = book.row(seq)
        if row is not None and row.answered_ns is not None:
            console.print(escape(row.answer))
            return
        time.sleep(_POLL_S)
    raise RetryLater(f"no answer within {wait_s:g} s", "the session obeys as soon as it can; see `crypto-qlib live status`")

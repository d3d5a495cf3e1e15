"""``crypto-qlib live notices|acknowledge``: what a person was told or is to be told, and that somebody has seen it."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, out
from crypto_qlib.cli.live_card import last_card
from crypto_qlib.core.clock import SystemClock, iso
from crypto_qlib.core.errors import UserError

if TYPE_CHECKING:
    from crypto_qlib.store.notice_box import NoticeBox


def register(live: typer.Typer) -> None:
    """Add the commands to the group ``live``."""
    live.command(name="notices")(notices)
    live.command(name="acknowledge")(acknowledge)


def notices(
    context: typer.Context,
    last: Annotated[int, typer.Option("--last", min=0, help="Notices from the end; 0 = all.")] = 30,
    test: Annotated[bool, typer.Option("--test", help="Send a test message on every channel of the environment.")] = False,
) -> None:
    """Show what a person was told of the last session of this mode, or send a test message."""
    if test:
        _test_channels(context)
        return
    console = out()
    with _box(context) as box:
        found = box.notices()
        for n in found[-last:] if last else found:
            how = n.state.value + (f" by {n.acknowledged_by}" if n.acknowledged_by else "") + (f" ({n.note})" if n.note else "")
            line = f"{n.seq:>5}  {iso(n.ts_ns)}  {n.severity.value:<8}  {n.kind.value:<16} {how:<10}  {n.text}"
            console.print(escape(" | ".join(line.splitlines())))
        if not found:
            console.print("nothing was told")


def acknowledge(
    context: typer.Context,
    number: Annotated[str, typer.Argument(help="Number of the notice, or `all` that wait for a person.")] = "all",
) -> None:
    """Say that a person has seen a notice: it is not sent on to the next channel."""
    if number != "all" and not number.isdigit():
        raise UserError(f"{number} is no number of a notice", "see `crypto-qlib live notices`")
    with _box(context) as box:
        who = getpass.getuser()
        ended = box.acknowledge(SystemClock().now_ns(), who, None if number == "all" else int(number))
    if number != "all" and not ended:
        raise UserError(f"no notice {number} waits for anybody", "see `crypto-qlib live notices`")
    out().print(f"{ended} acknowledged")


def _test_channels(context: typer.Context) -> None:
    from crypto_qlib.core.errors import RetryLater
    from crypto_qlib.live_trading.alerts.channels import channels_of
    from crypto_qlib.store.live_events import Severity

    channels = channels_of(asked(context).secrets())
    if not channels:
        raise UserError("the environment names no channel", "set ALERT_URLS, or TELEGRAM_BOT_TOKEN with TELEGRAM_CHAT_ID")
    failed = []
    for channel in channels:
        try:
            channel.send("crypto-qlib", "This is a test. Nothing has happened.", Severity.INFO)
        except RetryLater as e:
            failed.append(e)
            out().print(escape(f"{channel.name}: not taken"))
        else:
            out().print(escape(f"{channel.name}: taken"))
    if failed:
        raise failed[0]


@contextmanager
def _box(context: typer.Context) -> Iterator[NoticeBox]:
    from crypto_qlib.live_trading.session_status import ledger_of
    from crypto_qlib.store.ledger import Ledger, SessionRow
    from crypto_qlib.store.notice_box import NoticeBox

    card, _ = last_card(context)
    place = ledger_of(card, asked(context).secrets().ledger_password)
    ledger = Ledger.open(place, SessionRow(card.session_id, card.started_ns, card.mode, {}))
    try:
        yield NoticeBox(ledger.engine, card.session_id)
    finally:
        ledger.close()

"""``crypto-qlib doctor``: is everything here that a run needs? Each line says how to mend what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from crypto_qlib.cli import checks
from crypto_qlib.cli.asked import Asked, asked, out
from crypto_qlib.cli.checks import Check, State
from crypto_qlib.core.errors import UserError

_STYLE = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red"}


def register(root: typer.Typer) -> None:
    """Add this command to ``root``."""
    root.command()(doctor)


def doctor(context: typer.Context) -> None:
    """Check Python, packages, disk, clock, exchange, keys and store; exit with 1 if anything fails."""
    console = out()
    failed = False
    for check in diagnose(asked(context)):
        show(console, check)
        failed |= check.state is State.FAIL
    if failed:
        raise typer.Exit(1)


def diagnose(wanted: Asked) -> Iterator[Check]:
    """Yield all checks, quick ones first; with broken settings, those that need none."""
    yield checks.python_check()
    yield from checks.package_checks()
    yield from checks.native_checks()
    yield checks.memory_check()
    try:
        settings = wanted.settings()
    except UserError as e:
        yield Check("settings", State.FAIL, e.message, e.hint or "correct it where it was given")
        return
    yield Check("settings", State.OK, f"valid; exchange.mode = {settings.exchange.mode}")
    root = Path(settings.store.root)
    yield checks.disk_check(root)
    yield checks.store_check(root)
    yield checks.key_presence_check(settings, wanted.secrets())
    from crypto_qlib.cli.exchange_checks import exchange_checks

    yield from exchange_checks(settings, wanted.secrets())


def show(console: Console, check: Check) -> None:
    """Print one check as one line, and how to mend it below."""
    line = Text(f"{check.state.value:<5}", style=_STYLE[check.state])
    line.append(f"{check.name:<10}", style="bold").append(check.detail, style="default")
    console.print(line)
    if check.mend and check.state is not State.OK:
        console.print(Text(f"     {'':<10}to mend: {check.mend}", style="dim"))

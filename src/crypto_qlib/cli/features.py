"""``crypto-qlib features``: build the features, and say what they are."""

from __future__ import annotations

import typer

from crypto_qlib.cli.steps import run_step

_app = typer.Typer(help="Build the features, and say what they are.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="features")


@_app.command()
def build(context: typer.Context) -> None:
    """Build the Qlib store and the features of every bar."""
    run_step(context, lambda p: p.features())

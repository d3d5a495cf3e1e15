"""``crypto-qlib data``: collect, check and repair market history."""

from __future__ import annotations

import typer

from crypto_qlib.cli.steps import run_step

_app = typer.Typer(help="Collect, check and repair market history.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="data")


@_app.command()
def update(context: typer.Context) -> None:
    """Fetch what is new: candles, mark candles and funding of the whole universe."""
    run_step(context, lambda p: p.data_update())


@_app.command()
def external(context: typer.Context) -> None:
    """Ask the external sources: stock index, fear & greed, market caps, on-chain, page views."""
    run_step(context, lambda p: p.data_external())


@_app.command()
def check(context: typer.Context) -> None:
    """Report gaps, outliers and impossible bars of the data on disk."""
    run_step(context, lambda p: p.data_check())


@_app.command()
def status(context: typer.Context) -> None:
    """Show what is on disk: symbols, time span, freshness."""
    run_step(context, lambda p: p.data_status())


@_app.command()
def repair(context: typer.Context) -> None:
    """Remove files that cannot be read and fetch again what is missing."""
    run_step(context, lambda p: p.data_repair())

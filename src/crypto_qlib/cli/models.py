"""``crypto-qlib models``: which models there are, how they compare, which one trades."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crypto_qlib.cli.steps import run_step

_app = typer.Typer(help="Trained models: list, show, compare, promote, update, roll back, export.", no_args_is_help=True)

Version = Annotated[str, typer.Argument(help="Run id or its beginning, champion, or challenger.")]


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="models")


@_app.command("list")
def list_models(context: typer.Context) -> None:
    """List the versions, best first: family, label, RankIC out of sample, champion and challenger."""
    run_step(context, lambda p: p.shelf.listed())


@_app.command()
def show(context: typer.Context, version: Version) -> None:
    """Verify a version's files and say what it is made of: features, segments, environment, promotions."""
    run_step(context, lambda p: p.shelf.shown(version))


@_app.command()
def compare(
    context: typer.Context,
    versions: Annotated[list[str] | None, typer.Argument(help="Run ids; all of them if none is named.")] = None,
) -> None:
    """Compare versions on the bars all of them scored out of sample, and say whether a difference is noise."""
    run_step(context, lambda p: p.shelf.compared(tuple(versions or ()), p.market()))


@_app.command()
def promote(
    context: typer.Context,
    version: Version,
    force: Annotated[
        str, typer.Option("--force", metavar="REASON", help="Promote against the rules; the reason is kept.")
    ] = "",
) -> None:
    """Make a version champion if it meets the rules of model.promotion."""
    run_step(context, lambda p: p.shelf.promoted(version, p.market(), force))


@_app.command()
def paths(
    context: typer.Context,
    blocks: Annotated[int, typer.Option("--blocks", min=3, max=20, help="Equal blocks of time.")] = 6,
    tested: Annotated[int, typer.Option("--tested", min=1, max=5, help="Blocks tested at a time.")] = 2,
) -> None:
    """Combinatorial purged cross-validation: how RankIC and Sharpe of these settings are spread over many test paths."""
    run_step(context, lambda p: p.purged_paths(blocks, tested))


@_app.command()
def update(context: typer.Context, version: Version = "champion") -> None:
    """Let a version go on learning from the bars since its training; the result is a version of its own, with its lineage."""
    run_step(context, lambda p: p.shelf.updated(version, p.market()))


@_app.command()
def rollback(
    context: typer.Context, reason: Annotated[str, typer.Option("--reason", help="Why; kept in the journal.")] = ""
) -> None:
    """Make the champion before this one champion again."""
    run_step(context, lambda p: p.shelf.rolled_back(reason))


@_app.command()
def export(
    context: typer.Context,
    version: Version,
    target: Annotated[Path, typer.Argument(help="A .zip file that does not exist yet.")],
) -> None:
    """Pack a version's verified files into a zip file."""
    run_step(context, lambda p: p.shelf.exported(version, target))

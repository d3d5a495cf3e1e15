"""``crypto-qlib features``: build the features, and say what they are."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, out
from crypto_qlib.cli.steps import run_step
from crypto_qlib.core.errors import UserError

_app = typer.Typer(help="Build the features, and say what they are.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="features")


@_app.command()
def build(context: typer.Context) -> None:
    """Build the Qlib store and the features of every bar."""
    run_step(context, lambda p: p.features())


@_app.command()
def catalogue(
    context: typer.Context,
    group: Annotated[str, typer.Option("--group", help="Only this feature set.", show_default="all of features.sets")] = "",
) -> None:
    """List every feature of the settings: name, set, bars looked back on, unit, formula."""
    settings = asked(context).settings()
    from crypto_qlib.core.clock import FRAME_NS
    from crypto_qlib.feature_engineering.feature_generator import feature_catalogue

    if group and group not in settings.features.sets:
        raise UserError(f"{group} is none of features.sets", f"choose one of {', '.join(settings.features.sets)}")
    specs = [s for s in feature_catalogue(settings.features, FRAME_NS[settings.data.frame]) if group in {"", s.group}]
    widths = [max(len(getattr(s, column)) for s in specs) for column in ("name", "group", "unit")]
    console = out()
    for s in specs:
        known = "" if s.known_at == "close of bar t" else f"  [known at {s.known_at}]"
        line = f"{s.name:<{widths[0]}}  {s.group:<{widths[1]}}  {s.lookback_bars:>5}  {s.unit:<{widths[2]}}  {s.formula}{known}"
        console.print(escape(line))
    console.print(f"{len(specs)} features")

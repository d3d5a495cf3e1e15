"""The command ``crypto-qlib``: global options, the command groups, and the outermost supervisor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from crypto_qlib.cli import config, data, doctor, exchange, features, live, models, news, pipeline
from crypto_qlib.cli.asked import Asked, out
from crypto_qlib.cli.failure import supervised
from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.identity import version

_GLOBAL_WITH_VALUE = ("--config", "--set")

app = typer.Typer(
    name="crypto-qlib",
    help="Leveraged long/short trading of OKX perpetual swaps: data, features, model, backtest, paper.\n\n"
    "--config and --set may stand before or after the command.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for _group in (pipeline, data, news, features, models, live, exchange, config, doctor):
    _group.register(app)


def _show_version(asked_for: bool) -> None:
    if asked_for:
        out().print(f"crypto-qlib {version()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings file; without it ./config.yaml, if there is one."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; may be given many times."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    del show_version
    context.obj = Asked(config_file, list(overrides or []))


def global_options_first(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` with ``--config`` and ``--set`` moved before the command, in their order.

    Raises
    ------
    UserError
        If one of them stands last, without its value.
    """
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _GLOBAL_WITH_VALUE:
            value = next(words, None)
            if value is None:
                raise UserError(f"{word} needs a value", "see crypto-qlib --help")
            front += [word, value]
        elif word.startswith(tuple(f"{option}=" for option in _GLOBAL_WITH_VALUE)):
            front.append(word)
        else:
            rest.append(word)
    return front + rest


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run ``crypto-qlib ARGUMENTS`` in this process and return its exit code."""
    return supervised(lambda: app(global_options_first(arguments), prog_name="crypto-qlib", standalone_mode=False))

"""``crypto-qlib config``: show, check and write settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, out
from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.document import commented_yaml, json_schema_text, values_yaml
from crypto_qlib.settings.load import DEFAULT_FILE

_app = typer.Typer(help="Show, check and write settings.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="config")


@_app.command()
def show(context: typer.Context) -> None:
    """Show the settings in force, from all sources; of secrets only whether they are set."""
    wanted = asked(context)
    console = out()
    console.print(escape(values_yaml(wanted.settings())), end="")
    console.print("# secrets, from the environment")
    for name, state in wanted.secrets().masked().items():
        console.print(f"#   {name}: {state}")


@_app.command()
def check(context: typer.Context) -> None:
    """Check the settings; exit with 2 and one line on the first problem."""
    wanted = asked(context)
    wanted.settings()
    source = wanted.config or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    out().print(f"settings are valid ({escape(str(source)) if source else 'defaults, environment and flags'})")


@_app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = DEFAULT_FILE,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a settings file with every setting, its meaning, unit, limits and default."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(commented_yaml())
    except FileExistsError as e:
        raise UserError(f"{path} exists already", "give another path, or --force to overwrite it") from e
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}", "give another path") from e
    out().print(f"wrote {escape(str(path))}")


@_app.command()
def schema(
    path: Annotated[Path | None, typer.Argument(help="File to write.", show_default="standard output")] = None,
) -> None:
    """Write the JSON schema of a settings file, with which editors complete and check it."""
    if path is None:
        out().print(escape(json_schema_text()), end="")
        return
    try:
        path.write_text(json_schema_text(), encoding="utf-8")
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}", "give another path") from e
    out().print(f"wrote {escape(str(path))}; name it in the first line of a settings file:")
    out().print(f"# yaml-language-server: $schema={escape(str(path))}")

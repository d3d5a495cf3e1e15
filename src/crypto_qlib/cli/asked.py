"""What every command needs to know: the settings asked for on this command line, and how to show things."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console

from crypto_qlib.settings.load import Secrets, load_settings
from crypto_qlib.settings.schema import Settings


@dataclass(slots=True)
class Asked:
    """The global options, read once before the command.

    Parameters
    ----------
    config : Path | None
        ``--config``.
    overrides : list of str
        Every ``--set``, in order.
    """

    config: Path | None = None
    overrides: list[str] = field(default_factory=list)

    def settings(self, *more: str) -> Settings:
        """Return the settings asked for; ``more`` are overrides that the command's own flags stand for."""
        return load_settings(self.config, [*self.overrides, *more], os.environ)

    def secrets(self) -> Secrets:
        """Return the secrets of the environment."""
        return Secrets.from_environ(os.environ)


def asked(context: typer.Context) -> Asked:
    """Return what the root command put into ``context``."""
    found = context.find_object(Asked)
    return found if found is not None else Asked()


def out() -> Console:
    """Return the console for results (stdout)."""
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """Return the console for errors and progress (stderr)."""
    return Console(stderr=True, highlight=False, soft_wrap=True)

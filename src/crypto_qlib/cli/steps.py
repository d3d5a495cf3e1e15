"""How a command runs one step of the pipeline: settings, a live progress display, and the step's own summary.

The pipeline brings in Qlib, LightGBM and ccxt, so it is imported only once the settings are known to be good: ``--help`` and
a typing error answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, err, out
from crypto_qlib.cli.logs import log_to_terminal
from crypto_qlib.cli.reporting import RichReporter

if TYPE_CHECKING:
    from crypto_qlib.scheduler.pipeline_scheduler import Pipeline


class StepResult(Protocol):
    """What a step of the pipeline returns."""

    def summary_lines(self) -> Iterable[str]:
        """Return what a person should know, line by line."""
        ...


def run_step(context: typer.Context, step: Callable[[Pipeline], StepResult], *overrides: str) -> None:
    """Run ``step`` on a pipeline made from the settings asked for, and print its summary.

    Parameters
    ----------
    context : typer.Context
        Of the command.
    step : callable
        Takes the pipeline, returns the step's result.
    *overrides : str
        ``section.key=value`` that the command's own flags stand for.
    """
    wanted = asked(context)
    settings, secrets = wanted.settings(*overrides), wanted.secrets()
    log_to_terminal(settings.monitoring.log_level)
    screen = err()
    with RichReporter(screen) as reporter:
        from crypto_qlib.cli.paper_table import PaperScreen
        from crypto_qlib.scheduler.pipeline_scheduler import Pipeline

        result = step(Pipeline(settings, secrets, reporter, PaperScreen(screen)))
    console = out()
    for line in result.summary_lines():
        console.print(escape(line))

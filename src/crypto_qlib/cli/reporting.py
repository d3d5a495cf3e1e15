"""A running job on the terminal: steps with ticks and times, and a progress bar inside the current one.

On a terminal the current step is drawn live; elsewhere (a file, a CI log) every step is one line when it starts and one when it
ends, and progress is not drawn at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from crypto_qlib.scheduler.reporter import Advance

_SECONDS_PER_MINUTE = 60


class _OnlyMeasured(ProgressColumn):
    """A column for bars whose total is known; steps, whose length nobody knows, leave it empty."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        """Return the inner column's cell, or nothing."""
        return self._column(task) if task.total is not None else ""


class RichReporter:
    """Show steps and progress on ``console``; use it as a context manager, so that the terminal is left clean.

    Parameters
    ----------
    console : Console
        Where to draw; stderr, so that results on stdout can be piped.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.fields[indent]}"),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            _OnlyMeasured(BarColumn(bar_width=30)),
            _OnlyMeasured(TextColumn("{task.percentage:>3.0f}%")),
            TimeElapsedColumn(),
            _OnlyMeasured(TimeRemainingColumn()),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._inside: list[list[TaskID]] = []
        unicode = (console.encoding or "").lower().startswith("utf")
        self._tick, self._cross = ("✓", "✗") if unicode else ("ok", "failed")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Enter a named step; steps may nest."""
        indent = "  " * len(self._inside)
        started = time.perf_counter()
        spinner = self._bars.add_task(escape(name), total=None, indent=indent)
        self._inside.append([spinner])
        if not self._console.is_terminal:
            self._console.print(f"{indent}{escape(name)} ...")
        try:
            yield
        except BaseException:
            self._close_step(f"{indent}[red]{self._cross}[/red] {escape(name)}", started)
            raise
        self._close_step(f"{indent}[green]{self._tick}[/green] {escape(name)}", started)

    def progress(self, description: str, total: float) -> Advance:
        """Draw a bar inside the current step; the bar goes with the step."""
        task = self._bars.add_task(escape(description), total=total, indent="  " * max(len(self._inside), 1))
        if self._inside:
            self._inside[-1].append(task)
        return lambda amount: self._bars.advance(task, amount)

    def say(self, text: str) -> None:
        """Print one line above the progress."""
        self._console.print(f"{'  ' * len(self._inside)}{escape(text)}")

    def refresh(self) -> None:
        """Draw now, without waiting for the next tick of the display."""
        self._bars.refresh()

    def _close_step(self, line: str, started: float) -> None:
        for task in self._inside.pop():
            self._bars.remove_task(task)
        self._console.print(f"{line} [dim]{in_words(time.perf_counter() - started)}[/dim]")


def in_words(seconds: float) -> str:
    """Return a duration as people read it: ``0.3 s``, ``12 s``, ``3 min 05 s``."""
    if seconds < 10:  # noqa: PLR2004 - tenths stop mattering
        return f"{seconds:.1f} s"
    if seconds < _SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), _SECONDS_PER_MINUTE)
    return f"{minutes} min {rest:02d} s"

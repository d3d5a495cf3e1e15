"""How a running job tells a person what it is doing; the CLI shows it, tests and notebooks may stay silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[float], None]
"""Call with the amount of work done since the last call."""


class Reporter(Protocol):
    """Show steps, progress inside a step, and plain lines."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Enter a named step; leaving it marks the step as done, or as failed when an error passes through."""
        ...

    def progress(self, description: str, total: float) -> Advance:
        """Open a progress bar inside the current step and return the function that moves it."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...


class SilentReporter:
    """Say nothing; remember what was said (for tests and notebooks)."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.lines: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Remember the step."""
        self.steps.append(name)
        yield

    def progress(self, description: str, total: float) -> Advance:
        """Return a function that does nothing."""
        del description, total
        return lambda _amount: None

    def say(self, text: str) -> None:
        """Remember the line."""
        self.lines.append(text)

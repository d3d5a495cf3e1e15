"""Which log records reach the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from crypto_qlib.cli.logs import log_to_terminal


@pytest.fixture(autouse=True)
def _own_loggers() -> Iterator[None]:
    root, kept = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = kept
    root.setLevel(level)


ROWS = [
    ("WARNING", logging.INFO, False, "a library that sets its own logger to INFO is still quiet"),
    ("WARNING", logging.WARNING, True, "a warning is told"),
    ("INFO", logging.INFO, True, "information is told when asked for"),
]


@pytest.mark.parametrize(("level", "severity", "is_told", "reason"), ROWS)
def test_the_level_asked_for_holds_for_every_logger(
    capsys: pytest.CaptureFixture[str], level: str, severity: int, is_told: bool, reason: str
) -> None:
    log_to_terminal(level)
    library = logging.getLogger("noisy.library")
    library.setLevel(logging.INFO)
    library.log(severity, "said something")
    captured = capsys.readouterr()
    assert ("said something" in captured.err) is is_told, reason
    assert captured.out == ""


@pytest.mark.parametrize(("level", "is_told"), [("WARNING", False), ("INFO", True)])
def test_warnings_of_libraries_are_information(capsys: pytest.CaptureFixture[str], level: str, is_told: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log_to_terminal(level)
        warnings.warn("an old way", DeprecationWarning, stacklevel=1)
    assert ("an old way" in capsys.readouterr().err) is is_told

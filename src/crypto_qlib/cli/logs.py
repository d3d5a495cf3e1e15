"""What libraries and rooms log, shown on stderr from the severity asked for."""

from __future__ import annotations

import logging

from rich.logging import RichHandler

from crypto_qlib.cli.asked import err


def log_to_terminal(level: str) -> None:
    """Write log records of at least ``level`` to stderr; warnings of Python libraries count as information."""
    # The level is the handler's, not only the root logger's: Qlib sets its own loggers to INFO.
    handler = RichHandler(level=level, console=err(), show_path=False, markup=False)
    logging.basicConfig(level=level, handlers=[handler], format="%(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    logging.captureWarnings(capture=True)
    told = logging.getLogger("py.warnings")
    told.setLevel(logging.WARNING if level in {"DEBUG", "INFO"} else logging.ERROR)

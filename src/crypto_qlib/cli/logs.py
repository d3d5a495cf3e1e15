"""What libraries and rooms log, shown on stderr from the severity asked for."""

from __future__ import annotations

import logging

from rich.logging import RichHandler

from crypto_qlib.cli.asked import err


def log_to_terminal(level: str) -> None:
    """Write log records of at least ``level`` to stderr."""
    handler = RichHandler(console=err(), show_path=False, markup=False)
    logging.basicConfig(level=level, handlers=[handler], format="%(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    logging.captureWarnings(capture=True)

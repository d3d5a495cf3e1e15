"""A structured log: one JSON object a line, appended whole: several processes may write, and a kill leaves whole lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from crypto_qlib.core.clock import Clock, SystemClock, iso
from crypto_qlib.core.errors import UserError

_MAX_BYTES: Final = 20_000_000
"""A log that has grown past this is moved aside (``.1``), the one before it forgotten."""


class EventLog:
    """Append events to a file.

    Parameters
    ----------
    path : Path
        ``.jsonl`` file; its folder is created.
    clock : Clock
        Stamps the events.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = SystemClock() if clock is None else clock

    def write(self, event: str, **facts: object) -> None:
        """Append one event with its facts (JSON values; anything else as text).

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        line = json.dumps({"at": iso(self._clock.now_ns()), "event": event, **facts}, default=str) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > _MAX_BYTES:
                self._path.replace(self._path.with_suffix(".jsonl.1"))
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as e:
            raise UserError(f"cannot write {self._path}: {e.strerror or e}", "free disk space or mend permissions") from e

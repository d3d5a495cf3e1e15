"""Which step of the pipeline is already built, and from what.

A step's *key* is a hash of everything its output depends on: the identities of its inputs, the settings it reads and the
code. A step whose recorded key equals today's is not run again. The record is written only after the output is complete,
so a run that is killed at any moment simply does the unfinished step again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def key_of(*parts: object) -> str:
    """Return a 16-digit hash of ``parts``: settings sections, strings, numbers, dictionaries or sequences of them."""
    return hashlib.sha256(json.dumps([_plain(p) for p in parts], sort_keys=True).encode()).hexdigest()[:16]


def _plain(part: object) -> object:
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json")
    if isinstance(part, Path):
        return str(part)
    if isinstance(part, dict):
        return {str(k): _plain(v) for k, v in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(p) for p in part]
    return part


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a step was last built from, and what it said of its output."""

    key: str
    output: dict[str, Any]


class StepBook:
    """The records of all steps, one small JSON file each.

    Parameters
    ----------
    folder : Path
        Where the records lie (``Paths.steps``).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def record(self, step: str) -> StepRecord | None:
        """Return the step's record, or ``None`` if it was never completed (or its record is unreadable)."""
        try:
            raw = json.loads((self._folder / f"{step}.json").read_text())
            return StepRecord(str(raw["key"]), dict(raw["output"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def is_current(self, step: str, key: str, *outputs: Path) -> bool:
        """Return whether the step was completed from exactly ``key`` and all its ``outputs`` still exist."""
        record = self.record(step)
        return record is not None and record.key == key and all(p.exists() for p in outputs)

    def complete(self, step: str, key: str, output: dict[str, Any]) -> None:
        """Record that the step's output is complete (atomic)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"{step}.json"
        scratch = target.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps({"key": key, "output": output}, indent=1))
        scratch.replace(target)

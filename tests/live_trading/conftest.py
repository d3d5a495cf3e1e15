"""Ledgers of these tests lie in memory where there is such a folder: every commit is synced, which on a disk is all they do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a fresh folder for one test, in memory where there is room."""
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        yield tmp_path_factory.mktemp("live")
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="crypto_qlib_test_") as folder:
        yield Path(folder)

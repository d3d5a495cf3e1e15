"""Cached machine code must not outlive a change of what was compiled into it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.jit import njit_lent, prefetch

INNERMOST = """
from crypto_qlib.core.jit import njit

SCALE = {scale}

@njit
def innermost(x: float) -> float:
    return {body}
"""
MIDDLE = """
from crypto_qlib.core.jit import njit
from innermost import SCALE, innermost

@njit
def middle(x: float) -> float:
    return SCALE * innermost(x)
"""
OUTERMOST = """
from crypto_qlib.core.jit import njit
from middle import middle

@njit
def outermost(x: float) -> float:
    return middle(x)

print(outermost(1.0))
"""


def result(folder: Path) -> float:
    cache = {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    code = [sys.executable, "-c", "import outermost"]
    done = subprocess.run(code, env={**os.environ, **cache}, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
def test_a_change_two_files_away_is_compiled_in(tmp_path: Path) -> None:
    (tmp_path / "outermost.py").write_text(OUTERMOST)
    (tmp_path / "middle.py").write_text(MIDDLE)
    innermost = tmp_path / "innermost.py"
    innermost.write_text(INNERMOST.format(scale=1.0, body="x + 1.0"))
    assert result(tmp_path) == 2.0
    assert result(tmp_path) == 2.0  # from the cache
    innermost.write_text(INNERMOST.format(scale=1.0, body="x + 10.0"))
    assert result(tmp_path) == 11.0
    innermost.write_text(INNERMOST.format(scale=3.0, body="x + 10.0"))
    assert result(tmp_path) == 33.0


@njit_lent
def read_with_prefetch(table: np.ndarray, ahead: int) -> float:
    total = 0.0
    for t in range(table.shape[0]):
        prefetch(table, t + ahead, 0)
        total += table[t, 0]
    return total


@pytest.mark.parametrize("ahead", [0, 3, 10**9, -(10**9)])
def test_asking_for_a_place_beyond_the_array_does_no_harm(ahead: int) -> None:
    assert read_with_prefetch(np.arange(12.0).reshape(4, 3), ahead) == 18.0

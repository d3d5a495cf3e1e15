"""The benchmark of the stores runs, and its ratios are computed from right answers (small sizes, no figure is judged)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_of_the_stores_checks_its_answers_and_prints_ratios() -> None:
    sizes = ["--symbols", "4", "--bars", "3000", "--stocks", "3", "--reps", "3"]
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "store", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line["workload"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == ["store", "panel", "append", "memory", "qlib"]
    assert lines["qlib"]["rows"] == 3 * 3400
    assert lines["qlib"]["largest_relative_difference"] < 1e-5
    assert lines["append"]["append/write"] > 0

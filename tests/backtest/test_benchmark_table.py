"""``make bench``: what it says where the reference kernels are missing, and that a wrong answer ends it before any timing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import backtest_table, kernels, measures
from benchmarks import workload as w
from benchmarks.workload_product import check

from tests.backtest.backtest_tapes import Tape, inputs

MEASURED: dict[str, dict[str, Any]] = {
    "loops": {"trades": 10_713, "engine_ms": 14.0, "public_api_ms": 20.0},
    "process": {"cpu_s": 1.0, "peak_mb": 232},
}


def test_without_the_reference_kernels_the_table_says_so_and_prints_plain_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A checkout alone has no ``../shared``: one line says what is left out, and nothing asks for a kernel."""
    asked: list[tuple[str, str]] = []

    def measure(name: str, workload: str, *, twice: bool = False) -> dict[str, Any]:
        asked.append((name, workload))
        return MEASURED[name]

    monkeypatch.setattr(kernels, "FOLDER", tmp_path / "shared" / "bench")
    monkeypatch.setattr(backtest_table, "measure", measure)
    backtest_table.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "No reference kernels beside this checkout (../shared/bench): their rows are left out."
    assert sum("10,713 trades, the reference's" in line for line in lines) == 2
    assert not any("kernel" in line for line in lines[1:])
    assert asked == [("loops", "A"), ("loops", "B"), ("process", "A"), ("process", "B")]


def test_a_wrong_answer_ends_the_benchmark_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = inputs(Tape(1, n_bars=60))
    right = check("other", run)
    monkeypatch.setattr(w, "ANSWERS", {"A": (right["trades"], right["final_equity"])})
    assert check("A", run) == right
    monkeypatch.setattr(measures, "build", lambda *_, **__: run)
    monkeypatch.setattr(measures, "cpu_ms", lambda _: pytest.fail("timed before the answer was checked"))
    for wrong in ((right["trades"] + 1, right["final_equity"]), (right["trades"], 1.001 * right["final_equity"])):
        monkeypatch.setattr(w, "ANSWERS", {"A": wrong})
        with pytest.raises(SystemExit, match="A: wrong answer"):
            measures.loops("A")

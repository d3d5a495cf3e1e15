"""The backtest's table: ``python -m benchmarks [--quick]``. Every row runs in a process of its own, pinned to one core.

First the trades of workloads A and B are compared with the reference's; a wrong answer ends the run. Baselines are the kernels
of ``../shared/bench`` in the same process and turn (rows without them are printed as plain figures), and vectorbt where its
environment exists (``python -m venv .bench/v-vbt && .bench/v-vbt/bin/pip install vectorbt``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import kernels
from benchmarks import workload as w

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``aim`` is the largest (``at_least``: the smallest) value that meets it."""

    what: str
    value: float
    aim: float | None = None
    unit: str = "x"
    detail: str = ""
    at_least: bool = False

    def line(self) -> str:
        if self.aim is None:
            verdict, aim = "", ""
        else:
            met = self.value >= self.aim if self.at_least else self.value <= self.aim
            verdict, aim = ("yes" if met else "NO"), f"{'>=' if self.at_least else '<='} {self.aim:g}{_unit(self.unit)}"
        return f"{self.what:<62} {self.value:>8.2f}{_unit(self.unit):<4} {aim:<10} {verdict:<4} {self.detail}".rstrip()


def _unit(unit: str) -> str:
    return unit if unit == "x" else f" {unit}"


def measure(name: str, workload: str, *, twice: bool = False) -> dict[str, Any]:
    """Run one measurement in a child process on one core; ``twice``: the first run only fills the machine-code cache."""
    command = [sys.executable, "-m", "benchmarks.measures", name, workload]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(w.FOLDER / "numba")}
    for _ in range(2 if twice else 1):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False, preexec_fn=_pin
        )
        if done.returncode:
            raise SystemExit(f"benchmark {name} {workload} failed")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _pin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def loop_rows(name: str) -> Iterator[Row]:
    """Yield the engine and the public API against the full kernel."""
    m = measure("loops", name)
    trades = f"{m['trades']:,} trades, the reference's"
    if not kernels.are_present():
        yield Row(f"{name}: engine, isolated", m["engine_ms"], unit="ms", detail=trades)
        yield Row(f"{name}: public API", m["public_api_ms"], unit="ms")
        return
    yield Row(f"{name}: engine / full kernel, isolated", m["engine/kernel_full"], 2.0,
              detail=f"{m['engine_ms']:.1f} / {m['kernel_full_ms']:.1f} ms; {trades}")  # fmt: skip
    yield Row(f"{name}: engine / full kernel, cross", m["engine_cross/kernel_full_cross"], 2.0,
              detail=f"{m['engine_cross_ms']:.1f} / {m['kernel_full_cross_ms']:.1f} ms")  # fmt: skip
    yield Row(f"{name}: checks, run, trades, statistics / full kernel", m["public_api/kernel_full"], 8.0,
              detail=f"{m['public_api_ms']:.1f} ms")  # fmt: skip
    yield Row(f"{name}: engine / bare kernel", m["engine/kernel"], detail=f"bare {m['kernel_ms']:.1f} ms")


def process_rows() -> Iterator[Row]:
    """Yield what whole processes take."""
    a = measure("process", "A", twice=True)
    if kernels.are_present():
        k = measure("kernel_process", "A", twice=True)
        yield Row("A: fresh process, import to result / bare kernel's", a["cpu_s"] / k["cpu_s"], 2.0,
                  detail=f"{a['cpu_s']:.2f} / {k['cpu_s']:.2f} s")  # fmt: skip
    yield Row("A: peak memory of the process", a["peak_mb"], 350, "MB")
    yield Row("B: peak memory of the process", measure("process", "B")["peak_mb"], 600, "MB")


def scaling_rows() -> Iterator[Row]:
    """Yield what more bars and more symbols cost, relative to A."""
    base = measure("scaling", "A")
    for name, aim, what in (("A4", None, "4x bars"), ("A16", 18.0, "16x bars"), ("A_s200", None, "4x symbols"),
                            ("A_s800", 8.0, "16x symbols")):  # fmt: skip
        m = measure("scaling", name)
        yield Row(f"{what} / A", m["engine_ms"] / base["engine_ms"], aim,
                  detail=f"{m['engine_ms']:.0f} ms, {m['trades']:,} trades (A {base['trades']:,})")  # fmt: skip


def lake_rows() -> Iterator[Row]:
    """Yield the way from the lake to written ledgers, and the year of minutes."""
    m = measure("lake", "A")
    yield Row("A: load from the lake as the pipeline does, run, write ledgers", m["cpu_s"], 1.0, "s",
              f"load {m['load_s']}, run {m['run_s']}, write {m['write_s']}")  # fmt: skip
    yield Row("A: loading the month files where nothing is mapped yet", m["files_s"], unit="s")
    y = measure("year", "year")
    yield Row("50 symbols x 1 year of minutes, streamed: peak memory", y["peak_mb"] / 1024, 3.0, "GiB",
              f"{y['bars']:,} bars, {y['trades']:,} trades, {y['cpu_s']} s CPU")  # fmt: skip


def vectorbt_rows() -> Iterator[Row]:
    """Yield how far ahead of vectorbt's exact form of workload A the engine is."""
    if not (kernels.VECTORBT.exists() and kernels.are_present()):
        return
    command = [str(kernels.VECTORBT), "peer_vectorbt.py", "A"]
    environment = {**os.environ, "BENCH_DATA": str(w.FOLDER / "data"), "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=kernels.FOLDER, env=environment, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=_pin
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = measure("scaling", "A")["engine_ms"]
    yield Row("A: vectorbt (without its account values) / engine", 1e3 * theirs["cpu_s"] / ours, 3.0, at_least=True,
              detail=f"{1e3 * theirs['cpu_s']:.0f} / {ours:.1f} ms; vectorbt {theirs['version']}")  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="workloads A and B alone: no scaling, no lake, no year of minutes")
    quick = parser.parse_args(arguments).quick
    if not kernels.are_present():
        print("No reference kernels beside this checkout (../shared/bench): their rows are left out.")
    print(f"{'CPU time on one core':<62} {'measured':>8}     {'aim':<10} met")
    groups = [loop_rows("A"), loop_rows("B"), process_rows(), vectorbt_rows()]
    for group in groups if quick else [*groups, scaling_rows(), lake_rows()]:
        for row in group:
            print(row.line(), flush=True)

"""The reference kernels and the vectorbt script beside this checkout (``../shared/bench``), where they are present.

A bare loop (``kernel.py``) is the limit: the workload's rules and nothing else. ``kernel_full.py`` adds maintenance tiers, a
cross-margin check at every bar, tick and lot rounding, fill and funding logs and the account's series.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np

from benchmarks import workload as w

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "bench"
VECTORBT = w.FOLDER / "v-vbt" / "bin" / "python"
"""Interpreter of vectorbt's own environment: ``python -m venv .bench/v-vbt && .bench/v-vbt/bin/pip install vectorbt``."""


def are_present() -> bool:
    """Return whether the reference kernels lie beside this checkout."""
    return (FOLDER / "kernel_full.py").exists()


def spec_of(s: w.Shape) -> dict[str, int]:
    """Return a workload's shape as the kernels name it."""
    return {"n": s.n_symbols, "t": s.n_bars, "bar_s": s.bar_s, "step": s.step, "hold": s.hold, "fund": s.funding}


def bare(name: str, *, cached: bool = False) -> Callable[[], object]:
    """Return the bare kernel on a workload; ``cached`` keeps its machine code on disk, as ours is."""
    module = _load("kernel")
    s, d = w.saved(name)
    if cached:
        module.run = numba.njit(cache=True, nogil=True)(module.run.py_func)
    spec = spec_of(s)
    return partial(module.call, spec, d, module.buffers(spec))


def full(name: str) -> dict[str, Callable[[], object]]:
    """Return the full kernel on a workload, isolated and cross."""
    module, theirs = _load("kernel_full"), _load("workload")
    s, d = w.saved(name)
    n, t = s.n_symbols, s.n_bars
    capacity, n_funding = 8 * (t // s.step) + 256, t // s.funding * 10 + 64
    buffers = (
        np.zeros((t, 5)), np.zeros((capacity, 3), np.int64), np.zeros((capacity, 4)), np.zeros((n_funding, 2), np.int64),
        np.zeros((n_funding, 2)),
    )  # fmt: skip
    floor = np.tile(np.array([0, 5e4, 2.5e5, 1e6, 5e6, 1e7, 2e7, 5e7, 1e8, 2e8]), (n, 1))
    rate = np.tile(np.array([0.004, 0.005, 0.01, 0.025, 0.05, 0.1, 0.125, 0.15, 0.25, 0.5]), (n, 1))
    amount = np.zeros_like(floor)
    for i in range(1, floor.shape[1]):
        amount[:, i] = amount[:, i - 1] + floor[:, i] * (rate[:, i] - rate[:, i - 1])
    tick, lot = np.full(n, 1e-4), np.full(n, 1e-3)

    def run(cross: bool) -> object:
        return module.run(
            d["open"], d["high"], d["low"], d["close"], d["score"], d["funding"], s.step, s.hold, s.funding,
            theirs.MAX_POS, theirs.LEV, theirs.SL, theirs.TP, theirs.FEE, theirs.SLIP, theirs.CASH0, cross, tick, lot, 5.0,
            floor, rate, amount, *buffers,
        )  # fmt: skip

    return {"kernel_full": partial(run, False), "kernel_full_cross": partial(run, True)}


def _load(module: str) -> Any:
    """Import a script of the folder by its path, its own imports included."""
    if module in sys.modules:
        return sys.modules[module]
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(module, FOLDER / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(FOLDER))
    return loaded

"""How a grid of backtests grows with its worker processes: ``python -m benchmarks grid [RUNS]``.

The workload A market (50 symbols, 17,520 hours) under settings of the product. Reported are the wall time with one and with two
worker processes and their ratio (2 = linear), and the CPU time all workers took over that of as many runs in this process:
what processes, shared inputs and journal cost. Processes are started once for each measurement and counted in.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import workload_product as product
from crypto_qlib.backtest.grid_runs import grid_runs, parse_axis, run_one
from crypto_qlib.backtest.grid_workers import LocalWorkers, SharedInputs
from crypto_qlib.settings.identity import settings_identity
from crypto_qlib.settings.load import load_settings

LOOSE = (
    "strategy.min_win_probability=0", "strategy.min_net_return=-1", "strategy.min_daily_turnover=0",
    "strategy.min_listing_days=0", "strategy.sizing=fixed_fraction", "strategy.risk_per_trade=1",
)  # fmt: skip


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return (wall seconds, CPU seconds of this process and of its ended children) of one call."""

    def cpu() -> float:
        parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(part.ru_utime + part.ru_stime for part in parts)

    start, before = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - start, cpu() - before


def main(arguments: list[str]) -> None:
    n_runs = int(arguments[0]) if arguments else 64
    inputs = product.build("A")
    values = ",".join(str(2 + k) for k in range(n_runs))
    runs = grid_runs([parse_axis(f"strategy.holding_bars={values}")], load_settings(None, LOOSE, {}), settings_identity)
    run_one(inputs, runs[0])
    _, alone = timed(lambda: [run_one(inputs, run) for run in runs])
    line: dict[str, Any] = {"runs": n_runs, "cpu_s_a_run": round(alone / n_runs, 4)}
    for n in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            shared = Path(folder) / "inputs.bin"
            SharedInputs.write(inputs, shared)
            workers = LocalWorkers(n, shared, Path(folder) / "runs")
            wall, cpu = timed(lambda w=workers: w.run(runs, lambda _: None))  # type: ignore[misc]
        line |= {f"wall_s_{n}": round(wall, 2), f"cpu_over_alone_{n}": round(cpu / alone, 2)}
    line["speed_up_of_two"] = round(line["wall_s_1"] / line["wall_s_2"], 2)
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

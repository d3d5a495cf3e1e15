"""Step: run a grid of settings on one market and one set of scores, many at once, and say what the best is worth.

1. Every combination is checked and gets the id of a single run with its settings (:mod:`crypto_qlib.backtest.grid_runs`).
2. Runs already journalled are not run again: a grid that was killed, or extended by values, goes on where it stopped.
3. The others run in this process, in worker processes over shared memory, or on a Dask cluster
   (:mod:`crypto_qlib.backtest.grid_workers`); each gives what a single backtest gives, bit for bit.
4. Table, pictures, and the verdict on the best run: the more were tried, the less its Sharpe ratio says
   (:mod:`crypto_qlib.backtest.grid_report`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crypto_qlib.analytics.inference import ChosenTrial, judge_trials
from crypto_qlib.backtest.grid_runs import Axis, GridRun, Journal, RunRow
from crypto_qlib.backtest.grid_workers import LocalWorkers, SharedInputs, run_here, run_on_dask
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.core.errors import UserError


@dataclass(frozen=True, slots=True)
class GridResult:
    """All rows of a grid.

    Parameters
    ----------
    axes : tuple of Axis
        What was varied.
    runs : tuple of GridRun
        Every combination.
    rows : tuple of RunRow
        Their results, in the same order.
    verdict : ChosenTrial
        What the best is worth; ``best`` is a place in ``rows``.
    n_reused : int
        Runs that were journalled already.
    """

    axes: tuple[Axis, ...]
    runs: tuple[GridRun, ...]
    rows: tuple[RunRow, ...]
    verdict: ChosenTrial
    n_reused: int


def run_grid(
    inputs: BacktestInputs,
    axes: Sequence[Axis],
    runs: Sequence[GridRun],
    folder: Path,
    *,
    n_workers: int = 0,
    dask: str = "",
    lake: Path | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> GridResult:
    """Run what is not journalled yet and return all rows.

    Parameters
    ----------
    inputs : BacktestInputs
        Market, scores and contracts of all runs; rules, equity and execution come from each run's settings.
    axes, runs : sequence
        As :func:`~crypto_qlib.backtest.grid_runs.grid_runs` made them.
    folder : Path
        Where journal and shared inputs lie.
    n_workers : int
        Worker processes; 0 = one a core.
    dask : str
        Address of a Dask scheduler, e.g. ``tcp://127.0.0.1:8786``; empty = worker processes on this machine.
    lake : Path, optional
        Root of the lake that has the bars of ``backtest.execution_frame``; needed where a run trades on finer bars.
    advance : callable
        Told 1 for each finished run.

    Raises
    ------
    UserError
        If a run cannot be carried out; finished ones stay journalled.
    """
    journal = Journal(folder / "runs")
    unique = {run.run_id: run for run in runs}
    todo = [run for run in unique.values() if journal.read(run.run_id) is None]
    n_reused = len(runs) - len(todo)
    advance(float(n_reused))

    def on_done(_: GridRun) -> None:
        advance(1.0)

    if todo:
        n = min(n_workers or os.cpu_count() or 1, len(todo))
        if dask:
            run_on_dask(dask, inputs, todo, folder / "runs", on_done, lake)
        elif n == 1:
            run_here(inputs, todo, folder / "runs", on_done, lake)
        else:
            shared = folder / f"inputs-{os.getpid()}.bin"
            try:
                SharedInputs.write(inputs, shared)
                LocalWorkers(n, shared, folder / "runs", lake).run(todo, on_done)
            finally:
                shared.unlink(missing_ok=True)
    rows = tuple(_kept(journal, run) for run in runs)
    return GridResult(tuple(axes), tuple(runs), rows, judge_trials(_side_by_side(rows)), n_reused)


def _kept(journal: Journal, run: GridRun) -> RunRow:
    row = journal.read(run.run_id)
    if row is None:
        raise UserError(f"{', '.join(run.overrides)}: its row vanished from the journal", "run the grid again")
    return row


def _side_by_side(rows: Sequence[RunRow]) -> np.ndarray:
    """Return the returns of all runs, ``(n_periods, n_runs)``; they trade the same bars, so they have the same length."""
    return np.column_stack([row.returns for row in rows])

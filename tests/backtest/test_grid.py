"""A grid of backtests: the same runs as one by one, whoever runs them and whoever is killed meanwhile."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.grid import GridResult, run_grid
from crypto_qlib.backtest.grid_report import grid_frame, grid_lines, write_grid
from crypto_qlib.backtest.grid_runs import Axis, GridRun, Journal, grid_runs, parse_axis, result_digest, run_one
from crypto_qlib.backtest.grid_workers import LocalWorkers, SharedInputs
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.core.errors import UserError
from crypto_qlib.portfolio.rules import rules_from_settings
from crypto_qlib.settings.identity import settings_identity
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings
from tests.backtest.backtest_tapes import Tape, inputs

BASE = load_settings(
    None,
    [
        "strategy.min_daily_turnover=0", "strategy.min_listing_days=0", "strategy.max_net=5", "strategy.leverage=10",
        "strategy.min_win_probability=0", "strategy.max_drawdown=1", "strategy.sizing=fixed_fraction",
        "strategy.risk_per_trade=1", "backtest.initial_equity=10000",
    ],
    {},
)  # fmt: skip
AXES = [parse_axis("strategy.max_open=1,2,3"), parse_axis("strategy.leverage=2,5")]
MARKET = inputs(Tape(5, n_bars=200, volatility=0.03))


def runs(axes: list[Axis] = AXES, settings: Settings = BASE) -> list[GridRun]:
    return grid_runs(axes, settings, settings_identity)


def alone(run: GridRun, market: BacktestInputs = MARKET) -> str:
    """The digest of the very run done alone, with everything a single backtest keeps."""
    s = run.settings
    return result_digest(
        run_backtest(
            replace(market, rules=rules_from_settings(s), initial_equity=s.backtest.initial_equity, with_exposure=True)
        )
    )


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("strategy.max_open=5,10", Axis("strategy.max_open", ("5", "10"))),
        (" strategy.leverage = 2 , 3 ", Axis("strategy.leverage", ("2", "3"))),
        ("strategy.blacklist=[A,B],[C]", Axis("strategy.blacklist", ("[A,B]", "[C]"))),
        ("backtest.costs.impact_y=0.8", Axis("backtest.costs.impact_y", ("0.8",))),
    ],
)
def test_an_axis_is_a_setting_and_its_values(text: str, axis: Axis) -> None:
    assert parse_axis(text) == axis


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["strategy.max_open"], "not of the form"),
        (["strategy.max_open="], "not of the form"),
        (["strategy.max_open=5,,10"], "not of the form"),
        (["model.num_leaves=31,63"], "scores that are made already"),
        (["backtest.segment=test,all"], "scores that are made already"),
        (["strategy.max_open=5,5"], "5 is given twice"),
        (["strategy.max_open=5", "strategy.max_open=6"], "varied twice"),
        (["strategy.max_opn=5,10"], "unknown setting strategy.max_opn .did you mean strategy.max_open"),
        (["strategy.leverage=2,2000"], r"--vary: strategy.leverage = 2000 must be"),
        (["strategy.min_stop_distance=0.01,0.9"], "min_stop_distance = 0.9 is above"),
        ([], "something to vary"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_before_the_first_run(axes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid_runs([parse_axis(a) for a in axes], BASE, settings_identity)


def test_a_grid_is_the_product_of_its_axes_and_every_run_has_its_own_id() -> None:
    found = runs()
    assert [r.overrides for r in found][:2] == [
        ("strategy.max_open=1", "strategy.leverage=2"), ("strategy.max_open=1", "strategy.leverage=5"),
    ]  # fmt: skip
    assert len({r.run_id for r in found}) == 6
    assert (found[5].settings.strategy.max_open, found[5].settings.strategy.leverage) == (3, 5.0)


def test_shared_inputs_are_views_of_one_mapped_file(tmp_path: Path) -> None:
    SharedInputs.write(MARKET, tmp_path / "inputs.bin")
    loaded = SharedInputs.load(tmp_path / "inputs.bin")
    assert loaded.panel.close.tobytes() == MARKET.panel.close.tobytes()
    assert not loaded.panel.close.flags.owndata
    fixed = MARKET.panel.close.view()
    fixed.setflags(write=False)
    for close in (MARKET.panel.close, fixed):
        SharedInputs.write(replace(MARKET, panel=replace(MARKET.panel, close=close)), tmp_path / "inputs.bin")
        kept = SharedInputs.load(tmp_path / "inputs.bin").panel.close
        assert kept.flags.writeable == close.flags.writeable, "compiled code would be compiled again"
    assert loaded.panel.symbols == MARKET.panel.symbols
    twin = replace(MARKET, panel=replace(MARKET.panel, mark_close=MARKET.panel.close))
    SharedInputs.write(twin, tmp_path / "inputs.bin")
    again = SharedInputs.load(tmp_path / "inputs.bin").panel
    assert again.mark_close is again.close  # an array shared before is shared after


def test_runs_in_this_process_are_those_done_alone_bit_for_bit(tmp_path: Path) -> None:
    result = run_grid(MARKET, AXES, runs(), tmp_path, n_workers=1)
    assert [row.digest for row in result.rows] == [alone(run) for run in runs()]
    assert result.n_reused == 0


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[GridResult, Path]:
    folder = tmp_path_factory.mktemp("grid")
    return run_grid(MARKET, AXES, runs(), folder, n_workers=2), folder


def test_runs_in_worker_processes_are_those_done_alone_bit_for_bit(by_processes: tuple[GridResult, Path]) -> None:
    result, folder = by_processes
    assert [row.digest for row in result.rows] == [alone(run) for run in runs()]
    assert not list(folder.glob("inputs-*"))
    assert not mp.active_children()


def test_a_grid_extended_by_a_value_runs_the_new_combinations_alone(by_processes: tuple[GridResult, Path]) -> None:
    _, folder = by_processes
    told: list[float] = []
    more = [parse_axis("strategy.max_open=1,2,3,4"), AXES[1]]
    result = run_grid(MARKET, more, runs(more), folder, n_workers=1, advance=told.append)
    assert result.n_reused == 6
    assert told == [6.0, 1.0, 1.0]


def test_a_damaged_journal_file_is_run_again(by_processes: tuple[GridResult, Path]) -> None:
    result, folder = by_processes
    victim = folder / "runs" / f"{runs()[2].run_id}.npz"
    victim.write_bytes(victim.read_bytes()[:50])
    again = run_grid(MARKET, AXES, runs(), folder, n_workers=1)
    assert again.n_reused == 5
    assert again.rows[2].digest == result.rows[2].digest


def test_the_report_is_a_table_a_picture_and_a_verdict(by_processes: tuple[GridResult, Path], tmp_path: Path) -> None:
    result, _ = by_processes
    files = write_grid(result, {"run_id": "x"}, tmp_path)
    table = pd.read_parquet(files.table)
    pd.testing.assert_frame_equal(table, grid_frame(result))
    assert list(table["strategy.max_open"]) == ["1", "1", "2", "2", "3", "3"]
    best = int(np.argmax(table["sharpe"]))
    verdict = json.loads(files.verdict.read_text())
    assert verdict["best"]["overrides"] == list(result.runs[best].overrides)
    assert verdict["verdict"]["n_trials"] == 6
    assert 0.0 <= verdict["verdict"]["deflated_sharpe"] <= 1.0
    assert files.picture.read_bytes().startswith(b"\x89PNG")
    lines = grid_lines(result, files)
    assert lines[0].split()[:2] == ["strategy.max_open", "strategy.leverage"]
    assert lines[1].split()[0] == table["strategy.max_open"][best]
    assert any("6 runs" in line for line in lines)


def test_a_single_axis_and_three_axes_are_drawn_too(tmp_path: Path) -> None:
    for texts in (["strategy.max_open=1,2"], ["strategy.max_open=1,2", "strategy.leverage=2,3", "strategy.holding_bars=6,12"]):
        axes = [parse_axis(t) for t in texts]
        result = run_grid(MARKET, axes, runs(axes), tmp_path / "g", n_workers=1)
        assert write_grid(result, {}, tmp_path / str(len(texts))).picture.stat().st_size > 10_000


@pytest.mark.parametrize("n_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_cannot_be_carried_out_is_named_and_the_finished_ones_stay(n_workers: int, tmp_path: Path) -> None:
    axes = [parse_axis("strategy.leverage=2,60")]  # no instrument allows 60
    with pytest.raises(UserError, match=r"strategy.leverage=60: leverage 60 is above the cap of every .*: 50 of [A-Z0-9]+USDT"):
        run_grid(MARKET, axes, runs(axes), tmp_path, n_workers=n_workers)
    if n_workers == 1:
        assert Journal(tmp_path / "runs").read(runs(axes)[0].run_id) is not None


# -- who is killed loses nothing -------------------------------------------------------------------------------------

MANY = [parse_axis("strategy.max_open=1,2,3"), parse_axis("strategy.holding_bars=3,4,5,6,7,8,9,10")]
LONG = inputs(Tape(6, n_bars=2_000, volatility=0.02))


@pytest.mark.slow
def test_a_worker_killed_mid_grid_loses_nothing(tmp_path: Path) -> None:
    SharedInputs.write(LONG, tmp_path / "inputs.bin")
    workers = LocalWorkers(2, tmp_path / "inputs.bin", tmp_path / "runs")
    done: list[str] = []
    killed: list[int] = []

    def on_done(run: GridRun) -> None:
        done.append(run.run_id)
        if len(done) in (2, 9):
            killed.append(workers.pids[-1])
            os.kill(killed[-1], signal.SIGKILL)

    workers.run(runs(MANY), on_done)
    assert len(set(killed)) == 2
    assert sorted(done) == sorted(run.run_id for run in runs(MANY))
    journal = Journal(tmp_path / "runs")
    for run in (runs(MANY)[0], runs(MANY)[-1]):
        row = journal.read(run.run_id)
        assert row is not None
        assert row.digest == alone(run, LONG)


PARENT = """
import sys
from pathlib import Path
from crypto_qlib.backtest.grid import run_grid
from tests.backtest.test_grid import LONG, MANY, runs
if __name__ == "__main__":
    run_grid(LONG, MANY, runs(MANY), Path(sys.argv[1]), n_workers=2)
"""


@pytest.mark.slow
def test_a_parent_killed_mid_grid_is_resumed_and_its_workers_end(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "grid")], env=env)
    folder = tmp_path / "grid" / "runs"
    for _ in range(1200):
        if len(list(folder.glob("*.npz"))) >= 3 or process.poll() is not None:
            break
        time.sleep(0.05)
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert process.poll() is None, "the grid was over before it could be killed"
    process.kill()
    process.wait()
    for _ in range(400):
        if not any(_is_alive(pid) for pid in children):
            break
        time.sleep(0.05)
    assert not any(_is_alive(pid) for pid in children)
    finished = len(list(folder.glob("*.npz")))
    assert 3 <= finished < 24
    result = run_grid(LONG, MANY, runs(MANY), tmp_path / "grid", n_workers=1)
    assert result.n_reused == finished
    assert result.rows[-1].digest == alone(runs(MANY)[-1], LONG)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_run_that_ends_every_worker_is_given_up_by_name(tmp_path: Path) -> None:
    SharedInputs.write(MARKET, tmp_path / "inputs.bin")
    workers = LocalWorkers(1, tmp_path / "inputs.bin", tmp_path / "runs")
    poisoned = replace(runs()[0], settings=Poison())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"strategy.max_open=1, strategy.leverage=2: ended 3 worker processes"):
        workers.run([poisoned], lambda _: None)


class Poison:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (9,)


# -- Dask ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[str]:
    """A scheduler and two workers on loopback, each a process of its own."""
    pytest.importorskip("distributed")
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    flags = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file"]
    folder = Path(os.environ.get("PYTEST_TMP", "/tmp")) / f"dask-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env, "cwd": folder}
    file = folder / "scheduler.json"
    processes = [subprocess.Popen([*command, *flags, str(file)], **quiet)]  # type: ignore[call-overload]
    try:
        for _ in range(600):
            if file.exists() and file.read_text():
                break
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        processes.append(subprocess.Popen([*worker, "--nworkers", "2"], **quiet))  # type: ignore[call-overload]
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_runs_even_if_a_worker_is_killed(cluster: str, tmp_path: Path) -> None:
    from distributed import Client  # noqa: PLC0415 - an extra

    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        pids = client.run(os.getpid)
    killed: list[int] = []

    def advance(amount: float) -> None:
        if amount == 1.0 and not killed:
            killed.append(next(iter(pids.values())))
            threading.Thread(target=os.kill, args=(killed[0], signal.SIGKILL)).start()

    result = run_grid(LONG, MANY, runs(MANY), tmp_path, dask=cluster, advance=advance)
    assert killed
    assert [row.run_id for row in result.rows] == [run.run_id for run in runs(MANY)]
    for k in (0, 11, 23):
        assert result.rows[k].digest == alone(runs(MANY)[k], LONG)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        run_grid(MARKET, AXES, runs(), tmp_path, dask="tcp://127.0.0.1:9")


def test_one_run_keeps_its_figures_and_daily_returns_through_the_journal(tmp_path: Path) -> None:
    row = run_one(LONG, runs()[0])
    Journal(tmp_path).write(row)
    kept = Journal(tmp_path).read(row.run_id)
    assert kept is not None
    assert (kept.figures, kept.digest) == (row.figures, row.digest)
    np.testing.assert_array_equal(kept.returns, row.returns)
    assert row.returns.size == 84  # 2,000 hours from the second one on touch 84 UTC days
    assert np.prod(1.0 + row.returns) == pytest.approx(row.figures["final_equity"] / 10_000.0)

"""Who runs a grid: this process, worker processes beside it, or the workers of a Dask cluster.

Worker processes map one file with the market and the scores (:class:`SharedInputs`), so its pages lie in memory once, however
many they are. Each holds one run at a time and journals it before it answers. A worker that dies, of whatever, costs the run it
held: that run goes to its successor. A parent that dies closes the pipes, and the workers end after their current run.
"""

from __future__ import annotations

import mmap
import multiprocessing as mp
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from crypto_qlib.backtest.grid_runs import GridRun, Journal, RunRow, run_one
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.identity import code_identity

MOST_DEATHS: Final = 3
"""Workers one run may end before it is given up."""
_ALIGN: Final = 4_096

OnDone = Callable[[GridRun], None]


class SharedInputs:
    """The inputs of all runs in one file: their arrays one after the other, page by page, then the rest.

    Written with pickle's out-of-band buffers; :meth:`load` maps the file, and the arrays of what it returns are views of it.
    An array is read-only after if it was before: compiled code tells the two apart, and would be compiled again.
    """

    @staticmethod
    def write(inputs: BacktestInputs, path: Path) -> None:
        """Write ``inputs`` to ``path``, whole or not at all."""
        buffers: list[pickle.PickleBuffer] = []
        rest = pickle.dumps(inputs, protocol=5, buffer_callback=buffers.append)
        places: list[tuple[int, int, bool]] = []
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as file:
            for buffer in buffers:
                with buffer.raw() as raw:
                    places.append((file.tell(), raw.nbytes, raw.readonly))
                    file.write(raw)
                file.write(bytes(-file.tell() % _ALIGN))
            start = file.tell()
            file.write(pickle.dumps((rest, places)))
            file.write(start.to_bytes(8, "little"))
        scratch.replace(path)

    @staticmethod
    def load(path: Path) -> BacktestInputs:
        """Return the inputs in ``path``; their arrays lie in memory once for all processes; nothing is written back."""
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        start = int.from_bytes(mapped[-8:], "little")
        rest, places = pickle.loads(mapped[start:-8])  # noqa: S301 - written by this program a moment ago
        buffers = [mapped[a : a + n].toreadonly() if is_fixed else mapped[a : a + n] for a, n, is_fixed in places]
        inputs: BacktestInputs = pickle.loads(rest, buffers=buffers)  # noqa: S301 - the same
        return inputs


def run_here(inputs: BacktestInputs, runs: Sequence[GridRun], journal: Path, on_done: OnDone, lake: Path | None = None) -> None:
    """Run ``runs`` one after the other in this process."""
    book = Journal(journal)
    for run in runs:
        book.write(run_one(inputs, run, lake))
        on_done(run)


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Connection
    run: GridRun | None = None


class LocalWorkers:
    """Worker processes on this machine.

    Parameters
    ----------
    n_workers : int
        How many.
    shared, journal : Path
        File of :class:`SharedInputs`, and folder of the journal.
    lake : Path, optional
        Root of the lake that has finer bars to trade on.
    """

    def __init__(self, n_workers: int, shared: Path, journal: Path, lake: Path | None = None) -> None:
        self._n_workers = n_workers
        self._shared = shared
        self._journal = journal
        self._lake = lake
        self._workers: list[_Worker] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers now alive."""
        return tuple(worker.process.pid for worker in self._workers)

    def run(self, runs: Sequence[GridRun], on_done: OnDone) -> None:
        """Run ``runs``; return when all are journalled.

        Raises
        ------
        UserError
            If a run cannot be carried out, or ended ``MOST_DEATHS`` workers.
        """
        waiting, deaths = list(reversed(runs)), dict.fromkeys((run.run_id for run in runs), 0)
        try:
            while waiting or any(worker.run for worker in self._workers):
                while waiting and len(self._workers) < self._n_workers:
                    self._workers.append(self._start())
                for worker in self._workers:
                    if worker.run is None and waiting:
                        worker.run = waiting.pop()
                        self._send(worker, worker.run)
                for worker in self._answering():
                    self._take(worker, waiting, deaths, on_done)
        finally:
            self._stop()

    def _start(self) -> _Worker:
        # A forked child would inherit other threads' locks in whatever state they are; a spawned one starts clean.
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._shared, self._journal, self._lake), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    @staticmethod
    def _send(worker: _Worker, run: GridRun) -> None:
        try:
            worker.pipe.send(run)
        except OSError:
            return  # it is dead, which the wait will tell

    def _answering(self) -> list[_Worker]:
        ready = wait([w.pipe for w in self._workers] + [w.process.sentinel for w in self._workers])
        return [w for w in self._workers if w.pipe in ready or w.process.sentinel in ready]

    def _take(self, worker: _Worker, waiting: list[GridRun], deaths: dict[str, int], on_done: OnDone) -> None:
        run = worker.run
        try:
            answer: UserError | None = worker.pipe.recv()
        except (EOFError, OSError):
            self._workers.remove(worker)
            worker.process.join()
            if run is not None:
                deaths[run.run_id] += 1
                if deaths[run.run_id] >= MOST_DEATHS:
                    code = worker.process.exitcode
                    raise UserError(
                        f"{', '.join(run.overrides)}: ended {MOST_DEATHS} worker processes (exit code {code})",
                        "run it alone with the same --set to see why; too little memory ends processes too",
                    ) from None
                waiting.append(run)
            return
        worker.run = None
        if answer is not None:
            raise answer
        if run is not None:
            on_done(run)

    def _stop(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
            worker.process.join()
        self._workers.clear()


def _work(pipe: Connection, shared: Path, journal: Path, lake: Path | None) -> None:
    """Live as a worker: run what comes through ``pipe`` until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    inputs, book = SharedInputs.load(shared), Journal(journal)
    while True:
        try:
            run: GridRun = pipe.recv()
            if book.read(run.run_id) is None:
                book.write(run_one(inputs, run, lake))
            pipe.send(None)
        except UserError as e:
            pipe.send(UserError(e.message, e.hint))
        except (EOFError, BrokenPipeError):
            return


def run_on_dask(
    address: str, inputs: BacktestInputs, runs: Sequence[GridRun], journal: Path, on_done: OnDone, lake: Path | None = None
) -> None:
    """Run ``runs`` on the cluster whose scheduler is at ``address``; rows come back here and are journalled here.

    The inputs are sent once to every worker; finer bars are not: each worker reads them from ``lake``, a path it must see. Runs
    of a worker that dies are given to others by the scheduler; where the inputs died with the last worker that held them, they
    are sent again.

    Raises
    ------
    UserError
        If Dask is not installed, nobody answers at ``address``, the workers have other code, or a run cannot be carried out.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError as e:
        raise UserError("--dask needs the library dask", "pip install 'crypto-qlib[dask]'") from e
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as e:
        raise UserError(f"no Dask scheduler answers at {address}", "start one with `dask scheduler` and `dask worker`") from e
    with client, client.as_current():
        _require_same_code(client)
        _collect(client, inputs, list(runs), Journal(journal), on_done, lake)


def _collect(
    client: Any, inputs: BacktestInputs, runs: list[GridRun], book: Journal, on_done: OnDone, lake: Path | None
) -> None:
    from distributed import as_completed  # noqa: PLC0415 - an extra

    left = {run.run_id: run for run in runs}
    for attempt in range(MOST_DEATHS):
        market = client.scatter(inputs, broadcast=True)
        futures = {
            client.submit(run_one, market, run, lake, key=f"{run.run_id}-{attempt}", retries=MOST_DEATHS): run
            for run in left.values()
        }
        for future, outcome in as_completed(list(futures), with_results=True, raise_errors=False):
            run = futures[future]
            if future.status == "finished" and isinstance(outcome, RunRow):
                book.write(outcome)
                del left[run.run_id]
                on_done(run)
            elif future.status == "error" and isinstance(outcome[1], UserError):
                raise outcome[1]
        if not left:
            return
    first = next(iter(left.values()))
    raise UserError(
        f"{', '.join(first.overrides)}: the cluster's workers died of it or with it {MOST_DEATHS} times",
        "look at the workers' logs; too little memory ends workers too",
    )


def _require_same_code(client: Any) -> None:
    ours, theirs = code_identity(), client.run(code_identity)
    other = sorted(worker for worker, code in theirs.items() if code != ours)
    if not theirs:
        raise UserError("the Dask scheduler has no workers", "start some with `dask worker ADDRESS`")
    if other:
        raise UserError(f"the worker {other[0]} runs other code than this process", "install the same version everywhere")

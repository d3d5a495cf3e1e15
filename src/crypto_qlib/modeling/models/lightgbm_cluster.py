"""One LightGBM training with its rows spread over the workers of a Dask cluster, for data that one machine cannot hold.

1. The driver writes labels, weights and bars of the training rows once; a share is a span of whole bars of them.
2. Each worker maps the saved features, bins its share like the reference that *every* worker places on the same rows, a batch
   of rows at a time, and joins the others by LightGBM's own network (``tree_learner = data``): histograms are summed, each
   worker grows the same trees.
3. No worker sees the validation rows. All rounds are grown, and the driver keeps as many trees as early stopping would.

``lightgbm.dask`` does the same but for three things that change the trees: it lets each worker place bins on its own share,
starts from the mean of the workers' means however unequal they are, and cannot stop early. Here neither the number of workers
nor the cut changes a tree.

What a machine alone grows is the same too, up to rounding, where every row weighs the same in the loss: regression without
weights. Elsewhere LightGBM's data-parallel learner reckons a leaf's rows from its sum of hessians where the serial one counts
them, so ``min_data_in_leaf`` stops other splits and the trees differ here and there.
Source: https://lightgbm.readthedocs.io/en/stable/Parallel-Learning-Guide.html
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_files import load_feature_frame
from crypto_qlib.modeling.dask_cluster import dask_client
from crypto_qlib.modeling.models.lightgbm_bins import bin_reference, binning

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

ROWS_FILE: Final = "cluster_rows"
"""Folder of the arrays the workers read, below the artefact's while it trains."""
BATCH_ROWS: Final = 65_536
ATTEMPTS: Final = 3
"""Trainings begun before a cluster that loses workers is given up."""
SOCKET_TIMEOUT_MIN: Final = 10
_POLL_S: Final = 0.5
_NETWORK_BROKE: Final = ("Socket", "Binding port", "Connect", "connect")
"""In the messages of LightGBM's network."""
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The labelled training rows, as files every worker can read.

    Parameters
    ----------
    features : str
        Folder of the saved feature frame.
    folder : str
        Where ``sample``, ``label``, ``bar`` and perhaps ``weight`` lie as ``.npy``.
    bin_bars : (int, int)
        Decision bars the bins are placed on.
    """

    features: str
    folder: str
    bin_bars: tuple[int, int]

    def array(self, name: str) -> Any:
        """Return one array, memory-mapped, or ``None`` where there is none."""
        path = Path(self.folder) / f"{name}.npy"
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

    def write(self, **arrays: Any) -> None:
        """Write the arrays that are not ``None``."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        for name, values in arrays.items():
            if values is not None:
                np.save(Path(self.folder) / f"{name}.npy", np.asarray(values))


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker trains on.

    Parameters
    ----------
    rows : TrainingRows
        All rows.
    span : (int, int)
        Its part of them: whole bars.
    params : dict
        LightGBM's parameters, those of the network among them.
    rounds : int
        Trees.
    start : float
        Score every row starts from, which the first tree is given at the end; NaN = 0, and left to LightGBM.
    topic : str
        Where the number of trees grown is told; empty = nowhere.
    """

    rows: TrainingRows
    span: tuple[int, int]
    params: dict[str, Any]
    rounds: int
    start: float
    topic: str


class _MappedRows(lgb.Sequence):  # type: ignore[misc]
    """Rows of a memory-mapped matrix, given to LightGBM a batch at a time."""

    batch_size = BATCH_ROWS

    def __init__(self, values: npt.NDArray[np.float32], sample: Int64Array) -> None:
        self._values, self._sample = values, sample

    def __getitem__(self, at: Any) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(self._values[self._sample[at]])

    def __len__(self) -> int:
        return int(self._sample.size)


def shares_of(bar: Int64Array, n: int) -> list[tuple[int, int]]:
    """Return up to ``n`` spans of rows, of about equal length, cut between bars.

    Parameters
    ----------
    bar : (n_rows,) int64
        Bar of each row, not decreasing.
    n : int
        Spans wanted; fewer where there are fewer bars.
    """
    starts = np.flatnonzero(np.diff(bar, prepend=bar[0] - 1))
    ideal = np.linspace(0, bar.size, min(n, starts.size) + 1)[1:-1]
    inner = {int(starts[np.abs(starts - cut).argmin()]) for cut in ideal} - {0}
    return list(pairwise([0, *sorted(inner), bar.size]))


def starting_score(objective: str, label: FloatArray, weight: FloatArray | None) -> float:
    """Return the constant that LightGBM boosts from on one machine: mean, log odds of the mean, or NaN for a ranking."""
    if objective == "ranking":
        return math.nan
    # LightGBM keeps both as float32.
    values, weights = (np.asarray(a, np.float32).astype(np.float64) for a in (label, np.ones(1) if weight is None else weight))
    mean = float((values * weights).sum() / np.broadcast_to(weights, values.shape).sum())
    return mean if objective == "regression" else math.log(mean / (1.0 - mean))


def grow_share(share: Share) -> str:
    """Grow the trees together with the other workers; return the model's text, the same on each."""
    frame = load_feature_frame(Path(share.rows.features))
    first, stop = share.span
    sample, label, bar, weight = (share.rows.array(name) for name in ("sample", "label", "bar", "weight"))
    if label is None:
        raise UserError(f"a Dask worker sees no {share.rows.folder}", "model.dask needs a folder that all workers share")
    placed = frame.row_span(*share.rows.bin_bars)
    like = bin_reference(frame.values, np.arange(placed.start, placed.stop, dtype=np.int64), frame.names, share.params)
    sizes = np.unique(np.asarray(bar[first:stop]), return_counts=True)[1]
    has_start = math.isfinite(share.start)
    train_set = lgb.Dataset(
        _MappedRows(frame.values, np.asarray(sample[first:stop])),
        label=np.asarray(label[first:stop]),
        weight=None if weight is None else np.asarray(weight[first:stop]),
        group=sizes if share.params["objective"] == "lambdarank" else None,
        init_score=np.full(stop - first, share.start) if has_start else None,
        reference=like,
        params=binning(share.params),
    ).construct()
    booster = lgb.Booster(share.params | {"boost_from_average": not has_start}, train_set)
    try:
        for k in range(share.rounds):
            if booster.update():
                break
            _tell(share.topic, k + 1)
    finally:
        booster.free_network()
    if has_start:
        for leaf in range(_n_leaves(booster)):
            booster.set_leaf_output(0, leaf, booster.get_leaf_output(0, leaf) + share.start)
    return str(booster.model_to_string())


def _n_leaves(booster: lgb.Booster) -> int:
    return int(booster.dump_model(num_iteration=1)["tree_info"][0]["num_leaves"])


def _tell(topic: str, rounds: int) -> None:
    if topic:
        import distributed  # noqa: PLC0415 - an extra

        distributed.get_worker().log_event(topic, rounds)


def _ready() -> tuple[str, int]:
    """Return this worker's LightGBM version and a port that is free."""
    with socket.socket() as s:
        s.bind(("", 0))
        return lgb.__version__, int(s.getsockname()[1])


class _WorkerLostError(Exception):
    """A worker went away, or could not reach the others."""


def grow_on_cluster(
    address: str, rows: TrainingRows, params: dict[str, Any], rounds: int, start: float, told: Callable[[int], None]
) -> lgb.Booster:
    """Grow ``rounds`` trees on the workers of the scheduler at ``address``.

    Parameters
    ----------
    address : str
        E.g. ``tcp://10.0.0.5:8786``; its workers must see the files of ``rows`` under the same paths.
    rows : TrainingRows
        What to learn from.
    params : dict
        LightGBM's parameters.
    rounds : int
        Trees.
    start : float
        As :func:`starting_score` gives it.
    told : callable
        Told how many trees there are.

    Raises
    ------
    UserError
        If the scheduler does not answer or has no workers, a worker has another LightGBM or cannot read the files, or workers
        were lost three times.
    """
    with dask_client(address) as client:
        topic = f"crypto_qlib/{rows.folder}"
        client.subscribe_topic(topic, lambda event: told(int(event[1])))
        for attempt in range(ATTEMPTS):
            try:
                return lgb.Booster(model_str=_grow_once(client, address, rows, params, rounds, start, topic))
            except _WorkerLostError as e:
                _LOG.warning("a Dask worker was lost in training (%s), attempt %d of %d", e, attempt + 1, ATTEMPTS)
                lost = e
        raise UserError(
            f"Dask workers were lost in {ATTEMPTS} trainings, the last time: {lost}", "see their logs; give them more memory"
        )


def _grow_once(
    client: Any, address: str, rows: TrainingRows, params: dict[str, Any], rounds: int, start: float, topic: str
) -> str:
    workers = sorted(client.nthreads())
    if not workers:
        raise UserError(f"the Dask scheduler at {address} has no workers", f"start some with `dask worker {address}`")
    spans = shares_of(rows.array("bar"), len(workers))
    workers = workers[: len(spans)]
    try:
        ready = client.run(_ready, workers=workers)
    except ModuleNotFoundError as e:
        raise UserError(f"a Dask worker lacks {e.name}", "install crypto-qlib on every worker") from e
    except OSError as e:
        raise _WorkerLostError(str(e)) from e
    other = {version for version, _ in ready.values()} - {lgb.__version__}
    if other:
        raise UserError(
            f"a Dask worker has LightGBM {other.pop()}, here is {lgb.__version__}", "install the same version everywhere"
        )
    network: dict[str, Any] = {}
    if len(workers) > 1:
        machines = ",".join(f"{urlparse(w).hostname}:{ready[w][1]}" for w in workers)
        network = {"machines": machines, "num_machines": len(workers), "tree_learner": "data", "time_out": SOCKET_TIMEOUT_MIN}
    else:
        start = math.nan  # one worker boosts from the mean by itself
    threads = client.nthreads(workers)
    shares = [
        Share(rows, span, params | network | ({"local_listen_port": ready[w][1]} if network else {})
              | {"num_threads": threads[w]}, rounds, start, topic * (k == 0))
        for k, (w, span) in enumerate(zip(workers, spans, strict=True))
    ]  # fmt: skip
    return _gathered(client, workers, shares)


def _gathered(client: Any, workers: list[str], shares: list[Share]) -> str:
    """Return the text of the first worker once all have finished; look out for workers that go away meanwhile."""
    import distributed  # noqa: PLC0415 - an extra

    tasks = [
        client.submit(grow_share, share, workers=[w], allow_other_workers=False, pure=False)
        for w, share in zip(workers, shares, strict=True)
    ]
    try:
        while True:
            for task in tasks:
                if task.status in ("error", "cancelled", "lost"):
                    raise _cause(task)
            if all(task.status == "finished" for task in tasks):
                return str(tasks[0].result())
            gone = set(workers) - set(client.nthreads())
            if gone:
                raise _WorkerLostError(f"{gone.pop()} has gone")
            with suppress(TimeoutError):
                distributed.wait(tasks, timeout=_POLL_S)
    finally:
        client.cancel(tasks)


def _cause(task: Any) -> Exception:
    """Return why a share was not trained: a network that broke is another worker's end; all else is said as it is."""
    found = task.exception() if task.status == "error" else None
    if isinstance(found, UserError):
        return found
    if found is None or type(found).__name__ == "KilledWorker":
        return _WorkerLostError(str(found or f"its task is {task.status}"))
    if isinstance(found, lgb.basic.LightGBMError) and any(words in str(found) for words in _NETWORK_BROKE):
        return _WorkerLostError(str(found))
    return UserError(f"training on a Dask worker failed: {type(found).__name__}: {found}", "see the worker's log")

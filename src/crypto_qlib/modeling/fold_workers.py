"""Train many models at once: rolling steps on worker processes of this machine, or on the workers of a Dask cluster.

A job names files, not arrays: the saved feature frame is mapped, so its pages lie in memory once for all local workers, and a
Dask worker reads it from the same path (a shared folder). The artefact of a step is the same bits whoever trained it, and it is
written last, so a worker or a parent that dies loses the step it was in and nothing else.
"""

from __future__ import annotations

import io
import multiprocessing as mp
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_files import load_feature_frame
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.artefact import TrainedModel, load_model
from crypto_qlib.modeling.dask_cluster import dask_client
from crypto_qlib.modeling.families import frame_bins
from crypto_qlib.modeling.labels import Labels, TradeRule
from crypto_qlib.modeling.qlib_rolling import rolling_splits
from crypto_qlib.modeling.rolling import RollingRun, fold_folder, keep_newest, stitched_scores, train_fold, train_rolling
from crypto_qlib.modeling.splits import TimeSplit, split_bars
from crypto_qlib.modeling.train_model import Fold, train_model
from crypto_qlib.settings.schema import ModelSettings
from crypto_qlib.store.parquet_file import write_atomic

Progress = Callable[[float], None]

LABELS_FILE = "labels.npz"
BINS_FILE = "bins.bin"
"""Binned rows, written for the workers and removed when all steps are trained."""


@dataclass(frozen=True, slots=True)
class FoldJob:
    """One step to be trained.

    Parameters
    ----------
    features, labels, folder : str
        Saved feature frame, saved labels, and where the artefact goes.
    settings : ModelSettings
        ``threads`` is what one worker may use.
    split : TimeSplit
        Segments of the step.
    identity : str
        Run id.
    rule : TradeRule
        How the strategy trades.
    bins : str
        File of the binned rows all steps share; empty = none.
    """

    features: str
    labels: str
    folder: str
    settings: ModelSettings
    split: TimeSplit
    identity: str
    rule: TradeRule
    bins: str = ""


def save_labels(labels: Labels, path: Path) -> Path:
    """Write labels as plain arrays (no pickle) and return the path."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f.name: np.asarray(getattr(labels, f.name)) for f in fields(labels)}
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
    return path


def load_labels(path: Path) -> Labels:
    """Return what :func:`save_labels` wrote."""
    with np.load(path, allow_pickle=False) as kept:
        raw = {f.name: kept[f.name] for f in fields(Labels)}
    return Labels(
        **raw
        | {
            "kind": str(raw["kind"]),
            "horizon_bars": int(raw["horizon_bars"]),
            "frame_ns": int(raw["frame_ns"]),
            "symbols": tuple(str(s) for s in raw["symbols"]),
        }
    )


def train_job(job: FoldJob) -> str:
    """Train one step, or find it trained already; return its artefact's folder."""
    frame, labels = load_feature_frame(Path(job.features)), load_labels(Path(job.labels))
    bins = frame_bins(job.settings, frame, job.split.bins or (0, 0), Path(job.bins)) if job.bins else None
    fold = Fold(job.split, bins)
    train_fold(frame, labels, job.settings, Path(job.folder), fold, identity=job.identity, rule=job.rule)
    return job.folder


def train_rolling_on_workers(
    features: Path,
    labels: Labels,
    settings: ModelSettings,
    folder: Path,
    *,
    identity: str = "",
    rule: TradeRule | None = None,
    progress: Progress | None = None,
) -> RollingRun:
    """Train every step of a rolling run on workers; the result is that of :func:`~crypto_qlib.modeling.rolling.train_rolling`.

    Parameters
    ----------
    features : Path
        Folder of the saved feature frame.
    labels, folder, identity, rule, progress
        As in ``train_rolling``.
    settings : ModelSettings
        ``rolling.workers`` processes of this machine, each with ``threads`` of the settings or one thread where that is 0; or
        the workers of the scheduler at ``rolling.dask``, which must see ``features`` and ``folder`` under the same paths.

    Raises
    ------
    UserError
        As ``train_rolling``; if a worker process was ended from outside; if the scheduler cannot be reached.
    """
    frame = load_feature_frame(features)
    kept = save_labels(labels, folder / LABELS_FILE)
    splits = rolling_splits(frame.ts_open, settings, labels.horizon_bars)
    chosen = settings if settings.threads else settings.model_copy(update={"threads": 1})
    bins = frame_bins(settings, frame, splits[0].bins or (0, 0))
    if bins is not None:
        bins.write(folder / BINS_FILE)
    binned = str(folder / BINS_FILE) if bins is not None else ""
    del bins
    jobs = [
        FoldJob(str(features), str(kept), str(fold_folder(folder, k)), chosen, split, identity, rule or TradeRule(), binned)
        for k, split in enumerate(splits)
    ]
    for _ in _on_dask(settings.rolling.dask, jobs) if settings.rolling.dask else _on_processes(settings.rolling.workers, jobs):
        if progress is not None:
            progress(1.0 / len(jobs))
    (folder / BINS_FILE).unlink(missing_ok=True)
    keep_newest(folder, len(jobs))
    models = tuple(load_model(Path(job.folder)) for job in jobs)
    return RollingRun(models, stitched_scores(models, frame))


def _on_processes(n_workers: int, jobs: Sequence[FoldJob]) -> Iterator[str]:
    # Spawned, not forked: a fork would copy locks of numba's and LightGBM's threads in whatever state they are.
    with ProcessPoolExecutor(n_workers, mp.get_context("spawn")) as pool:
        try:
            for done in as_completed([pool.submit(train_job, job) for job in jobs]):
                yield done.result()
        except BrokenProcessPool as e:
            raise UserError(
                "a training process was ended from outside (too little memory ends processes too)",
                "run it again: finished steps are kept; use fewer workers",
            ) from e


def _on_dask(address: str, jobs: Sequence[FoldJob]) -> Iterator[str]:
    with dask_client(address) as client:
        import distributed  # noqa: PLC0415 - an extra

        for done in distributed.as_completed([client.submit(train_job, job, pure=False) for job in jobs]):
            yield str(done.result())


def train_chosen(
    features: Path,
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    folder: Path,
    *,
    identity: str,
    rule: TradeRule,
    progress: Progress,
) -> TrainedModel:
    """Train as the settings say - one model, rolling steps here, or rolling steps on workers - and return the one that trades.

    Parameters
    ----------
    features : Path
        Where ``frame`` is saved.
    frame, labels, settings, folder, identity, rule, progress
        As in :func:`~crypto_qlib.modeling.train_model.train_model`.
    """
    rolling = settings.rolling
    if not rolling.step_bars:
        whole = Fold(split_bars(frame.n_bars, settings, labels.horizon_bars), saved=features)
        return train_model(frame, labels, settings, folder, identity=identity, rule=rule, progress=progress, fold=whole)
    if rolling.workers > 1 or rolling.dask:
        run = train_rolling_on_workers(features, labels, settings, folder, identity=identity, rule=rule, progress=progress)
    else:
        run = train_rolling(frame, labels, settings, folder, identity=identity, rule=rule, progress=progress, saved=features)
    return run.newest

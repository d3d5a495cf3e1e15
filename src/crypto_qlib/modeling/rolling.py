"""Train one model per step of time and score each on the bars after it only: an out-of-sample history of a retrained model.

A step is a training like any other, in a folder of its own, so the folds can be trained in any order, on several processes or
on a Dask cluster, and a killed run goes on with the folds that are missing. The stitched scores are those of the folds, bar by
bar; the newest fold's model is the one that would trade now, and its artefact is copied beside the folders of the steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.artefact import SUMS_FILE, TrainedModel, load_model
from crypto_qlib.modeling.families import frame_bins
from crypto_qlib.modeling.labels import Labels, TradeRule
from crypto_qlib.modeling.qlib_rolling import rolling_splits
from crypto_qlib.modeling.train_model import Fold, predict_scores, train_model
from crypto_qlib.settings.schema import ModelSettings

Progress = Callable[[float], None]

WITHOUT_EFFECT: Final = ("threads", "tracking", "promotion", "update", "trades")
"""Model settings that change no model."""


@dataclass(frozen=True, slots=True)
class RollingRun:
    """What a rolling training gave.

    Parameters
    ----------
    models : tuple of TrainedModel
        One per step, oldest first.
    scores : ScorePanel
        Each step's test bars scored by its own model.
    """

    models: tuple[TrainedModel, ...]
    scores: ScorePanel

    @property
    def newest(self) -> TrainedModel:
        """Return the model of the last step."""
        return self.models[-1]


def fold_folder(folder: Path, k: int) -> Path:
    """Return the artefact folder of step ``k``."""
    return folder / f"fold{k:03d}"


def model_key(settings: ModelSettings) -> dict[str, Any]:
    """Return the settings that can change a model, as plain values."""
    return settings.model_dump(
        exclude={**dict.fromkeys(WITHOUT_EFFECT, True), "rolling": {"workers", "dask"}, "tuning": {"storage"}}
    )


def train_fold(
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    folder: Path,
    fold: Fold,
    *,
    identity: str = "",
    rule: TradeRule | None = None,
) -> TrainedModel:
    """Train one step, or load it where ``folder`` holds it already (same identity, settings and segments)."""
    if (folder / SUMS_FILE).is_file():
        done = load_model(folder)
        same = [model_key(m) for m in (done.asked, settings)]
        if same[0] == same[1] and (done.identity, done.split) == (identity, fold.split):
            return done
    return train_model(frame, labels, settings, folder, identity=identity, fold=fold, rule=rule)


def train_rolling(
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    folder: Path,
    *,
    identity: str = "",
    rule: TradeRule | None = None,
    progress: Progress | None = None,
    saved: Path | None = None,
) -> RollingRun:
    """Train every step in time order and stitch the scores.

    Parameters
    ----------
    frame, labels, settings, identity, rule, progress
        As in :func:`~crypto_qlib.modeling.train_model.train_model`; ``settings.rolling.step_bars`` > 0.
    folder : Path
        Holds a folder per step, and the newest step's artefact itself.
    saved : Path, optional
        Where ``frame`` is saved; looked at with ``settings.dask``.

    Raises
    ------
    UserError
        As ``train_model`` and ``rolling_splits``.
    """
    splits = rolling_splits(frame.ts_open, settings, labels.horizon_bars)
    bins = frame_bins(settings, frame, splits[0].bins or (0, 0))
    models = []
    for k, split in enumerate(splits):
        fold = Fold(split, bins, saved)
        models.append(train_fold(frame, labels, settings, fold_folder(folder, k), fold, identity=identity, rule=rule))
        if progress is not None:
            progress(1.0 / len(splits))
    keep_newest(folder, len(splits))
    return RollingRun(tuple(models), stitched_scores(tuple(models), frame))


def keep_newest(folder: Path, n_steps: int) -> None:
    """Remove steps of an earlier, longer run, and copy the newest step's artefact beside the steps."""
    for stale in folder.glob("fold*"):
        if int(stale.name.removeprefix("fold")) >= n_steps:
            shutil.rmtree(stale)
    copy_artefact(fold_folder(folder, n_steps - 1), folder)


def copy_artefact(source: Path, target: Path) -> None:
    """Copy an artefact's files; the checksums come last, so that a torn copy is refused."""
    (target / SUMS_FILE).unlink(missing_ok=True)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SUMS_FILE))
    shutil.copy2(source / SUMS_FILE, target / SUMS_FILE)


def out_of_sample_scores(model: TrainedModel, folder: Path, frame: FeatureFrame, segment: str = "test") -> ScorePanel:
    """Return the scores a backtest may trade: those of the rolling steps below ``folder``, or the one model's ``segment``.

    A rolling run has no scores but of test bars: ``segment`` is looked at only where there is one model.
    """
    if not model.settings.rolling.step_bars:
        return predict_scores(model, frame, segment=segment)
    folds = sorted(folder.glob("fold*"))
    return stitched_scores(tuple(load_model(fold) for fold in folds), frame)


def stitched_scores(models: tuple[TrainedModel, ...], frame: FeatureFrame) -> ScorePanel:
    """Return the test scores of each model, joined in time order.

    Raises
    ------
    UserError
        If there is no model, or two models' tests overlap.
    """
    if not models:
        raise UserError("a rolling run without a single step has no scores", "lower model.rolling.step_bars")
    parts = [predict_scores(m, frame, segment="test") for m in models]
    as_of = np.concatenate([p.as_of_ns for p in parts])
    if np.any(np.diff(as_of) <= 0):
        raise UserError("the test segments of the rolling steps overlap", "train them from one run's settings")
    return ScorePanel(
        as_of,
        frame.symbols,
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("expected_return", "win_probability", "uncertainty")),
    )

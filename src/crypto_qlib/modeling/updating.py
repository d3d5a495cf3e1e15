"""Let a fitted model go on learning from the bars since its training, instead of training anew: a new version with a lineage.

1. The present grid is split as a training would split it; of its training segment only bars after the parent's are learned.
2. The family goes on from its state (:meth:`~crypto_qlib.modeling.families.UpdatableModel.update`): exactly, for the linear
   family; further trees or moved leaves; further passes of a network at a lower rate.
3. The calibration is fitted anew on the new validation segment, and the artefact names its parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.artefact import TrainedModel, load_model, save_model
from crypto_qlib.modeling.labels import Labels
from crypto_qlib.modeling.origin import Parent
from crypto_qlib.modeling.qlib_task import BarReweighter, make_dataset
from crypto_qlib.modeling.splits import MIN_SEGMENT_BARS, Segment, TimeSplit, check_no_leak, split_bars
from crypto_qlib.modeling.train_model import calibrated, check_features, check_rows, spans_of
from crypto_qlib.settings.model_schema import UpdateSettings

Progress = Callable[[float], None]


def update_model(
    parent_folder: Path,
    frame: FeatureFrame,
    labels: Labels,
    how: UpdateSettings,
    folder: Path,
    *,
    identity: str = "",
) -> TrainedModel:
    """Let the model in ``parent_folder`` learn from newer bars and save the result as a version of its own.

    Parameters
    ----------
    parent_folder : Path
        Artefact to go on from; left as it is.
    frame, labels : FeatureFrame, Labels
        The whole present history, with the parent's columns and the label of its settings.
    how : UpdateSettings
        Trees, leaves, passes.
    folder : Path
        Where the new artefact goes.
    identity : str
        Run id of the new version.

    Raises
    ------
    UserError
        If the parent is damaged, is one model per coin or a rolling run, or its columns are other ones; if there are too few
        new bars; or as a training.
    """
    parent = load_model(parent_folder)
    if parent.settings.per_symbol or parent.settings.rolling.step_bars:
        what = "one model per coin" if parent.settings.per_symbol else "a rolling run"
        raise UserError(f"{what} is not updated", "train again; rolling runs keep the steps they have")
    check_features(parent, frame)
    split = _split_since(parent, frame, labels)
    check_rows(frame, split)
    settings = parent.settings.model_copy(update={"update": how})
    predictor = parent.predictor
    predictor.settings = settings  # type: ignore[attr-defined]  # every family but the one per coin has them
    weigher = BarReweighter(labels.ts_open, labels.symbols, labels.weight) if settings.sample_weight == "uniqueness" else None
    predictor.update(make_dataset(frame, labels, split), weigher)  # type: ignore[attr-defined]
    before = parent.parent
    lineage = Parent(
        parent.identity, parent.sha256, parent.segment_ts["train"][1], 1 if before is None else before.generation + 1
    )
    updated = replace(
        parent,
        calibration=calibrated(predictor, frame, labels, settings, split.valid),
        settings=settings,
        split=split,
        segment_ts=spans_of(frame, split),
        identity=identity,
        sha256="",
        parent=lineage,
    )
    return save_model(updated, folder)


def _split_since(parent: TrainedModel, frame: FeatureFrame, labels: Labels) -> TimeSplit:
    """Return the present split with only the bars after the parent's training in ``train``."""
    whole = split_bars(frame.n_bars, parent.settings, labels.horizon_bars)
    last = parent.segment_ts["train"][1]
    first = int(np.searchsorted(frame.ts_open, last, side="right"))
    n_new = max(whole.train.stop - first, 0)
    if n_new < MIN_SEGMENT_BARS:
        raise UserError(
            f"nothing to learn: {n_new} training bars since {iso(last)}, where the model's training ended (at least "
            f"{MIN_SEGMENT_BARS} are needed)",
            "collect newer bars first",
        )
    split = replace(whole, train=Segment("train", first, whole.train.stop))
    check_no_leak(split)
    return split

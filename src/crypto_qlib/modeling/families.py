"""Model families by their settings name; a family's libraries are imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.qlib_task import BarReweighter
from crypto_qlib.modeling.row_batch import RowBatch
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[float], None]


class ScoringModel(Protocol):
    """What a fitted model must be able to do."""

    @property
    def FILES(self) -> tuple[str, ...]:  # noqa: N802 - a constant of most families
        """Return the artefact's files, relative to its folder."""
        ...

    @property
    def context_bars(self) -> int:
        """Return how many bars before the first scored one a prediction looks at."""
        ...

    def predict_batch(self, batch: RowBatch, threads: int) -> FloatArray:
        """Return raw predictions, shape ``(batch.n_scored,)``; zero means no opinion, the sign is the direction."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model below ``folder`` without pickle."""
        ...

    def diagnostics(self) -> dict[str, float]:
        """Return a few numbers about the fit."""
        ...

    def importance(self) -> FloatArray:
        """Return one importance per feature."""
        ...


class TrainableModel(ScoringModel, Protocol):
    """A family before its training, on Qlib's model interface.

    Attributes
    ----------
    on_score : callable or None
        Told (pass, best validation IC so far) while it trains, where it trains in passes; what it raises ends the training.
    """

    on_score: Callable[[int, float], None] | None

    def fit(self, dataset: Any, reweighter: BarReweighter | None = None) -> None:
        """Train on segment ``train`` of a Qlib ``DatasetH``, stop or choose on ``valid``."""
        ...


_CLASSES: Final = {
    "lightgbm": ("lightgbm_model", "LightGBMModel"),
    "linear": ("linear_model", "LinearModel"),
    "lstm": ("net_model", "NetModel"),
    "gru": ("net_model", "NetModel"),
    "transformer": ("net_model", "NetModel"),
    "tft": ("net_model", "NetModel"),
    "ensemble": ("ensemble_model", "EnsembleModel"),
}
"""Module below ``modeling.models`` and class of each family."""


class UpdatableModel(ScoringModel, Protocol):
    """A fitted family that can go on learning.

    Attributes
    ----------
    settings : ModelSettings
        As it was trained, with the ``update`` wanted.
    """

    settings: ModelSettings

    def update(self, dataset: Any, reweighter: BarReweighter | None = None) -> None:
        """Learn from segment ``train``, bars it has not seen, and stop or choose on ``valid``."""
        ...


def family_class(name: str) -> Any:
    """Return the class of family ``name``.

    Raises
    ------
    UserError
        If a library it needs is not installed.
    """
    module, class_name = _CLASSES[name]
    try:
        return getattr(import_module(f"crypto_qlib.modeling.models.{module}"), class_name)
    except ModuleNotFoundError as e:
        missing = f"model.name = {name} needs {e.name}, which is not installed"
        raise UserError(missing, "pip install 'crypto-qlib[torch]'") from e


def new_model(settings: ModelSettings, progress: Progress | None = None, checkpoint: Path | None = None) -> TrainableModel:
    """Return an untrained model of the family ``settings.name``.

    Parameters
    ----------
    settings : ModelSettings
        Family and hyper-parameters.
    progress : callable, optional
        Told the fraction of the training just finished.
    checkpoint : Path, optional
        Folder where a family that can resume keeps its checkpoint.
    """
    chosen = family_class(settings.name)
    found: TrainableModel = chosen(settings, progress, checkpoint)
    return found


def frame_bins(settings: ModelSettings, frame: FeatureFrame, bin_bars: tuple[int, int], path: Path | None = None) -> Any:
    """Return the frame as trees bin it, to be shared by many trainings, or ``None`` where the family bins nothing.

    Parameters
    ----------
    settings : ModelSettings
        Family and hyper-parameters.
    frame : FeatureFrame
        Features.
    bin_bars : (int, int)
        Decision bars the bins are placed on.
    path : Path, optional
        Where binned rows were written by another process.
    """
    if settings.per_symbol or "lightgbm" not in (settings.name, *settings.ensemble.members * (settings.name == "ensemble")):
        return None
    trees = family_class("lightgbm")(settings.model_copy(update={"name": "lightgbm"}))
    return trees.frame_bins(frame, bin_bars, path)


def load_family(folder: Path, settings: ModelSettings) -> ScoringModel:
    """Return the fitted model of family ``settings.name`` saved in ``folder``; no code in its files is run."""
    found: ScoringModel = family_class(settings.name).load(folder, settings)
    return found

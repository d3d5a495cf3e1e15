"""Linear baseline on Qlib's model interface: ridge on cross-sectionally standardised features.

Each bar's features are z-scored across the symbols of the bar, cut at three sigmas, and set to zero where missing; market-wide
features (equal for all symbols of a bar) vanish by construction. The penalty is chosen on validation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.model.base import Model

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.jit import njit
from crypto_qlib.modeling.qlib_task import BarReweighter, WindowedRows, prediction_series, windowed_rows
from crypto_qlib.modeling.row_batch import RowBatch
from crypto_qlib.modeling.training_checks import check_no_leaky_feature, check_trainable
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]

Z_LIMIT: Final = 3.0
PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties tried, as multiples of the number of training rows."""
_CHUNK_ROWS: Final = 16_384


@njit
def standardise_bars(values: npt.NDArray[np.float32], bar: npt.NDArray[np.int64]) -> FloatArray:
    """Return features z-scored within each bar, shape of ``values``, cut at three sigmas, 0 where missing or without spread."""
    result = np.zeros(values.shape)
    start = 0
    while start < values.shape[0]:
        stop = start
        while stop < values.shape[0] and bar[stop] == bar[start]:
            stop += 1
        for j in range(values.shape[1]):
            total = 0.0
            count = 0
            for i in range(start, stop):
                if math.isfinite(values[i, j]):
                    total += values[i, j]
                    count += 1
            if count > 1:
                mean = total / count
                square = 0.0
                for i in range(start, stop):
                    if math.isfinite(values[i, j]):
                        square += (values[i, j] - mean) ** 2
                std = math.sqrt(square / count)
                if std > 1e-9 * abs(mean):
                    for i in range(start, stop):
                        if math.isfinite(values[i, j]):
                            result[i, j] = min(max((values[i, j] - mean) / std, -Z_LIMIT), Z_LIMIT)
        start = stop
    return result


@njit
def _dot_rows(rows: FloatArray, weights: FloatArray) -> FloatArray:
    """Return ``rows @ weights`` summed in one fixed order, so that a row's value does not depend on its batch."""
    result = np.zeros(rows.shape[0])
    for i in range(rows.shape[0]):
        total = 0.0
        for j in range(rows.shape[1]):
            total += rows[i, j] * weights[j]
        result[i] = total
    return result


def _bar_chunks(bar: npt.NDArray[np.int64]) -> list[slice]:
    """Return row slices of whole bars, about :data:`_CHUNK_ROWS` rows each."""
    edges = [0]
    while edges[-1] < bar.size:
        last = min(edges[-1] + _CHUNK_ROWS, bar.size) - 1
        edges.append(int(np.searchsorted(bar, bar[last], side="right")))
    return [slice(a, b) for a, b in pairwise(edges)]


class LinearModel(Model):  # type: ignore[misc]
    """Ridge regression for ``DatasetH``.

    Parameters
    ----------
    settings : ModelSettings or mapping, optional
        Only the label settings matter to it.
    progress : callable, optional
        Told the fraction of the work just finished.
    """

    FILES: Final = ("model.weights.json", "model.moments.npz")
    context_bars: Final = 0

    def __init__(
        self,
        settings: ModelSettings | dict[str, Any] | None = None,
        progress: Callable[[float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        del checkpoint  # too quick to train to need one
        self.settings = settings if isinstance(settings, ModelSettings) else ModelSettings.model_validate(settings or {})
        self.progress = progress
        self.weights: FloatArray | None = None
        self.penalty = math.nan
        self.moments: tuple[FloatArray, FloatArray, int] | None = None
        self.on_score: Callable[[int, float], None] | None = None

    def fit(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Fit on ``train``, choose the penalty by squared error on ``valid``.

        Raises
        ------
        UserError
            If there are fewer training rows than features, the labels do not vary, or a feature knows the label.
        """
        train = windowed_rows(dataset, "train")
        self.moments = None
        n_features = train.values.shape[1]
        check_trainable(train.label, 2 * n_features, f"twice {n_features} features")
        check_no_leaky_feature(train.values, train.label, train.bar, train.names, self.settings.max_feature_ic, train.sample)
        self._learn(train, dataset, reweighter)

    def update(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Add the ``train`` segment to what was learned from, and choose the penalty anew on ``valid``.

        The moments of old and new rows add up: the weights are those of a fit on all of them at once, up to rounding.

        Raises
        ------
        UserError
            If it was not fitted, a feature knows the label, or the features are other ones.
        """
        train = windowed_rows(dataset, "train")
        if self.moments is None or self.moments[1].size != train.values.shape[1]:
            raise UserError("the linear model holds no moments of these features to add to", "train again")
        check_no_leaky_feature(train.values, train.label, train.bar, train.names, self.settings.max_feature_ic, train.sample)
        self._learn(train, dataset, reweighter)

    def _learn(self, train: WindowedRows, dataset: DatasetH, reweighter: BarReweighter | None) -> None:
        weight = None if reweighter is None else reweighter.at(train.bar[train.sample], train.symbol[train.sample])
        gram, cross = self._moments(train, weight, 0.7)
        size = train.label.size
        if self.moments is not None:
            gram, cross, size = gram + self.moments[0], cross + self.moments[1], size + self.moments[2]
        self.moments = gram, cross, size
        del train
        valid = windowed_rows(dataset, "valid")
        valid_gram, valid_cross = self._moments(valid, None, 0.3)
        best = math.inf
        for penalty in PENALTIES:
            weights = np.linalg.solve(gram + penalty * size * np.eye(cross.size), cross)
            loss = float(weights @ valid_gram @ weights - 2.0 * weights @ valid_cross)
            if loss < best:
                best, self.weights, self.penalty = loss, np.asarray(weights, dtype=np.float64), penalty

    def _moments(self, data: WindowedRows, weight: FloatArray | None, share: float) -> tuple[FloatArray, FloatArray]:
        """Return ``Z'Z`` and ``Z'y`` of the standardised rows, a chunk of bars at a time."""
        n = data.values.shape[1]
        gram, cross = np.zeros((n, n)), np.zeros(n)
        bar = data.bar[data.sample]
        chunks = _bar_chunks(bar)
        for part in chunks:
            rows = standardise_bars(data.values[data.sample[part]], bar[part])
            weighed = rows if weight is None else rows * weight[part, None]
            gram += weighed.T @ rows
            cross += weighed.T @ data.label[part]
            if self.progress is not None:
                self.progress(share / len(chunks))
        return gram, cross

    def predict(self, dataset: DatasetH, segment: str | slice = "test") -> pd.Series:
        """Return raw predictions of a segment as a series over ``(datetime, instrument)``."""
        rows = windowed_rows(dataset, str(segment), learning=False)
        return prediction_series(dataset, segment, self.predict_batch(rows.batch(), 1))

    def predict_batch(self, batch: RowBatch, threads: int) -> FloatArray:
        """Return raw predictions, shape ``(batch.n_scored,)``; a row's value depends on the rows of its bar.

        Parameters
        ----------
        batch : RowBatch
            Whole bars to be scored; context is not looked at.
        threads : int
            Not used.
        """
        del threads
        if self.weights is None:
            raise UserError("the model is not trained yet")
        values, bar = batch.values[batch.start :], batch.bar[batch.start :]
        result = np.empty(batch.n_scored)
        for part in _bar_chunks(bar):
            result[part] = _dot_rows(standardise_bars(np.ascontiguousarray(values[part]), bar[part]), self.weights)
        return result

    def save(self, folder: Path) -> None:
        """Write the weights as JSON (exact round trip), and the moments they were solved from as plain arrays."""
        if self.weights is None or self.moments is None:
            raise UserError("the model is not trained yet")
        gram, cross, size = self.moments
        np.savez(folder / self.FILES[1], gram=gram, cross=cross, size=np.int64(size))
        (folder / self.FILES[0]).write_text(json.dumps({"penalty": self.penalty, "weights": self.weights.tolist()}))

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> LinearModel:
        """Return the model saved in ``folder``.

        Raises
        ------
        UserError
            If the file does not hold weights.
        """
        model = cls(settings)
        try:
            raw = json.loads((folder / cls.FILES[0]).read_text())
            model.weights, model.penalty = np.array(raw["weights"], dtype=np.float64), float(raw["penalty"])
            with np.load(folder / cls.FILES[1], allow_pickle=False) as kept:
                model.moments = kept["gram"], kept["cross"], int(kept["size"])
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise UserError(f"{folder} does not hold a linear model: {e}", "train again") from e
        return model

    def diagnostics(self) -> dict[str, float]:
        """Return the penalty chosen."""
        return {"penalty": self.penalty}

    def importance(self) -> FloatArray:
        """Return absolute weights, shape ``(n_features,)``."""
        if self.weights is None:
            raise UserError("the model is not trained yet")
        return np.abs(self.weights)

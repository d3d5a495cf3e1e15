"""Several families together, on Qlib's model interface.

Each member's raw prediction is divided by its root mean square on validation, so that none drowns the others. Then

average
    the plain mean;
stack
    non-negative weights, least squares against the label on the *first half* of validation (the calibration that follows
    sees all of it, and has two numbers to fit, so little is lost to the reuse);
regime
    such weights fitted apart for calm and for wild markets. A bar is wild where the median over its coins of ``VOL24`` lies
    above the same figure's median over validation's first half.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.model.base import Model
from scipy.optimize import nnls

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.families import ScoringModel, UpdatableModel, load_family, new_model
from crypto_qlib.modeling.qlib_task import BarReweighter, prediction_series, windowed_rows
from crypto_qlib.modeling.row_batch import RowBatch
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]

WEIGHTS_FILE: Final = "ensemble.json"
REGIME_FEATURE: Final = "VOL24"


class EnsembleModel(Model):  # type: ignore[misc]
    """An ensemble for ``DatasetH``.

    Parameters
    ----------
    settings : ModelSettings or mapping, optional
        ``ensemble`` names members and method; all else is passed on to them.
    progress : callable, optional
        Told the fraction of the training just finished.
    checkpoint : Path, optional
        Passed on to members that can resume, a subfolder each.
    """

    def __init__(
        self,
        settings: ModelSettings | dict[str, Any] | None = None,
        progress: Callable[[float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        given = settings if settings is not None else {"name": "ensemble"}
        self.settings = given if isinstance(given, ModelSettings) else ModelSettings.model_validate(given)
        self._progress = progress
        self._checkpoint = checkpoint
        self.members: tuple[ScoringModel, ...] = ()
        self.scale: FloatArray = np.empty(0)
        self.weights: FloatArray = np.empty((0, 0))
        self.regime_column = -1
        self.regime_edge = math.nan
        self.on_score: Callable[[int, float], None] | None = None

    @property
    def FILES(self) -> tuple[str, ...]:  # noqa: N802 - as the other families
        """Return the files of all members and the weights."""
        return (WEIGHTS_FILE, *(f"member{k}/{name}" for k, m in enumerate(self.members) for name in m.FILES))

    @property
    def context_bars(self) -> int:
        """Return the longest look-back of the members."""
        return max(m.context_bars for m in self.members)

    def member_settings(self, name: str) -> ModelSettings:
        """Return the settings a member trains with."""
        return self.settings.model_copy(update={"name": name})

    def fit(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Train every member, then the weights on the first half of validation.

        Raises
        ------
        UserError
            As the members; or if ``regime`` is asked for and the features lack ``VOL24``.
        """
        names = self.settings.ensemble.members
        share = 1.0 / len(names)
        trained = []
        for k, name in enumerate(names):
            progress = None if self._progress is None else (lambda done: self._progress(done * share))  # type: ignore[misc]
            folder = None if self._checkpoint is None else self._checkpoint / f"member{k}"
            member = new_model(self.member_settings(name), progress, folder)
            member.fit(dataset, reweighter)
            trained.append(member)
        self.members = tuple(trained)
        self._fit_weights(dataset)

    def update(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Let every member go on learning, then fit the weights anew."""
        for name, member in zip(self.settings.ensemble.members, self.members, strict=True):
            going_on = cast("UpdatableModel", member)
            going_on.settings = self.member_settings(name)
            going_on.update(dataset, reweighter)
        self._fit_weights(dataset)

    def _fit_weights(self, dataset: DatasetH) -> None:
        rows = windowed_rows(dataset, "valid", learning=False)
        batch = rows.batch()
        raw = self._raw(batch, self.settings.threads)
        size = np.sqrt(np.mean(raw**2, axis=1))
        self.scale = np.where(size > 0.0, size, 1.0)
        self._weigh(raw / self.scale[:, None], rows.label, batch, rows.names)

    def _weigh(self, standard: FloatArray, label: FloatArray, batch: RowBatch, names: tuple[str, ...]) -> None:
        n = len(self.members)
        self.weights = np.full((2, n), 1.0 / n)
        if self.settings.ensemble.method == "average":
            return
        bar = batch.bar[batch.start :]
        first_half = (bar < (bar[0] + bar[-1] + 1) // 2) & np.isfinite(label)
        wild = np.zeros(bar.size, dtype=np.bool_)
        if self.settings.ensemble.method == "regime":
            if REGIME_FEATURE not in names:
                raise UserError(
                    f"ensemble.method = regime needs the feature {REGIME_FEATURE}", "add technical to features.sets"
                )
            self.regime_column = names.index(REGIME_FEATURE)
            level = self._bar_volatility(batch)
            self.regime_edge = float(np.nanmedian(level[first_half]))
            wild = level > self.regime_edge
        target = label / float(np.std(label[first_half]))
        for regime in (0, 1):
            rows = first_half & (wild == bool(regime)) if self.regime_column >= 0 else first_half
            if rows.any():
                found, _ = nnls(standard[:, rows].T, target[rows])
                if found.sum() > 0.0:
                    self.weights[regime] = found / found.sum()

    def _bar_volatility(self, batch: RowBatch) -> FloatArray:
        """Return for each scored row the median of the regime feature over its bar."""
        bar = batch.bar[batch.start :]
        values = np.asarray(batch.values[batch.start :, self.regime_column], dtype=np.float64)
        return pd.Series(values).groupby(bar).transform("median").to_numpy()

    def _raw(self, batch: RowBatch, threads: int) -> FloatArray:
        return np.vstack([m.predict_batch(batch, threads) for m in self.members])

    def predict(self, dataset: DatasetH, segment: str | slice = "test") -> pd.Series:
        """Return raw predictions of a segment as a series over ``(datetime, instrument)``."""
        rows = windowed_rows(dataset, str(segment), learning=False)
        return prediction_series(dataset, segment, self.predict_batch(rows.batch(), self.settings.threads))

    def predict_batch(self, batch: RowBatch, threads: int) -> FloatArray:
        """Return the weighted mean of the members' standardised predictions, shape ``(batch.n_scored,)``."""
        if not self.members:
            raise UserError("the model is not trained yet")
        standard = self._raw(batch, threads) / self.scale[:, None]
        regime = np.zeros(batch.n_scored, dtype=np.int64)
        if self.regime_column >= 0:
            regime = (self._bar_volatility(batch) > self.regime_edge).astype(np.int64)
        result = np.zeros(batch.n_scored)
        for k in range(len(self.members)):  # in a fixed order, so that a row's sum does not depend on its batch
            result += self.weights[regime, k] * standard[k]
        return result

    def save(self, folder: Path) -> None:
        """Write the members into subfolders and the weights as JSON."""
        for k, member in enumerate(self.members):
            (folder / f"member{k}").mkdir(parents=True, exist_ok=True)
            member.save(folder / f"member{k}")
        (folder / WEIGHTS_FILE).write_text(
            json.dumps(
                {
                    "scale": self.scale.tolist(),
                    "weights": self.weights.tolist(),
                    "regime_column": self.regime_column,
                    "regime_edge": self.regime_edge if math.isfinite(self.regime_edge) else None,
                }
            )
        )

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> EnsembleModel:
        """Return the ensemble saved in ``folder``.

        Raises
        ------
        UserError
            If the weights file or a member is not what :meth:`save` writes.
        """
        model = cls(settings)
        try:
            raw = json.loads((folder / WEIGHTS_FILE).read_text())
            model.scale, model.weights = (np.array(raw[k], dtype=np.float64) for k in ("scale", "weights"))
            model.regime_column = int(raw["regime_column"])
            model.regime_edge = math.nan if raw["regime_edge"] is None else float(raw["regime_edge"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{folder / WEIGHTS_FILE} does not hold ensemble weights: {e}", "train again") from e
        model.members = tuple(
            load_family(folder / f"member{k}", model.member_settings(name)) for k, name in enumerate(settings.ensemble.members)
        )
        return model

    def diagnostics(self) -> dict[str, float]:
        """Return each member's weight (calm regime first) and its own numbers."""
        found: dict[str, float] = {}
        for k, (name, member) in enumerate(zip(self.settings.ensemble.members, self.members, strict=True)):
            calm, wild = self.weights[:, k]
            found |= {f"{name}.weight_calm": float(calm), f"{name}.weight_wild": float(wild)}
            found |= {f"{name}.{key}": value for key, value in member.diagnostics().items()}
        return found

    def importance(self) -> FloatArray:
        """Return the mean of the members' importances, each scaled to sum 1, shape ``(n_features,)``."""
        shares = [m.importance() for m in self.members]
        mean: FloatArray = np.mean([s / s.sum() if s.sum() > 0.0 else s for s in shares], axis=0)
        return mean

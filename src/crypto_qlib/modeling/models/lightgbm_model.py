"""Gradient-boosted trees on Qlib's model interface: LightGBM regression, deterministic, float32 in, text file out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.model.base import Model

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.jit import njit
from crypto_qlib.modeling.qlib_task import SegmentData, prediction_series, segment_arrays
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]

BIN_SAMPLE_ROWS: Final = 50_000
"""Rows LightGBM looks at to place its bins; sorting its default of 200,000 takes longer than the boosting."""
LABEL_CLIP_QUANTILE: Final = 0.005
"""Training labels beyond these quantiles of the *training* labels are pulled in: a squared loss would chase single crashes."""


class LightGBMModel(Model):  # type: ignore[misc]
    """LightGBM for ``DatasetH``.

    Parameters
    ----------
    settings : ModelSettings or mapping, optional
        Hyper-parameters (a mapping when built by ``qrun``).
    progress : callable, optional
        Told the fraction of boosting rounds just finished.
    """

    FILE: Final = "model.txt"

    def __init__(
        self, settings: ModelSettings | dict[str, Any] | None = None, progress: Callable[[float], None] | None = None
    ) -> None:
        self.settings = settings if isinstance(settings, ModelSettings) else ModelSettings.model_validate(settings or {})
        self.progress = progress
        self.booster: lgb.Booster | None = None

    def params(self) -> dict[str, Any]:
        """Return LightGBM's parameters; histograms column-wise, results independent of the number of threads."""
        s = self.settings
        return {
            "objective": "regression",
            "metric": "none",
            "learning_rate": s.learning_rate,
            "num_leaves": s.num_leaves,
            "min_data_in_leaf": s.min_data_in_leaf,
            "feature_fraction": s.feature_fraction,
            "lambda_l2": s.lambda_l2,
            "max_bin": s.max_bin,
            "bin_construct_sample_cnt": BIN_SAMPLE_ROWS,
            "num_threads": s.threads,
            "seed": s.seed,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }

    def fit(self, dataset: DatasetH, reweighter: Any = None) -> None:
        """Train on the ``train`` segment; stop when the mean cross-sectional IC on ``valid`` no longer rises.

        The squared error itself is a poor guide for stopping: at a realistic IC of a few percent its gain is a few hundredths
        of a percent, less than one crash bar moves it.

        Parameters
        ----------
        dataset : DatasetH
            With segments ``train`` and ``valid`` and one label column.
        reweighter : None
            Not used; Qlib's interface.

        Raises
        ------
        UserError
            If there are too few rows to grow one split, or the labels do not vary.
        """
        if reweighter is not None:
            raise UserError("LightGBMModel takes no reweighter")
        train = segment_arrays(dataset, "train", learning=True)
        low, high = check_trainable(train, self.settings)
        params = self.params()
        train_set = _binned(train, (low, high), params, None)
        del train  # LightGBM has binned it: the float copy of the segment can go
        valid = segment_arrays(dataset, "valid", learning=True)
        valid_set = _binned(valid, (low, high), params, train_set)
        outcome, bar = np.clip(valid.label, low, high), valid.bar
        del valid

        def rate(predicted: FloatArray, _data: lgb.Dataset) -> tuple[str, float, bool]:
            return "ic", mean_bar_correlation(predicted, outcome, bar), True

        self.booster = lgb.train(
            params,
            train_set,
            num_boost_round=self.settings.num_boost_round,
            valid_sets=[valid_set],
            valid_names=["valid"],
            feval=rate,
            callbacks=[lgb.early_stopping(self.settings.early_stopping_rounds, verbose=False), self._tell],
        )
        self.booster.free_dataset()

    def _tell(self, _env: Any) -> None:
        if self.progress is not None:
            self.progress(1.0 / self.settings.num_boost_round)

    def predict(self, dataset: DatasetH, segment: str | slice = "test") -> pd.Series:
        """Return raw predictions of a segment as a series over ``(datetime, instrument)``."""
        rows = segment_arrays(dataset, str(segment), learning=False)
        return prediction_series(dataset, segment, self.predict_rows(rows.values, rows.bar, self.settings.threads))

    def predict_rows(self, values: npt.NDArray[np.float32], bar: npt.NDArray[np.int64], threads: int) -> FloatArray:
        """Return raw predictions, shape ``(n_rows,)``; each row's value depends on that row alone.

        Parameters
        ----------
        values : (n_rows, n_features) float32
            Features in training order.
        bar : (n_rows,) int64
            Not used: trees read one row at a time.
        threads : int
            Threads; 1 is fastest for a single bar.
        """
        del bar
        if self.booster is None:
            raise UserError("the model is not trained yet")
        result: FloatArray = np.asarray(self.booster.predict(values, num_threads=threads), dtype=np.float64)
        return result

    def save(self, folder: Path) -> None:
        """Write the booster as LightGBM text."""
        if self.booster is None:
            raise UserError("the model is not trained yet")
        (folder / self.FILE).write_text(self.booster.model_to_string(num_iteration=self.booster.best_iteration))

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> LightGBMModel:
        """Return the model saved in ``folder``; the text format runs no code.

        Raises
        ------
        UserError
            If LightGBM cannot parse the file.
        """
        model = cls(settings)
        try:
            model.booster = lgb.Booster(model_str=(folder / cls.FILE).read_text())
        except lgb.basic.LightGBMError as e:
            raise UserError(f"{folder / cls.FILE} is not a LightGBM model: {e}", "train again") from e
        return model

    def diagnostics(self) -> dict[str, float]:
        """Return the number of trees kept."""
        if self.booster is None:
            return {"trees": 0.0}
        return {
            "trees": float(self.booster.best_iteration if self.booster.best_iteration > 0 else self.booster.current_iteration())
        }

    def importance(self) -> FloatArray:
        """Return total split gain per feature, shape ``(n_features,)``."""
        if self.booster is None:
            raise UserError("the model is not trained yet")
        return np.asarray(self.booster.feature_importance("gain"), dtype=np.float64)


@njit
def mean_bar_correlation(predicted: FloatArray, outcome: FloatArray, bar: npt.NDArray[np.int64]) -> float:
    """Return the mean over bars of the Pearson correlation across the rows of the bar; a bar without spread counts as 0.

    Parameters
    ----------
    predicted, outcome : (n_rows,) float64
        Finite values.
    bar : (n_rows,) int64
        Bar of each row, not decreasing.
    """
    total = 0.0
    bars = 0
    start = 0
    while start < bar.size:
        stop = start
        while stop < bar.size and bar[stop] == bar[start]:
            stop += 1
        mean_p = predicted[start:stop].mean()
        mean_y = outcome[start:stop].mean()
        cov = 0.0
        var_p = 0.0
        var_y = 0.0
        for k in range(start, stop):
            cov += (predicted[k] - mean_p) * (outcome[k] - mean_y)
            var_p += (predicted[k] - mean_p) ** 2
            var_y += (outcome[k] - mean_y) ** 2
        if var_p > 0.0 and var_y > 0.0:
            total += cov / math.sqrt(var_p * var_y)
        bars += 1
        start = stop
    return total / bars if bars else 0.0


def check_trainable(train: SegmentData, settings: ModelSettings) -> tuple[float, float]:
    """Return the clip bounds of the training labels.

    Raises
    ------
    UserError
        If there are fewer rows than two leaves hold, or the label is constant.
    """
    if train.label.size < 2 * settings.min_data_in_leaf:
        raise UserError(
            f"too little data: {train.label.size} labelled training rows cannot fill two leaves of {settings.min_data_in_leaf}",
            "raise data.history_days or universe.size, or lower model.min_data_in_leaf",
        )
    low, high = np.quantile(train.label, (LABEL_CLIP_QUANTILE, 1.0 - LABEL_CLIP_QUANTILE))
    if not high > low:
        raise UserError("the training label is constant: there is nothing to learn", "check the candles of the universe")
    return float(low), float(high)


def _binned(data: SegmentData, clip: tuple[float, float], params: dict[str, Any], reference: lgb.Dataset | None) -> lgb.Dataset:
    """Return the segment binned by LightGBM, its raw values released."""
    label = np.clip(data.label, clip[0], clip[1])
    names: list[str] | str = list(data.names) if reference is None else "auto"
    return lgb.Dataset(
        data.values, label=label, feature_name=names, params=dict(params), reference=reference, free_raw_data=True
    ).construct()

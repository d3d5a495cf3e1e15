"""Gradient-boosted trees on Qlib's model interface: LightGBM, deterministic, float32 in, text file out.

Three objectives: squared error on the label; log loss on its sign (the raw prediction is ``2 p - 1``); LambdaRank within each
bar (the raw prediction is the score minus its bar's mean). Zero always means no opinion.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.model.base import Model

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.models.lightgbm_bins import BIN_SAMPLE_ROWS, FrameBins, bin_reference, binning
from crypto_qlib.modeling.models.lightgbm_cluster import ROWS_FILE, TrainingRows, grow_on_cluster, starting_score
from crypto_qlib.modeling.models.lightgbm_rounds import best_round, score_of_each_round
from crypto_qlib.modeling.qlib_task import (
    BarReweighter,
    FrameDataset,
    WindowedRows,
    labelled,
    prediction_series,
    windowed_rows,
)
from crypto_qlib.modeling.row_batch import RowBatch
from crypto_qlib.modeling.stage_times import stage
from crypto_qlib.modeling.training_checks import (
    check_no_leaky_feature,
    check_trainable,
    correlation_groups,
    mean_bar_correlation,
)
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]

ROUNDS_PER_PASS: Final = 10
"""Rounds between two reports to ``on_score``."""
GRADES: Final = 16
"""Grades of relevance a bar's labels are cut into for LambdaRank."""


class LightGBMModel(Model):  # type: ignore[misc]
    """LightGBM for ``DatasetH``.

    Parameters
    ----------
    settings : ModelSettings or mapping, optional
        Hyper-parameters (a mapping when built by ``qrun``).
    progress : callable, optional
        Told the fraction of boosting rounds just finished.
    """

    FILES: Final = ("model.txt",)
    context_bars: Final = 0

    def __init__(
        self,
        settings: ModelSettings | dict[str, Any] | None = None,
        progress: Callable[[float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self._folder = checkpoint  # too quick to train to need a checkpoint; rows for a cluster lie there
        self.settings = settings if isinstance(settings, ModelSettings) else ModelSettings.model_validate(settings or {})
        self.progress = progress
        self.booster: lgb.Booster | None = None
        self._best = -math.inf
        self.on_score: Callable[[int, float], None] | None = None

    def params(self) -> dict[str, Any]:
        """Return LightGBM's parameters; histograms column-wise, results independent of the number of threads."""
        s = self.settings
        return {
            "objective": {"regression": "regression", "classification": "binary", "ranking": "lambdarank"}[s.objective],
            "metric": "none",
            "learning_rate": s.learning_rate,
            "num_leaves": s.num_leaves,
            "min_data_in_leaf": s.min_data_in_leaf,
            "feature_fraction": s.feature_fraction,
            "lambda_l2": s.lambda_l2,
            "max_bin": s.max_bin,
            "bin_construct_sample_cnt": BIN_SAMPLE_ROWS,
            "feature_pre_filter": False,
            "num_threads": s.threads,
            "seed": s.seed,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
        }

    def frame_bins(self, frame: FeatureFrame, bin_bars: tuple[int, int], path: Path | None = None) -> FrameBins:
        """Return ``frame`` binned once for many trainings with these settings, from ``path`` where it was written there."""
        if path is None:
            return FrameBins(frame, bin_bars, self.params())
        return FrameBins.opened(path, frame, bin_bars, self.params())

    def fit(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Train on the ``train`` segment; stop when the mean cross-sectional IC on ``valid`` no longer rises.

        The squared error itself is a poor guide for stopping: at a realistic IC of a few percent its gain is a few hundredths
        of a percent, less than one crash bar moves it.

        Parameters
        ----------
        dataset : DatasetH
            With segments ``train`` and ``valid`` and one label column.
        reweighter : BarReweighter, optional
            Weights of the training rows.

        Raises
        ------
        UserError
            If there are too few rows to grow one split, the labels do not vary, or a feature knows the label.
        """
        rows = windowed_rows(dataset, "train", learning=False)
        train = labelled(rows, "train")
        leaf = self.settings.min_data_in_leaf
        clip = check_trainable(train.label, 2 * leaf, f"two leaves of {leaf}", "lower model.min_data_in_leaf")
        with stage("leak check"):
            check_no_leaky_feature(
                train.values, train.label, train.bar, train.names, self.settings.max_feature_ic, train.sample
            )
        if self.settings.dask:
            self._fit_on_cluster(dataset, train, clip, reweighter)
            return
        bins = getattr(dataset, "bins", None)
        if bins is not None and not bins.fits(dataset.bin_bars, self.params()):
            bins = None
        with stage("binning"):
            reference = None if bins else bin_reference(rows.values, self._placed(dataset, rows), rows.names, self.params())
            train_set = self._binned(train, clip, bins, reference, reweighter)
        del rows, train
        valid = windowed_rows(dataset, "valid")
        with stage("binning"):
            valid_set = self._binned(valid, clip, bins, reference, None)
        outcome, bar = np.clip(valid.label, *clip), correlation_groups(valid.bar[valid.sample])
        del valid

        def rate(predicted: FloatArray, _data: lgb.Dataset) -> tuple[str, float, bool]:
            return "ic", mean_bar_correlation(predicted, outcome, bar), True

        with stage("boosting"):
            self.booster = self._boosted(train_set, valid_set, rate)
        self.booster.free_dataset()

    def _fit_on_cluster(
        self, dataset: DatasetH, train: WindowedRows, clip: tuple[float, float], reweighter: BarReweighter | None
    ) -> None:
        """Grow all trees on the workers of ``model.dask`` and keep as many as early stopping on ``valid`` would."""
        if not isinstance(dataset, FrameDataset) or dataset.saved is None or self._folder is None:
            raise UserError("model.dask needs saved features and a folder that all workers see", "train with crypto-qlib train")
        label, _, weight = self._targets(train, clip, reweighter)
        rows = TrainingRows(str(dataset.saved.resolve()), str((self._folder / ROWS_FILE).resolve()), dataset.bin_bars)
        start, told = starting_score(self.settings.objective, label, weight), 0

        def tell(grown: int) -> None:
            nonlocal told
            if self.progress is not None and grown > told:
                self.progress((grown - told) / self.settings.num_boost_round)
                told = grown

        with stage("boosting"):
            try:
                rows.write(sample=train.sample, label=label, bar=train.bar[train.sample], weight=weight)
                booster = grow_on_cluster(self.settings.dask, rows, self.params(), self.settings.num_boost_round, start, tell)
            finally:
                shutil.rmtree(rows.folder, ignore_errors=True)
        valid = windowed_rows(dataset, "valid")
        with stage("choosing the number of trees"):
            outcome, group = np.clip(valid.label, *clip), correlation_groups(valid.bar[valid.sample])
            scores = score_of_each_round(
                booster, valid.values, valid.sample, outcome, group, as_odds=self.settings.objective == "classification"
            )
        booster.best_iteration, so_far = best_round(scores, self.settings.early_stopping_rounds)
        for k in range(ROUNDS_PER_PASS, len(so_far) + 1, ROUNDS_PER_PASS):
            if self.on_score is not None:
                self.on_score(k // ROUNDS_PER_PASS, so_far[k - 1])
        self.booster = booster

    def update(self, dataset: DatasetH, reweighter: BarReweighter | None = None) -> None:
        """Go on from the trees there are: add some grown on the ``train`` segment, or fit their leaves to it.

        ``model.update.method`` = ``continue`` adds up to ``rounds`` trees and keeps as many as raise the IC on ``valid``;
        ``refit`` keeps every split and moves the leaves' values by ``1 - decay`` towards the new rows. Where the IC on
        ``valid`` is no better than before, the trees stay as they were.

        Raises
        ------
        UserError
            If it was not trained, there are too few rows, a feature knows the label, or a ranking is to be refitted.
        """
        if self.booster is None:
            raise UserError("the model is not trained yet")
        chosen, before = self.settings.update, self.booster
        if chosen.method == "refit" and self.settings.objective == "ranking":
            raise UserError("LightGBM cannot refit a ranking", "set model.update.method=continue")
        train, valid = windowed_rows(dataset, "train"), windowed_rows(dataset, "valid")
        leaf = self.settings.min_data_in_leaf
        clip = check_trainable(train.label, 2 * leaf, f"two leaves of {leaf}", "update less often")
        check_no_leaky_feature(train.values, train.label, train.bar, train.names, self.settings.max_feature_ic, train.sample)
        outcome, bar = np.clip(valid.label, *clip), correlation_groups(valid.bar[valid.sample])

        def rate(predicted: FloatArray, _data: lgb.Dataset) -> tuple[str, float, bool]:
            return "ic", mean_bar_correlation(predicted, outcome, bar), True

        values = valid.values[valid.sample]
        reached = rate(np.asarray(before.predict(values, raw_score=True)), None)[1]
        if chosen.method == "refit":
            label, _, weight = self._targets(train, clip, reweighter)
            names = before.feature_name()
            after = before.refit(train.values[train.sample], label, decay_rate=chosen.decay, weight=weight, feature_name=names)
            found = rate(np.asarray(after.predict(values, raw_score=True)), None)[1]
        else:
            train_set = self._binned(train, clip, None, None, reweighter, raw=True)
            valid_set = self._binned(valid, clip, None, train_set, None, raw=True)
            after = self._boosted(train_set, valid_set, rate, before, chosen.rounds)
            found = float(after.best_score["valid"]["ic"])
        self.booster = after if found > reached else before

    @staticmethod
    def _placed(dataset: DatasetH, rows: WindowedRows) -> npt.NDArray[np.int64]:
        """Return the rows that bins are placed on."""
        if isinstance(dataset, FrameDataset):
            span = dataset.frame.row_span(*dataset.bin_bars)
            return np.arange(span.start, span.stop, dtype=np.int64)
        return rows.sample

    def _boosted(
        self,
        train_set: lgb.Dataset,
        valid_set: lgb.Dataset,
        rate: Callable[..., Any],
        before: lgb.Booster | None = None,
        rounds: int = 0,
    ) -> lgb.Booster:
        """Return trees grown from nothing, or ``rounds`` more after those of ``before``."""
        self._best = -math.inf
        return lgb.train(
            self.params(),
            train_set,
            num_boost_round=rounds or self.settings.num_boost_round,
            init_model=before,
            valid_sets=[valid_set],
            valid_names=["valid"],
            feval=rate,
            callbacks=[lgb.early_stopping(self.settings.early_stopping_rounds, verbose=False), self._tell],
        )

    def _binned(
        self,
        rows: WindowedRows,
        clip: tuple[float, float],
        bins: FrameBins | None,
        reference: lgb.Dataset | None,
        reweighter: BarReweighter | None,
        *,
        raw: bool = False,
    ) -> lgb.Dataset:
        """Return a segment's labelled rows binned: taken from ``bins``, or binned here like ``reference``.

        ``raw`` keeps the values, and leaves the binning to LightGBM, which has to score them first with the trees there are.
        """
        label, group, weight = self._targets(rows, clip, reweighter)
        if bins is not None:
            return bins.take(rows.sample, label, group=group, weight=weight)
        values = rows.values[rows.sample]
        params = self.params() if raw else binning(self.params())
        kept = {"label": label, "group": group, "weight": weight, "params": params, "reference": reference}
        if raw:
            return lgb.Dataset(values, free_raw_data=False, **kept)
        return lgb.Dataset(values, **kept).construct()

    def _targets(
        self, rows: WindowedRows, clip: tuple[float, float], reweighter: BarReweighter | None
    ) -> tuple[Any, list[int] | None, FloatArray | None]:
        """Return label, sizes of the ranking's groups, and weight of the labelled rows."""
        objective = self.settings.objective
        bar = rows.bar[rows.sample]
        label: Any = np.clip(rows.label, *clip)
        if objective == "classification":
            label = (rows.label > 0.0).astype(np.float64)
        elif objective == "ranking":
            label = relevance(rows.label, bar)
        group = [part.stop - part.start for part in _bars(bar)] if objective == "ranking" else None
        return label, group, None if reweighter is None else reweighter.at(bar, rows.symbol[rows.sample])

    def _tell(self, env: Any) -> None:
        if self.progress is not None:
            self.progress(1.0 / self.settings.num_boost_round)
        self._best = max(self._best, float(env.evaluation_result_list[0][2]))
        if self.on_score is not None and (env.iteration + 1) % ROUNDS_PER_PASS == 0:
            self.on_score((env.iteration + 1) // ROUNDS_PER_PASS, self._best)

    def predict(self, dataset: DatasetH, segment: str | slice = "test") -> pd.Series:
        """Return raw predictions of a segment as a series over ``(datetime, instrument)``."""
        rows = windowed_rows(dataset, str(segment), learning=False)
        return prediction_series(dataset, segment, self.predict_batch(rows.batch(), self.settings.threads))

    def predict_batch(self, batch: RowBatch, threads: int) -> FloatArray:
        """Return raw predictions, shape ``(batch.n_scored,)``; each row's value depends on its bar alone.

        Parameters
        ----------
        batch : RowBatch
            Rows to be scored; context is not looked at.
        threads : int
            Threads; 1 is fastest for a single bar.
        """
        if self.booster is None:
            raise UserError("the model is not trained yet")
        raw = np.asarray(self.booster.predict(batch.values[batch.start :], num_threads=threads), dtype=np.float64)
        if self.settings.objective == "classification":
            return 2.0 * raw - 1.0
        if self.settings.objective == "ranking":
            return centred_in_bars(raw, batch.bar[batch.start :])
        return raw

    def save(self, folder: Path) -> None:
        """Write the booster as LightGBM text."""
        if self.booster is None:
            raise UserError("the model is not trained yet")
        (folder / self.FILES[0]).write_text(self.booster.model_to_string(num_iteration=self.booster.best_iteration))

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
            model.booster = lgb.Booster(model_str=(folder / cls.FILES[0]).read_text())
        except lgb.basic.LightGBMError as e:
            raise UserError(f"{folder / cls.FILES[0]} is not a LightGBM model: {e}", "train again") from e
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


def relevance(label: FloatArray, bar: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return each row's grade within its bar for LambdaRank: 0 (lowest label) to :data:`GRADES` - 1, shape ``(n_rows,)``."""
    result = np.zeros(label.size, dtype=np.int32)
    for rows in _bars(bar):
        order = np.argsort(np.argsort(label[rows], kind="stable"), kind="stable")
        result[rows] = order * GRADES // max(order.size, 1)
    return result


def _bars(bar: npt.NDArray[np.int64]) -> list[slice]:
    """Return the row slice of each bar."""
    edges = [0, *(np.flatnonzero(np.diff(bar)) + 1).tolist(), bar.size]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def centred_in_bars(values: FloatArray, bar: npt.NDArray[np.int64]) -> FloatArray:
    """Return ``values`` minus the mean of their bar: a ranking score has no zero of its own."""
    result = np.empty(values.size)
    for rows in _bars(bar):
        result[rows] = values[rows] - values[rows].mean()
    return result

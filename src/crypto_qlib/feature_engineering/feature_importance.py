"""What features are worth to a small model on folds it did not learn from: by shuffling them, and by their SHAP values.

1. The span is cut into contiguous folds; the training rows nearest to a fold, a horizon on each side, are purged, so that no
   outcome of a training row reaches into the fold.
2. Shuffling: a feature's values are shuffled among the coins of each bar; what the mean RankIC loses is its importance.
3. SHAP: each prediction of the fold is split exactly into what every feature added (Lundberg et al. 2020, by the library's
   own ``pred_contrib``, which adds up to the prediction); a feature's share is its mean |SHAP| over the sum of all. The spread
   over folds says whether it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import lightgbm
import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import average_ranks, correlation
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame

FloatArray = npt.NDArray[np.float64]

MIN_COINS: Final = 5
"""Coins a bar needs for its RankIC to count."""
_TRAIN_ROWS: Final = 80_000
_SHAP_ROWS: Final = 4_000
_LEAST_ROWS: Final = 100


@dataclass(frozen=True, slots=True)
class Importance:
    """What each feature is worth out of fold.

    Parameters
    ----------
    permutation : (n_features,) float64
        Mean over folds of the RankIC lost when the feature is shuffled within bars.
    shap, shap_spread : (n_features,) float64
        Mean and standard deviation over folds of the feature's share of the mean |SHAP|; the shares of a fold add up to 1.
    """

    permutation: FloatArray
    shap: FloatArray
    shap_spread: FloatArray


@njit
def rank_ics(values: npt.NDArray[np.float32], outcome: FloatArray, starts: npt.NDArray[np.int64], columns: int) -> FloatArray:
    """Return RankIC of each decision and column; rows ``starts[d, 0]:starts[d, 1]`` belong to decision ``d``."""
    result = np.full((starts.shape[0], columns), np.nan)
    for d in range(starts.shape[0]):
        a, b = starts[d, 0], starts[d, 1]
        for j in range(columns):
            x = np.empty(b - a)
            y = np.empty(b - a)
            for k in range(b - a):
                x[k] = values[a + k, j]
                y[k] = outcome[a + k]
                if math.isnan(x[k]) or math.isnan(y[k]):
                    x[k] = math.nan
                    y[k] = math.nan
            result[d, j] = correlation(average_ranks(x), average_ranks(y), MIN_COINS)
    return result


def purged_folds(
    frame: FeatureFrame, span: tuple[int, int], horizon: int, folds: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield ``(training rows, test rows)`` of contiguous folds over bars ``span``; outcomes look ``horizon`` bars forward."""
    edges = np.linspace(span[0], span[1], folds + 1).astype(int)
    for f in range(folds):
        test = np.arange(*frame.row_span(edges[f], edges[f + 1]).indices(frame.n_rows))
        before = np.arange(*frame.row_span(span[0], edges[f] - horizon - 1).indices(frame.n_rows))
        after = np.arange(*frame.row_span(edges[f + 1] + horizon + 1, span[1]).indices(frame.n_rows))
        yield np.concatenate([before, after]), test


def fold_importance(
    frame: FeatureFrame, columns: Sequence[int], outcome: FloatArray, span: tuple[int, int], horizon: int, folds: int = 3
) -> Importance:
    """Return the importance of ``columns`` in a small model on purged folds.

    Parameters
    ----------
    frame : FeatureFrame
        Features.
    columns : sequence of int
        Which.
    outcome : (n_bars, n_symbols) float64
        What came after each bar.
    span : (int, int)
        Training bars ``start:stop``.
    horizon : int
        Bars an outcome looks forward; also the purge.
    folds : int
        Contiguous folds.

    Raises
    ------
    UserError
        If a fold leaves too few labelled rows to learn from.
    """
    y, which = frame.at_rows(outcome), list(columns)
    rng = np.random.default_rng(7)
    losses, shares = np.zeros((folds, len(which))), np.zeros((folds, len(which)))
    for f, (train, test) in enumerate(purged_folds(frame, span, horizon, folds)):
        kept = train[np.isfinite(y[train])]
        kept = kept[:: max(1, kept.size // _TRAIN_ROWS)]
        model = _small_model(frame.values[kept][:, which], y[kept])
        x = frame.values[test][:, which].copy()
        shares[f] = shap_shares(model, x[:: max(1, test.size // _SHAP_ROWS)])
        losses[f] = _losses(model, x, y[test], frame.row_bar[test], horizon, rng)
    return Importance(losses.mean(axis=0), shares.mean(axis=0), shares.std(axis=0))


def shap_shares(model: lightgbm.Booster, x: npt.NDArray[np.float32]) -> FloatArray:
    """Return each feature's share of the mean |SHAP| over rows ``x``; all zero for a model that always says the same."""
    parts = np.asarray(model.predict(x, pred_contrib=True))[:, :-1]
    size: FloatArray = np.abs(parts).mean(axis=0)
    return size / size.sum() if size.sum() > 0.0 else size


def _losses(
    model: lightgbm.Booster,
    x: npt.NDArray[np.float32],
    outcome: FloatArray,
    bars: npt.NDArray[np.int32],
    every: int,
    rng: np.random.Generator,
) -> FloatArray:
    whole = _mean_rank_ic(np.asarray(model.predict(x)), outcome, bars, every)
    losses = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        kept = x[:, j].copy()
        x[:, j] = kept[np.lexsort((rng.random(bars.size), bars))]
        losses[j] = whole - _mean_rank_ic(np.asarray(model.predict(x)), outcome, bars, every)
        x[:, j] = kept
    return losses


def _small_model(x: npt.NDArray[np.float32], y: FloatArray) -> lightgbm.Booster:
    if y.size < _LEAST_ROWS:
        raise UserError(f"{y.size} labelled rows are too few to rank features by", "raise data.history_days")
    parameters = {
        "objective": "regression", "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 50, "num_threads": 1,
        "verbose": -1, "seed": 7, "deterministic": True, "force_col_wise": True, "feature_fraction": 0.7, "max_bin": 63,
    }  # fmt: skip
    return lightgbm.train(parameters, lightgbm.Dataset(x, y), num_boost_round=40)


def _mean_rank_ic(scores: FloatArray, outcome: FloatArray, bars: npt.NDArray[np.int32], every: int) -> float:
    edges = np.flatnonzero(np.append(True, bars[1:] != bars[:-1]))
    starts = np.column_stack([edges, np.append(edges[1:], bars.size)]).astype(np.int64)[::every]
    ics = rank_ics(scores.astype(np.float32)[:, None], outcome, starts, 1)
    return float(np.nanmean(ics)) if np.isfinite(ics).any() else 0.0

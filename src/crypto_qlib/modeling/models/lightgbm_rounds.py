"""How many of a booster's trees are worth keeping, where it was grown without sight of the validation rows."""

from __future__ import annotations

import math
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from crypto_qlib.modeling.models.lightgbm_cluster import shares_of
from crypto_qlib.modeling.training_checks import mean_bar_correlation

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_BATCH_ROWS: Final = 65_536


def best_round(scores: FloatArray, patience: int) -> tuple[int, list[float]]:
    """Return the round LightGBM's early stopping would keep, counted from 1, and the best score so far after each it looks at.

    Parameters
    ----------
    scores : (n_rounds,) float64
        Validation score after each round, higher is better.
    patience : int
        Rounds without a better one before stopping.
    """
    best, at, so_far = -math.inf, 0, []
    for k, score in enumerate(scores):
        if score > best:
            best, at = float(score), k
        so_far.append(best)
        if k - at >= patience:
            break
    return at + 1, so_far


def score_of_each_round(
    booster: lgb.Booster, values: Any, sample: Int64Array, outcome: FloatArray, group: Int64Array, *, as_odds: bool
) -> FloatArray:
    """Return the mean correlation with the outcome after 1, 2, ... trees, shape ``(n_trees,)``.

    The features are read once, whole groups at a time.

    Parameters
    ----------
    booster : Booster
        All trees.
    values : (n_rows, n_features) float32
        Features, memory-mapped perhaps.
    sample : (n,) int64
        Rows looked at.
    outcome, group : (n,)
        Their labels, and the groups correlations are taken in, not decreasing.
    as_odds : bool
        The trees' sum is log odds: correlate the probability.
    """
    tables = [
        np.array([booster.get_leaf_output(k, leaf) for leaf in range(tree["num_leaves"])])
        for k, tree in enumerate(booster.dump_model()["tree_info"])
    ]
    total, groups = np.zeros(len(tables)), 0
    for first, stop in shares_of(group, -(-sample.size // _BATCH_ROWS)):
        leaves = booster.predict(np.ascontiguousarray(values[sample[first:stop]]), pred_leaf=True)
        leaves = np.asarray(leaves, dtype=np.int64).reshape(-1, len(tables))
        n = np.unique(group[first:stop]).size
        score = np.zeros(stop - first)
        for k, table in enumerate(tables):
            score += table[leaves[:, k]]
            predicted = 1.0 / (1.0 + np.exp(-score)) if as_odds else score
            total[k] += n * mean_bar_correlation(predicted, outcome[first:stop], group[first:stop])
        groups += n
    return total / max(groups, 1)

"""Which features carry information, which repeat each other, which lasts: screening, redundancy, importance, stability.

1. RankIC of every feature at every decision of the training span, spaced by the horizon so that outcomes do not overlap; its
   mean, Newey-West t statistic and p value. Many are tried, so p values are corrected (Benjamini & Hochberg 1995). A feature
   that is equal for all coins orders nothing and has no RankIC.
2. Features whose values move together (|Spearman| above a limit) form clusters; each cluster sends its strongest.
3. Permutation importance of the survivors in a small model, on folds that are purged of overlapping outcomes.
4. Stability: the share of sub-periods in which the mean RankIC keeps its sign.

Everything is computed on the span it is given; what is reported as out of sample never entered the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import lightgbm
import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import norm

from crypto_qlib.analytics.ic import average_ranks, correlation, summarise
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame

FloatArray = npt.NDArray[np.float64]

MIN_COINS: Final = 5
"""Coins a bar needs for its RankIC to count."""
_ROWS: Final = 20_000


@dataclass(frozen=True, slots=True)
class FeatureIc:
    """What one feature said about what came after.

    Parameters
    ----------
    name, group : str
        Feature and set.
    mean, standard_error : float
        Mean RankIC over decisions and its Newey-West error.
    t_stat, p_value, q_value : float
        Of mean = 0, two-sided; ``q_value`` after Benjamini-Hochberg over all features screened together.
    n : int
        Decisions that counted.
    stability : float
        Share of sub-periods whose mean has the sign of the whole.
    coverage : float
        Share of rows with a value.
    """

    name: str
    group: str
    mean: float
    standard_error: float
    t_stat: float
    p_value: float
    q_value: float
    n: int
    stability: float
    coverage: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A choice of features and why.

    Parameters
    ----------
    names : tuple of str
        Chosen features, strongest first.
    screened : tuple of FeatureIc
        Every feature.
    cluster : dict of str to int
        Cluster of each feature that passed the screen.
    importance : dict of str to float
        Loss of out-of-fold RankIC when a chosen feature is shuffled.
    """

    names: tuple[str, ...]
    screened: tuple[FeatureIc, ...]
    cluster: dict[str, int]
    importance: dict[str, float]


@njit
def _rank_ics(values: npt.NDArray[np.float32], outcome: FloatArray, starts: npt.NDArray[np.int64], columns: int) -> FloatArray:
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


def decision_rows(frame: FeatureFrame, start_bar: int, stop_bar: int, every: int) -> npt.NDArray[np.int64]:
    """Return ``(first, last)`` rows of every ``every``-th bar in ``start_bar:stop_bar`` that has rows, shape ``(n, 2)``."""
    bars = np.arange(start_bar, stop_bar, every)
    first, last = np.searchsorted(frame.row_bar, bars), np.searchsorted(frame.row_bar, bars + 1)
    return np.column_stack([first, last]).astype(np.int64)[last > first]


def rank_ic_table(frame: FeatureFrame, outcome: FloatArray, span: tuple[int, int], every: int) -> FloatArray:
    """Return the RankIC of each decision and feature, shape ``(n_decisions, n_features)``.

    Parameters
    ----------
    frame : FeatureFrame
        Features.
    outcome : (n_bars, n_symbols) float64
        What came after each bar, e.g. the excess return of the label.
    span : (int, int)
        Decision bars ``start:stop``; outcomes must end before whatever is called out of sample.
    every : int
        Bars between decisions; the horizon, so that outcomes do not overlap.
    """
    starts = decision_rows(frame, *span, every)
    return _rank_ics(frame.values, frame.at_rows(outcome), starts, len(frame.names))


def screen(frame: FeatureFrame, groups: Sequence[str], table: FloatArray, periods: int = 6, lags: int = 3) -> list[FeatureIc]:
    """Return what each feature's RankICs say, with p values corrected for their number.

    Parameters
    ----------
    frame : FeatureFrame
        Names and coverage.
    groups : sequence of str
        Set of each feature.
    table : (n_decisions, n_features) float64
        From :func:`rank_ic_table`. A feature that is equal for all coins has none and is left out of the correction.
    periods : int
        Sub-periods of the stability.
    lags : int
        Newey-West lags, decisions.
    """
    summaries = [summarise(table[:, j], lags) for j in range(table.shape[1])]
    p = np.array([2.0 * norm.sf(abs(s.t_stat)) if math.isfinite(s.t_stat) else math.nan for s in summaries])
    q = false_discovery_rates(p)
    rows = frame.values[:: max(1, frame.n_rows // _ROWS)]
    coverage = np.isfinite(rows).mean(axis=0)
    return [
        FeatureIc(name, group, s.mean, s.standard_error, s.t_stat, float(p[j]), float(q[j]), s.n_bars,
                  _stability(table[:, j], s.mean, periods), float(coverage[j]))
        for j, (name, group, s) in enumerate(zip(frame.names, groups, summaries, strict=True))
    ]  # fmt: skip


def false_discovery_rates(p: FloatArray) -> FloatArray:
    """Return Benjamini-Hochberg adjusted p values; NaN stays NaN and does not count."""
    q = np.full(p.size, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    if order.size:
        raw = p[order] * order.size / np.arange(1, order.size + 1)
        q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q


def _stability(ics: FloatArray, mean: float, periods: int) -> float:
    parts = [part[np.isfinite(part)] for part in np.array_split(ics, periods)]
    signs = [np.sign(part.mean()) == np.sign(mean) for part in parts if part.size]
    return float(np.mean(signs)) if signs else math.nan


def clusters(frame: FeatureFrame, columns: Sequence[int], rows: slice, limit: float) -> npt.NDArray[np.int64]:
    """Return the cluster of each of ``columns``: average linkage of ``1 - |Spearman|`` over a sample of ``rows``.

    Parameters
    ----------
    frame : FeatureFrame
        Features.
    columns : sequence of int
        Which.
    rows : slice
        Training rows.
    limit : float
        |Spearman| above which features belong together.
    """
    if len(columns) == 1:
        return np.ones(1, dtype=np.int64)
    step = max(1, (rows.stop - rows.start) // _ROWS)
    sample = frame.values[rows.start : rows.stop : step][:, list(columns)].astype(np.float64)
    ranks = np.column_stack([average_ranks(np.ascontiguousarray(sample[:, j])) for j in range(sample.shape[1])])
    ranks = np.where(np.isfinite(ranks), ranks, np.nanmean(ranks, axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        like = np.nan_to_num(np.abs(np.corrcoef(ranks.T)))
    distance = np.clip(1.0 - like, 0.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="average")
    return np.asarray(fcluster(tree, 1.0 - limit, criterion="distance"), dtype=np.int64)


def permutation_importance(
    frame: FeatureFrame, columns: Sequence[int], outcome: FloatArray, span: tuple[int, int], horizon: int, folds: int = 3
) -> FloatArray:
    """Return how much out-of-fold RankIC each feature is worth: the loss when its values are shuffled within bars.

    Folds are contiguous in time; the training rows nearest to a fold, a horizon on each side, are purged.

    Parameters
    ----------
    frame, columns, outcome : as above
        Features and what came after.
    span : (int, int)
        Training bars.
    horizon : int
        Bars an outcome looks forward; also the purge.
    folds : int
        Contiguous folds.
    """
    y = frame.at_rows(outcome)
    edges = np.linspace(span[0], span[1], folds + 1).astype(int)
    rng = np.random.default_rng(7)
    losses = np.zeros((folds, len(columns)))
    for f in range(folds):
        test = np.arange(*frame.row_span(edges[f], edges[f + 1]).indices(frame.n_rows))
        before = np.arange(*frame.row_span(span[0], edges[f] - horizon - 1).indices(frame.n_rows))
        after = np.arange(*frame.row_span(edges[f + 1] + horizon + 1, span[1]).indices(frame.n_rows))
        train = np.concatenate([before, after])
        train = train[np.isfinite(y[train])][:: max(1, train.size // (4 * _ROWS))]
        model = _small_model(frame.values[train][:, list(columns)], y[train])
        x = frame.values[test][:, list(columns)].copy()
        bars, outcome_rows = frame.row_bar[test], y[test]
        whole = _mean_rank_ic(np.asarray(model.predict(x)), outcome_rows, bars, horizon)
        for j in range(len(columns)):
            kept = x[:, j].copy()
            order = np.lexsort((rng.random(test.size), bars))
            x[:, j] = kept[order]
            losses[f, j] = whole - _mean_rank_ic(np.asarray(model.predict(x)), outcome_rows, bars, horizon)
            x[:, j] = kept
    result: FloatArray = losses.mean(axis=0)
    return result


def _small_model(x: npt.NDArray[np.float32], y: FloatArray) -> lightgbm.Booster:
    if y.size < 100:  # noqa: PLR2004 - fewer rows grow no tree
        raise UserError(f"{y.size} labelled rows are too few to rank features by", "raise data.history_days")
    parameters = {
        "objective": "regression", "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 50, "num_threads": 1,
        "verbose": -1, "seed": 7, "deterministic": True, "force_col_wise": True, "feature_fraction": 0.7, "max_bin": 63,
    }  # fmt: skip
    return lightgbm.train(parameters, lightgbm.Dataset(x, y), num_boost_round=40)


def _mean_rank_ic(scores: FloatArray, outcome: FloatArray, bars: npt.NDArray[np.int32], every: int) -> float:
    edges = np.flatnonzero(np.append(True, bars[1:] != bars[:-1]))
    starts = np.column_stack([edges, np.append(edges[1:], bars.size)]).astype(np.int64)[::every]
    ics = _rank_ics(scores.astype(np.float32)[:, None], outcome, starts, 1)
    return float(np.nanmean(ics)) if np.isfinite(ics).any() else 0.0


def choose(
    frame: FeatureFrame,
    groups: Sequence[str],
    outcome: FloatArray,
    span: tuple[int, int],
    horizon: int,
    *,
    most: int = 60,
    false_discoveries: float = 0.05,
    alike: float = 0.7,
) -> Chosen:
    """Return the features chosen on ``span`` by screening, redundancy and importance.

    Parameters
    ----------
    frame, groups, outcome, span, horizon : as above
        The outcome of the last bar of ``span`` must be known within it: cut a horizon off its end.
    most : int
        Features at most.
    false_discoveries : float
        Largest corrected p value.
    alike : float
        |Spearman| above which features count as one.

    Raises
    ------
    UserError
        If no feature passes.
    """
    screened = screen(frame, groups, rank_ic_table(frame, outcome, span, horizon))
    passed = [j for j, f in enumerate(screened) if math.isfinite(f.q_value) and f.q_value <= false_discoveries]
    if not passed:
        raise UserError(
            f"no feature has a RankIC that survives the correction for {len(screened)} tries",
            "raise the false discovery rate, or give it more data",
        )
    label = clusters(frame, passed, frame.row_span(*span), alike)
    best: dict[int, int] = {}
    for j, c in zip(passed, label.tolist(), strict=True):
        if c not in best or abs(screened[j].t_stat) > abs(screened[best[c]].t_stat):
            best[c] = j
    heads = sorted(best.values(), key=lambda j: -abs(screened[j].t_stat))[:most]
    loss = permutation_importance(frame, heads, outcome, span, horizon)
    return Chosen(
        names=tuple(frame.names[j] for j in heads),
        screened=tuple(screened),
        cluster={frame.names[j]: int(c) for j, c in zip(passed, label, strict=True)},
        importance={frame.names[j]: float(v) for j, v in zip(heads, loss, strict=True)},
    )

"""Which features carry information, which repeat each other, which lasts: screening, redundancy, importance, stability.

1. RankIC of every feature at every decision of the training span, spaced by the horizon so that outcomes do not overlap; its
   mean, the error of it (never below that of independent decisions), Student's t and p value. Many are tried, so p values are
   corrected (Benjamini & Hochberg 1995). A feature that is equal for all coins orders nothing and has no RankIC.
2. Features that move together, or order the coins alike (|Spearman| above a limit), form clusters; each sends its strongest.
3. Importance of the survivors in a small model, by shuffling and by SHAP values, on folds purged of overlapping outcomes
   (:mod:`.feature_importance`).
4. Stability: the mean RankIC of each sub-period, and the share of them in which it keeps its sign.

Everything is computed on the span it is given; what is reported as out of sample never entered the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import t as student

from crypto_qlib.analytics.ic import average_ranks
from crypto_qlib.analytics.inference import newey_west_standard_error
from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.array_processors import bar_starts, cross_section_rank
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_importance import fold_importance, rank_ics

FloatArray = npt.NDArray[np.float64]

PERIODS: Final = 6
"""Sub-periods of the stability."""
_ROWS: Final = 20_000


@dataclass(frozen=True, slots=True)
class FeatureIc:
    """What one feature said about what came after.

    Parameters
    ----------
    name, group : str
        Feature and set.
    mean, standard_error : float
        Mean RankIC over decisions and its error, see :func:`evidence_of`.
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
    shap : dict of str to (float, float)
        Share of the mean |SHAP| of all chosen features out of fold, and its standard deviation over folds.
    periods : dict of str to tuple of float
        Mean RankIC of each chosen feature in each sub-period, oldest first.
    """

    names: tuple[str, ...]
    screened: tuple[FeatureIc, ...]
    cluster: dict[str, int]
    importance: dict[str, float]
    shap: dict[str, tuple[float, float]] = field(default_factory=dict)
    periods: dict[str, tuple[float, ...]] = field(default_factory=dict)


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
    return rank_ics(frame.values, frame.at_rows(outcome), starts, len(frame.names))


def screen(
    frame: FeatureFrame, groups: Sequence[str], table: FloatArray, periods: int = PERIODS, lags: int = 3
) -> list[FeatureIc]:
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
    evidence = [evidence_of(table[:, j], lags) for j in range(table.shape[1])]
    p = np.array([e.p_value for e in evidence])
    q = false_discovery_rates(p)
    rows = frame.values[:: max(1, frame.n_rows // _ROWS)]
    coverage = np.isfinite(rows).mean(axis=0)
    return [
        FeatureIc(name, group, e.mean, e.standard_error, e.t_stat, e.p_value, float(q[j]), e.n,
                  _stability(table[:, j], e.mean, periods), float(coverage[j]))
        for j, (name, group, e) in enumerate(zip(frame.names, groups, evidence, strict=True))
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """What ``n`` RankICs say about their mean: it, its error, and the two-sided test of zero; NaN below two."""

    mean: float
    standard_error: float
    t_stat: float
    p_value: float
    n: int


def evidence_of(ics: FloatArray, lags: int = 3) -> Evidence:
    """Test whether the mean of ``ics`` is zero, so that a few decisions prove nothing.

    The Newey-West variance divides by ``n`` and takes negative autocorrelations at their word: of 23 independent decisions it
    calls fifteen in a thousand significant at one in a thousand, of three a quarter. So it is scaled by ``n / (n - 1)``, is
    never taken for less than that of independent values, and the test is Student's with ``n - 1`` degrees of freedom.
    """
    clean = ics[np.isfinite(ics)]
    n = clean.size
    if n < 2:  # noqa: PLR2004 - a spread needs two
        return Evidence(float(clean.mean()) if n else math.nan, math.nan, math.nan, math.nan, n)
    mean = float(clean.mean())
    robust = newey_west_standard_error(clean, lags) * math.sqrt(n / (n - 1))
    error = max(robust, float(clean.std(ddof=1)) / math.sqrt(n))
    t_stat = mean / error if error > 0.0 else math.nan
    return Evidence(mean, error, t_stat, 2.0 * float(student.sf(abs(t_stat), n - 1)), n)


def false_discovery_rates(p: FloatArray) -> FloatArray:
    """Return Benjamini-Hochberg adjusted p values; NaN stays NaN and does not count."""
    q = np.full(p.size, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    if order.size:
        raw = p[order] * order.size / np.arange(1, order.size + 1)
        q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q


def period_means(ics: FloatArray, periods: int = PERIODS) -> tuple[float, ...]:
    """Return the mean of each of ``periods`` contiguous parts of ``ics``, NaN where a part has none."""
    parts = [part[np.isfinite(part)] for part in np.array_split(ics, periods)]
    return tuple(float(part.mean()) if part.size else math.nan for part in parts)


def _stability(ics: FloatArray, mean: float, periods: int) -> float:
    signs = [np.sign(m) == np.sign(mean) for m in period_means(ics, periods) if math.isfinite(m)]
    return float(np.mean(signs)) if signs else math.nan


def clusters(frame: FeatureFrame, columns: Sequence[int], rows: slice, limit: float) -> npt.NDArray[np.int64]:
    """Return the cluster of each of ``columns``: average linkage of ``1 - |Spearman|`` over a sample of the bars of ``rows``.

    Two features are as alike as the larger of two correlations: over all rows together, and of their ranks inside each bar.
    Momentum and momentum less BTC's differ over time and order the coins of a bar the same way.

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
    bars = frame.row_bar[rows]
    step = max(1, bars.size // _ROWS)
    taken = rows.start + np.flatnonzero((bars - bars[0]) % step == 0)
    sample = np.ascontiguousarray(frame.values[taken][:, list(columns)])
    pooled = np.column_stack([average_ranks(sample[:, j].astype(np.float64)) for j in range(sample.shape[1])])
    cross_section_rank(sample, bar_starts(frame.row_bar[taken].astype(np.int64)))
    alike = np.maximum(_alike(pooled), _alike(sample.astype(np.float64)))
    distance = np.clip(1.0 - alike, 0.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="average")
    return np.asarray(fcluster(tree, 1.0 - limit, criterion="distance"), dtype=np.int64)


def _alike(ranks: FloatArray) -> FloatArray:
    """Return the absolute correlations of rank columns; a missing rank counts as the mean, a constant column as unlike all."""
    filled = np.where(np.isfinite(ranks), ranks, np.nan_to_num(np.nanmean(ranks, axis=0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        alike: FloatArray = np.nan_to_num(np.abs(np.corrcoef(filled.T)))
    return alike


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
    table = rank_ic_table(frame, outcome, span, horizon)
    screened = screen(frame, groups, table)
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
    found = fold_importance(frame, heads, outcome, span, horizon)
    shares = zip(heads, found.shap.tolist(), found.shap_spread.tolist(), strict=True)
    return Chosen(
        names=tuple(frame.names[j] for j in heads),
        screened=tuple(screened),
        cluster={frame.names[j]: int(c) for j, c in zip(passed, label, strict=True)},
        importance={frame.names[j]: float(v) for j, v in zip(heads, found.permutation, strict=True)},
        shap={frame.names[j]: (share, spread) for j, share, spread in shares},
        periods={frame.names[j]: period_means(table[:, j]) for j in heads},
    )

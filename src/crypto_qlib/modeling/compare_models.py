"""Is one model better than another, or is the difference noise? And is the best of many better than luck?

Models are compared bar by bar on the bars that all of them scored: the difference of two RankIC series is itself a series with
a mean and a Newey-West error. The best of ``n`` trials is judged against the best that ``n`` useless ones would show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import IcSummary, rank_information_coefficients, summarise
from crypto_qlib.analytics.inference import expected_best_sharpe
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.modeling.labels import Labels

FloatArray = npt.NDArray[np.float64]

LAGS_PER_HORIZON: Final = 2


@dataclass(frozen=True, slots=True)
class Compared:
    """One model beside the best of the comparison.

    Parameters
    ----------
    name : str
        Its name.
    rank_ic : IcSummary
        On the common bars.
    behind_best : IcSummary
        Best model's RankIC minus this one's, bar by bar; all zero for the best itself.
    p_noise : float
        Two-sided probability that a difference this large arises between equal models; NaN for the best itself.
    """

    name: str
    rank_ic: IcSummary
    behind_best: IcSummary
    p_noise: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table of models, best first.

    Parameters
    ----------
    models : tuple of Compared
        By mean RankIC, best first.
    n_bars : int
        Bars that all of them scored.
    n_trials : int
        Trials the best was chosen from.
    p_luck : float
        Probability that the best of that many useless models would show a t value this high (the trials taken as independent,
        which errs on the careful side).
    """

    models: tuple[Compared, ...]
    n_bars: int
    n_trials: int
    p_luck: float


def compare_models(scores: Mapping[str, ScorePanel], labels: Labels, n_trials: int = 0) -> Comparison:
    """Compare models on the bars that all of them scored.

    Parameters
    ----------
    scores : mapping of name to ScorePanel
        Out-of-sample scores; at least one.
    labels : Labels
        What happened.
    n_trials : int
        Models tried in all, those not shown included; the number shown if smaller.

    Raises
    ------
    UserError
        If symbols differ, or no bar is common to all.
    """
    if not scores:
        raise UserError("there is nothing to compare", "name one or more models")
    common: npt.NDArray[np.int64] | None = None
    for name, panel in scores.items():
        if panel.symbols != labels.symbols:
            raise UserError(f"{name} scores other symbols than the labels have", "compare models of one universe")
        common = panel.as_of_ns if common is None else np.intersect1d(common, panel.as_of_ns)
    closes = labels.ts_open + labels.frame_ns
    common = np.intersect1d(common if common is not None else closes, closes)
    if common.size == 0:
        raise UserError("the models have no test bar in common", "compare models whose test segments overlap")
    outcome = labels.values[np.searchsorted(closes, common)]
    lag = LAGS_PER_HORIZON * labels.horizon_bars
    series = {
        name: rank_information_coefficients(p.expected_return[np.searchsorted(p.as_of_ns, common)], outcome)
        for name, p in scores.items()
    }
    order = sorted(series, key=lambda name: (-_mean(series[name]), name))
    best = series[order[0]]
    rows = []
    for name in order:
        gap = summarise(best - series[name], lag)
        p_noise = 2.0 * (1.0 - NormalDist().cdf(abs(gap.t_stat))) if math.isfinite(gap.t_stat) else math.nan
        rows.append(Compared(name, summarise(series[name], lag), gap, p_noise))
    trials = max(n_trials, len(scores))
    return Comparison(tuple(rows), int(common.size), trials, probability_of_luck(rows[0].rank_ic.t_stat, trials))


def _mean(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else -math.inf


def probability_of_luck(t_stat: float, n_trials: int) -> float:
    """Return the probability that the largest of ``n_trials`` independent standard normals reaches ``t_stat``; NaN stays NaN.

    Source: the Sidak correction, ``1 - Phi(t) ** n``.
    """
    return 1.0 - NormalDist().cdf(t_stat) ** n_trials if math.isfinite(t_stat) else math.nan


def hurdle(n_trials: int) -> float:
    """Return the t value the best of ``n_trials`` useless models is expected to show."""
    return expected_best_sharpe(n_trials, 1.0)

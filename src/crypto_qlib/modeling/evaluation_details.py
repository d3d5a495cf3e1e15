"""Where the scores are good and where not: by horizon, rank, regime, hour and volatility, and against simple rules.

Every figure is a mean over bars of a cross-sectional statistic with a Newey-West error that respects the overlap of the
labels (:func:`crypto_qlib.analytics.ic.summarise`). Everything is out of sample if the scores are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import (
    IcSummary,
    average_ranks,
    correlation,
    rank_information_coefficients,
    summarise,
)
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.modeling.label_kernels import excess_over_mean, forward_returns, trailing_volatility
from crypto_qlib.modeling.labels import BTC

FloatArray = npt.NDArray[np.float64]

LAGS_PER_HORIZON: Final = 2
QUANTILES: Final = 5
REGIMES: Final = ("calm", "normal", "wild")
TOP_K: Final = (1, 3, 5, 10)
_BASELINE_BARS: Final = 24
_VOLATILITY_BARS: Final = 72
_HOURS: Final = 24
_MIN_PAIRS: Final = 3


@dataclass(frozen=True, slots=True)
class EvaluationDetails:
    """Figures beside the headline ones; see the functions of this module.

    Parameters
    ----------
    decay : dict
        Horizon in bars -> RankIC with the excess return over that horizon.
    quantiles : tuple of IcSummary
        Mean excess return over the label horizon of each fifth of the scores, worst first.
    precision : dict
        k -> share of the k strongest scores of a bar whose sign was right, and mean return of those trades before costs.
    rank_turnover : float
        ``1 - `` mean rank correlation of a bar's scores with the bar before's; 0 = the same order always, 1 = unrelated.
    by_regime, by_hour, by_volatility : dict
        RankIC of bars by market volatility, of bars by UTC hour of their close, and among coins by their own volatility.
    baselines : dict
        RankIC of simple rules on the same bars.
    """

    decay: dict[int, IcSummary]
    quantiles: tuple[IcSummary, ...]
    precision: dict[int, tuple[IcSummary, IcSummary]]
    rank_turnover: float
    by_regime: dict[str, IcSummary]
    by_hour: dict[int, IcSummary]
    by_volatility: dict[str, IcSummary]
    baselines: dict[str, IcSummary]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that do not exist are null."""
        return {
            "decay": {str(h): summary_json(s) for h, s in self.decay.items()},
            "quantile_returns": [summary_json(s) for s in self.quantiles],
            "precision_at_k": {
                str(k): {"hit_ratio": summary_json(hits), "mean_return": summary_json(gain)}
                for k, (hits, gain) in self.precision.items()
            },
            "rank_turnover": self.rank_turnover if math.isfinite(self.rank_turnover) else None,
            "by_regime": {name: summary_json(s) for name, s in self.by_regime.items()},
            "by_hour": {str(hour): summary_json(s) for hour, s in self.by_hour.items()},
            "by_volatility": {name: summary_json(s) for name, s in self.by_volatility.items()},
            "baselines": {name: summary_json(s) for name, s in self.baselines.items()},
        }


def summary_json(summary: IcSummary) -> dict[str, float | None]:
    """Return mean, error, t and count as JSON values; null where a number does not exist."""
    values = {"mean": summary.mean, "standard_error": summary.standard_error, "t_stat": summary.t_stat}
    plain: dict[str, float | None] = {k: v if math.isfinite(v) else None for k, v in values.items()}
    return plain | {"n_bars": summary.n_bars}


def evaluate_details(
    scores: ScorePanel, panel: MarketPanel, horizon_bars: int, horizons: tuple[int, ...] = ()
) -> EvaluationDetails:
    """Return the figures of ``scores`` on the market they are about.

    Parameters
    ----------
    scores : ScorePanel
        Scores known at bar closes of ``panel``'s grid.
    panel : MarketPanel
        The market, later bars included.
    horizon_bars : int
        Label horizon.
    horizons : tuple of int
        Horizons of the decay; a quarter, half, once, twice and four times the label's if empty.

    Raises
    ------
    UserError
        If the scores' symbols or bars are not the panel's.
    """
    rows = _rows_of(scores, panel)
    expected = np.where(panel.is_member[rows], scores.expected_return, np.nan)
    forward = forward_returns(panel.open, horizon_bars)
    excess = excess_over_mean(np.where(panel.is_member, forward, np.nan))[rows]
    lag = LAGS_PER_HORIZON * horizon_bars
    ic = rank_information_coefficients(expected, excess)
    wanted = horizons or tuple(sorted({max(1, round(horizon_bars * f)) for f in (0.25, 0.5, 1.0, 2.0, 4.0)}))
    volatility = trailing_volatility(panel.close, _VOLATILITY_BARS)[rows]
    return EvaluationDetails(
        decay={h: _decay(expected, panel, rows, h) for h in wanted},
        quantiles=quantile_returns(expected, excess, lag),
        precision={k: top_k_precision(expected, forward[rows], k, lag) for k in TOP_K if k <= len(scores.symbols)},
        rank_turnover=rank_turnover(expected),
        by_regime=_by_groups(ic, _thirds(np.nanmedian(_or_nan(volatility), axis=1)), lag),
        by_hour=_by_hour(ic, scores.as_of_ns, lag),
        by_volatility=_by_coin_volatility(expected, excess, volatility, lag),
        baselines=baseline_coefficients(panel, rows, excess, np.isfinite(expected), lag),
    )


def _rows_of(scores: ScorePanel, panel: MarketPanel) -> npt.NDArray[np.int64]:
    closes = panel.ts_open + panel.frame_ns
    rows = np.searchsorted(closes, scores.as_of_ns)
    if scores.symbols != panel.symbols:
        raise UserError("scores and market cover different symbols")
    if rows.size == 0 or rows[-1] >= closes.size or not np.array_equal(closes[rows], scores.as_of_ns):
        raise UserError("scores and market lie on different bars")
    return rows.astype(np.int64)


def _or_nan(values: FloatArray) -> FloatArray:
    """Return ``values`` with one number put into rows that have none, so that a median over a row never warns."""
    empty = ~np.isfinite(values).any(axis=1)
    filled = values.copy()
    filled[empty, 0] = 0.0
    return filled


def _decay(expected: FloatArray, panel: MarketPanel, rows: npt.NDArray[np.int64], horizon: int) -> IcSummary:
    ahead = excess_over_mean(np.where(panel.is_member, forward_returns(panel.open, horizon), np.nan))[rows]
    return summarise(rank_information_coefficients(expected, ahead), LAGS_PER_HORIZON * horizon)


def quantile_returns(expected: FloatArray, outcome: FloatArray, lag: int) -> tuple[IcSummary, ...]:
    """Return the mean outcome of each fifth of the scores, worst fifth first; bars with fewer than five pairs are left out."""
    means = np.full((expected.shape[0], QUANTILES), np.nan)
    for t in range(expected.shape[0]):
        both = np.flatnonzero(np.isfinite(expected[t]) & np.isfinite(outcome[t]))
        if both.size >= QUANTILES:
            order = both[np.argsort(expected[t, both], kind="stable")]
            for q, part in enumerate(np.array_split(order, QUANTILES)):
                means[t, q] = outcome[t, part].mean()
    return tuple(summarise(means[:, q], lag) for q in range(QUANTILES))


def top_k_precision(expected: FloatArray, forward: FloatArray, k: int, lag: int) -> tuple[IcSummary, IcSummary]:
    """Return (share of right signs, mean signed return) of the ``k`` strongest scores of each bar.

    Parameters
    ----------
    expected, forward : (n_bars, n_symbols) float64
        Expected returns, and what a long position earned before costs; a bar with fewer than ``k`` pairs is left out.
    """
    hits = np.full(expected.shape[0], np.nan)
    gain = np.full(expected.shape[0], np.nan)
    for t in range(expected.shape[0]):
        both = np.flatnonzero(np.isfinite(expected[t]) & np.isfinite(forward[t]) & (expected[t] != 0.0))
        if both.size >= k:
            chosen = both[np.argsort(-np.abs(expected[t, both]), kind="stable")[:k]]
            signed = np.sign(expected[t, chosen]) * forward[t, chosen]
            hits[t], gain[t] = np.mean(signed > 0.0), signed.mean()
    return summarise(hits, lag), summarise(gain, lag)


def rank_turnover(expected: FloatArray) -> float:
    """Return ``1 - `` the mean rank correlation of each bar's scores with the bar before's; NaN without two such bars."""
    kept = [correlation(average_ranks(before), average_ranks(now), _MIN_PAIRS) for before, now in pairwise(expected)]
    found = np.array([c for c in kept if math.isfinite(c)])
    return 1.0 - float(found.mean()) if found.size else math.nan


def _thirds(level: FloatArray) -> npt.NDArray[np.int64]:
    """Return 0, 1 or 2: the third of all bars each bar's level falls into."""
    low, high = np.quantile(level, (1 / 3, 2 / 3))
    return np.where(level <= low, 0, np.where(level <= high, 1, 2)).astype(np.int64)


def _by_groups(ic: FloatArray, group: npt.NDArray[np.int64], lag: int) -> dict[str, IcSummary]:
    return {name: summarise(ic[group == g], lag) for g, name in enumerate(REGIMES)}


def _by_hour(ic: FloatArray, as_of_ns: npt.NDArray[np.int64], lag: int) -> dict[int, IcSummary]:
    """Return the RankIC of each UTC hour; values of one hour are a day apart, so fewer lags overlap."""
    hour = (as_of_ns // NS_PER_HOUR) % _HOURS
    return {int(h): summarise(ic[hour == h], max(1, lag // _HOURS)) for h in np.unique(hour)}


def _by_coin_volatility(expected: FloatArray, outcome: FloatArray, volatility: FloatArray, lag: int) -> dict[str, IcSummary]:
    """Return the RankIC among the calmest, middle and wildest third of each bar's coins."""
    group = np.full(expected.shape, -1)
    for t in range(expected.shape[0]):
        known = np.flatnonzero(np.isfinite(volatility[t]) & np.isfinite(expected[t]))
        order = known[np.argsort(volatility[t, known], kind="stable")]
        for g, part in enumerate(np.array_split(order, len(REGIMES))):
            group[t, part] = g
    return {
        name: summarise(rank_information_coefficients(np.where(group == g, expected, np.nan), outcome), lag)
        for g, name in enumerate(REGIMES)
    }


def _momentum(panel: MarketPanel) -> FloatArray:
    past = np.full(panel.close.shape, np.nan)
    past[_BASELINE_BARS:] = panel.close[_BASELINE_BARS:] / panel.close[:-_BASELINE_BARS] - 1.0
    return past


def _btc_beta(panel: MarketPanel) -> FloatArray:
    """Return each coin's trailing beta to BTC times BTC's last return: what a one-factor market predicts if BTC leads."""
    result = np.full(panel.close.shape, np.nan)
    if BTC not in panel.symbols:
        return result
    steps = np.full(panel.close.shape, np.nan)
    steps[1:] = np.log(panel.close[1:] / panel.close[:-1])
    btc = steps[:, panel.symbols.index(BTC)]
    leader = _momentum(panel)[:, panel.symbols.index(BTC)]
    window = 7 * _BASELINE_BARS
    for t in range(window, panel.n_bars):
        x, y = btc[t - window + 1 : t + 1], steps[t - window + 1 : t + 1]
        known = np.isfinite(x)[:, None] & np.isfinite(y)
        square = np.where(known, (x**2)[:, None], 0.0).sum(axis=0)
        cross = np.where(known, x[:, None] * y, 0.0).sum(axis=0)
        result[t] = np.where(square > 0.0, cross / np.where(square > 0.0, square, 1.0), np.nan) * leader[t]
    return result


BASELINES: Final[dict[str, Callable[[MarketPanel], FloatArray]]] = {
    "momentum 24 bars": _momentum,
    "reversal 24 bars": lambda panel: -_momentum(panel),
    "beta to BTC": _btc_beta,
}
"""Rules a model has to beat; the fourth one, no opinion at all, has a RankIC of zero by definition."""


def baseline_coefficients(
    panel: MarketPanel, rows: npt.NDArray[np.int64], outcome: FloatArray, scored: npt.NDArray[np.bool_], lag: int
) -> dict[str, IcSummary]:
    """Return the RankIC of each rule of :data:`BASELINES` on the same bars and coins as the scores."""
    return {
        name: summarise(rank_information_coefficients(np.where(scored, rule(panel)[rows], np.nan), outcome), lag)
        for name, rule in BASELINES.items()
    }

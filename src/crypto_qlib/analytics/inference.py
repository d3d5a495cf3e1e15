"""How sure can one be of a mean return or a Sharpe ratio?

Hourly strategy returns are autocorrelated (positions are held for many bars), so the textbook standard error is too
small. Two ways round it live here: the stationary bootstrap (Politis & Romano 1994), which resamples blocks of random
length, and the Newey-West estimate. The deflated Sharpe ratio (Bailey & Lopez de Prado 2014) says how likely a Sharpe ratio
is to be above what the best of many useless trials would show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_EULER: Final = 0.5772156649015329
_CHUNK: Final = 64
"""Bootstrap samples drawn at a time: bounds memory to 64 series."""


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean and how sure it is.

    Parameters
    ----------
    mean : float
        Mean per period.
    standard_error : float
        Standard deviation of the mean under resampling.
    low, high : float
        Central 95 % of the resampled means.
    """

    mean: float
    standard_error: float
    low: float
    high: float

    @property
    def z(self) -> float:
        """Return mean over standard error; NaN where the error is zero or unknown."""
        return self.mean / self.standard_error if self.standard_error > 0.0 else float("nan")


def newey_west_standard_error(values: FloatArray, lags: int) -> float:
    """Return the standard error of the mean, robust to autocorrelation up to ``lags`` (Bartlett weights).

    ``sqrt((g0 + 2 * sum_k (1 - k / (lags + 1)) * gk) / n)`` with autocovariances ``gk = sum(x_t x_{t-k}) / n``.
    Non-finite values are left out first; NaN below two.
    """
    clean = values[np.isfinite(values)]
    n = clean.size
    if n < 2:  # noqa: PLR2004 - a spread needs two
        return float("nan")
    centred = clean - clean.mean()
    variance = float(centred @ centred) / n
    for lag in range(1, min(lags, n - 1) + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1)) * float(centred[lag:] @ centred[:-lag]) / n
    return math.sqrt(max(variance, 0.0) / n)


def stationary_index(rng: np.random.Generator, n: int, shape: tuple[int, int], mean_block: float) -> npt.NDArray[np.int64]:
    """Return indices of stationary-bootstrap resamples of ``n`` values, one resample a row.

    Each walks through the (circular) series and jumps to a random place with probability ``1 / mean_block`` at every step.

    Parameters
    ----------
    rng : Generator
        Source of randomness.
    n : int
        Length of the series resampled.
    shape : (rows, length)
        Resamples and their length, which may exceed ``n``.
    mean_block : float
        Mean block length, >= 1.
    """
    steps = np.arange(shape[1])
    jump = rng.random(shape) < 1.0 / mean_block
    jump[:, 0] = True
    origin = np.where(jump, rng.integers(0, n, shape), 0)
    last_jump = np.maximum.accumulate(np.where(jump, steps, 0), axis=1)
    index: npt.NDArray[np.int64] = (np.take_along_axis(origin, last_jump, axis=1) + steps - last_jump) % n
    return index


def bootstrap_means(values: FloatArray, mean_block: float, n_samples: int, seed: int) -> FloatArray:
    """Return means of stationary-bootstrap resamples, shape ``(n_samples,)``.

    Each resample walks through the (circular) series and jumps to a random place with probability ``1 / mean_block``
    at every step, so blocks have geometric length and the resample stays stationary. Blocks are drawn whole: time and memory
    grow with their number, not with that of the bars.

    Parameters
    ----------
    values : (n,) float64
        Returns per period; non-finite ones are left out.
    mean_block : float
        Mean block length in periods, >= 1; take at least the holding time of a position.
    n_samples : int
        Resamples.
    seed : int
        Seed of numpy's default generator: the same seed gives the same means.

    Raises
    ------
    ValueError
        If ``mean_block`` is below one period.
    """
    if mean_block < 1.0:
        raise ValueError(f"mean_block must be at least one period, got {mean_block}")
    clean = values[np.isfinite(values)]
    n = clean.size
    if n == 0:
        return np.full(n_samples, np.nan)
    rng = np.random.default_rng(seed)
    means = np.empty(n_samples)
    before = np.concatenate([[0.0], np.cumsum(np.concatenate([clean, clean]))])  # sums of circular blocks in two look-ups
    expected = n / mean_block
    n_blocks = math.ceil(expected + 8.0 * math.sqrt(expected)) + 1
    for start in range(0, n_samples, _CHUNK):
        shape = (min(_CHUNK, n_samples - start), n_blocks)
        ends = np.minimum(np.cumsum(rng.geometric(1.0 / mean_block, shape), axis=1), n)
        ends[:, -1] = n
        lengths = np.diff(ends, axis=1, prepend=0)
        origin = rng.integers(0, n, shape)
        means[start : start + shape[0]] = (before[origin + lengths] - before[origin]).sum(axis=1) / n
    return means


def bootstrap_mean(values: FloatArray, mean_block: float, n_samples: int = 500, seed: int = 7) -> MeanEstimate:
    """Return the mean of ``values`` with its block-bootstrap standard error and central 95 % interval.

    Parameters and errors as in :func:`bootstrap_means`; NaN throughout without finite values.
    """
    clean = values[np.isfinite(values)]
    if not clean.size:
        nan = float("nan")
        return MeanEstimate(nan, nan, nan, nan)
    means = bootstrap_means(clean, mean_block, n_samples, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return MeanEstimate(float(clean.mean()), float(means.std(ddof=1)), float(low), float(high))


def probabilistic_sharpe(returns: FloatArray, benchmark: float = 0.0) -> float:
    """Return the probability that the true Sharpe ratio *per period* exceeds ``benchmark``.

    ``Phi((SR - SR*) * sqrt(n - 1) / sqrt(1 - g3 * SR + (g4 - 1) / 4 * SR^2))`` with skewness ``g3`` and kurtosis ``g4``
    (3 for a normal). NaN below three returns or for a flat series. Source: Bailey & Lopez de Prado, J. Risk 15 (2012).
    """
    clean = returns[np.isfinite(returns)]
    n = clean.size
    spread = float(clean.std(ddof=1)) if n > 2 else 0.0  # noqa: PLR2004 - skewness needs three
    if not spread > 0.0:
        return float("nan")
    ratio = float(clean.mean()) / spread
    scaled = (clean - clean.mean()) / clean.std()
    skewness, kurtosis = float(np.mean(scaled**3)), float(np.mean(scaled**4))
    variance = 1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio**2
    if variance <= 0.0:
        return float("nan")
    return NormalDist().cdf((ratio - benchmark) * math.sqrt(n - 1) / math.sqrt(variance))


def expected_best_sharpe(n_trials: int, sharpe_spread: float) -> float:
    """Return the Sharpe ratio per period the best of ``n_trials`` useless strategies is expected to show.

    ``s * ((1 - c) * z(1 - 1/N) + c * z(1 - 1/(N e)))`` with Euler's constant ``c`` and ``s`` the standard deviation of the
    trials' Sharpe ratios. Zero for a single trial.
    """
    if n_trials <= 1:
        return 0.0
    z = NormalDist().inv_cdf
    return sharpe_spread * ((1.0 - _EULER) * z(1.0 - 1.0 / n_trials) + _EULER * z(1.0 - 1.0 / (n_trials * math.e)))


def deflated_sharpe(returns: FloatArray, n_trials: int, sharpe_spread: float) -> float:
    """Return the probability that the Sharpe ratio beats the best of ``n_trials`` useless trials.

    Parameters
    ----------
    returns : (n,) float64
        Returns per period of the chosen strategy.
    n_trials : int
        Independent configurations tried before choosing.
    sharpe_spread : float
        Standard deviation of the trials' Sharpe ratios, per period.
    """
    return probabilistic_sharpe(returns, expected_best_sharpe(n_trials, sharpe_spread))


def null_sharpe_spread(n_periods: int) -> float:
    """Return the standard deviation of a useless strategy's Sharpe ratio per period, ``1 / sqrt(n - 1)``; NaN below two."""
    return 1.0 / math.sqrt(n_periods - 1) if n_periods > 1 else float("nan")


def probability_of_overfitting(trials: FloatArray, n_blocks: int = 10) -> float:
    """Return how often the best trial in one half of the time falls below the median in the other half.

    Combinatorially symmetric cross-validation: time is cut into ``n_blocks``; for every choice of half of them the trial with
    the best Sharpe ratio inside is ranked outside; the result is the share of choices where it ranks below the middle.
    About 0.5 for useless trials, near 0 where the best is truly best.

    Parameters
    ----------
    trials : (n_periods, n_trials) float64
        Returns of every configuration tried on the same periods, finite.
    n_blocks : int
        Even, >= 2.

    Raises
    ------
    ValueError
        If there are fewer than two trials, or fewer periods than blocks need.

    Notes
    -----
    Source: Bailey, Borwein, Lopez de Prado & Zhu, J. Computational Finance 20 (2017).
    """
    n_periods, n_trials = trials.shape
    if n_trials < 2 or n_blocks < 2 or n_blocks % 2 or n_periods < 2 * n_blocks:  # noqa: PLR2004 - a choice, two halves
        raise ValueError(f"need two trials and {2 * n_blocks} periods, got {n_trials} and {n_periods}")
    blocks = np.array_split(trials, n_blocks)
    count = np.array([len(b) for b in blocks], dtype=np.float64)
    total = np.array([b.sum(axis=0) for b in blocks])
    square = np.array([(b * b).sum(axis=0) for b in blocks])
    below = choices = 0
    for chosen in combinations(range(n_blocks), n_blocks // 2):
        inside = np.zeros(n_blocks, np.bool_)
        inside[list(chosen)] = True
        best = int(np.argmax(_sharpe_of(count[inside], total[inside], square[inside])))
        outside = _sharpe_of(count[~inside], total[~inside], square[~inside])
        rank = float(np.sum(outside < outside[best]) + 0.5 * np.sum(outside == outside[best]) + 0.5)
        below += rank / (n_trials + 1) < 0.5  # noqa: PLR2004 - the middle
        choices += 1
    return below / choices


def _sharpe_of(count: FloatArray, total: FloatArray, square: FloatArray) -> FloatArray:
    """Return each trial's Sharpe ratio per period from block sums; 0 where it never moved."""
    n = count.sum()
    mean = total.sum(axis=0) / n
    spread = np.sqrt(np.maximum(square.sum(axis=0) / n - mean * mean, 0.0))
    ratio: FloatArray = np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 0.0)
    return ratio


@dataclass(frozen=True, slots=True)
class ChosenTrial:
    """What is left of one of many runs once it is known how many were tried.

    Parameters
    ----------
    n_trials : int
        Runs tried on the same periods, the chosen one included.
    best : int
        Column of the run with the highest Sharpe ratio.
    chosen : int
        Column of the run that is judged.
    sharpe : float
        Its Sharpe ratio per period.
    expected_best : float
        Sharpe ratio per period that the best of as many useless runs is expected to show.
    deflated_sharpe : float
        Probability that the chosen run's true Sharpe ratio is above that.
    probability_of_overfitting : float
        How often the best run of one half of the time is below the middle in the other; NaN where there are too few periods.
    """

    n_trials: int
    best: int
    chosen: int
    sharpe: float
    expected_best: float
    deflated_sharpe: float
    probability_of_overfitting: float


def judge_trials(returns: FloatArray, n_blocks: int = 10, chosen: int | None = None) -> ChosenTrial:
    """Say what one of many runs is worth, given that it was chosen among them.

    The spread of useless runs' Sharpe ratios is that of the trials, but at least what chance alone gives over so many periods.

    Parameters
    ----------
    returns : (n_periods, n_trials) float64
        Returns of each run on the same periods; non-finite ones count as 0 (nothing was earned any more).
    n_blocks : int
        Blocks of the cross-validation, even.
    chosen : int | None
        Column that was chosen; ``None`` = the best one.

    Raises
    ------
    ValueError
        If there is no run or fewer than three periods.
    """
    if returns.ndim != 2 or returns.shape[1] < 1 or returns.shape[0] < 3:  # noqa: PLR2004 - skewness needs three
        raise ValueError(f"need at least one run and three periods, got an array of shape {returns.shape}")
    clean = np.nan_to_num(returns, nan=0.0, posinf=0.0, neginf=0.0)
    n_periods, n_trials = clean.shape
    spread = clean.std(axis=0, ddof=1)
    ratios = np.divide(clean.mean(axis=0), spread, out=np.zeros(n_trials), where=spread > 0.0)
    best = int(np.argmax(ratios))
    column = best if chosen is None else chosen
    between = max(float(ratios.std(ddof=1)), null_sharpe_spread(n_periods)) if n_trials > 1 else 0.0
    can_split = n_trials > 1 and n_periods >= 2 * n_blocks
    return ChosenTrial(
        n_trials=n_trials,
        best=best,
        chosen=column,
        sharpe=float(ratios[column]),
        expected_best=expected_best_sharpe(n_trials, between),
        deflated_sharpe=deflated_sharpe(clean[:, column], n_trials, between),
        probability_of_overfitting=probability_of_overfitting(clean, n_blocks) if can_split else float("nan"),
    )

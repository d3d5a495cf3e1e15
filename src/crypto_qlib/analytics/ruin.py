"""How likely is ruin? Days of an account's history resampled in blocks: the chance of a deep fall, and of a liquidation.

1. Each UTC day becomes one row: its growth, its highest and lowest value and its deepest fall inside, all relative to the
   value it began with, and whether a position was liquidated in it.
2. Years are put together from blocks of consecutive days (stationary bootstrap, Politis & Romano 1994), so that bad days stay
   beside the bad days that came with them.
3. A path's deepest fall is exact: the larger of any day's own and of the fall from the highest value so far to a day's lowest.

What never happened in the history cannot be drawn: the figures say how the luck of the draw could have turned out, not what
an unseen crash would do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.inference import stationary_index
from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.jit import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

RUINED = 1e-9
"""Value relative to the start at which an account counts as lost; it stays there."""


@dataclass(frozen=True, slots=True)
class DayRows:
    """One row a day, relative to the value the day began with; each ``(n_days,)``.

    Parameters
    ----------
    growth, high, low : float64
        Last, highest and lowest value over the first; never below zero.
    fall : float64
        Deepest fall from a peak inside the day, fraction.
    liquidated : bool
        Whether a position was liquidated.
    """

    growth: FloatArray
    high: FloatArray
    low: FloatArray
    fall: FloatArray
    liquidated: BoolArray


def day_rows(ts_ns: IntArray, equity: FloatArray, liquidated: BoolArray) -> DayRows:
    """Cut an account's history into days; it ends with the day in which the account was lost.

    Parameters
    ----------
    ts_ns : (n + 1,) int64
        The start, then each bar's close.
    equity : (n + 1,) float64
        Account value, USDT.
    liquidated : (n,) bool
        Whether a position was liquidated in each bar.
    """
    day = (ts_ns[1:] - 1) // NS_PER_DAY  # a close at midnight ends the day
    edges = np.flatnonzero(np.append(True, np.diff(day) != 0))
    stops = np.append(edges[1:], day.size)
    rows: list[tuple[float, float, float, float, bool]] = []
    for start, stop in zip(edges.tolist(), stops.tolist(), strict=True):
        if not equity[start] > 0.0:
            break
        path = np.maximum(equity[start : stop + 1] / equity[start], 0.0)
        peak = np.maximum.accumulate(path)
        rows.append((path[-1], path.max(), path.min(), float((1.0 - path / peak).max()), bool(liquidated[start:stop].any())))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return DayRows(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4] > 0.0)


@dataclass(frozen=True, slots=True)
class RuinOdds:
    """Chances over the horizon.

    Parameters
    ----------
    horizon_days : int
        Length of the resampled paths.
    liquidation : float
        Chance of at least one liquidated position.
    drawdown : dict of float to float
        Depth -> chance that the account falls that far from a peak.
    loss : float
        Chance of ending below the start.
    median_growth, low_growth, high_growth : float
        Median, 5 % and 95 % quantile of final value over the start.
    """

    horizon_days: int
    liquidation: float
    drawdown: dict[float, float]
    loss: float
    median_growth: float
    low_growth: float
    high_growth: float


def ruin_odds(
    days: DayRows,
    depths: tuple[float, ...],
    horizon_days: int,
    mean_block_days: float = 5.0,
    n_samples: int = 2_000,
    seed: int = 7,
) -> RuinOdds:
    """Return the chances of ruin by block bootstrap; all NaN without a day.

    Parameters
    ----------
    days : DayRows
        History.
    depths : tuple of float
        Drawdowns asked for, fractions.
    horizon_days : int
        Days ahead, >= 1.
    mean_block_days : float
        Mean length of a block, >= 1.
    n_samples, seed : int
        Paths drawn, and the seed they come from: the same seed draws the same days for histories of one length.
    """
    if not days.growth.size:
        nan = float("nan")
        return RuinOdds(horizon_days, nan, dict.fromkeys(depths, nan), nan, nan, nan, nan)
    index = stationary_index(np.random.default_rng(seed), days.growth.size, (n_samples, horizon_days), mean_block_days)
    falls, finals, hit = _walk(index, days.growth, days.high, days.low, days.fall, days.liquidated)
    low, median, high = np.quantile(finals, (0.05, 0.5, 0.95))
    return RuinOdds(
        horizon_days=horizon_days,
        liquidation=float(hit.mean()),
        drawdown={depth: float(np.mean(falls >= depth)) for depth in depths},
        loss=float(np.mean(finals < 1.0)),
        median_growth=float(median),
        low_growth=float(low),
        high_growth=float(high),
    )


@njit
def _walk(
    index: IntArray, growth: FloatArray, high: FloatArray, low: FloatArray, fall: FloatArray, liquidated: BoolArray
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return each path's deepest fall, final value and whether a liquidation lay on it."""
    n_paths, n_days = index.shape
    falls = np.zeros(n_paths)
    finals = np.ones(n_paths)
    hit = np.zeros(n_paths, np.bool_)
    for i in range(n_paths):
        value = 1.0
        peak = 1.0
        for k in range(n_days):
            d = index[i, k]
            falls[i] = max(falls[i], fall[d], 1.0 - value * low[d] / peak)
            hit[i] |= liquidated[d]
            peak = max(peak, value * high[d])
            value *= growth[d]
            if value <= RUINED:
                value = 0.0
                falls[i] = 1.0
                break
        finals[i] = value
    return falls, finals, hit

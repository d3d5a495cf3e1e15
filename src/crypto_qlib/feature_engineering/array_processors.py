"""Qlib's processors as array kernels: the same numbers, one pass, in place.

Rows are ordered by bar; ``starts`` holds the first row of each bar and one past the last, so ``starts[k]:starts[k+1]`` is a
bar's cross-section. NaN is left out of every statistic and stays NaN, but where a kernel says otherwise.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import average_ranks
from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.column_medians import median_and_spread

Block = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAD_TO_SIGMA: Final = 1.4826
EPS: Final = 1e-12
RANK_SCALE: Final = 3.46
"""``1 / std`` of a uniform distribution, as Qlib writes it."""


def bar_starts(bars: IntArray) -> IntArray:
    """Return where each bar's rows begin, and the end; ``bars`` does not decrease."""
    return np.append(np.flatnonzero(np.append(True, bars[1:] != bars[:-1])), bars.size).astype(np.int64)


def robust_fit(block: Block) -> tuple[FloatArray, FloatArray]:
    """Return median and scaled median absolute deviation of each column (``RobustZScoreNorm.fit``)."""
    centre, spread = median_and_spread(block)
    return centre, (spread + EPS) * MAD_TO_SIGMA


@njit
def standardise(block: Block, centre: FloatArray, scale: FloatArray, limit: float) -> None:
    """Replace ``x`` by ``(x - centre) / scale``, cut to +-``limit`` (infinite: not at all), in place."""
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            z = (block[i, j] - centre[j]) / scale[j]
            block[i, j] = min(max(z, -limit), limit) if not math.isnan(z) else math.nan


@njit
def cross_section_z(block: Block, starts: IntArray) -> None:
    """Replace ``x`` by ``(x - mean) / std`` over the bar's coins (sample std; NaN for one coin or no spread), in place."""
    for b in range(starts.size - 1):
        for j in range(block.shape[1]):
            total = 0.0
            n = 0
            for i in range(starts[b], starts[b + 1]):
                if not math.isnan(block[i, j]):
                    total += block[i, j]
                    n += 1
            square = 0.0
            for i in range(starts[b], starts[b + 1]):
                if not math.isnan(block[i, j]):
                    square += (block[i, j] - total / n) ** 2
            std = math.sqrt(square / (n - 1)) if n > 1 else math.nan
            for i in range(starts[b], starts[b + 1]):
                block[i, j] = (block[i, j] - total / n) / std if n > 1 and std > 0.0 else math.nan


@njit
def cross_section_rank(block: Block, starts: IntArray) -> None:
    """Replace ``x`` by ``(rank / n - 0.5) * 3.46`` over the bar's coins, ties sharing their mean rank, in place."""
    for b in range(starts.size - 1):
        first, last = starts[b], starts[b + 1]
        values = np.empty(last - first)
        for j in range(block.shape[1]):
            for i in range(first, last):
                values[i - first] = block[i, j]
            ranks = average_ranks(values)
            n = max(int(np.sum(~np.isnan(ranks))), 1)
            for i in range(first, last):
                block[i, j] = (ranks[i - first] / n - 0.5) * RANK_SCALE


@njit
def fill_constant(block: Block, value: float) -> None:
    """Replace NaN by ``value``, in place."""
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            if math.isnan(block[i, j]):
                block[i, j] = value


@njit
def fill_cross_section(block: Block, starts: IntArray, infinite: bool) -> None:
    """Replace NaN (with ``infinite``: infinities instead) by the mean of the bar's other coins, in place."""
    for b in range(starts.size - 1):
        for j in range(block.shape[1]):
            total = 0.0
            n = 0
            holes = 0
            for i in range(starts[b], starts[b + 1]):
                x = block[i, j]
                if math.isnan(x) or math.isinf(x):
                    holes += 1
                if not math.isnan(x) and not (infinite and math.isinf(x)):
                    total += x
                    n += 1
            if holes == 0:
                continue
            mean = total / n if n > 0 else math.nan
            for i in range(starts[b], starts[b + 1]):
                if math.isinf(block[i, j]) if infinite else math.isnan(block[i, j]):
                    block[i, j] = mean

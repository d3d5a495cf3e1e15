"""Which coins move together: clusters by average linkage of trailing return correlations, one partition a UTC day.

For the day starting at midnight ``d``: correlations of the log returns of the ``DAYS`` complete UTC days before it, over the
bars both symbols have (fewer than a day's bars in common: unknown, read as 0). Then the two clusters with the highest mean
correlation between their members are merged, again and again, until that mean falls below the threshold. Ties go to the
lower columns, so the partition is one for all. A cluster is named by its lowest column.

Source: average linkage (UPGMA), Sokal & Michener 1958.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.portfolio.market_columns import DAYS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@njit
def correlations(returns: FloatArray, start: int, stop: int, fewest: int) -> FloatArray:
    """Return the correlations of ``returns[start:stop]``, ``(n_symbols,) * 2``; 0 where fewer than ``fewest`` are common."""
    n = returns.shape[1]
    result = np.eye(n)
    for i in range(n):
        for j in range(i + 1, n):
            m = 0
            si = sj = sii = sjj = sij = 0.0
            for t in range(start, stop):
                a = returns[t, i]
                b = returns[t, j]
                if math.isnan(a) or math.isnan(b):
                    continue
                m += 1
                si += a
                sj += b
                sii += a * a
                sjj += b * b
                sij += a * b
            if m < fewest:
                continue
            vi = sii - si * si / m
            vj = sjj - sj * sj / m
            if vi > 0.0 and vj > 0.0:
                result[i, j] = (sij - si * sj / m) / math.sqrt(vi * vj)
                result[j, i] = result[i, j]
    return result


@njit
def linked(similarity: FloatArray, threshold: float) -> IntArray:
    """Return the cluster of each symbol, ``(n_symbols,)``, named by its lowest column; ``similarity`` is overwritten."""
    n = similarity.shape[0]
    labels = np.arange(n)
    size = np.ones(n)
    while True:
        best = threshold
        first = -1
        second = -1
        for i in range(n):
            if labels[i] != i:
                continue
            for j in range(i + 1, n):
                if labels[j] == j and (similarity[i, j] > best or (first < 0 and similarity[i, j] == best)):
                    best = similarity[i, j]
                    first = i
                    second = j
        if first < 0:
            return labels
        for k in range(n):
            mean = (size[first] * similarity[first, k] + size[second] * similarity[second, k]) / (size[first] + size[second])
            similarity[first, k] = mean
            similarity[k, first] = mean
            if labels[k] == second:
                labels[k] = first
        size[first] += size[second]


@njit
def clusters_by_day(returns: FloatArray, first_row: int, bars_per_day: int, n_days: int, threshold: float) -> IntArray:
    """Return the clusters known *after* each day, ``(n_days + 1, n_symbols)``; in row 0 every symbol stands alone.

    Parameters
    ----------
    returns : (n_bars, n_symbols) float64
        Log returns of the closes, NaN where unknown.
    first_row : int
        Row of the first bar of the first complete day.
    threshold : float
        Mean correlation from which two clusters are one.
    """
    n = returns.shape[1]
    result = np.empty((n_days + 1, n), np.int64)
    for j in range(n):
        result[0, j] = j
    for d in range(1, n_days + 1):
        start = first_row + max(d - DAYS, 0) * bars_per_day
        result[d] = linked(correlations(returns, start, first_row + d * bars_per_day, bars_per_day), threshold)
    return result

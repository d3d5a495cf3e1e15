"""Exact medians of the columns of a large block, and of the distances from them, without sorting anything.

The bits of a float64, read as an integer (the lower ones turned over where it is negative), are ordered as the numbers are. So
a rank is found digit by digit from the top: count how often each digit occurs among the numbers left, go on with those that
share the digit in which the rank lies. Each pass reads what is left once; after the first, which looks at sign, exponent and
the first bits of the fraction, that is a few per cent. The numbers are those of ``numpy.nanmedian`` in float64, bit for bit.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit

Block = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_TILE: Final = 16
"""Columns read together: one cache line of a row of float32."""
_DIGIT_BITS: Final = 14
_DIGITS: Final = 1 << _DIGIT_BITS
_TOP_SHIFT: Final = 50
_LAST_SHIFT: Final = -6
"""Of the last digit 8 bits are left."""
_MAGNITUDE: Final = 0x7FFFFFFFFFFFFFFF


@njit
def _digit(key: int, shift: int) -> int:
    """Return the digit of ``key`` at ``shift``; the top one, with the sign, is moved up so that none is negative."""
    if shift == _TOP_SHIFT:
        return (key >> shift) + (_DIGITS >> 1)
    return ((key >> shift) if shift > 0 else (key << -shift)) & (_DIGITS - 1)


@njit
def _ranked(keys: IntArray, n: int, rank: int, counts: IntArray) -> int:
    """Return the key of place ``rank`` (from 0) among ``keys[:n]``, whose order is lost."""
    shift = _TOP_SHIFT
    while n > 1 and shift >= _LAST_SHIFT:
        counts[:] = 0
        for i in range(n):
            counts[_digit(keys[i], shift)] += 1
        found = 0
        while rank >= counts[found]:
            rank -= counts[found]
            found += 1
        if counts[found] < n:
            kept = 0
            for i in range(n):
                if _digit(keys[i], shift) == found:
                    keys[kept] = keys[i]
                    kept += 1
            n = kept
        shift -= _DIGIT_BITS
    return int(keys[0])


@njit
def _median(values: FloatArray, n: int, keys: IntArray, counts: IntArray) -> float:
    """Return the median of ``values[:n]``, none of them NaN; NaN where there is none."""
    if n == 0:
        return math.nan
    bits = values.view(np.int64)
    for i in range(n):
        b = bits[i]
        keys[i] = b if b >= 0 else b ^ _MAGNITUDE
    low = _ranked(keys, n, (n - 1) // 2, counts)
    keys[0] = low if low >= 0 else low ^ _MAGNITUDE
    lower = keys[:1].view(np.float64)[0]
    if n % 2:
        return float(lower)
    upper, below = math.inf, 0
    for i in range(n):
        if values[i] <= lower:
            below += 1
        elif values[i] < upper:
            upper = values[i]
    return float(0.5 * (lower + (lower if below > n // 2 else upper)))


@njit
def median_and_spread(block: Block) -> tuple[FloatArray, FloatArray]:
    """Return the median of each column, and the median distance from it, ``(n_columns,)`` each; NaN is left out.

    A column without a number has NaN for both.
    """
    rows, columns = block.shape
    centre, spread = np.empty(columns), np.empty(columns)
    tile, values = np.empty((_TILE, rows)), np.empty(rows)
    keys, counts = np.empty(max(rows, 1), np.int64), np.empty(_DIGITS, np.int64)
    for first in range(0, columns, _TILE):
        width = min(_TILE, columns - first)
        for i in range(rows):
            for j in range(width):
                tile[j, i] = block[i, first + j]
        for j in range(width):
            n = 0
            for i in range(rows):
                if not math.isnan(tile[j, i]):
                    values[n] = tile[j, i]
                    n += 1
            middle = _median(values, n, keys, counts)
            apart = 0
            for i in range(n):
                distance = abs(values[i] - middle)
                if not math.isnan(distance):  # infinity less infinity
                    values[apart] = distance
                    apart += 1
            centre[first + j], spread[first + j] = middle, _median(values, apart, keys, counts)
    return centre, spread

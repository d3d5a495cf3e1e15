"""Random numbers by counter: the n-th draw of a stream is a hash of (key, n), so any draw can be had without the others.

That is what makes a simulated market reproducible piece by piece: minute 300 000 of one coin needs no other minute,
and a longer market has the shorter one as its exact beginning. Uniform bits come from the SplitMix64 finaliser;
distributions come from quantile tables that are exactly antisymmetric, so every mean is exactly zero.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the mixing constants).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit

FloatArray = npt.NDArray[np.float64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_A: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B: Final = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)

TABLE_BITS: Final = 12
TABLE_SIZE: Final = 1 << TABLE_BITS
_INDEX_SHIFT: Final = np.uint64(64 - TABLE_BITS)
_FRACTION_SHIFT: Final = np.uint64(64 - TABLE_BITS - 14)
_FRACTION_MASK: Final = np.uint64((1 << 14) - 1)
_FRACTION_UNIT: Final = 1.0 / (1 << 14)
_UNIFORM_SHIFT: Final = np.uint64(11)
_UNIFORM_UNIT: Final = 2.0**-53


@njit
def mix(key: np.uint64, counter: int) -> np.uint64:
    """Return 64 well-mixed bits for draw ``counter`` of stream ``key``."""
    z = key + np.uint64(counter) * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_A
    z = (z ^ (z >> _S27)) * _MIX_B
    return z ^ (z >> _S31)


@njit
def stream_key(seed: int, stream: int, member: int) -> np.uint64:
    """Return the key of one stream (what is drawn) of one member (which coin)."""
    return mix(mix(mix(np.uint64(seed), 1), stream), member)


@njit
def table_draw(bits: np.uint64, table: FloatArray) -> float:
    """Return the quantile of ``table`` picked by the *top* 26 bits (12 index, 14 interpolate)."""
    i = int(bits >> _INDEX_SHIFT)
    w = (float((bits >> _FRACTION_SHIFT) & _FRACTION_MASK) + 0.5) * _FRACTION_UNIT
    return float(table[i] + w * (table[i + 1] - table[i]))


@njit
def uniform(bits: np.uint64) -> float:
    """Return a number in [0, 1) from the top 53 bits."""
    return float(bits >> _UNIFORM_SHIFT) * _UNIFORM_UNIT


def _antisymmetric_unit(half: FloatArray) -> FloatArray:
    """Return ``[-half reversed, 0, half]`` scaled to unit variance of the interpolated draw."""
    table = np.concatenate([-half[::-1], [0.0], half])
    lower, upper = table[:-1], table[1:]
    variance = float(np.mean((lower * lower + lower * upper + upper * upper) / 3.0))
    return table / math.sqrt(variance)


def normal_table() -> FloatArray:
    """Return ``TABLE_SIZE + 1`` quantiles of the normal distribution (unit variance, cut at 1/(2N))."""
    n = TABLE_SIZE // 2
    p = [0.5 + 0.5 * (k if k < n else n - 0.25) / n for k in range(1, n + 1)]
    return _antisymmetric_unit(np.array([NormalDist().inv_cdf(x) for x in p]))


def student4_table() -> FloatArray:
    """Return ``TABLE_SIZE + 1`` quantiles of Student's t with 4 degrees of freedom, unit variance.

    Closed form: ``2 sign(p - 1/2) sqrt(cos(acos(sqrt a) / 3) / sqrt a - 1)`` with ``a = 4 p (1 - p)``.
    """
    n = TABLE_SIZE // 2
    k = np.arange(1, n + 1, dtype=np.float64)
    k[-1] = n - 0.25
    p = 0.5 + 0.5 * k / n
    a = 4.0 * p * (1.0 - p)
    return _antisymmetric_unit(2.0 * np.sqrt(np.cos(np.arccos(np.sqrt(a)) / 3.0) / np.sqrt(a) - 1.0))


def exponential_table() -> FloatArray:
    """Return ``TABLE_SIZE`` mid-point quantiles of the exponential distribution, mean exactly 1."""
    table = -np.log1p(-(np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE)
    return table / float(table.mean())

"""The minutes of one hour of the simulated market: factor returns, one coin's prices, volumes, mark and index.

The same function serves the streaming pass over all hours and every later request, so the bits agree by construction.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.venue import market_layout as c
from crypto_qlib.venue.counter_noise import mix, stream_key, table_draw, uniform

FloatArray = npt.NDArray[np.float64]
KeyArray = npt.NDArray[np.uint64]
Tables = tuple[FloatArray, FloatArray, FloatArray]
"""Quantiles of Student's t4, the normal and the exponential distribution."""

_ROOT_60, _ROOT_15 = math.sqrt(60.0), math.sqrt(15.0)
_QUOTE_STEPS: Final = 64.0
"""Minute turnover is rounded to 1/64 USDT: such sums are exact in float64 in any order."""
_CUT_A, _CUT_B, _CUT_C = np.uint64(26), np.uint64(38), np.uint64(50)
_INDEX_SHIFT: Final = np.uint64(52)
_SIX_BITS: Final = np.uint64(63)
_LIMIT: Final = 0.5
"""Largest minute return either way; symmetric, so the martingale stays one."""
_FACTOR_JUMP_RATE, _FACTOR_JUMP_SIZE = 1.0 / 400.0, 4.5
_JUMP_RATE, _JUMP_SIZE = 1.0 / 350.0, 6.0
"""Chance per hour, and root mean square in hourly sigmas."""
_ALT_FOLLOWS: Final = 1.2
"""Jump of the factor of all other coins when BTC jumps, relative to BTC's, each in its own sigmas."""
_RANGE_VARIANCE: Final = 1.2
"""Variance of the bridge inside a minute relative to the minute's own: quotes bounce more than closes do."""


@njit
def _jump(key: np.uint64, hour: int, rate: float, rms: float, normal: FloatArray) -> tuple[int, float]:
    """Return (minute of the jump or -1, its size): symmetric around zero with root mean square ``rms``."""
    bits = mix(key, 2 * hour)
    if uniform(bits) >= rate:
        return -1, 0.0
    other = mix(key, 2 * hour + 1)
    return int(bits & _SIX_BITS) % c.MINUTES, rms * table_draw(other, normal)


@njit
def factor_minutes(seed: int, hour: int, sigmas: FloatArray, student: FloatArray, normal: FloatArray, out: FloatArray) -> None:
    """Fill ``out (FACTOR_COUNT, 60)`` with the factors' minute returns of one hour."""
    follow_at, follow = -1, 0.0
    for k in range(c.FACTOR_COUNT):
        key = stream_key(seed, c.FACTOR_STREAM, k)
        scale = sigmas[k] / _ROOT_60
        for m in range(c.MINUTES):
            out[k, m] = scale * table_draw(mix(key, hour * c.MINUTES + m), student)
        at, size = _jump(stream_key(seed, c.FACTOR_JUMP_STREAM, k), hour, _FACTOR_JUMP_RATE, _FACTOR_JUMP_SIZE, normal)
        if at >= 0:
            out[k, at] += size * sigmas[k]
            if k == 0:
                follow_at, follow = at, _ALT_FOLLOWS * size * sigmas[1]
    if follow_at >= 0:
        out[1, follow_at] += follow


@njit
def _mark_noise(key: np.uint64, minute: int, scale: float, student: FloatArray) -> float:
    return 1.0 - scale * table_draw(mix(key, minute), student)


@njit
def symbol_minutes(
    keys: KeyArray,
    hour: int,
    coin: FloatArray,
    row: FloatArray,
    factors: FloatArray,
    tables: Tables,
    out: FloatArray,
) -> tuple[float, float]:
    """Fill ``out (60, MINUTE_FIELDS)`` with one coin's minutes, prices in ticks (index in tenths of a tick), sizes in lots.

    Returns
    -------
    tuple of float
        Latent price at the end of the hour, and the sum of the coin's own returns (neither factors nor jumps of them).
    """
    student, normal, expo = tables
    per_unit = coin[c.TICKS_PER_UNIT]
    beta, alt, sec, sector = coin[c.BETA], coin[c.ALT_LOAD], coin[c.SECTOR_LOAD], 2 + int(coin[c.SECTOR])
    own, total = row[c.OWN_SIGMA] / _ROOT_60, row[c.TOTAL_SIGMA] / _ROOT_60
    drift, lot_rate = row[c.DRIFT] / c.MINUTES, row[c.LOT_RATE] / c.MINUTES
    jump_at, jump_size = _jump(keys[1], hour, _JUMP_RATE, _JUMP_SIZE * row[c.OWN_SIGMA], normal)
    quote_per = coin[c.BASE_PER_LOT] / per_unit
    bridge = 2.0 * _RANGE_VARIANCE * total * total
    minute = hour * c.MINUTES
    start = row[c.START_PRICE]
    price, own_sum = start, 0.0
    last = max(math.floor(price * per_unit + 0.5), 1.0)
    mark = max(math.floor(price * per_unit * _mark_noise(keys[2], minute - 1, coin[c.MARK_NOISE], student) + 0.5), 1.0)
    premium = row[c.PREMIUM_BEFORE]
    index = max(math.floor(price * per_unit * 10.0 / (1.0 + premium) + 0.5), 1.0)
    premium_step = (row[c.PREMIUM] - premium) / c.MINUTES
    for m in range(c.MINUTES):
        bits = mix(keys[0], minute + m)
        mine = own * table_draw(bits, student) + drift
        if m == jump_at:
            mine += jump_size
        r = beta * factors[0, m] + alt * factors[1, m] + sec * factors[sector, m] + mine
        r = min(max(r, -_LIMIT), _LIMIT)
        own_sum += mine
        up = 0.5 * (r + math.sqrt(r * r + bridge * expo[int((bits << _CUT_A) >> _INDEX_SHIFT)]))
        down = 0.5 * (r - math.sqrt(r * r + bridge * expo[int((bits << _CUT_B) >> _INDEX_SHIFT)]))
        ticks = price * per_unit
        price = max(price * (1.0 + r), 1.0 / per_unit)
        close = max(math.floor(price * per_unit + 0.5), 1.0)
        high = max(math.floor(ticks * (1.0 + up) + 0.5), last, close)
        low = max(min(math.floor(ticks * (1.0 + max(down, -_LIMIT)) + 0.5), last, close), 1.0)
        travelled = abs(price - start) / (start * total * _ROOT_15)
        burst = 0.2 + 0.4 * min(abs(r) / total, 12.0) + 0.4 * min(travelled, 12.0)
        lots = 1.0 + math.floor(lot_rate * burst * (0.3 + 0.7 * expo[int((bits << _CUT_C) >> _INDEX_SHIFT)]))
        out[m, c.M_OPEN], out[m, c.M_HIGH], out[m, c.M_LOW], out[m, c.M_CLOSE] = last, high, low, close
        out[m, c.M_LOTS] = lots
        typical = (high + low + 2.0 * close) * 0.25
        out[m, c.M_QUOTE] = math.floor(lots * typical * quote_per * _QUOTE_STEPS + 0.5) / _QUOTE_STEPS
        mark_close = max(
            math.floor(price * per_unit * _mark_noise(keys[2], minute + m, coin[c.MARK_NOISE], student) + 0.5), 1.0
        )
        above, below = high - max(last, close), min(last, close) - low
        out[m, c.M_MARK_OPEN], out[m, c.M_MARK_CLOSE] = mark, mark_close
        out[m, c.M_MARK_HIGH] = max(mark, mark_close) + math.floor(0.9 * above)
        out[m, c.M_MARK_LOW] = max(min(mark, mark_close) - math.floor(0.9 * below), 1.0)
        premium += premium_step
        index_close = max(math.floor(price * per_unit * 10.0 / (1.0 + premium) + 0.5), 1.0)
        out[m, c.M_INDEX_OPEN], out[m, c.M_INDEX_CLOSE] = index, index_close
        out[m, c.M_INDEX_HIGH] = max(index, index_close) + math.floor(8.0 * above)
        out[m, c.M_INDEX_LOW] = max(min(index, index_close) - math.floor(8.0 * below), 1.0)
        last, mark, index = close, mark_close, index_close
    return price, own_sum


@njit
def coin_keys(seed: int, k: int) -> KeyArray:
    """Return the keys of coin ``k``: minute noise, jumps, mark noise, hourly noise."""
    keys = np.empty(4, np.uint64)
    keys[0], keys[1] = stream_key(seed, c.MINUTE_STREAM, k), stream_key(seed, c.JUMP_STREAM, k)
    keys[2], keys[3] = stream_key(seed, c.MARK_STREAM, k), stream_key(seed, c.COIN_STREAM, k)
    return keys

"""The simulated market's paths: one compiled pass over hours, and the minutes of any hour on demand.

Algorithm, for hour ``h`` and coin ``i`` (all noise by counter, see ``counter_noise``):

1. Market log-volatility is a sum of three AR(1) processes (half-lives 5, 48, 400 h); each coin shares part of it and
   adds two of its own. Both carry the hour-of-day and weekend season.                       -> ``_market_hour``
2. Factors: BTC, one of all other coins, one a sector. Per minute ``f = sigma_f / sqrt(60) * t4`` plus a rare jump.
                                                                             -> ``market_minutes.factor_minutes``
3. A coin's minute return ``r = beta f_btc + a f_alt + s f_sector + own + jump + drift`` moves its latent price,
   ``p <- p (1 + r)``. Every term but ``drift`` is symmetric around zero given the past, so prices are a martingale
   where ``drift = 0``. Highs and lows are extremes of a Brownian bridge.    -> ``market_minutes.symbol_minutes``
4. Volume per minute follows the hour's volatility, the minute's |r| and noise, in whole lots.        -> the same
5. The premium of the last price over the index is an AR(1) driven by past returns and rare shocks; the mark is the
   last price without its minute noise; funding is settled from the mean premium.               -> ``_settle``
6. The planted signal ``a = 0.8 m + 0.6 l``: ``m`` is the running mean of the coin's own past returns, ``l`` a hidden
   AR(1) that also lifts volume and premium. ``drift = strength * g * sigma_own * (a - mean a)``, with the mean over
   the coins alive but BTC, so the market as a whole does not drift.                             -> ``_plant``

An hour's stored row holds what its minutes are grown from, so minutes regenerated later are the same bits.
Nothing is drawn from a sequence or depends on the market's end: a longer market begins with the shorter one.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.funding import funding_rate_2026
from crypto_qlib.core.jit import njit
from crypto_qlib.venue import market_layout as c
from crypto_qlib.venue.counter_noise import mix, stream_key, table_draw, uniform
from crypto_qlib.venue.market_minutes import KeyArray, Tables, factor_minutes, symbol_minutes

FloatArray = npt.NDArray[np.float64]

# State carried per coin from hour to hour.
_PRICE, _VOL_FAST, _VOL_SLOW, _VOLUME, _OI, _HIDDEN, _MOMENTUM, _CALM, _SHOCK, _LEVEL = range(10)
_PREMIUM_SUM, _PREMIUM_HOURS, _INTERVAL, _LAST_RETURN = range(10, 14)
_STATE_FIELDS: Final = 14

_ROOT_24: Final = math.sqrt(24.0)
_DRAWS: Final = 9
"""Hourly draws per coin; the counter of draw ``j`` of hour ``h`` is ``9 h + j``."""

_MORNING: Final = (1.10, 1.12, 0.99, 0.90, 0.87, 0.90, 0.92, 0.90, 0.94, 0.87, 0.85, 0.86)
_EVENING: Final = (0.98, 1.23, 1.35, 1.29, 1.17, 1.14, 1.03, 0.98, 0.97, 0.96, 0.94, 0.80)
_SEASON: Final = np.array([*_MORNING, *_EVENING])
"""Volatility by UTC hour relative to its mean."""
_WEEKEND: Final = 0.82

# Tuned against real hours, see benchmarks/stylised_facts.py and docs/market_simulator.md.
BTC_DAY_VOL: Final = 0.0255
_MARKET_VOL_SD: Final = np.array([0.36, 0.17, 0.33])
_MARKET_VOL_RHO: Final = np.array([0.5 ** (1 / 5.0), 0.5 ** (1 / 48.0), 0.5 ** (1 / 400.0)])
_MARKET_VOL_VAR: Final = float(np.sum(_MARKET_VOL_SD**2))
_COIN_SHARE, _FACTOR_SHARE = 0.6, 0.8
_COIN_VOL_SD, _COIN_VOL_RHO = (0.30, 0.30), (0.5 ** (1 / 4.0), 0.5 ** (1 / 200.0))
_OWN_SPREAD: Final = _COIN_VOL_SD[0] ** 2 + _COIN_VOL_SD[1] ** 2 + _COIN_SHARE**2 * _MARKET_VOL_VAR
_VOLUME_SD, _VOLUME_RHO, _VOLUME_NOISE = 0.45, 0.5 ** (1 / 30.0), 0.25
_OI_SD, _OI_RHO = 0.25, 0.5 ** (1 / 150.0)
_PREMIUM_RHO, _PREMIUM_MEAN, _PREMIUM_PULL = 0.5 ** (1 / 8.0), -2.5e-4, 0.004
_SHOCK_RATE, _SHOCK_RHO, _SHOCK_SIZE, _SHOCK_LEAN = 1.0 / 5000.0, 0.5 ** (1 / 10.0), 0.03, 0.3
_SHOCK_FROM_SCALE: Final = 1.5e-4
"""Only coins whose premium is at least this noisy see premium shocks."""
_HIDDEN_RHO, _MOMENTUM_RHO = 0.5 ** (1 / 60.0), 0.5 ** (1 / 24.0)
_SIGNAL_GAIN: Final = 0.05
"""Drift per hour at strength 1, in the coin's own hourly sigma per unit of the signal."""
_MOMENTUM_WEIGHT, _HIDDEN_WEIGHT = 0.8, 0.6
_HIDDEN_IN_VOLUME, _HIDDEN_IN_PREMIUM = 0.45, 0.8
_TRANSITION_HOURS: Final = 168.0
"""How long a new coin is wild, and how long before its end a delisted one has been announced."""
_SATURDAY: Final = 5
_EPOCH_WEEKDAY: Final = 3


@njit
def coin_keys(seed: int, k: int) -> KeyArray:
    """Return the keys of coin ``k``: minute noise, jumps, mark noise, hourly noise."""
    keys = np.empty(4, np.uint64)
    keys[0], keys[1] = stream_key(seed, c.MINUTE_STREAM, k), stream_key(seed, c.JUMP_STREAM, k)
    keys[2], keys[3] = stream_key(seed, c.MARK_STREAM, k), stream_key(seed, c.COIN_STREAM, k)
    return keys


@njit
def _store_hour(row: FloatArray, minutes: FloatArray) -> None:
    """Write the hour's published bar: first, max, min, last and sums of its minutes."""
    end = c.MINUTES - 1
    row[c.OPEN], row[c.MARK_OPEN] = minutes[0, c.M_OPEN], minutes[0, c.M_MARK_OPEN]
    row[c.CLOSE], row[c.MARK_CLOSE] = minutes[end, c.M_CLOSE], minutes[end, c.M_MARK_CLOSE]
    high, low = minutes[0, c.M_HIGH], minutes[0, c.M_LOW]
    mark_high, mark_low = minutes[0, c.M_MARK_HIGH], minutes[0, c.M_MARK_LOW]
    lots, quote = 0.0, 0.0
    for m in range(c.MINUTES):
        high, low = max(high, minutes[m, c.M_HIGH]), min(low, minutes[m, c.M_LOW])
        mark_high, mark_low = max(mark_high, minutes[m, c.M_MARK_HIGH]), min(mark_low, minutes[m, c.M_MARK_LOW])
        lots += minutes[m, c.M_LOTS]
        quote += minutes[m, c.M_QUOTE]
    row[c.HIGH], row[c.LOW], row[c.MARK_HIGH], row[c.MARK_LOW] = high, low, mark_high, mark_low
    row[c.LOTS], row[c.QUOTE] = lots, quote


@njit
def _ar(value: float, rho: float, sd: float, z: float, is_first: bool) -> float:
    """Return the next value of an AR(1) of standard deviation ``sd``; its first is drawn from the stationary law."""
    return sd * z if is_first else rho * value + math.sqrt(1.0 - rho * rho) * sd * z


@njit
def _market_hour(
    seed: int, hour: int, utc_hour: int, vols: FloatArray, normal: FloatArray, sigmas: FloatArray
) -> tuple[float, float]:
    """Advance the market's log-volatility, fill the factors' hourly sigmas; return (log-volatility, season)."""
    key = stream_key(seed, c.MARKET_VOL_STREAM, 0)
    level = 0.0
    for j in range(3):
        z = table_draw(mix(key, 3 * hour + j), normal)
        vols[j] = _ar(vols[j], _MARKET_VOL_RHO[j], _MARKET_VOL_SD[j], z, hour == 0)
        level += vols[j]
    is_weekend = (utc_hour // 24 + _EPOCH_WEEKDAY) % 7 >= _SATURDAY
    season = _SEASON[utc_hour % 24] * (_WEEKEND if is_weekend else 1.0)
    sigmas[0] = BTC_DAY_VOL / _ROOT_24 * math.exp(level - _MARKET_VOL_VAR) * season
    shared = math.exp(_FACTOR_SHARE * level - _FACTOR_SHARE**2 * _MARKET_VOL_VAR) * season / _ROOT_24
    for k in range(1, c.FACTOR_COUNT):
        sigmas[k] = shared
    return level, season


@njit
def _settle(state: FloatArray, coin: FloatArray, row: FloatArray, utc_hour: int) -> None:
    """Settle funding at the hour's open where it is due; step the interval 8, 4, 2, 1 h while the cap is hit.

    Source: OKX announcement of 2026-04-14 (one level down per settlement at the cap, back when the premium is normal).
    """
    interval = int(state[_INTERVAL])
    if utc_hour % interval != 0 or state[_PREMIUM_HOURS] < 1.0:
        return
    mean = state[_PREMIUM_SUM] / state[_PREMIUM_HOURS]
    rate = funding_rate_2026(mean, float(interval), -coin[c.CAP], coin[c.CAP])
    row[c.FUNDING] = math.floor(rate * 1e8 + 0.5) / 1e8
    state[_PREMIUM_SUM], state[_PREMIUM_HOURS] = 0.0, 0.0
    if abs(rate) >= coin[c.CAP] and interval > 1:
        state[_INTERVAL] = interval // 2
    elif abs(mean) < 0.5 * coin[c.CAP] and interval < coin[c.INTERVAL]:
        state[_INTERVAL] = coin[c.INTERVAL]


@njit
def _advance_premium(
    key: np.uint64, hour: int, coin: FloatArray, normal: FloatArray, state: FloatArray, row: FloatArray
) -> None:
    """Move the premium on: a calm AR(1) pulled by the last hour's return, rare shocks, and the hidden state's share."""
    is_first = hour == int(coin[c.LISTED])
    scale, at = coin[c.PREMIUM_SCALE], _DRAWS * hour
    calm = _ar(state[_CALM], _PREMIUM_RHO, scale, table_draw(mix(key, at + 5), normal), is_first)
    state[_CALM] = calm + _PREMIUM_PULL * state[_LAST_RETURN]
    state[_SHOCK] *= _SHOCK_RHO
    if scale > _SHOCK_FROM_SCALE and uniform(mix(key, at + 6)) < _SHOCK_RATE:
        state[_SHOCK] += _SHOCK_SIZE * (table_draw(mix(key, at + 7), normal) - _SHOCK_LEAN)
    level = _PREMIUM_MEAN + state[_CALM] + state[_SHOCK] + _HIDDEN_IN_PREMIUM * scale * state[_HIDDEN]
    row[c.PREMIUM] = level
    row[c.PREMIUM_BEFORE] = level if is_first else state[_LEVEL]
    state[_LEVEL] = level


@njit
def _advance_coin(
    key: np.uint64,
    hour: int,
    market: tuple[float, float],
    coin: FloatArray,
    normal: FloatArray,
    state: FloatArray,
    row: FloatArray,
) -> None:
    """Move one coin's hourly processes on and write what its minutes are grown from (all but the drift)."""
    level, season = market
    is_first = hour == int(coin[c.LISTED])
    at = _DRAWS * hour
    for j in range(2):
        z = table_draw(mix(key, at + j), normal)
        state[_VOL_FAST + j] = _ar(state[_VOL_FAST + j], _COIN_VOL_RHO[j], _COIN_VOL_SD[j], z, is_first)
    state[_VOLUME] = _ar(state[_VOLUME], _VOLUME_RHO, _VOLUME_SD, table_draw(mix(key, at + 2), normal), is_first)
    state[_OI] = _ar(state[_OI], _OI_RHO, _OI_SD, table_draw(mix(key, at + 3), normal), is_first)
    state[_HIDDEN] = _ar(state[_HIDDEN], _HIDDEN_RHO, 1.0, table_draw(mix(key, at + 4), normal), is_first)
    young = math.exp(-(hour - coin[c.LISTED]) / 48.0) if coin[c.LISTED] > 0.0 else 0.0
    dying = 1.0 if coin[c.DELISTED] - hour <= _TRANSITION_HOURS else 0.0
    own_level = state[_VOL_FAST] + state[_VOL_SLOW]
    own = math.exp(_COIN_SHARE * level + own_level - _OWN_SPREAD)
    row[c.OWN_SIGMA] = coin[c.OWN_VOL] / _ROOT_24 * season * own * (1.0 + young) * (1.0 + 0.5 * dying)
    calm = state[_VOLUME] + _VOLUME_NOISE * table_draw(mix(key, at + 8), normal) + _HIDDEN_IN_VOLUME * state[_HIDDEN] - 0.2
    lively = season * math.exp(0.8 * (level + 0.5 * own_level) + calm)
    row[c.LOT_RATE] = coin[c.DAY_LOTS] / 24.0 * lively * (1.0 + 3.0 * young) * (1.0 - 0.7 * dying)
    row[c.OPEN_INTEREST] = coin[c.OI_SCALE] * math.exp(state[_OI])
    row[c.START_PRICE] = coin[c.FIRST_PRICE] if is_first else state[_PRICE]
    _advance_premium(key, hour, coin, normal, state, row)


@njit
def _plant(strength: float, hour: int, coins: FloatArray, states: FloatArray, hourly: FloatArray) -> None:
    """Write every living coin's drift: ``strength * g * sigma_own * (a - mean a)``; 0 at strength 0."""
    total, alive = 0.0, 0
    for i in range(coins.shape[0]):
        if coins[i, c.LISTED] <= hour < coins[i, c.DELISTED] and coins[i, c.OWN_VOL] > 0.0:
            total += _MOMENTUM_WEIGHT * states[i, _MOMENTUM] + _HIDDEN_WEIGHT * states[i, _HIDDEN]
            alive += 1
    mean = total / max(alive, 1)
    for i in range(coins.shape[0]):
        signal = _MOMENTUM_WEIGHT * states[i, _MOMENTUM] + _HIDDEN_WEIGHT * states[i, _HIDDEN]
        hourly[i, hour, c.DRIFT] = strength * _SIGNAL_GAIN * hourly[i, hour, c.OWN_SIGMA] * (signal - mean)


@njit
def _total_sigma(coin: FloatArray, own: float, sigmas: FloatArray) -> float:
    """Return the standard deviation of a coin's whole hourly return."""
    btc, alt, sector = coin[c.BETA] * sigmas[0], coin[c.ALT_LOAD] * sigmas[1], coin[c.SECTOR_LOAD] * sigmas[2]
    return math.sqrt(btc * btc + alt * alt + sector * sector + own * own)


@njit
def _absorb(state: FloatArray, coin: FloatArray, row: FloatArray, price: float, own_return: float) -> None:
    """Carry what the hour did into the next one: price, premium mean, running mean of own returns."""
    state[_LAST_RETURN] = price / row[c.START_PRICE] - 1.0
    state[_PRICE] = price
    state[_PREMIUM_SUM] += row[c.PREMIUM]
    state[_PREMIUM_HOURS] += 1.0
    if coin[c.OWN_VOL] > 0.0:
        z = own_return / row[c.OWN_SIGMA]
        gain = math.sqrt(1.0 - _MOMENTUM_RHO * _MOMENTUM_RHO)
        state[_MOMENTUM] = _MOMENTUM_RHO * state[_MOMENTUM] + gain * min(max(z, -4.0), 4.0)


@njit
def run_hours(
    seed: int, start_utc_hour: int, n_hours: int, strength: float, coins: FloatArray, tables: Tables
) -> tuple[FloatArray, FloatArray]:
    """Simulate every hour of every coin.

    Parameters
    ----------
    seed : int
        Seed of all noise.
    start_utc_hour : int
        Hours from the epoch to the market's start.
    n_hours : int
        Length.
    strength : float
        Planted signal, 0..1.
    coins : (n_coins, COIN_FIELDS) float64
        Traits, columns of ``market_layout``.
    tables : tuple of arrays
        Student-t, normal and exponential quantiles.

    Returns
    -------
    hourly : (n_coins, n_hours, HOUR_FIELDS) float64
        Published bars (ticks, lots, USDT) and seeds of the minutes; NaN while a coin is not listed.
    sigmas : (n_hours, FACTOR_COUNT) float64
        The factors' hourly standard deviations.
    """
    n_coins = coins.shape[0]
    hourly = np.full((n_coins, n_hours, c.HOUR_FIELDS), np.nan)
    sigmas = np.empty((n_hours, c.FACTOR_COUNT))
    states = np.zeros((n_coins, _STATE_FIELDS))
    states[:, _INTERVAL] = coins[:, c.INTERVAL]
    keys = np.empty((n_coins, 4), np.uint64)
    for i in range(n_coins):
        keys[i] = coin_keys(seed, i)
    vols, minutes, factors = np.zeros(3), np.empty((c.MINUTES, c.MINUTE_FIELDS)), np.empty((c.FACTOR_COUNT, c.MINUTES))
    for hour in range(n_hours):
        utc_hour = start_utc_hour + hour
        market = _market_hour(seed, hour, utc_hour, vols, tables[1], sigmas[hour])
        factor_minutes(seed, hour, sigmas[hour], tables[0], tables[1], factors)
        for i in range(n_coins):
            if coins[i, c.LISTED] <= hour < coins[i, c.DELISTED]:
                _settle(states[i], coins[i], hourly[i, hour], utc_hour)
                _advance_coin(keys[i, 3], hour, market, coins[i], tables[1], states[i], hourly[i, hour])
        _plant(strength, hour, coins, states, hourly)
        for i in range(n_coins):
            if coins[i, c.LISTED] <= hour < coins[i, c.DELISTED]:
                row = hourly[i, hour]
                row[c.TOTAL_SIGMA] = _total_sigma(coins[i], row[c.OWN_SIGMA], sigmas[hour])
                price, own_return = symbol_minutes(keys[i], hour, coins[i], row, factors, tables, minutes)
                _store_hour(row, minutes)
                _absorb(states[i], coins[i], row, price, own_return)
    return hourly, sigmas


@njit
def grow_minutes(
    seed: int, k: int, hours: tuple[int, int], coins: FloatArray, hourly: FloatArray, sigmas: FloatArray, tables: Tables
) -> FloatArray:
    """Return the minutes of coin ``k`` for ``hours[0] <= hour < hours[1]``, all of which it must be listed in.

    Returns
    -------
    (60 * n_hours, MINUTE_FIELDS) float64
        Prices in ticks, index in tenths of ticks, sizes in lots.
    """
    out = np.empty((max(hours[1] - hours[0], 0) * c.MINUTES, c.MINUTE_FIELDS))
    factors = np.empty((c.FACTOR_COUNT, c.MINUTES))
    keys = coin_keys(seed, k)
    for hour in range(hours[0], hours[1]):
        at = (hour - hours[0]) * c.MINUTES
        factor_minutes(seed, hour, sigmas[hour], tables[0], tables[1], factors)
        symbol_minutes(keys, hour, coins[k], hourly[k, hour], factors, tables, out[at : at + c.MINUTES])
    return out

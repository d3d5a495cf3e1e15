"""How many accounts of the simulated market are long for each that is short: a crowd that fades what the price did.

``log ratio(h) = level + n(h) - lean q(h)`` at the open of hour ``h``:

- ``level`` is the coin's own: private accounts are long more often than short, of small coins most of all;
- ``n`` is an AR(1) of moods that last for days;
- ``q`` is the running mean of the coin's hourly returns in units of their volatility, over the hours closed *before* ``h``:
  accounts sell what has risen and buy what has fallen, so the ratio falls in a rally.

Nothing of it feeds back into prices, and it holds nothing later than ``h``. It is not fitted to data. A longer market begins
with exactly the shorter one.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.venue import market_layout as c
from crypto_qlib.venue.counter_noise import mix, stream_key, table_draw

FloatArray = npt.NDArray[np.float64]

_LEVEL, _LEVEL_SD = 0.4, 0.25
_MOOD_SD, _MOOD_RHO = 0.18, 0.5 ** (1 / 72.0)
_LEAN, _FADE_RHO = 0.12, 0.5 ** (1 / 24.0)
_FADE_GAIN: Final = math.sqrt(1.0 - _FADE_RHO * _FADE_RHO)
_LARGEST_SURPRISE: Final = 4.0
"""A return counts as at most this many sigmas."""
_LEVEL_DRAW: Final = -1
"""Counter of the draw of a coin's level; the hours' are their own numbers."""


@njit
def crowd_ratios(seed: int, k: int, hourly: FloatArray, normal: FloatArray) -> FloatArray:
    """Return accounts long per account short at the open of every hour, ``(n_hours,)``; NaN while the coin is not listed.

    Parameters
    ----------
    seed : int
        Seed of all noise.
    k : int
        The coin's place in the catalogue.
    hourly : (n_hours, HOUR_FIELDS) float64
        The coin's stored rows; NaN while it is not listed.
    normal : (n,) float64
        Quantiles of the normal distribution.
    """
    key = stream_key(seed, c.CROWD_STREAM, k)
    level = _LEVEL + _LEVEL_SD * table_draw(mix(key, _LEVEL_DRAW), normal)
    ratios = np.full(hourly.shape[0], np.nan)
    mood, fade, is_first = 0.0, 0.0, True
    for hour in range(hourly.shape[0]):
        row = hourly[hour]
        if math.isnan(row[c.CLOSE]):
            continue
        z = table_draw(mix(key, hour), normal)
        mood = _MOOD_SD * z if is_first else _MOOD_RHO * mood + math.sqrt(1.0 - _MOOD_RHO * _MOOD_RHO) * _MOOD_SD * z
        is_first = False
        ratios[hour] = math.exp(level + mood - _LEAN * fade)
        surprise = math.log(row[c.CLOSE] / row[c.OPEN]) / row[c.TOTAL_SIGMA]
        fade = _FADE_RHO * fade + _FADE_GAIN * min(max(surprise, -_LARGEST_SURPRISE), _LARGEST_SURPRISE)
    return ratios

"""Alpha360 by array windows: the last 60 bars of close, open, high, low, vwap and volume, each relative to the current bar.

Equal to Qlib 0.9.7's ``Alpha360DL`` to float32 rounding, in its column order: ``CLOSE59 .. CLOSE0, OPEN59 .. OPEN0, HIGH, LOW,
VWAP, VOLUME``. Prices are divided by the current close, volumes by ``volume[t] + 1e-12``. Missing bars stay NaN.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import SkipCycle
from crypto_qlib.core.jit import njit, njit_lent
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.bar_series import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    VOLUME,
    VWAP,
    FeatureInputs,
    vwap_of,
)
from crypto_qlib.feature_engineering.feature_frame import FeatureSpec, Float32Array
from crypto_qlib.feature_engineering.rules import pieces

GROUP: Final = "alpha360"
FIELDS: Final = (("CLOSE", CLOSE), ("OPEN", OPEN), ("HIGH", HIGH), ("LOW", LOW), ("VWAP", VWAP), ("VOLUME", VOLUME))
VOLUME_FLOOR: Final = 1e-12
"""Added to the current volume so that a bar without trades does not divide by zero (as Qlib does)."""


def alpha360_specs(window: int = 60) -> tuple[FeatureSpec, ...]:
    """Return the ``6 * window`` catalogue entries in Qlib's column order."""
    specs = []
    for name, series in FIELDS:
        for lag in range(window - 1, -1, -1):
            field = name.lower()
            below = "(volume[t] + 1e-12)" if series == VOLUME else "close[t]"
            specs.append(FeatureSpec(f"{name}{lag}", GROUP, f"{field}[t-{lag}] / {below}", "ratio", lag + 1))
    return tuple(specs)


@njit_lent
def _fill_alpha360(
    data: npt.NDArray[np.float64],
    layout: npt.NDArray[np.int64],
    row_of: npt.NDArray[np.int32],
    out: Float32Array,
    columns: npt.NDArray[np.int64],
    span: tuple[int, int],
) -> None:
    """Write windows of bars ``span[0]:span[1]``; ``layout`` rows are (series, lag, length).

    Bar by bar, the result is written from front to back. A row of the layout is a run of columns side by side, lags falling by
    one: contiguous in and out, so the innermost loop is vectorised.
    """
    for t in range(span[0], span[1]):
        for s in range(data.shape[0]):
            row = row_of[s, t]
            if row < 0:
                continue
            by_close = 1.0 / data[s, CLOSE, t]
            by_volume = 1.0 / (data[s, VOLUME, t] + VOLUME_FLOOR)
            for j in range(layout.shape[0]):
                series = layout[j, 0]
                first = t - layout[j, 1]
                scale = by_volume if series == VOLUME else by_close
                missing = min(max(-first, 0), layout[j, 2])
                out[row, columns[j] : columns[j] + missing] = math.nan
                here = out[row, columns[j] + missing : columns[j] + layout[j, 2]]
                known = data[s, series, first + missing : first + layout[j, 2]]
                for i in range(known.size):
                    here[i] = known[i] * scale


@lru_cache(maxsize=8)
def _names(window: int) -> tuple[tuple[str, int, int], ...]:
    """Return ``(name, series, lag)`` of every column of a window, in order."""
    return tuple((f"{name}{lag}", series, lag) for name, series in FIELDS for lag in range(window - 1, -1, -1))


def _runs(window: int, wanted: dict[str, int]) -> list[tuple[int, int, int, int]]:
    """Return ``(series, oldest lag, length, first column)`` of every run of wanted windows that stand side by side."""
    runs: list[tuple[int, int, int, int]] = []
    for name, series, lag in _names(window):
        column = wanted.get(name)
        if column is not None:
            if runs and runs[-1][0] == series:
                _, oldest, length, first = runs[-1]
                if oldest - length == lag and first + length == column:
                    runs[-1] = (series, oldest, length + 1, first)
                    continue
            runs.append((series, lag, 1, column))
    return runs


def alpha360_jobs(
    inputs: FeatureInputs, window: int, wanted: dict[str, int], out: Float32Array, n_jobs: int
) -> list[tuple[object, tuple[object, ...]]]:
    """Return pieces of work that write the wanted columns (name -> column) into ``out``."""
    runs = _runs(window, wanted)
    if not runs:
        return []
    table = np.array([run[:3] for run in runs], dtype=np.int64)
    where = np.array([run[3] for run in runs], dtype=np.int64)
    return [
        (_fill_alpha360, (inputs.data, table, inputs.rows.row_of, out, where, (a, b)))
        for a, b in pieces(inputs.first_bar, inputs.data.shape[2], n_jobs)
    ]


@njit
def _window_row(
    prices: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]],
    volume: npt.NDArray[np.float64],
    quote_volume: npt.NDArray[np.float64],
    window: int,
    out: Float32Array,
) -> None:
    """Write the last bar's windows of every symbol; ``prices`` are close, open, high, low, time-major."""
    close, high, low = prices[0], prices[2], prices[3]
    t = close.shape[0] - 1
    for s in range(close.shape[1]):
        now = close[t, s]
        if math.isnan(now):
            continue
        by_close = 1.0 / now
        by_volume = 1.0 / (volume[t, s] + VOLUME_FLOOR)
        for age in range(min(window, t + 1)):
            k = t - age
            j = window - 1 - age
            for f in range(4):
                out[s, f * window + j] = prices[f][k, s] * by_close
            vwap = vwap_of(high[k, s], low[k, s], close[k, s], volume[k, s], quote_volume[k, s])
            out[s, 4 * window + j] = vwap * by_close
            out[s, 5 * window + j] = volume[k, s] * by_volume


def alpha360_row(panel: MarketPanel, window: int = 60) -> Float32Array:
    """Return Alpha360 of the newest bar, bit-equal to the batch rows, in tens of microseconds for 50 symbols.

    Parameters
    ----------
    panel : MarketPanel
        At least the last ``window`` bars; older ones are not read.
    window : int
        Look-back, bars.

    Returns
    -------
    (n_symbols, 6 * window) float32
        Panel order; a symbol without a close in the newest bar is all NaN.

    Raises
    ------
    SkipCycle
        If the panel holds no bar.
    """
    if panel.n_bars == 0:
        raise SkipCycle("there is no bar yet")
    out = np.full((len(panel.symbols), 6 * window), np.nan, dtype=np.float32)
    first = max(0, panel.n_bars - window)
    prices = (panel.close[first:], panel.open[first:], panel.high[first:], panel.low[first:])
    _window_row(prices, panel.volume[first:], panel.quote_volume[first:], window, out)
    return out

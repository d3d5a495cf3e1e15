"""Alpha360 by array windows: the last 60 bars of close, open, high, low, vwap and volume, each relative to the current bar.

Equal to Qlib 0.9.7's ``Alpha360DL`` to float32 rounding, in its column order: ``CLOSE59 .. CLOSE0, OPEN59 .. OPEN0, HIGH, LOW,
VWAP, VOLUME``. Prices are divided by the current close, volumes by ``volume[t] + 1e-12``. Missing bars stay NaN.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.bar_series import CLOSE, HIGH, LOW, OPEN, VOLUME, VWAP, FeatureInputs
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


@njit
def _fill_alpha360(
    data: npt.NDArray[np.float64],
    layout: npt.NDArray[np.int64],
    row_of: npt.NDArray[np.int32],
    out: Float32Array,
    columns: npt.NDArray[np.int64],
    span: tuple[int, int, int],
) -> None:
    """Write windows of symbols ``span[0]:span[1]`` from bar ``span[2]`` on; ``layout`` rows are (series, lag)."""
    for s in range(span[0], span[1]):
        x = data[s]
        for t in range(span[2], data.shape[2]):
            row = row_of[s, t]
            if row < 0:
                continue
            close = x[CLOSE, t]
            volume = x[VOLUME, t] + VOLUME_FLOOR
            for j in range(layout.shape[0]):
                series = layout[j, 0]
                k = t - layout[j, 1]
                below = volume if series == VOLUME else close
                out[row, columns[j]] = x[series, k] / below if k >= 0 else math.nan


def alpha360_jobs(
    inputs: FeatureInputs, window: int, wanted: dict[str, int], out: Float32Array, n_jobs: int
) -> list[tuple[object, tuple[object, ...]]]:
    """Return pieces of work that write the wanted columns (name -> column) into ``out``."""
    layout = []
    columns = []
    for name, series in FIELDS:
        for lag in range(window - 1, -1, -1):
            if f"{name}{lag}" in wanted:
                layout.append((series, lag))
                columns.append(wanted[f"{name}{lag}"])
    if not layout:
        return []
    table = np.array(layout, dtype=np.int64)
    where = np.array(columns, dtype=np.int64)
    return [
        (_fill_alpha360, (inputs.data, table, inputs.rows.row_of, out, where, (a, b, inputs.first_bar)))
        for a, b in pieces(0, inputs.data.shape[0], n_jobs)
    ]

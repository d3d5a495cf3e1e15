"""Alpha360 on demand: the windows of chosen rows, computed when a batch is drawn instead of kept for all.

Six numbers a bar and coin are kept instead of 360; a batch is bit-equal to the materialised rows. For networks that read a
sequence, :meth:`Alpha360Windows.sequences` gives the same numbers as ``(rows, window, 6)``, oldest bar first.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.alpha360 import FIELDS, VOLUME_FLOOR
from crypto_qlib.feature_engineering.bar_series import CLOSE, VOLUME, build_inputs
from crypto_qlib.feature_engineering.feature_frame import Float32Array, Int32Array

N_FIELDS = len(FIELDS)
_CLOSE = [series for _, series in FIELDS].index(CLOSE)
_VOLUME = [series for _, series in FIELDS].index(VOLUME)


@njit
def _draw(
    series: npt.NDArray[np.float64],
    row_bar: npt.NDArray[np.int64],
    row_symbol: npt.NDArray[np.int64],
    window: int,
    out: npt.NDArray[np.float32],
) -> None:
    """Write ``out[row, field, position]``, oldest bar first."""
    for i in range(row_bar.size):
        s, t = row_symbol[i], row_bar[i]
        by_close = 1.0 / series[s, t, _CLOSE]
        by_volume = 1.0 / (series[s, t, _VOLUME] + VOLUME_FLOOR)
        for f in range(N_FIELDS):
            scale = by_volume if f == _VOLUME else by_close
            for j in range(window):
                k = t - window + 1 + j
                out[i, f, j] = series[s, k, f] * scale if k >= 0 else math.nan


class Alpha360Windows:
    """Draw Alpha360 rows of a panel.

    Parameters
    ----------
    panel : MarketPanel
        Bars.
    window : int
        Look-back, bars.
    """

    def __init__(self, panel: MarketPanel, window: int = 60) -> None:
        inputs = build_inputs(panel, with_macd=False)
        self.window = window
        self.row_bar: Int32Array = inputs.rows.row_bar
        self.row_symbol: Int32Array = inputs.rows.row_symbol
        place = np.empty(len(panel.symbols), dtype=np.int64)
        place[inputs.rows.order] = np.arange(len(panel.symbols))
        self._sorted_symbol = place[self.row_symbol]
        chosen = [series for _, series in FIELDS]
        self._series = np.ascontiguousarray(inputs.data[:, chosen, :].transpose(0, 2, 1))

    def __len__(self) -> int:
        return int(self.row_bar.size)

    def rows(self, which: npt.NDArray[np.int64]) -> Float32Array:
        """Return rows ``which`` as ``(n, 6 * window)``, in Qlib's column order."""
        return self._drawn(which).reshape(which.size, N_FIELDS * self.window)

    def sequences(self, which: npt.NDArray[np.int64]) -> Float32Array:
        """Return rows ``which`` as ``(n, window, 6)``, oldest bar first; a view of :meth:`rows`' memory order transposed."""
        return self._drawn(which).transpose(0, 2, 1)

    def _drawn(self, which: npt.NDArray[np.int64]) -> Float32Array:
        out = np.empty((which.size, N_FIELDS, self.window), dtype=np.float32)
        _draw(self._series, self.row_bar[which].astype(np.int64), self._sorted_symbol[which], self.window, out)
        return out

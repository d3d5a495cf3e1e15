"""What the model is asked to predict: forward returns from *our* fill, and when each becomes known.

Row ``t`` is decided at the close of bar ``t``; the entry fills at the next bar's open and leaves ``N`` bars later::

    forward_return[t] = open[t + 1 + N] / open[t + 1] - 1
    excess_return[t]  = forward_return[t] - mean over the universe's members at t of forward_return[t]

The label span of row ``t`` is ``[ts_open[t + 1], ts_open[t + 1 + N]]``, and the label is known at its end. (Qlib's default
``Ref($close, -2) / Ref($close, -1) - 1`` is the T+1 rule of another market.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.market import MarketPanel
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of every bar and symbol of a panel.

    Parameters
    ----------
    kind : str
        ``excess_return`` or ``forward_return``.
    horizon_bars : int
        ``N``.
    ts_open : (n_bars,) int64
        Grid of the panel.
    frame_ns : int
        Bar length.
    symbols : tuple of str
        Panel order.
    values : (n_bars, n_symbols) float64
        What the model learns; NaN in the last ``N + 1`` bars, where entry or exit has no price (delisting), and where the
        symbol was no member of the universe.
    forward_return : (n_bars, n_symbols) float64
        What a long position earns before costs, member or not; NaN in the last bars and without a price.
    """

    kind: str
    horizon_bars: int
    ts_open: npt.NDArray[np.int64]
    frame_ns: int
    symbols: tuple[str, ...]
    values: FloatArray
    forward_return: FloatArray

    @property
    def known_at_ns(self) -> npt.NDArray[np.int64]:
        """Return the instant from which each row's label is known, ``ts_open[t] + (N + 1) * frame``, shape ``(n_bars,)``."""
        return self.ts_open + (self.horizon_bars + 1) * self.frame_ns


def forward_returns(opens: FloatArray, horizon_bars: int) -> FloatArray:
    """Return ``open[t + 1 + N] / open[t + 1] - 1``, shape of ``opens``; NaN in the last ``N + 1`` rows and across gaps at
    either end.
    """  # noqa: D205 - one formula, one sentence
    result = np.full(opens.shape, np.nan)
    n = opens.shape[0] - horizon_bars - 1
    if n > 0:
        result[:n] = opens[1 + horizon_bars :] / opens[1 : 1 + n] - 1.0
    return result


def excess_over_mean(returns: FloatArray) -> FloatArray:
    """Return ``returns`` minus each row's mean over present symbols; NaN stays NaN."""
    present = np.isfinite(returns)
    counts = present.sum(axis=1, keepdims=True)
    total = np.where(present, returns, 0.0).sum(axis=1, keepdims=True)
    excess: FloatArray = returns - total / np.maximum(counts, 1)
    return excess


def make_labels(panel: MarketPanel, settings: ModelSettings) -> Labels:
    """Return the labels ``settings`` asks for.

    Parameters
    ----------
    panel : MarketPanel
        Bars, including those after the last decision: labels look forward by design.
    settings : ModelSettings
        Kind and horizon.
    """
    forward = forward_returns(panel.open, settings.horizon_bars)
    of_members = np.where(panel.is_member, forward, np.nan)
    values = excess_over_mean(of_members) if settings.label == "excess_return" else of_members
    return Labels(settings.label, settings.horizon_bars, panel.ts_open, panel.frame_ns, panel.symbols, values, forward)

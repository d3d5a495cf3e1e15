"""Why did live and its own backtest differ? Six causes that add up to the difference, at every bar.

Three simulations differ in one input each; what then still separates the last from the account is taken apart by executions:

=============  =====================================================================================================
cause          is
=============  =====================================================================================================
``data``       simulated with live's scores where live's bar was late, missing or another one, less the reference
``signal``     simulated with all of live's scores, and no entry where live's mode forbade one, less the one before
``fee``        what live paid at its own rates, less the same executions at the rates of the settings
``funding``    what the exchange booked, less live's positions at the rates and marks of the data
``latency``    live's orders at the market price of the moment they were executed, less that of the moment they were due
``fill``       the rest: prices executed at against those simulated, orders not or partly filled
=============  =====================================================================================================

All are paths in USDT over the closes of bars, positive where live did better; their sum is live less reference at every close.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_qlib.core.market import FloatArray, IntArray

CAUSES: Final = ("data", "signal", "fill", "fee", "funding", "latency")


@dataclass(frozen=True, slots=True)
class GapPaths:
    """Equity and what separates it, at each close, ``(n_bars,)`` each, USDT.

    Parameters
    ----------
    ts_ns : (n_bars,) int64
        Closes.
    live, reference : (n_bars,) float64
        Equity of the account, and of the backtest on reference data and scores.
    with_data, with_signal : (n_bars,) float64
        Equity of the backtests that saw live's data, and live's scores and modes.
    fee, funding, latency : (n_bars,) float64
        What each has added to live's equity since the start.
    """

    ts_ns: IntArray
    live: FloatArray
    reference: FloatArray
    with_data: FloatArray
    with_signal: FloatArray
    fee: FloatArray
    funding: FloatArray
    latency: FloatArray

    @property
    def parts(self) -> dict[str, FloatArray]:
        """Return each cause's path; their sum is ``live - reference``."""
        explained = self.fee + self.funding + self.latency
        return {
            "data": self.with_data - self.reference,
            "signal": self.with_signal - self.with_data,
            "fill": self.live - self.with_signal - explained,
            "fee": self.fee,
            "funding": self.funding,
            "latency": self.latency,
        }


@dataclass(frozen=True, slots=True)
class Gap:
    """The difference over one span of time.

    Parameters
    ----------
    start_ns, end_ns : int
        First and last close of the span.
    live_pnl, reference_pnl : float
        Gains over it, USDT.
    parts : dict
        What each cause added, USDT; their sum is ``live_pnl - reference_pnl``.
    equity : float
        Live equity at the start, to which ``share`` refers.
    """

    start_ns: int
    end_ns: int
    live_pnl: float
    reference_pnl: float
    parts: dict[str, float]
    equity: float

    @property
    def total(self) -> float:
        """Return ``live_pnl - reference_pnl``."""
        return self.live_pnl - self.reference_pnl

    @property
    def share(self) -> float:
        """Return the difference as a fraction of the equity at the start."""
        return self.total / self.equity if self.equity else float("nan")

    @property
    def main_cause(self) -> str:
        """Return the cause with the largest part."""
        return max(self.parts, key=lambda cause: abs(self.parts[cause]))


def gap_between(paths: GapPaths, start_ns: int, end_ns: int) -> Gap:
    """Return the difference from the last close at or before ``start_ns`` to the last one at or before ``end_ns``.

    Raises
    ------
    ValueError
        If there are not two such closes.
    """
    first = max(int(np.searchsorted(paths.ts_ns, start_ns, side="right")) - 1, 0)
    last = int(np.searchsorted(paths.ts_ns, end_ns, side="right")) - 1
    if last <= first:
        raise ValueError("the span holds no two closes")
    gained = {cause: float(path[last] - path[first]) for cause, path in paths.parts.items()}
    return Gap(
        int(paths.ts_ns[first]),
        int(paths.ts_ns[last]),
        float(paths.live[last] - paths.live[first]),
        float(paths.reference[last] - paths.reference[first]),
        gained,
        float(paths.live[first]),
    )


def accumulated(ts_ns: IntArray, at_ns: IntArray, amounts: FloatArray) -> FloatArray:
    """Return the sum of the ``amounts`` that fell before or at each of ``ts_ns``, ``(n_bars,)``.

    An execution at the very instant of a close belongs to the bar that opens then, so it counts from the next close on.
    """
    order = np.argsort(at_ns, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(amounts[order])])
    return np.asarray(summed[np.searchsorted(at_ns[order], ts_ns, side="left")], dtype=np.float64)

"""A recorded order book at one instant: what would taking so much of it cost?

Where a book is known, orders at the open walk it level by level instead of paying the spread and impact model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Depth:
    """Both sides of a book, best level first.

    Parameters
    ----------
    bids, asks : (n, 2) float64
        Price in quote units, size in base coins.
    """

    bids: FloatArray
    asks: FloatArray

    def against(self, side: float) -> FloatArray:
        """Return the levels an order of sign ``side`` (+1 buy, -1 sell) takes, best first, ``(n, 2)``."""
        return self.asks if side > 0.0 else self.bids

    def best(self, side: float) -> float:
        """Return the first price an order of sign ``side`` meets; NaN where there is none."""
        levels = self.against(side)
        return float(levels[0, 0]) if len(levels) else float("nan")

    def available(self, side: float, limit: float | None, taken: float = 0.0) -> float:
        """Return the base coins an order of sign ``side`` finds at ``limit`` or better (``None``: in the whole book).

        Parameters
        ----------
        taken : float
            Base coins of the best levels that others took at this instant.
        """
        levels = self.against(side)
        inside = levels[:, 1] if limit is None else levels[side * (limit - levels[:, 0]) >= 0.0, 1]
        return max(float(inside.sum()) - taken, 0.0)

    def walk(self, side: float, qty: float, taken: float = 0.0) -> tuple[float, float, float]:
        """Take ``qty`` base coins from the best levels on; return (money, coins found, price of the last level touched).

        Money is quote units; the price is NaN where nothing was found.
        """
        levels = self.against(side)
        ends = np.cumsum(levels[:, 1])
        got = np.clip(np.minimum(ends, taken + qty) - np.maximum(ends - levels[:, 1], taken), 0.0, None)
        touched = np.flatnonzero(got > 0.0)
        if not touched.size:
            return 0.0, 0.0, float("nan")
        return float(got @ levels[:, 0]), float(got.sum()), float(levels[touched[-1], 0])

"""What "the market" did, as the one factor that results are split by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crypto_qlib.core.market import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class MarketFactor:
    """What "the market" did: the price of BTC, and how much each symbol moves with it.

    Parameters
    ----------
    ts_ns : (n,) int64
        Increasing instants.
    price : (n,) float64
        Price at those instants, > 0; linear in between.
    beta_ts_ns : (m,) int64
        Instants from which each row of ``beta`` is known; the first one holds before it too.
    beta : (m, n_symbols) float64
        Slope of the symbol's return on the factor's; NaN counts as 1 (moves like the market).
    """

    ts_ns: IntArray
    price: FloatArray
    beta_ts_ns: IntArray
    beta: FloatArray

    def growth(self, start_ns: IntArray, end_ns: IntArray) -> FloatArray:
        """Return the factor's simple return from ``start_ns`` to ``end_ns``, elementwise."""
        start, end = (np.interp(ts.astype(np.float64), self.ts_ns.astype(np.float64), self.price) for ts in (start_ns, end_ns))
        return np.asarray(end / start - 1.0, dtype=np.float64)

    def beta_at(self, ts_ns: IntArray, symbol: IntArray) -> FloatArray:
        """Return the beta of ``symbol`` known at ``ts_ns``, elementwise."""
        rows = np.maximum(np.searchsorted(self.beta_ts_ns, ts_ns, side="right") - 1, 0)
        return np.nan_to_num(self.beta[rows, symbol], nan=1.0)

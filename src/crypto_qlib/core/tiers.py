"""Position tiers: which maintenance rate and leverage cap a position of a given size gets.

The *whole* position takes the rate of the tier its size (in contracts) falls in; upper bounds are inclusive;
there are no marginal brackets. Tables change over time, so each carries the instant it became valid.

Source: OKX ``GET /public/position-tiers`` and the help page on tiered maintenance margin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit

_SIZE_SLACK = 1e-9
NO_TIER = -1
"""Returned by :func:`tier_index` for a size above the last tier: such a position cannot be opened."""


@njit
def tier_index(contracts: float, max_contracts: npt.NDArray[np.float64]) -> int:
    """Return the row of the tier that holds ``contracts``, or ``NO_TIER`` above the last one.

    Parameters
    ----------
    contracts : float
        Absolute position size in contracts.
    max_contracts : (n_tiers,) float64
        Upper bounds in contracts, increasing, inclusive.
    """
    for k in range(max_contracts.size):
        if contracts <= max_contracts[k] * (1.0 + _SIZE_SLACK):
            return k
    return NO_TIER


@dataclass(frozen=True, slots=True)
class TierTable:
    """One instrument family's tiers, valid from one instant.

    Parameters
    ----------
    max_contracts : (n_tiers,) float64
        Inclusive upper bound of each tier in contracts, increasing.
    mmr, imr : (n_tiers,) float64
        Maintenance and minimum initial margin rate, fraction of mark notional.
    max_leverage : (n_tiers,) float64
        Leverage cap.
    valid_from_ns : int
        Instant from which the table holds, nanoseconds since the epoch.

    Raises
    ------
    ValueError
        If lengths differ, the table is empty, bounds do not increase, or a rate is not in (0, 1].
    """

    max_contracts: npt.NDArray[np.float64]
    mmr: npt.NDArray[np.float64]
    imr: npt.NDArray[np.float64]
    max_leverage: npt.NDArray[np.float64]
    valid_from_ns: int = 0

    def __post_init__(self) -> None:
        lengths = {a.size for a in (self.max_contracts, self.mmr, self.imr, self.max_leverage)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"tier columns must be non-empty and equally long, got lengths {sorted(lengths)}")
        if np.any(np.diff(self.max_contracts) <= 0):
            raise ValueError("tier upper bounds must increase")
        for name, rates in (("mmr", self.mmr), ("imr", self.imr)):
            if not np.all((rates > 0) & (rates <= 1)):
                raise ValueError(f"tier {name} must lie in (0, 1]")

    def row(self, contracts: float) -> int:
        """Return the tier row for a position of ``contracts``, or ``NO_TIER`` above the last tier."""
        return int(tier_index(abs(contracts), self.max_contracts))

    def leverage_cap(self, contracts: float) -> float:
        """Return the highest leverage allowed for a position of ``contracts`` (0.0 above the last tier)."""
        row = self.row(contracts)
        return 0.0 if row == NO_TIER else float(self.max_leverage[row])

    def max_contracts_at(self, leverage: float) -> float:
        """Return the largest position in contracts that may be held at ``leverage`` (0.0 if none)."""
        allowed = np.flatnonzero(self.max_leverage >= leverage * (1.0 - _SIZE_SLACK))
        return float(self.max_contracts[allowed[-1]]) if allowed.size else 0.0


class TierHistory:
    """All known versions of one family's tiers, asked by time.

    Parameters
    ----------
    tables : sequence of TierTable
        At least one; any order.

    Raises
    ------
    ValueError
        If ``tables`` is empty.
    """

    def __init__(self, tables: Sequence[TierTable]) -> None:
        if not tables:
            raise ValueError("a tier history needs at least one table")
        self._tables = sorted(tables, key=lambda t: t.valid_from_ns)
        self._starts = [t.valid_from_ns for t in self._tables]

    def at(self, ts_ns: int) -> TierTable:
        """Return the table in force at ``ts_ns``; before the first version, the first version."""
        return self._tables[max(bisect_right(self._starts, ts_ns) - 1, 0)]

    @property
    def starts(self) -> tuple[int, ...]:
        """Return the instants from which the versions hold, oldest first."""
        return tuple(self._starts)

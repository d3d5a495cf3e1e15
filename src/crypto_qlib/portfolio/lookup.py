"""How compiled decisions read one figure of the market state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit_leaf
from crypto_qlib.core.tiers import tier_index
from crypto_qlib.portfolio.market_panel import StateArrays


@njit_leaf
def column(values: npt.NDArray[np.float64], row: int, j: int) -> float:
    """Return ``values[row, j]``; a column with one row holds for every moment."""
    value: float = values[row if values.shape[0] > 1 else 0, j]
    return value


@njit_leaf
def row_in(table: npt.NDArray[Any], row: int) -> int:
    """Return the row of ``table`` that holds at ``row``: a table with one row holds for every moment."""
    return row if table.shape[0] > 1 else 0


@njit_leaf
def today(daily: npt.NDArray[Any], day: int, j: int) -> Any:
    """Return the record ``daily[day, j]``; a table with one row holds for every day."""
    return daily[day if daily.shape[0] > 1 else 0, j]


@njit_leaf
def tier_count(bounds: npt.NDArray[np.float64]) -> int:
    """Return how many of the padded upper bounds are tiers."""
    n = bounds.size
    while n > 1 and bounds[n - 1] < 0.0:
        n -= 1
    return n


@njit_leaf
def maintenance_rate_of(state: StateArrays, version: int, j: int, qty: float) -> float:
    """Return the maintenance rate of ``qty`` base coins of symbol ``j``; above the last tier, the last tier's."""
    bounds = state.tier_max[version, j]
    row = tier_index(qty / state.contracts[j].base_per_lot * state.contracts[j].contracts_per_lot, bounds)
    if row < 0:
        row = tier_count(bounds) - 1
    rate: float = state.tier_mmr[version, j, row]
    return rate

"""The arrays a compiled decision works on: positions held, the plan being written, working memory."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Held(NamedTuple):
    """Open positions, ordered by column, as compiled decisions read them; ``(capacity,)`` each, the first ``n`` count.

    Parameters
    ----------
    symbol : int64
        Columns, increasing.
    side, qty, mark : float64
        Sign, base coins, current mark.
    margin, upl : float64
        Margin in use and unrealised PnL, USDT.
    stop : float64
        Price of the protective stop, NaN for none; read in cross margin alone.
    opened_ns : int64
        Instant of the first fill.
    """

    symbol: IntArray
    side: FloatArray
    qty: FloatArray
    mark: FloatArray
    margin: FloatArray
    upl: FloatArray
    stop: FloatArray
    opened_ns: IntArray


class PlanRows(NamedTuple):
    """A plan as arrays; the first ``n_exits`` and ``n_entries`` rows count.

    Parameters
    ----------
    exit_slot, exit_reason : (capacity,) int64
        Row in :class:`Held`, and ``EXIT_TIME`` or ``EXIT_REPLACED``.
    symbol, lots : (capacity,) int64
        Column and size of each entry, best first.
    side, leverage, price, stop, take, trail, score : (capacity,) float64
        As in :class:`~crypto_qlib.portfolio.plan.PlannedOrder`.
    """

    exit_slot: IntArray
    exit_reason: IntArray
    symbol: IntArray
    lots: IntArray
    side: FloatArray
    leverage: FloatArray
    price: FloatArray
    stop: FloatArray
    take: FloatArray
    trail: FloatArray
    score: FloatArray


class Scratch(NamedTuple):
    """Working memory of a decision: ranks and net returns by column, and which positions are leaving."""

    rank: FloatArray
    net: FloatArray
    is_leaving: BoolArray


def _ints(n: int) -> IntArray:
    return np.zeros(n, np.int64)


def new_held(capacity: int) -> Held:
    """Return room for ``capacity`` positions."""
    f, i = partial(np.zeros, capacity), partial(_ints, capacity)
    return Held(i(), f(), f(), f(), f(), f(), f(), i())


def new_plan_rows(capacity: int) -> PlanRows:
    """Return room for ``capacity`` exits and ``capacity`` entries."""
    f, i = partial(np.zeros, capacity), partial(_ints, capacity)
    return PlanRows(i(), i(), i(), i(), f(), f(), f(), f(), f(), f(), f())


def new_scratch(n_symbols: int, capacity: int) -> Scratch:
    """Return working memory for ``n_symbols`` columns and ``capacity`` positions."""
    return Scratch(np.zeros(n_symbols), np.zeros(n_symbols), np.zeros(capacity, np.bool_))

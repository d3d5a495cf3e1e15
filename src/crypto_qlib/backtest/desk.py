"""What a run carries from bar to bar, and what it is lent: the account, the bars, how orders execute."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.ledger_arrays import (
    Ledgers,
)

RecordArray = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MARGIN_TOLERANCE: Final = 1e-9
"""Relative slack of the margin check at the fill, as at the venue."""


class Execution(NamedTuple):
    """How orders execute; the defaults are the venue's.

    Parameters
    ----------
    max_bar_volume_share : float
        Largest share of a bar's volume an opening order takes.
    partial_liquidation : bool
        Cut positions of tier 3 and above tier by tier.
    take_profit_in_entry_bar : bool
        Allow a take-profit in the bar of the entry (optimistic: the order of events inside a bar is not known).
    doubled_stop_spread : bool
        Charge stops twice the half spread and the trigger bar's own impact.
    funding_at_entry : bool
        Charge a fill at the very instant of a settlement if it would pay.
    adl_stress_move : float
        Stress switch, off at infinity: a mark move of this fraction within one bar closes the positions that gain from it at
        the bar's mark close, as auto-deleveraging does.
    """

    max_bar_volume_share: float = 0.05
    partial_liquidation: bool = True
    take_profit_in_entry_bar: bool = False
    doubled_stop_spread: bool = True
    funding_at_entry: bool = True
    adl_stress_move: float = math.inf


EXECUTION: Final = np.dtype(
    [(name, np.float64 if isinstance(value, float) else np.bool_) for name, value in Execution._field_defaults.items()]
)
"""Record form of :class:`Execution`."""


def execution_record(execution: Execution) -> Any:
    """Return ``execution`` as the record compiled functions take."""
    return np.array([tuple(execution)], EXECUTION)[0]


class Bars(NamedTuple):
    """The bars traded, ``(n_bars, n_symbols)`` each, read-only; see :class:`~crypto_qlib.core.market.MarketPanel`.

    ``volume`` and ``quote_volume`` may have one row that holds for every bar (volumes not known at all); ``settles`` tells
    the bars with a settlement of any symbol, ``(n_bars,)``; ``has_own_mark`` is False where the marks are the last prices'
    own arrays.
    """

    ts_open: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    quote_volume: FloatArray
    mark_open: FloatArray
    mark_high: FloatArray
    mark_low: FloatArray
    mark_close: FloatArray
    funding_rate: FloatArray
    settles: BoolArray
    has_own_mark: bool


class Desk(NamedTuple):
    """Everything that changes during a run.

    Parameters
    ----------
    book : (n_symbols,) POSITION
        One record a column; meaningful where ``is_held``.
    totals : (1,) TOTALS
        Cash and counters.
    open_columns : (capacity,) int64
        Columns of the open positions, increasing; the first ``totals.n_open`` count.
    is_held : (n_symbols,) bool
        Columns with a position.
    cooldown_until_ns : (n_symbols,) int64
        Instants before which columns are not entered.
    resting : (n_symbols,) RESTING
        Entries that wait at their limit, one record a column.
    resting_columns : (capacity,) int64
        Columns of those entries in the order in which they were sent; the first ``totals.n_resting`` count.
    ledgers : Ledgers
        Rows written so far.
    """

    book: RecordArray
    totals: RecordArray
    open_columns: IntArray
    is_held: BoolArray
    cooldown_until_ns: IntArray
    resting: RecordArray
    resting_columns: IntArray
    ledgers: Ledgers

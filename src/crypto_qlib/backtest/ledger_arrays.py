"""The rows a backtest writes: dtypes of its ledgers, and the arrays compiled code fills.

Amounts are USDT, prices quote units; ``bar`` is a row of the panel traded, ``symbol`` a column. ``kind`` and ``exit_kind``
hold the codes of :mod:`crypto_qlib.venue.matching`; ``OPENING`` (0) marks an opening fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

RecordArray = npt.NDArray[Any]

OPENING: Final = 0

SERIES: Final = np.dtype(
    [
        ("equity", np.float64),
        ("cash", np.float64),
        ("used_margin", np.float64),
        ("maintenance", np.float64),
        ("gross", np.float64),
        ("net", np.float64),
        ("n_open", np.int64),
    ]
)
"""The account at the close of each bar, marked at mark close; ``maintenance`` is the requirement without closing fees."""

FILL: Final = np.dtype(
    [
        ("bar", np.int64),
        ("symbol", np.int64),
        ("kind", np.int64),
        ("trade", np.int64),
        ("lots", np.int64),
        ("price", np.float64),
        ("raw_price", np.float64),
        ("fee", np.float64),
        ("pnl", np.float64),
        ("is_maker", np.int64),
    ]
)
"""One execution: signed ``lots``; ``raw_price`` before slippage; ``trade`` numbers the position it belongs to; ``is_maker`` is
1 for a resting order's fill, which pays the maker fee."""

TRADE: Final = np.dtype(
    [
        ("trade", np.int64),
        ("symbol", np.int64),
        ("lots", np.int64),
        ("entry_bar", np.int64),
        ("exit_bar", np.int64),
        ("exit_kind", np.int64),
        ("rank", np.int64),
        ("qty", np.float64),
        ("entry_price", np.float64),
        ("exit_price", np.float64),
        ("leverage", np.float64),
        ("margin", np.float64),
        ("stop", np.float64),
        ("take_profit", np.float64),
        ("score", np.float64),
        ("pnl", np.float64),
        ("fee", np.float64),
        ("funding", np.float64),
        ("penalty", np.float64),
        ("overshoot", np.float64),
        ("slippage", np.float64),
    ]
)
"""One closed position: largest signed ``lots``, mean ``exit_price``; result = pnl - fee + funding - penalty + overshoot."""

FUNDING: Final = np.dtype(
    [
        ("bar", np.int64),
        ("symbol", np.int64),
        ("trade", np.int64),
        ("amount", np.float64),
        ("rate", np.float64),
        ("mark", np.float64),
    ]
)
"""One settlement: ``amount`` paid *to* the position."""

LIQUIDATION: Final = np.dtype(
    [
        ("bar", np.int64),
        ("symbol", np.int64),
        ("trade", np.int64),
        ("lots", np.int64),
        ("partial", np.int64),
        ("mark", np.float64),
        ("pnl", np.float64),
        ("fee", np.float64),
        ("penalty", np.float64),
        ("overshoot", np.float64),
    ]
)
"""One liquidation of a position or a part: ``overshoot`` is what the insurance fund bore."""

AMBIGUOUS: Final = np.dtype(
    [
        ("bar", np.int64),
        ("symbol", np.int64),
        ("trade", np.int64),
        ("booked_kind", np.int64),
        ("kindest_kind", np.int64),
        ("booked_price", np.float64),
        ("kindest_price", np.float64),
        ("gain", np.float64),
    ]
)
"""A bar whose inner order of events is not known: ``gain`` is what the kindest order would have added, USDT, >= 0."""

POSITION: Final = np.dtype(
    [
        ("lots", np.int64),
        ("peak_lots", np.int64),
        ("closed_lots", np.int64),
        ("opened_bar", np.int64),
        ("touched_bar", np.int64),
        ("opened_ns", np.int64),
        ("trade", np.int64),
        ("rank", np.int64),
        ("side", np.float64),
        ("qty", np.float64),
        ("entry", np.float64),
        ("mark", np.float64),
        ("margin", np.float64),
        ("mmr", np.float64),
        ("liq", np.float64),
        ("stop", np.float64),
        ("take", np.float64),
        ("trail", np.float64),
        ("best", np.float64),
        ("guard", np.float64),
        ("guard_kind", np.int64),
        ("leverage", np.float64),
        ("score", np.float64),
        ("pnl", np.float64),
        ("fee", np.float64),
        ("funding", np.float64),
        ("penalty", np.float64),
        ("overshoot", np.float64),
        ("slippage", np.float64),
        ("closed_value", np.float64),
    ]
)
"""An open position: ``margin`` is isolated margin (0 in cross), ``liq`` the mark that liquidates it (NaN in cross);
``touched_bar`` is the bar in which it was opened or cut last: no take-profit in that bar. ``trail`` is the ratio of a trailing
stop (NaN: none), ``best`` the price it follows, ``guard`` the nearer of stop and trailing stop and ``guard_kind`` which one."""

RESTING: Final = np.dtype(
    [
        ("lots", np.int64),
        ("rank", np.int64),
        ("expires_ns", np.int64),
        ("has_filled", np.int64),
        ("side", np.float64),
        ("limit", np.float64),
        ("leverage", np.float64),
        ("stop", np.float64),
        ("take", np.float64),
        ("trail", np.float64),
        ("score", np.float64),
    ]
)
"""An entry that waits at its limit: ``lots`` not filled yet, its protection, and the instant from which it is not wanted."""

FEE_CHANGE: Final = np.dtype([("start_ns", np.int64), ("maker", np.float64), ("taker", np.float64)])
"""Fee rates that come into force during a run."""

TOTALS: Final = np.dtype(
    [
        ("cash", np.float64),
        ("equity", np.float64),
        ("peak", np.float64),
        ("n_open", np.int64),
        ("n_trades", np.int64),
        ("n_rejected", np.int64),
        ("n_cut", np.int64),
        ("n_expired", np.int64),
        ("n_resting", np.int64),
        ("score_row", np.int64),
        ("state_row", np.int64),
        ("day", np.int64),
        ("version", np.int64),
        ("fee_row", np.int64),
        ("next_change", np.int64),
        ("next_due", np.int64),
    ]
)
"""What the loop carries from bar to bar beside the positions."""


class Ledgers(NamedTuple):
    """Room for the rows of a stretch of bars; ``used`` counts the rows of each ledger, in this order."""

    fills: RecordArray
    trades: RecordArray
    funding: RecordArray
    liquidations: RecordArray
    ambiguous: RecordArray
    used: npt.NDArray[np.int64]


N_FILLS, N_TRADES, N_FUNDING, N_LIQUIDATIONS, N_AMBIGUOUS = range(5)
"""Places in ``Ledgers.used``."""


def new_ledgers(n_rows: int) -> Ledgers:
    """Return ledgers with room for ``n_rows`` rows each, in one block of memory.

    One block, so that the allocator keeps it for the next run instead of handing several back to the system: pages that a run
    touches first cost more than what is written to them.
    """
    kinds = (FILL, TRADE, FUNDING, LIQUIDATION, AMBIGUOUS)
    block = np.empty(n_rows * sum(kind.itemsize for kind in kinds), np.uint8)
    ledgers: list[RecordArray] = []
    start = 0
    for kind in kinds:
        stop = start + n_rows * kind.itemsize
        ledgers.append(block[start:stop].view(kind))
        start = stop
    return Ledgers._make([*ledgers, np.zeros(5, np.int64)])


def rows_used(ledgers: Ledgers, origin: int = 0) -> tuple[RecordArray, ...]:
    """Return the rows in use, as views, their bars counted from ``origin``."""
    rows = tuple(ledger[:n] for ledger, n in zip(ledgers[:5], ledgers.used.tolist(), strict=True))
    for ledger, names in zip(rows, (("bar",), ("entry_bar", "exit_bar"), ("bar",), ("bar",), ("bar",)), strict=True):
        for name in names if origin else ():
            ledger[name] += origin
    return rows


def joined(parts: Sequence[RecordArray]) -> RecordArray:
    """Return contiguous record arrays of one dtype one after the other, copied as bytes (numpy copies records one by one)."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([p.view(np.uint8) for p in parts]).view(parts[0].dtype)

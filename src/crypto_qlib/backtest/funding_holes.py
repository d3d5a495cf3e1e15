"""Stretches in which a symbol trades without any funding settlement: there data are missing, and a run would trade for free."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.jit import njit
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.portfolio.market_panel import frozen

LONGEST_WITHOUT_FUNDING_NS: Final = 2 * NS_PER_DAY
"""Six times the longest funding interval: a symbol that trades longer without a settlement lacks data."""


@njit
def funding_holes(
    funding_rate: FloatArray, close: FloatArray, start: int, stop: int, most_bars: int
) -> tuple[IntArray, IntArray]:
    """Return each column's first bar that ends more than ``most_bars`` traded bars without a settlement, and how many they are.

    ``(n_symbols,)`` int64 each; -1 and 0 where there is none. Bars without a price do not count; a settlement in one does.
    """
    n_symbols = close.shape[1]
    row, since = np.full(n_symbols, -1, np.int64), np.zeros(n_symbols, np.int64)
    for t in range(start, stop):
        for j in range(n_symbols):
            if row[j] >= 0:
                continue
            if not math.isnan(funding_rate[t, j]):
                since[j] = 0
            elif not math.isnan(close[t, j]):
                since[j] += 1
                if since[j] > most_bars:
                    row[j] = t
    return row, since


def refuse_funding_holes(panel: MarketPanel, start: int, stop: int) -> None:
    """Refuse bars ``start:stop`` in which a symbol trades for more than two days on end without a settlement.

    Raises
    ------
    UserError
        With the earliest hole and its times, and every other symbol that has one.
    """
    most = LONGEST_WITHOUT_FUNDING_NS // panel.frame_ns
    row, bars = funding_holes(frozen(panel.funding_rate), frozen(panel.close), start, stop, most)
    columns = sorted(np.flatnonzero(row >= 0).tolist(), key=lambda j: int(row[j]))
    if columns:
        at, symbols = int(row[columns[0]]), [panel.symbols[j] for j in columns]
        since, until = iso(int(panel.ts_open[max(at - int(bars[columns[0]]) + 1, start)])), iso(int(panel.ts_open[at]))
        others = f"; holes like it: {', '.join(symbols[1:])}" if symbols[1:] else ""
        coins = ",".join(symbol.removesuffix("USDT") for symbol in symbols)
        raise UserError(
            f"{symbols[0]}: no funding settlement between {since} and {until}{others}",
            f"collect funding of that time, leave out what lacks it (--set universe.exclude=[{coins}]), or all funding "
            "with --set data.funding=false",
        )

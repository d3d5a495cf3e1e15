"""How far was the account from liquidation at each close? Reconstructed from a run's ledgers with the engine's own formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.desk_margin import maintenance_rate
from crypto_qlib.backtest.inputs import PreparedRun
from crypto_qlib.backtest.ledger_arrays import OPENING
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.jit import njit
from crypto_qlib.core.margin import average_entry, initial_margin_isolated, liquidation_price_isolated
from crypto_qlib.core.market import FloatArray, IntArray
from crypto_qlib.portfolio.market_panel import StateArrays

RecordArray = npt.NDArray[Any]


def liquidation_distance(run: PreparedRun, result: BacktestResult) -> FloatArray:
    """Return the distance to liquidation at each close, ``(n_bars,)``, as a fraction of the mark; NaN where nothing is held.

    Isolated: how far the mark of the *nearest* position may move against it. Cross: how far all marks may move against the
    account at once, ``(equity - requirement) / gross`` with the requirement at the marks of the close.

    Parameters
    ----------
    run : PreparedRun
        The run's inputs.
    result : BacktestResult
        What it produced.
    """
    s, rules = result.series, run.rules
    if rules.cross:
        need = s["maintenance"] + rules.taker_fee * s["gross"]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(s["n_open"] > 0, (s["equity"] - need) / s["gross"], np.nan), dtype=np.float64)
    nearest, _ = isolated_distance(run, result)
    return np.where(np.isfinite(nearest), nearest, np.nan)


def isolated_distance(run: PreparedRun, result: BacktestResult) -> tuple[FloatArray, FloatArray]:
    """Return (distance of the nearest position at each close, mark that liquidated each position at its last close held).

    Shapes ``(n_bars,)``, infinite where nothing is held, and ``(n_positions,)`` by trade number, NaN where a position was never
    held at a close.
    """
    n = int(result.fills["trade"].max(initial=-1)) + 1
    ends = np.full(n, result.ts_open.size, np.int64)
    ends[result.trades["trade"]] = result.trades["exit_bar"]
    leverage = np.full(n, np.nan)
    leverage[result.trades["trade"]] = result.trades["leverage"]
    leverage[result.open_positions["trade"]] = result.open_positions["leverage"]
    version = np.maximum(np.searchsorted(run.version_start, result.ts_open, side="right") - 1, 0)
    fills, funding, cuts = (_by_trade(rows) for rows in (result.fills, result.funding, result.liquidations))
    nearest, levels = np.full(result.ts_open.size, np.inf), np.full(n, np.nan)
    mark = run.bars.mark_close[run.first_bar :]
    _replay(run.state, run.rules.taker_fee, fills, funding, cuts, leverage, ends, version, mark, nearest, levels)
    return nearest, levels


def _by_trade(rows: RecordArray) -> RecordArray:
    return rows[np.argsort(rows["trade"], kind="stable")]


@njit
def _replay(
    state: StateArrays, taker_fee: float, fills: RecordArray, funding: RecordArray, cuts: RecordArray, leverage: FloatArray,
    ends: IntArray, version: IntArray, mark: FloatArray, nearest: FloatArray, levels: FloatArray,
) -> None:  # fmt: skip
    """Replay each position bar by bar: margin moves with settlements and partial liquidations, size with fills."""
    f = 0
    p = 0
    c = 0
    for trade in range(leverage.size):
        j = fills[f].symbol
        lots = 0
        entry = 0.0
        margin = 0.0
        last = math.nan
        for t in range(fills[f].bar, ends[trade]):
            while f < fills.size and fills[f].trade == trade and fills[f].bar == t:
                if fills[f].kind == OPENING:
                    per_lot = state.contracts[j].base_per_lot
                    added = abs(fills[f].lots) * per_lot
                    entry = average_entry(abs(lots) * per_lot, entry, added, fills[f].price)
                    margin += initial_margin_isolated(added, fills[f].price, leverage[trade])
                lots += fills[f].lots
                f += 1
            while p < funding.size and funding[p].trade == trade and funding[p].bar == t:
                margin += funding[p].amount
                p += 1
            while c < cuts.size and cuts[c].trade == trade and cuts[c].bar == t:
                margin = max(margin + cuts[c].pnl - cuts[c].fee - cuts[c].penalty, 0.0)
                c += 1
            side = 1.0 if lots > 0 else -1.0
            qty = abs(lots) * state.contracts[j].base_per_lot
            mmr = maintenance_rate(state, version[t], j, abs(lots))
            levels[trade] = liquidation_price_isolated(side, qty, entry, margin, mmr, taker_fee)
            if not math.isnan(mark[t, j]):
                last = mark[t, j]
            if not math.isnan(last):
                nearest[t] = min(nearest[t], side * (last - levels[trade]) / last)
        while f < fills.size and fills[f].trade == trade:
            f += 1
        while p < funding.size and funding[p].trade == trade:
            p += 1
        while c < cuts.size and cuts[c].trade == trade:
            c += 1

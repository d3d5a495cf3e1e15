"""When funding is settled and what a settlement moves, over the actual list of settlements of each instrument.

Intervals differ between instruments and change over time (8, 4, 2, 1 h), so nothing here assumes three settlements a day:
a bar either has a settlement at its open instant (a rate, possibly zero) or has none (NaN).

- A position carried into the instant pays or receives ``-side * qty * mark_open * rate``.
- A fill with the very timestamp of the settlement is charged if it would pay and credited nothing if it would receive.
- A payment is capped so that the payer's margin ratio does not fall below 1.
- Isolated positions pay from (and are paid into) their margin, cross positions from cash.

Source: OKX help "Perpetual funding fee mechanism"; bills of type 173/174 (``posBalChg`` of isolated positions).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.funding import capped_funding_cash_flow, funding_cash_flow
from crypto_qlib.core.jit import njit
from crypto_qlib.core.margin import requirement, unrealised_pnl


@njit
def is_settlement(rate: float) -> bool:
    """Return whether a bar's funding rate stands for a settlement; NaN stands for none."""
    return not math.isnan(rate)


@njit
def same_instant_cash_flow(cash_flow: float) -> float:
    """Return the payment of a fill with the settlement's own timestamp: charged if it pays, nothing if it receives."""
    return min(cash_flow, 0.0)


@njit
def isolated_funding(
    side: float, qty: float, avg_entry: float, margin: float, mark: float, rate: float, mmr: float, taker_fee: float
) -> float:
    """Return the payment *to* an isolated position's margin in USDT, capped so that its ratio stays at or above 1.

    Parameters
    ----------
    side, qty, avg_entry, margin : float
        The position just before the settlement.
    mark : float
        Mark at the settlement instant, quote units.
    rate : float
        Realised rate, fraction of mark notional; > 0: longs pay.
    mmr, taker_fee : float
        Maintenance rate of the tier and the account's taker rate, which make the requirement.
    """
    equity = margin + unrealised_pnl(side, qty, avg_entry, mark)
    return capped_funding_cash_flow(funding_cash_flow(side, qty, mark, rate), equity, requirement(qty, mark, mmr, taker_fee))


@njit
def cross_funding(side: float, qty: float, mark: float, rate: float, equity: float, total_requirement: float) -> float:
    """Return the payment *to* cash of one cross position, capped by the account's equity above its total requirement.

    Positions settle one after the other, so ``equity`` is the account's after the positions settled before it.
    """
    return capped_funding_cash_flow(funding_cash_flow(side, qty, mark, rate), equity, total_requirement)


@njit
def settlements_in(settlement_ns: npt.NDArray[np.int64], start_ns: int, end_ns: int) -> tuple[int, int]:
    """Return the index range ``[first, stop)`` of settlements with ``start_ns <= ts < end_ns``.

    Parameters
    ----------
    settlement_ns : (n,) int64
        Settlement instants, increasing.
    """
    return int(np.searchsorted(settlement_ns, start_ns)), int(np.searchsorted(settlement_ns, end_ns))


@njit
def funding_on_grid(
    settlement_ns: npt.NDArray[np.int64], settlement_rate: npt.NDArray[np.float64], ts_open: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the rate settled at each bar's open: NaN where none, the sum of rates where bars are longer than the interval.

    A settlement strictly inside bar ``t`` is moved to the open of bar ``t + 1``, where it is known; settlements at or before
    the first open other than that very instant, and after the last open, are left out.

    Parameters
    ----------
    settlement_ns, settlement_rate : (n,) int64, (n,) float64
        The list of settlements, increasing in time.
    ts_open : (n_bars,) int64
        Open times, increasing.
    """
    result = np.full(ts_open.size, np.nan)
    if ts_open.size == 0:
        return result
    for k in range(settlement_ns.size):
        if settlement_ns[k] < ts_open[0] or settlement_ns[k] > ts_open[-1]:
            continue
        bar = np.searchsorted(ts_open, settlement_ns[k])
        result[bar] = settlement_rate[k] + (0.0 if np.isnan(result[bar]) else result[bar])
    return result

"""What a decision may know about the market at one moment: prices, volatility, liquidity, funding, contract rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.market import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ContractTable:
    """Contract rules of all symbols as arrays, so that compiled code can read them.

    Parameters
    ----------
    tick_size : (n_symbols,) float64
        Price step, quote units.
    base_per_lot : (n_symbols,) float64
        Base coins per lot.
    contracts_per_lot : (n_symbols,) float64
        Contracts per lot (``lot_size``).
    min_lots, max_lots : (n_symbols,) float64
        Smallest and largest market order in lots (infinite: no limit).
    max_leverage : (n_symbols,) float64
        Leverage cap of the instrument.
    listed_ns, delisted_ns : (n_symbols,) int64
        First and last trading instant; the largest int64 while an instrument trades.
    tier_max, tier_mmr, tier_leverage : (n_symbols, n_tiers) float64
        Upper bound in contracts, maintenance rate and leverage cap of each tier; unused rows are -1, 1 and 0.
    blacklisted : (n_symbols,) bool
        Symbols never entered.
    """

    tick_size: FloatArray
    base_per_lot: FloatArray
    contracts_per_lot: FloatArray
    min_lots: FloatArray
    max_lots: FloatArray
    max_leverage: FloatArray
    listed_ns: IntArray
    delisted_ns: IntArray
    tier_max: FloatArray
    tier_mmr: FloatArray
    tier_leverage: FloatArray
    blacklisted: BoolArray


@dataclass(frozen=True, slots=True)
class MarketState:
    """The market at one decision, known from bars closed at ``as_of_ns`` alone.

    Parameters
    ----------
    as_of_ns : int
        Instant of the decision.
    symbols : tuple of str
        Length ``n_symbols``.
    close, mark : (n_symbols,) float64
        Last known close and mark; NaN before the first.
    data_age_bars : (n_symbols,) float64
        Bars since the last close; 0 = the last bar is there; infinite where there was none.
    atr_fraction : (n_symbols,) float64
        Average true range over the last close; NaN where too few bars.
    funding_rate : (n_symbols,) float64
        Expected rate of one settlement (the last settled one); 0 where unknown.
    funding_settlements : (n_symbols,) float64
        Settlements expected within the holding time.
    adv, sigma_day, half_spread_bps, beta : (n_symbols,) float64
        Median daily turnover (USDT), daily volatility (fraction), half spread (basis points), beta to BTC, from
        complete UTC days before ``as_of_ns``; NaN where no such day.
    cluster : (n_symbols,) int64
        Cluster of coins that move together, named by its lowest column, from the same days; each its own where not asked for.
    returns : (n_window, n_symbols) float64
        Latest log returns of the closes, oldest first, for correlations; may be empty.
    contracts : ContractTable
        Contract rules in force.
    """

    as_of_ns: int
    symbols: tuple[str, ...]
    close: FloatArray
    mark: FloatArray
    data_age_bars: FloatArray
    atr_fraction: FloatArray
    funding_rate: FloatArray
    funding_settlements: FloatArray
    adv: FloatArray
    sigma_day: FloatArray
    half_spread_bps: FloatArray
    beta: FloatArray
    cluster: IntArray
    returns: FloatArray
    contracts: ContractTable

"""What a taker fill costs in a bar: half spread and impact, by the venue's own functions."""

from __future__ import annotations

import math

from crypto_qlib.backtest.desk import Bars, Execution
from crypto_qlib.core.costs import BPS, default_half_spread_bps
from crypto_qlib.core.jit import njit_leaf
from crypto_qlib.portfolio.lookup import column, today
from crypto_qlib.portfolio.market_panel import StateArrays
from crypto_qlib.portfolio.rules import Rules
from crypto_qlib.venue.matching import (
    TAKE_PROFIT,
    stop_fill_price,
    taker_fill_price,
)


@njit_leaf
def half_spread_bps(rules: Rules, adv: float, tick_size: float, price: float) -> float:
    """Return the half spread of a fill at ``price``: the setting, or the ladder by turnover."""
    if rules.half_spread_bps >= 0.0:
        return rules.half_spread_bps
    return default_half_spread_bps(0.0 if math.isnan(adv) else adv, tick_size, price)


@njit_leaf
def market_price(
    rules: Rules, state: StateArrays, bars: Bars, t: int, day: int, j: int, side: float, raw: float, lots: int
) -> float:
    """Return the fill of a market order of ``lots`` at ``raw`` before slippage, in bar ``t``."""
    adv = today(state.daily, day, j).adv
    half = half_spread_bps(rules, adv, state.contracts[j].tick_size, raw)
    value = lots * state.contracts[j].base_per_lot * raw
    return taker_fill_price(
        side, raw, value, adv, today(state.daily, day, j).sigma / BPS, half, rules.impact_y, state.contracts[j].tick_size,
        bars.high[t, j], bars.low[t, j], column(bars.quote_volume, t, j),
    )  # fmt: skip


@njit_leaf
def protection_price(
    rules: Rules, execution: Execution, state: StateArrays, bars: Bars, t: int, day: int, j: int, side: float, raw: float,
    lots: int, code: int,
) -> float:  # fmt: skip
    """Return the fill of a triggered stop, trailing stop or take-profit."""
    if code == TAKE_PROFIT or not execution.doubled_stop_spread:
        return market_price(rules, state, bars, t, day, j, side, raw, lots)
    adv = today(state.daily, day, j).adv
    half = half_spread_bps(rules, adv, state.contracts[j].tick_size, raw)
    value = lots * state.contracts[j].base_per_lot * raw
    return stop_fill_price(
        side, raw, value, adv, today(state.daily, day, j).sigma / BPS, half, rules.impact_y, state.contracts[j].tick_size,
        bars.high[t, j], bars.low[t, j], column(bars.quote_volume, t, j),
    )  # fmt: skip

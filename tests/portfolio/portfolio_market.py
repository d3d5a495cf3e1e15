"""A market at one moment, built by hand for the tests of the decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.signal import Scores
from crypto_qlib.portfolio.contract_table import NEVER_NS
from crypto_qlib.portfolio.market_state import ContractTable, MarketState
from crypto_qlib.portfolio.rules import FIXED_FRACTION, Rules

NOW = 20_000 * NS_PER_DAY
SYMBOLS = ("BTCUSDT", "AUSDT", "BUSDT", "CUSDT")

PLAIN = Rules(
    min_net_return=-1.0,
    min_win_probability=0.0,
    min_daily_turnover=0.0,
    min_listing_days=0.0,
    min_stop_distance=0.05,
    max_stop_distance=0.05,
    min_take_distance=0.1,
    max_take_distance=0.1,
    sizing=FIXED_FRACTION,
    risk_per_trade=1.0,
    max_position_fraction=10.0,
    max_gross=100.0,
    max_net=100.0,
    max_drawdown=1.0,
    impact_y=0.0,
    half_spread_bps=0.0,
    liquidation_buffer=0.0,
    expect_funding=False,
)
"""Nothing refuses: 10 % of equity as margin at 3x, stop 5 %, target 10 %, taker fee 5 bps, no slippage."""


def market(**changes: Any) -> MarketState:
    """Return a market of four coins at 100 USDT, one lot = 0.01 coins, tick 0.01, three tiers."""
    n = len(SYMBOLS)
    one = np.ones(n)
    contracts = ContractTable(
        tick_size=0.01 * one, base_per_lot=0.01 * one, contracts_per_lot=one, min_lots=one, max_lots=np.inf * one,
        max_leverage=50.0 * one, listed_ns=np.zeros(n, np.int64), delisted_ns=np.full(n, NEVER_NS),
        tier_max=np.tile([1e4, 1e5, 1e6], (n, 1)), tier_mmr=np.tile([0.004, 0.01, 0.02], (n, 1)),
        tier_leverage=np.tile([50.0, 20.0, 2.0], (n, 1)), blacklisted=np.zeros(n, np.bool_),
    )  # fmt: skip
    contracts = replace(contracts, **{k: changes.pop(k) for k in list(changes) if k in ContractTable.__slots__})
    state = MarketState(
        as_of_ns=NOW, symbols=SYMBOLS, close=100.0 * one, mark=100.0 * one, data_age_bars=0.0 * one, atr_fraction=0.02 * one,
        funding_rate=0.0 * one, funding_settlements=3.0 * one, adv=1e9 * one, sigma_day=0.05 * one, half_spread_bps=0.0 * one,
        beta=one, cluster=np.arange(n), returns=np.empty((0, n)), contracts=contracts,
    )  # fmt: skip
    return replace(state, **changes)


def scores(expected: list[float], win: list[float] | None = None) -> Scores:
    """Return scores of the four coins known now."""
    nothing = np.full(len(SYMBOLS), np.nan)
    return Scores(NOW, SYMBOLS, np.array(expected), nothing if win is None else np.array(win), nothing)


def account(equity: float = 10_000.0, **changes: Any) -> AccountState:
    """Return an account without positions unless given."""
    return AccountState(NOW, equity, changes.pop("available", equity), **changes)


def position(symbol: str, lots: int = 1000, *, hours: float = 1.0, mark: float = 100.0) -> OpenPosition:
    """Return a position opened at 100 USDT ``hours`` ago."""
    qty = abs(lots) * 0.01
    return OpenPosition(symbol, lots, qty, 100.0, mark, 3.0, qty * 100.0 / 3.0, NOW - int(hours * NS_PER_HOUR))

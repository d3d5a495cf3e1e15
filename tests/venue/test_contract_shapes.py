"""Derived contracts: ticks, contract values and tiers shaped like the exchange's."""

from __future__ import annotations

import numpy as np
import pytest

from crypto_qlib.venue.contract_shapes import (
    LiquidityClass,
    Listing,
    class_by_turnover,
    contract_value,
    shaped_contract,
    tick_decimals,
    tier_table,
)


@pytest.mark.parametrize(
    ("price", "liquidity", "decimals", "ct_val"),
    [
        (94_000.0, LiquidityClass.MAJOR, 1, 0.01),  # BTC-USDT-SWAP: tick 0.1, ctVal 0.01
        (3_300.0, LiquidityClass.MAJOR, 2, 0.1),  # ETH-USDT-SWAP: tick 0.01, ctVal 0.1
        (190.0, LiquidityClass.LARGE, 2, 1.0),  # SOL-USDT-SWAP: ctVal 1
        (0.32, LiquidityClass.LARGE, 5, 1000.0),  # DOGE-USDT-SWAP: tick 0.00001, ctVal 1000
        (0.00002, LiquidityClass.MID, 9, 1e6),
    ],
)
def test_ticks_and_contract_values_have_the_size_of_real_ones(
    price: float, liquidity: LiquidityClass, decimals: int, ct_val: float
) -> None:
    assert tick_decimals(price) == decimals
    assert contract_value(price, liquidity) == ct_val


@pytest.mark.parametrize("liquidity", list(LiquidityClass))
def test_tiers_step_up_evenly_to_two_times_leverage(liquidity: LiquidityClass) -> None:
    table = tier_table(2.0, 10.0, liquidity)
    assert np.all(np.diff(table.mmr) > 0)
    assert np.all(table.mmr < table.imr)
    assert (table.imr[-1], table.max_leverage[-1]) == (0.5, 2.0)
    np.testing.assert_allclose(np.diff(table.mmr)[4:], 0.005, atol=1e-9)
    steps = np.diff(table.max_contracts)[4:]
    np.testing.assert_allclose(steps, steps[0])
    assert np.all(table.max_leverage <= 1.0 / table.imr)


def test_a_deeper_market_gets_more_leverage_and_larger_tiers() -> None:
    order = [LiquidityClass.SMALL, LiquidityClass.MID, LiquidityClass.LARGE, LiquidityClass.MAJOR]
    tables = [tier_table(1.0, 1.0, liquidity) for liquidity in order]
    assert [t.max_leverage[0] for t in tables] == [20.0, 50.0, 50.0, 100.0]
    assert np.all(np.diff([t.max_contracts[0] for t in tables]) > 0)
    assert [class_by_turnover(q) for q in (1e6, 5e7, 5e8, 5e9)] == order


def test_a_shaped_contract_has_the_exchanges_names_and_consistent_limits() -> None:
    instrument, tiers = shaped_contract(Listing("ABC", 2.0, 4, LiquidityClass.SMALL, 7, 9, 4))
    assert (instrument.symbol, instrument.inst_id, instrument.ccxt_symbol) == ("ABCUSDT", "ABC-USDT-SWAP", "ABC/USDT:USDT")
    assert (instrument.tick_size, instrument.listed_ns, instrument.delisted_ns, instrument.funding_interval_h) == (
        1e-4,
        7,
        9,
        4,
    )
    assert instrument.max_leverage == tiers.at(0).max_leverage[0]
    assert instrument.max_market_size <= instrument.max_limit_size == tiers.at(0).max_contracts[-1]

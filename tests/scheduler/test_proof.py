"""Noise is found to be noise and a planted signal is found, through model, decision and backtest together."""

from __future__ import annotations

import math

import numpy as np
import pytest

import crypto_qlib as cq
from crypto_qlib.analytics.inference import newey_west_standard_error

HORIZON = 24
FREE = (
    "features.sets=[technical,btc_relative]",
    f"model.horizon_bars={HORIZON}",
    "model.embargo_bars=24",
    "model.num_boost_round=25",
    "model.min_data_in_leaf=100",
    "model.num_leaves=15",
    # before costs, and with exits far away: the venue's "adverse extreme first" is a cost too
    "backtest.costs.maker_fee=0",
    "backtest.costs.taker_fee=0",
    "backtest.costs.impact_y=0",
    "backtest.costs.half_spread_bps=0",
    "strategy.leverage=1",
    "strategy.stop_atr=500",
    "strategy.max_stop_distance=0.5",
    "strategy.take_profit_atr=1000",
    "strategy.liquidation_buffer=0",
    "strategy.sizing=fixed_fraction",
    "strategy.position_fraction=0.1",
    "strategy.risk_per_trade=1",
    f"strategy.holding_bars={HORIZON}",
    "strategy.max_open=6",
    "strategy.min_net_return=-1",
    "strategy.min_win_probability=0",
    "strategy.min_daily_turnover=0",
    "strategy.min_listing_days=0",
    "strategy.replace_margin=10",
)


def traded(seed: int, signal: float) -> tuple[float, float, np.ndarray]:
    """Return (RankIC, its standard error, return of each bar from prices alone) out of sample."""
    # Six weeks of twelve coins are too few to find the planted signal; half a year of thirty is enough.
    data = cq.simulate(symbols=30, days=180, seed=seed, signal_strength=signal)
    features = cq.build_features(data, FREE)
    model = cq.train(data, features, FREE)
    scores = cq.predict(model, features)
    rank_ic = cq.evaluate(data, scores, model).rank_ic
    result = cq.run_backtest(data, scores, FREE)
    assert len(result.trades) > 50, "a test without trades proves nothing"
    paid = np.zeros(result.ts_open.size)
    np.add.at(paid, result.funding["bar"], result.funding["amount"])
    equity = np.concatenate([[result.initial_equity], result.equity - np.cumsum(paid)])
    return rank_ic.mean, rank_ic.standard_error, np.diff(equity) / equity[:-1]


@pytest.mark.slow
def test_on_pure_noise_neither_rank_ic_nor_return_before_costs_leaves_zero() -> None:
    runs = [traded(seed, 0.0) for seed in range(5)]
    mean = np.mean([r[0] for r in runs])
    error = math.sqrt(sum(r[1] ** 2 for r in runs)) / len(runs)
    assert abs(mean) < 3.0 * error, f"RankIC {mean:+.4f} +- {error:.4f}"
    returns = np.mean([r[2].mean() for r in runs])
    error = math.sqrt(sum(newey_west_standard_error(r[2], 2 * HORIZON) ** 2 for r in runs)) / len(runs)
    assert abs(returns) < 3.0 * error, f"return of a bar {returns:+.2e} +- {error:.2e}"


@pytest.mark.slow
def test_a_planted_signal_is_found_and_earns_before_costs() -> None:
    runs = [traded(seed, 1.0) for seed in range(3)]
    mean = np.mean([r[0] for r in runs])
    error = math.sqrt(sum(r[1] ** 2 for r in runs)) / len(runs)
    assert mean > 4.0 * error, f"RankIC {mean:+.4f} +- {error:.4f}"
    assert np.mean([r[2].mean() for r in runs]) > 0.0

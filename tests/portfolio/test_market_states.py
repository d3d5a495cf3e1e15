"""Market states: the last row worked out live equals the row of years, and nothing later reaches back."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.portfolio.market_panel import MarketStatePanel, market_states
from crypto_qlib.portfolio.market_state import MarketState
from crypto_qlib.portfolio.rules import Rules

SYMBOLS = ("BTCUSDT", "AUSDT", "BUSDT")
START = 19_000 * NS_PER_DAY + 5 * NS_PER_HOUR
RULES = Rules(max_correlation=0.9, max_beta=2.0, max_cluster=1.0, cluster_correlation=0.05)


def panel(n_bars: int = 1400, seed: int = 0) -> MarketPanel:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.01, (n_bars, 3)), axis=0))
    open_ = np.vstack([close[:1], close[:-1]])
    high, low = np.maximum(open_, close) * 1.002, np.minimum(open_, close) * 0.998
    volume = rng.uniform(1e3, 1e4, (n_bars, 3))
    funding = np.full((n_bars, 3), np.nan)
    funding[3::8] = rng.normal(1e-4, 1e-4, funding[3::8].shape)
    values = [open_, high, low, close, volume, volume * close, open_, high, low, close, funding]
    gone = rng.random((n_bars, 3)) < 0.03
    gone[: n_bars // 3, 2] = True
    prices = [np.where(gone, np.nan, v) for v in values]
    ts = START + np.arange(n_bars, dtype=np.int64) * NS_PER_HOUR
    return MarketPanel(SYMBOLS, NS_PER_HOUR, ts, *prices, np.ones(3, np.bool_))


def states(p: MarketPanel, rules: Rules = RULES) -> MarketStatePanel:
    table = TierTable(np.array([1e4]), np.array([0.01]), np.array([0.02]), np.array([50.0]))
    listed = {s: Instrument(s, s, s[:-4], 0.1, 0.01, 1.0, 1.0) for s in SYMBOLS}
    return market_states(p, listed, dict.fromkeys(SYMBOLS, TierHistory([table])), rules)


def assert_identical(a: MarketState, b: MarketState) -> None:
    for field in dataclasses.fields(MarketState):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y, err_msg=field.name)
    np.testing.assert_array_equal(a.contracts.tier_max, b.contracts.tier_max)


@pytest.mark.parametrize("end", [1400, 1391, 1380, 1369])
def test_the_latest_bars_alone_give_the_same_bits_as_the_whole_history(end: int) -> None:
    whole = panel()
    as_of = int(whole.ts_open[end - 1]) + NS_PER_HOUR
    live = states(whole.rows(end - history_bars(NS_PER_HOUR), end)).at(as_of)
    assert_identical(states(whole).at(as_of), live)


def test_nothing_after_the_decision_changes_its_state() -> None:
    whole = panel()
    cut = 1000
    changed = {name: getattr(whole, name).copy() for name in PANEL_FIELDS}
    for values in changed.values():
        values[cut:] *= 1.5
    other = dataclasses.replace(whole, **changed)
    for row in (cut - 1, cut - 30):
        as_of = int(whole.as_of_ns[row]) if hasattr(whole, "as_of_ns") else int(whole.ts_open[row]) + NS_PER_HOUR
        assert_identical(states(whole).at(as_of), states(other).at(as_of))


def test_turnover_volatility_and_beta_come_from_complete_days_worked_out_by_hand() -> None:
    p = panel()
    state = states(p).at(int(p.ts_open[-1]) + NS_PER_HOUR)
    midnight = (int(p.ts_open[-1]) + NS_PER_HOUR) // NS_PER_DAY * NS_PER_DAY
    first = int(np.searchsorted(p.ts_open, midnight - 30 * NS_PER_DAY))
    days = p.quote_volume[first : first + 720].reshape(30, 24, 3)
    np.testing.assert_allclose(state.adv, np.median(np.nansum(days, axis=1), axis=0), rtol=1e-12)
    moves = np.log(p.close[1:] / p.close[:-1])[first - 1 : first + 719].reshape(30, 24, 3)
    there = (~np.isnan(moves)).sum(axis=1)
    np.testing.assert_allclose(state.sigma_day, np.sqrt((np.nansum(moves**2, axis=1) * 24 / there).mean(axis=0)), rtol=1e-12)
    assert state.beta[0] == pytest.approx(1.0)


def test_a_missing_bar_keeps_the_last_price_and_says_how_old_it_is() -> None:
    p = panel()
    close = p.close.copy()
    close[-3:, 1] = np.nan
    state = states(dataclasses.replace(p, close=close)).at(int(p.ts_open[-1]) + NS_PER_HOUR)
    seen = close[~np.isnan(close[:, 1]), 1][-1]
    assert state.close[1] == seen
    assert state.data_age_bars[1] >= 3.0


def test_expected_funding_is_the_last_settled_rate_times_the_settlements_to_come() -> None:
    p = panel()
    as_of = int(p.ts_open[-1]) + NS_PER_HOUR
    state = states(p, RULES._replace(holding_bars=24)).at(as_of)
    settled = p.funding_rate[~np.isnan(p.funding_rate[:, 0]), 0]
    assert state.funding_rate[0] == settled[-1]
    assert state.funding_settlements[0] == 3.0


def test_columns_nobody_asked_for_are_left_out() -> None:
    plain = RULES._replace(
        max_correlation=1.0, max_beta=100.0, max_cluster=100.0, impact_y=0.0, half_spread_bps=2.0, min_daily_turnover=0.0,
        expect_funding=False,
        min_stop_distance=0.03, max_stop_distance=0.03, min_take_distance=0.06, max_take_distance=0.06,
    )  # fmt: skip
    p = panel(200)
    arrays = states(p, plain).arrays
    assert arrays.atr.shape[0] == arrays.daily.shape[0] == arrays.funding_rate.shape[0] == 1
    assert arrays.returns.shape[0] == 0


def test_a_symbol_without_tiers_or_contract_is_named() -> None:
    with pytest.raises(UserError, match="BTCUSDT: no contract specification"):
        market_states(panel(50), {}, {}, RULES)


def test_too_few_bars_give_an_unknown_range() -> None:
    p = panel(5)
    state = states(p).at(int(p.ts_open[-1]) + NS_PER_HOUR)
    assert all(math.isnan(x) for x in state.atr_fraction)


def test_the_half_spread_is_the_ladder_of_the_days_turnover_and_at_least_half_a_tick() -> None:
    p = panel()
    got = states(p, RULES._replace(half_spread_bps=-1.0)).at(int(p.ts_open[-1]) + NS_PER_HOUR)
    midnight = (int(p.ts_open[-1]) + NS_PER_HOUR) // NS_PER_DAY * NS_PER_DAY
    before = p.close[int(np.searchsorted(p.ts_open, midnight)) - 1]
    ladder = [
        next(bps for floor, bps in ((2e9, 0.2), (2e8, 0.5), (2e7, 1.5), (2e6, 5.0), (0, 15.0)) if a > floor) for a in got.adv
    ]
    tick = np.where(before > 0.0, 0.5 * 0.01 / before * 1e4, 0.0)
    np.testing.assert_allclose(got.half_spread_bps, np.maximum(ladder, tick), rtol=1e-12)
    fixed = states(p, RULES._replace(half_spread_bps=3.0)).at(int(p.ts_open[-1]) + NS_PER_HOUR)
    assert fixed.half_spread_bps.tolist() == [3.0, 3.0, 3.0]

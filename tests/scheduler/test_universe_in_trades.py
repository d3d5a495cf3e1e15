"""Only coins that were in the universe as known then are opened; a position in one that left is closed, not added to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import crypto_qlib as cq
from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.membership import membership_of
from crypto_qlib.feature_engineering.feature_generator import latest_features, settings_for_panel
from crypto_qlib.modeling.train_model import predict_row

pytestmark = pytest.mark.slow

OPTIONS = (
    "model.name=linear",
    "features.sets=[technical,btc_relative]",
    "model.horizon_bars=12",
    "model.embargo_bars=12",
    "strategy.holding_bars=12",
    "strategy.max_open=6",
    "strategy.min_net_return=-1",
    "strategy.min_win_probability=0",
    "strategy.min_daily_turnover=0",
    "strategy.min_listing_days=0",
)


def test_entries_are_members_at_their_decision_and_leavers_are_gone_after_the_time_exit() -> None:
    data = cq.simulate(symbols=8, days=45, seed=3, signal_strength=1.0)
    symbols = data.panel.symbols
    start = int(data.panel.ts_open[0])
    # Everybody but BTC takes turns: every two days another four belong.
    turns = [
        (start + k * 2 * NS_PER_DAY, ("BTCUSDT", *np.roll([s for s in symbols if s != "BTCUSDT"], 3 * k)[:4]))
        for k in range(23)
    ]
    members = membership_of((t, [str(s) for s in names]) for t, names in turns)
    masked = replace(data, panel=data.panel.with_members(members))
    features = cq.build_features(masked, OPTIONS)
    model = cq.train(masked, features, OPTIONS)
    scores = cq.predict(model, features)
    is_member = members.at(scores.symbols, scores.as_of_ns)
    assert np.isnan(scores.expected_return[~is_member]).all()
    assert np.isfinite(scores.expected_return[is_member]).mean() > 0.95
    result = cq.run_backtest(masked, scores, OPTIONS)
    trades = result.trades_frame()
    assert len(trades) > 20
    entered = trades.entry_ts.dt.as_unit("ns").astype("int64").to_numpy()  # filled at the open at which it was decided
    left = trades.exit_ts.dt.as_unit("ns").astype("int64").to_numpy()
    columns = [scores.symbols.index(s) for s in trades.symbol]
    rows = np.arange(len(trades))
    assert members.at(scores.symbols, entered)[rows, columns].all()
    assert (left - entered <= 13 * masked.panel.frame_ns).all()
    assert not members.at(scores.symbols, left)[rows, columns].all()  # some left the universe while held, and were closed
    # live: the row of the newest bar knows the same members
    wanted, _ = settings_for_panel(masked.panel, cq.configure(*OPTIONS).features)
    row = predict_row(model, latest_features(masked.panel.rows(0, masked.panel.n_bars - 30), wanted))
    (then,) = members.at(row.symbols, np.array([row.as_of_ns]))
    np.testing.assert_array_equal(np.isfinite(row.expected_return), then)

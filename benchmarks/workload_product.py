"""The workload as the product's own inputs, and the check that its trades equal the reference's.

The workload opens 10 positions of 0.3 x equity with no margin check; the product always checks margin, so it runs the same
notional at 6x instead of 3x leverage (neither liquidates). Four switches follow the simpler rules of the workload: a target may
be hit in the entry bar, stops pay plain slippage, entries at a settlement pay no funding, and no funding forecast in the rank.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks import workload as w
from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.portfolio.rules import BETA_OFF, FIXED_FRACTION, Rules

TOLERANCE = 2e-6
"""Relative tolerance of the final equity: the published answer has seven digits."""


def build(name: str, *, cross: bool = False) -> BacktestInputs:
    """Return the inputs of one workload."""
    s, d = w.saved(name)
    frame_ns = s.bar_s * 1_000_000_000
    ts_open = w.START_NS + np.arange(s.n_bars, dtype=np.int64) * frame_ns
    funding = np.full((s.n_bars, s.n_symbols), np.nan)
    funding[:: s.funding] = d["funding"][: funding[:: s.funding].shape[0]]
    symbols = tuple(f"S{i:03d}USDT" for i in range(s.n_symbols))
    last = (d["open"], d["high"], d["low"], d["close"])
    unlimited = np.broadcast_to(np.nan, (s.n_bars, s.n_symbols))
    panel = MarketPanel(
        symbols, frame_ns, ts_open, *last, unlimited, unlimited, *last, funding, np.zeros(s.n_symbols, np.bool_)
    )  # fmt: skip
    rows = np.arange(s.step - 1, s.n_bars - 1, s.step)
    unknown = np.broadcast_to(np.nan, (rows.size, s.n_symbols))
    scores = ScorePanel(ts_open[rows] + frame_ns, symbols, np.ascontiguousarray(d["score"][rows]), unknown, unknown)
    tiers = TierHistory([TierTable(np.array([1e18]), np.array([0.01]), np.array([0.01]), np.array([100.0]))])
    fine = 1e-9
    return BacktestInputs(
        panel=panel,
        scores=scores,
        instruments={x: Instrument(x, x, x, fine, fine, 1.0, 1.0, max_leverage=100.0) for x in symbols},
        tiers=dict.fromkeys(symbols, tiers),
        rules=plain_rules(s, frame_ns, cross=cross),
        initial_equity=w.CASH,
        execution=Execution(take_profit_in_entry_bar=True, doubled_stop_spread=False, funding_at_entry=False),
        start_ns=int(ts_open[0]),
        veto_log_rows=0,
    )


def plain_rules(s: w.Shape, frame_ns: int, *, cross: bool) -> Rules:
    """Return the workload's rules: no filters, no caps, fixed distances, order by the size of the score."""
    return Rules(
        frame_ns=frame_ns, decide_every_bars=s.step, max_open=w.MAX_OPEN, min_net_return=-math.inf, min_win_probability=0.0,
        min_daily_turnover=0.0, min_listing_days=0.0, replace_margin=math.inf, cooldown_bars=0, holding_bars=s.hold,
        min_stop_distance=w.STOP, max_stop_distance=w.STOP, min_take_distance=w.TARGET, max_take_distance=w.TARGET,
        sizing=FIXED_FRACTION, risk_per_trade=1.0, position_fraction=w.NOTIONAL_FRACTION / 6.0, leverage=6.0,
        max_position_fraction=100.0, max_gross=100.0, max_net=100.0, max_beta=BETA_OFF, liquidation_buffer=0.0,
        max_drawdown=1.0, taker_fee=w.FEE, impact_y=0.0, half_spread_bps=w.SLIPPAGE_BPS, expect_funding=False, cross=cross,
    )  # fmt: skip


def check(name: str, inputs: BacktestInputs) -> dict[str, Any]:
    """Run once and compare closed trades and final equity with the published answer.

    Raises
    ------
    SystemExit
        If they differ.
    """
    result = run_backtest(inputs)
    found = {"trades": int(result.trades.size), "final_equity": result.final_equity}
    if name in w.ANSWERS:
        trades, equity = w.ANSWERS[name]
        if found["trades"] != trades or abs(result.final_equity / equity - 1.0) > TOLERANCE:
            raise SystemExit(f"{name}: wrong answer {found}, expected {trades} trades and {equity}")
    return found

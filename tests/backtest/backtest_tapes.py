"""Small random markets for the backtest's tests: gaps, crashes, missing bars, marks off last, odd funding times, delistings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.portfolio.rules import Rules

START_NS = 1_700_006_400_000_000_000 // (24 * NS_PER_HOUR) * (24 * NS_PER_HOUR)


@dataclass(frozen=True)
class Tape:
    """How wild a random market is."""

    seed: int = 0
    n_bars: int = 160
    n_symbols: int = 4
    volatility: float = 0.02
    crash_at: int = -1
    crash: float = -0.35
    missing: float = 0.0
    basis: float = 0.0
    thin: bool = False
    delist: bool = False


LOOSE = Rules(
    min_net_return=-1.0,
    min_win_probability=0.0,
    min_daily_turnover=0.0,
    min_listing_days=0.0,
    max_open=3,
    cooldown_bars=3,
    holding_bars=12,
    risk_per_trade=1.0,
    max_position_fraction=5.0,
    max_gross=20.0,
    max_net=20.0,
    leverage=20.0,
    liquidation_buffer=0.0,
    max_drawdown=1.0,
    position_fraction=0.2,
    sizing=1,
    replace_margin=0.02,
)
"""Rules that let nearly everything through, so that positions die in every possible way."""


def inputs(tape: Tape, rules: Rules = LOOSE, equity: float = 10_000.0) -> BacktestInputs:
    """Return a backtest on the tape's market."""
    rng = np.random.default_rng(tape.seed)
    t, n = tape.n_bars, tape.n_symbols
    symbols = ("BTCUSDT", *(f"S{i}USDT" for i in range(n - 1)))
    moves = rng.normal(0.0, tape.volatility, (t, n)) + rng.normal(0.0, tape.volatility, (t, 1))
    if tape.crash_at >= 0:
        moves[tape.crash_at] += tape.crash
    close = np.round(100.0 * np.exp(np.cumsum(moves, axis=0)), 2)
    gap = np.exp(rng.normal(0.0, 0.2 * tape.volatility, (t, n)))
    open_ = np.round(np.vstack([np.full((1, n), 100.0), close[:-1]]) * gap, 2)
    wick = np.abs(rng.normal(0.0, tape.volatility, (2, t, n)))
    high = np.round(np.maximum(open_, close) * (1.0 + wick[0]), 2)
    low = np.round(np.minimum(open_, close) * np.exp(-wick[1]), 2)
    basis = np.exp(rng.normal(0.0, tape.basis, (4, t, n))) if tape.basis else np.ones((4, t, n))
    mark_open, mark_close = open_ * basis[0], close * basis[1]
    mark_high = np.maximum(np.maximum(mark_open, mark_close), high * basis[2])
    mark_low = np.minimum(np.minimum(mark_open, mark_close), low * basis[3])
    volume = rng.uniform(0.5, 2.0, (t, n)) * (100.0 if tape.thin else 1e6)
    funding = np.where(rng.random((t, n)) < 0.2, rng.normal(0.0, 2e-3, (t, n)), np.nan)
    prices = [open_, high, low, close, volume, volume * close, mark_open, mark_high, mark_low, mark_close, funding]
    gone = rng.random((t, n)) < tape.missing
    gone[0] = False
    if tape.delist:
        gone[t // 2 :, n - 1] = True
    for values in prices[:-1]:  # funding does not wait for candles
        values[gone] = np.nan
    ts_open = START_NS + np.arange(t, dtype=np.int64) * NS_PER_HOUR
    panel = MarketPanel(symbols, NS_PER_HOUR, ts_open, *prices, np.full(n, tape.basis > 0.0))
    expected = rng.normal(0.0, 0.05, (t, n))
    expected[rng.random((t, n)) < 0.1] = np.nan
    win = rng.uniform(0.4, 0.8, (t, n))
    scores = ScorePanel(ts_open + NS_PER_HOUR, symbols, expected, win, np.full((t, n), np.nan))
    later = START_NS + (t // 3) * NS_PER_HOUR
    tiers = TierHistory([_tiers(1.0, 0), _tiers(0.7, later)])
    listed = {
        s: Instrument(s, f"{s[:-4]}-USDT-SWAP", s[:-4], 0.1, 0.01, 1.0, 1.0, max_leverage=50.0, max_market_size=5e5)
        for s in symbols
    }
    return BacktestInputs(panel, scores, listed, dict.fromkeys(symbols, tiers), rules, equity, require_funding=False)


def quarters_under_hours(tape: Tape, rules: Rules = LOOSE) -> BacktestInputs:
    """Return a backtest that trades quarters of an hour (the tape's bars) and decides on the hours they make."""
    fine = inputs(tape, rules)
    quarter, n = NS_PER_HOUR // 4, tape.n_bars // 4
    ts = START_NS + np.arange(tape.n_bars, dtype=np.int64) * quarter
    panel = dataclasses.replace(fine.panel, frame_ns=quarter, ts_open=ts)
    hours = START_NS + NS_PER_HOUR * np.arange(1, n, dtype=np.int64)
    s = fine.scores
    scores = ScorePanel(hours, panel.symbols, *(a[: n - 1] for a in (s.expected_return, s.win_probability, s.uncertainty)))
    rows: dict[str, Any] = {k: getattr(panel, k)[3::4] for k in ("close", "volume", "quote_volume", "mark_close")}
    rows |= {k: getattr(panel, k)[::4] for k in ("open", "mark_open", "funding_rate", "is_member")}
    rows |= {k: getattr(panel, k).reshape(n, 4, -1).max(axis=1) for k in ("high", "mark_high")}
    rows |= {k: getattr(panel, k).reshape(n, 4, -1).min(axis=1) for k in ("low", "mark_low")}
    lacking = np.isnan(panel.close).reshape(n, 4, -1).any(axis=1)
    rows |= {k: np.where(lacking, np.nan, v) for k, v in rows.items() if k not in {"funding_rate", "is_member"}}
    hourly = dataclasses.replace(panel, frame_ns=NS_PER_HOUR, ts_open=ts[::4], **rows)
    return dataclasses.replace(fine, panel=panel, scores=scores, state_panel=hourly)


def _tiers(scale: float, valid_from_ns: int) -> TierTable:
    return TierTable(
        np.array([200.0, 500.0, 1000.0, 3000.0, 1e6]) * scale,
        np.array([0.004, 0.01, 0.02, 0.03, 0.05]),
        np.array([0.02, 0.025, 0.04, 0.05, 0.1]),
        np.array([50.0, 40.0, 25.0, 20.0, 10.0]),
        valid_from_ns,
    )

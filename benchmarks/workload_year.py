"""A year of minutes of 50 symbols (26.28 million bars) in a lake, under hourly scores: what does not fit in memory at once.

Prices as in :mod:`benchmarks.workload`, made month by month from seeds of their own. The hours the minutes make, which
decisions see, and the scores are kept in one file beside the lake.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import workload as w
from crypto_qlib.backtest.desk import Execution
from crypto_qlib.backtest.inputs import BacktestInputs
from crypto_qlib.backtest.streaming import BarStream, lake_stream
from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FundingBlock, MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.store.lake import Kind, Lake

MINUTES, SYMBOLS, HOUR = 525_600, 50, 60
STRETCH = 43_800
"""Minutes made at a time: a twelfth of a year."""
FOLDER = w.FOLDER / "lakes" / "year"
NAMES = tuple(f"S{i:03d}USDT" for i in range(SYMBOLS))


def make() -> None:
    """Write the lake and the hourly file, once (about a minute, 0.9 GB)."""
    lake, rng = Lake(FOLDER), np.random.default_rng(w.SEED)
    sigma = (0.005 + 0.007 * rng.random(SYMBOLS)) / np.sqrt(HOUR)
    price = np.exp(rng.uniform(np.log(50.0), np.log(2000.0), SYMBOLS))
    hours: dict[str, list[np.ndarray]] = {k: [] for k in ("open", "high", "low", "close")}
    for start in range(0, MINUTES, STRETCH):
        rng = np.random.default_rng((w.SEED, start))
        market = rng.standard_normal(STRETCH)[:, None]
        moves = (0.6 * market + 0.8 * rng.standard_normal((STRETCH, SYMBOLS))) * sigma - 0.5 * sigma**2
        close = price * np.exp(np.cumsum(moves, axis=0))
        open_ = np.vstack([price[None], close[:-1]])
        high = np.maximum(open_, close) * np.exp(0.5 * sigma * np.abs(rng.standard_normal(close.shape)))
        low = np.minimum(open_, close) * np.exp(-0.5 * sigma * np.abs(rng.standard_normal(close.shape)))
        price = close[-1]
        ts = w.START_NS + NS_PER_MINUTE * np.arange(start, start + STRETCH, dtype=np.int64)
        unknown = np.full(STRETCH, np.nan)
        for j, symbol in enumerate(NAMES):
            columns = (np.ascontiguousarray(a[:, j]) for a in (open_, high, low, close))
            lake.write_bars(Kind.CANDLES, "1m", symbol, BarBlock(ts, *columns, unknown, unknown))
        shaped = [a.reshape(-1, HOUR, SYMBOLS) for a in (open_, high, low, close)]
        for name, a in zip(hours, (shaped[0][:, 0], shaped[1].max(1), shaped[2].min(1), shaped[3][:, -1]), strict=True):
            hours[name].append(a)
        print(f"\rmaking a year of minutes: {start + STRETCH:,} of {MINUTES:,}", end="", file=sys.stderr, flush=True)
    whole = {k: np.concatenate(v) for k, v in hours.items()}
    funding = np.random.default_rng((w.SEED, 1)).normal(1e-4, 1e-4, (MINUTES // 480, SYMBOLS))
    for j, symbol in enumerate(NAMES):
        ts = w.START_NS + 8 * NS_PER_HOUR * np.arange(funding.shape[0], dtype=np.int64)
        lake.write_funding(symbol, FundingBlock(ts, np.ascontiguousarray(funding[:, j])))
    log_close, ahead = np.log(whole["close"]), np.zeros_like(whole["close"])
    ahead[:-24] = (log_close[24:] - log_close[:-24]) / (sigma * np.sqrt(24 * HOUR))
    score = np.random.default_rng((w.SEED, 2)).standard_normal(ahead.shape) + 0.035 * ahead
    np.savez(FOLDER / "hours.npz", score=score, funding=funding, **whole)


def inputs_and_stream(rules_of: Callable[..., Any]) -> tuple[BacktestInputs, BarStream]:
    """Return the backtest that decides on hours and trades on the minutes of the lake."""
    if not (FOLDER / "hours.npz").exists():
        make()
    d = np.load(FOLDER / "hours.npz")
    n = MINUTES // HOUR
    ts = w.START_NS + NS_PER_HOUR * np.arange(n, dtype=np.int64)
    last = tuple(d[k] for k in ("open", "high", "low", "close"))
    funding = np.full((n, SYMBOLS), np.nan)
    funding[::8] = d["funding"]
    volume = np.broadcast_to(np.nan, (n, SYMBOLS))
    panel = MarketPanel(NAMES, NS_PER_HOUR, ts, *last, volume, volume, *last, funding, np.zeros(SYMBOLS, bool))
    unknown = np.full((n - 1, SYMBOLS), np.nan)
    scores = ScorePanel(ts[1:], NAMES, d["score"][:-1], unknown, unknown)
    tiers = TierHistory([TierTable(np.array([1e18]), np.array([0.01]), np.array([0.01]), np.array([100.0]))])
    inputs = BacktestInputs(
        panel, scores, {s: Instrument(s, s, s, 1e-9, 1e-9, 1.0, 1.0, max_leverage=100.0) for s in NAMES},
        dict.fromkeys(NAMES, tiers), rules_of(w.Shape(n, SYMBOLS, 3600, 1, 24, 8), NS_PER_HOUR, cross=False), w.CASH,
        Execution(take_profit_in_entry_bar=True, doubled_stop_spread=False, funding_at_entry=False),
    )  # fmt: skip
    return inputs, lake_stream(Lake(FOLDER), NAMES, "1m", Kind.CANDLES)

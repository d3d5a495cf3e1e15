"""The common backtest workload: seeded data of N symbols and the answers every correct engine gives on it.

A: 50 symbols x 17,520 hourly bars, a decision every bar. B: 50 x 86,400 minute bars, a decision every 60th bar.
``A4``, ``A16``: 4x, 16x the bars; ``A_s200``, ``A_s800``: other symbol counts. Rules: at most 10 positions of 0.3 x equity,
stop 3 %, target 6 %, time exit, 2 bps slippage, 5 bps fee, funding every 8 hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEED = 20260101
START_NS = 1_640_995_200_000_000_000
MAX_OPEN, STOP, TARGET = 10, 0.03, 0.06
FEE, SLIPPAGE_BPS, NOTIONAL_FRACTION, CASH = 0.0005, 2.0, 0.3, 1_000_000.0

FOLDER = Path(__file__).resolve().parents[1] / ".bench"
"""Where generated data and the environments of other engines lie."""
FIELDS = ("open", "high", "low", "close", "score", "funding")

ANSWERS = {"A": (10_713, 4_157_130.0), "B": (829, 1_663_590.0)}
"""Closed trades and final equity of the reference engines."""


@dataclass(frozen=True)
class Shape:
    n_bars: int
    n_symbols: int
    bar_s: int
    step: int
    hold: int
    funding: int


def shape(name: str) -> Shape:
    """Return the shape of a workload by its name."""
    head, _, symbols = name.partition("_s")
    n = int(symbols) if symbols else 50
    multiple = int(head[1:]) if head[1:] else 1
    if head[0] == "A":
        return Shape(17_520 * multiple, n, 3600, 1, 24, 8)
    if head[0] == "B":
        return Shape(86_400 * multiple, n, 60, 60, 1440, 480)
    raise SystemExit(f"unknown workload {name}")


def generate(name: str) -> tuple[Shape, dict[str, np.ndarray]]:
    """Return shape and arrays: ``open high low close volume score`` as (n_bars, n_symbols), ``funding`` by settlement."""
    s = shape(name)
    n, t = s.n_symbols, s.n_bars
    rng = np.random.default_rng(SEED)
    sigma = (0.005 + 0.007 * rng.random(n)) * np.sqrt(s.bar_s / 3600.0)
    start = np.exp(rng.uniform(np.log(50.0), np.log(2000.0), n))
    market = rng.standard_normal(t)[:, None]
    returns = (0.6 * market + 0.8 * rng.standard_normal((t, n))) * sigma - 0.5 * sigma**2
    decimals = 6 if t <= 100_000 else 15
    close = np.round(np.exp(np.cumsum(returns, axis=0)) * start, decimals)
    open_ = np.vstack([np.round(start, decimals)[None], close[:-1]])
    high = np.maximum(open_, close) * np.exp(0.5 * sigma * np.abs(rng.standard_normal((t, n))))
    low = np.minimum(open_, close) * np.exp(-0.5 * sigma * np.abs(rng.standard_normal((t, n))))
    volume = np.round(np.exp(8.0 + rng.standard_normal((t, n))), 3)
    ahead = np.zeros((t, n))
    log_close = np.log(close)
    ahead[: -s.hold] = (log_close[s.hold :] - log_close[: -s.hold]) / (sigma * np.sqrt(s.hold))
    score = rng.standard_normal((t, n)) + 0.035 * ahead
    funding = rng.normal(1e-4, 1e-4, (t // s.funding + 1, n))
    return s, {
        "open": open_, "high": np.round(high, decimals), "low": np.round(low, decimals), "close": close,
        "volume": volume, "score": score, "funding": funding,
    }  # fmt: skip


def saved(name: str) -> tuple[Shape, dict[str, np.ndarray]]:
    """Return shape and the arrays an engine reads, from disk; they are generated once."""
    folder = FOLDER / "workloads" / name
    if not (folder / "funding.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _, made = generate(name)
        for field in FIELDS:
            np.save(folder / f"{field}.npy", made[field])
    return shape(name), {field: np.load(folder / f"{field}.npy") for field in FIELDS}

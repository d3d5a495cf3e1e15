"""A small random market for feature and model tests; shares no code with the package's own simulator."""

from __future__ import annotations

import numpy as np

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel

START_NS = 1_704_067_200 * 10**9  # 2024-01-01


def noise_panel(
    n_bars: int,
    n_symbols: int = 8,
    seed: int = 1,
    planted: float = 0.0,
    *,
    with_gaps: bool = False,
    frame_ns: int = NS_PER_HOUR,
) -> MarketPanel:
    """Return a one-factor market with fat tails; ``planted`` is the drift per bar, in sigmas, of a state that volume shows.

    With ``planted = 0`` prices are a random walk and nothing predicts returns. With gaps, the third symbol (by column) is
    listed after a quarter of the span, the fourth lacks five bars in the middle, the fifth is delisted near the end.
    """
    rng = np.random.default_rng(seed)
    shape = (n_bars, n_symbols)
    state = np.zeros(shape)
    for t in range(1, n_bars):
        state[t] = 0.97 * state[t - 1] + 0.243 * rng.standard_normal(n_symbols)
    shocks = 0.006 * rng.standard_t(5, shape)
    returns = 0.004 * rng.standard_t(5, n_bars)[:, None] * rng.uniform(0.6, 1.4, n_symbols) + shocks
    returns[1:] += planted * 0.006 * state[:-1]
    close = 100.0 * np.exp(np.cumsum(returns, axis=0))
    open_ = np.vstack([close[:1], close[:-1]])
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0.0, 0.002, shape)))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0.0, 0.002, shape)))
    volume = np.exp(rng.normal(8.0, 0.3, shape) + state)
    premium = 1.0 + rng.normal(0.0, 5e-4, shape)
    ts_open = START_NS + np.arange(n_bars, dtype=np.int64) * frame_ns
    funding = np.full(shape, np.nan)
    settles = ts_open % (8 * NS_PER_HOUR) == 0
    funding[settles] = rng.normal(1e-4, 1e-4, (int(settles.sum()), n_symbols))
    last = (open_, high, low, close)
    columns = (*last, volume, volume * (high + low + close) / 3.0, *(p * premium for p in last), funding)
    fields = dict(zip(PANEL_FIELDS, columns, strict=True))
    if with_gaps:
        for values in fields.values():
            values[: n_bars // 4, 2] = np.nan
            values[n_bars // 2 : n_bars // 2 + 5, 3] = np.nan
            values[n_bars - n_bars // 10 :, 4] = np.nan
    symbols = ("ETHUSDT", "BTCUSDT", *(f"C{k:02d}USDT" for k in range(n_symbols - 2)))
    return MarketPanel(symbols, frame_ns, ts_open, has_mark=np.ones(n_symbols, dtype=np.bool_), **fields)


def changed(panel: MarketPanel, **fields: np.ndarray) -> MarketPanel:
    """Return ``panel`` with some fields replaced."""
    kept = {name: getattr(panel, name) for name in PANEL_FIELDS} | fields
    return MarketPanel(panel.symbols, panel.frame_ns, panel.ts_open, has_mark=panel.has_mark, **kept)


def with_other_future(panel: MarketPanel, first_changed: int, seed: int) -> MarketPanel:
    """Return ``panel`` with every input from bar ``first_changed`` on replaced by other values, some missing."""
    rng = np.random.default_rng(seed)
    fields = {}
    for name in PANEL_FIELDS:
        values = getattr(panel, name).copy()
        later = values[first_changed:]
        later *= np.exp(rng.normal(0.0, 0.5, later.shape))
        later[rng.random(later.shape) < 0.1] = np.nan
        fields[name] = values
    return changed(panel, **fields)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two arrays are equal bit for bit, any NaN being equal to any NaN."""
    return a.shape == b.shape and bool(
        np.all((a == b) | (np.isnan(a) & np.isnan(b))) and np.all(np.signbit(a) == np.signbit(b))
    )

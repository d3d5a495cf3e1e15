"""Where the time of a report goes: CPU of each part, next to the backtest it is about.

    python -m benchmarks report

50 simulated swaps x 1 year of hours, scores with a little truth in them, about ten positions open at any time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import crypto_qlib as cq
from crypto_qlib.api import MarketData
from crypto_qlib.backtest.analysis_report import write_report
from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.backtest.performance_report import curves, performance
from crypto_qlib.backtest.report_page import build_page
from crypto_qlib.backtest.report_pictures import draw_exposure_history, draw_pnl_curve
from crypto_qlib.backtest.run_backtest_leveraged import leveraged_inputs
from crypto_qlib.backtest.what_if import what_if
from crypto_qlib.core.signal import ScorePanel

HORIZON, WARM_UP = 24, 35 * 24
REPEATS = 5


def noisy_truth(data: MarketData, share: float = 0.3, seed: int = 0) -> ScorePanel:
    """Return scores that are mostly noise and partly the return to come."""
    opens = data.panel.open
    forward = np.full(opens.shape, np.nan)
    forward[: -HORIZON - 1] = opens[HORIZON + 1 :] / opens[1:-HORIZON] - 1.0
    centred = forward - np.nan_to_num(np.nanmean(forward[: -HORIZON - 1], axis=1, keepdims=True).mean())
    spread = float(np.nanstd(centred))
    noise = np.random.default_rng(seed).normal(0.0, 1.0, opens.shape)
    expected = np.where(np.isnan(data.panel.close), np.nan, 0.006 * (share * np.nan_to_num(centred / spread) + noise))
    win = np.clip(0.5 + 5.0 * np.abs(expected), 0.0, 0.7)
    as_of = data.panel.ts_open + data.panel.frame_ns
    return ScorePanel(
        as_of[WARM_UP:], data.panel.symbols, expected[WARM_UP:], win[WARM_UP:], np.full(expected[WARM_UP:].shape, np.nan)
    )


def cpu_s(f: Callable[[], object]) -> float:
    f()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    data = cq.simulate(symbols=50, days=400, signal_strength=1.0)
    settings = cq.configure("strategy.replace_margin=0.01", "strategy.min_net_return=0.005")
    inputs = leveraged_inputs(data.panel, noisy_truth(data), data.instruments, data.tiers, settings)
    result = run_backtest(inputs)
    study = what_if(inputs, result)
    c = curves(result, data.panel)
    figures: dict[str, Any] = {"run": {}, **performance(result, data.panel, "simulated", None)}
    figures |= {"what_if": study.to_json(), "trials": None}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts: dict[str, Callable[[], object]] = {
            "the backtest itself": lambda: run_backtest(inputs),
            "capacity, ruin, distance to liquidation": lambda: what_if(inputs, result),
            "figures": lambda: performance(result, data.panel, "simulated", None),
            "picture of profit and loss": lambda: draw_pnl_curve(c, result, "title", "footer", folder / "a.png"),
            "picture of the exposure": lambda: draw_exposure_history(result, "title", "footer", folder / "b.png"),
            "page": lambda: build_page(result, data.panel, c, figures, {}, None, study),
            "the whole report": lambda: write_report(result, data.panel, settings, {}, None, folder / "r", None, study),
        }
        seconds = {name: cpu_s(f) for name, f in parts.items()}
        size = (folder / "r" / "report.html").stat().st_size
    base = seconds["the backtest itself"]
    print(f"{result.trades.size:,} trades; page {size / 1e6:.1f} MB")
    for name, value in seconds.items():
        print(f"{name:<42} {value:6.2f} s CPU  {value / base:6.1f} x the backtest")


if __name__ == "__main__":
    main()

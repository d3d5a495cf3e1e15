"""The workload through the public API: first the right answer, then the time, next to the reference kernels where present.

    python -m benchmarks                     # A and B
    python -m benchmarks A4 A16 A_s200       # scaling
    python -m benchmarks A --public          # public API alone, one JSON line a workload

The workload opens 10 positions of 0.3 x equity with no margin check; the product always checks margin, so it runs the same
notional at 6x instead of 3x leverage (neither liquidates). Four switches follow the simpler rules of the workload: a target may
be hit in the entry bar, stops pay plain slippage, entries at a settlement pay no funding, and no funding forecast in the rank.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workload as w
from crypto_qlib.backtest.bookkeeping import Execution
from crypto_qlib.backtest.engine import run_backtest, run_prepared
from crypto_qlib.backtest.inputs import BacktestInputs, prepare
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.core.tiers import TierHistory, TierTable
from crypto_qlib.portfolio.rules import BETA_OFF, FIXED_FRACTION, Rules

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "bench"
TOLERANCE = 2e-6
"""Relative tolerance of the final equity: the published answer has seven digits."""


def build(name: str, *, cross: bool = False) -> BacktestInputs:
    """Return the inputs of one workload."""
    s, d = w.generate(name)
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
    unknown = np.full((rows.size, s.n_symbols), np.nan)
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


def cpu_ms(f: Callable[[], object]) -> float:
    """Return the CPU time of one call, milliseconds."""
    start = time.process_time()
    f()
    return 1e3 * (time.process_time() - start)


def compare(name: str, reps: int) -> dict[str, Any]:
    """Return times of engine and public API, and their ratios to the reference kernels where those are present."""
    inputs = build(name)
    found = check(name, inputs)
    run = prepare(inputs)
    cross = prepare(build(name, cross=True))
    run_prepared(cross)
    calls: dict[str, Callable[[], object]] = {
        "engine": lambda: run_prepared(run),
        "engine_cross": lambda: run_prepared(cross),
        "public_api": lambda: run_backtest(inputs),
        **reference_calls(name),
    }
    for f in calls.values():
        f()
    times: dict[str, list[float]] = {k: [] for k in calls}
    for _ in range(reps):
        for k, f in calls.items():
            times[k].append(cpu_ms(f))
    medians = {f"{k}_ms": round(statistics.median(v), 3) for k, v in times.items()}
    ratios = {
        f"{a}/{b}": round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 2)
        for a in ("engine", "public_api")
        for b in ("kernel_full", "kernel")
        if b in times
    }
    if "kernel_full_cross" in times:
        pairs = zip(times["engine_cross"], times["kernel_full_cross"], strict=True)
        ratios["engine_cross/kernel_full_cross"] = round(statistics.median(x / y for x, y in pairs), 2)
    return {"workload": name, **found, **medians, **ratios, "peak_mb": peak_mb()}


def reference_calls(name: str) -> dict[str, Callable[[], object]]:
    """Return the reference kernels on the same workload, or nothing where they are not beside this checkout."""
    if not (REFERENCE / "kernel_full.py").exists():
        return {}
    os.environ.setdefault("BENCH_DATA", str(Path.home() / ".cache" / "crypto_qlib_bench"))
    sys.path.insert(0, str(REFERENCE))
    bare, full, theirs = (_load(m) for m in ("kernel", "kernel_full", "workload"))
    sys.path.pop(0)
    s, d = theirs.load(name)
    t, n = s["t"], s["n"]
    capacity = 8 * (t // s["step"]) + 256
    n_funding = t // s["fund"] * 10 + 64
    buffers = (
        np.zeros((t, 5)), np.zeros((capacity, 3), np.int64), np.zeros((capacity, 4)), np.zeros((n_funding, 2), np.int64),
        np.zeros((n_funding, 2)),
    )  # fmt: skip
    floor = np.tile(np.array([0, 5e4, 2.5e5, 1e6, 5e6, 1e7, 2e7, 5e7, 1e8, 2e8]), (n, 1))
    rate = np.tile(np.array([0.004, 0.005, 0.01, 0.025, 0.05, 0.1, 0.125, 0.15, 0.25, 0.5]), (n, 1))
    amount = np.zeros_like(floor)
    for i in range(1, floor.shape[1]):
        amount[:, i] = amount[:, i - 1] + floor[:, i] * (rate[:, i] - rate[:, i - 1])
    tick, lot = np.full(n, 1e-4), np.full(n, 1e-3)
    bare_buffers = bare.buffers(s)

    def run_full(cross: bool) -> object:
        return full.run(
            d["open"], d["high"], d["low"], d["close"], d["score"], d["funding"], s["step"], s["hold"], s["fund"],
            theirs.MAX_POS, theirs.LEV, theirs.SL, theirs.TP, theirs.FEE, theirs.SLIP, theirs.CASH0, cross, tick, lot, 5.0,
            floor, rate, amount, *buffers,
        )  # fmt: skip

    return {
        "kernel": lambda: bare.call(s, d, bare_buffers),
        "kernel_full": lambda: run_full(False),
        "kernel_full_cross": lambda: run_full(True),
    }


def _load(module: str) -> Any:
    if module in sys.modules:
        return sys.modules[module]
    spec = importlib.util.spec_from_file_location(module, REFERENCE / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def peak_mb() -> int:
    """Return the largest resident size of this process, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["A", "B"])
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--public", action="store_true", help="time the public API alone")
    options = parser.parse_args()
    for name in options.workloads:
        if options.public:
            inputs = build(name)
            found = check(name, inputs)
            times = [cpu_ms(partial(run_backtest, inputs)) for _ in range(options.reps)]
            line = {"workload": name, **found, "public_api_ms": round(statistics.median(times), 3), "peak_mb": peak_mb()}
        else:
            line = compare(name, options.reps)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

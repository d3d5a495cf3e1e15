"""The hot store against Qlib's bins, a bare log and stock Qlib: ratios in one run on one machine.

    python -m benchmarks store                     # minutes: 50 symbols x 1 year; Qlib's task: 800 stocks x 3,400 days
    python -m benchmarks store --symbols 20 --bars 100000 --stocks 100

1. ``panel``: one field's panel, loaded and read through once, next to the same panel from Qlib's ``.bin`` files.
2. ``append``: one bar of all symbols, durable and visible to Qlib and to the engine, next to one fsynced write of the same
   bytes to a log (wall clock, because waiting for the disk is what it measures; alternating, medians).
3. ``memory``: a fresh process opens the store of a year of minutes and reads every field through; its largest resident size.
4. ``qlib``: ``D.features`` of Qlib's own dataset task with our dataset provider and with Qlib's, on the same files (CPU
   seconds), and the largest relative difference of the values.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qlib
from qlib.data import D

from crypto_qlib.core.clock import NS_PER_MINUTE
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.data_collector.hot_store import HotStore, build_hot_store
from crypto_qlib.data_collector.qlib_data_adapter import PROVIDERS, forget_cached_bars, init_qlib
from crypto_qlib.store.panel_store import PanelStore
from crypto_qlib.store.paths import Paths

START_NS = 1_735_689_600_000_000_000
SEED = 20260101
TASK = (
    "$close/Ref($close,5)", "$close/Ref($close,20)", "Mean($close,5)/$close", "Mean($close,20)/$close",
    "Mean($close,60)/$close", "Std($close,5)/$close", "Std($close,20)/$close", "Max($high,20)/$close", "Min($low,20)/$close",
    "Slope($close,20)/$close", "Rsquare($close,20)", "Corr($close,Log($volume+1),20)", "Mean($volume,5)/($volume+1e-12)",
    "Std($volume,20)/($volume+1e-12)",
)  # fmt: skip
"""Fourteen features from daily bars: the data-server task of Qlib's paper."""
TASK_DAYS = 3400
WARM_UP_BARS = 60


def minute_panel(n_symbols: int, n_bars: int) -> MarketPanel:
    """Return random-walk minutes of ``n_symbols`` coins (no mark prices, funding every eight hours)."""
    rng = np.random.default_rng(SEED)
    symbols = tuple(f"S{j:03d}USDT" for j in range(n_symbols))
    close = np.exp(np.cumsum(rng.standard_normal((n_bars, n_symbols)) * 1e-3, axis=0)) * rng.uniform(0.1, 1e4, n_symbols)
    spread = np.abs(rng.standard_normal((n_bars, n_symbols))) * 4e-4
    volume = np.exp(5.0 + rng.standard_normal((n_bars, n_symbols)))
    funding = np.full((n_bars, n_symbols), np.nan)
    funding[::480] = 1e-4
    prices = {"open": close, "high": close * (1.0 + spread), "low": close * (1.0 - spread), "close": close}
    return MarketPanel(
        symbols, NS_PER_MINUTE, START_NS + NS_PER_MINUTE * np.arange(n_bars, dtype=np.int64), **prices, volume=volume,
        quote_volume=volume * close, **{f"mark_{k}": v for k, v in prices.items()}, funding_rate=funding,
        has_mark=np.zeros(n_symbols, np.bool_),
    )  # fmt: skip


def cpu_s(f: Callable[[], object]) -> float:
    start = time.process_time()
    f()
    return time.process_time() - start


def panel_load(hot: Path, qlib_root: Path, n_bars: int) -> dict[str, Any]:
    """Compare one field read through once from the panel store, and from the bins put side by side."""

    def from_panel() -> float:
        return float(np.nansum(PanelStore.open(hot).field("close")))

    def from_bins() -> float:
        names = PanelStore.open(hot).layout.symbols
        panel = np.full((n_bars, len(names)), np.nan, np.float32)
        for j, name in enumerate(names):
            content = np.fromfile(qlib_root / "features" / name.lower() / "close.1min.bin", "<f4")
            panel[int(content[0]) : int(content[0]) + content.size - 1, j] = content[1:]
        return float(np.nansum(panel))

    from_panel(), from_bins()
    pairs = [(cpu_s(from_panel), cpu_s(from_bins)) for _ in range(5)]
    return {
        "panel_s": round(statistics.median(p for p, _ in pairs), 4),
        "bins_s": round(statistics.median(b for _, b in pairs), 4),
        "panel/bins": round(statistics.median(p / b for p, b in pairs), 3),
    }


def append(hot: Path, qlib_root: Path, panel: MarketPanel, reps: int) -> dict[str, Any]:
    """Compare a whole append with one fsynced write of as many bytes, turn by turn."""
    rng = np.random.default_rng(SEED + 1)
    n = len(panel.symbols)
    record = rng.standard_normal(1 + len(PANEL_FIELDS) * n).tobytes()
    log = os.open(hot.with_name("bare.log"), os.O_WRONLY | os.O_CREAT, 0o644)
    reader = PanelStore.open(hot)
    first = len(reader)
    ours: list[float] = []
    bare: list[float] = []
    with HotStore(hot, qlib_root) as store:
        for k in range(reps + 3):
            bar = {name: rng.uniform(1.0, 2.0, n) for name in PANEL_FIELDS}
            began = time.perf_counter()
            os.write(log, record)
            os.fsync(log)
            middle = time.perf_counter()
            store.append(int(panel.ts_open[-1]) + (1 + k) * NS_PER_MINUTE, bar)
            ended = time.perf_counter()
            if k >= 3:  # the first ones open files
                bare.append(middle - began)
                ours.append(ended - middle)
            assert len(reader) == first + k + 1
        last = np.float32(reader.field("close")[-1, 0])
        init_qlib(Paths(qlib_root.parent))
        seen = D.features([panel.symbols[0]], ["$close"], freq="1min", start_time=np.datetime64(int(reader.ts_open[-1]), "ns"))
        assert seen["$close"].to_numpy().tolist() == [last], "the newest bar is not visible to Qlib"
    os.close(log)
    return {
        "append_ms": round(1e3 * statistics.median(ours), 3),
        "fsynced_write_ms": round(1e3 * statistics.median(bare), 3),
        "append/write": round(statistics.median(ours) / statistics.median(bare), 2),
    }


def memory(hot: Path) -> dict[str, Any]:
    """Return the largest resident size of a process that reads every field of the store through."""
    program = (
        "import resource, sys, numpy as np\nfrom pathlib import Path\nfrom crypto_qlib.store.panel_store import PanelStore\n"
        "store = PanelStore.open(Path(sys.argv[1]))\n"
        "total = sum(float(np.nansum(store.field(n, a, a + 65536))) for n in store.layout.fields "
        "for a in range(0, len(store), 65536))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(hot)], capture_output=True, text=True, check=True)
    return {"peak_mib": round(int(done.stdout) / 1024), "limit_mib": 2048}


def write_task(root: Path, n_stocks: int) -> list[str]:
    """Write Qlib's dataset task: daily bars of ``n_stocks`` stocks, and return their names."""
    rng = np.random.default_rng(SEED)
    days = np.busday_offset("2007-01-01", np.arange(TASK_DAYS), roll="forward").astype(str)
    for folder in ("calendars", "instruments"):
        (root / folder).mkdir(parents=True)
    names = [f"SH{600000 + i}" for i in range(n_stocks)]
    (root / "calendars/day.txt").write_text("\n".join(days))
    (root / "instruments/all.txt").write_text("\n".join(f"{x}\t{days[0]}\t{days[-1]}" for x in names))
    for name in names:
        close = 10.0 * np.exp(np.cumsum(rng.standard_normal(TASK_DAYS) * 0.02))
        fields = {
            "close": close,
            "high": close * 1.005,
            "low": close * 0.995,
            "volume": np.exp(12 + rng.standard_normal(TASK_DAYS)),
        }
        folder = root / "features" / name.lower()
        folder.mkdir(parents=True)
        for field, values in fields.items():
            np.concatenate(([0.0], values)).astype("<f4").tofile(folder / f"{field}.day.bin")
    return names


def qlib_task(root: Path, n_stocks: int) -> dict[str, Any]:
    """Compare ``D.features`` with our dataset provider and with Qlib's."""
    names = write_task(root, n_stocks)
    got: dict[str, Any] = {}

    def run(provider: Any, which: str) -> float:
        qlib.init(
            provider_uri=str(root), region="cn", kernels=1, logging_level=40, expression_cache=None, dataset_cache=None,
            dataset_provider=provider,
        )  # fmt: skip
        forget_cached_bars()
        return cpu_s(lambda: got.__setitem__(which, D.features(names, list(TASK), freq="day")))

    run(PROVIDERS["dataset_provider"], "ours")  # compiles
    ours = [run(PROVIDERS["dataset_provider"], "ours") for _ in range(3)]
    stock = run("LocalDatasetProvider", "stock")
    assert got["ours"].index.equals(got["stock"].index)
    a, b = got["ours"].to_numpy(), got["stock"].to_numpy()
    assert np.array_equal(np.isnan(a), np.isnan(b))
    scale = np.nanmedian(np.abs(b), axis=0)
    return {
        "rows": len(a),
        "ours_s": round(statistics.median(ours), 2),
        "stock_s": round(stock, 2),
        "stock/ours": round(stock / statistics.median(ours), 1),
        "largest_relative_difference": float(f"{np.nanmax(np.abs(a - b) / scale):.1e}"),
    }


def main(arguments: list[str] | None = None) -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(prog="python -m benchmarks store", description=__doc__)
    parser.add_argument("--symbols", type=int, default=50)
    parser.add_argument("--bars", type=int, default=525_600)
    parser.add_argument("--stocks", type=int, default=800)
    parser.add_argument("--reps", type=int, default=40)
    parser.add_argument("--dtype", choices=("<f8", "<f4"), default="<f4")
    options = parser.parse_args(arguments)
    place = Path(tempfile.mkdtemp(prefix="crypto_qlib_store_"))
    try:
        panel = minute_panel(options.symbols, options.bars)
        hot, bins = place / "1m", place / "qlib"
        began = time.perf_counter()
        build_hot_store(hot, bins, panel, options.dtype)
        say(
            "store",
            symbols=options.symbols,
            bars=options.bars,
            dtype=options.dtype,
            built_s=round(time.perf_counter() - began, 1),
        )
        say("panel", **panel_load(hot, bins, options.bars), at_most=1.5)
        say("append", **append(hot, bins, panel, options.reps), at_most=2.0)
        del panel
        say("memory", **memory(hot))
        say("qlib", **qlib_task(place / "task", options.stocks), at_least=10.0)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def say(what: str, **figures: Any) -> None:
    print(json.dumps({"workload": what, **figures}), flush=True)


if __name__ == "__main__":
    main()

"""One measurement in a process of its own: ``python -m benchmarks.measures NAME [WORKLOAD]`` prints one JSON line.

Times are CPU time of the process, so that a busy machine disturbs them little.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import kernels
from benchmarks import workload as w
from benchmarks.workload_product import build, check, plain_rules
from crypto_qlib.backtest.engine import run_backtest, run_prepared
from crypto_qlib.backtest.inputs import BacktestInputs, prepare

REPS = 15


def cpu_ms(f: Callable[[], object]) -> float:
    """Return the CPU time of one call, milliseconds."""
    start = time.process_time()
    f()
    return 1e3 * (time.process_time() - start)


def peak_mb() -> int:
    """Return the largest resident size of this process, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def loops(name: str) -> dict[str, Any]:
    """Time engine, public API and kernels in turn; ratios are medians over the turns."""
    from crypto_qlib.analytics.performance import equity_statistics  # noqa: PLC0415 - pandas, of which the engine is free

    inputs = build(name)
    found = check(name, inputs)
    run, cross = prepare(inputs), prepare(build(name, cross=True))

    def public_api() -> object:
        result = run_backtest(inputs)
        return result.trades, equity_statistics(result.ts_close, result.equity, result.frame_ns)

    calls: dict[str, Callable[[], object]] = {
        "engine": lambda: run_prepared(run),
        "engine_cross": lambda: run_prepared(cross),
        "public_api": public_api,
    }
    if kernels.are_present():
        calls |= {"kernel": kernels.bare(name), **kernels.full(name)}
    for f in calls.values():
        f()
    times: dict[str, list[float]] = {k: [] for k in calls}
    for _ in range(REPS):
        for k, f in calls.items():
            times[k].append(cpu_ms(f))
    pairs = (
        ("engine", "kernel_full"),
        ("engine_cross", "kernel_full_cross"),
        ("public_api", "kernel_full"),
        ("engine", "kernel"),
    )
    ratios = {
        f"{a}/{b}": round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 2)
        for a, b in pairs
        if b in times
    }
    return {**found, **{f"{k}_ms": round(statistics.median(v), 2) for k, v in times.items()}, **ratios}


def scaling(name: str) -> dict[str, Any]:
    """Time the engine alone, a few times."""
    run = prepare(build(name))
    n_trades = run_prepared(run).trades.size
    return {"engine_ms": round(statistics.median(cpu_ms(lambda: run_prepared(run)) for _ in range(5)), 2), "trades": n_trades}


def process(name: str) -> dict[str, Any]:
    """Run a workload from stored arrays: what a whole process takes, import to result, and its largest size."""
    result = run_backtest(build(name))
    return {"trades": int(result.trades.size), "cpu_s": round(time.process_time(), 2), "peak_mb": peak_mb()}


def kernel_process(name: str) -> dict[str, Any]:
    """Run the bare kernel from stored arrays, machine code cached."""
    kernels.bare(name, cached=True)()
    return {"cpu_s": round(time.process_time(), 2), "peak_mb": peak_mb()}


def lake(name: str) -> dict[str, Any]:
    """Load the workload's bars from a lake as ``crypto-qlib backtest`` does, run, and write every ledger as parquet.

    The pipeline reads the cleaned bars through :class:`HotPanel`: mapped memory that is served while the stamp of the lake's
    files and the checksum of the rows say that it is what the lake holds. ``files_s`` is what the month files themselves take,
    as where nothing was mapped yet.
    """
    from crypto_qlib.data_collector.hot_panel import HotPanel  # noqa: PLC0415 - pyarrow
    from crypto_qlib.data_collector.panel import load_panel  # noqa: PLC0415
    from crypto_qlib.store.lake import Lake  # noqa: PLC0415

    inputs, folder = build(name), w.FOLDER / "lakes" / f"{name}-clean"
    p, store = inputs.panel, Lake(folder)
    span = (p.symbols, int(p.ts_open[0]), int(p.ts_open[-1]) + p.frame_ns)
    hot = HotPanel(store, w.FOLDER / "lakes" / f"{name}-panels" / "1h", "1h")
    _written_lake(store, p)
    if not hot.is_current(*span):
        hot.renew(*span, w.FOLDER / "lakes" / f"{name}-qlib", lambda _: None)
    start = time.process_time()
    load_panel(store, p.symbols, "1h")
    parts = {"files": time.process_time() - start}
    out = w.FOLDER / "ledgers"
    for _ in range(2):  # the second time everything is compiled and in the page cache
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        times = [time.process_time()]
        panel = hot.serve(*span)
        times.append(time.process_time())
        result = run_backtest(_with(inputs, panel))
        times.append(time.process_time())
        _write_ledgers(result, out)
        times.append(time.process_time())
        parts |= dict(zip(("load", "run", "write"), np.diff(times).tolist(), strict=True))
    assert hot.is_current(*span), "the panel was read from the month files"
    whole = parts["load"] + parts["run"] + parts["write"]
    return {"trades": int(result.trades.size), "cpu_s": round(whole, 2), **{f"{k}_s": round(v, 2) for k, v in parts.items()}}


def _written_lake(store: Any, p: Any) -> None:
    """Write the panel's bars and settlements as cleaning leaves them, once."""
    from crypto_qlib.core.market import FundingBlock  # noqa: PLC0415
    from crypto_qlib.store.lake import TIME, Kind, Series  # noqa: PLC0415 - pyarrow

    done = store.root / "done"
    if done.exists():
        return
    for j, symbol in enumerate(p.symbols):
        prices = {k: np.ascontiguousarray(getattr(p, k)[:, j]) for k in ("open", "high", "low", "close")}
        unknown = np.full(p.n_bars, np.nan)
        flag = np.zeros(p.n_bars, np.uint16)
        rows = {TIME: p.ts_open, **prices, "volume": unknown, "quote_volume": unknown, "flag": flag}
        store.upsert(Series(Kind.CLEAN, "1h", symbol), rows)
        paid = ~np.isnan(p.funding_rate[:, j])
        store.write_funding(symbol, FundingBlock(p.ts_open[paid], p.funding_rate[paid, j]))
    done.touch()


def year(_: str) -> dict[str, Any]:
    """Stream 50 symbols x 1 year of minutes from a lake under hourly scores."""
    from benchmarks.workload_year import inputs_and_stream  # noqa: PLC0415 - pyarrow
    from crypto_qlib.backtest.streaming import run_streamed  # noqa: PLC0415

    inputs, stream = inputs_and_stream(plain_rules)
    built = peak_mb()
    start = time.process_time()
    result = run_streamed(inputs, stream, progress=_tell)
    return {
        "bars": int(result.ts_open.size) * len(result.symbols), "trades": int(result.trades.size),
        "cpu_s": round(time.process_time() - start, 1), "built_mb": built, "peak_mb": peak_mb(),
    }  # fmt: skip


def _with(inputs: BacktestInputs, panel: Any) -> BacktestInputs:
    from dataclasses import replace  # noqa: PLC0415

    return replace(inputs, panel=panel)


def _write_ledgers(result: Any, out: Any) -> None:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    for name in ("series", "fills", "trades", "funding", "liquidations", "ambiguous", "open_positions"):
        rows = getattr(result, name)
        table = pa.table({field: np.ascontiguousarray(rows[field]) for field in rows.dtype.names})
        pq.write_table(table, out / f"{name}.parquet", compression="zstd", use_dictionary=False)


def _tell(done: int, of: int) -> None:
    print(f"\r{done:,} of {of:,} minutes", end="" if done < of else "\n", file=sys.stderr, flush=True)


MEASURES: dict[str, Callable[[str], dict[str, Any]]] = {
    f.__name__: f for f in (loops, scaling, process, kernel_process, lake, year)
}


if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](sys.argv[2])))

"""Feature building beside Qlib's stock loaders, pandas and polars: ratios of CPU seconds in one run.

    python -m benchmarks features                 # 20 symbols x 4,380 hours: a minute or two, below 2 GB
    python -m benchmarks features --full          # 50 symbols x 26,280 hours (three years): minutes, 12 GB
    python -m benchmarks features --handlers      # whole handlers with their processors only; also with --full

Every pair computes the same numbers from the same bars; Alpha360 and Alpha158 are compared cell by cell first, alone and as
whole handlers with processors (:mod:`benchmarks.feature_handlers`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
from qlib.data.dataset import processor as stock

from benchmarks.feature_handlers import handlers
from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.data_collector.qlib_store import write_qlib_store
from crypto_qlib.feature_engineering import qlib_processors as fast
from crypto_qlib.feature_engineering.alpha360 import alpha360_row
from crypto_qlib.feature_engineering.alpha360_windows import Alpha360Windows
from crypto_qlib.feature_engineering.feature_generator import build_features, feature_catalogue, latest_features
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.online_features import OnlineFeatures
from crypto_qlib.feature_engineering.qlib_handler import feature_dataframe
from crypto_qlib.settings.schema import FeatureSettings

STOCK = """
import json, logging, sys, time, resource, warnings
warnings.simplefilter("ignore")
import numpy as np
import qlib
qlib.init(provider_uri=sys.argv[1], kernels=1, expression_cache=None, dataset_cache=None, logging_level=logging.ERROR)
from qlib.contrib.data.loader import Alpha158DL, Alpha360DL
from qlib.data import D
names = D.list_instruments(D.instruments(), freq="60min", as_list=True)
out = {}
for loader in (Alpha360DL, Alpha158DL):
    fields, columns = loader.get_feature_config()
    start = time.process_time()
    frame = D.features(names, fields, freq="60min")
    out[loader.__name__] = time.process_time() - start
    frame.columns = columns
    frame.tail(5000 * len(names)).sort_index().astype(np.float32).to_pickle(sys.argv[2] + loader.__name__)
    del frame
    last = sys.argv[3]
    start = time.process_time()
    D.features(names, fields, start_time=last, end_time=last, freq="60min")
    out[loader.__name__ + "_newest"] = time.process_time() - start
out["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps(out))
"""

OURS = """
import json, resource, sys
from benchmarks.features import panel_of
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.settings.schema import FeatureSettings
chosen = FeatureSettings(sets=(sys.argv[1],))
panel = panel_of(int(sys.argv[2]), int(sys.argv[3]))
build_features(panel.rows(0, 200), chosen)
before = int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1])
size = build_features(panel, chosen).values.nbytes
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"result_gb": size / 2**30, "taken_gb": (peak - before) / 2**20, "peak_gb": peak / 2**20}))
"""


def memory(group: str, n_bars: int, n_symbols: int) -> None:
    """Print what our build of ``group`` takes in a process of its own, beside the size of its result."""
    command = [sys.executable, "-c", OURS, group, str(n_bars), str(n_symbols)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    r = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{group}: result {r['result_gb']:.2f} GiB, taken to build {r['taken_gb']:.2f} GiB, process {r['peak_gb']:.2f} GiB",
          flush=True)  # fmt: skip


def panel_of(n_bars: int, n_symbols: int, seed: int = 7) -> MarketPanel:
    """Return a random market whose numbers are float32 already, as Qlib's store holds them."""
    rng = np.random.default_rng(seed)
    shape = (n_bars, n_symbols)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.008, shape), axis=0) % 3.0)
    open_ = np.vstack([close[:1], close[:-1]])
    high = np.maximum(open_, close) * (1.0 + np.abs(rng.normal(0.0, 0.003, shape)))
    low = np.minimum(open_, close) * (1.0 - np.abs(rng.normal(0.0, 0.003, shape)))
    volume = np.exp(rng.normal(8.0, 1.0, shape))
    bars = [x.astype(np.float32).astype(np.float64) for x in (open_, high, low, close, volume)]
    vwap = ((bars[1] + bars[2] + bars[3]) / 3.0).astype(np.float32).astype(np.float64)
    ts = parse_utc("2023-01-01") + NS_PER_HOUR * np.arange(n_bars, dtype=np.int64)
    symbols = ("BTCUSDT", *(f"S{k:02d}USDT" for k in range(n_symbols - 1)))
    last = bars[:4]
    return MarketPanel(symbols, NS_PER_HOUR, ts, *last, bars[4], vwap * bars[4], *last, np.full(shape, np.nan),
                       np.zeros(n_symbols, np.bool_))  # fmt: skip


def cpu(work: Callable[[], object], times: int = 3) -> float:
    """Return the median CPU seconds of ``work`` after one run to warm up."""
    work()
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return float(np.median(spent))


def row(what: str, ours: float, theirs: float, whose: str) -> None:
    print(f"{what:<44}{ours * 1e3:>12.2f} ms{theirs * 1e3:>13.1f} ms{theirs / ours:>9.0f} x  {whose}", flush=True)


def stock_times(panel: MarketPanel, folder: Path) -> dict[str, float]:
    write_qlib_store(folder / "qlib", panel)
    last = str(pd.Timestamp(int(panel.ts_open[-1])))
    command = [sys.executable, "-c", STOCK, str(folder / "qlib"), str(folder / "frame"), last]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def compare(panel: MarketPanel, folder: Path, group: str, loader: str) -> None:
    """Stop if our values and Qlib's differ beyond float32 rounding."""
    theirs = pd.read_pickle(folder / f"frame{loader}").swaplevel().sort_index()
    ours = feature_dataframe(build_features(panel, FeatureSettings(sets=(group,))))["feature"]  # type: ignore[arg-type]
    both = ours.index.intersection(theirs.index)
    late = both[both.get_level_values(0) > ours.index.get_level_values(0)[70 * len(panel.symbols)]][-20_000:]
    a, b = ours.loc[late].to_numpy(np.float64), theirs.loc[late].to_numpy(np.float64)
    same = np.isclose(a, b, rtol=2e-4, atol=5e-6, equal_nan=True)
    if same.mean() < 0.9999:
        bad = [n for n, share in zip(ours.columns, same.mean(axis=0), strict=True) if share < 0.9999]
        raise SystemExit(f"{group} differs from Qlib in {bad}")
    print(f"{group}: {late.size:,} rows equal to Qlib's within float32 rounding", flush=True)


def alphas(panel: MarketPanel) -> None:
    """Compare Alpha360 and Alpha158 with Qlib's loaders on the same panel, which run in a process of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        theirs = stock_times(panel, folder)
        print(f"Qlib's process peaked at {theirs['peak_gb']:.1f} GB", flush=True)
        for group, loader in (("alpha360", "Alpha360DL"), ("alpha158", "Alpha158DL")):
            compare(panel, folder, group, loader)
            memory(group, panel.n_bars, len(panel.symbols))
            chosen = FeatureSettings(sets=(group,))  # type: ignore[arg-type]
            row(f"{group}, all bars", cpu(lambda c=chosen: build_features(panel, c)), theirs[loader], "Qlib's loader")  # type: ignore[misc]
            newest = cpu(lambda c=chosen: latest_features(panel, c), 15)  # type: ignore[misc]
            row(f"{group}, newest bar", newest, theirs[f"{loader}_newest"], "Qlib's loader")
        handlers(panel, folder)
        tail = panel.rows(panel.n_bars - 60, panel.n_bars)
        row(
            "alpha360, newest bar, row kernel",
            cpu(lambda: alpha360_row(tail), 50),
            theirs["Alpha360DL_newest"],
            "Qlib's loader",
        )
    windows = Alpha360Windows(panel)
    which = np.random.default_rng(0).integers(0, len(windows), 1024)
    print(f"{'alpha360 windows on demand':<44}{cpu(lambda: windows.rows(which), 20) / 1024 * 1e6:>12.2f} us a row", flush=True)


def rolling(panel: MarketPanel) -> None:
    """Compare rolling features with the same ones in pandas and polars."""
    names = ("MA24", "VOL24", "VOLUME_Z24")
    catalogue = [s.name for s in feature_catalogue(FeatureSettings(sets=("technical",)))]
    chosen = FeatureSettings(sets=("technical",), exclude=tuple(n for n in catalogue if n not in names))
    long = pd.DataFrame({"s": np.tile(panel.symbols, panel.n_bars), "c": panel.close.ravel(), "q": panel.quote_volume.ravel()})
    long["t"] = np.repeat(np.arange(panel.n_bars), len(panel.symbols))
    long = long.sort_values(["s", "t"])

    def in_pandas() -> object:
        g = long.groupby("s", sort=False)
        r = np.log(long["c"]).groupby(long["s"], sort=False).diff()
        ma = g["c"].rolling(24).mean().to_numpy() / long["c"].to_numpy() - 1.0
        vol = np.sqrt((r**2).groupby(long["s"], sort=False).rolling(24).mean().to_numpy())
        lq = np.log1p(long["q"])
        lg = lq.groupby(long["s"], sort=False).rolling(24)
        return ma, vol, (lq.to_numpy() - lg.mean().to_numpy()) / lg.std(ddof=0).to_numpy()

    frame = pl.from_pandas(long)

    def in_polars() -> object:
        r2 = pl.col("c").log().diff().over("s").pow(2)
        lq = pl.col("q").log1p()
        return frame.select(
            (pl.col("c").rolling_mean(24) / pl.col("c") - 1.0).over("s").alias("ma"),
            r2.rolling_mean(24).over("s").sqrt().alias("vol"),
            ((lq - lq.rolling_mean(24)) / lq.rolling_std(24, ddof=0)).over("s").alias("z"),
        )

    ours = cpu(lambda: build_features(panel, chosen))
    row("mean, volatility, z-score of 24 bars", ours, cpu(in_pandas, 1), "pandas")
    row("mean, volatility, z-score of 24 bars", ours, cpu(in_polars), "polars")


def processors(n_bars: int = 400, n_coins: int = 50, n_features: int = 40) -> None:
    """Compare processors with Qlib's own on an invented frame of ``n_bars * n_coins`` rows."""
    rng = np.random.default_rng(3)
    index = pd.MultiIndex.from_product(
        [pd.date_range("2024-01-01", periods=n_bars, freq="h"), [f"C{k:02d}" for k in range(n_coins)]],
        names=["datetime", "instrument"],
    )
    columns = pd.MultiIndex.from_product([["feature"], [f"F{k}" for k in range(n_features)]])
    values = rng.normal(size=(len(index), n_features)).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    frame = pd.DataFrame(values, index=index, columns=columns)
    span = {"fit_start_time": "2024-01-01", "fit_end_time": "2024-01-10"}
    few = frame.iloc[: 20 * n_coins, :4].copy()
    for name, options, data in (
        ("RobustZScoreNorm", span, frame), ("CSZScoreNorm", {}, frame), ("CSRankNorm", {}, frame), ("CSZFillna", {}, frame),
        ("Fillna", {}, frame), ("ProcessInf", {}, few),
    ):  # fmt: skip
        ours, theirs = getattr(fast, f"Fast{name}")(**options), getattr(stock, name)(**options)
        for one in (ours, theirs):
            one.fit(data.copy())
        row(f"{name}, {data.shape[0]:,} x {data.shape[1]}", cpu(lambda o=ours, d=data: o(d)),  # type: ignore[misc]
            cpu(lambda o=theirs, d=data: o(d.copy()), 1), "Qlib's processor")  # type: ignore[misc]  # fmt: skip


def online(bars: int = 40) -> None:
    """Compare a live bar of 50 symbols that goes on from the one before with a rebuild of its window, and their bits."""
    panel = panel_of(2000, 50)
    for name, chosen in (("default sets", FeatureSettings()), ("every set", FeatureSettings(sets=tuple(FEATURE_SETS)))):
        live, spent = OnlineFeatures(chosen), 0.0
        for stop in range(panel.n_bars - bars, panel.n_bars + 1):
            start = time.process_time()
            frame = live.latest(panel.rows(0, stop))
            spent += time.process_time() - start if live.advanced > 1 else 0.0
        if not np.array_equal(frame.values, latest_features(panel, chosen).values, equal_nan=True):
            raise SystemExit("the bar that goes on differs from the rebuild")
        row(f"live bar of {name}, 50 symbols", spent / (live.advanced - 1), cpu(lambda c=chosen: latest_features(panel, c), 15),  # type: ignore[misc]
            "rebuild of its window")  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure what the arguments ask for and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks features", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="50 symbols x 26,280 hours")
    parser.add_argument("--online", action="store_true", help="a live bar only")
    parser.add_argument("--handlers", action="store_true", help="whole handlers only")
    wanted = parser.parse_args(arguments)
    n_bars, n_symbols = (26_280, 50) if wanted.full else (4_380, 20)
    if wanted.handlers:
        with tempfile.TemporaryDirectory() as scratch:
            panel = panel_of(n_bars, n_symbols)
            write_qlib_store(Path(scratch) / "qlib", panel)
            handlers(panel, Path(scratch))
        return
    online()
    if wanted.online:
        return
    panel = panel_of(n_bars, n_symbols)
    print(f"{n_symbols} symbols x {n_bars:,} hours; CPU time, ours and theirs, and the ratio")
    rolling(panel)
    processors()
    alphas(panel)

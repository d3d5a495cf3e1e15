"""How much memory the features of 50 symbols x 1 year of minutes take: all at once, and block by block into the feature store.

    python -m benchmarks feature_stream                  # 525,600 minutes: minutes, 8 GB for "all at once", 2 GB of disk
    python -m benchmarks feature_stream --days 30        # a month

Each way runs in a process of its own on the same random minutes, made day by day from seeds; both must give the same SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from crypto_qlib.core.clock import NS_PER_MINUTE, parse_utc
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.feature_engineering.feature_generator import build_features, feature_catalogue, lookback_bars
from crypto_qlib.feature_engineering.feature_store import BarSource, stored_features
from crypto_qlib.settings.schema import FeatureSettings

DAY = 1440
N_SYMBOLS = 50
SYMBOLS = ("BTCUSDT", *(f"S{k:02d}USDT" for k in range(N_SYMBOLS - 1)))
START_NS = parse_utc("2024-01-01")
WANTED = ("MOM1", "MOM12", "MOM72", "MA24", "VOL24", "VOL_RATIO", "BB_POS20", "CHANNEL24", "TR24", "VOLUME_Z24", "VWAP_DIST24",
          "BODY", "UPPER_SHADOW", "LOWER_SHADOW", "EFFICIENCY24", "MAX_ABS24")  # fmt: skip
CHOSEN = FeatureSettings(
    sets=("technical",),
    exclude=tuple(s.name for s in feature_catalogue(FeatureSettings(sets=("technical",))) if s.name not in WANTED),
)


def fill_day(day: int, out: np.ndarray) -> None:
    """Write one day of random minutes into ``out``, (n_fields, 1440, n_symbols)."""
    rng = np.random.default_rng([7, day])
    shape = (DAY, N_SYMBOLS)
    close = 100.0 * np.exp(np.cumsum(0.0008 * rng.standard_normal(shape, dtype=np.float32), axis=0))
    spread = 0.0004 * np.abs(rng.standard_normal(shape, dtype=np.float32))
    open_ = np.vstack([close[:1], close[:-1]])
    high, low = np.maximum(open_, close) * (1.0 + spread), np.minimum(open_, close) * (1.0 - spread)
    volume = np.exp(rng.standard_normal(shape, dtype=np.float32))
    last = (open_, high, low, close)
    out[:] = [*last, volume, volume * close, *last, np.full(shape, np.nan)]


def source_of(n_days: int) -> BarSource:
    """Return the random minutes as a source that holds none of them."""
    grid = START_NS + NS_PER_MINUTE * np.arange(n_days * DAY, dtype=np.int64)

    def load(start: int, stop: int) -> MarketPanel:
        first, last = start // DAY, -(-stop // DAY)
        data = np.empty((len(PANEL_FIELDS), (last - first) * DAY, N_SYMBOLS))
        for d in range(first, last):
            fill_day(d, data[:, (d - first) * DAY : (d - first + 1) * DAY])
        cut = {n: data[k, start - first * DAY : stop - first * DAY] for k, n in enumerate(PANEL_FIELDS)}
        return MarketPanel(SYMBOLS, NS_PER_MINUTE, grid[start:stop], has_mark=np.zeros(N_SYMBOLS, np.bool_), **cut)

    return BarSource(SYMBOLS, NS_PER_MINUTE, grid, load)


def child(way: str, n_days: int, folder: Path) -> None:
    """Build in this process and print what it took."""
    source = source_of(n_days)
    began, cpu = time.perf_counter(), time.process_time()
    if way == "all at once":
        frame = build_features(source.load(0, source.n_bars), CHOSEN)
    else:
        frame = stored_features(folder, source, CHOSEN)
    spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    digest, step = hashlib.sha256(), 100_000
    for a in range(0, frame.n_rows, step):
        digest.update(np.ascontiguousarray(frame.values[a : a + step]).data)
    size = frame.values.size * 4 / 2**30
    print(json.dumps({**spent, "peak_gib": peak, "result_gib": size, "sha256": digest.hexdigest(), "rows": frame.n_rows}))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks feature_stream", description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    if wanted.child:
        child(wanted.child, wanted.days, wanted.folder)
        return
    reach = lookback_bars(CHOSEN, NS_PER_MINUTE)
    print(f"{N_SYMBOLS} symbols x {wanted.days * DAY:,} minutes, {len(WANTED)} features, look-back {reach} bars", flush=True)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for way in ("block by block", "all at once"):
            command = [sys.executable, "-m", "benchmarks", "feature_stream", "--child", way, "--days", str(wanted.days),
                       "--folder", f"{scratch}/features"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            r = found[way] = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{way:<16}{r['rows']:>12,} rows, {r['result_gib']:.2f} GiB of features; peak {r['peak_gib']:.2f} GiB, "
                  f"{r['seconds']:.0f} s, {r['cpu']:.0f} s of CPU; SHA-256 {r['sha256'][:16]}", flush=True)  # fmt: skip
    if len({r["sha256"] for r in found.values()}) != 1:
        raise SystemExit("the two differ")
    few, all_ = found["block by block"]["peak_gib"], found["all at once"]["peak_gib"]
    print(f"same bits; peak memory {all_ / few:.1f} times smaller block by block")

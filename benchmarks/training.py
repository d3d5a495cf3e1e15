"""The aim of training: LightGBM on 50 symbols x 3 years of hours x all default features, where its time goes, and its memory.

    python -m benchmarks training                 # one thread and all cores; ten minutes of CPU, 5 GiB
    python -m benchmarks training --quick         # 20 symbols x half a year
    python -m benchmarks training --folds         # a rolling run that bins once, beside one that bins in every step

Aim: under 3 minutes on 2 cores and under 10 GiB; 50 rows scored in under 50 ms. Early stopping is off, so that every tree is
grown. Each measure runs in a process of its own; wall seconds mean little on a busy machine, CPU seconds of one thread little
less there than elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measures import peak_mb
from crypto_qlib.core.clock import NS_PER_DAY, parse_utc
from crypto_qlib.data_collector.source_panel import panel_of_source
from crypto_qlib.feature_engineering.feature_files import load_feature_frame, save_feature_frame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling.fold_workers import load_labels, save_labels
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.qlib_rolling import rolling_splits
from crypto_qlib.modeling.rolling import train_rolling
from crypto_qlib.modeling.stage_times import StageTimes, stage, stage_times
from crypto_qlib.modeling.train_model import Fold, predict_row, train_model
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

END = "2026-01-01"


def prepare(folder: Path, symbols: int, days: int) -> StageTimes:
    """Simulate the market, build features and labels, and save them."""
    end = parse_utc(END)
    with stage_times() as times:
        with stage("market"):
            panel = panel_of_source(
                SimulatedMarket(SimulationSpec(symbols, end - days * NS_PER_DAY, end, signal_strength=1.0)), "1h"
            )
        with stage("features"):
            frame = build_features(panel, FeatureSettings())
        with stage("labels"):
            save_labels(make_labels(panel, ModelSettings()), folder / "labels.npz")
        with stage("saving"):
            save_feature_frame(frame, folder / "features")
    return times


def settings_of(threads: int) -> ModelSettings:
    return ModelSettings(threads=threads, early_stopping_rounds=ModelSettings().num_boost_round)


def train(folder: Path, threads: int) -> dict[str, object]:
    """Train once and score the newest bar."""
    frame, labels = load_feature_frame(folder / "features"), load_labels(folder / "labels.npz")
    wall, cpu = time.perf_counter(), time.process_time()
    with stage_times() as times:
        model = train_model(frame, labels, settings_of(threads), folder / "model")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    spent = []
    for _ in range(25):
        start = time.process_time()
        predict_row(model, frame)
        spent.append(time.process_time() - start)
    return {
        "rows": frame.n_rows, "features": len(frame.names), "trees": model.predictor.diagnostics()["trees"],
        "wall_s": wall, "cpu_s": cpu, "stages": times.cpu_s, "peak_mb": peak_mb(),
        "scored": int(np.sum(frame.row_bar == frame.n_bars - 1)), "score_ms": float(np.median(spent)) * 1e3,
    }  # fmt: skip


def folds(folder: Path, is_shared: bool) -> dict[str, object]:
    """Train a rolling run of four steps, few trees each, with shared bins or each step by itself."""
    frame, labels = load_feature_frame(folder / "features"), load_labels(folder / "labels.npz")
    step = frame.n_bars // 20
    settings = settings_of(1).model_copy(update={"num_boost_round": 30})
    settings = settings.model_copy(update={"rolling": settings.rolling.model_copy(update={"step_bars": step})})
    cpu = time.process_time()
    with stage_times() as times, tempfile.TemporaryDirectory() as scratch:
        if is_shared:
            shas = [m.sha256 for m in train_rolling(frame, labels, settings, Path(scratch)).models]
        else:
            splits = rolling_splits(frame.ts_open, settings, labels.horizon_bars)
            shas = [
                train_model(frame, labels, settings, Path(scratch) / str(k), fold=Fold(s)).sha256 for k, s in enumerate(splits)
            ]
    return {"cpu_s": time.process_time() - cpu, "stages": times.cpu_s, "peak_mb": peak_mb(), "steps": len(shas), "sha256": shas}


def in_process(*words: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.training", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(times: dict[str, float], total: float) -> None:
    for name, seconds in times.items():
        print(f"    {name:<22}{seconds:>8.1f} s {100 * seconds / total:>5.0f} %")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 symbols x half a year")
    parser.add_argument("--folds", action="store_true", help="only the rolling run, binned once and binned in each step")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.one:
        what, folder = asked.one[0], Path(asked.one[1])
        measured = folds(folder, what == "shared") if what in ("shared", "alone") else train(folder, int(what))
        print(json.dumps(measured))
        return
    symbols, days = (20, 180) if asked.quick else (50, 3 * 365)
    with tempfile.TemporaryDirectory() as scratch:
        before = prepare(Path(scratch), symbols, days)
        print(f"{symbols} symbols x {days * 24:,} hours; CPU seconds of preparing: {before.cpu_s}", flush=True)
        if asked.folds:
            fold_table(scratch)
        else:
            train_table(scratch)


def train_table(scratch: str) -> None:
    for threads in ("1", "0"):
        m = in_process("--one", threads, scratch)
        if threads == "1":
            print(f"{m['rows']:,} rows x {m['features']} features, {m['trees']:.0f} trees")
        who, peak = "one thread" if threads == "1" else "all cores", float(str(m["peak_mb"])) / 1024
        print(f"  {who}: {m['wall_s']:.0f} s elapsed, {m['cpu_s']:.0f} s of CPU, peak {peak:.1f} GiB", flush=True)
        print(f"  {m['scored']} rows scored in {m['score_ms']:.1f} ms", flush=True)
        show(m["stages"], float(str(m["cpu_s"])))  # type: ignore[arg-type]


def fold_table(scratch: str) -> None:
    found = {what: in_process("--one", what, scratch) for what in ("alone", "shared")}
    if found["alone"]["sha256"] != found["shared"]["sha256"]:
        raise SystemExit("steps trained on shared bins differ from steps trained by themselves")
    for what, m in found.items():
        print(f"  {m['steps']} steps, bins {what}: {m['cpu_s']:.0f} s of CPU, peak {float(str(m['peak_mb'])) / 1024:.1f} GiB")
        show(m["stages"], float(str(m["cpu_s"])))  # type: ignore[arg-type]
    print("  the models are the same bits either way")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Every model family on real hours of both exchanges: learned to the end of 2024, judged on 2025, net of costs.

    python -m benchmarks model_study                          # default ../shared/data beside the checkout; 20 minutes of CPU
    python -m benchmarks model_study --only okx lstm          # one piece; finished pieces are kept in build/model_study
    python -m benchmarks model_study --report                 # docs/studies/model_families.{png,txt} from the pieces

Everything is the package's default but for what `SMALL` and `FAMILIES` say, and none of it was chosen on 2025. The window is
2023-01-01 to 2024-06-30 for training, the rest of 2024 for stopping and calibration, 2025 for the test; purge of the horizon
and the embargo lie between. RankIC errors are Newey-West over twice the horizon; the interval of the mean daily return is a
stationary block bootstrap. The best of all is judged against the best of as many useless ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import crypto_qlib.api as cq
from benchmarks.feature_study import ROOT, ns
from crypto_qlib.analytics.inference import bootstrap_mean, deflated_sharpe, null_sharpe_spread
from crypto_qlib.analytics.performance import max_drawdown
from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.data_collector.panel import funding_on_grid
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.compare_models import probability_of_luck
from crypto_qlib.modeling.evaluate_model import evaluate_model
from crypto_qlib.modeling.evaluation_details import evaluate_details
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.splits import Segment, TimeSplit
from crypto_qlib.modeling.train_model import Fold, predict_scores, train_model
from crypto_qlib.settings.schema import ModelSettings

PIECES = ROOT / "build" / "model_study"
OUT = ROOT / "docs" / "studies"
SPAN, VALID, TEST = ("2023-01-01", "2026-01-01"), "2024-07-01", "2025-01-01"
LEAST_BARS = 12_000
"""Bars of 2023 and 2024 a coin must have to be in the study: what a person could have asked for at the start of the test."""
VENUES = {"okx": ("okx_perp_1h", "okx_funding"), "binance": ("binance_um_perp_1h", "binance_um_funding")}
SETS = {"okx": "technical,btc_relative", "binance": "technical,btc_relative,funding"}
"""OKX's settlements are known from August 2024 on only, with holes: they are paid (the holes by :func:`without_holes`), and
cannot be learned from."""
SMALL = {"lookback_bars": 16, "hidden": 16, "heads": 2, "epochs": 6, "patience": 2, "epoch_rows": 32_768, "max_features": 24}
FAMILIES: dict[str, dict[str, object]] = {
    "linear": {"name": "linear"},
    "lightgbm": {"name": "lightgbm"},
    "lightgbm classification": {"name": "lightgbm", "objective": "classification"},
    "lightgbm ranking": {"name": "lightgbm", "objective": "ranking"},
    "lightgbm one per coin": {"name": "lightgbm", "per_symbol": True},
    "lstm": {"name": "lstm"},
    "gru": {"name": "gru"},
    "transformer": {"name": "transformer"},
    "tft": {
        "name": "tft",
        "net": {**SMALL, "lookback_bars": 8, "hidden": 8, "epochs": 3, "epoch_rows": 8_192, "max_features": 8},
    },
    "ensemble average": {"name": "ensemble", "ensemble": {"members": ["lightgbm", "linear", "lstm"], "method": "average"}},
    "ensemble stack": {"name": "ensemble", "ensemble": {"members": ["lightgbm", "linear", "lstm"], "method": "stack"}},
    "ensemble regime": {"name": "ensemble", "ensemble": {"members": ["lightgbm", "linear", "lstm"], "method": "regime"}},
}


def settings_of(family: str) -> ModelSettings:
    return ModelSettings.model_validate({"threads": 1, "net": SMALL} | FAMILIES[family])


def market_of(folder: Path, venue: str) -> cq.MarketData:
    """Return the venue's coins that have most of 2023 and 2024, until they end."""
    candles, funding = (folder / f"{stem}.parquet" for stem in VENUES[venue])
    data = cq.load_data(candles, start=SPAN[0], end=SPAN[1], funding=funding)
    cut = int(np.searchsorted(data.panel.ts_open, parse_utc(TEST)))
    keep = np.flatnonzero(np.isfinite(data.panel.close[:cut]).sum(axis=0) >= LEAST_BARS)
    symbols = tuple(data.panel.symbols[k] for k in keep)
    fields = {name: getattr(data.panel, name)[:, keep] for name in PANEL_FIELDS}
    panel = replace(
        data.panel, symbols=symbols, has_mark=data.panel.has_mark[keep], is_member=data.panel.is_member[:, keep], **fields
    )
    panel = without_holes(panel, folder)
    kept = set(symbols)
    return replace(data, panel=panel, instruments={s: i for s, i in data.instruments.items() if s in kept},
                   tiers={s: t for s, t in data.tiers.items() if s in kept})  # fmt: skip


def without_holes(panel: MarketPanel, folder: Path) -> MarketPanel:
    """Return the panel with Binance's rate, or else 1 bp, at every eighth hour for which the file knows no settlement."""
    rates = pd.read_parquet(folder / "binance_um_funding.parquet")
    value = next(c for c in rates.columns if "rate" in c)
    funding = panel.funding_rate.copy()
    due = panel.ts_open % (8 * NS_PER_HOUR) == 0
    for k, symbol in enumerate(panel.symbols):
        mine = rates[rates["symbol"] == f"{symbol.removesuffix('USDT')}/USDT:USDT"]
        other = funding_on_grid(ns(mine["ts"]), mine[value].to_numpy(np.float64), panel.ts_open, NS_PER_HOUR)
        missing = due & ~np.isfinite(funding[:, k])
        funding[missing, k] = np.where(np.isfinite(other[missing]), other[missing], 1e-4)
    return replace(panel, funding_rate=funding)


def split_of(frame: FeatureFrame, settings: ModelSettings) -> TimeSplit:
    valid, test = (int(np.searchsorted(frame.ts_open, parse_utc(t))) for t in (VALID, TEST))
    gap = settings.horizon_bars + settings.embargo_bars
    parts = Segment("train", 0, valid - gap), Segment("valid", valid, test - gap), Segment("test", test, frame.n_bars)
    return TimeSplit(*parts, settings.horizon_bars)


def piece(folder: Path, venue: str, families: list[str]) -> None:
    """Train and judge some families on one venue, and keep what came of it."""
    data = market_of(folder, venue)
    features = cq.build_features(data, cq.configure(f"features.sets=[{SETS[venue]}]"))
    print(f"{venue}: {len(data.panel.symbols)} coins, {features.n_rows:,} rows x {len(features.names)} features", flush=True)
    for family in families:
        settings = settings_of(family)
        labels = make_labels(data.panel, settings)
        start = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            model = train_model(features, labels, settings, Path(scratch), fold=Fold(split_of(features, settings)))
        trained = time.process_time() - start
        scores = predict_scores(model, features, segment="test")
        found, details = evaluate_model(scores, labels), evaluate_details(scores, data.panel, settings.horizon_bars)
        result = cq.run_backtest(data, scores)
        daily = day_returns(result)
        mean = bootstrap_mean(daily, 5.0)
        record = {
            "venue": venue, "family": family, "coins": len(data.panel.symbols), "cpu_s": trained,
            "rank_ic": found.rank_ic.mean, "error": found.rank_ic.standard_error, "t": found.rank_ic.t_stat,
            "spread_bps": found.quantile_spread.mean * 1e4, "spread_error_bps": found.quantile_spread.standard_error * 1e4,
            "calibration_error": found.calibration_error, "slope": found.return_slope, "hit_ratio": found.hit_ratio,
            "baselines": {k: [s.mean, s.standard_error] for k, s in details.baselines.items()},
            "validation_slope": model.calibration.validation_slope,
            "trades": int(result.trades.size), "total": float(result.equity[-1] / result.initial_equity - 1.0),
            "sharpe": sharpe(daily), "daily_bps": [mean.mean * 1e4, mean.low * 1e4, mean.high * 1e4],
            "days": int(daily.size), "daily": daily.tolist(),
        }  # fmt: skip
        PIECES.mkdir(parents=True, exist_ok=True)
        (PIECES / f"{venue}-{family.replace(' ', '-')}.json").write_text(json.dumps(record))
        shown = {k: record[k] for k in ("rank_ic", "t", "trades", "total", "sharpe", "cpu_s")}
        print(family, {k: round(float(v), 4) for k, v in shown.items()}, flush=True)  # type: ignore[arg-type]


def day_returns(result: cq.BacktestResult) -> np.ndarray:
    """Return the account's return of each UTC day."""
    day = result.ts_open // NS_PER_DAY
    last = np.append(np.flatnonzero(np.diff(day)), day.size - 1)
    equity = np.concatenate([[result.initial_equity], result.equity[last]])
    return np.diff(equity) / equity[:-1]


def sharpe(daily: np.ndarray) -> float:
    spread = float(daily.std(ddof=1))
    return float(daily.mean()) / spread * math.sqrt(365.0) if spread > 0.0 else math.nan


def report() -> None:
    """Write table and picture from the pieces."""
    records = [json.loads(path.read_text()) for path in sorted(PIECES.glob("*.json"))]
    if not records:
        raise SystemExit(f"no piece in {PIECES}: run the study first")
    records.sort(key=lambda r: (r["venue"], list(FAMILIES).index(r["family"])))
    lines = []
    for venue in dict.fromkeys(r["venue"] for r in records):
        mine = [r for r in records if r["venue"] == venue]
        lines += ["", f"**{venue}**, {mine[0]['coins']} coins", "",
                  "| family | RankIC | t | best less worst fifth, bp | calibration error | trades | return | Sharpe | "
                  "day, bp | drawdown | CPU s |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
        lines += [row(r) for r in mine]
        lines += [
            f"| *{name}* | {m:+.4f} ± {e:.4f} | {m / e:+.1f} | | | | | | | | |" for name, (m, e) in mine[0]["baselines"].items()
        ]
    lines += ["", *verdict(records)]
    (OUT / "model_families.txt").write_text("\n".join(lines) + "\n")
    draw(records, OUT / "model_families.png")
    print("\n".join(lines))


def row(r: dict[str, object]) -> str:
    day = r["daily_bps"]
    curve = np.cumprod(np.concatenate([[1.0], 1.0 + np.array(r["daily"])]))
    words = (
        f"| {r['family']} | {r['rank_ic']:+.4f} ± {r['error']:.4f} | {r['t']:+.1f} | {r['spread_bps']:+.0f} ± "
        f"{r['spread_error_bps']:.0f} | {r['calibration_error']:.3f} | {r['trades']} | {100 * r['total']:+.1f} % | "  # type: ignore[operator]
        f"{r['sharpe']:+.2f} | {day[0]:+.1f} [{day[1]:+.1f}, {day[2]:+.1f}] | {100 * max_drawdown(curve):.1f} % | "  # type: ignore[index,operator]
        f"{r['cpu_s']:.0f} |"
    )
    return words.replace("+nan", "-")


def verdict(records: list[dict[str, object]]) -> list[str]:
    """Say what the best is worth among as many as were tried."""
    n = len(records)
    by_ic = max(records, key=lambda r: r["t"])  # type: ignore[arg-type,return-value]
    known = [r for r in records if math.isfinite(r["sharpe"])]  # type: ignore[arg-type]
    lines = [f"Best RankIC of {n}: {by_ic['family']} on {by_ic['venue']}, t {by_ic['t']:+.1f}; probability that the best of "
             f"{n} useless models shows as much: {probability_of_luck(float(by_ic['t']), n):.3f}."]  # type: ignore[arg-type]  # fmt: skip
    if known:
        best = max(known, key=lambda r: r["sharpe"])  # type: ignore[arg-type,return-value]
        daily = np.array(best["daily"])
        p = deflated_sharpe(daily, n, null_sharpe_spread(daily.size))
        lines.append(f"Best Sharpe of {n}: {best['family']} on {best['venue']}, {best['sharpe']:+.2f}; deflated for {n} trials "
                     f"it is above zero with probability {p:.2f}.")  # fmt: skip
    return lines


def draw(records: list[dict[str, object]], path: Path) -> None:
    """Draw RankIC and daily return of every family, one row of panels an exchange, with their intervals."""
    venues = list(dict.fromkeys(str(r["venue"]) for r in records))
    figure, axes = plt.subplots(len(venues), 2, figsize=(13, 4.2 * len(venues)), constrained_layout=True, squeeze=False)
    for line, venue in zip(axes, venues, strict=True):
        mine = [r for r in records if r["venue"] == venue]
        at = np.arange(len(mine))[::-1]
        ic, error = (np.array([r[k] for r in mine], float) for k in ("rank_ic", "error"))
        line[0].errorbar(ic, at, xerr=1.96 * error, fmt="o", color="#4477aa", capsize=3)
        for name, (m, _) in mine[0]["baselines"].items():  # type: ignore[attr-defined]
            line[0].axvline(m, linestyle=":", linewidth=0.9, color="#999999")
            line[0].text(m, len(mine) - 0.4, name, fontsize=7, rotation=25, color="#666666")
        day = np.array([r["daily_bps"] for r in mine], float)
        line[1].errorbar(
            day[:, 0], at, xerr=[day[:, 0] - day[:, 1], day[:, 2] - day[:, 0]], fmt="o", color="#aa3377", capsize=3
        )
        for axis, what in zip(
            line, ("RankIC, 24 h, 95 % interval", "account's return a day, bp, net of costs, 95 % interval"), strict=True
        ):
            axis.axvline(0.0, color="black", linewidth=0.8)
            axis.set_yticks(at, [str(r["family"]) for r in mine])
            axis.set_ylim(-0.6, len(mine) + 0.3)
            axis.set_xlabel(what)
        line[0].set_title(f"{venue}: learned to 2024, test 2025 ({mine[0]['coins']} coins)", loc="left", fontsize=10, pad=44)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """Run the families asked for, keep each as it is finished, and write table and picture of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks model_study", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the parquet files"
    )
    parser.add_argument("--only", nargs="+", metavar=("VENUE", "FAMILY"), help=f"a venue ({', '.join(VENUES)}), and families")
    parser.add_argument("--report", action="store_true", help="only write table and picture from finished pieces")
    asked = parser.parse_args(arguments)
    if not asked.report:
        if not asked.folder.is_dir():
            raise SystemExit(f"no data in {asked.folder}: give the folder of the parquet files")
        wanted = (
            {asked.only[0]: asked.only[1:] or list(FAMILIES)} if asked.only else {venue: list(FAMILIES) for venue in VENUES}
        )
        for venue, families in wanted.items():
            piece(asked.folder, venue, families)
    if asked.report or not asked.only:
        report()


if __name__ == "__main__":
    main(sys.argv[1:])

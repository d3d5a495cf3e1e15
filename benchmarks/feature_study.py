"""How much does each feature family say about the next day? Real hours of OKX and Binance, chosen on 2024, judged on 2025.

    python -m benchmarks feature_study [FOLDER]      # default ../shared/data beside the checkout; writes docs/studies/

Per family: signs and the features that survive a false discovery rate of 5 % are fixed on the first year; on the second year
their mean RankIC and that of their equal-weight composite are reported with 95 % intervals (stationary block bootstrap).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from crypto_qlib.analytics.ic import average_ranks
from crypto_qlib.analytics.inference import bootstrap_mean
from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, ManualClock, parse_utc
from crypto_qlib.core.market import PANEL_FIELDS, MarketPanel
from crypto_qlib.data_collector.news_archive import read_archive
from crypto_qlib.data_collector.news_text import text_hash
from crypto_qlib.data_collector.panel import funding_on_grid
from crypto_qlib.data_collector.stock_sessions import hour_ends, sessions_of_days, us_sessions
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features, settings_for_panel
from crypto_qlib.feature_engineering.feature_selection import rank_ic_table, screen
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.local_reader import LocalReader
from crypto_qlib.feature_engineering.news_events import news_events
from crypto_qlib.feature_engineering.news_lexicon import lexicon
from crypto_qlib.feature_engineering.side_data import SideData, base_coin
from crypto_qlib.modeling.labels import excess_over_mean, forward_returns
from crypto_qlib.settings.schema import FeatureSettings, NewsSettings
from crypto_qlib.store.observations import Observations, in_canonical_order

ROOT = Path(__file__).resolve().parents[1]
HORIZON = 24
RATE = 0.05
PUBLISHED_NS = NS_PER_DAY + 6 * NS_PER_HOUR
"""When a daily figure is taken to be known: six hours after its day, later than every source measured."""


def panel_of(folder: Path, stem: str, funding: str, span: tuple[str, str], least_bars: int) -> MarketPanel:
    """Return the hours of all contracts with at least ``least_bars`` bars in ``span``."""
    start, end = (parse_utc(t) for t in span)
    bars = pd.read_parquet(folder / f"{stem}.parquet")
    bars = bars[(bars["ts"] >= pd.Timestamp(start, tz="UTC")) & (bars["ts"] < pd.Timestamp(end, tz="UTC"))]
    counts = bars.groupby("symbol").size()
    names = sorted(counts.index[counts >= least_bars])
    grid = np.arange(start, end, NS_PER_HOUR)
    stamps = pd.DatetimeIndex(grid.astype("datetime64[ns]"), tz="UTC")
    fields = {
        n: bars.pivot(index="ts", columns="symbol", values=n).reindex(stamps)[names].to_numpy(np.float64)
        for n in ("open", "high", "low", "close", "volume")
    }
    fields["quote_volume"] = fields["volume"] * (fields["high"] + fields["low"] + fields["close"]) / 3.0
    mark_file = folder / f"{stem.replace('perp', 'mark')}.parquet"
    marks = pd.read_parquet(mark_file)
    for n in ("open", "high", "low", "close"):
        mark = marks.pivot(index="ts", columns="symbol", values=n).reindex(index=stamps, columns=names).to_numpy(np.float64)
        fields[f"mark_{n}"] = np.where(np.isfinite(mark), mark, fields[n])
    rates = pd.read_parquet(folder / f"{funding}.parquet")
    value = next(c for c in rates.columns if "rate" in c)
    columns = []
    for name in names:
        mine = rates[rates["symbol"] == name]
        columns.append(funding_on_grid(ns(mine["ts"]), mine[value].to_numpy(np.float64), grid, NS_PER_HOUR))
    fields["funding_rate"] = np.column_stack(columns)
    symbols = tuple(n.split("/")[0] + "USDT" for n in names)
    return MarketPanel(symbols, NS_PER_HOUR, grid, has_mark=np.ones(len(names), bool), **{n: fields[n] for n in PANEL_FIELDS})


def ns(column: pd.Series) -> np.ndarray:
    return pd.DatetimeIndex(column).as_unit("ns").asi8.astype(np.int64)


def rows(event: np.ndarray, known: np.ndarray, value: np.ndarray) -> Observations:
    keep = np.isfinite(value)
    return in_canonical_order(Observations(event[keep], known[keep], value[keep].astype(np.float64)))


def side_of(folder: Path, panel: MarketPanel) -> SideData:
    """Return what the files hold beside the bars, each value at a time when it was surely known."""
    series: dict[tuple[str, str], Observations] = {}
    fear = pd.read_parquet(folder / "fear_greed_daily.parquet")
    day = ns(fear["ts"])
    series["fear_greed", "MARKET"] = rows(day, day + NS_PER_HOUR, fear["fear_greed"].to_numpy(np.float64))
    hours = pd.read_parquet(folder / "qqq_1h.parquet")
    event = ns(hours["ts"])
    end = hour_ends(event)
    for field in ("open", "close"):
        value = np.where(end > 0, hours[field].to_numpy(np.float64), np.nan)
        series[f"qqq_1h_{field}", "MARKET"] = rows(event, end + 5 * NS_PER_MINUTE, value)
    days = pd.read_parquet(folder / "qqq_1d.parquet")
    event = ns(days["ts"])
    at = sessions_of_days(event)
    known = us_sessions().close_ns[np.maximum(at, 0)] + 30 * NS_PER_MINUTE
    series["qqq_1d_close", "MARKET"] = rows(event, known, np.where(at >= 0, days["close"].to_numpy(np.float64), np.nan))
    chain = pd.read_parquet(folder / "btc_onchain_daily.parquet")
    event = ns(chain["ts"])
    series["btc_dominance", "MARKET"] = rows(event, event + PUBLISHED_NS, chain["btc_dominance"].to_numpy(np.float64) / 100.0)
    interest = pd.read_parquet(folder / "open_interest_daily_usd.parquet")
    for symbol in panel.symbols:
        mine = interest[interest["base"] == base_coin(symbol)]
        if len(mine):
            event = ns(mine["ts"])
            series["open_interest", symbol] = rows(event, event + NS_PER_DAY, mine["oi_close"].to_numpy(np.float64))
    return SideData(series)


def with_news(side: SideData, folder: Path) -> SideData:
    """Return ``side`` with the archive read by the local word list (it learned from nothing, so there is no hindsight)."""
    articles = read_archive(folder / "news" / "crypto_news_timestamped.parquet", 60.0).articles
    texts = [(a, text_hash(a.title, a.body)) for a in articles]
    made = LocalReader().read([a for a, _ in texts], list(lexicon().coins), ManualClock(0).now_ns())
    readings = {digest: [r] for (_, digest), r in zip(texts, made, strict=True)}
    return replace(side, news=news_events(texts, readings, [], NewsSettings(), {}))


def decisions(frame: FeatureFrame) -> FeatureFrame:
    """Return only the rows of decision bars; the big frame can be let go."""
    keep = frame.row_bar % HORIZON == 0
    return replace(frame, values=frame.values[keep].copy(), row_bar=frame.row_bar[keep], row_symbol=frame.row_symbol[keep])


def study(panel: MarketPanel, side: SideData, sets: tuple[str, ...], cut: str) -> list[dict[str, object]]:
    """Return one record a family."""
    outcome = excess_over_mean(forward_returns(panel.open, HORIZON))
    middle = int(np.searchsorted(panel.ts_open, parse_utc(cut)))
    past, future = (0, middle - HORIZON - 1), (middle + HORIZON - middle % HORIZON, panel.n_bars)
    records = []
    for name in sets:
        wanted, _ = settings_for_panel(panel, FeatureSettings(sets=(name,)), side)  # type: ignore[arg-type]
        frame = decisions(build_features(panel, wanted, side=side))
        before, after = (rank_ic_table(frame, outcome, span, HORIZON) for span in (past, future))
        found = screen(frame, [name] * len(frame.names), before)
        t = np.array([f.t_stat for f in found])
        signs = np.sign(t)
        passed = np.array([np.isfinite(f.q_value) and f.q_value <= RATE for f in found])
        counts = {"built": len(frame.names), "ordering": int(np.isfinite(t).sum()), "passed": int(passed.sum())}
        records.append({"set": name, **counts,
                        **of_members(after, signs, np.isfinite(t), "all"), **of_members(after, signs, passed, "chosen"),
                        **of_composite(frame, outcome, signs, passed, past, future)})  # fmt: skip
        print(records[-1], flush=True)
    return records


def of_members(table: np.ndarray, signs: np.ndarray, members: np.ndarray, label: str) -> dict[str, float]:
    """Return the mean out-of-sample RankIC of members, signs from the first year, with its interval."""
    if not members.any():
        return {label: float("nan"), f"{label}_low": float("nan"), f"{label}_high": float("nan")}
    daily = np.nanmean(table[:, members] * signs[members], axis=1)
    e = bootstrap_mean(daily, 5.0)
    return {label: e.mean, f"{label}_low": e.low, f"{label}_high": e.high}


def of_composite(
    frame: FeatureFrame,
    outcome: np.ndarray,
    signs: np.ndarray,
    members: np.ndarray,
    past: tuple[int, int],
    future: tuple[int, int],
) -> dict[str, float]:
    """Return RankIC of the equal-weight mean of the members' signed ranks, in the first and in the second year."""
    if not members.any():
        return dict.fromkeys(("fit", "composite", "composite_low", "composite_high"), float("nan"))
    score = np.full((frame.n_rows, 1), np.nan, dtype=np.float32)
    edges = np.flatnonzero(np.append(True, np.diff(frame.row_bar) != 0))
    for a, b in zip(edges, np.append(edges[1:], frame.n_rows), strict=True):
        part = frame.values[a:b][:, members].astype(np.float64)
        ranks = np.column_stack([average_ranks(np.ascontiguousarray(part[:, j])) for j in range(part.shape[1])])
        centred = (ranks - np.nanmean(ranks, axis=0)) / (b - a)
        score[a:b, 0] = np.nanmean(np.where(np.isfinite(centred), centred, 0.0) * signs[members], axis=1)
    alone = replace(frame, values=score, names=("composite",))
    fit = np.nanmean(rank_ic_table(alone, outcome, past, HORIZON))
    e = bootstrap_mean(rank_ic_table(alone, outcome, future, HORIZON)[:, 0], 5.0)
    return {"fit": float(fit), "composite": e.mean, "composite_low": e.low, "composite_high": e.high}


def draw(results: dict[str, list[dict[str, object]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(results), figsize=(7 * len(results), 5.5), constrained_layout=True, squeeze=False)
    for axis, (venue, records) in zip(axes[0], results.items(), strict=True):
        at = np.arange(len(records))[::-1]
        for shift, key, colour, label in (
            (0.15, "all", "#999999", "all features, signs of the first part"),
            (-0.15, "composite", "#4477aa", "composite of those that passed (q <= 5 %)"),
        ):
            mean = np.array([r[key] for r in records], dtype=float)
            low, high = (np.array([r[f"{key}_{e}"] for r in records], dtype=float) for e in ("low", "high"))
            axis.errorbar(mean, at + shift, xerr=[mean - low, high - mean], fmt="o", color=colour, label=label, capsize=3)
        axis.axvline(0.0, color="black", linewidth=0.8)
        axis.set_yticks(at, [str(r["set"]) for r in records])
        axis.set_title(venue)
        axis.set_xlabel("mean RankIC out of sample, 95 % interval")
    axes[0][0].legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(records: list[dict[str, object]]) -> list[str]:
    lines = ["| family | features | order coins | pass in sample | mean of all | composite, in sample | out of sample |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for r in records:
        cells = [f"{r[k]:+.4f} [{r[f'{k}_low']:+.4f}, {r[f'{k}_high']:+.4f}]" for k in ("all", "composite")]
        lines.append(
            f"| {r['set']} | {r['built']} | {r['ordering']} | {r['passed']} | {cells[0]} | {r['fit']:+.4f} | {cells[1]} |"
        )
    return [line.replace("+nan", "-").replace("nan", "-") for line in lines]


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        raise SystemExit(f"no data in {folder}: give the folder of the parquet files")
    span = ("2024-01-01", "2026-01-01")
    usual = tuple(n for n in FEATURE_SETS if n not in {"on_chain", "news"})
    results: dict[str, list[dict[str, object]]] = {}
    for venue, stem, funding, least in (
        ("OKX, 2024 -> 2025", "okx_perp_1h", "okx_funding", 9_000),
        ("Binance, 2024 -> 2025", "binance_um_perp_1h", "binance_um_funding", 15_000),
    ):
        panel = panel_of(folder, stem, funding, span, least)
        print(venue, len(panel.symbols), flush=True)
        results[f"{venue} ({len(panel.symbols)} coins)"] = study(panel, side_of(folder, panel), usual, "2025-01-01")
    panel = panel_of(folder, "okx_perp_1h", "okx_funding", ("2022-01-01", "2022-07-06"), 3_000)
    news = study(panel, with_news(SideData(), folder), ("news",), "2022-04-01")
    results[f"OKX, January-March -> April-July 2022 ({len(panel.symbols)} coins)"] = news
    out = ROOT / "docs" / "studies"
    draw(results, out / "feature_families.png")
    text = [line for venue, records in results.items() for line in ("", f"**{venue}**", "", *table(records))]
    (out / "feature_families.txt").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1:])

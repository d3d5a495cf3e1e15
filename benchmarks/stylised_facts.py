"""Compare the simulated market's stylised facts with real hours; prints the table of docs/market_simulator.md.

python benchmarks/stylised_facts.py [FOLDER_WITH_REAL_PARQUET ...]   (default: ../shared/data beside the checkout)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

DAYS = 365
HOURS_A_DAY = 24
MIN_COVERAGE = 0.95
SPANS = (("okx_perp_1h.parquet", "2024-05-01"), ("okx_perp_1h.parquet", "2024-12-31"),
         ("binance_um_perp_1h.parquet", "2024-05-01"), ("binance_um_perp_1h.parquet", "2024-12-31"))  # fmt: skip


def facts(bars: pd.DataFrame) -> dict[str, float]:
    """Return medians over symbols of hourly facts; ``bars`` has symbol, ts, high, low, close, volume for one year."""
    closes = bars.pivot(index="ts", columns="symbol", values="close")
    closes = closes.loc[:, closes.notna().mean() > MIN_COVERAGE]
    returns = np.log(closes).diff().iloc[1:]
    size = returns.abs()
    turnover = np.log((bars["close"] * bars["volume"]).clip(lower=1.0)).to_frame("q").assign(ts=bars["ts"], s=bars["symbol"])
    turnover = turnover.pivot(index="ts", columns="s", values="q")[closes.columns].iloc[1:]
    ranges = np.log(bars["high"] / bars["low"]).to_frame("r").assign(ts=bars["ts"], s=bars["symbol"])
    ranges = ranges.pivot(index="ts", columns="s", values="r")[closes.columns].iloc[1:]
    btc = returns[next(c for c in returns if c.startswith("BTC"))]
    upper = np.triu_indices(returns.shape[1], 1)
    daily = np.log(closes).iloc[::HOURS_A_DAY].diff().iloc[1:]
    return {
        "symbols": float(returns.shape[1]),
        "kurtosis (excess)": float(returns.kurt().median()),
        "kurtosis, BTC": float(btc.kurt()),
        "autocorrelation of abs(r), lag 1 h": float(size.apply(lambda s: s.autocorr(1)).median()),
        "autocorrelation of abs(r), lag 24 h": float(size.apply(lambda s: s.autocorr(24)).median()),
        "autocorrelation of r, lag 1 h": float(returns.apply(lambda s: s.autocorr(1)).median()),
        "mean pairwise correlation, hours": float(np.nanmean(returns.corr().to_numpy()[upper])),
        "mean pairwise correlation, days": float(np.nanmean(daily.corr().to_numpy()[upper])),
        "beta to BTC": float((returns.apply(lambda s: s.cov(btc)) / btc.var()).median()),
        "daily volatility": float(returns.std().median() * np.sqrt(HOURS_A_DAY)),
        "daily volatility, BTC": float(btc.std() * np.sqrt(HOURS_A_DAY)),
        "mean range / mean abs(r)": float((ranges.mean() / size.mean()).median()),
        "correlation of log turnover, log abs(r)": float(
            pd.Series({s: turnover[s].corr(np.log(size[s] + 1e-5)) for s in closes}).median()
        ),
        "autocorrelation of log turnover, lag 1 h": float(turnover.apply(lambda s: s.autocorr(1)).median()),
        "autocorrelation of log turnover, lag 24 h": float(turnover.apply(lambda s: s.autocorr(24)).median()),
        "std of log turnover": float(turnover.std().median()),
        "daily turnover, million USDT": float((np.exp(turnover).mean() * HOURS_A_DAY / 1e6).median()),
    }  # fmt: skip


def simulated_bars(market: SimulatedMarket) -> pd.DataFrame:
    """Return all hourly bars of ``market`` as one frame."""
    parts = []
    for instrument in market.instruments():
        b = market.bars(instrument.symbol, NS_PER_HOUR, market.start_ns, market.end_ns)
        parts.append(pd.DataFrame({"symbol": instrument.symbol, "ts": b.ts_open, "high": b.high, "low": b.low,
                                   "close": b.close, "volume": b.volume}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    start = parse_utc("2024-12-31")
    columns: dict[str, dict[str, float]] = {}
    for seed in (20260101, 1, 2):
        began = time.perf_counter()
        market = SimulatedMarket(SimulationSpec(60, start, start + DAYS * NS_PER_DAY, seed))
        market.bars("BTCUSDT", NS_PER_HOUR, market.start_ns, market.end_ns)
        print(f"seed {seed}: 60 symbols x {DAYS} days in {time.perf_counter() - began:.1f} s")
        columns[f"simulated, seed {seed}"] = facts(simulated_bars(market))
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "shared" / "data"
    for name, since in SPANS:
        if (folder / name).is_file():
            real = pd.read_parquet(folder / name)
            begin = pd.Timestamp(since, tz="UTC")
            real = real[(real["ts"] >= begin) & (real["ts"] < begin + pd.Timedelta(days=DAYS))]
            columns[f"{name.split('_perp')[0]} {since[:7]} +{DAYS}d"] = facts(real)
    table = pd.DataFrame(columns)
    print("| fact (median over symbols) | " + " | ".join(table.columns) + " |")
    print("|---|" + "---:|" * len(table.columns))
    for name, row in table.iterrows():
        print(f"| {name} | " + " | ".join(f"{v:.3g}" for v in row) + " |")


if __name__ == "__main__":
    main()

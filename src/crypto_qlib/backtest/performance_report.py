"""All figures of a backtest as one plain nested dictionary: what ``multi_asset_performance.json`` holds and the page shows.

The account's own figures come from :func:`crypto_qlib.analytics.account_figures.account_figures`, as those of a live session
do; here is what only a backtest knows: its benchmarks, refusals, ambiguous bars and delistings. Attribution adds up: the change
of equity is exactly ``signal + market beta + slippage + fees + funding + liquidation`` over closed trades and over positions
still open at the end (marked, not closed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from crypto_qlib.analytics.account_book import PARTS
from crypto_qlib.analytics.account_figures import AccountHistory, account_figures
from crypto_qlib.analytics.trading import AccountSeries
from crypto_qlib.backtest.result import BacktestResult, at_closes_of
from crypto_qlib.backtest.result_book import fill_book, position_book
from crypto_qlib.core.clock import NS_PER_DAY, iso
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel
from crypto_qlib.portfolio.btc_factor import btc_factor
from crypto_qlib.portfolio.market_panel import BTC
from crypto_qlib.venue.matching import DELISTED

ATTRIBUTION_PARTS = PARTS
"""Signed parts of the change of equity, USDT; they add up to it."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The account and its benchmarks on one grid: the start, then every bar close.

    Parameters
    ----------
    ts_ns : (n + 1,) int64
        Start of the first bar, then closes.
    equity, btc, equal_weight : (n + 1,) float64
        USDT; the benchmarks invest the starting equity once, without leverage or costs. NaN where there is no BTC.
    """

    ts_ns: IntArray
    equity: FloatArray
    btc: FloatArray
    equal_weight: FloatArray


def curves(result: BacktestResult, panel: MarketPanel) -> Curves:
    """Return equity and benchmark curves.

    BTC is bought at the first open. The equal-weight basket buys every symbol that trades in the first bar with the same
    amount; a symbol that stops trading stays at its last close.
    """
    first = int(np.searchsorted(panel.ts_open, result.ts_open[0]))
    rows = slice(first, first + result.ts_open.size)
    start = panel.open[first]
    close = pd.DataFrame(panel.close[rows]).ffill().to_numpy()
    growth = np.vstack([np.ones(len(panel.symbols)), close / start])
    listed = np.isfinite(start)
    basket = np.nanmean(np.where(np.isnan(growth[:, listed]), 1.0, growth[:, listed]), axis=1)
    btc = growth[:, panel.symbols.index(BTC)] if BTC in panel.symbols else np.full(growth.shape[0], np.nan)
    money = result.initial_equity
    ts = np.concatenate([result.ts_open[:1], result.ts_close])
    return Curves(ts, np.concatenate([[money], result.equity]), money * btc, money * basket)


def account_history(result: BacktestResult, c: Curves) -> AccountHistory:
    """Return the run's account over time."""
    s = result.series
    series = AccountSeries(s["equity"], s["gross"], s["net"], s["used_margin"], s["n_open"].astype(np.float64))
    holding = float(result.rules.holding_ns) / result.frame_ns
    return AccountHistory(c.ts_ns, c.equity, series, result.frame_ns, result.symbols, holding)


def performance(
    result: BacktestResult,
    panel: MarketPanel,
    market: str,
    model_performance: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return every figure of the run; fractions, USDT and UTC throughout, NaN where a figure cannot be given.

    Parameters
    ----------
    result : BacktestResult
        The run.
    panel : MarketPanel
        Bars it decided on, for the benchmarks; the account's figures hold at their closes, also where it traded on finer ones.
    market : str
        ``simulated``, ``replay`` or ``exchange``: where the prices come from.
    model_performance : dict | None
        The model's own figures, copied into the result.
    """
    shown = at_closes_of(result, panel.frame_ns)
    c = curves(shown, panel)
    fills = fill_book(result)
    positions = position_book(result, btc_factor(panel), fills)
    benchmarks = {"btc": c.btc, "equal_weight": c.equal_weight}
    return {
        "market": market,
        "period": {
            "start": iso(int(c.ts_ns[0])),
            "end": iso(int(c.ts_ns[-1])),
            "days": (int(c.ts_ns[-1]) - int(c.ts_ns[0])) / NS_PER_DAY,
            "bars": int(result.ts_open.size),
            "bar_seconds": result.frame_ns / 1e9,
            "symbols": len(result.symbols),
            "idle_since": _idle_since(result),
        },
        **account_figures(account_history(shown, c), fills, positions, result.funding["amount"], benchmarks),
        "margin": _margin(result),
        "liquidations": _liquidations(result),
        "vetoes": {rule.label: n for rule, n in result.veto_counts.items() if n},
        "entries_rejected": result.entries_rejected,
        "entries_cut_to_volume": result.entries_cut,
        "entries_expired": result.entries_expired,
        "ambiguous_bars": _ambiguous(result),
        "delisted_in_the_run": list(result.ended),
        "positions_closed_by_delisting": _delisted(result),
        "symbols_without_own_mark": list(result.unmarked),
        "model": model_performance,
    }


def _idle_since(result: BacktestResult) -> str:
    """Return the time of the last close with a position, where the rest (over a twentieth of the run) has none; else empty."""
    held = np.flatnonzero(result.series["n_open"])
    last = int(held[-1]) if held.size else -1
    if last < 0 or result.ts_open.size - 1 - last <= result.ts_open.size // 20:
        return ""
    return iso(int(result.ts_close[last]))


def _margin(result: BacktestResult) -> dict[str, Any]:
    """Return the margin mode and the lowest equity over the maintenance requirement at any close; NaN if nothing was held."""
    s = result.series
    held = s["maintenance"] > 0.0
    lowest = float(np.min(s["equity"][held] / s["maintenance"][held])) if held.any() else float("nan")
    return {"mode": "cross" if result.rules.cross else "isolated", "lowest_equity_over_maintenance": lowest}


def _liquidations(result: BacktestResult) -> dict[str, float]:
    rows = result.liquidations
    return {
        "count": int(rows.size),
        "partial": int(np.count_nonzero(rows["partial"])),
        "penalties": float(rows["penalty"].sum()),
        "borne_by_insurance": float(rows["overshoot"].sum()),
    }


def _ambiguous(result: BacktestResult) -> dict[str, float]:
    """Return how often the order inside a bar was unknown, and the bounds that leaves for the final equity."""
    return {
        "count": result.n_ambiguous_bars,
        "best_case_gain": result.best_case_gain,
        "worst_case_equity": result.final_equity,
        "best_case_equity": result.final_equity + result.best_case_gain,
    }


def _delisted(result: BacktestResult) -> list[dict[str, Any]]:
    """Return every position that was closed because its symbol stopped trading."""
    frame = result.trades_frame()[result.trades["exit_kind"] == DELISTED]
    return [
        {"symbol": row["symbol"], "side": row["side"], "closed": row["exit_ts"].isoformat(), "price": row["exit_price"],
         "net_pnl": row["net_pnl"]}
        for row in frame.to_dict("records")
    ]  # fmt: skip

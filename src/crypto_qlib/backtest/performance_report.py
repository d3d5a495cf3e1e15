"""All figures of a backtest as one plain nested dictionary: what ``multi_asset_performance.json`` holds and the page shows.

Attribution adds up: the change of equity is exactly

``price PnL of longs + price PnL of shorts - slippage - fees + funding - liquidation penalties + borne by the insurance fund``

over closed trades and over positions still open at the end (marked, not closed). Price PnL is before slippage.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from crypto_qlib.analytics.inference import bootstrap_mean
from crypto_qlib.analytics.performance import (
    equity_statistics,
    max_drawdown,
    returns_from_equity,
    total_return,
)
from crypto_qlib.analytics.trading import AccountSeries, annual_turnover, exposure_statistics, trade_statistics
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import NS_PER_DAY, iso
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel

BTC = "BTCUSDT"
ATTRIBUTION_PARTS = ("long_price", "short_price", "slippage", "fees", "funding", "liquidation")
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


def position_frame(result: BacktestResult) -> pd.DataFrame:
    """Return closed trades and positions still open with the parts of their result, one row each.

    Columns: ``symbol side exit_kind price slippage fees funding liquidation net`` and the signs of :data:`ATTRIBUTION_PARTS`
    (costs negative); ``exit_kind`` is ``open`` for positions still held.
    """
    closed = result.trades_frame()
    held = result.open_positions
    mark_pnl = held["side"] * held["qty"] * (held["mark"] - held["entry"])
    still = pd.DataFrame(
        {
            "symbol": np.array(result.symbols, dtype=object)[result.open_symbols],
            "side": np.where(held["side"] > 0, "long", "short"),
            "exit_kind": "open",
            "pnl": held["pnl"] + mark_pnl,
            **{name: held[name] for name in ("fee", "funding", "penalty", "overshoot", "slippage")},
        }
    )
    columns = list(still.columns)
    rows = pd.concat([f[columns] for f in (closed, still) if len(f)] or [closed.reindex(columns=columns)], ignore_index=True)
    return pd.DataFrame(
        {
            "symbol": rows["symbol"],
            "side": rows["side"],
            "exit_kind": rows["exit_kind"],
            "price": rows["pnl"] + rows["slippage"],
            "slippage": -rows["slippage"],
            "fees": -rows["fee"],
            "funding": rows["funding"],
            "liquidation": rows["overshoot"] - rows["penalty"],
            "net": rows["pnl"] - rows["fee"] + rows["funding"] - rows["penalty"] + rows["overshoot"],
        }
    )


def attribution(positions: pd.DataFrame) -> dict[str, float]:
    """Return the signed parts of the change of equity, USDT, in the order of :data:`ATTRIBUTION_PARTS`."""
    is_long = positions["side"] == "long"
    return {
        "long_price": float(positions.loc[is_long, "price"].sum()),
        "short_price": float(positions.loc[~is_long, "price"].sum()),
        **{part: float(positions[part].sum()) for part in ATTRIBUTION_PARTS[2:]},
    }


def lot_sizes(result: BacktestResult) -> FloatArray:
    """Return base coins per lot of each symbol, ``(n_symbols,)``, as the positions show it; NaN for symbols never traded."""
    sizes = np.full(len(result.symbols), np.nan)
    sizes[result.trades["symbol"]] = result.trades["qty"] / np.abs(result.trades["lots"])
    sizes[result.open_symbols] = result.open_positions["qty"] / np.abs(result.open_positions["lots"])
    return sizes


def traded_notional(result: BacktestResult) -> float:
    """Return the notional bought and sold, USDT."""
    f = result.fills
    return float(np.nansum(np.abs(f["lots"]) * lot_sizes(result)[f["symbol"]] * f["price"]))


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
        Bars it was run on, for the benchmarks.
    market : str
        ``simulated``, ``replay`` or ``exchange``: where the prices come from.
    model_performance : dict | None
        The model's own figures, copied into the result.
    """
    c = curves(result, panel)
    positions = position_frame(result)
    parts = attribution(positions)
    s = result.series
    series = AccountSeries(s["equity"], s["gross"], s["net"], s["used_margin"], s["n_open"].astype(np.float64))
    notional = traded_notional(result)
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
        "returns": {
            "initial_equity": result.initial_equity,
            **asdict(equity_statistics(c.ts_ns, c.equity, result.frame_ns)),
            "mean_return_per_bar": asdict(_mean_return(result, c)),
        },
        "benchmarks": {name: _benchmark(c, getattr(c, name)) for name in ("btc", "equal_weight")},
        "trades": asdict(trade_statistics(_net(result))) | {"open_at_end": int(result.open_positions.size)},
        "exposure": asdict(exposure_statistics(series)),
        "costs": _costs(result, parts, notional),
        "turnover_per_year": annual_turnover(notional, s["equity"], result.frame_ns),
        "attribution": {
            **parts,
            "total": result.final_equity - result.initial_equity,
            "by_side": _grouped(positions, "side"),
            "by_exit_kind": _grouped(positions, "exit_kind"),
            "by_symbol": _grouped(positions, "symbol"),
        },
        "liquidations": _liquidations(result),
        "vetoes": {rule.label: n for rule, n in result.veto_counts.items() if n},
        "entries_rejected": result.entries_rejected,
        "entries_cut_to_volume": result.entries_cut,
        "ambiguous_bars": {"count": result.n_ambiguous_bars, "best_case_gain": result.best_case_gain},
        "delisted_in_the_run": list(result.ended),
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


def _net(result: BacktestResult) -> FloatArray:
    t = result.trades
    net: FloatArray = t["pnl"] - t["fee"] + t["funding"] - t["penalty"] + t["overshoot"]
    return net


def _mean_return(result: BacktestResult, c: Curves) -> Any:
    block = max(float(result.rules.holding_ns) / result.frame_ns, 1.0)
    return bootstrap_mean(returns_from_equity(c.equity), block, n_samples=300)


def _benchmark(c: Curves, curve: FloatArray) -> dict[str, float]:
    """Return return and drawdown of a benchmark, and the strategy's correlation and beta to it (per bar)."""
    theirs, ours = returns_from_equity(curve), returns_from_equity(c.equity)
    both = np.isfinite(theirs) & np.isfinite(ours)
    spread = float(np.std(theirs[both])) if both.any() else 0.0
    beta = correlation = float("nan")
    if spread > 0.0 and np.std(ours[both]) > 0.0:
        correlation = float(np.corrcoef(theirs[both], ours[both])[0, 1])
        beta = correlation * float(np.std(ours[both])) / spread
    return {
        "total_return": total_return(theirs),
        "max_drawdown": max_drawdown(curve),
        "correlation": correlation,
        "beta": beta,
    }


def _costs(result: BacktestResult, parts: dict[str, float], notional: float) -> dict[str, float]:
    amount = result.funding["amount"]
    return {
        "traded_notional": notional,
        "fees": -parts["fees"],
        "funding_received": float(amount[amount > 0].sum()),
        "funding_paid": float(-amount[amount < 0].sum()),
        "slippage": -parts["slippage"],
        "slippage_bps": -parts["slippage"] / notional * 1e4 if notional > 0.0 else float("nan"),
    }


def _liquidations(result: BacktestResult) -> dict[str, float]:
    rows = result.liquidations
    return {
        "count": int(rows.size),
        "partial": int(np.count_nonzero(rows["partial"])),
        "penalties": float(rows["penalty"].sum()),
        "borne_by_insurance": float(rows["overshoot"].sum()),
    }


def _grouped(positions: pd.DataFrame, key: str) -> dict[str, dict[str, float]]:
    """Return count, net result and its parts by ``key``, largest net result first."""
    out: dict[str, dict[str, float]] = {}
    for name, rows in positions.groupby(key, sort=True):
        parts = {part: float(rows[part].sum()) for part in ("price", "slippage", "fees", "funding", "liquidation", "net")}
        out[str(name)] = {"count": len(rows), "win_rate": float((rows["net"] > 0).mean()), **parts}
    return dict(sorted(out.items(), key=lambda item: -item[1]["net"]))

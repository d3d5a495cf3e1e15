"""The tables of the report page as plain rows of text: months, trades, refusals, ambiguous bars."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd

from crypto_qlib.analytics.performance import returns_from_equity
from crypto_qlib.backtest.performance_report import Curves
from crypto_qlib.backtest.report_words import number
from crypto_qlib.backtest.result import BacktestResult

MOST_TRADES: Final = 400
"""Trades shown in the page's table: the latest ones; ``trades.parquet`` holds all."""
MOST_VETOES: Final = 200
MOST_AMBIGUOUS: Final = 100
_FULL_SHADE: Final = 0.2
"""Monthly return at which the heat map is at its strongest."""


def monthly_returns(curves: Curves) -> list[tuple[int, list[float], float]]:
    """Return (year, twelve monthly returns, return of the year), NaN for months without bars."""
    index = pd.DatetimeIndex(pd.to_datetime(curves.ts_ns, utc=True)) - pd.Timedelta(1, "ns")  # a close at midnight ends the day
    equity = pd.Series(curves.equity, index=index)
    ends = equity.groupby([index.year, index.month]).last()
    values = np.concatenate([[curves.equity[0]], ends.to_numpy(np.float64)])
    months = dict(zip(ends.index.to_list(), returns_from_equity(values).tolist(), strict=True))
    rows = []
    for year in sorted({y for y, _ in months}):
        row = [months.get((year, m), math.nan) for m in range(1, 13)]
        rows.append((int(year), row, float(np.prod([1.0 + v for v in row if math.isfinite(v)]) - 1.0)))
    return rows


def shade(value: float) -> str:
    """Return the background of a monthly return: blue for a gain, orange for a loss, full at 20 %."""
    if not math.isfinite(value):
        return "transparent"
    strength = min(abs(value) / _FULL_SHADE, 1.0) ** 0.6 * 0.65
    return f"rgba(0,114,178,{strength:.2f})" if value >= 0.0 else f"rgba(213,94,0,{strength:.2f})"


def trade_rows(result: BacktestResult) -> list[dict[str, Any]]:
    """Return the latest trades, newest first."""
    frame = result.trades_frame().tail(MOST_TRADES).iloc[::-1]
    rows = []
    for row in frame.to_dict("records"):
        entry, out = row["entry_ts"], row["exit_ts"]
        rows.append(
            {
                "symbol": row["symbol"].removesuffix("USDT"),
                "side": row["side"],
                "rank": int(row["rank"]) + 1,
                "entry": entry.strftime("%Y-%m-%d %H:%M"),
                "exit": out.strftime("%Y-%m-%d %H:%M"),
                "bars": int((out.value - entry.value) // result.frame_ns),
                "notional": f"{row['qty'] * row['entry_price']:,.0f}",
                "leverage": f"{row['leverage']:.1f}",
                "entry_price": f"{row['entry_price']:.6g}",
                "exit_price": f"{row['exit_price']:.6g}",
                "exit_kind": row["exit_kind"].replace("_", " "),
                "slippage": number(row["slippage"]),
                "fees": number(row["fee"]),
                "funding": f"{row['funding']:+,.2f}".replace("-", "\u2212"),
                "net": row["net_pnl"],
            }
        )
    return rows


def veto_rows(result: BacktestResult) -> list[dict[str, str]]:
    """Return the latest refusals kept one by one, newest first: time, symbol, rule, its limit and the value that broke it."""
    return [
        {
            "ts": row["ts"].strftime("%Y-%m-%d %H:%M"),
            "symbol": row["symbol"].removesuffix("USDT") or "account",
            "rule": row["rule"].replace("_", " "),
            "limit": _figure(row["limit"]),
            "actual": _figure(row["actual"]),
        }
        for row in result.vetoes_frame().tail(MOST_VETOES).iloc[::-1].to_dict("records")
    ]


def ambiguous_rows(result: BacktestResult) -> list[dict[str, str]]:
    """Return the bars whose inner order matters most: what was booked, and what the kindest order would have given."""
    frame = result.ambiguous_frame().sort_values("gain", ascending=False, kind="stable").head(MOST_AMBIGUOUS)
    return [
        {
            "ts": row["ts"].strftime("%Y-%m-%d %H:%M"),
            "symbol": row["symbol"].removesuffix("USDT"),
            "booked": _outcome(row["booked"], row["booked_price"]),
            "kindest": _outcome(row["kindest"], row["kindest_price"]),
            "gain": number(row["gain"]),
        }
        for row in frame.to_dict("records")
    ]


def _outcome(kind: str, price: float) -> str:
    name = "nothing" if kind in ("", "entry") else kind.replace("_", " ")
    return f"{name} at {price:.6g}" if math.isfinite(price) and name != "nothing" else name


def _figure(value: float) -> str:
    """Return a refusal's number in its rule's own unit, in as few digits as tell it apart."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}".replace("-", "\u2212")  # noqa: PLR2004 - no decimals there

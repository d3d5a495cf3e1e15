"""The one self-contained HTML page: everything inline, opens anywhere, sends nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from crypto_qlib.analytics.performance import returns_from_equity
from crypto_qlib.backtest import report_charts as charts
from crypto_qlib.backtest import report_words as words
from crypto_qlib.backtest.performance_report import Curves
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.market import MarketPanel

MOST_TRADES: Final = 400
"""Trades shown in the page's table: the latest ones; ``trades.parquet`` holds all."""
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CANDLE_SYMBOLS: Final = 3


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


def _shade(value: float) -> str:
    """Return a background between red and green, full at 20 % a month."""
    if not math.isfinite(value):
        return "transparent"
    strength = min(abs(value) / 0.2, 1.0) ** 0.6 * 0.75
    return f"rgba(30,132,73,{strength:.2f})" if value >= 0.0 else f"rgba(192,57,43,{strength:.2f})"


def trade_rows(result: BacktestResult) -> list[dict[str, Any]]:
    """Return the latest trades as the table's rows, newest first."""
    frame = result.trades_frame().tail(MOST_TRADES).iloc[::-1]
    rows = []
    for row in frame.to_dict("records"):
        entry, out = row["entry_ts"], row["exit_ts"]
        rows.append(
            {
                "symbol": row["symbol"].removesuffix("USDT"),
                "side": row["side"],
                "entry": entry.strftime("%Y-%m-%d %H:%M"),
                "exit": out.strftime("%Y-%m-%d %H:%M"),
                "bars": int((out.value - entry.value) // result.frame_ns),
                "notional": f"{row['qty'] * row['entry_price']:,.0f}",
                "leverage": f"{row['leverage']:.1f}",
                "entry_price": f"{row['entry_price']:.6g}",
                "exit_price": f"{row['exit_price']:.6g}",
                "exit_kind": row["exit_kind"].replace("_", " "),
                "fees": f"{row['fee']:,.2f}",
                "funding": f"{row['funding']:+,.2f}",
                "net": row["net_pnl"],
            }
        )
    return rows


def _busiest(result: BacktestResult) -> list[str]:
    counts = np.bincount(result.fills["symbol"], minlength=len(result.symbols))
    order = np.argsort(-counts, kind="stable")[:_CANDLE_SYMBOLS]
    return [result.symbols[j] for j in order if counts[j]]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    return rows


def build_page(
    result: BacktestResult,
    panel: MarketPanel,
    curves: Curves,
    performance: dict[str, Any],
    settings: dict[str, Any],
    rank_ic: tuple[list[str], list[float]] | None,
) -> str:
    """Return the page's HTML.

    Parameters
    ----------
    result, panel, curves, performance
        The run and its figures.
    settings : dict
        Settings in force, shown as a table.
    rank_ic : (times, values) | None
        RankIC of the model at each bar, for the rolling chart.
    """
    a = performance["attribution"]
    chart_json = {
        "equity": charts.equity_chart(curves),
        "exposure": charts.exposure_chart(result),
        "attribution": charts.attribution_chart(a, a["total"]),
        "symbols": charts.symbol_chart(a["by_symbol"]),
    }
    if rank_ic is not None:
        chart_json["rank_ic"] = charts.rank_ic_chart(*rank_ic, window=int(max(7 * 86_400e9 // result.frame_ns, 2)))
    candles = _busiest(result)
    chart_json |= {f"candles_{k}": charts.candle_chart(panel, result, s) for k, s in enumerate(candles)}
    loader = PackageLoader("crypto_qlib.backtest", "templates")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.get_template("backtest_report.html.j2").render(
        p=performance,
        banner=words.BANNERS[performance["market"]],
        tiles=words.tiles(performance),
        sentences=words.sentences(performance),
        model_line=words.model_line(performance["model"]),
        months=_MONTHS,
        monthly=monthly_returns(curves),
        shade=_shade,
        percent=words.percent,
        money=words.money,
        number=words.number,
        isfinite=math.isfinite,
        trades=trade_rows(result),
        n_trades=int(result.trades.size),
        candles=candles,
        chart_json=chart_json,
        settings_rows=_flat(settings),
        identity_rows=_flat(performance["run"]),
        plotly_js=get_plotlyjs(),
    )


def write_page(html: str, path: Path) -> Path:
    """Write the page and return its path."""
    path.write_text(html, encoding="utf-8")
    return path

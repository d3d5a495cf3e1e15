"""The interactive charts of the report page, as plotly figures in JSON. Each function answers one question."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from crypto_qlib.analytics.performance import drawdown
from crypto_qlib.analytics.trading import over_equity
from crypto_qlib.backtest.performance_report import Curves
from crypto_qlib.backtest.report_pictures import BASKET, BTC_COLOUR, GAIN, LOSS, STRATEGY
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel

MOST_POINTS: Final = 2_500
"""Points of one line; longer series show every k-th bar (and the deepest drawdown within)."""
_PART_NAMES: Final = {
    "long_price": "longs: price",
    "short_price": "shorts: price",
    "slippage": "slippage",
    "fees": "fees",
    "funding": "funding",
    "liquidation": "liquidation",
}
_LAYOUT: Final = {
    "template": "plotly_white",
    "font": {"family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "size": 13, "color": "#26303b"},
    "margin": {"l": 64, "r": 24, "t": 28, "b": 40},
    "hovermode": "x unified",
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#b4bcc6", "activecolor": "#2457a6"},
}


def _times(ts_ns: IntArray) -> Any:
    return pd.to_datetime(ts_ns, utc=True).strftime("%Y-%m-%d %H:%M").to_list()


def _stride(n: int) -> int:
    return max(1, -(-n // MOST_POINTS))


def _rounded(values: FloatArray, digits: int) -> list[float | None]:
    return [None if not np.isfinite(v) else round(float(v), digits) for v in values]


def _significant(values: FloatArray) -> list[float | None]:
    return [None if not np.isfinite(v) else float(f"{v:.6g}") for v in values]


def _line(x: Any, y: FloatArray, name: str, colour: str, width: float = 1.4, digits: int = 1) -> Any:
    return go.Scatter(x=x, y=_rounded(y, digits), name=name, mode="lines", line={"color": colour, "width": width})


def equity_chart(curves: Curves) -> str:
    """Return equity against both benchmarks, with the drawdown below."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.74, 0.26], vertical_spacing=0.05)
    k = _stride(curves.ts_ns.size)
    keep = np.unique(np.append(np.arange(0, curves.ts_ns.size, k), curves.ts_ns.size - 1))
    x = _times(curves.ts_ns[keep])
    if np.isfinite(curves.btc).any():
        figure.add_trace(_line(x, curves.btc[keep], "BTC bought and held", BTC_COLOUR), 1, 1)
    figure.add_trace(_line(x, curves.equal_weight[keep], "equal-weight universe, held", BASKET), 1, 1)
    figure.add_trace(_line(x, curves.equity[keep], "strategy, after all costs", STRATEGY, 2.4), 1, 1)
    depth = -100.0 * np.maximum.reduceat(drawdown(curves.equity), keep)
    figure.add_trace(
        go.Scatter(
            x=x, y=_rounded(depth, 2), name="drawdown %", mode="lines", line={"color": LOSS, "width": 1},
            fill="tozeroy", fillcolor="rgba(192,57,43,0.22)", showlegend=False,
        ), 2, 1,
    )  # fmt: skip
    figure.update_yaxes(title_text="USDT", tickformat=",.0f", row=1, col=1)
    figure.update_yaxes(title_text="drawdown, %", row=2, col=1)
    return _json(figure, 480)


def exposure_chart(result: BacktestResult) -> str:
    """Return long, short and net exposure over equity, with the open positions and the margin in use below."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.06,
        specs=[[{}], [{"secondary_y": True}]],
    )  # fmt: skip
    s = result.series
    k = _stride(s.size)
    x = _times(result.ts_close[::k])
    longs, shorts = 0.5 * (s["gross"] + s["net"]), 0.5 * (s["net"] - s["gross"])
    for values, name, colour, shade in (
        (longs, "long", STRATEGY, "rgba(36,87,166,0.25)"),
        (shorts, "short", LOSS, "rgba(192,57,43,0.25)"),
    ):
        trace = _line(x, 100.0 * over_equity(values, s["equity"])[::k], name, colour, 1.0, 2)
        figure.add_trace(trace.update(fill="tozeroy", fillcolor=shade), 1, 1)
    figure.add_trace(_line(x, 100.0 * over_equity(s["net"], s["equity"])[::k], "net", "#2c3e50", 1.4, 2), 1, 1)
    held = _line(x, s["n_open"][::k].astype(np.float64), "open positions", STRATEGY, 1.2, 0)
    figure.add_trace(held.update(line_shape="hv", fill="tozeroy", fillcolor="rgba(36,87,166,0.15)"), 2, 1)
    margin = _line(x, 100.0 * over_equity(s["used_margin"], s["equity"])[::k], "margin in use, %", BTC_COLOUR, 1.2, 2)
    figure.add_trace(margin, 2, 1, secondary_y=True)
    figure.update_yaxes(title_text="% of equity", row=1, col=1)
    figure.update_yaxes(title_text="positions", rangemode="tozero", row=2, col=1, secondary_y=False)
    figure.update_yaxes(title_text="margin, %", rangemode="tozero", showgrid=False, row=2, col=1, secondary_y=True)
    return _json(figure, 460)


def attribution_chart(parts: dict[str, float], total: float) -> str:
    """Return a waterfall from the signed parts to the change of equity."""
    names, values = [_PART_NAMES[p] for p in _PART_NAMES], [parts[p] for p in _PART_NAMES]
    figure = go.Figure(
        go.Waterfall(
            x=[*names, "change of equity"], y=[*values, total], measure=["relative"] * len(values) + ["total"],
            text=[f"{v:+,.0f}" for v in [*values, total]], textposition="outside", cliponaxis=False,
            increasing={"marker": {"color": GAIN}}, decreasing={"marker": {"color": LOSS}},
            totals={"marker": {"color": STRATEGY}}, connector={"line": {"color": "#c9ced6"}},
        )
    )  # fmt: skip
    figure.update_yaxes(title_text="USDT", tickformat=",.0f")
    return _json(figure.update_layout(showlegend=False), 380)


def symbol_chart(by_symbol: dict[str, dict[str, float]]) -> str:
    """Return the net result of each symbol, best first."""
    names = [s.removesuffix("USDT") for s in by_symbol]
    net = [round(row["net"], 1) for row in by_symbol.values()]
    text = [f"{row['count']:.0f} positions, {100 * row['win_rate']:.0f} % won" for row in by_symbol.values()]
    colours = [GAIN if v >= 0 else LOSS for v in net]
    figure = go.Figure(go.Bar(x=names, y=net, marker={"color": colours}, hovertext=text))
    figure.update_yaxes(title_text="net result, USDT", tickformat=",.0f")
    figure.update_xaxes(tickangle=-60, tickfont={"size": 11})
    return _json(figure.update_layout(showlegend=False, hovermode="closest"), 360)


def rank_ic_chart(ts: list[str], values: list[float], window: int) -> str:
    """Return the model's RankIC per bar as its rolling mean over ``window`` bars, and its running sum."""
    series = pd.Series(values, dtype=float)
    k = _stride(len(series))
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    rolling = np.asarray(series.rolling(window, min_periods=max(window // 4, 1)).mean(), dtype=np.float64)
    figure.add_trace(_line(ts[::k], rolling[::k], f"mean of {window} bars", STRATEGY, 1.8, 4))
    total = _line(
        ts[::k], np.asarray(series.fillna(0.0).cumsum(), dtype=np.float64)[::k], "running sum (right)", BASKET, 1.2, 3
    )
    figure.add_trace(total, secondary_y=True)
    figure.add_hline(y=0.0, line={"color": "#9aa2ad", "width": 1, "dash": "dash"})
    figure.update_yaxes(title_text="RankIC", secondary_y=False)
    figure.update_yaxes(showgrid=False, secondary_y=True)
    return _json(figure, 320)


def candle_chart(panel: MarketPanel, result: BacktestResult, symbol: str, most_bars: int = 500) -> str:
    """Return the candles of ``symbol`` up to its last fill, with every entry and exit on them."""
    column, j = result.symbols.index(symbol), panel.symbols.index(symbol)
    bars = result.fills["bar"][result.fills["symbol"] == column]
    stop = min(int(bars.max(initial=0)) + most_bars // 25 + 1, result.ts_open.size)
    first = max(stop - most_bars, 0)
    rows = np.searchsorted(panel.ts_open, result.ts_open[first:stop])
    x = _times(result.ts_open[first:stop])
    prices = {name: _significant(getattr(panel, name)[rows, j]) for name in ("open", "high", "low", "close")}
    figure = go.Figure(
        go.Candlestick(
            x=x, **prices, name=symbol, increasing={"line": {"color": "#8fbf9f", "width": 1}},
            decreasing={"line": {"color": "#dca09a", "width": 1}}, showlegend=False,
        )
    )  # fmt: skip
    fills = result.fills_frame()[(result.fills["symbol"] == column) & (result.fills["bar"] >= first)]
    for name, is_entry, marker in (("entry", True, "triangle"), ("exit", False, "x-thin-open")):
        for side, sign, colour in (("buy", 1, STRATEGY), ("sell", -1, LOSS)):
            chosen = fills[((fills["reason"] == "entry") == is_entry) & (np.sign(fills["lots"]) == sign)]
            if chosen.empty:
                continue
            shape = f"triangle-{'up' if sign > 0 else 'down'}" if marker == "triangle" else marker
            text = [f"{r}: {side} {abs(n):,} lots" for r, n in zip(chosen["reason"], chosen["lots"], strict=True)]
            figure.add_trace(
                go.Scatter(
                    x=chosen["ts"].dt.strftime("%Y-%m-%d %H:%M"), y=_significant(chosen["price"].to_numpy()),
                    mode="markers", name=f"{name}, {side}", hovertext=text,
                    marker={"symbol": shape, "size": 11, "color": colour, "line": {"width": 2, "color": colour}},
                )
            )  # fmt: skip
    figure.update_layout(xaxis_rangeslider_visible=False, hovermode="closest")
    return _json(figure, 400)


def _json(figure: Any, height: int) -> str:
    figure.update_layout(**_LAYOUT, height=height)
    figure.update_yaxes(title_font_size=12)
    # "</" would end the script element the JSON is put into
    return str(figure.to_json()).replace("</", "<\\/")

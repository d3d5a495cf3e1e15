"""The interactive charts of the report page, as plain plotly figures in JSON. Each function answers one question.

Figures are built as dictionaries: plotly's Python classes check every number again, which takes longer than the backtest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson
import pandas as pd

from crypto_qlib.analytics.performance import drawdown
from crypto_qlib.analytics.trading import over_equity
from crypto_qlib.backtest.performance_report import Curves
from crypto_qlib.backtest.report_pictures import BASKET, BTC_COLOUR, GAIN, LOSS, MARGIN_COLOUR, STRATEGY
from crypto_qlib.backtest.report_words import signed
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.backtest.what_if import CapacityPoint, RuinPoint
from crypto_qlib.core.market import FloatArray, IntArray, MarketPanel

Figure = dict[str, Any]

MOST_POINTS: Final = 2_500
"""Points of one line; longer series show every k-th bar (and the deepest drawdown within)."""
_PART_NAMES: Final = {
    "signal": "signal",
    "market": "market (beta)",
    "slippage": "slippage",
    "fees": "fees",
    "funding": "funding",
    "liquidation": "liquidation",
}
_AXIS: Final = {
    "gridcolor": "#e9ecf1", "zerolinecolor": "#cfd5dd", "linecolor": "#cfd5dd", "automargin": True,
    "title": {"font": {"size": 12}},
}  # fmt: skip
_LAYOUT: Final = {
    "template": {"layout": {"xaxis": _AXIS, "yaxis": _AXIS}},
    "font": {"family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "size": 13, "color": "#26303b"},
    "margin": {"l": 64, "r": 24, "t": 28, "b": 40},
    "hovermode": "x unified",
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#b4bcc6", "activecolor": "#0072b2"},
}
_LOWER: Final = {"xaxis": "x2", "yaxis": "y2"}


def _times(ts_ns: IntArray) -> Any:
    return pd.to_datetime(ts_ns, utc=True).strftime("%Y-%m-%d %H:%M").to_list()


def _stride(n: int) -> int:
    return max(1, -(-n // MOST_POINTS))


def _rounded(values: FloatArray, digits: int) -> list[float | None]:
    return [None if not np.isfinite(v) else round(float(v), digits) for v in values]


def _significant(values: FloatArray) -> list[float | None]:
    return [None if not np.isfinite(v) else float(f"{v:.6g}") for v in values]


def _line(x: Any, y: FloatArray, name: str, colour: str, width: float = 1.4, digits: int = 1) -> dict[str, Any]:
    line = {"color": colour, "width": width}
    return {"type": "scatter", "x": x, "y": _rounded(y, digits), "name": name, "mode": "lines", "line": line}


def _two_rows(upper: float, y1: str, y2: str, **first: Any) -> dict[str, Any]:
    """Return axes of two charts above each other with one time axis; ``upper`` is the upper one's share of the height."""
    return {
        "xaxis": {"anchor": "y", "matches": "x2", "showticklabels": False},
        "xaxis2": {"anchor": "y2"},
        "yaxis": {"domain": [1.0 - upper, 1.0], "title": {"text": y1}, **first},
        "yaxis2": {"domain": [0.0, 0.95 - upper], "title": {"text": y2}},
    }


def equity_chart(curves: Curves) -> str:
    """Return equity against both benchmarks, with the drawdown below."""
    k = _stride(curves.ts_ns.size)
    keep = np.unique(np.append(np.arange(0, curves.ts_ns.size, k), curves.ts_ns.size - 1))
    x = _times(curves.ts_ns[keep])
    traces = [_line(x, curves.btc[keep], "BTC bought and held", BTC_COLOUR)] if np.isfinite(curves.btc).any() else []
    traces.append(_line(x, curves.equal_weight[keep], "equal-weight universe, held", BASKET))
    traces.append(_line(x, curves.equity[keep], "strategy, after all costs", STRATEGY, 2.4))
    depth = -100.0 * np.maximum.reduceat(drawdown(curves.equity), keep)
    fall = {"fill": "tozeroy", "fillcolor": "rgba(213,94,0,0.22)", "showlegend": False}
    traces.append(_line(x, depth, "drawdown %", LOSS, 1.0, 2) | fall | _LOWER)
    return _json(traces, _two_rows(0.72, "USDT", "drawdown, %", tickformat=",.0f"), 480)


def exposure_chart(result: BacktestResult) -> str:
    """Return long, short and net exposure over equity, with the open positions and the margin in use below."""
    s = result.series
    k = _stride(s.size)
    x = _times(result.ts_close[::k])
    longs, shorts = 0.5 * (s["gross"] + s["net"]), 0.5 * (s["net"] - s["gross"])
    traces = []
    for values, name, colour, shade in (
        (longs, "long", STRATEGY, "rgba(0,114,178,0.25)"),
        (shorts, "short", LOSS, "rgba(213,94,0,0.25)"),
    ):
        line = _line(x, 100.0 * over_equity(values, s["equity"])[::k], name, colour, 1.0, 2)
        traces.append(line | {"fill": "tozeroy", "fillcolor": shade})
    traces.append(_line(x, 100.0 * over_equity(s["net"], s["equity"])[::k], "net", "#2c3e50", 1.4, 2))
    held = _line(x, s["n_open"][::k].astype(np.float64), "open positions", STRATEGY, 1.2, 0)
    held["line"]["shape"] = "hv"
    traces.append(held | {"fill": "tozeroy", "fillcolor": "rgba(0,114,178,0.15)"} | _LOWER)
    margin = _line(
        x, 100.0 * over_equity(s["used_margin"], s["equity"])[::k], "margin in use, % (right)", MARGIN_COLOUR, 1.2, 2
    )
    traces.append(margin | {"xaxis": "x2", "yaxis": "y3"})
    layout = _two_rows(0.6, "% of equity", "positions")
    layout["yaxis2"]["rangemode"] = "tozero"
    layout["yaxis3"] = {
        "overlaying": "y2", "side": "right", "anchor": "x2", "title": {"text": "margin, %"}, "rangemode": "tozero",
        "showgrid": False,
    }  # fmt: skip
    return _json(traces, layout, 460)


def distance_chart(result: BacktestResult, distance: FloatArray) -> str:
    """Return the distance to liquidation at each close: of the nearest position, or of the whole cross account."""
    k = _stride(distance.size)
    nearest = 100.0 * np.fmin.reduceat(distance, np.arange(0, distance.size, k))
    name = "all marks together against the account" if result.rules.cross else "nearest position"
    line = _line(_times(result.ts_close[::k]), nearest, name, LOSS, 1.1, 2)
    axes = {"yaxis": {"title": {"text": "% of the mark"}, "rangemode": "tozero"}, "showlegend": False}
    return _json([line], axes, 260)


def capacity_chart(points: Sequence[CapacityPoint]) -> str:
    """Return annual return by capital, with the money earned a year."""
    x = [p.capital for p in points]
    growth = _line(x, np.array([100.0 * p.annual_return for p in points]), "annual return, %", STRATEGY, 2.0, 2)
    profit = _line(x, np.array([p.annual_profit for p in points]), "profit a year, USDT (right)", GAIN, 1.6, 0)
    for trace in (growth, profit):
        trace["mode"] = "lines+markers"
    profit["line"]["dash"] = "dot"
    axes = {
        "xaxis": {"type": "log", "title": {"text": "starting capital, USDT"}, "dtick": 1},
        "yaxis": {"title": {"text": "% a year"}, "zerolinecolor": "#9aa2ad"},
        "yaxis2": {
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "title": {"text": "USDT a year"},
            "tickformat": "~s",
            "zeroline": False,
        },
    }
    return _json([growth, profit | {"yaxis": "y2"}], axes, 320)


def ruin_chart(points: Sequence[RuinPoint]) -> str:
    """Return the chances of ruin over the horizon by the multiple of the strategy's exposure."""
    x = [f"{p.multiple:g}\u00d7" for p in points]
    shades = (BTC_COLOUR, LOSS, "#7a2e00")
    traces = [
        _line(x, np.array([100.0 * p.odds.drawdown[d] for p in points]), f"falls {100 * d:.0f} % from a peak", colour, 1.8, 2)
        for d, colour in zip(points[0].odds.drawdown, shades, strict=False)
    ]
    hit = _line(x, np.array([100.0 * p.odds.liquidation for p in points]), "any position liquidated", MARGIN_COLOUR, 1.8, 2)
    hit["line"]["dash"] = "dot"
    for trace in (*traces, hit):
        trace["mode"] = "lines+markers"
    axes = {
        "xaxis": {"type": "category", "title": {"text": "multiple of the strategy's exposure"}},
        "yaxis": {"title": {"text": f"chance in {points[0].odds.horizon_days} days, %"}, "range": [-2, 102]},
    }
    return _json([*traces, hit], axes, 320)


def attribution_chart(parts: dict[str, float], total: float) -> str:
    """Return a waterfall from the signed parts to the change of equity."""
    names, values = [_PART_NAMES[p] for p in _PART_NAMES], [parts[p] for p in _PART_NAMES]
    bars = {
        "type": "waterfall", "x": [*names, "change of equity"], "y": [*values, total],
        "measure": ["relative"] * len(values) + ["total"], "text": [signed(v) for v in [*values, total]],
        "textposition": "outside", "cliponaxis": False, "increasing": {"marker": {"color": GAIN}},
        "decreasing": {"marker": {"color": LOSS}}, "totals": {"marker": {"color": STRATEGY}},
        "connector": {"line": {"color": "#c9ced6"}},
    }  # fmt: skip
    return _json([bars], {"yaxis": {"title": {"text": "USDT"}, "tickformat": ",.0f"}, "showlegend": False}, 380)


def symbol_chart(by_symbol: dict[str, dict[str, float]]) -> str:
    """Return the net result of each symbol, best first."""
    net = [round(row["net"], 1) for row in by_symbol.values()]
    bars = {
        "type": "bar", "x": [s.removesuffix("USDT") for s in by_symbol], "y": net,
        "marker": {"color": [GAIN if v >= 0 else LOSS for v in net]},
        "hovertext": [f"{row['count']:.0f} positions, {100 * row['win_rate']:.0f} % won" for row in by_symbol.values()],
    }  # fmt: skip
    axes = {
        "yaxis": {"title": {"text": "net result, USDT"}, "tickformat": ",.0f"},
        "xaxis": {"tickangle": -60, "tickfont": {"size": 11}, "type": "category"},
    }
    return _json([bars], {**axes, "showlegend": False, "hovermode": "closest"}, 360)


def rank_ic_chart(ts: list[str], values: list[float], window: int) -> str:
    """Return the model's RankIC per bar as its rolling mean over ``window`` bars, and its running sum."""
    series = pd.Series(values, dtype=float)
    k = _stride(len(series))
    rolling = np.asarray(series.rolling(window, min_periods=max(window // 4, 1)).mean(), dtype=np.float64)
    total = np.asarray(series.fillna(0.0).cumsum(), dtype=np.float64)
    traces = [
        _line(ts[::k], rolling[::k], f"mean of {window} bars", STRATEGY, 1.8, 4),
        _line(ts[::k], total[::k], "running sum (right)", BASKET, 1.2, 3) | {"yaxis": "y2"},
    ]
    axes = {
        "yaxis": {"title": {"text": "RankIC"}, "zerolinecolor": "#9aa2ad"},
        "yaxis2": {"overlaying": "y", "side": "right", "showgrid": False},
    }
    return _json(traces, axes, 320)


def candle_chart(panel: MarketPanel, result: BacktestResult, symbol: str, most_bars: int = 500) -> str:
    """Return the candles of ``symbol`` up to its last fill, with every entry and exit on them and each trade as a line."""
    column, j = result.symbols.index(symbol), panel.symbols.index(symbol)
    bars = result.fills["bar"][result.fills["symbol"] == column]
    stop = min(int(bars.max(initial=0)) + most_bars // 25 + 1, result.ts_open.size)
    first = max(stop - most_bars, 0)
    rows = np.searchsorted(panel.ts_open, result.ts_open[first:stop])
    prices = {name: _significant(getattr(panel, name)[rows, j]) for name in ("open", "high", "low", "close")}
    traces: list[dict[str, Any]] = [
        {"type": "candlestick", "x": _times(result.ts_open[first:stop]), **prices, "name": symbol, "showlegend": False,
         "increasing": {"line": {"color": "#7fc4b0", "width": 1}}, "decreasing": {"line": {"color": "#e8b48c", "width": 1}}}
    ]  # fmt: skip
    traces += _trade_lines(result, column, first)
    fills = result.fills_frame()[(result.fills["symbol"] == column) & (result.fills["bar"] >= first)]
    for name, is_entry in (("entry", True), ("exit", False)):
        for side, sign, colour in (("buy", 1, STRATEGY), ("sell", -1, LOSS)):
            chosen = fills[((fills["reason"] == "entry") == is_entry) & (np.sign(fills["lots"]) == sign)]
            if chosen.empty:
                continue
            shape = f"triangle-{'up' if sign > 0 else 'down'}" if is_entry else "x-thin-open"
            reasons = chosen["reason"].str.replace("_", " ")
            traces.append(
                {"type": "scatter", "mode": "markers", "name": f"{name}, {side}",
                 "x": chosen["ts"].dt.strftime("%Y-%m-%d %H:%M").to_list(), "y": _significant(chosen["price"].to_numpy()),
                 "hovertext": [f"{r}: {side} {abs(n):,} lots" for r, n in zip(reasons, chosen["lots"], strict=True)],
                 "marker": {"symbol": shape, "size": 11, "color": colour, "line": {"width": 2, "color": colour}}}
            )  # fmt: skip
    axes = {"xaxis": {"rangeslider": {"visible": False}}, "yaxis": {"title": {"text": "USDT"}}, "hovermode": "closest"}
    return _json(traces, axes, 400)


def _trade_lines(result: BacktestResult, column: int, first: int) -> list[dict[str, Any]]:
    """Return one trace of winning and one of losing trades as lines from entry to exit."""
    t = result.trades[(result.trades["symbol"] == column) & (result.trades["entry_bar"] >= first)]
    won = t["pnl"] - t["fee"] + t["funding"] - t["penalty"] + t["overshoot"] > 0.0
    traces = []
    for name, rows, colour in (("trade, gained", t[won], GAIN), ("trade, lost", t[~won], LOSS)):
        x: list[str | None] = []
        y: list[float | None] = []
        times = zip(_times(result.ts_open[rows["entry_bar"]]), _times(result.ts_open[rows["exit_bar"]]), strict=True)
        for (start, end), entry, out in zip(times, rows["entry_price"].tolist(), rows["exit_price"].tolist(), strict=True):
            x += [start, end, None]
            y += [entry, out, None]
        if x:
            line = {"color": colour, "width": 1.6, "dash": "dot"}
            traces.append({"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": line, "hoverinfo": "skip"})
    return traces


def _json(traces: list[dict[str, Any]], layout: Figure, height: int) -> str:
    figure = {"data": traces, "layout": {**_LAYOUT, **layout, "height": height}}
    # "</" would end the script element the JSON is put into
    return orjson.dumps(figure, option=orjson.OPT_SERIALIZE_NUMPY).decode().replace("</", "<\\/")

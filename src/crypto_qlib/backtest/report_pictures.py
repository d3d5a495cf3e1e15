"""The two still pictures of a report: profit and loss over time, and the exposure of every symbol over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.dates
import numpy as np
from matplotlib.figure import Figure

from crypto_qlib.analytics.performance import drawdown
from crypto_qlib.backtest.performance_report import Curves
from crypto_qlib.backtest.result import BacktestResult

_DATES: Final[Any] = matplotlib.dates
STRATEGY: Final = "#0072b2"
LOSS: Final = "#d55e00"
GAIN: Final = "#009e73"
BTC_COLOUR: Final = "#e69f00"
BASKET: Final = "#7f8c8d"
MARGIN_COLOUR: Final = "#9b5c8f"
"""Told apart by the colour-blind too (after Okabe & Ito); signs and words say the same as the colours everywhere."""
_STYLE: Final[Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8ec",
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa2ad",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
_LEGEND_ABOVE: Final[Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.985), "ncols": 3}
_MOST_SYMBOLS: Final = 40
_MOST_COLUMNS: Final = 1_500
_MOST_POINTS: Final = 10_000
"""More than a picture 1,440 pixels wide can show."""


def _times(ts_ns: Any) -> Any:
    return ts_ns.astype("datetime64[ns]")


def _figure(height: float, shares: list[float], right: float = 0.985) -> tuple[Any, Any]:
    """Return a figure 12 inches wide and its panels above each other; margins are set, for solving them takes a second."""
    figure: Any = Figure(figsize=(12, height), dpi=120)
    margins = {"left": 0.085, "right": right, "top": 1.0 - 0.72 / height, "bottom": 0.48 / height}
    gap = 0.22 * len(shares) / (height - 1.2)
    return figure, figure.subplots(len(shares), 1, sharex=True, gridspec_kw={"height_ratios": shares, "hspace": gap, **margins})


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, pil_kwargs={"compress_level": 3})


def _kept(n: int) -> Any:
    """Return which of ``n`` points are drawn: all up to some thousands, else every k-th and the last."""
    return np.unique(np.append(np.arange(0, n, -(-n // _MOST_POINTS)), n - 1))


def _date_axis(axes: Any) -> None:
    locator = _DATES.AutoDateLocator(minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(_DATES.ConciseDateFormatter(locator))


def _footer(figure: Any, text: str) -> None:
    figure.text(0.005, 0.006, text, ha="left", va="bottom", fontsize=7.5, color="#8a929c")


def draw_pnl_curve(curves: Curves, result: BacktestResult, title: str, footer: str, path: Path) -> None:
    """Draw equity against both benchmarks, the fall from the peak, and the number of open positions.

    Parameters
    ----------
    curves : Curves
        Equity and benchmarks.
    result : BacktestResult
        For the open positions.
    title, footer : str
        What it is; run identity in small print.
    path : Path
        PNG to write.
    """
    with mpl.rc_context(_STYLE):
        figure, (top, middle, bottom) = _figure(8.0, [3.2, 1.1, 0.8])
        kept = _kept(curves.ts_ns.size)
        ts = _times(curves.ts_ns[kept])
        top.plot(ts, curves.btc[kept], color=BTC_COLOUR, lw=1.1, alpha=0.9, label="BTC bought and held")
        top.plot(ts, curves.equal_weight[kept], color=BASKET, lw=1.1, alpha=0.9, label="equal-weight universe, held")
        top.plot(ts, curves.equity[kept], color=STRATEGY, lw=1.9, label="strategy, after all costs")
        top.axhline(result.initial_equity, color="#9aa2ad", lw=0.8, ls="--")
        top.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        top.set_ylabel("equity, USDT")
        top.set_title(title, pad=26)
        top.legend(**_LEGEND_ABOVE)
        depth = -100.0 * np.maximum.reduceat(drawdown(curves.equity), kept)
        middle.fill_between(ts, depth, 0.0, color=LOSS, alpha=0.35, lw=0)
        middle.plot(ts, depth, color=LOSS, lw=0.8)
        middle.set_ylabel("drawdown, %")
        kept = _kept(result.ts_close.size)
        held = result.series["n_open"][kept]
        bottom.fill_between(_times(result.ts_close[kept]), held, step="post", color=STRATEGY, alpha=0.3, lw=0)
        bottom.set_ylabel("open positions")
        bottom.set_ylim(0, max(int(held.max(initial=0)), 1) * 1.15)
        _date_axis(bottom)
        _footer(figure, footer)
        _save(figure, path)


def draw_exposure_history(result: BacktestResult, title: str, footer: str, path: Path) -> None:
    """Draw gross and net exposure, and a map of every symbol's signed notional over equity through time.

    At most 40 symbols, those with the largest mean exposure; blue is long, red is short.

    Parameters
    ----------
    result : BacktestResult
        Run with its exposure kept.
    title, footer, path
        As in :func:`draw_pnl_curve`.
    """
    with mpl.rc_context(_STYLE):
        equity = np.where(result.equity > 0.0, result.equity, np.nan)
        share = 100.0 * result.exposure / equity[:, None]
        order = np.argsort(-np.nan_to_num(np.abs(share)).mean(axis=0), kind="stable")
        order = order[np.nan_to_num(np.abs(share)).max(axis=0, initial=0.0)[order] > 0.0][:_MOST_SYMBOLS]
        rows = max(len(order), 1)
        figure, (top, bottom) = _figure(3.6 + 0.21 * max(rows, 8), [2.4, 0.21 * max(rows, 8) + 0.6], right=0.915)
        kept = _kept(result.ts_close.size)
        ts = _times(result.ts_close[kept])
        longs, shorts = (part(share[kept], 0.0).sum(axis=1) for part in (np.maximum, np.minimum))
        top.fill_between(ts, longs, color=STRATEGY, alpha=0.35, lw=0, label="long")
        top.fill_between(ts, shorts, color=LOSS, alpha=0.35, lw=0, label="short")
        top.plot(ts, longs + shorts, color="#2c3e50", lw=0.7, label="net")
        top.set_ylabel("% of equity")
        top.set_title(title, pad=26)
        top.legend(**_LEGEND_ABOVE)
        step = max(1, -(-share.shape[0] // _MOST_COLUMNS))
        shown = share[::step][:, order].T
        bound = float(np.nanpercentile(np.abs(shown[shown != 0.0]), 98)) if np.any(shown) else 1.0
        edges = [_DATES.date2num(ts[0]), _DATES.date2num(ts[-1]), len(order) - 0.5, -0.5]
        picture = bottom.imshow(
            shown, aspect="auto", cmap="RdBu", vmin=-bound, vmax=bound, extent=edges, interpolation="nearest"
        ) if len(order) else None  # fmt: skip
        bottom.set_yticks(range(len(order)), [result.symbols[j].removesuffix("USDT") for j in order], fontsize=8.5)
        bottom.grid(visible=False)
        bottom.set_ylabel("symbols, most used first")
        if picture is not None:
            box = bottom.get_position()
            scale = figure.add_axes((0.925, box.y0 + 0.15 * box.height, 0.014, 0.7 * box.height))
            figure.colorbar(picture, cax=scale, label="signed notional, % of equity (+ long)")
        _date_axis(bottom)
        _footer(figure, footer)
        _save(figure, path)

"""The one self-contained HTML page: everything inline, opens anywhere, sends nothing.

The chart library is most of the page; it is put in compressed (4.9 MB become 2.3 MB) and unpacked by the browser.
"""

from __future__ import annotations

import base64
import math
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from crypto_qlib.backtest import report_charts as charts
from crypto_qlib.backtest import report_tables as tables
from crypto_qlib.backtest import report_words as words
from crypto_qlib.backtest.performance_report import Curves
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.backtest.what_if import WhatIf
from crypto_qlib.core.market import MarketPanel

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CANDLE_SYMBOLS: Final = 3


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


@lru_cache(maxsize=1)
def packed_plotly() -> str:
    """Return plotly's script compressed (zlib) and in base64; :func:`zlib.decompress` gives the script again."""
    return base64.b64encode(zlib.compress(get_plotlyjs().encode(), 3)).decode()


def build_page(
    result: BacktestResult,
    panel: MarketPanel,
    curves: Curves,
    performance: dict[str, Any],
    settings: dict[str, Any],
    rank_ic: tuple[list[str], list[float]] | None,
    study: WhatIf | None = None,
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
    study : WhatIf | None
        Capacity, ruin and the distance to liquidation.
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
    if study is not None:
        chart_json["capacity"] = charts.capacity_chart(study.capacity)
        chart_json["ruin"] = charts.ruin_chart(study.ruin)
        if np.isfinite(study.distance).any():
            chart_json["distance"] = charts.distance_chart(result, study.distance)
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
        monthly=tables.monthly_returns(curves),
        shade=tables.shade,
        percent=words.percent,
        chance=words.chance,
        money=words.money,
        number=words.number,
        isfinite=math.isfinite,
        trades=tables.trade_rows(result),
        vetoes=tables.veto_rows(result),
        n_vetoes_kept=int(result.vetoes.shape[0]),
        ambiguous=tables.ambiguous_rows(result),
        study=study,
        n_trades=int(result.trades.size),
        candles=candles,
        chart_json=chart_json,
        settings_rows=_flat(settings),
        identity_rows=_flat(performance["run"]),
        plotly_packed=packed_plotly(),
    )


def write_page(html: str, path: Path) -> Path:
    """Write the page and return its path."""
    path.write_text(html, encoding="utf-8")
    return path

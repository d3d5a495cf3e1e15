"""The model report for people: one small self-contained HTML page with the figures of ``model_performance_report.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from crypto_qlib.analytics.ic import IcSummary
from crypto_qlib.modeling.evaluate_model import ModelPerformance, SymbolPerformance
from crypto_qlib.modeling.evaluation_details import EvaluationDetails
from crypto_qlib.store.parquet_file import write_atomic

FloatArray = npt.NDArray[np.float64]

PAGE_FILE: Final = "model_report.html"
SURE: Final = 2.0
"""Standard errors from zero at which a bar is drawn dark."""
_LEFT, _RIGHT = 140.0, 430.0
_RELIABILITY_BINS: Final = 10
_IMPORTANT: Final = 15
_MOST_PATHS: Final = 16
_QUANTILES: Final = {"worst": 0.0, "worst tenth": 0.1, "median": 0.5, "best tenth": 0.9, "best": 1.0}


def write_page(
    performance: ModelPerformance,
    details: EvaluationDetails,
    reliability: tuple[FloatArray, FloatArray, FloatArray],
    folder: Path,
    words: Mapping[str, Any],
) -> Path:
    """Write ``model_report.html`` into ``folder`` and return its path.

    Parameters
    ----------
    performance, details : ModelPerformance, EvaluationDetails
        What to show.
    reliability : tuple of (n_bins,) float64
        Mean predicted probability, observed frequency, number of scores of each bin; see :func:`reliability_bins`.
    folder : Path
        Created if absent.
    words : mapping
        ``title``, ``market``, ``run``, ``importance`` (feature -> number, may be empty), and, where the settings were tried on
        combinatorial purged paths, ``paths``: what :meth:`~crypto_qlib.modeling.purged_paths.PurgedPaths.to_json` gives; where
        the scores were traded in a backtest, ``portfolio``: its ``run_id``, ``total_return``, ``sharpe``, ``max_drawdown``,
        ``mean_return_per_bar``, ``probability_sharpe_above_zero``, ``trades``, ``turnover_per_year``, ``fees`` and
        ``liquidations``.
    """
    env = Environment(
        loader=PackageLoader("crypto_qlib.modeling", "templates"),
        autoescape=select_autoescape(["j2"]),
        undefined=StrictUndefined,
    )
    low, high, points = _reliability(reliability)
    page = env.get_template("model_report.html.j2").render(
        title=words["title"],
        market=words["market"],
        run=words["run"],
        first=performance.first_bar_known,
        last=performance.last_bar_known,
        horizon=performance.horizon_bars,
        cards=_cards(performance, details),
        charts=_charts(details),
        reliability=points,
        reliability_from=f"{low:.2f}",
        reliability_to=f"{high:.2f}",
        symbols=[_symbol_row(s) for s in performance.symbols],
        importance=_importance(words["importance"]),
        paths=_path_charts(words.get("paths")),
        portfolio=_portfolio(words.get("portfolio")),
    )
    write_atomic(folder / PAGE_FILE, page.encode())
    return folder / PAGE_FILE


def reliability_bins(
    probability: FloatArray, won: FloatArray, n_bins: int = _RELIABILITY_BINS
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (mean probability, observed frequency, count) of equal-count bins, shape ``(n_bins,)`` each; fewer if few pairs.

    Parameters
    ----------
    probability, won : (n,) float64
        Predicted probability and 1.0 or 0.0; pairs with NaN are left out.
    n_bins : int
        Bins.
    """
    both = np.isfinite(probability) & np.isfinite(won)
    p, y = probability[both], won[both]
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), n_bins) if part.size]
    return (
        np.array([p[part].mean() for part in parts]),
        np.array([y[part].mean() for part in parts]),
        np.array([float(part.size) for part in parts]),
    )


def _symbol_row(s: SymbolPerformance) -> dict[str, Any]:
    figures = {name: _number(getattr(s, name)) for name in ("ic", "rank_ic")}
    hits = f"{s.hit_ratio:.3f}" if math.isfinite(s.hit_ratio) else "none"
    return {"symbol": s.symbol, "n_bars": s.n_bars, **figures, "hit_ratio": hits}


def _number(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}" if math.isfinite(value) else "none"


def _cards(p: ModelPerformance, d: EvaluationDetails) -> list[dict[str, str]]:
    def one(name: str, s: IcSummary) -> dict[str, str]:
        return {"name": name, "value": _number(s.mean), "note": f"± {s.standard_error:.3f}, t = {_number(s.t_stat, 1)}"}

    return [
        one("RankIC", p.rank_ic),
        one("IC", p.ic),
        one("best less worst fifth", p.quantile_spread),
        {"name": "hit ratio", "value": f"{p.hit_ratio:.3f}", "note": f"{p.n_pairs:,} scores"},
        {"name": "calibration error", "value": f"{p.calibration_error:.3f}", "note": "of the win probability"},
        {"name": "return slope", "value": _number(p.return_slope, 2), "note": "1 = expected returns keep their word"},
        {"name": "rank turnover", "value": _number(d.rank_turnover, 2), "note": "from bar to bar; 0 = never changes"},
    ]


def _charts(d: EvaluationDetails) -> list[dict[str, Any]]:
    names = ("worst", "2nd", "3rd", "4th", "best")
    return [
        bar_chart("RankIC by horizon", "bars ahead", {f"{h} bars": s for h, s in d.decay.items()}),
        bar_chart(
            "Return by fifth of the scores", "excess return over the horizon", dict(zip(names, d.quantiles, strict=True))
        ),
        bar_chart("Against simple rules", "RankIC on the same bars", d.baselines),
        bar_chart("By market regime", "RankIC; a third of all bars each", d.by_regime),
        bar_chart("By the coin's volatility", "RankIC within each third of the coins", d.by_volatility),
        bar_chart("Return of the k strongest", "before costs", {f"top {k}": gain for k, (_, gain) in d.precision.items()}),
        bar_chart("By hour", "RankIC, UTC", {f"{h:02d}:00": s for h, s in d.by_hour.items()}),
    ]


def bar_chart(title: str, note: str, rows: Mapping[str, IcSummary]) -> dict[str, Any]:
    """Return the geometry of a horizontal bar chart with whiskers of two standard errors, for the template."""
    known = [s for s in rows.values() if math.isfinite(s.mean)]
    reach = [abs(s.mean) + SURE * (s.standard_error if math.isfinite(s.standard_error) else 0.0) for s in known]
    most = max(reach, default=0.0) or 1.0
    has_negative = any(s.mean - SURE * s.standard_error < 0.0 for s in known)
    zero = (_LEFT + _RIGHT) / 2.0 if has_negative else _LEFT
    unit = (_RIGHT - zero) / most

    def place(value: float) -> float:
        return round(min(max(zero + value * unit, _LEFT), _RIGHT), 1)

    drawn: list[dict[str, Any]] = []
    for label, s in rows.items():
        if not math.isfinite(s.mean):
            drawn.append({"label": label, "text": ""})
            continue
        error = s.standard_error if math.isfinite(s.standard_error) else 0.0
        a, b = sorted((place(0.0), place(s.mean)))
        drawn.append(
            {
                "label": label,
                "x": a,
                "width": round(b - a, 1),
                "low": place(s.mean - SURE * error),
                "high": place(s.mean + SURE * error),
                "is_sure": abs(s.t_stat) > SURE if math.isfinite(s.t_stat) else False,
                "text": f"{s.mean:+.4f}",
            }
        )
    return {"title": title, "note": note, "rows": drawn, "zero": round(zero, 1)}


def _importance(gain: Mapping[str, float]) -> dict[str, Any] | None:
    top = sorted(gain.items(), key=lambda item: -item[1])[:_IMPORTANT]
    total = sum(gain.values())
    if not top or total <= 0.0:
        return None
    rows = {name: IcSummary(value / total, 0.0, math.nan, 1) for name, value in top}
    return bar_chart("Importance of features", "share among the thirty strongest", rows)


def _portfolio(traded: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the cards of what the scores earned in the backtest, and the page of it relative to the artefact's folder."""
    if not traded:
        return None

    def one(name: str, value: float | None, shape: str, note: str) -> dict[str, str]:
        return {"name": name, "value": "none" if value is None else format(value, shape), "note": note}

    mean, luck = traded["mean_return_per_bar"], traded["probability_sharpe_above_zero"]
    interval = f"a bar, {mean['low'] * 1e4:+.2f} to {mean['high'] * 1e4:+.2f} bp" if mean["mean"] is not None else ""
    return {
        "page": f"../../reports/{traded['run_id']}/report.html",
        "cards": [
            one("return", traded["total_return"], "+.1%", "net of fees, slippage and funding"),
            one("Sharpe ratio", traded["sharpe"], "+.2f", "" if luck is None else f"above zero with probability {luck:.2f}"),
            one("mean return", None if mean["mean"] is None else mean["mean"] * 1e4, "+.2f", interval),
            one("deepest drawdown", traded["max_drawdown"], ".1%", ""),
            one("trades", traded["trades"], ",.0f", f"{traded['liquidations']} liquidations"),
            one("turnover", traded["turnover_per_year"], ",.0f", f"times equity a year; fees {traded['fees']:,.0f}"),
        ],
    }


def _path_charts(paths: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the page says of combinatorial purged paths: a bar a path, or quantiles where there are many."""
    if not paths:
        return None
    charts = [
        bar_chart(title, note, _path_rows([math.nan if v is None else float(v) for v in paths[name]]))
        for name, title, note in (
            ("rank_ic", "RankIC by path", "mean over all bars of the path"),
            ("sharpe", "Sharpe ratio by path", "best less worst fifth, net of costs, a year"),
        )
    ]
    words = {k: paths.get(k, "") for k in ("n_models", "n_blocks", "n_test", "until")}
    return {"charts": charts, "n": len(paths["rank_ic"]), **words}


def _path_rows(values: list[float]) -> dict[str, IcSummary]:
    known = sorted(v for v in values if math.isfinite(v))
    if len(known) <= _MOST_PATHS:
        shown = {f"path {k + 1}": v for k, v in enumerate(values)}
    else:
        shown = {name: float(np.quantile(known, q)) for name, q in _QUANTILES.items()}
    if known:
        shown["mean"] = float(np.mean(known))
    return {name: IcSummary(v, 0.0, math.nan, 1) for name, v in shown.items()}


def _reliability(bins: tuple[FloatArray, FloatArray, FloatArray]) -> tuple[float, float, list[dict[str, float]]]:
    """Return the axis limits and the points of the reliability diagram in picture units."""
    predicted, seen, count = bins
    if predicted.size == 0:
        return 0.0, 1.0, []
    error = SURE * np.sqrt(np.maximum(seen * (1.0 - seen), 1e-12) / count)
    low = max(0.0, float(min(predicted.min(), (seen - error).min())) - 0.01)
    high = min(1.0, float(max(predicted.max(), (seen + error).max())) + 0.01)
    span = max(high - low, 1e-9)

    def down(value: float) -> float:
        return round(290.0 - 280.0 * min(max((value - low) / span, 0.0), 1.0), 1)

    points = [
        {"x": round(40.0 + 290.0 * (p - low) / span, 1), "y": down(y), "low": down(y - e), "high": down(y + e)}
        for p, y, e in zip(predicted, seen, error, strict=True)
    ]
    return low, high, points

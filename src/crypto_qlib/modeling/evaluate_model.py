"""How good are the scores? IC and RankIC pooled and per symbol, hit ratio, quantile spread, calibration, all with errors.

Pooled figures are means over bars of a cross-sectional statistic; their standard errors are Newey-West with twice the
label horizon as lag, because neighbouring labels overlap.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import (
    IcSummary,
    calibration_error,
    hit_ratio,
    information_coefficients,
    quantile_spread,
    rank_information_coefficients,
    summarise,
    symbol_coefficients,
)
from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.modeling.labels import Labels

FloatArray = npt.NDArray[np.float64]

REPORT_FILE: Final = "model_performance_report.json"
LAGS_PER_HORIZON: Final = 2
"""Newey-West lags per bar of horizon: labels that overlap by up to N bars are correlated up to lag N, and Bartlett weights
with lag N would count only two thirds of that variance."""
MIN_SYMBOL_BARS: Final = 48
"""Bars a symbol needs for its own coefficients."""


@dataclass(frozen=True, slots=True)
class SymbolPerformance:
    """Correlation over time of one symbol's scores with its label."""

    symbol: str
    ic: float
    rank_ic: float
    hit_ratio: float
    n_bars: int


@dataclass(frozen=True, slots=True)
class ModelPerformance:
    """Out-of-sample quality of one set of scores.

    Parameters
    ----------
    first_bar_known, last_bar_known : str
        ISO times the first and last scored bars became known.
    horizon_bars : int
        Label horizon.
    n_pairs : int
        (bar, symbol) pairs with score and label.
    ic, rank_ic : IcSummary
        Mean per-bar cross-sectional correlation with the label.
    quantile_spread : IcSummary
        Mean per-bar return of the best fifth of symbols minus the worst fifth, over the horizon, before costs.
    hit_ratio : float
        Share of pairs in which score and forward return agree in sign.
    calibration_error : float
        Expected calibration error of the win probability.
    return_slope : float
        Slope of forward return on expected return through the origin; 1 is calibrated.
    symbols : tuple of SymbolPerformance
        Per symbol, panel order.
    """

    first_bar_known: str
    last_bar_known: str
    horizon_bars: int
    n_pairs: int
    ic: IcSummary
    rank_ic: IcSummary
    quantile_spread: IcSummary
    hit_ratio: float
    calibration_error: float
    return_slope: float
    symbols: tuple[SymbolPerformance, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that do not exist are null."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        for key in ("ic", "rank_ic", "quantile_spread"):
            plain[key]["t_stat"] = _without_nan(getattr(self, key).t_stat)
        return plain


def evaluate_model(scores: ScorePanel, labels: Labels) -> ModelPerformance:
    """Compare scores with what happened.

    Parameters
    ----------
    scores : ScorePanel
        Scores of consecutive or scattered bars of the labels' grid.
    labels : Labels
        Labels; rows without one (the last bars) are left out.

    Raises
    ------
    UserError
        If symbols differ, a score's bar is not on the labels' grid, or no pair is left.
    """
    if scores.symbols != labels.symbols:
        raise UserError("scores and labels cover different symbols")
    closes = labels.ts_open + labels.frame_ns
    rows = np.searchsorted(closes, scores.as_of_ns)
    if rows.size == 0 or rows[-1] >= closes.size or not np.array_equal(closes[rows], scores.as_of_ns):
        raise UserError("scores and labels lie on different bars")
    label, forward, realised = labels.values[rows], labels.forward_return[rows], labels.realised[rows]
    expected = np.where(np.isfinite(label), scores.expected_return, np.nan)
    pairs = np.isfinite(expected) & np.isfinite(label)
    if not pairs.any():
        raise UserError("no score has a label yet: the scored span is shorter than the horizon", "score an earlier span")
    lag = LAGS_PER_HORIZON * labels.horizon_bars
    won = np.where(np.isfinite(forward), (np.sign(expected) * forward > 0.0).astype(np.float64), np.nan)
    known = scores.as_of_ns[pairs.any(axis=1)]
    square = float(np.sum(expected[pairs] ** 2))
    return ModelPerformance(
        first_bar_known=iso(int(known[0])),
        last_bar_known=iso(int(known[-1])),
        horizon_bars=labels.horizon_bars,
        n_pairs=int(pairs.sum()),
        ic=summarise(information_coefficients(expected, label), lag),
        rank_ic=summarise(rank_information_coefficients(expected, label), lag),
        quantile_spread=summarise(quantile_spread(expected, forward), lag),
        hit_ratio=hit_ratio(expected, forward),
        calibration_error=calibration_error(scores.win_probability[pairs], won[pairs]),
        return_slope=float(np.sum(expected[pairs] * realised[pairs])) / square if square > 0.0 else math.nan,
        symbols=_by_symbol(scores.symbols, expected, label, forward),
    )


def _by_symbol(
    symbols: tuple[str, ...], expected: FloatArray, label: FloatArray, forward: FloatArray
) -> tuple[SymbolPerformance, ...]:
    ic = symbol_coefficients(expected, label, MIN_SYMBOL_BARS, ranked=False)
    rank = symbol_coefficients(expected, label, MIN_SYMBOL_BARS, ranked=True)
    counts = (np.isfinite(expected) & np.isfinite(label)).sum(axis=0)
    return tuple(
        SymbolPerformance(s, float(ic[k]), float(rank[k]), hit_ratio(expected[:, k], forward[:, k]), int(counts[k]))
        for k, s in enumerate(symbols)
    )


def rank_ic_series(scores: ScorePanel, labels: Labels) -> tuple[list[str], list[float]]:
    """Return (ISO close times, RankIC of each scored bar); bars without three (score, label) pairs are left out."""
    rows = np.searchsorted(labels.ts_open + labels.frame_ns, scores.as_of_ns)
    values = rank_information_coefficients(scores.expected_return, labels.values[rows])
    known = np.flatnonzero(np.isfinite(values))
    return [iso(int(scores.as_of_ns[k])) for k in known], [float(values[k]) for k in known]


def write_performance(
    performance: ModelPerformance, folder: Path, stamp: dict[str, Any] | None = None, details: dict[str, Any] | None = None
) -> Path:
    """Write ``model_performance_report.json`` into ``folder`` and return its path.

    Parameters
    ----------
    performance : ModelPerformance
        What to write.
    folder : Path
        Created if absent.
    stamp : dict, optional
        Identity of the run, stored under ``run``.
    details : dict, optional
        Further figures, stored under ``details``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = performance.to_json()
    if stamp is not None:
        content["run"] = stamp
    if details is not None:
        content["details"] = details
    pending = folder / f"{REPORT_FILE}.part"
    pending.write_text(json.dumps(content, indent=1, allow_nan=False))
    return pending.replace(folder / REPORT_FILE)


def _without_nan(value: Any) -> Any:
    """Return ``value`` with non-finite floats replaced by None, however deep."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return value

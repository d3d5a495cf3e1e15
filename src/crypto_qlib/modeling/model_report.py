"""Everything there is to say about a trained model out of sample, written beside its artefact: JSON and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.modeling.artefact import META_FILE, TrainedModel
from crypto_qlib.modeling.calibration import INTERVAL_LEVEL, Calibration
from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model, write_performance
from crypto_qlib.modeling.evaluation_details import evaluate_details
from crypto_qlib.modeling.evaluation_page import reliability_bins, write_page
from crypto_qlib.modeling.labels import Labels


def report_model(
    model: TrainedModel,
    scores: ScorePanel,
    panel: MarketPanel,
    labels: Labels,
    folder: Path,
    stamp: dict[str, Any],
    words: Mapping[str, Any],
) -> tuple[ModelPerformance, Path]:
    """Evaluate ``scores`` and write both reports into ``folder``; return the headline figures and the page's path.

    Parameters
    ----------
    model : TrainedModel
        Whose scores these are.
    scores : ScorePanel
        Out-of-sample scores.
    panel : MarketPanel
        The market they are about.
    labels : Labels
        The model's labels.
    folder : Path
        Artefact folder.
    stamp : dict
        Identity of the run.
    words : mapping
        ``title``, ``market``, and perhaps ``paths`` and ``portfolio``, as
        :func:`~crypto_qlib.modeling.evaluation_page.write_page` takes them.

    Raises
    ------
    UserError
        If scores, labels and market do not fit, or no score has a label yet.
    """
    performance = evaluate_model(scores, labels)
    details = evaluate_details(scores, panel, model.settings.horizon_bars, model.settings.extra_horizons)
    probability, won = outcomes(scores, labels, by_trade=model.settings.win_label == "trade")
    bins = reliability_bins(probability, won)
    extra = details.to_json() | {
        "reliability": {"predicted": list(bins[0]), "observed": list(bins[1]), "n": list(bins[2])},
        "interval": {"level": INTERVAL_LEVEL, "coverage": interval_coverage(model.calibration, scores, labels)},
    }
    extra |= {key: words[name] for name, key in (("paths", "purged_paths"), ("portfolio", "portfolio")) if words.get(name)}
    write_performance(performance, folder, stamp, extra)
    meta_file = folder / META_FILE
    importance = json.loads(meta_file.read_text())["importance"] if meta_file.is_file() else {}
    page = write_page(
        performance, details, bins, folder, {**words, "run": str(stamp.get("run_id", "")), "importance": importance}
    )
    return performance, page


def interval_coverage(calibration: Calibration, scores: ScorePanel, labels: Labels) -> float | None:
    """Return the share of realised returns inside the calibration's interval; ``None`` where there is no interval."""
    rows = np.searchsorted(labels.ts_open + labels.frame_ns, scores.as_of_ns)
    low, high = calibration.interval(scores.expected_return)
    realised = labels.realised[rows]
    known = np.isfinite(low) & np.isfinite(realised)
    return float(np.mean((realised[known] >= low[known]) & (realised[known] <= high[known]))) if known.any() else None


def outcomes(scores: ScorePanel, labels: Labels, *, by_trade: bool) -> tuple[Any, Any]:
    """Return (win probability, 1.0 or 0.0 whether it came true) of every score with an outcome, shape ``(n,)`` each.

    ``by_trade``: a win is a trade of the strategy that earned something after costs; else a right sign over the horizon.
    """
    rows = np.searchsorted(labels.ts_open + labels.frame_ns, scores.as_of_ns)
    side = np.sign(scores.expected_return)
    if by_trade:
        result = np.where(side > 0.0, labels.trade_long[rows], labels.trade_short[rows])
    else:
        result = side * labels.forward_return[rows]
    known = np.isfinite(result) & np.isfinite(scores.win_probability) & (side != 0.0)
    return scores.win_probability[known], (result[known] > 0.0).astype(np.float64)

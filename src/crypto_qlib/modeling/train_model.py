"""Train one model, calibrate it on validation, save it; score with it.

1. :func:`split_bars` cuts the grid in time order, with the purge the label's span asks for and the embargo.
2. The family learns through Qlib's ``DatasetH`` and model interface on train, and stops or chooses on validation.
3. :func:`fit_calibration` maps raw predictions to expected return and win probability on validation.
4. :func:`~crypto_qlib.modeling.artefact.save_model` writes the artefact.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel, Scores
from crypto_qlib.feature_engineering.feature_files import save_feature_frame
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.artefact import TrainedModel, save_model
from crypto_qlib.modeling.calibration import Calibration, fit_calibration
from crypto_qlib.modeling.families import ScoringModel, new_model
from crypto_qlib.modeling.labels import Labels, TradeRule
from crypto_qlib.modeling.models.per_symbol_model import PerSymbolModel
from crypto_qlib.modeling.qlib_task import BarReweighter, make_dataset
from crypto_qlib.modeling.row_batch import batch_of
from crypto_qlib.modeling.splits import Segment, TimeSplit, check_no_leak, split_bars
from crypto_qlib.modeling.stage_times import stage
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[float], None]

_LOG: Final = logging.getLogger(__name__)
_CHECK_ROWS: Final = 65_536
_FEATURES: Final = "features"
"""Folder of the features below the artefact's, while a cluster trains on them."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One training among others.

    Parameters
    ----------
    split : TimeSplit
        Its segments.
    bins : optional
        The frame as :func:`~crypto_qlib.modeling.families.frame_bins` gives it; saves time, changes no bit.
    saved : Path, optional
        Where the frame is saved; with ``settings.dask`` it is saved beside the model for the while if absent.
    """

    split: TimeSplit
    bins: Any = None
    saved: Path | None = None


def train_model(
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    folder: Path,
    *,
    identity: str = "",
    progress: Progress | None = None,
    fold: Fold | None = None,
    rule: TradeRule | None = None,
) -> TrainedModel:
    """Train, calibrate and save one model.

    Parameters
    ----------
    frame : FeatureFrame
        Features of the whole history.
    labels : Labels
        Labels on the same grid.
    settings : ModelSettings
        Family, split, hyper-parameters.
    folder : Path
        Artefact folder, created; an older artefact in it is replaced. A network's checkpoint lies there while it trains.
    identity : str
        Run id stamped into the artefact.
    progress : callable, optional
        Told the fraction of the training just finished.
    fold : Fold, optional
        Segments, and what need not be done anew; by the fractions of ``settings``, and nothing, if absent.
    rule : TradeRule, optional
        How the strategy trades, kept with the model.

    Raises
    ------
    UserError
        If the data is too short, a symbol has no row, a feature is all NaN in training or knows the label, the label does not
        vary, or a label's span touches the next segment.
    """
    fold = fold or Fold(split_bars(frame.n_bars, settings, labels.horizon_bars))
    split = fold.split
    check_no_leak(split)
    if split.horizon_bars < labels.horizon_bars:
        raise UserError(f"leak: the split leaves {split.horizon_bars} bars for labels that span {labels.horizon_bars}")
    check_rows(frame, split)
    tuned = None
    if settings.tuning.trials:
        # Optuna takes a second to import, and most trainings search nothing.
        from crypto_qlib.modeling.tuning import tune  # noqa: PLC0415

        tuned = tune(frame, labels, settings, folder, split, progress)
        settings, progress = tuned.settings, None
    if settings.per_symbol:
        predictor: ScoringModel = _fit_per_symbol(frame, labels, settings, split, progress)
    else:
        predictor = _fit(frame, labels, settings, fold, progress, folder)
    calibration = calibrated(predictor, frame, labels, settings, split.valid)
    spans = spans_of(frame, split)
    return save_model(
        TrainedModel(
            predictor, calibration, frame.names, frame.settings, settings, rule or TradeRule(), frame.frame_ns, split, spans,
            identity, sha256="", tuned=tuned,
        ),
        folder,
    )  # fmt: skip


def calibrated(
    predictor: ScoringModel, frame: FeatureFrame, labels: Labels, settings: ModelSettings, valid: Segment
) -> Calibration:
    """Return the calibration of ``predictor`` fitted on the validation segment alone."""
    batch = batch_of(frame, valid.start, valid.stop, predictor.context_bars)
    with stage("scoring validation"):
        raw = predictor.predict_batch(batch, settings.threads)
    rows = frame.row_span(valid.start, valid.stop)
    grids = (labels.realised, labels.forward_return, labels.trade_long, labels.trade_short)
    realised, forward, long_, short = (frame.at_rows(grid)[rows] for grid in grids)
    trades = (long_, short) if settings.win_label == "trade" else None
    with stage("calibration"):
        return fit_calibration(raw, realised, forward, settings.horizon_bars, trades)


def spans_of(frame: FeatureFrame, split: TimeSplit) -> dict[str, tuple[int, int]]:
    """Return the open times of each segment's first and last bar."""
    return {s.name: (int(frame.ts_open[s.start]), int(frame.ts_open[s.stop - 1])) for s in split.segments}


def _fit(
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    fold: Fold,
    progress: Progress | None,
    folder: Path | None,
) -> ScoringModel:
    weigher = BarReweighter(labels.ts_open, labels.symbols, labels.weight) if settings.sample_weight == "uniqueness" else None
    model = new_model(settings, progress, folder)
    with _seen_by_workers(frame, settings, fold.saved, folder) as saved:
        with stage("dataset"):
            dataset = make_dataset(frame, labels, fold.split, fold.bins, saved)
        model.fit(dataset, weigher)
    return model


@contextmanager
def _seen_by_workers(
    frame: FeatureFrame, settings: ModelSettings, saved: Path | None, folder: Path | None
) -> Iterator[Path | None]:
    """Yield where workers of a cluster find the frame; it is written below ``folder`` for the while if it lies nowhere yet."""
    if not settings.dask or saved is not None or folder is None:
        yield saved
        return
    own = folder / _FEATURES
    try:
        save_feature_frame(frame, own)
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _fit_per_symbol(
    frame: FeatureFrame, labels: Labels, settings: ModelSettings, split: TimeSplit, progress: Progress | None
) -> PerSymbolModel:
    """Train a model for every coin; one with too little history gets none, says why, and is never traded."""
    members: dict[str, ScoringModel] = {}
    left_out: dict[str, str] = {}
    share = 1.0 / len(frame.symbols)
    for k, symbol in enumerate(frame.symbols):
        try:
            members[symbol] = _fit(frame.of_symbol(k), labels.of_symbol(k), settings, Fold(split), None, None)
        except UserError as e:
            if e.message.startswith("leak"):
                raise
            left_out[symbol] = e.message
            _LOG.warning("%s gets no model of its own and is not traded: %s", symbol, e.message)
        if progress is not None:
            progress(share)
    return PerSymbolModel(members, left_out)


def check_rows(frame: FeatureFrame, split: TimeSplit) -> None:
    """Refuse symbols without rows and features without a value in training."""
    counts = np.bincount(frame.row_symbol, minlength=len(frame.symbols))
    if np.any(counts == 0):
        idle = ", ".join(s for s, n in zip(frame.symbols, counts, strict=True) if n == 0)
        raise UserError(f"no bars at all for {idle}", "leave them out with universe.exclude, or fetch their candles")
    rows = frame.row_span(split.train.start, split.train.stop)
    seen = np.zeros(len(frame.names), dtype=np.bool_)
    for start in range(rows.start, rows.stop, _CHECK_ROWS):
        seen |= np.isfinite(frame.values[start : min(start + _CHECK_ROWS, rows.stop)]).any(axis=0)
        if seen.all():
            return
    empty = [n for n, ok in zip(frame.names, seen, strict=True) if not ok]
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")  # noqa: PLR2004
    raise UserError(
        f"no value in the whole training segment for {shown}",
        "collect their input, or leave them out with features.exclude",
    )


def predict_scores(model: TrainedModel, frame: FeatureFrame, *, segment: str = "") -> ScorePanel:
    """Score every row of ``frame``.

    Parameters
    ----------
    model : TrainedModel
        The model.
    frame : FeatureFrame
        Features with exactly the model's columns.
    segment : str
        ``train``, ``valid`` or ``test``: only bars of that span of time; empty for all.

    Returns
    -------
    ScorePanel
        ``as_of_ns`` is each bar's close; symbols in the frame's (the panel's) order; NaN where there is no row.

    Raises
    ------
    UserError
        If the columns differ from those the model was trained on, or the segment is unknown or outside the frame.
    """
    first, stop = _bars_of(model, frame, segment)
    rows = frame.row_span(first, stop)
    raw = _predict(model, frame, first, stop, model.settings.threads)
    expected, win = model.calibration.apply(raw)
    shape = (stop - first, len(frame.symbols))
    grids = [np.full(shape, np.nan) for _ in range(3)]
    where = (frame.row_bar[rows] - first, frame.row_symbol[rows])
    grids[0][where] = expected
    grids[1][where] = win
    grids[2][where] = model.calibration.uncertainty
    return ScorePanel(frame.known_at_ns[first:stop], frame.symbols, *grids)


def predict_row(model: TrainedModel, frame: FeatureFrame) -> Scores:
    """Score the newest bar of ``frame`` on one thread; bit-equal to the last row of :func:`predict_scores`.

    ``frame`` must hold the :attr:`TrainedModel.context_bars` bars before it, where there are so many.

    Raises
    ------
    UserError
        If the columns differ from those the model was trained on.
    """
    rows = frame.row_span(frame.n_bars - 1, frame.n_bars)
    expected, win = model.calibration.apply(_predict(model, frame, frame.n_bars - 1, frame.n_bars, 1))
    grids = [np.full(len(frame.symbols), np.nan) for _ in range(3)]
    where = frame.row_symbol[rows]
    grids[0][where] = expected
    grids[1][where] = win
    grids[2][where] = model.calibration.uncertainty
    return Scores(int(frame.known_at_ns[-1]), frame.symbols, *grids)


def check_features(model: TrainedModel, frame: FeatureFrame) -> None:
    """Refuse features other than those the model was trained on.

    Raises
    ------
    UserError
        Naming those that are gone.
    """
    if frame.names != model.feature_names:
        gone = [n for n in model.feature_names if n not in set(frame.names)]
        what = f"features the model needs do not exist: {', '.join(gone[:5])}" if gone else "the feature columns differ"
        raise UserError(f"{what} (model has {len(model.feature_names)} columns, data {len(frame.names)})",
                        "build features with the model's own feature settings, or train again")  # fmt: skip


def _predict(model: TrainedModel, frame: FeatureFrame, first: int, stop: int, threads: int) -> FloatArray:
    check_features(model, frame)
    batch = batch_of(frame, first, stop, model.context_bars)
    return model.predictor.predict_batch(batch, threads) if batch.n_scored else np.empty(0)


def _bars_of(model: TrainedModel, frame: FeatureFrame, segment: str) -> tuple[int, int]:
    if not segment:
        return 0, frame.n_bars
    if segment not in model.segment_ts:
        raise UserError(f"unknown segment {segment!r}", f"one of {', '.join(model.segment_ts)}")
    first_ts, last_ts = model.segment_ts[segment]
    first, stop = np.searchsorted(frame.ts_open, (first_ts, last_ts + 1))
    if first == stop:
        raise UserError(f"the {segment} segment of the model lies outside the features at hand")
    return int(first), int(stop)

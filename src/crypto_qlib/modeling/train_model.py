"""Train one model, calibrate it on validation, save it as text with a checksum; load it and score with it.

1. :func:`split_bars` cuts the grid in time order with purge and embargo.
2. The model learns through Qlib's ``DatasetH`` and model interface on train, and stops on validation.
3. :func:`fit_calibration` maps raw predictions to expected return and win probability on validation.
4. The artefact is a folder: the model as text or JSON, ``model.json`` (features, settings, split, calibration, identity) and
   ``SHA256SUMS``. No pickle; a changed file is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel, Scores
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.calibration import Calibration, fit_calibration
from crypto_qlib.modeling.labels import Labels
from crypto_qlib.modeling.models.lightgbm_model import LightGBMModel
from crypto_qlib.modeling.models.linear_model import LinearModel
from crypto_qlib.modeling.qlib_task import make_dataset
from crypto_qlib.modeling.splits import Segment, TimeSplit, split_bars
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[float], None]

META_FILE: Final = "model.json"
SUMS_FILE: Final = "SHA256SUMS"
FORMAT: Final = 1
_CHECK_ROWS: Final = 65_536


class RowModel(Protocol):
    """What a fitted model must be able to do."""

    FILE: str

    def predict_rows(self, values: npt.NDArray[np.float32], bar: npt.NDArray[np.int64], threads: int) -> FloatArray:
        """Return raw predictions of whole bars, shape ``(n_rows,)``."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model below ``folder`` without pickle."""
        ...

    def diagnostics(self) -> dict[str, float]:
        """Return a few numbers about the fit."""
        ...

    def importance(self) -> FloatArray:
        """Return one importance per feature."""
        ...


_MODELS: Final[dict[str, Any]] = {"lightgbm": LightGBMModel, "linear": LinearModel}
"""Model families by settings name; each has ``fit predict predict_rows save load``."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A fitted, calibrated model and everything needed to use it correctly.

    Parameters
    ----------
    predictor : RowModel
        The fitted model.
    calibration : Calibration
        From raw predictions to scores.
    feature_names : tuple of str
        Columns in training order; scoring refuses any other.
    feature_settings : FeatureSettings
        What the live session must build.
    settings : ModelSettings
        How it was trained.
    frame_ns : int
        Bar length.
    split : TimeSplit
        Segments, as bar indices of the training grid.
    segment_ts : dict
        Segment name -> (first, last) decision bar's open time, nanoseconds.
    identity : str
        Run id it was trained under.
    sha256 : str
        Digest of the model file.
    """

    predictor: RowModel
    calibration: Calibration
    feature_names: tuple[str, ...]
    feature_settings: FeatureSettings
    settings: ModelSettings
    frame_ns: int
    split: TimeSplit
    segment_ts: dict[str, tuple[int, int]]
    identity: str
    sha256: str


def train_model(
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    folder: Path,
    *,
    identity: str = "",
    progress: Progress | None = None,
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
        Artefact folder, created; an older artefact in it is replaced.
    identity : str
        Run id stamped into the artefact.
    progress : callable, optional
        Told the fraction of the training just finished.

    Raises
    ------
    UserError
        If the data is too short, a symbol has no row, a feature is all NaN in training, or the label does not vary.
    """
    split = split_bars(frame.n_bars, settings)
    _check_rows(frame, split)
    dataset = make_dataset(frame, labels, split)
    model = _MODELS[settings.name](settings, progress)
    model.fit(dataset)
    rows = frame.row_span(split.valid.start, split.valid.stop)
    raw = model.predict_rows(frame.values[rows], frame.row_bar[rows].astype(np.int64), settings.threads)
    calibration = fit_calibration(
        raw, frame.at_rows(labels.values)[rows], frame.at_rows(labels.forward_return)[rows], settings.horizon_bars
    )
    spans = {s.name: (int(frame.ts_open[s.start]), int(frame.ts_open[s.stop - 1])) for s in split.segments}
    return _save(
        TrainedModel(
            model, calibration, frame.names, frame.settings, settings, frame.frame_ns, split, spans, identity, sha256=""
        ),
        folder,
    )


def _check_rows(frame: FeatureFrame, split: TimeSplit) -> None:
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


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _save(model: TrainedModel, folder: Path) -> TrainedModel:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS_FILE).unlink(missing_ok=True)  # an artefact without sums is incomplete and refused
    model.predictor.save(folder)
    sha256 = _digest(folder / model.predictor.FILE)
    meta = {
        "format": FORMAT,
        "identity": model.identity,
        "file": model.predictor.FILE,
        "frame_ns": model.frame_ns,
        "feature_names": model.feature_names,
        "feature_settings": model.feature_settings.model_dump(mode="json"),
        "settings": model.settings.model_dump(mode="json"),
        "split": {s.name: [s.start, s.stop] for s in model.split.segments},
        "segment_ts": model.segment_ts,
        "calibration": model.calibration.to_json(),
        "diagnostics": model.predictor.diagnostics(),
        "importance": _top_importance(model),
        "sha256": sha256,
    }
    (folder / META_FILE).write_text(json.dumps(meta, indent=1))
    sums = "".join(f"{_digest(folder / name)}  {name}\n" for name in (model.predictor.FILE, META_FILE))
    pending = folder / f"{SUMS_FILE}.part"
    pending.write_text(sums)
    pending.replace(folder / SUMS_FILE)
    return _with_digest(model, sha256)


def _with_digest(model: TrainedModel, sha256: str) -> TrainedModel:
    return TrainedModel(
        model.predictor,
        model.calibration,
        model.feature_names,
        model.feature_settings,
        model.settings,
        model.frame_ns,
        model.split,
        model.segment_ts,
        model.identity,
        sha256,
    )


def _top_importance(model: TrainedModel, n: int = 30) -> dict[str, float]:
    gain = model.predictor.importance()
    return {model.feature_names[k]: float(gain[k]) for k in np.argsort(-gain, kind="stable")[:n]}


def load_model(folder: Path) -> TrainedModel:
    """Read an artefact written by :func:`train_model`; no code in it is run.

    Raises
    ------
    UserError
        If the artefact is absent, incomplete, changed since it was written, or of another format.
    """
    meta = _verified_meta(folder)
    try:
        if meta["format"] != FORMAT:
            raise UserError(f"{folder} has model format {meta['format']}, this version reads {FORMAT}", "train again")
        settings = ModelSettings.model_validate(meta["settings"])
        segments = {name: Segment(name, *map(int, span)) for name, span in meta["split"].items()}
        return TrainedModel(
            predictor=_MODELS[settings.name].load(folder, settings),
            calibration=Calibration.from_json(meta["calibration"]),
            feature_names=tuple(meta["feature_names"]),
            feature_settings=FeatureSettings.model_validate(meta["feature_settings"]),
            settings=settings,
            frame_ns=int(meta["frame_ns"]),
            split=TimeSplit(segments["train"], segments["valid"], segments["test"], settings.horizon_bars),
            segment_ts={name: (int(a), int(b)) for name, (a, b) in meta["segment_ts"].items()},
            identity=str(meta["identity"]),
            sha256=str(meta["sha256"]),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder / META_FILE} does not describe a model: {e}", "train again") from e


def _verified_meta(folder: Path) -> dict[str, Any]:
    """Return the description after checking every file against its checksum."""
    sums = folder / SUMS_FILE
    if not sums.is_file():
        raise UserError(f"no complete model in {folder}", "run `crypto-qlib train`")
    listed: dict[str, str] = {}
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    for name, digest in listed.items():
        path = folder / Path(name).name
        if not path.is_file() or _digest(path) != digest:
            raise UserError(
                f"{path} was changed since training or is damaged", "train again; never load a model you do not trust"
            )
    if META_FILE not in listed:
        raise UserError(f"{sums} does not cover {META_FILE}", "train again")
    meta: dict[str, Any] = json.loads((folder / META_FILE).read_text())
    if Path(str(meta.get("file", ""))).name not in listed:
        raise UserError(f"{sums} does not cover the model file", "train again")
    return meta


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
    raw = _predict(model, frame, rows, model.settings.threads)
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

    Raises
    ------
    UserError
        If the columns differ from those the model was trained on.
    """
    rows = frame.row_span(frame.n_bars - 1, frame.n_bars)
    expected, win = model.calibration.apply(_predict(model, frame, rows, 1))
    grids = [np.full(len(frame.symbols), np.nan) for _ in range(3)]
    where = frame.row_symbol[rows]
    grids[0][where] = expected
    grids[1][where] = win
    grids[2][where] = model.calibration.uncertainty
    return Scores(int(frame.known_at_ns[-1]), frame.symbols, *grids)


def _predict(model: TrainedModel, frame: FeatureFrame, rows: slice, threads: int) -> FloatArray:
    if frame.names != model.feature_names:
        gone = [n for n in model.feature_names if n not in set(frame.names)]
        what = f"features the model needs do not exist: {', '.join(gone[:5])}" if gone else "the feature columns differ"
        raise UserError(f"{what} (model has {len(model.feature_names)} columns, data {len(frame.names)})",
                        "build features with the model's own feature settings, or train again")  # fmt: skip
    if rows.stop == rows.start:
        return np.empty(0)
    return model.predictor.predict_rows(frame.values[rows], frame.row_bar[rows].astype(np.int64), threads)


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

"""A trained model on disk and in memory: the predictor, its calibration, and all that is needed to use it correctly.

The artefact is a folder: the family's files (LightGBM text, safetensors, JSON), ``model.json`` (features, settings, split,
calibration, identity, environment) and ``SHA256SUMS``. No pickle; a changed or added file is refused before it is read.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.calibration import Calibration
from crypto_qlib.modeling.families import ScoringModel, load_family
from crypto_qlib.modeling.labels import TradeRule
from crypto_qlib.modeling.models.per_symbol_model import PerSymbolModel
from crypto_qlib.modeling.origin import Parent, Tuned
from crypto_qlib.modeling.splits import Segment, TimeSplit
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings

META_FILE: Final = "model.json"
SUMS_FILE: Final = "SHA256SUMS"
FORMAT: Final = 3
_LIBRARIES: Final = ("crypto-qlib", "lightgbm", "numpy", "pyqlib", "scikit-learn", "torch", "pytorch-forecasting")


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A fitted, calibrated model and everything needed to use it correctly.

    Parameters
    ----------
    predictor : ScoringModel
        The fitted model.
    calibration : Calibration
        From raw predictions to scores.
    feature_names : tuple of str
        Columns in training order; scoring refuses any other.
    feature_settings : FeatureSettings
        What the live session must build.
    settings : ModelSettings
        How it was trained.
    rule : TradeRule
        How the strategy would have traded its scores, for labels made of trades.
    frame_ns : int
        Bar length.
    split : TimeSplit
        Segments, as bar indices of the training grid.
    segment_ts : dict
        Segment name -> (first, last) decision bar's open time, nanoseconds.
    identity : str
        Run id it was trained under.
    sha256 : str
        Digest of the model's files.
    tuned : Tuned, optional
        The search that chose ``settings``, where there was one.
    parent : Parent, optional
        The version it was updated from, where it was.
    """

    predictor: ScoringModel
    calibration: Calibration
    feature_names: tuple[str, ...]
    feature_settings: FeatureSettings
    settings: ModelSettings
    rule: TradeRule
    frame_ns: int
    split: TimeSplit
    segment_ts: dict[str, tuple[int, int]]
    identity: str
    sha256: str
    tuned: Tuned | None = None
    parent: Parent | None = None

    @property
    def asked(self) -> ModelSettings:
        """Return the settings asked for, before hyper-parameters were searched."""
        return self.settings if self.tuned is None else self.tuned.asked

    @property
    def context_bars(self) -> int:
        """Return how many bars of features before the scored one the model looks at."""
        return self.predictor.context_bars


def save_model(model: TrainedModel, folder: Path) -> TrainedModel:
    """Write ``model`` into ``folder`` and return it with its digest; the sums are written last, so a torn write is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS_FILE).unlink(missing_ok=True)
    model.predictor.save(folder)
    files = tuple(model.predictor.FILES)
    sha256 = _combined(folder, files)
    meta = {
        "format": FORMAT,
        "identity": model.identity,
        "files": files,
        "frame_ns": model.frame_ns,
        "feature_names": model.feature_names,
        "feature_settings": model.feature_settings.model_dump(mode="json"),
        "settings": model.settings.model_dump(mode="json"),
        "trade_rule": asdict(model.rule),
        "split": {s.name: [s.start, s.stop] for s in model.split.segments},
        "span_bars": model.split.horizon_bars,
        "bin_bars": model.split.bins,
        "segment_ts": model.segment_ts,
        "calibration": model.calibration.to_json(),
        "tuning": None if model.tuned is None else model.tuned.to_json(),
        "parent": None if model.parent is None else model.parent.to_json(),
        "diagnostics": model.predictor.diagnostics(),
        "importance": _top_importance(model),
        "environment": _environment(),
        "sha256": sha256,
    }
    (folder / META_FILE).write_text(json.dumps(meta, indent=1))
    sums = "".join(f"{_digest(folder / name)}  {name}\n" for name in (*files, META_FILE))
    pending = folder / f"{SUMS_FILE}.part"
    pending.write_text(sums)
    pending.replace(folder / SUMS_FILE)
    return replace(model, sha256=sha256)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _combined(folder: Path, files: tuple[str, ...]) -> str:
    """Return the digest of one file, or of the list of digests of several."""
    if len(files) == 1:
        return _digest(folder / files[0])
    return hashlib.sha256("".join(f"{_digest(folder / f)}  {f}\n" for f in files).encode()).hexdigest()


def _top_importance(model: TrainedModel, n: int = 30) -> dict[str, float]:
    gain = model.predictor.importance()
    return {model.feature_names[k]: float(gain[k]) for k in np.argsort(-gain, kind="stable")[:n]}


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_model(folder: Path) -> TrainedModel:
    """Read an artefact written by :func:`save_model`; no code in it is run.

    Raises
    ------
    UserError
        If the artefact is absent, incomplete, changed since it was written, or of another format.
    """
    meta = verified_meta(folder)
    try:
        if meta["format"] != FORMAT:
            raise UserError(f"{folder} has model format {meta['format']}, this version reads {FORMAT}", "train again")
        settings = ModelSettings.model_validate(meta["settings"])
        segments = {name: Segment(name, *map(int, span)) for name, span in meta["split"].items()}
        return TrainedModel(
            predictor=PerSymbolModel.load(folder, settings) if settings.per_symbol else load_family(folder, settings),
            calibration=Calibration.from_json(meta["calibration"]),
            feature_names=tuple(meta["feature_names"]),
            feature_settings=FeatureSettings.model_validate(meta["feature_settings"]),
            settings=settings,
            rule=TradeRule(**meta["trade_rule"]),
            frame_ns=int(meta["frame_ns"]),
            split=TimeSplit(
                segments["train"], segments["valid"], segments["test"], int(meta["span_bars"]), _pair(meta["bin_bars"])
            ),
            segment_ts={name: (int(a), int(b)) for name, (a, b) in meta["segment_ts"].items()},
            identity=str(meta["identity"]),
            sha256=str(meta["sha256"]),
            tuned=_tuned(meta["tuning"], settings),
            parent=None if meta["parent"] is None else Parent.from_json(meta["parent"]),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder / META_FILE} does not describe a model: {e}", "train again") from e


def _tuned(raw: Any, settings: ModelSettings) -> Tuned | None:
    if raw is None:
        return None
    asked = ModelSettings.model_validate(raw["asked"])
    counts = int(raw["n_trials"]), int(raw["n_pruned"])
    return Tuned(settings, asked, *counts, float(raw["validation_ic"]), dict(raw["parameters"]))


def _pair(raw: Any) -> tuple[int, int] | None:
    return None if raw is None else (int(raw[0]), int(raw[1]))


def verified_meta(folder: Path) -> dict[str, Any]:
    """Return the description after checking every file against its checksum.

    Raises
    ------
    UserError
        If a file is absent, changed, or not covered.
    """
    sums = folder / SUMS_FILE
    if not sums.is_file():
        raise UserError(f"no complete model in {folder}", "run `crypto-qlib train`")
    listed: dict[str, str] = {}
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    for name, digest in listed.items():
        path = folder / name
        if not _stays_inside(name) or not path.is_file() or _digest(path) != digest:
            raise UserError(
                f"{path} was changed since training or is damaged", "train again; never load a model you do not trust"
            )
    if META_FILE not in listed:
        raise UserError(f"{sums} does not cover {META_FILE}", "train again")
    meta: dict[str, Any] = json.loads((folder / META_FILE).read_text())
    files = meta.get("files") or []
    if not files or any(str(name) not in listed for name in files):
        raise UserError(f"{sums} does not cover the model file", "train again")
    return meta


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts

"""Has a feature's distribution moved? Population stability index of recent rows against the training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.feature_engineering.feature_frame import FeatureFrame

BINS: Final = 10
MOVED: Final = 0.25
"""Index from which a shift is called large (0.1: moderate), by the usual rule of thumb."""
_FLOOR: Final = 1e-4
_ROWS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one feature moved.

    Parameters
    ----------
    name : str
        Feature.
    index : float
        ``sum((p - q) log(p / q))`` over ten bins that were equally full in training and one for missing; NaN without values.
    missing_then, missing_now : float
        Share of missing values.
    """

    name: str
    index: float
    missing_then: float
    missing_now: float


def feature_drift(frame: FeatureFrame, then: slice, now: slice) -> list[Drift]:
    """Return the drift of every feature from rows ``then`` to rows ``now``, largest first, NaN last.

    Parameters
    ----------
    frame : FeatureFrame
        Features.
    then, now : slice
        Training rows and recent rows.
    """
    old, new = _sample(frame, then), _sample(frame, now)
    found = [_drift(name, old[:, j], new[:, j]) for j, name in enumerate(frame.names)]
    return sorted(found, key=lambda d: (np.isnan(d.index), -d.index))


def _sample(frame: FeatureFrame, rows: slice) -> npt.NDArray[np.float32]:
    return np.asarray(frame.values[rows.start : rows.stop : max(1, (rows.stop - rows.start) // _ROWS)])


def _drift(name: str, old: npt.NDArray[np.float32], new: npt.NDArray[np.float32]) -> Drift:
    a, b = old[np.isfinite(old)], new[np.isfinite(new)]
    gone = (1.0 - a.size / max(old.size, 1), 1.0 - b.size / max(new.size, 1))
    if not a.size or not new.size:
        return Drift(name, float("nan"), *gone)
    edges = np.unique(np.quantile(a, np.linspace(0.0, 1.0, BINS + 1)[1:-1]))
    p = np.append(np.bincount(np.searchsorted(edges, a), minlength=edges.size + 1) / old.size, gone[0])
    q = np.append(np.bincount(np.searchsorted(edges, b), minlength=edges.size + 1) / new.size, gone[1])
    p, q = np.maximum(p, _FLOOR), np.maximum(q, _FLOOR)
    return Drift(name, float(np.sum((p - q) * np.log(p / q))), *gone)

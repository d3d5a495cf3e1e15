"""Many features as fewer numbers, fitted on the training span only: principal components, or the code of an autoencoder.

Both see the same input: each feature less its median, over 1.4826 x its median absolute deviation, cut to +-5, a missing one as
its median. Both are applied by plain arrays, so whoever uses a saved autoencoder needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.autoencoder_fit import fit_layers
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame, Float32Array

FloatArray = npt.NDArray[np.float64]
KINDS: Final = ("pca", "autoencoder")
_CLIP: Final = 5.0
_SAMPLE: Final = 200_000


class Reduction(Protocol):
    """A fitted map from features to fewer numbers."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the features it takes, in order."""
        ...

    @property
    def n_components(self) -> int:
        """Return how many numbers it gives."""
        ...

    def apply(self, values: Float32Array) -> Float32Array:
        """Return the numbers of feature rows, shape ``(n_rows, n_components)``."""
        ...

    def explained(self, values: Float32Array) -> float:
        """Return the share of the scaled features' mean square that can be told from the numbers: 1 is all of it."""
        ...


@dataclass(frozen=True, slots=True)
class Scaling:
    """Centre and scale of each feature, from the training rows.

    Parameters
    ----------
    centre, scale : (n_features,) float64
        Median and 1.4826 x median absolute deviation (1 where that is 0).
    """

    centre: FloatArray
    scale: FloatArray

    @staticmethod
    def of(values: npt.NDArray[np.floating]) -> Scaling:
        """Return the scaling of rows ``values``."""
        centre = np.nan_to_num(np.nanmedian(values, axis=0)).astype(np.float64)
        scale = 1.4826 * np.nan_to_num(np.nanmedian(np.abs(values - centre), axis=0))
        scale[scale <= 0.0] = 1.0
        return Scaling(centre, scale)

    def __call__(self, values: npt.NDArray[np.floating]) -> FloatArray:
        """Return scaled rows, cut to +-5; 0 where a feature is missing."""
        return np.nan_to_num(np.clip((values - self.centre) / self.scale, -_CLIP, _CLIP))


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components.

    Parameters
    ----------
    names : tuple of str
        Features.
    centre, scale : (n_features,) float64
        See :class:`Scaling`.
    axes : (n_components, n_features) float64
        Orthonormal rows, largest mean square first; the sign makes the largest entry positive.
    shares : (n_components,) float64
        Share of the scaled features' mean square in the training rows.
    """

    names: tuple[str, ...]
    centre: FloatArray
    scale: FloatArray
    axes: FloatArray
    shares: FloatArray

    @property
    def n_components(self) -> int:
        """Return how many components there are."""
        return int(self.axes.shape[0])

    def apply(self, values: Float32Array) -> Float32Array:
        """Return the components of feature rows, shape ``(n_rows, n_components)``."""
        return np.asarray(Scaling(self.centre, self.scale)(values) @ self.axes.T, dtype=np.float32)

    def explained(self, values: Float32Array) -> float:
        """Return the share of the scaled features' mean square the components hold."""
        x = Scaling(self.centre, self.scale)(values)
        return _explained(x, x @ self.axes.T @ self.axes)


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """A network that learned to tell its input from a narrow middle; ``tanh`` before and behind it.

    Parameters
    ----------
    names : tuple of str
        Features.
    centre, scale : (n_features,) float64
        See :class:`Scaling`.
    weights_0 .. weights_3, bias_0 .. bias_3 : float32
        Layers features -> hidden -> code -> hidden -> features; weights are ``(outputs, inputs)``.
    """

    names: tuple[str, ...]
    centre: FloatArray
    scale: FloatArray
    weights_0: Float32Array
    bias_0: Float32Array
    weights_1: Float32Array
    bias_1: Float32Array
    weights_2: Float32Array
    bias_2: Float32Array
    weights_3: Float32Array
    bias_3: Float32Array

    @property
    def n_components(self) -> int:
        """Return the width of the code."""
        return int(self.bias_1.size)

    def apply(self, values: Float32Array) -> Float32Array:
        """Return the code of feature rows, shape ``(n_rows, n_components)``."""
        return self._code(Scaling(self.centre, self.scale)(values).astype(np.float32))

    def explained(self, values: Float32Array) -> float:
        """Return the share of the scaled features' mean square the network can tell from the code."""
        x = Scaling(self.centre, self.scale)(values).astype(np.float32)
        hidden = np.tanh(self._code(x) @ self.weights_2.T + self.bias_2)
        return _explained(x, hidden @ self.weights_3.T + self.bias_3)

    def _code(self, x: Float32Array) -> Float32Array:
        hidden = np.tanh(x @ self.weights_0.T + self.bias_0)
        return np.asarray(hidden @ self.weights_1.T + self.bias_1, dtype=np.float32)


def _explained(x: npt.NDArray[Any], again: npt.NDArray[Any]) -> float:
    total = float(np.square(x, dtype=np.float64).sum())
    return 1.0 - float(np.square(x - again, dtype=np.float64).sum()) / total if total > 0.0 else 0.0


def fit_reduction(kind: str, frame: FeatureFrame, rows: slice, n_components: int, seed: int = 7) -> Components | Autoencoder:
    """Return the reduction ``kind`` of the features, fitted on ``rows`` (the training span); nothing outside is read.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`; the autoencoder needs the extra ``torch``.
    frame : FeatureFrame
        Features.
    rows : slice
        Rows to fit on.
    n_components : int
        How many numbers.
    seed : int
        Of the autoencoder's first weights and batches.

    Raises
    ------
    UserError
        If the kind is unknown, more components than features or rows are asked for, or torch is not there.
    """
    values = frame.values[rows.start : rows.stop : max(1, (rows.stop - rows.start) // _SAMPLE)]
    return fit_rows(kind, frame.names, values, n_components, seed)


def fit_rows(
    kind: str, names: tuple[str, ...], values: Float32Array, n_components: int, seed: int = 7
) -> Components | Autoencoder:
    """Return :func:`fit_reduction` of training rows ``values``, oldest first."""
    if kind not in KINDS:
        raise UserError(f"there is no reduction {kind}", f"choose {' or '.join(KINDS)}")
    if not 1 <= n_components <= min(values.shape):
        raise UserError(f"{n_components} components cannot be taken from {values.shape[0]} rows of {values.shape[1]} features")
    scaling = Scaling.of(values)
    x = scaling(values)
    if kind == "pca":
        axes, shares = _principal(x, n_components)
        return Components(names, scaling.centre, scaling.scale, axes, shares)
    layers = fit_layers(x.astype(np.float32), n_components, seed)
    return Autoencoder(names, scaling.centre, scaling.scale, *layers)


def _principal(x: FloatArray, n_components: int) -> tuple[FloatArray, FloatArray]:
    variance, vectors = np.linalg.eigh(x.T @ x / x.shape[0])
    order = np.argsort(-variance)[:n_components]
    axes = vectors[:, order].T
    axes *= np.sign(axes[np.arange(axes.shape[0]), np.abs(axes).argmax(axis=1)])[:, None]
    return axes, variance[order] / variance.sum()


def save_reduction(path: Path, reduction: Components | Autoencoder) -> None:
    """Write a reduction as plain arrays (``.npz``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "pca" if isinstance(reduction, Components) else "autoencoder"
    arrays: dict[str, Any] = {f.name: np.asarray(getattr(reduction, f.name)) for f in fields(reduction)}
    pending = path.with_suffix(".part.npz")
    np.savez_compressed(pending, kind=np.array(kind), **arrays)
    pending.replace(path)


def load_reduction(path: Path) -> Components | Autoencoder:
    """Read what :func:`save_reduction` wrote; no code in it is run.

    Raises
    ------
    UserError
        If the file is absent or no such reduction.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kind: Any = Components if str(arrays["kind"]) == "pca" else Autoencoder
            values = {f.name: arrays[f.name] for f in fields(kind) if f.name != "names"}
            found: Components | Autoencoder = kind(names=tuple(arrays["names"].tolist()), **values)
            return found
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{path} is no reduction of features: {e}", "run `crypto-qlib features reduce`") from e

"""Principal components of many features, fitted on the training span only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame, Float32Array

FloatArray = npt.NDArray[np.float64]
_CLIP = 5.0
_SAMPLE = 200_000


@dataclass(frozen=True, slots=True)
class Components:
    """A linear map from features to fewer numbers.

    Parameters
    ----------
    names : tuple of str
        Features it takes, in order.
    centre, scale : (n_features,) float64
        Median and 1.4826 x median absolute deviation of the fitting rows (1 where that is 0).
    axes : (n_components, n_features) float64
        Orthonormal rows, largest variance first; the sign makes the largest entry positive.
    explained : (n_components,) float64
        Share of the variance of the clipped, scaled features.
    """

    names: tuple[str, ...]
    centre: FloatArray
    scale: FloatArray
    axes: FloatArray
    explained: FloatArray

    def apply(self, values: Float32Array) -> Float32Array:
        """Return the components of feature rows, shape ``(n_rows, n_components)``; a missing feature counts as its median."""
        return np.asarray(_scaled(values, self.centre, self.scale) @ self.axes.T, dtype=np.float32)


def fit_components(frame: FeatureFrame, rows: slice, n_components: int) -> Components:
    """Return the first principal components of the features over ``rows`` (the training span).

    Parameters
    ----------
    frame : FeatureFrame
        Features.
    rows : slice
        Rows to fit on; nothing outside is read.
    n_components : int
        How many.

    Raises
    ------
    UserError
        If more components than features or rows are asked for.
    """
    x = frame.values[rows.start : rows.stop : max(1, (rows.stop - rows.start) // _SAMPLE)].astype(np.float64)
    if not 1 <= n_components <= min(x.shape):
        raise UserError(f"{n_components} components cannot be taken from {x.shape[0]} rows of {x.shape[1]} features")
    centre = np.nan_to_num(np.nanmedian(x, axis=0))
    scale = 1.4826 * np.nan_to_num(np.nanmedian(np.abs(x - centre), axis=0))
    scale[scale <= 0.0] = 1.0
    scaled = _scaled(x, centre, scale)
    variance, vectors = np.linalg.eigh(scaled.T @ scaled / scaled.shape[0])
    order = np.argsort(-variance)[:n_components]
    axes = vectors[:, order].T
    axes *= np.sign(axes[np.arange(axes.shape[0]), np.abs(axes).argmax(axis=1)])[:, None]
    return Components(frame.names, centre, scale, axes, variance[order] / variance.sum())


def _scaled(values: npt.NDArray[np.floating], centre: FloatArray, scale: FloatArray) -> FloatArray:
    return np.nan_to_num(np.clip((values - centre) / scale, -_CLIP, _CLIP))

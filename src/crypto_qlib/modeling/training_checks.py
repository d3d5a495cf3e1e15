"""What is looked at before and while any family trains: enough rows, a label that varies, no feature that knows the label."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.jit import njit

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

LABEL_CLIP_QUANTILE: Final = 0.005
"""Training labels beyond these quantiles of the *training* labels are pulled in: a squared loss would chase single crashes."""
LEAK_SAMPLE_BARS: Final = 400
"""Training bars, evenly spread, on which features are tried against the label."""


def check_trainable(label: FloatArray, min_rows: int, unit: str, hint: str = "") -> tuple[float, float]:
    """Return the clip bounds of the training labels.

    Parameters
    ----------
    label : (n_rows,) float64
        Finite labels of the training segment.
    min_rows : int
        Fewest rows the family can learn from.
    unit : str
        What those rows would have to fill, e.g. ``two leaves of 500``.
    hint : str
        How to mend too few rows, besides more data.

    Raises
    ------
    UserError
        If there are fewer rows, or the label is constant.
    """
    if label.size < min_rows:
        raise UserError(
            f"too little data: {label.size} labelled training rows cannot fill {unit}",
            "raise data.history_days or universe.size" + (f", or {hint}" if hint else ""),
        )
    low, high = np.quantile(label, (LABEL_CLIP_QUANTILE, 1.0 - LABEL_CLIP_QUANTILE))
    if not high > low and not float(np.ptp(label)) > 0.0:
        raise UserError("the training label is constant: there is nothing to learn", "check the candles of the universe")
    return (float(low), float(high)) if high > low else (float(label.min()), float(label.max()))


def correlation_groups(bar: Int64Array) -> Int64Array:
    """Return the groups a correlation with the label is taken in: the bars, or one group for all where a bar has one row."""
    return bar if bar.size > np.unique(bar).size else np.zeros_like(bar)


@njit
def mean_bar_correlation(predicted: FloatArray, outcome: FloatArray, bar: Int64Array) -> float:
    """Return the mean over bars of the Pearson correlation across the rows of the bar; a bar without spread counts as 0.

    Parameters
    ----------
    predicted, outcome : (n_rows,) float64
        Finite values.
    bar : (n_rows,) int64
        Bar of each row, not decreasing.
    """
    total = 0.0
    bars = 0
    start = 0
    while start < bar.size:
        stop = start
        while stop < bar.size and bar[stop] == bar[start]:
            stop += 1
        mean_p = predicted[start:stop].mean()
        mean_y = outcome[start:stop].mean()
        cov = 0.0
        var_p = 0.0
        var_y = 0.0
        for k in range(start, stop):
            cov += (predicted[k] - mean_p) * (outcome[k] - mean_y)
            var_p += (predicted[k] - mean_p) ** 2
            var_y += (outcome[k] - mean_y) ** 2
        if var_p > 0.0 and var_y > 0.0:
            total += cov / math.sqrt(var_p * var_y)
        bars += 1
        start = stop
    return total / bars if bars else 0.0


@njit
def feature_correlations(values: Float32Array, label: FloatArray, bar: Int64Array) -> FloatArray:
    """Return each feature's mean cross-sectional correlation with the label, shape ``(n_features,)``.

    Rows where the feature is missing are left out of a bar; a bar with fewer than three rows or without spread counts as 0.
    """
    result = np.zeros(values.shape[1])
    for f in range(values.shape[1]):
        total = 0.0
        bars = 0
        start = 0
        while start < bar.size:
            stop = start
            n = 0
            sum_x = 0.0
            sum_y = 0.0
            while stop < bar.size and bar[stop] == bar[start]:
                if math.isfinite(values[stop, f]):
                    n += 1
                    sum_x += values[stop, f]
                    sum_y += label[stop]
                stop += 1
            cov = 0.0
            var_x = 0.0
            var_y = 0.0
            for k in range(start, stop):
                if math.isfinite(values[k, f]):
                    dx = values[k, f] - sum_x / n
                    dy = label[k] - sum_y / n
                    cov += dx * dy
                    var_x += dx * dx
                    var_y += dy * dy
            if n > 2 and var_x > 0.0 and var_y > 0.0:  # noqa: PLR2004 - two points always lie on a line
                total += cov / math.sqrt(var_x * var_y)
            bars += 1
            start = stop
        result[f] = total / bars if bars else 0.0
    return result


def check_no_leaky_feature(
    values: Float32Array,
    label: FloatArray,
    bar: Int64Array,
    names: tuple[str, ...],
    limit: float,
    sample: Int64Array | None = None,
) -> None:
    """Refuse a feature whose correlation with the label is too good to be known beforehand.

    At a realistic IC of a few percent a single feature beyond ``limit`` is built from the future, or from the label itself.

    Parameters
    ----------
    values : (n_rows, n_features) float32
        Training features.
    label : (n,) float64
        Finite labels of the sample.
    bar : (n_rows,) int64
        Bar of each row, not decreasing.
    names : tuple of str
        Feature names.
    sample : (n,) int64, optional
        Rows the labels belong to; all rows if absent.
    limit : float
        Largest believable |mean cross-sectional IC|; 1 switches the check off.

    Raises
    ------
    UserError
        Naming the features and their IC.
    """
    rows = np.arange(bar.size) if sample is None else sample
    if limit >= 1.0 or rows.size == 0:
        return
    bars = np.unique(bar[rows])
    chosen = bars[np.unique(np.linspace(0, bars.size - 1, min(LEAK_SAMPLE_BARS, bars.size)).astype(np.int64))]
    picked = np.flatnonzero(np.isin(bar[rows], chosen))
    at = rows[picked]
    found = feature_correlations(np.ascontiguousarray(values[at]), label[picked], bar[at])
    guilty = np.flatnonzero(np.abs(found) > limit)
    if guilty.size:
        shown = ", ".join(f"{names[k]} ({found[k]:+.2f})" for k in guilty[:5])
        raise UserError(
            f"leak: the training IC of {shown} is beyond {limit:g}: it cannot have been known before the label",
            "find where the feature reads later bars, leave it out with features.exclude, or raise model.max_feature_ic",
        )

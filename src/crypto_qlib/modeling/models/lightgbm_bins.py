"""Histogram bins for many trainings on one feature frame: placed once on training bars, every row binned once.

LightGBM spends more time on sorting and binning float columns than a fold's trees take. The bin edges are placed on an evenly
spaced sample of the bars that *every* training of the run may know (the first step's training segment), all rows are binned
against them, and each training takes its rows out of the binned matrix, one byte a value. A training that places the same bins
by itself gets the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from crypto_qlib.feature_engineering.feature_frame import FeatureFrame

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

BIN_SAMPLE_ROWS: Final = 50_000
"""Rows looked at to place bins; sorting LightGBM's default of 200,000 takes longer than the boosting."""
_OF_BINNING: Final = ("max_bin", "bin_construct_sample_cnt", "feature_pre_filter", "num_threads", "force_col_wise", "verbosity")


def bin_reference(values: Float32Array, rows: Int64Array, names: tuple[str, ...], params: dict[str, Any]) -> lgb.Dataset:
    """Return a dataset that others are binned like.

    Parameters
    ----------
    values : (n_rows, n_features) float32
        Features.
    rows : (n,) int64
        Rows the bins may be placed on, increasing; an evenly spaced sample of them is looked at.
    names : tuple of str
        Feature names.
    params : dict
        LightGBM's parameters.
    """
    picked = rows[np.unique(np.linspace(0, rows.size - 1, min(BIN_SAMPLE_ROWS, rows.size)).astype(np.int64))]
    sample = values[picked]
    return lgb.Dataset(sample, feature_name=list(names), params=binning(params), free_raw_data=True).construct()


def binning(params: dict[str, Any]) -> dict[str, Any]:
    """Return those of LightGBM's parameters that say how values are binned."""
    return {k: params[k] for k in _OF_BINNING}


class FrameBins:
    """A whole feature frame binned, when first needed.

    Parameters
    ----------
    frame : FeatureFrame
        Features.
    bin_bars : (int, int)
        Decision bars the bins are placed on.
    params : dict
        LightGBM's parameters.
    """

    def __init__(self, frame: FeatureFrame, bin_bars: tuple[int, int], params: dict[str, Any]) -> None:
        self._frame = frame
        self._params = binning(params)
        self.bin_bars = bin_bars
        self._binned: lgb.Dataset | None = None

    @classmethod
    def opened(cls, path: Path, frame: FeatureFrame, bin_bars: tuple[int, int], params: dict[str, Any]) -> FrameBins:
        """Return bins written by :meth:`write`."""
        bins = cls(frame, bin_bars, params)
        bins._binned = lgb.Dataset(str(path), params=bins._params).construct()
        return bins

    def write(self, path: Path) -> None:
        """Write the binned rows in LightGBM's binary format, in one step."""
        pending = path.with_suffix(".part")
        pending.unlink(missing_ok=True)
        self._rows().save_binary(str(pending))
        pending.replace(path)

    def fits(self, bin_bars: tuple[int, int], params: dict[str, Any]) -> bool:
        """Return whether a training with these bars and parameters would place the same bins."""
        asked = binning(params) | {"num_threads": 0}
        return self.bin_bars == bin_bars and asked == self._params | {"num_threads": 0}

    def take(self, sample: Int64Array, label: FloatArray, **rest: Any) -> lgb.Dataset:
        """Return some rows as a dataset with labels.

        Parameters
        ----------
        sample : (n,) int64
            Row numbers of the frame, increasing.
        label : (n,) float64
            Their labels.
        **rest
            ``group`` and ``weight`` as in LightGBM's ``Dataset``.
        """
        part = self._rows().subset(sample.tolist()).construct()
        part.set_label(label)
        part.set_weight(rest.get("weight"))
        if rest.get("group") is not None:
            part.set_group(rest["group"])
        return part

    def _rows(self) -> lgb.Dataset:
        if self._binned is None:
            rows = self._frame.row_span(*self.bin_bars)
            placed = np.arange(rows.start, rows.stop, dtype=np.int64)
            reference = bin_reference(self._frame.values, placed, self._frame.names, self._params)
            nothing = np.zeros(self._frame.n_rows)
            # No label is known here: each training brings its own.
            self._binned = lgb.Dataset(
                np.ascontiguousarray(self._frame.values), label=nothing, reference=reference, params=self._params
            ).construct()
        return self._binned

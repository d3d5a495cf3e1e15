"""Qlib's processors at array speed, under names a ``qrun`` YAML can ask for; same parameters, same numbers.

::

    infer_processors:
      - {class: FastProcessInf, module_path: crypto_qlib.feature_engineering.qlib_processors}
      - class: FastRobustZScoreNorm
        module_path: crypto_qlib.feature_engineering.qlib_processors
        kwargs: {fields_group: feature, fit_start_time: 2024-01-01, fit_end_time: 2024-12-31, clip_outlier: true}

What is fitted reads rows of ``fit_start_time .. fit_end_time`` only. Columns become float32, as Qlib's own feature data is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset.processor import Processor, get_group_columns
from qlib.data.dataset.utils import fetch_df_by_index

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering import array_processors as kernels
from crypto_qlib.feature_engineering.feature_reduction import fit_rows

Block = npt.NDArray[np.float32]

_FEW: Final = 16
"""So many columns are put beside a block one by one."""


def _bars(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return a number a bar for each row.

    Raises
    ------
    UserError
        If the rows are not ordered by time.
    """
    level = frame.index.names.index("datetime")
    codes: Any = frame.index.codes[level] if isinstance(frame.index, pd.MultiIndex) else pd.factorize(frame.index, sort=True)[0]
    bars = np.asarray(codes, dtype=np.int64)
    if np.any(np.diff(bars) < 0):
        raise UserError("rows must be ordered by time before they are processed", "sort the frame by its index")
    return bars


def _columns_of(frame: pd.DataFrame, group: str | None) -> npt.NDArray[np.int64]:
    """Return the places of the columns of ``group`` (all for ``None``)."""
    return np.sort(frame.columns.get_indexer_for(get_group_columns(frame, group)))


def _block_of(frame: pd.DataFrame, places: npt.NDArray[np.int64]) -> Block:
    """Return a copy of the columns at ``places``, rows together.

    A few other columns are taken away from a shallow copy first: what is left is a view, where selecting would copy.
    """
    others = np.setdiff1d(np.arange(frame.shape[1]), places)
    if others.size <= _FEW and frame.columns.is_unique:
        part = frame.copy(deep=False)
        for name in frame.columns[others]:
            del part[name]
    else:
        part = frame.iloc[:, places]
    return np.array(part.to_numpy(), dtype=np.float32, order="C", copy=True)


def _replaced(frame: pd.DataFrame, group: str | None, work: Callable[[Block], None]) -> pd.DataFrame:
    """Return ``frame`` with the columns of ``group`` (all for ``None``) replaced by what ``work`` makes of them.

    ``frame`` stays as it is, and what was not replaced is shared with it: pandas copies whatever is joined or consolidated, so
    the smaller part is put beside the larger one column by column.
    """
    places = _columns_of(frame, group)
    block = _block_of(frame, places)
    work(block)
    if places.size <= _FEW < frame.shape[1]:
        made = frame.copy(deep=False)
        for k, place in enumerate(places.tolist()):
            made.isetitem(place, np.ascontiguousarray(block[:, k]))
        return made
    made = pd.DataFrame(block, index=frame.index, columns=frame.columns[places], copy=False)
    others = np.setdiff1d(np.arange(frame.shape[1]), places)
    if others.size > _FEW:
        joined: pd.DataFrame = pd.concat([made, frame.iloc[:, others]], axis=1)[frame.columns]
        return joined
    for place in others.tolist():
        made.insert(place, frame.columns[place], frame.iloc[:, place].array, allow_duplicates=True)
    return made


def _fit_span(frame: Any, start: Any, end: Any) -> pd.DataFrame:
    """Return the rows Qlib takes for the span from ``start`` to ``end``: as a view where they lie together."""
    span: pd.DataFrame
    if isinstance(frame.index, pd.MultiIndex) and (start, end) != (None, None):
        bars: list[Any] = [slice(None)] * frame.index.nlevels
        bars[frame.index.names.index("datetime")] = slice(start, end)
        rows = frame.index.get_locs(bars)
        if rows.size and rows[-1] - rows[0] + 1 == rows.size and not np.any(np.diff(rows) != 1):
            span = frame.iloc[rows[0] : rows[-1] + 1]
            return span
    span = fetch_df_by_index(frame, slice(start, end), level="datetime")
    return span


class FastProcessor(Processor):  # type: ignore[misc]
    """What all of ours have in common: the frame given is never written to, so a handler need not copy it first."""

    def readonly(self) -> bool:
        """Return True."""
        return True


class FastRobustZScoreNorm(FastProcessor):
    """``RobustZScoreNorm``: median and MAD of the fitting span, cut to +-3 where ``clip_outlier``."""

    def __init__(
        self, fit_start_time: Any, fit_end_time: Any, fields_group: str | None = None, clip_outlier: bool = True
    ) -> None:
        self.fit_start_time = fit_start_time
        self.fit_end_time = fit_end_time
        self.fields_group = fields_group
        self.clip_outlier = clip_outlier

    def fit(self, df: pd.DataFrame | None = None) -> None:
        """Learn centre and scale from the rows of the fitting span."""
        span = _fit_span(df, self.fit_start_time, self.fit_end_time)
        block = _block_of(span, _columns_of(span, self.fields_group))
        self.centre, self.scale = kernels.robust_fit(block)

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` standardised."""
        limit = 3.0 if self.clip_outlier else math.inf
        return _replaced(df, self.fields_group, lambda b: kernels.standardise(b, self.centre, self.scale, limit))


class FastCSZScoreNorm(FastProcessor):
    """``CSZScoreNorm``: z-score over the bar's coins."""

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` standardised bar by bar."""
        starts = kernels.bar_starts(_bars(df))
        return _replaced(df, self.fields_group, lambda b: kernels.cross_section_z(b, starts))


class FastCSRankNorm(FastProcessor):
    """``CSRankNorm``: centred rank over the bar's coins, times 3.46."""

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` ranked bar by bar."""
        starts = kernels.bar_starts(_bars(df))
        return _replaced(df, self.fields_group, lambda b: kernels.cross_section_rank(b, starts))


class FastFillna(FastProcessor):
    """``Fillna``: a constant for what is missing."""

    def __init__(self, fields_group: str | None = None, fill_value: float = 0.0) -> None:
        self.fields_group = fields_group
        self.fill_value = fill_value

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` without missing values."""
        return _replaced(df, self.fields_group, lambda b: kernels.fill_constant(b, self.fill_value))


class FastCSZFillna(FastProcessor):
    """``CSZFillna``: the mean of the bar's coins for what is missing."""

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` filled bar by bar."""
        starts = kernels.bar_starts(_bars(df))
        return _replaced(df, self.fields_group, lambda b: kernels.fill_cross_section(b, starts, False))


class FastProcessInf(FastProcessor):
    """``ProcessInf``: the mean of the bar's finite coins for what is infinite, in every column."""

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` without infinities."""
        starts = kernels.bar_starts(_bars(df))
        return _replaced(df, None, lambda b: kernels.fill_cross_section(b, starts, True))


class ReduceFeatures(FastProcessor):
    """Replace the features by fewer numbers: principal components or an autoencoder's code, fitted on the fitting span only.

    Parameters
    ----------
    fit_start_time, fit_end_time
        Span, bar opens, both inclusive.
    n_components : int
        How many numbers.
    kind : str
        ``pca``, or ``autoencoder`` (extra ``torch``).
    seed : int
        Of the autoencoder.
    """

    def __init__(self, fit_start_time: Any, fit_end_time: Any, n_components: int, kind: str = "pca", seed: int = 7) -> None:
        self.fit_start_time = fit_start_time
        self.fit_end_time = fit_end_time
        self.n_components = n_components
        self.kind = kind
        self.seed = seed

    def fit(self, df: pd.DataFrame | None = None) -> None:
        """Fit on the rows of the fitting span."""
        span = _fit_span(df, self.fit_start_time, self.fit_end_time)
        columns = get_group_columns(span, "feature")
        names = tuple(str(c[-1]) for c in columns)
        block = span[columns].to_numpy(dtype=np.float32)
        self.reduction = fit_rows(self.kind, names, block, self.n_components, self.seed)

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` with the features ``C0``, ``C1`` ... in place of those it had."""
        columns = get_group_columns(df, "feature")
        codes = self.reduction.apply(df[columns].to_numpy(dtype=np.float32))
        names = pd.MultiIndex.from_product([["feature"], [f"C{k}" for k in range(codes.shape[1])]])
        reduced = pd.DataFrame(codes, index=df.index, columns=names, copy=False)
        joined: pd.DataFrame = pd.concat([reduced, df.drop(columns=columns)], axis=1)
        return joined

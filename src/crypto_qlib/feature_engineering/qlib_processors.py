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
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset.processor import Processor, get_group_columns
from qlib.data.dataset.utils import fetch_df_by_index

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering import array_processors as kernels
from crypto_qlib.feature_engineering.feature_reduction import fit_rows

Block = npt.NDArray[np.float32]


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


def _in_place(frame: pd.DataFrame, group: str | None, work: Callable[[Block], None]) -> pd.DataFrame:
    """Return ``frame`` with the columns of ``group`` (all for ``None``) replaced by what ``work`` makes of them."""
    columns = get_group_columns(frame, group)
    block = np.ascontiguousarray(frame[columns].to_numpy(dtype=np.float32))
    if not block.flags.owndata or np.shares_memory(block, frame[columns].to_numpy(copy=False)):
        block = block.copy()
    work(block)
    if len(columns) == frame.shape[1]:
        return pd.DataFrame(block, index=frame.index, columns=frame.columns, copy=False)
    done = pd.DataFrame(block, index=frame.index, columns=columns, copy=False)
    others = frame.drop(columns=columns)
    joined: pd.DataFrame = pd.concat([done, others], axis=1)[frame.columns]
    return joined


class FastRobustZScoreNorm(Processor):  # type: ignore[misc]
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
        span = fetch_df_by_index(df, slice(self.fit_start_time, self.fit_end_time), level="datetime")
        block = span[get_group_columns(span, self.fields_group)].to_numpy(dtype=np.float32)
        self.centre, self.scale = kernels.robust_fit(block)

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` standardised."""
        limit = 3.0 if self.clip_outlier else math.inf
        return _in_place(df, self.fields_group, lambda b: kernels.standardise(b, self.centre, self.scale, limit))


class FastCSZScoreNorm(Processor):  # type: ignore[misc]
    """``CSZScoreNorm``: z-score over the bar's coins."""

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` standardised bar by bar."""
        starts = kernels.bar_starts(_bars(df))
        return _in_place(df, self.fields_group, lambda b: kernels.cross_section_z(b, starts))


class FastCSRankNorm(Processor):  # type: ignore[misc]
    """``CSRankNorm``: centred rank over the bar's coins, times 3.46."""

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` ranked bar by bar."""
        starts = kernels.bar_starts(_bars(df))
        return _in_place(df, self.fields_group, lambda b: kernels.cross_section_rank(b, starts))


class FastFillna(Processor):  # type: ignore[misc]
    """``Fillna``: a constant for what is missing."""

    def __init__(self, fields_group: str | None = None, fill_value: float = 0.0) -> None:
        self.fields_group = fields_group
        self.fill_value = fill_value

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` without missing values."""
        return _in_place(df, self.fields_group, lambda b: kernels.fill_constant(b, self.fill_value))


class FastCSZFillna(Processor):  # type: ignore[misc]
    """``CSZFillna``: the mean of the bar's coins for what is missing."""

    def __init__(self, fields_group: str | None = None) -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` filled bar by bar."""
        starts = kernels.bar_starts(_bars(df))
        return _in_place(df, self.fields_group, lambda b: kernels.fill_cross_section(b, starts, False))


class FastProcessInf(Processor):  # type: ignore[misc]
    """``ProcessInf``: the mean of the bar's finite coins for what is infinite, in every column."""

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return ``df`` without infinities."""
        starts = kernels.bar_starts(_bars(df))
        return _in_place(df, None, lambda b: kernels.fill_cross_section(b, starts, True))


class ReduceFeatures(Processor):  # type: ignore[misc]
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
        span = fetch_df_by_index(df, slice(self.fit_start_time, self.fit_end_time), level="datetime")
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

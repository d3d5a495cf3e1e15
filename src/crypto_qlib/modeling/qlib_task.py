"""The training task in Qlib's words: a ``DatasetH`` over our handler, segments as time spans, and an optional recorder run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.weight import Reweighter

from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.universe_history import membership_of_lake
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features, settings_for_panel
from crypto_qlib.feature_engineering.qlib_handler import CryptoHandler
from crypto_qlib.feature_engineering.side_loading import load_side
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.row_batch import RowBatch
from crypto_qlib.modeling.splits import TimeSplit
from crypto_qlib.settings.schema import ModelSettings, Settings
from crypto_qlib.store.lake import Kind, Lake
from crypto_qlib.store.paths import Paths


@dataclass(frozen=True, slots=True)
class SegmentData:
    """One segment of a dataset as arrays.

    Parameters
    ----------
    values : (n_rows, n_features) float32
        Features.
    label : (n_rows,) float64
        Label; finite everywhere when read for learning.
    bar : (n_rows,) int64
        Number of the row's bar: equal for rows of one bar, not decreasing.
    symbol : (n_rows,) int64
        Number of the row's symbol among the sorted names.
    names : tuple of str
        Feature names.
    """

    values: npt.NDArray[np.float32]
    label: npt.NDArray[np.float64]
    bar: npt.NDArray[np.int64]
    symbol: npt.NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WindowedRows:
    """All rows up to a segment's end, and which of them belong to it; for models that look back over bars.

    Parameters
    ----------
    values : (n_rows, n_features) float32
        Features of every row from the dataset's start to the segment's end.
    bar, symbol : (n_rows,) int64
        Number of each row's bar, and index into ``symbols``.
    symbols : tuple of str
        Names, sorted.
    ts_open : (n_rows,) int64
        Open time of each row's bar, nanoseconds.
    sample : (n,) int64
        Rows of the segment; when read for learning, those with a finite label.
    label : (n,) float64
        Their labels.
    names : tuple of str
        Feature names.
    """

    values: npt.NDArray[np.float32]
    bar: npt.NDArray[np.int64]
    symbol: npt.NDArray[np.int64]
    symbols: tuple[str, ...]
    ts_open: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64]
    label: npt.NDArray[np.float64]
    names: tuple[str, ...]

    def batch(self) -> RowBatch:
        """Return the segment's rows to be scored, all earlier ones as their context."""
        start = int(self.sample[0]) if self.sample.size else self.bar.size
        return RowBatch(self.values, self.bar, self.symbol, self.symbols, self.ts_open, start)


class BarReweighter(Reweighter):  # type: ignore[misc]
    """Weights of training rows by (bar, symbol), on Qlib's reweighter interface.

    Parameters
    ----------
    ts_open : (n_bars,) int64
        Grid.
    symbols : tuple of str
        Columns of ``grid``.
    grid : (n_bars, n_symbols) float64
        Weights; NaN counts as 0.
    """

    def __init__(self, ts_open: npt.NDArray[np.int64], symbols: tuple[str, ...], grid: npt.NDArray[np.float64]) -> None:
        order = np.argsort(np.array(symbols), kind="stable")
        self._stamps = pd.DatetimeIndex(ts_open.astype("datetime64[ns]"))
        self._symbols = [symbols[k] for k in order]
        self._grid = np.nan_to_num(grid[:, order], nan=0.0)

    def at(self, bar: npt.NDArray[np.int64], symbol: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the weights of rows given by bar number and *sorted-name* symbol number, shape ``(n_rows,)``."""
        return self._grid[bar, symbol]

    def reweight(self, data: pd.DataFrame) -> pd.Series:
        """Return the weights of ``data``'s rows, indexed ``(datetime, instrument)``; for Qlib's own models."""
        bar = self._stamps.get_indexer(data.index.get_level_values(0))
        symbol = pd.Index(self._symbols).get_indexer(data.index.get_level_values(1))
        return pd.Series(self._grid[bar, symbol], index=data.index)


class LakeHandler(CryptoHandler):
    """Qlib handler that builds features and labels straight from the parquet lake; for ``qrun`` YAML.

    Parameters
    ----------
    lake : str or Path
        Folder of the lake (``Paths.lake``); external series and news are looked for beside it.
    symbols : sequence of str, optional
        Symbols of the panel; all cleaned ones by default.
    bars : str
        Bar length, e.g. ``1h``.
    features, model : mapping, optional
        Values of the ``features`` and ``model`` sections of ``config.yaml``; the label comes from ``model``.
    point_in_time : bool
        Only bars at whose close a symbol belonged to the universe the lake knows, as known then (the default); a lake without
        a universe has all bars.
    instruments, start_time, end_time, **processors
        As in :class:`CryptoHandler`.
    """

    def __init__(
        self,
        lake: str | Path,
        symbols: Sequence[str] | None = None,
        bars: str = "1h",
        features: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        *,
        point_in_time: bool = True,
        **rest: Any,
    ) -> None:
        store = Lake(Path(lake))
        panel = load_panel(store, tuple(symbols or store.symbols(Kind.CLEAN, bars)), bars)
        members = membership_of_lake(store) if point_in_time else None
        if members is not None:
            panel = panel.with_members(members)
        chosen = Settings.model_validate({"features": dict(features or {}), "data": {"frame": bars}})
        side = load_side(Paths(Path(lake).parent), store, chosen, panel.symbols)
        wanted, _ = settings_for_panel(panel, chosen.features, side)
        frame = build_features(panel, wanted, side=side)
        labels = make_labels(panel, ModelSettings.model_validate(dict(model or {})))
        super().__init__(frame=frame, labels={labels.kind: frame.at_rows(labels.values)}, **rest)


class FrameDataset(DatasetH):  # type: ignore[misc]
    """Qlib's dataset over a whole feature frame, as :func:`make_dataset` makes it; our models read its rows without pandas.

    Attributes
    ----------
    frame : FeatureFrame
        The features.
    row_label : (n_rows,) float64
        The label at the frame's rows.
    bin_bars : (int, int)
        Decision bars that histogram bins are placed on.
    bins : object or None
        The frame as a family has binned it, to be shared by trainings on the same bars.
    saved : Path or None
        Where ``frame`` is saved, for workers elsewhere.
    """

    frame: FeatureFrame
    row_label: npt.NDArray[np.float64]
    bin_bars: tuple[int, int]
    bins: Any = None
    saved: Path | None = None


def make_dataset(
    frame: FeatureFrame, labels: Labels, split: TimeSplit, bins: Any = None, saved: Path | None = None
) -> FrameDataset:
    """Return Qlib's dataset over ``frame`` with the segments of ``split``; the feature matrix is shared, not copied.

    Parameters
    ----------
    frame, labels : FeatureFrame, Labels
        On the same grid.
    split : TimeSplit
        Segments; one beyond the frame's end is left out.
    bins, saved : optional
        As in :class:`FrameDataset`.

    Raises
    ------
    UserError
        If frame and labels do not lie on the same grid.
    """
    check_same_grid(frame, labels)
    row_label = frame.at_rows(labels.values)
    handler = CryptoHandler(frame=frame, labels={labels.kind: row_label})
    stamps = pd.DatetimeIndex(frame.ts_open.astype("datetime64[ns]"))
    dataset = FrameDataset(
        handler, {s.name: (stamps[s.start], stamps[s.stop - 1]) for s in split.segments if s.stop <= frame.n_bars}
    )
    dataset.frame, dataset.row_label, dataset.bins, dataset.saved = frame, row_label, bins, saved
    dataset.bin_bars = split.bins or (split.train.start, split.train.stop)
    return dataset


def check_same_grid(frame: FeatureFrame, labels: Labels) -> None:
    """Refuse features and labels of different bars or symbols.

    Raises
    ------
    UserError
        If they differ.
    """
    if frame.symbols != labels.symbols or not np.array_equal(frame.ts_open, labels.ts_open):
        raise UserError("features and labels were built from different bars or symbols", "build both from the same panel")


def segment_arrays(dataset: DatasetH, segment: str, *, learning: bool) -> SegmentData:
    """Return one segment as arrays.

    Reads Qlib's raw view (``CS_RAW``): any other ``col_set`` makes pandas copy *all* rows before the segment is cut out.

    Parameters
    ----------
    dataset : DatasetH
        Any Qlib dataset whose handler has ``feature`` (and for learning ``label``) column groups.
    segment : str
        Name of the segment.
    learning : bool
        Use the learning view and drop rows without a finite label; else the inference view, label NaN where there is none.

    Raises
    ------
    UserError
        If the segment has no (labelled) row.
    """
    key = DataHandlerLP.DK_L if learning else DataHandlerLP.DK_I
    raw = dataset.prepare(segment, col_set=DataHandlerLP.CS_RAW, data_key=key)
    groups = raw.columns.get_level_values(0)
    names = tuple(str(n) for n in raw.columns[groups == "feature"].get_level_values(1))
    values = raw["feature"].to_numpy(dtype=np.float32)
    label = raw["label"].to_numpy(dtype=np.float64)[:, 0] if "label" in groups else np.full(len(raw), np.nan)
    bar, symbol = (np.asarray(codes, dtype=np.int64) for codes in raw.index.codes)
    if learning:
        keep = np.isfinite(label)
        if not keep.all():
            values, label, bar, symbol = values[keep], label[keep], bar[keep], symbol[keep]
    if label.size == 0:
        raise UserError(f"the {segment} segment has no {'labelled ' if learning else ''}rows", "raise data.history_days")
    return SegmentData(values, label, bar, symbol, names)


def windowed_rows(dataset: DatasetH, segment: str, *, learning: bool = True) -> WindowedRows:
    """Return one segment with every row before it.

    Of a :class:`FrameDataset` the values are a view of the frame's; of any other dataset Qlib makes a copy.

    Parameters
    ----------
    dataset, segment, learning
        As in :func:`segment_arrays`.

    Raises
    ------
    UserError
        If the segment has no (labelled) row.
    """
    first, last = dataset.segments[segment]
    if isinstance(dataset, FrameDataset) and isinstance(first, pd.Timestamp) and isinstance(last, pd.Timestamp):
        rows = _frame_rows(dataset, first, last)
        return labelled(rows, segment) if learning else rows
    key = DataHandlerLP.DK_L if learning else DataHandlerLP.DK_I
    raw = dataset.prepare(slice(None, last), col_set=DataHandlerLP.CS_RAW, data_key=key)
    groups = raw.columns.get_level_values(0)
    names = tuple(str(n) for n in raw.columns[groups == "feature"].get_level_values(1))
    label = raw["label"].to_numpy(dtype=np.float64)[:, 0] if "label" in groups else np.full(len(raw), np.nan)
    bar, symbol = (np.asarray(codes, dtype=np.int64) for codes in raw.index.codes)
    stamps = raw.index.levels[0].to_numpy().astype("datetime64[ns]").astype(np.int64)
    ts_open = stamps[bar]
    start = int(np.searchsorted(ts_open, pd.Timestamp(first).value)) if first is not None else 0
    sample = np.arange(start, len(raw), dtype=np.int64)
    if sample.size == 0:
        raise UserError(f"the {segment} segment has no rows", "raise data.history_days")
    values = raw["feature"].to_numpy(dtype=np.float32)
    symbols = tuple(str(s) for s in raw.index.levels[1])
    rows = WindowedRows(values, bar, symbol, symbols, ts_open, sample, label[sample], names)
    return labelled(rows, segment) if learning else rows


def _frame_rows(dataset: FrameDataset, first: pd.Timestamp, last: pd.Timestamp) -> WindowedRows:
    """Return the rows up to bar ``last``, those from bar ``first`` on as the sample, straight from the frame."""
    frame = dataset.frame
    start, stop = (int(k) for k in np.searchsorted(frame.ts_open, (first.value, last.value + 1)))
    rows = frame.row_span(start, stop)
    order = np.argsort(np.array(frame.symbols), kind="stable")
    sorted_number = np.empty(order.size, dtype=np.int64)
    sorted_number[order] = np.arange(order.size)
    bar = frame.row_bar[: rows.stop].astype(np.int64)
    sample = np.arange(rows.start, rows.stop, dtype=np.int64)
    return WindowedRows(
        frame.values[: rows.stop],
        bar,
        sorted_number[frame.row_symbol[: rows.stop]],
        tuple(frame.symbols[k] for k in order),
        frame.ts_open[bar],
        sample,
        dataset.row_label[sample],
        frame.names,
    )


def labelled(rows: WindowedRows, segment: str) -> WindowedRows:
    """Return ``rows`` with the labelled ones as the sample.

    Raises
    ------
    UserError
        If none is labelled.
    """
    known = np.isfinite(rows.label)
    if not known.any():
        raise UserError(f"the {segment} segment has no labelled rows", "raise data.history_days")
    return replace(rows, sample=rows.sample[known], label=rows.label[known])


def prediction_series(dataset: DatasetH, segment: str | slice, predicted: npt.NDArray[np.float64]) -> pd.Series:
    """Return predictions with the segment's ``(datetime, instrument)`` index, as Qlib's records expect."""
    index = dataset.prepare(segment, col_set=DataHandlerLP.CS_RAW, data_key=DataHandlerLP.DK_I).index
    if isinstance(segment, str) and len(index) != predicted.size:
        # pandas reads a span that mixes a bare date with a time in its own way; the rows scored are those up to its end.
        _, last = dataset.segments[segment]
        index = dataset.prepare(slice(None, last), col_set=DataHandlerLP.CS_RAW, data_key=DataHandlerLP.DK_I).index
        index = index[len(index) - predicted.size :]
    return pd.Series(predicted, index=index, name="score")

"""Feature frames as Qlib data: a loader and a handler for ``DatasetH``, Qlib's models and ``qrun``.

The Qlib frame is a view of the :class:`FeatureFrame`: index ``(datetime, instrument)`` built from codes, one float32 block for
``("feature", name)`` in declared order (Qlib's ``NestedDataLoader`` would sort the columns and scramble Alpha360), and float64
label columns. Time stamps are naive UTC *open* times, as Qlib's calendars carry them; a row is known at its bar's close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import DataLoader

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_files import load_feature_frame
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame

FloatArray = npt.NDArray[np.float64]


def row_index(frame: FeatureFrame) -> pd.MultiIndex:
    """Return the ``(datetime, instrument)`` index of the frame's rows, sorted, without hashing a single row."""
    order = np.argsort(np.array(frame.symbols), kind="stable")
    code_of = np.empty(order.size, dtype=np.int64)
    code_of[order] = np.arange(order.size)
    levels: Any = [pd.DatetimeIndex(frame.ts_open.astype("datetime64[ns]")), [frame.symbols[k] for k in order]]
    codes: Any = [frame.row_bar, code_of[frame.row_symbol]]
    return pd.MultiIndex(levels=levels, codes=codes, names=["datetime", "instrument"], verify_integrity=False)


def _columns(group: str, names: Sequence[str]) -> pd.MultiIndex:
    codes: Any = [np.zeros(len(names), dtype=np.int64), np.arange(len(names))]
    return pd.MultiIndex(levels=[[group], list(names)], codes=codes)


def feature_dataframe(frame: FeatureFrame, labels: Mapping[str, FloatArray] | None = None) -> pd.DataFrame:
    """Return the frame in Qlib's shape without copying its values.

    Parameters
    ----------
    frame : FeatureFrame
        Features.
    labels : mapping of name to (n_rows,) float64, optional
        Label columns aligned with the frame's rows. They stay float64: a block of its own keeps pandas from copying the
        features to join the two.
    """
    index = row_index(frame)
    features = pd.DataFrame(frame.values, index=index, columns=_columns("feature", frame.names), copy=False)
    if not labels:
        return features
    values = np.column_stack([np.asarray(v, dtype=np.float64) for v in labels.values()])
    label_frame = pd.DataFrame(values, index=index, columns=_columns("label", list(labels)), copy=False)
    joined: pd.DataFrame = pd.concat([features, label_frame], axis=1, copy=False)  # type: ignore[call-overload]
    return joined


class CryptoFeatureLoader(DataLoader):  # type: ignore[misc]
    """Serve a feature frame through Qlib's loader interface.

    Parameters
    ----------
    frame : FeatureFrame, optional
        Features in memory.
    features_dir : str or Path, optional
        Folder of a saved frame (memory-mapped); exactly one of the two is needed.
    labels : mapping of name to (n_rows,) float64, optional
        Label columns aligned with the frame's rows.
    """

    def __init__(
        self,
        frame: FeatureFrame | None = None,
        features_dir: str | Path | None = None,
        labels: Mapping[str, FloatArray] | None = None,
    ) -> None:
        if (frame is None) == (features_dir is None):
            raise UserError("CryptoFeatureLoader needs either a feature frame or the folder of a saved one")
        self.frame = frame if frame is not None else load_feature_frame(Path(str(features_dir)))
        self.labels = labels

    def load(self, instruments: Any = None, start_time: Any = None, end_time: Any = None) -> pd.DataFrame:
        """Return rows of ``instruments`` (a list of symbols, None for all) from ``start_time`` to ``end_time`` inclusive.

        Times are naive UTC bar *open* times.

        Raises
        ------
        UserError
            If ``instruments`` is not a list of symbols, or nothing is left.
        """
        data = feature_dataframe(self.frame, self.labels)
        if start_time is not None or end_time is not None:
            data = data.loc[pd.IndexSlice[slice(_stamp(start_time), _stamp(end_time)), :], :]
        if instruments is not None:
            if not isinstance(instruments, list | tuple):
                raise UserError("instruments must be a list of symbols, e.g. [BTCUSDT, ETHUSDT]")
            data = data[data.index.get_level_values("instrument").isin(list(instruments))]
        if data.empty:
            raise UserError("no feature row lies in the instruments and times asked for")
        return data


def _stamp(time: Any) -> pd.Timestamp | None:
    return None if time is None else pd.Timestamp(time)


class CryptoHandler(DataHandlerLP):  # type: ignore[misc]
    """Qlib handler over our features; usable in ``DatasetH`` and in ``qrun`` YAML.

    Parameters
    ----------
    instruments : list of str, optional
        Symbols; all by default.
    start_time, end_time : str or Timestamp, optional
        Naive UTC bar open times, inclusive.
    frame, features_dir, labels
        As in :class:`CryptoFeatureLoader`.
    **processors
        ``infer_processors``, ``learn_processors``, ``shared_processors``, ``process_type`` of ``DataHandlerLP``. Avoid Qlib's
        ``ProcessInf`` and ``CSZFillna``: hours of CPU on a year of hours.
    """

    def __init__(
        self,
        instruments: Sequence[str] | None = None,
        start_time: Any = None,
        end_time: Any = None,
        frame: FeatureFrame | None = None,
        features_dir: str | Path | None = None,
        labels: Mapping[str, FloatArray] | None = None,
        **processors: Any,
    ) -> None:
        loader = CryptoFeatureLoader(frame, features_dir, labels)
        super().__init__(instruments, start_time, end_time, data_loader=loader, **processors)

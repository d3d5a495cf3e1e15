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
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.feature_engineering.feature_files import load_feature_frame
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features, settings_for_panel
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.side_loading import load_side
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.lake import Kind, Lake
from crypto_qlib.store.paths import Paths

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
            If ``instruments`` is neither a list of symbols nor ``all``, or nothing is left.
        """
        instruments = None if instruments == "all" else instruments
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


class LakeFeatureLoader(CryptoFeatureLoader):
    """Any of our feature sets, built from the parquet lake, as one loader among others.

    ::

        data_loader:
          class: NestedDataLoader
          module_path: qlib.data.dataset.loader
          kwargs:
            dataloader_l:
              - {class: QlibDataLoader, module_path: qlib.data.dataset.loader, kwargs: {...}}
              - class: LakeFeatureLoader
                module_path: crypto_qlib.feature_engineering.qlib_handler
                kwargs: {lake: workspace/lake, sets: [technical, news]}

    Its rows have the index of ``D.features`` with the two levels swapped, so frames of both join by index. Qlib's
    ``NestedDataLoader`` sorts columns by name: give Alpha360 to models that know their order by itself.

    Parameters
    ----------
    lake : str or Path
        Folder of the lake; external series and news are looked for beside it.
    sets : sequence of str
        Feature sets, see ``crypto-qlib features list --all``.
    symbols : sequence of str, optional
        Coins of the panel, over which ranks and means go; all cleaned ones by default.
    bars : str
        Bar length, e.g. ``1h``.
    features : mapping, optional
        Further values of the ``features`` section of ``config.yaml``.

    Raises
    ------
    UserError
        If a set is unknown, or the lake has no cleaned bars.
    """

    def __init__(
        self,
        lake: str | Path,
        sets: Sequence[str],
        symbols: Sequence[str] | None = None,
        bars: str = "1h",
        features: Mapping[str, Any] | None = None,
    ) -> None:
        unknown = sorted(set(sets) - set(FEATURE_SETS))
        if unknown:
            raise UserError(f"there is no feature set {unknown[0]}", f"choose from {', '.join(FEATURE_SETS)}")
        store = Lake(Path(lake))
        panel = load_panel(store, tuple(symbols or store.symbols(Kind.CLEAN, bars)), bars)
        settings = Settings.model_validate({"features": {**(features or {}), "sets": list(sets)}, "data": {"frame": bars}})
        side = load_side(Paths(Path(lake).parent), store, settings, panel.symbols)
        wanted, _ = settings_for_panel(panel, settings.features, side)
        super().__init__(build_features(panel, wanted, side=side))


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

"""Our features in Qlib's shape: no copy, right order, usable by a plain DatasetH."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset import DatasetH

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_files import save_feature_frame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.feature_engineering.qlib_handler import CryptoFeatureLoader, CryptoHandler, feature_dataframe
from crypto_qlib.settings.schema import FeatureSettings
from tests.noise_market import noise_panel, same_bits

PANEL = noise_panel(120, 5, seed=5, with_gaps=True)
FRAME = build_features(PANEL, FeatureSettings(sets=("alpha360", "funding")))
LABEL = {"y": np.arange(FRAME.n_rows, dtype=np.float64)}


def test_values_are_shared_not_copied_even_beside_labels() -> None:
    data = feature_dataframe(FRAME, LABEL)
    blocks = [b.values for b in data._mgr.blocks]
    assert any(np.shares_memory(b, FRAME.values) for b in blocks)


def test_shape_is_what_qlib_expects() -> None:
    data = feature_dataframe(FRAME, LABEL)
    assert data.index.names == ["datetime", "instrument"]
    assert data.index.is_monotonic_increasing, "else Qlib sorts, and copies, all of it"
    assert data.index.is_unique
    assert data.columns[0] == ("feature", "CLOSE59")
    assert data.columns[-1] == ("label", "y")
    assert data["feature"].dtypes.unique().tolist() == [np.dtype(np.float32)]
    stamp, symbol = data.index[7]
    assert stamp == pd.Timestamp(int(PANEL.ts_open[FRAME.row_bar[7]]))
    assert stamp.tzinfo is None
    assert symbol == PANEL.symbols[FRAME.row_symbol[7]]


def test_columns_keep_their_declared_order() -> None:
    assert [n for _, n in feature_dataframe(FRAME).columns] == list(FRAME.names)


def test_dataset_serves_segments_by_time() -> None:
    stamps = pd.DatetimeIndex(PANEL.ts_open.astype("datetime64[ns]"))
    dataset = DatasetH(
        CryptoHandler(frame=FRAME, labels=LABEL), {"train": (stamps[0], stamps[59]), "test": (stamps[60], stamps[119])}
    )
    test = dataset.prepare("test", col_set="feature")
    assert same_bits(test.to_numpy(), FRAME.values[FRAME.row_span(60, 120)])
    assert dataset.prepare("train", col_set="label").iloc[-1, 0] == FRAME.row_span(0, 60).stop - 1


def test_loader_cuts_by_symbol_and_time(tmp_path) -> None:
    save_feature_frame(FRAME, tmp_path)
    stamps = pd.DatetimeIndex(PANEL.ts_open.astype("datetime64[ns]"))
    cut = CryptoFeatureLoader(features_dir=tmp_path).load(["BTCUSDT"], stamps[10], stamps[19])
    assert len(cut) == 10
    assert cut.index.get_level_values("instrument").unique().tolist() == ["BTCUSDT"]


def test_wrong_use_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="either"):
        CryptoFeatureLoader()
    with pytest.raises(UserError, match="list of symbols"):
        CryptoFeatureLoader(FRAME).load("all")
    with pytest.raises(UserError, match="no feature row"):
        CryptoFeatureLoader(FRAME).load(["NOPEUSDT"])

"""Our features in Qlib's shape: no copy, right order, usable by a plain DatasetH."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.qlib_data_adapter import init_qlib
from crypto_qlib.data_collector.qlib_store import write_qlib_store
from crypto_qlib.feature_engineering.feature_files import save_feature_frame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.feature_engineering.qlib_handler import (
    CryptoFeatureLoader,
    CryptoHandler,
    LakeFeatureLoader,
    feature_dataframe,
)
from crypto_qlib.settings.schema import FeatureSettings
from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.store.observations import Observations
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import MARKET, SeriesStore
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
        CryptoFeatureLoader(FRAME).load("csi300")
    with pytest.raises(UserError, match="no feature row"):
        CryptoFeatureLoader(FRAME).load(["NOPEUSDT"])


COMBINED = """
class: DatasetH
module_path: qlib.data.dataset
kwargs:
  handler:
    class: DataHandlerLP
    module_path: qlib.data.dataset.handler
    kwargs:
      instruments: [BTCUSDT, ETHUSDT, C00USDT]
      start_time: 2024-01-05 00:00:00
      end_time: 2024-01-07 15:00:00
      infer_processors:
        - class: FastRobustZScoreNorm
          module_path: crypto_qlib.feature_engineering.qlib_processors
          kwargs: {fields_group: feature, fit_start_time: 2024-01-05 00:00:00, fit_end_time: 2024-01-06 00:00}
      data_loader:
        class: NestedDataLoader
        module_path: qlib.data.dataset.loader
        kwargs:
          dataloader_l:
            - class: QlibDataLoader
              module_path: qlib.data.dataset.loader
              kwargs:
                freq: 60min
                config:
                  feature: [["$close/Ref($close, 1)-1"], [ROC]]
                  label: [["Ref($close, -4)/$close-1"], [RET4]]
            - class: LakeFeatureLoader
              module_path: crypto_qlib.feature_engineering.qlib_handler
              kwargs: {lake: LAKE, sets: [technical]}
            - class: LakeFeatureLoader
              module_path: crypto_qlib.feature_engineering.qlib_handler
              kwargs: {lake: LAKE, sets: [cross_coin, sentiment]}
  segments:
    test: ["2024-01-06 01:00", "2024-01-07 15:00"]
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Return a workspace whose lake and Qlib store hold a small market and fear & greed."""
    paths = Paths(tmp_path_factory.mktemp("ws"))
    panel, lake = noise_panel(260, 5, seed=8), Lake(paths.lake)
    for k, symbol in enumerate(panel.symbols):
        rows = {n: getattr(panel, n)[:, k].copy() for n in ("open", "high", "low", "close", "volume", "quote_volume")}
        lake.upsert(Series(Kind.CLEAN, "1h", symbol), {"ts": panel.ts_open, **rows, "flag": np.zeros(260, np.uint16)})
    days = panel.ts_open[::24]
    fear = Observations(days - NS_PER_DAY, days, np.linspace(20.0, 80.0, days.size))
    SeriesStore(paths.series).append("fear_greed", MARKET, fear, int(panel.ts_open[-1]))
    write_qlib_store(paths.qlib, panel)
    return paths


def test_sets_are_loaders_that_combine_with_qlibs_own_in_one_yaml(workspace: Paths) -> None:
    init_qlib(workspace)
    config = yaml.safe_load(COMBINED.replace("LAKE", str(workspace.lake)))
    data = init_instance_by_config(config).prepare("test", col_set=["feature", "label"], data_key="raw")
    assert data.index.get_level_values("instrument").unique().tolist() == ["BTCUSDT", "C00USDT", "ETHUSDT"]
    assert len(data) == 39 * 3
    feature = data["feature"]
    assert {"ROC", "MOM1", "DISPERSION24", "FEAR_GREED"} <= set(feature.columns)
    np.testing.assert_allclose(feature["MOM1"], feature["ROC"], rtol=2e-3, atol=1e-6)
    assert feature["FEAR_GREED"].between(0.2, 0.8).all()
    assert data["label"]["RET4"].notna().any()


def test_our_rows_join_those_of_d_features_by_index(workspace: Paths) -> None:
    init_qlib(workspace)
    theirs = D.features(["BTCUSDT", "ETHUSDT"], ["$close/Mean($close, 24)-1"], freq="60min").swaplevel().sort_index()
    ours = LakeFeatureLoader(workspace.lake, ["technical"]).load(["BTCUSDT", "ETHUSDT"])["feature"]
    both = ours.join(theirs, how="inner")
    assert len(both) == 520
    late = both[both.index.get_level_values(0) >= pd.Timestamp("2024-01-02")]
    np.testing.assert_allclose(-late["MA24"] / (1.0 + late["MA24"]), late.iloc[:, -1], rtol=1e-3, atol=2e-6)


def test_an_unknown_set_is_one_clear_line(workspace: Paths) -> None:
    with pytest.raises(UserError, match="no feature set moon"):
        LakeFeatureLoader(workspace.lake, ["moon"])

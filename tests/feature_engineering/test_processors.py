"""Our processors against Qlib's own on the same frames; windows drawn on demand against the materialised rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawing
from hypothesis import settings
from hypothesis import strategies as st
from qlib.data.dataset import processor as stock

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering import qlib_processors as fast
from crypto_qlib.feature_engineering.alpha360_windows import Alpha360Windows
from crypto_qlib.feature_engineering.column_medians import median_and_spread
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.feature_engineering.qlib_handler import CryptoHandler
from crypto_qlib.settings.schema import FeatureSettings
from tests.noise_market import noise_panel, same_bits


def frame(*, infinite: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    index = pd.MultiIndex.from_product([pd.date_range("2024-01-01", periods=30, freq="h"), [f"C{k}" for k in range(7)]],
                                       names=["datetime", "instrument"])  # fmt: skip
    values = rng.standard_t(3, (len(index), 4)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    values[:7, 1] = 2.5  # no spread in the first bar
    if infinite:
        values[rng.random(values.shape) < 0.05] = np.inf
        values[rng.random(values.shape) < 0.05] = -np.inf
    columns = pd.MultiIndex.from_tuples([("feature", "A"), ("feature", "B"), ("feature", "C"), ("label", "Y")])
    return pd.DataFrame(values, index=index, columns=columns)


SPAN = {"fit_start_time": "2024-01-01", "fit_end_time": "2024-01-01 12:00", "fields_group": "feature"}
PAIRS = [
    ("RobustZScoreNorm", SPAN, False), ("RobustZScoreNorm", SPAN | {"clip_outlier": False}, False),
    ("CSZScoreNorm", {"fields_group": "feature"}, False), ("CSRankNorm", {"fields_group": "feature"}, False),
    ("Fillna", {"fields_group": "feature"}, False), ("Fillna", {}, False), ("CSZFillna", {"fields_group": "feature"}, False),
    ("ProcessInf", {}, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "infinite"), PAIRS, ids=[f"{p[0]}-{k}" for k, p in enumerate(PAIRS)])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_equals_qlibs_own_processor(name: str, options: dict[str, object], infinite: bool) -> None:
    theirs, ours = getattr(stock, name)(**options), getattr(fast, f"Fast{name}")(**options)
    given = frame(infinite=infinite)
    for one in (theirs, ours):
        one.fit(given.copy())
    kept = given.copy()
    got = ours(given)
    pd.testing.assert_frame_equal(given, kept)  # the frame handed in is not touched
    expected = theirs(given.copy())
    assert list(got.columns) == list(expected.columns)
    np.testing.assert_allclose(got.to_numpy(float), expected.to_numpy(float), rtol=2e-6, atol=2e-7)


columns = st.lists(
    st.one_of(st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, 1.0, -1.0])), max_size=40
)


@settings(max_examples=200, deadline=None)
@drawing(drawn=columns)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_medians_by_digits_are_those_of_sorting_bit_for_bit(drawn: list[float]) -> None:
    block = np.array([drawn, drawn[::-1]], np.float32).T.reshape(len(drawn), 2)
    centre, spread = median_and_spread(block)
    wide = block.astype(np.float64)
    middle = np.nanmedian(wide, axis=0) if drawn else np.full(2, np.nan)
    expected = np.nanmedian(np.abs(wide - middle), axis=0) if drawn else np.full(2, np.nan)
    np.testing.assert_array_equal(centre, middle)
    np.testing.assert_array_equal(spread, expected)


def test_medians_of_large_columns_of_any_shape() -> None:
    rng = np.random.default_rng(1)
    block = rng.standard_t(3, (20_001, 37)).astype(np.float32)
    block[:, 3], block[:, 4] = 1.0, np.round(block[:, 4])  # one value; few values, each of them thousands of times
    block[rng.random(block.shape) < 0.1] = np.nan
    centre, spread = median_and_spread(block)
    middle = np.nanmedian(block.astype(np.float64), axis=0)
    np.testing.assert_array_equal(centre, middle)
    np.testing.assert_array_equal(spread, np.nanmedian(np.abs(block - middle), axis=0))


@pytest.mark.parametrize("others", [1, 30])
def test_what_is_not_replaced_is_shared_and_order_kept(others: int) -> None:
    rng = np.random.default_rng(2)
    index = frame().index
    names = [("feature", f"F{k}") for k in range(20)] + [("label", f"Y{k}") for k in range(others)]
    given = pd.DataFrame(rng.normal(size=(len(index), len(names))).astype(np.float32), index, pd.MultiIndex.from_tuples(names))
    kept = given.copy()
    ranked = fast.FastCSRankNorm("label")(given)
    scaled = fast.FastRobustZScoreNorm("2024-01-01", "2024-01-02", "feature")
    scaled.fit(given)
    assert scaled.readonly(), "Qlib's handler copies the frame for processors that write to it"
    for done in (ranked, scaled(given)):
        assert list(done.columns) == names
    pd.testing.assert_frame_equal(given, kept)
    np.testing.assert_array_equal(ranked["feature"], given["feature"])
    if others == 1:
        assert np.shares_memory(ranked["feature", "F3"].to_numpy(), given["feature", "F3"].to_numpy())
        scaled_label = scaled(given)["label", "Y0"].to_numpy()
        np.testing.assert_array_equal(scaled_label, given["label", "Y0"].to_numpy())


def test_rows_out_of_order_are_refused() -> None:
    with pytest.raises(UserError, match="ordered"):
        fast.FastCSRankNorm("feature")(frame().iloc[::-1])


def test_fitted_processors_read_the_training_span_only() -> None:
    panel = noise_panel(200, 4)
    features = build_features(panel, FeatureSettings(sets=("funding",)))
    stamps = pd.DatetimeIndex(panel.ts_open.astype("datetime64[ns]"))
    norm = {"class": "FastRobustZScoreNorm", "module_path": "crypto_qlib.feature_engineering.qlib_processors",
            "kwargs": {"fit_start_time": stamps[0], "fit_end_time": stamps[99], "fields_group": "feature"}}  # fmt: skip
    first = CryptoHandler(frame=features, infer_processors=[norm]).fetch(col_set="feature")
    features.values[features.row_span(100, 200)] *= 50.0
    later = CryptoHandler(frame=features, infer_processors=[norm]).fetch(col_set="feature")
    rows = features.row_span(0, 100)
    assert same_bits(first.to_numpy()[rows], later.to_numpy()[rows])


@pytest.mark.parametrize("kind", ["pca", "autoencoder"])
def test_a_reduction_takes_the_features_place_and_reads_the_training_span_only(kind: str) -> None:
    if kind == "autoencoder":
        pytest.importorskip("torch")
    given = frame()
    options = {"fit_start_time": "2024-01-01", "fit_end_time": "2024-01-01 12:00", "n_components": 2, "kind": kind}
    other = given.copy()
    other.loc[pd.Timestamp("2024-01-01 13:00") :, "feature"] = 7.0
    made = []
    for data in (given, other):
        one = fast.ReduceFeatures(**options)
        one.fit(data)
        made.append(one(given))
    assert list(made[0].columns) == [("feature", "C0"), ("feature", "C1"), ("label", "Y")]
    pd.testing.assert_frame_equal(made[0], made[1])
    pd.testing.assert_series_equal(made[0]["label", "Y"], given["label", "Y"])


def test_windows_on_demand_equal_the_materialised_rows_bit_for_bit() -> None:
    panel = noise_panel(150, 6, seed=2, with_gaps=True)
    whole = build_features(panel, FeatureSettings(sets=("alpha360",)))
    windows = Alpha360Windows(panel)
    assert len(windows) == whole.n_rows
    which = np.random.default_rng(1).integers(0, whole.n_rows, 64)
    assert same_bits(windows.rows(which), whole.values[which])
    batch = windows.sequences(which)
    assert batch.shape == (64, 60, 6)
    assert same_bits(batch[:, -1, 0], whole.values[which][:, whole.names.index("CLOSE0")])
    assert same_bits(batch[:, 0, 5], whole.values[which][:, whole.names.index("VOLUME59")])

"""``D.features`` on arrays gives what Qlib's own provider gives: the oracle is Qlib itself, on the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import qlib
from hypothesis import given, settings
from hypothesis import strategies as st
from qlib.contrib.data.loader import Alpha158DL
from qlib.data import D
from qlib.data.cache import H
from qlib.data.ops import ElemOperator, Operators

from crypto_qlib.data_collector import qlib_kernels as k
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_data_adapter import PROVIDERS, init_qlib
from crypto_qlib.data_collector.qlib_store import write_qlib_store
from crypto_qlib.store.lake import Kind
from crypto_qlib.store.paths import Paths
from tests.data_collector.fake_exchange import T0
from tests.data_collector.test_qlib_data_adapter import SYMBOLS, lake_of_three

pytestmark = pytest.mark.filterwarnings("ignore")  # Qlib and what it imports warn of their own past


class Twice(ElemOperator):  # type: ignore[misc]
    """An operator of a user's own, which no plan knows."""

    def _load_internal(self, *where: Any) -> pd.Series:
        return self.feature.load(*where) * 2.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The three coins of the adapter's tests: holes, a late listing, an early delisting."""
    lake = lake_of_three(tmp_path_factory.mktemp("lake"))
    panel = load_panel(lake, SYMBOLS, "1h", kind=Kind.CANDLES)
    paths = Paths(tmp_path_factory.mktemp("store"))
    write_qlib_store(paths.qlib, panel)
    init_qlib(paths)
    Operators.register([Twice])
    return paths


def both(paths: Paths, instruments: Any, fields: list[str], **times: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what our provider gives and what Qlib's gives."""
    got: list[pd.DataFrame] = []
    for provider in (PROVIDERS["dataset_provider"], "LocalDatasetProvider"):
        qlib.init(
            provider_uri=str(paths.qlib), region="crypto", kernels=1, dataset_provider=provider, expression_cache=None,
            dataset_cache=None, logging_level=50, clear_mem_cache=True, custom_ops=[Twice],
        )  # fmt: skip
        H.clear()
        got.append(D.features(instruments, fields, freq="60min", **times))
    return got[0], got[1]


def assert_same(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    assert list(ours.columns) == list(theirs.columns)
    pd.testing.assert_index_equal(ours.index, theirs.index)
    for name in theirs.columns:
        a, b = ours[name].to_numpy(), theirs[name].to_numpy()
        assert a.dtype == np.float32
        scale = np.nanmedian(np.abs(b[np.isfinite(b)])) if np.isfinite(b).any() else 1.0
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * scale, equal_nan=True, err_msg=name)


OPERATORS = [
    "$close", "$close/Ref($close,5)", "Ref($close,-2)/Ref($close,-1)-1", "Mean($volume,24)", "Sum($volume,7)",
    "Std($close,24)/$close", "Var($close,5)", "Max($high,20)-Min($low,20)", "IdxMax($high,12)", "IdxMin($low,12)",
    "Slope($close,20)", "Rsquare($close,20)", "Resi($close,20)", "Corr($close,Log($volume+1),20)", "Cov($close,$volume,10)",
    "Med($close,9)", "Quantile($close,20,0.8)", "Rank($close,20)", "EMA($close,12)-EMA($close,26)", "Count($funding,24)",
    "Delta($close,3)", "Abs($close-$open)", "Sign($close-$open)", "Greater($close,$open)", "Less($close,$open)",
    "Mean($close>Ref($close,1),10)", "If($close>$open,$high,$low)", "If($close>=$open,1,0)", "Power($close,2)",
    "($close>$open)&($volume>Mean($volume,24))", "($close<$open)|($close<=$low)", "1-$open/$close", "$close**0.5",
    "$vwap/$close", "$mark_close-$close", "Mean($funding,48)", "$change", "Mean(Abs($change),24)/Std($change,24)",
]  # fmt: skip


@pytest.mark.slow  # compiles every kernel
def test_operators_give_what_qlib_gives(store: Paths) -> None:
    assert_same(*both(store, list(SYMBOLS), OPERATORS))


@pytest.mark.slow  # compiles every kernel
def test_alpha158_gives_what_qlib_gives(store: Paths) -> None:
    fields, _ = Alpha158DL.get_feature_config()
    assert_same(*both(store, D.instruments(), fields))


def test_operators_the_plan_does_not_know_are_left_to_qlib(store: Paths) -> None:
    fields = [
        "Twice($close)",
        "Mean(Twice($close),5)/$close",
        "Mean($close,0)",
        "EMA($close,0.1)",
        "Skew($close,20)",
        "WMA($close,5)",
    ]
    assert_same(*both(store, ["BTCUSDT", "LATEUSDT"], fields))


@pytest.mark.parametrize(
    "times",
    [
        {"start_time": "+60h", "end_time": "+180h"},
        {"start_time": "+190h"},  # one coin is gone by then
        {"end_time": "+50h"},  # one is not listed yet
        {"start_time": "+120h", "end_time": "+120h"},
    ],
)
def test_a_part_of_the_history_looks_back_as_far_as_qlib_does(store: Paths, times: dict[str, str]) -> None:
    exact = {name: pd.Timestamp(T0) + pd.Timedelta(value[1:]) for name, value in times.items()}
    fields = ["Mean($close,24)/$close", "Ref($close,30)", "Ref($close,-3)", "EMA($close,12)", "Std(Mean($close,5),10)"]
    assert_same(*both(store, D.instruments(), fields, **exact))


def test_listing_spans_are_respected(store: Paths) -> None:
    spans = {"BTCUSDT": [(pd.Timestamp(T0) + pd.Timedelta(hours=a), pd.Timestamp(T0) + pd.Timedelta(hours=b))
                         for a, b in ((10, 20), (40, 44))]}  # fmt: skip
    ours, theirs = both(store, spans, ["Mean($close,5)"])
    assert len(ours) == 16
    assert_same(ours, theirs)


def test_an_instrument_whose_fields_cover_different_bars_is_left_to_qlib(store: Paths, tmp_path: Path) -> None:
    import shutil  # noqa: PLC0415 - one test's

    copy = Paths(tmp_path)
    shutil.copytree(store.qlib, copy.qlib)
    path = copy.qlib / "features/lateusdt/volume.60min.bin"
    content = np.fromfile(path, "<f4")
    np.concatenate(([content[0] + 7], content[8:-5])).astype("<f4").tofile(path)
    assert_same(*both(copy, list(SYMBOLS), ["$close/$open", "Mean($volume,5)", "Mean($close*$volume,3)"]))


def test_no_instrument_no_rows(store: Paths) -> None:
    ours, _ = both(store, ["NOPEUSDT"], ["$close"])
    assert ours.empty
    assert list(ours.columns) == ["$close"]


VALUES = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")), st.sampled_from([0.0, 1e5, 1e5 + 0.1])), min_size=1, max_size=150
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(2, 12))
def test_rolling_sums_agree_with_pandas_whatever_comes_before(values: list[float], n: int) -> None:
    x = np.array(values)
    windows = pd.Series(x).rolling(n, min_periods=1)
    for kind, name in ((k.MEAN, "mean"), (k.SUM, "sum"), (k.COUNT, "count"), (k.STD, "std")):
        # A square that left the window leaves its rounding behind: half the digits of the largest value that ever was in it.
        slack = 1e-7 * max(1.0, float(np.nanmax(np.abs(x), initial=0.0)))
        np.testing.assert_allclose(k.rolling_moment(x, n, kind), getattr(windows, name)(), rtol=1e-6, atol=slack, err_msg=name)
    np.testing.assert_array_equal(k.rolling_extreme(x, n, k.MAX), windows.max())
    np.testing.assert_array_equal(k.rolling_extreme(x, n, k.MIN), windows.min())
    np.testing.assert_allclose(k.rolling_rank(x, n), windows.rank(pct=True), rtol=1e-12)
    np.testing.assert_allclose(k.rolling_quantile(x, n, 0.3), windows.quantile(0.3), rtol=1e-9, atol=1e-9)


def test_a_large_level_does_not_eat_the_digits_of_a_small_spread() -> None:
    """Running sums around zero would lose a spread of 0.01 on a level of 100,000 squared."""
    x = 1e5 + 0.01 * np.sin(np.arange(5000.0))
    exact = np.array([np.std(x[t - 19 : t + 1], ddof=1) for t in range(19, x.size)])
    np.testing.assert_allclose(k.rolling_moment(x, 20, k.STD)[19:], exact, rtol=1e-6)

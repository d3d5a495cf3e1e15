from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qlib.data import D
from qlib.workflow import R

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, FundingBlock, MarketPanel
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_data_adapter import init_qlib, qlib_symbols, update_from_panel
from crypto_qlib.data_collector.qlib_store import bins_that_differ, vwap, whole_days, write_qlib_store
from crypto_qlib.store.lake import Kind, Lake
from crypto_qlib.store.paths import Paths
from tests.data_collector.fake_exchange import T0, part, walk, with_values

N = 24 * 20 + 5


def lake_of_three(root: Path) -> Lake:
    """One whole coin, one listed late with a hole, one delisted early; the first without quote volume for a while."""
    lake = Lake(root)
    whole = walk(1, N)
    quote = whole.quote_volume.copy()
    quote[:30] = np.nan
    volume = whole.volume.copy()
    volume[40:43] = 0.0
    rows = np.arange(N)
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", with_values(whole, quote_volume=quote, volume=volume))
    lake.write_bars(Kind.CANDLES, "1h", "LATEUSDT", part(walk(2, N), (rows >= 100) & (rows != 150)))
    lake.write_bars(Kind.CANDLES, "1h", "GONEUSDT", part(walk(3, N), rows < 200))
    lake.write_funding("BTCUSDT", FundingBlock(T0 + 8 * NS_PER_HOUR * np.arange(N // 8), np.linspace(-1e-4, 1e-4, N // 8)))
    return lake


SYMBOLS = ("BTCUSDT", "LATEUSDT", "GONEUSDT")


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> MarketPanel:
    return load_panel(lake_of_three(tmp_path_factory.mktemp("lake")), SYMBOLS, "1h", kind=Kind.CANDLES)


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


@pytest.mark.filterwarnings("ignore")  # Qlib and what it imports warn of their own past
def test_qlib_reads_what_the_panel_says(tmp_path: Path, panel: MarketPanel) -> None:
    paths = Paths(tmp_path)
    update_from_panel(paths, panel)
    init_qlib(paths)
    calendar = D.calendar(freq="60min")
    assert len(calendar) == N
    assert calendar[-1].value == panel.ts_open[-1]
    assert qlib_symbols("1h") == sorted(SYMBOLS)
    for j, symbol in enumerate(SYMBOLS):
        expressions = ["$close", "$vwap", "$funding", "$mark_close", "Ref($close, 1)", "Mean($close, 24)", "$change", "$factor"]
        frame = D.features([symbol], expressions, freq="60min").droplevel("instrument")
        rows = np.flatnonzero(np.isfinite(panel.close[:, j]))
        span = slice(rows[0], rows[-1] + 1)
        close = panel.close[span, j]
        assert frame.index.as_unit("ns").asi8.tolist() == panel.ts_open[span].tolist()
        np.testing.assert_array_equal(frame["$close"], float32(close))
        np.testing.assert_array_equal(frame["$mark_close"], float32(panel.mark_close[span, j]))
        np.testing.assert_array_equal(frame["$funding"], float32(panel.funding_rate[span, j]))
        np.testing.assert_array_equal(frame["Ref($close, 1)"][1:], float32(close)[:-1])
        windows = np.lib.stride_tricks.sliding_window_view(close, 24)
        whole = np.isfinite(windows).all(axis=1)
        np.testing.assert_allclose(frame["Mean($close, 24)"][23:][whole], windows.mean(axis=1)[whole], rtol=1e-6)
        np.testing.assert_allclose(frame["$change"][1:], close[1:] / close[:-1] - 1, rtol=2e-6)
        assert frame["$vwap"].notna().sum() == frame["$close"].notna().sum() == frame["$factor"].sum()


@pytest.mark.filterwarnings("ignore")
def test_qlib_has_day_bars_and_sees_appended_bars_at_once(tmp_path: Path, panel: MarketPanel) -> None:
    paths = Paths(tmp_path)
    update_from_panel(paths, panel.rows(0, N - 30))
    init_qlib(paths)
    assert len(D.features(["BTCUSDT"], ["$close"], freq="60min")) == N - 30
    update_from_panel(paths, panel)
    assert len(D.features(["BTCUSDT"], ["$close"], freq="60min")) == N
    days = D.features(["BTCUSDT"], ["$open", "$close", "$volume"], freq="day").droplevel("instrument")
    assert len(days) == 20
    assert days.index[0].value == T0
    np.testing.assert_array_equal(days["$open"], float32(panel.open[0 : 24 * 20 : 24, 0]))
    np.testing.assert_array_equal(days["$close"], float32(panel.close[23 : 24 * 20 : 24, 0]))


@pytest.mark.slow  # MLflow builds its database
@pytest.mark.filterwarnings("ignore")
def test_runs_are_recorded_beside_the_database_and_nothing_falls_into_the_current_folder(
    tmp_path: Path, panel: MarketPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    paths = Paths(tmp_path / "work space")
    update_from_panel(paths, panel.rows(0, 30))
    init_qlib(paths)
    for _ in range(2):
        with R.start(experiment_name="trial"):
            R.log_params(a=1)
            R.save_objects(**{"thing.pkl": {"x": 1}})
            assert R.load_object("thing.pkl") == {"x": 1}
            run = R.get_recorder().id
    assert len(R.search_records([R.exp_manager.get_exp(experiment_name="trial").id])) == 2
    assert len(R.list_recorders(experiment_name="trial")) == 2
    assert list(here.iterdir()) == []
    assert (paths.root / "mlflow_files/trial" / run / "artifacts/thing.pkl").is_file()


def test_a_store_that_does_not_exist_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no Qlib store"):
        init_qlib(Paths(tmp_path))


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, N), max_size=4), torn=st.integers(0, 40))
def test_appending_in_any_steps_and_torn_appends_end_in_the_bytes_of_a_new_store(
    cuts: list[int], torn: int, panel: MarketPanel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grown, fresh = tmp_path_factory.mktemp("grown") / "qlib", tmp_path_factory.mktemp("fresh") / "qlib"
    for cut in sorted(cuts):
        write_qlib_store(grown, panel.rows(0, cut))
        path = grown / "features/btcusdt/close.60min.bin"
        path.write_bytes(path.read_bytes()[: -torn or None])  # a kill in the middle of an append
    write_qlib_store(grown, panel)
    write_qlib_store(fresh, panel)
    assert tree(grown) == tree(fresh)


def test_new_bars_are_appended_in_place_and_nothing_is_done_twice(tmp_path: Path, panel: MarketPanel) -> None:
    write_qlib_store(tmp_path / "qlib", panel.rows(0, N - 1))
    path = tmp_path / "qlib/features/btcusdt/close.60min.bin"
    inode = path.stat().st_ino
    report = write_qlib_store(tmp_path / "qlib", panel)
    assert report.rewritten == 0
    assert report.appended == 11 * 2  # every field of the two coins that still trade; no day has ended
    assert path.stat().st_ino == inode
    again = write_qlib_store(tmp_path / "qlib", panel)
    assert (again.appended, again.rewritten) == (0, 0)


def test_a_corrected_bar_rewrites_only_the_bins_it_is_in(tmp_path: Path, panel: MarketPanel) -> None:
    write_qlib_store(tmp_path, panel)
    funding = panel.funding_rate.copy()
    funding[80, 0] = 0.5
    changed = MarketPanel(**{**{n: getattr(panel, n) for n in MarketPanel.__slots__}, "funding_rate": funding})
    assert [p.name for p in bins_that_differ(tmp_path, changed)] == ["funding.60min.bin", "funding.day.bin"]
    assert write_qlib_store(tmp_path, changed).rewritten == 2
    assert bins_that_differ(tmp_path, changed) == []


def test_older_history_rebuilds_the_store(tmp_path: Path, panel: MarketPanel) -> None:
    write_qlib_store(tmp_path / "qlib", panel.rows(100, N))
    write_qlib_store(tmp_path / "qlib", panel)
    write_qlib_store(tmp_path / "fresh", panel)
    assert tree(tmp_path / "qlib") == tree(tmp_path / "fresh")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "qlib"]


@pytest.mark.parametrize(
    ("volume", "quote_volume", "expected"),
    [
        (2.0, 21.0, 10.5),
        (2.0, 100.0, 11.0),  # outside the bar: held at the high
        (0.0, 0.0, 10.0),  # nothing traded: the close
        (2.0, np.nan, (11.0 + 9.0 + 10.0) / 3),  # turnover unknown: the typical price
        (np.nan, np.nan, (11.0 + 9.0 + 10.0) / 3),
    ],
)
def test_vwap_is_inside_the_bar_and_never_missing(volume: float, quote_volume: float, expected: float) -> None:
    found = vwap(*(np.array([v]) for v in (11.0, 9.0, 10.0, volume, quote_volume)))
    np.testing.assert_allclose(found, expected)


def test_day_bars_cover_whole_utc_days_only(panel: MarketPanel) -> None:
    days = whole_days(panel.rows(5, N))  # begins at 05:00, ends at 04:00
    assert days.n_bars == 19
    assert days.ts_open[0] == T0 + NS_PER_DAY
    np.testing.assert_array_equal(days.high[:, 0], panel.high[24 : 24 * 20, 0].reshape(19, 24).max(axis=1))
    np.testing.assert_allclose(days.volume[:, 0], panel.volume[24 : 24 * 20, 0].reshape(19, 24).sum(axis=1))
    assert np.isnan(days.close[:3, 1]).all()  # LATEUSDT is listed on the fifth day
    assert np.isfinite(days.close[4:, 1]).all()
    with_funding = panel.funding_rate[24 : 24 * 20, 0].reshape(19, 24)
    np.testing.assert_allclose(days.funding_rate[:, 0], np.nansum(with_funding, axis=1))


def test_a_panel_cut_at_a_moment_writes_nothing_later(tmp_path: Path, panel: MarketPanel) -> None:
    """Perturbing every value after the moment changes no bin."""
    as_of = T0 + 300 * NS_PER_HOUR
    rng = np.random.default_rng(1)
    later = {n: getattr(panel, n).copy() for n in PANEL_FIELDS}
    for values in later.values():
        values[300:] *= rng.uniform(0.5, 2.0)
    other = MarketPanel(panel.symbols, panel.frame_ns, panel.ts_open, has_mark=panel.has_mark, **later)
    write_qlib_store(tmp_path / "a", panel.known_until(as_of))
    write_qlib_store(tmp_path / "b", other.known_until(as_of))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")

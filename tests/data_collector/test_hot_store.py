"""The hot store: whatever happens on the way, it ends in the bytes of a store written at once, and readers see each bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qlib.data import D

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, FloatArray, MarketPanel
from crypto_qlib.data_collector.hot_store import HotStore, build_hot_store, hot_bins_that_differ
from crypto_qlib.data_collector.qlib_data_adapter import forget_cached_bars, init_qlib, qlib_symbols
from crypto_qlib.data_collector.qlib_store import write_qlib_store
from crypto_qlib.store.append_log import AppendLog
from crypto_qlib.store.panel_store import Layout, PanelStore
from crypto_qlib.store.paths import Paths

H = NS_PER_HOUR
T0 = 1_735_689_600_000_000_000 - 5 * H  # 2024-12-31T19:00Z: the first whole day begins five bars in
N = 24 * 3 + 11
SYMBOLS = ("BTCUSDT", "LATEUSDT", "GONEUSDT")


def make_panel(n: int = N, seed: int = 1) -> MarketPanel:
    """A coin that always trades, one that comes late and has a hole, one that goes early."""
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.standard_normal((n, 3)) * 0.01, axis=0))
    columns = {"close": close, "open": close * 0.999, "high": close * 1.002, "low": close * 0.997}
    columns |= {"volume": rng.uniform(1, 2, (n, 3)), "quote_volume": rng.uniform(100, 200, (n, 3))}
    columns["funding_rate"] = np.where(np.arange(n)[:, None] % 8 == 0, 1e-4, np.nan) * np.ones((1, 3))
    absent = np.zeros((n, 3), np.bool_)
    absent[:9, 1] = absent[20:23, 1] = absent[40:, 2] = True
    for values in columns.values():
        values[absent] = np.nan
    for name in ("open", "high", "low", "close"):
        columns[f"mark_{name}"] = columns[name]
    return MarketPanel(SYMBOLS, H, T0 + H * np.arange(n, dtype=np.int64), has_mark=np.zeros(3, np.bool_), **columns)


def bar(panel: MarketPanel, row: int) -> dict[str, FloatArray]:
    return {name: getattr(panel, name)[row] for name in PANEL_FIELDS}


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def assert_is(store: PanelStore, panel: MarketPanel) -> None:
    for name in PANEL_FIELDS:
        np.testing.assert_array_equal(store.field(name), getattr(panel, name), name)


def assert_bins_are(root: Path, panel: MarketPanel, fresh: Path) -> None:
    write_qlib_store(fresh, panel)
    grown, wanted = tree(root), tree(fresh)
    grown.pop("hot.json")
    assert sorted(grown) == sorted(wanted)
    assert [name for name in wanted if grown[name] != wanted[name]] == []


@pytest.mark.parametrize("first", [1, 3, 30, N - 1])
def test_bars_appended_one_by_one_end_in_the_store_written_at_once(tmp_path: Path, first: int) -> None:
    panel = make_panel()
    build_hot_store(tmp_path / "hot", tmp_path / "qlib", panel.rows(0, first))
    with HotStore(tmp_path / "hot", tmp_path / "qlib") as store:
        for row in range(first, N):
            store.append(int(panel.ts_open[row]), bar(panel, row))
    assert_is(PanelStore.open(tmp_path / "hot"), panel)
    assert_bins_are(tmp_path / "qlib", panel, tmp_path / "fresh")
    assert (tmp_path / "hot/log").stat().st_size == 0


class Killed(Exception):
    """A process that dies here."""


class DyingStore(HotStore):
    """Dies after the log has a bar, or after the panel has it, or half-way through the bins."""

    dies_at = ""

    def _apply(self, row: int, values: FloatArray) -> None:
        if self.dies_at == "log":
            raise Killed
        if self.dies_at == "panel":
            self._write_panel(row, values)
            raise Killed
        super()._apply(row, values)

    def _announce(self, n: int, n_days: int) -> None:
        if self.dies_at == "bins":
            raise Killed
        super()._announce(n, n_days)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 30)),
        st.tuples(st.just("again"), st.integers(0, 200)),
        st.tuples(st.just("correct"), st.integers(0, 200)),
        st.tuples(st.just("erase"), st.integers(0, 200)),
        st.tuples(st.just("appear"), st.integers(0, 200)),
        st.tuples(st.sampled_from(["log", "panel", "bins", "torn", "reopen", "checkpoint"]), st.integers(1, 60)),
    ),
    max_size=9,
)


@pytest.mark.slow  # thousands of synced writes
@settings(max_examples=20, deadline=None)
@given(actions=ACTIONS, seed=st.integers(0, 3))
def test_appends_kills_and_corrections_in_any_order_end_in_the_same_bytes(
    actions: Sequence[tuple[str, int]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("store")
    truth = {name: getattr(make_panel(), name).copy() for name in PANEL_FIELDS}
    rng = np.random.default_rng(seed)
    n = 2
    times = make_panel().ts_open

    def now(rows: int) -> MarketPanel:
        return MarketPanel(SYMBOLS, H, times[:rows], has_mark=np.zeros(3, np.bool_), **{k: v[:rows] for k, v in truth.items()})

    build_hot_store(place / "hot", place / "qlib", now(n))
    store = DyingStore(place / "hot", place / "qlib", flush_bars=7)
    for action, k in [*actions, ("append", N)]:
        rows = [k % n]
        if action == "append":
            rows = list(range(n, min(n + k, N)))
        elif action in ("correct", "erase", "appear"):
            column = int(rng.integers(3))
            for name in PANEL_FIELDS:
                truth[name][rows[0], column] = np.nan if action == "erase" else 50.0 + k
        elif action in ("log", "panel", "bins"):
            store.dies_at = action
            rows = [n] if n < N else [k % n]
        for row in rows if action not in ("torn", "reopen", "checkpoint") else ():
            n = max(n, row + 1)
            try:
                store.append(int(times[row]), {name: truth[name][row] for name in PANEL_FIELDS})
            except Killed:
                store.dies_at = ""
                store.abandon()
                store = DyingStore(place / "hot", place / "qlib", flush_bars=7)
        if action == "torn":  # killed in the middle of the log's write
            store.abandon()
            with (place / "hot/log").open("ab") as f:
                f.write(bytes(range(k)))
            store = DyingStore(place / "hot", place / "qlib", flush_bars=7)
        elif action == "reopen":
            store.close()
            store = DyingStore(place / "hot", place / "qlib", flush_bars=7)
        elif action == "checkpoint":
            store.checkpoint()
    store.close()
    assert_is(PanelStore.open(place / "hot"), now(n))
    assert_bins_are(place / "qlib", now(n), place / "fresh")
    assert hot_bins_that_differ(PanelStore.open(place / "hot"), place / "qlib") == []


def test_a_gap_in_the_feed_is_a_gap_in_the_store(tmp_path: Path) -> None:
    panel = make_panel()
    with_gap = {name: getattr(panel, name).copy() for name in PANEL_FIELDS}
    for values in with_gap.values():
        values[10:45] = np.nan  # a day and a half, over midnight
    wanted = MarketPanel(SYMBOLS, H, panel.ts_open, has_mark=panel.has_mark, **with_gap)
    build_hot_store(tmp_path / "hot", tmp_path / "qlib", panel.rows(0, 10))
    with HotStore(tmp_path / "hot", tmp_path / "qlib") as store:
        for row in range(45, N):
            store.append(int(panel.ts_open[row]), bar(panel, row))
    assert_is(PanelStore.open(tmp_path / "hot"), wanted)
    assert_bins_are(tmp_path / "qlib", wanted, tmp_path / "fresh")


@pytest.mark.filterwarnings("ignore")  # Qlib and what it imports warn of their own past
def test_a_bar_is_visible_to_readers_and_to_qlib_when_the_append_returns(tmp_path: Path) -> None:
    panel = make_panel()
    paths = Paths(tmp_path)
    folder = paths.panels / "1h"
    first = 7  # before LATEUSDT is listed
    build_hot_store(folder, paths.qlib, panel.rows(0, first))
    reader = PanelStore.open(folder)
    init_qlib(paths)
    fields = ["$close", "Mean($volume,5)", "$vwap/Ref($close,1)", "$change", "Skew($close,20)"]
    assert len(D.features(["BTCUSDT"], fields, freq="60min")) == first
    with HotStore(folder, paths.qlib) as store:
        for row in range(first, first + 10):
            store.append(int(panel.ts_open[row]), bar(panel, row))
        n = first + 10
        lagging = (paths.qlib / "features/btcusdt/close.60min.bin").stat().st_size
        assert lagging == 4 * (1 + first)  # no file of Qlib's was touched
        assert len(reader) == n
        np.testing.assert_array_equal(reader.market_panel().close, panel.close[:n])
        forget_cached_bars()
        assert D.calendar(freq="60min")[-1].value == panel.ts_open[n - 1]
        assert qlib_symbols("1h") == sorted(SYMBOLS)
        seen = D.features(D.instruments(), fields, freq="60min")
        store.flush()
        assert (paths.qlib / "features/btcusdt/close.60min.bin").stat().st_size == 4 * (1 + n)
        forget_cached_bars()
        pd.testing.assert_frame_equal(D.features(D.instruments(), fields, freq="60min"), seen)
        assert seen.loc["BTCUSDT", "$close"].iloc[-1] == np.float32(panel.close[n - 1, 0])
        assert seen.index.get_level_values("instrument").unique().tolist() == sorted(SYMBOLS)


def test_views_are_read_only_and_cost_no_copy(tmp_path: Path) -> None:
    build_hot_store(tmp_path / "hot", tmp_path / "qlib", make_panel())
    panel = PanelStore.open(tmp_path / "hot").market_panel()
    assert panel.close.base is not None
    with pytest.raises(ValueError, match="read-only"):
        panel.close[0, 0] = 1.0


def test_building_again_writes_only_what_is_new_and_anew_what_has_changed(tmp_path: Path) -> None:
    panel = make_panel()
    where = (tmp_path / "hot", tmp_path / "qlib")
    assert build_hot_store(*where, panel.rows(0, 50)) == 50
    assert build_hot_store(*where, panel) == N - 50
    assert build_hot_store(*where, panel) == 0
    assert build_hot_store(*where, make_panel(seed=2)) == N
    assert_is(PanelStore.open(where[0]), make_panel(seed=2))


def test_a_bar_off_the_grid_or_far_ahead_is_refused(tmp_path: Path) -> None:
    panel = make_panel()
    build_hot_store(tmp_path / "hot", tmp_path / "qlib", panel)
    with HotStore(tmp_path / "hot", tmp_path / "qlib") as store:
        for ts, why in (
            (T0 + 1, "not on the grid"),
            (T0 - H, "not on the grid"),
            (T0 + 200_000 * H, "bars beyond the last one"),
        ):
            with pytest.raises(UserError, match=why):
                store.append(ts, bar(panel, 0))
    assert_is(PanelStore.open(tmp_path / "hot"), panel)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    build_hot_store(tmp_path / "hot", tmp_path / "qlib", make_panel())
    with HotStore(tmp_path / "hot", tmp_path / "qlib"), pytest.raises(UserError, match="another process is writing"):
        HotStore(tmp_path / "hot", tmp_path / "qlib")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no panel store"),
        ('{"version": 99}', "layout version 99"),
        ("{", "is damaged"),
        ('{"version": 1}', "is damaged"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_clear_line(tmp_path: Path, content: str | None, why: str) -> None:
    if content is not None:
        (tmp_path / "layout.json").write_text(content)
    with pytest.raises(UserError, match=why):
        PanelStore.open(tmp_path)


def test_symbols_may_join_within_the_spare_width_and_beyond_it(tmp_path: Path) -> None:
    store = PanelStore.create(tmp_path / "hot", Layout(H, T0, tuple(f"S{j}" for j in range(15)), ("close",)))
    store.write_rows(0, {"close": np.arange(45.0).reshape(3, 15)})
    store.add_symbols(["NEW"], [False])
    store.add_symbols(["NEWER"], [True])
    reader = PanelStore.open(tmp_path / "hot")
    assert reader.layout.symbols[-2:] == ("NEW", "NEWER")
    np.testing.assert_array_equal(reader.field("close")[:, :15], np.arange(45.0).reshape(3, 15))
    assert np.isnan(reader.field("close")[:, 15:]).all()


def test_a_page_a_power_cut_kept_from_the_disk_reads_as_a_gap(tmp_path: Path) -> None:
    """Rows are laid out as NaN before they are written: what is lost is missing, never zero."""
    store = PanelStore.create(tmp_path / "hot", Layout(H, T0, ("A",), ("close",)))
    store.reserve(10)
    raw = np.fromfile(tmp_path / "hot/close", "<f8")
    assert raw.size
    assert np.isnan(raw).all()


@given(payloads=st.lists(st.binary(max_size=40), max_size=6), cut=st.integers(0, 60))
def test_a_log_cut_anywhere_keeps_every_whole_record(
    payloads: list[bytes], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = AppendLog(path)
    ends = []
    for payload in payloads:
        log.append(payload)
        ends.append(log.size)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    again = AppendLog(path)
    kept = [p for p, end in zip(payloads, ends, strict=True) if end <= len(whole) - cut]
    assert list(again.records()) == kept
    again.append(b"next")
    assert list(again.records()) == [*kept, b"next"]
    again.close()

"""The feature store: any split into blocks gives the batch bit for bit, only what changed is built, a kill loses one block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering import feature_store
from crypto_qlib.feature_engineering.feature_files import CURRENT, load_feature_frame, read_list, save_feature_frame
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features, lookback_bars
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.feature_engineering.feature_store import BarSource, panel_source, stored_features
from crypto_qlib.feature_engineering.side_data import SideData
from crypto_qlib.settings.schema import FeatureSettings
from crypto_qlib.store.observations import Observations
from crypto_qlib.store.series_store import MARKET
from tests.noise_market import changed, noise_panel, same_bits
from tests.side_market import noise_side, side_with_other_future

N_BARS = 1300
ALL = FeatureSettings(sets=tuple(FEATURE_SETS))
SOME = FeatureSettings(sets=("technical", "funding"))
PANEL = noise_panel(N_BARS, 7, seed=3, with_gaps=True)
SIDE = noise_side(PANEL)


def equal(a: FeatureFrame, b: FeatureFrame) -> bool:
    rows = np.array_equal(a.row_bar, b.row_bar) and np.array_equal(a.row_symbol, b.row_symbol)
    return rows and a.names == b.names and same_bits(np.asarray(a.values), np.asarray(b.values))


def counted(panel: MarketPanel) -> tuple[BarSource, list[tuple[int, int]]]:
    """Return a source and the stretches asked of it."""
    asked: list[tuple[int, int]] = []

    def load(start: int, stop: int) -> MarketPanel:
        asked.append((start, stop))
        return panel.rows(start, stop)

    return BarSource(panel.symbols, panel.frame_ns, panel.ts_open, load), asked


def built_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of rows of every block built from now on."""
    rows: list[int] = []
    real = feature_store.block_features

    def build(*arguments: object) -> FeatureFrame:
        frame = real(*arguments)  # type: ignore[arg-type]
        rows.append(frame.n_rows)
        return frame

    monkeypatch.setattr(feature_store, "block_features", build)
    return rows


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    cuts=st.lists(st.integers(1, N_BARS), min_size=0, max_size=1, unique=True), block=st.integers(200, N_BARS),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_every_set_built_in_blocks_under_any_split_equals_the_batch(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], block: int, seed: int
) -> None:
    root = tmp_path_factory.mktemp("features")
    for n in (*sorted(cuts), N_BARS):
        end_ns = int(PANEL.ts_open[n - 1]) + PANEL.frame_ns
        side = SIDE if n == N_BARS else side_with_other_future(SIDE, end_ns, seed)
        grown = stored_features(root, panel_source(PANEL.rows(0, n)), ALL, side, block_bars=block)
    assert equal(grown, build_features(PANEL, ALL, side=SIDE))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 700), min_size=1, max_size=3, unique=True), block=st.integers(25, 700))
def test_increments_and_blocks_equal_the_batch(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], block: int) -> None:
    root = tmp_path_factory.mktemp("features")
    for n in (*sorted(cuts), 700):
        grown = stored_features(root, panel_source(PANEL.rows(0, n)), SOME, block_bars=block)
    assert equal(grown, build_features(PANEL.rows(0, 700), SOME))


def test_a_block_reads_its_bars_and_the_look_back_before_them(tmp_path: Path) -> None:
    source, asked = counted(PANEL.rows(0, 900))
    stored_features(tmp_path, source, SOME, block_bars=100)
    reach = lookback_bars(SOME, PANEL.frame_ns)
    assert max(stop - start for start, stop in asked) <= reach - 1 + 100


def test_a_longer_history_builds_only_the_new_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_features(tmp_path, panel_source(PANEL.rows(0, 600)), SOME)
    built = built_blocks(monkeypatch)
    grown = stored_features(tmp_path, panel_source(PANEL.rows(0, 620)), SOME)
    assert built == [int(np.isfinite(PANEL.close[600:620]).sum())]
    again = stored_features(tmp_path, panel_source(PANEL.rows(0, 620)), SOME)
    assert len(built) == 1
    assert equal(grown, again)
    assert equal(again, build_features(PANEL.rows(0, 620), SOME))


def test_settings_used_before_are_found_again_and_the_oldest_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = panel_source(PANEL.rows(0, 300)), FeatureSettings(sets=("technical",))
    first = stored_features(tmp_path, source, SOME)
    second = stored_features(tmp_path, source, other)
    built = built_blocks(monkeypatch)
    assert equal(stored_features(tmp_path, source, SOME), first)
    assert built == []
    assert equal(load_feature_frame(tmp_path), first), "current names the folder used last"
    stored_features(tmp_path, source, FeatureSettings(sets=("funding",)))
    folders = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(folders) == feature_store.KEPT
    assert equal(second, build_features(PANEL.rows(0, 300), other)), "who had it mapped keeps it"


CHANGES = [
    ("an old bar corrected", 2),
    ("the newest bar corrected", 1),
    ("membership", 2),
    ("a side value that was known in the second block", 2),
    ("a side value known later than all bars", 0),
    ("the code", 3),
    ("a broken array", 3),
    ("a broken list", 3),
]


@pytest.mark.parametrize(("what", "blocks"), CHANGES, ids=[c[0] for c in CHANGES])
def test_only_what_a_change_can_reach_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, blocks: int
) -> None:
    panel, wanted, side, code = PANEL.rows(0, 300), FeatureSettings(sets=("technical", "sentiment")), SIDE, "a"
    stored_features(tmp_path, panel_source(panel), wanted, side, code, block_bars=100)
    folder = tmp_path / (tmp_path / CURRENT).read_text()
    if what.endswith("bar corrected"):
        close = panel.close.copy()
        close[150 if "old" in what else 299, 0] *= 1.001
        panel = changed(panel, close=close)
    elif what == "membership":
        members = panel.is_member.copy()
        members[150, 1] = False
        panel = changed(panel, is_member=members)
    elif what.startswith("a side value"):
        known = int(panel.ts_open[150]) if "second" in what else int(panel.ts_open[-1]) + 2 * panel.frame_ns
        old = side.series[("fear_greed", MARKET)]
        grown = Observations(*(np.append(a, x) for a, x in ((old.event_ns, old.event_ns[-1] + 1), (old.known_ns, known),
                                                            (old.value, 55.0))))  # fmt: skip
        side = SideData({**side.series, ("fear_greed", MARKET): grown}, side.news)
    elif what == "the code":
        code = "b"
    elif what == "a broken array":
        (folder / "values.npy").write_bytes(b"")
    else:
        (folder / "features.json").write_text("{")
    built = built_blocks(monkeypatch)
    frame = stored_features(tmp_path, panel_source(panel), wanted, side, code, block_bars=100)
    assert len(built) == blocks
    assert equal(frame, build_features(panel, wanted, side=side))
    assert equal(load_feature_frame(tmp_path, verify=True), frame)


@pytest.mark.parametrize("at", range(3))
def test_a_build_killed_in_any_block_goes_on_behind_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    panel, real, lists = PANEL.rows(0, 300), feature_store.append_block, [b""]

    def dies(folder, kept, arrays, *rest):  # type: ignore[no-untyped-def]
        done = real(folder, kept, arrays, *rest)
        path = folder / "features.json"
        if len(lists) <= at:
            lists.append(path.read_bytes())
            return done
        # The arrays were written, the list was not: what a kill between the two leaves.
        path.write_bytes(lists[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_store, "append_block", dies)
    with pytest.raises(KeyboardInterrupt):
        stored_features(tmp_path, panel_source(panel), SOME, block_bars=100)
    monkeypatch.setattr(feature_store, "append_block", real)
    built = built_blocks(monkeypatch)
    frame = stored_features(tmp_path, panel_source(panel), SOME, block_bars=100)
    assert len(built) == 3 - at
    assert equal(frame, build_features(panel, SOME))


def test_bars_without_a_price_are_one_clear_line(tmp_path: Path) -> None:
    panel = noise_panel(60, 3)
    empty = changed(panel, close=np.full(panel.close.shape, np.nan))
    with pytest.raises(UserError, match="no prices"):
        stored_features(tmp_path, panel_source(empty), SOME, block_bars=20)


class TestSavedFrames:
    FRAME = build_features(PANEL.rows(0, 200), SOME)

    def test_round_trip(self, tmp_path: Path) -> None:
        save_feature_frame(self.FRAME, tmp_path / "f")
        back = load_feature_frame(tmp_path / "f", verify=True)
        assert equal(back, self.FRAME)
        assert (back.symbols, back.frame_ns, back.settings) == (self.FRAME.symbols, self.FRAME.frame_ns, SOME)
        assert np.array_equal(back.ts_open, self.FRAME.ts_open)

    def test_the_arrays_are_plain_npy_files(self, tmp_path: Path) -> None:
        stored_features(tmp_path, panel_source(PANEL.rows(0, 200)), SOME, block_bars=30)
        folder = tmp_path / (tmp_path / CURRENT).read_text()
        assert len(read_list(folder).blocks) == 7
        assert same_bits(np.load(folder / "values.npy"), self.FRAME.values)

    def test_a_changed_file_is_noticed(self, tmp_path: Path) -> None:
        save_feature_frame(self.FRAME, tmp_path)
        path = tmp_path / "values.npy"
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
        with pytest.raises(UserError, match="checksum"):
            load_feature_frame(tmp_path, verify=True)

    def test_a_missing_frame_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="features build"):
            load_feature_frame(tmp_path / "nothing")

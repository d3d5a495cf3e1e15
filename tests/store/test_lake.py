from __future__ import annotations

import os
import random
import stat
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.store.coverage import merge_ranges, missing_ranges, subtract_ranges
from crypto_qlib.store.lake import TIME, Kind, Lake, Series, Upsert
from crypto_qlib.store.lake_identity import data_identity

T0 = parse_utc("2025-01-30T12:00:00")
H = NS_PER_HOUR
BARS = Series(Kind.CANDLES, "1h", "BTCUSDT")


def bars(first: int, n: int, seed: int = 0) -> BarBlock:
    values = np.random.default_rng(seed).uniform(1, 2, (2000, 6))[first : first + n]
    return BarBlock(T0 + H * np.arange(first, first + n), *values.T)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}


def test_bars_come_back_exactly_and_lie_in_month_files(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 800)) == Upsert(800, 0)
    stored = lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT")
    for name in BarBlock.__slots__:
        np.testing.assert_array_equal(getattr(stored, name), getattr(bars(0, 800), name))
    assert [p.name for p in lake.months(BARS)] == ["2025-01.parquet", "2025-02.parquet", "2025-03.parquet"]
    assert lake.span(BARS) == (T0, T0 + 799 * H)
    assert lake.symbols(Kind.CANDLES, "1h") == ("BTCUSDT",)


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        (None, None, 800),
        (T0 + 10 * H, None, 790),
        (None, T0 + 10 * H, 10),
        (T0 + 5 * H, T0 + 6 * H, 1),
        (T0 + 900 * H, None, 0),
    ],
)
def test_reads_are_half_open_in_time(tmp_path: Path, start: int | None, end: int | None, rows: int) -> None:
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 800))
    got = lake.read(BARS, start, end, ["close"])
    assert set(got) == {TIME, "close"}
    assert got[TIME].size == rows


def test_a_series_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert len(lake.read_bars(Kind.MARK, "1h", "NOPEUSDT")) == 0
    assert len(lake.read_funding("NOPEUSDT")) == 0
    assert lake.span(BARS) is None
    assert lake.symbols(Kind.CANDLES, "1h") == ()


def test_the_later_write_wins_and_corrections_are_counted(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 50))
    assert lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(40, 20)) == Upsert(10, 0)
    assert lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(45, 10, seed=1)) == Upsert(0, 10)
    np.testing.assert_array_equal(
        lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT", T0 + 45 * H, T0 + 55 * H).close, bars(45, 10, seed=1).close
    )


@settings(max_examples=20, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 190), st.integers(0, 60)), max_size=8),
    rng=st.randoms(use_true_random=False),
)
def test_overlapping_writes_in_any_order_end_in_the_same_bytes(
    blocks: list[tuple[int, int]], rng: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, many = Lake(tmp_path_factory.mktemp("one")), Lake(tmp_path_factory.mktemp("many"))
    one.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 250))
    cover = [(0, 100), (100, 100), (200, 50), *blocks]
    rng.shuffle(cover)
    for first, n in cover:
        many.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(first, n))
    assert contents(one.root) == contents(many.root)
    assert data_identity(one) == data_identity(many)


def test_writing_what_is_there_touches_no_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 100))
    before = [p.stat().st_mtime_ns for p in lake.months(BARS)]
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 100))
    assert [p.stat().st_mtime_ns for p in lake.months(BARS)] == before


def test_replacing_a_series_removes_months_that_are_gone(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 800))
    kept = bars(0, 20)
    rows = {TIME: kept.ts_open, **{n: getattr(kept, n) for n in BarBlock.__slots__ if n != "ts_open"}}
    assert lake.replace(BARS, rows) is True
    assert lake.replace(BARS, rows) is False
    assert [p.name for p in lake.months(BARS)] == ["2025-01.parquet"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_is_named_with_the_way_to_mend_it(tmp_path: Path, damage: str) -> None:
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 300))
    path = lake.months(BARS)[1]
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 0x10
    path.write_bytes({"cut": good[:-40], "flip": bytes(flipped), "empty": b"", "text": b"open,high\n1,2\n"}[damage])
    with pytest.raises(UserError, match=r"2025-02\.parquet is damaged: .*crypto-qlib data repair"):
        lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT")
    assert lake.damaged() == [path]
    assert lake.delete_damaged() == [path]
    assert len(lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT")) == 36  # what is left of January
    assert lake.damaged() == []


def test_what_a_killed_writer_left_behind_is_ignored_and_swept_away(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 10))
    identity = data_identity(lake)
    scratch = lake.folder(BARS) / ".2025-01.parquet.4711.tmp"
    scratch.write_bytes(b"half a file")
    assert len(lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT")) == 10
    assert lake.damaged() == []
    assert data_identity(lake) == identity
    with lake.writing():
        assert not scratch.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="cannot write"):
        Lake(tmp_path / "lake").write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 10))


def test_a_file_in_the_way_of_the_lake_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("not a folder")
    lake = Lake(tmp_path / "lake")
    with pytest.raises(UserError, match="cannot write"):
        lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 10))
    with pytest.raises(UserError, match="cannot write"), lake.writing():
        pass


@pytest.mark.parametrize("symbol", ["../../etc", "BTC/USDT:USDT", "", "."])
def test_a_symbol_cannot_lead_out_of_the_lake(tmp_path: Path, symbol: str) -> None:
    with pytest.raises(UserError, match="is not a symbol"):
        Lake(tmp_path).read_bars(Kind.CANDLES, "1h", symbol)


def test_identity_follows_content_and_only_what_counts(tmp_path: Path) -> None:
    a, b = Lake(tmp_path / "a"), Lake(tmp_path / "b")
    for lake in (a, b):
        lake.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(0, 10))
        lake.write_funding("BTCUSDT", FundingBlock(np.array([T0]), np.array([1e-4])))
    assert data_identity(a) == data_identity(b)
    same = data_identity(a)
    a.upsert(Series(Kind.OPEN_INTEREST, "event", "BTCUSDT"), {TIME: np.array([T0]), "open_interest": np.array([5.0])})
    assert data_identity(a) == same  # snapshots carry the time of asking
    a.write_bars(Kind.CANDLES, "1h", "ETHUSDT", bars(0, 10))
    assert data_identity(a) != same
    assert data_identity(a, symbols=["BTCUSDT"]) == data_identity(b, symbols=["BTCUSDT"])
    a.write_bars(Kind.CANDLES, "1h", "BTCUSDT", bars(9, 1, seed=2))
    assert data_identity(a, symbols=["BTCUSDT"]) != data_identity(b, symbols=["BTCUSDT"])


def test_documents_keep_rows_and_facts(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.read_document(Kind.UNIVERSE, "x") is None
    assert lake.write_document(Kind.UNIVERSE, "x", pa.table({"a": ["ü", "b"], "n": [1, 2]}), {"source": "s"})
    found = lake.read_document(Kind.UNIVERSE, "x")
    assert found is not None
    assert found[0].to_pylist() == [{"a": "ü", "n": 1}, {"a": "b", "n": 2}]
    assert found[1] == {"source": "s"}
    assert lake.documents(Kind.UNIVERSE) == ("x",)


_RANGES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=6)


@settings(max_examples=100, deadline=None)
@given(_RANGES, st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_ranges_behave_like_sets_of_instants(ranges: list[tuple[int, int]], whole: tuple[int, int]) -> None:
    taken = {t for a, b in ranges for t in range(a, b)}
    merged = merge_ranges(ranges)
    assert {t for a, b in merged for t in range(a, b)} == taken
    assert all(x[1] < y[0] for x, y in pairwise(merged))
    left = subtract_ranges(whole, ranges)
    assert {t for a, b in left for t in range(a, b)} == set(range(*whole)) - taken


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 30)), _RANGES, st.integers(0, 100), st.integers(0, 100))
def test_missing_bars_are_the_grid_less_what_is_there_or_known_to_be_empty(
    slots: set[int], empty: list[tuple[int, int]], start: int, end: int
) -> None:
    frame = 3
    found = missing_ranges(np.array(sorted(slots), np.int64) * frame, frame, (start, end), empty)
    covered = {t for a, b in found for t in range(a, b, frame)}
    expected = {
        k * frame for k in range(40)
        if start <= k * frame < end and k not in slots and not any(a <= k * frame < b for a, b in empty)
    }  # fmt: skip
    assert covered == expected

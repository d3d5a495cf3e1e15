"""A lake's stamp sees every write, also one that keeps a file's name, size and time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.store.lake_stamp import lake_stamp

SERIES = Series(Kind.CLEAN, "1h", "BTCUSDT")


def replaced(path: Path) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(b"B" * 100)
    fresh.replace(path)


def overwritten(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"B")


@pytest.mark.parametrize("write", [replaced, overwritten])
def test_other_bytes_of_the_same_size_under_the_same_time_are_another_stamp(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    lake = Lake(tmp_path)
    path = lake.folder(SERIES) / "2025-01.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"A" * 100)
    long_ago = 1_700_000_000 * 10**9
    os.utime(path, ns=(long_ago, long_ago))
    before = lake_stamp(lake, [SERIES])
    assert lake_stamp(lake, [SERIES]) == before
    write(path)
    os.utime(path, ns=(long_ago, long_ago))
    assert path.stat().st_size == 100
    assert lake_stamp(lake, [SERIES]) != before


def test_what_is_no_bar_file_of_the_series_does_not_count(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    before = lake_stamp(lake, [SERIES])
    other = lake.folder(Series(Kind.CLEAN, "1h", "ETHUSDT"))
    other.mkdir(parents=True)
    (other / "2025-01.parquet").write_bytes(b"A")
    folder = lake.folder(SERIES)
    folder.mkdir(parents=True)
    (folder / "asked.json").write_text("[]")
    assert lake_stamp(lake, [SERIES]) == before
    (folder / "2025-01.parts").mkdir()
    (folder / "2025-01.parts/1.parquet").write_bytes(b"A")
    assert lake_stamp(lake, [SERIES]) != before

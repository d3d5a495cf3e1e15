"""The lake appended to without rewriting, compacted, moved to another schema version, and on an object store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock
from crypto_qlib.store import parquet_file
from crypto_qlib.store.lake import TIME, Columns, Kind, Lake, Series, Upsert
from crypto_qlib.store.lake_identity import changed_behind_our_back, checksums, data_identity
from crypto_qlib.store.parquet_file import read_table
from crypto_qlib.store.paths import open_folder

T0 = parse_utc("2025-01-30T12:00:00")
H = NS_PER_HOUR
BARS = Series(Kind.CANDLES, "1h", "BTCUSDT")


def rows(first: int, n: int, seed: int = 0) -> Columns:
    values = np.random.default_rng(seed).uniform(1, 2, (2000, 6))[first : first + n]
    names = [n for n in BarBlock.__slots__ if n != "ts_open"]
    return {TIME: T0 + H * np.arange(first, first + n), **dict(zip(names, values.T, strict=True))}


def contents(lake: Lake) -> dict[str, bytes]:
    return {p.relative_to(lake.root).as_posix(): p.read_bytes() for p in sorted(lake.root.rglob("*.parquet"), key=str)}


def test_rows_after_all_others_are_appended_and_nothing_is_written_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.append(BARS, rows(0, 20)) == Upsert(20, 0)
    before = (tmp_path / "candles/1h/BTCUSDT/2025-01.parquet").stat().st_mtime_ns
    for k in range(20, 30):
        assert lake.append(BARS, rows(k, 1)) == Upsert(1, 0)
    assert (tmp_path / "candles/1h/BTCUSDT/2025-01.parquet").stat().st_mtime_ns == before
    assert len(list((tmp_path / "candles/1h/BTCUSDT/2025-01.parts").iterdir())) == 10
    got = lake.read(BARS, T0 + 15 * H, T0 + 25 * H, ["close"])
    np.testing.assert_array_equal(got["close"], rows(15, 10)["close"])
    assert lake.span(BARS) == (T0, T0 + 29 * H)
    assert lake.symbols(Kind.CANDLES, "1h") == ("BTCUSDT",)
    assert lake.compact() == 1
    assert [p.name for p in (tmp_path / "candles/1h/BTCUSDT").iterdir()] == ["2025-01.parquet"]


def test_a_row_that_is_no_newer_is_merged_as_a_correction(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append(BARS, rows(0, 20))
    lake.append(BARS, rows(20, 5))
    assert lake.append(BARS, rows(22, 4, seed=1)) == Upsert(1, 3)
    np.testing.assert_array_equal(lake.read(BARS)["close"][22:], rows(22, 4, seed=1)["close"])


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "upsert", "compact", "kill"]), st.integers(0, 120), st.integers(1, 40)), max_size=8
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, rng=st.randoms(use_true_random=False))
def test_appends_merges_compactions_and_kills_in_any_order_end_in_the_same_bytes(
    steps: list[tuple[str, int, int]], rng: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, many = (Lake(tmp_path_factory.mktemp(n)) for n in ("one", "many"))
    one.upsert(BARS, rows(0, 160))
    for step, first, n in [*steps, ("append", 0, 60), ("append", 60, 50), ("append", 110, 50)]:
        if step == "compact":
            many.compact()
        elif step == "kill":  # a compaction that died after the month was written, before its parts were deleted
            parts = {p: p.read_bytes() for p in many.root.rglob("*.parquet") if p.parent.name.endswith(".parts")}
            many.compact()
            for path in rng.sample(sorted(parts), k=len(parts) // 2 + len(parts) % 2):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(parts[path])
        else:
            (many.append if step == "append" else many.upsert)(BARS, rows(first, min(n, 160 - first)))
    many.compact()
    assert contents(one) == contents(many)
    assert data_identity(one) == data_identity(many)


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.upsert(BARS, rows(0, 200))
    path = lake.months(BARS)[0]
    good = path.read_bytes()
    table = read_table(path)
    # damage the bytes of the volume column alone: reading the closes does not touch them
    import pyarrow.parquet as pq  # noqa: PLC0415 - one test's

    chunk = pq.read_metadata(path).row_group(0).column(table.schema.names.index("volume"))
    broken = bytearray(good)
    for at in range(chunk.data_page_offset + 40, chunk.data_page_offset + 60):
        broken[at] ^= 0xFF
    path.write_bytes(bytes(broken))
    assert lake.read(BARS, columns=["close"])["close"].size == 200
    with pytest.raises(UserError, match="is damaged"):
        lake.read(BARS, columns=["volume"])


def test_a_bit_the_disk_has_flipped_is_found_although_size_and_time_are_the_same(tmp_path: Path) -> None:
    import os  # noqa: PLC0415 - one test's

    lake = Lake(tmp_path)
    lake.upsert(BARS, rows(0, 100))
    checksums(lake)
    assert changed_behind_our_back(lake) == []
    path = lake.months(BARS)[0]
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed_behind_our_back(lake) == [path]
    lake.replace(BARS, rows(0, 20, seed=1))  # a file that was written since is no fault of the disk
    assert changed_behind_our_back(lake) == []


def old_file(path: Path, version: str) -> None:
    """Write bars as an older release would have: closes in cents under another name."""
    new = rows(0, 10)
    names = ["open", "high", "low", "volume", "quote_volume"]
    columns = {TIME: pa.array(new[TIME], pa.timestamp("ns", tz="UTC")), **{n: new[n] for n in names}}
    table = pa.table({**columns, "close_cents": new["close"] * 100.0})
    path.parent.mkdir(parents=True, exist_ok=True)
    import pyarrow.parquet as pq  # noqa: PLC0415 - one test's

    pq.write_table(table.replace_schema_metadata({b"crypto_qlib.schema": version.encode()}), path, write_page_checksum=True)


def test_files_of_an_older_schema_version_are_read_and_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(table: pa.Table) -> pa.Table:
        return table.rename_columns([n.replace("close_cents", "close") for n in table.schema.names])

    def in_units(table: pa.Table) -> pa.Table:
        at = table.schema.names.index("close")
        return table.set_column(at, "close", pa.array(table.column(at).to_numpy() / 100.0))

    monkeypatch.setitem(parquet_file.UPGRADES, "-2", ("-1", renamed))
    monkeypatch.setitem(parquet_file.UPGRADES, "-1", ("1", in_units))
    lake = Lake(tmp_path)
    path = lake.folder(BARS) / "2025-01.parquet"
    old_file(path, "-2")
    np.testing.assert_allclose(lake.read(BARS)["close"], rows(0, 10)["close"], rtol=1e-15)
    lake.append(BARS, rows(10, 5))
    assert lake.migrate() == 1
    assert lake.migrate() == 0
    monkeypatch.undo()
    np.testing.assert_allclose(lake.read(BARS)["close"], rows(0, 15)["close"], rtol=1e-15)


@pytest.mark.parametrize(("version", "why"), [("7", "written by a newer release"), ("none", "is damaged")])
def test_a_version_this_release_does_not_know_is_one_clear_line(tmp_path: Path, version: str, why: str) -> None:
    lake = Lake(tmp_path)
    old_file(lake.folder(BARS) / "2025-01.parquet", version)
    with pytest.raises(UserError, match=why):
        lake.read(BARS)


# ---------------------------------------------------------------- object stores


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server on loopback with an empty bucket."""
    import boto3  # noqa: PLC0415 - one fixture's

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_ENDPOINT_URL", url),
                            ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="market")
        yield "s3://market"
    server.stop()


@pytest.mark.filterwarnings("ignore")  # boto, moto and s3fs warn of their own past
@pytest.mark.parametrize("where", ["memory", "s3"])
def test_the_lake_lies_on_an_object_store_as_on_a_disk(where: str, s3: str, tmp_path: Path) -> None:
    lake = Lake(open_folder(f"{s3}/lake" if where == "s3" else "memory://lake"))
    disk = Lake(tmp_path)
    with lake.writing():
        for k in (lake, disk):
            assert k.upsert(BARS, rows(0, 800)) == Upsert(800, 0)
            assert k.upsert(BARS, rows(790, 20, seed=1)) == Upsert(10, 10)
            assert k.append(BARS, rows(810, 3)) == Upsert(3, 0)
            assert k.append(BARS, rows(813, 1)) == Upsert(1, 0)
    for name, values in disk.read(BARS).items():
        np.testing.assert_array_equal(lake.read(BARS)[name], values)
    assert lake.span(BARS) == disk.span(BARS)
    assert lake.symbols(Kind.CANDLES, "1h") == ("BTCUSDT",)
    assert lake.compact() == disk.compact() == 1
    assert contents(lake) == contents(disk)
    assert data_identity(lake) == data_identity(disk)
    assert lake.damaged() == []
    assert lake.replace(BARS, rows(0, 30)) is True
    assert [p.name for p in lake.months(BARS)] == ["2025-01.parquet"]
    table = pa.table({"rank": [1, 2]})
    assert lake.write_document(Kind.UNIVERSE, "20250101T000000Z", table, {"source": "test"})
    found = lake.read_document(Kind.UNIVERSE, "20250101T000000Z")
    assert found is not None
    assert found[0].to_pydict() == {"rank": [1, 2]}
    assert lake.documents(Kind.UNIVERSE) == ("20250101T000000Z",)
    lake.remember_asked(BARS, [(0, 5)])
    assert lake.asked(BARS) == [(0, 5)]
    path = lake.months(BARS)[0]
    path.write_bytes(path.read_bytes()[:-40])
    assert lake.delete_damaged() == [path]


def test_an_address_nobody_can_open_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"cannot open nope://x"):
        open_folder("nope://x")

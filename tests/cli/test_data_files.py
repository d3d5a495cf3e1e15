"""`crypto-qlib data import | export | verify | compact` as their user sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_store import write_qlib_store
from crypto_qlib.store.lake import TIME, Kind, Lake, Series
from crypto_qlib.store.paths import Paths
from tests.cli.command_line import Run
from tests.data_collector.test_import_export import frame

DEMO = ("--set", "exchange.mode=demo")


def test_history_is_brought_in_verified_compacted_and_taken_out(cli: Run, tmp_path: Path) -> None:
    given = frame()
    given.to_parquet(tmp_path / "mine_1h.parquet")
    ended = cli("data", "import", str(tmp_path / "mine_1h.parquet"), *DEMO)
    assert ended.code == 0, ended.err
    assert "candles 1h of 2 symbols: 100 new rows, 0 corrected" in ended.out
    assert "lake: 4 files read, 0 damaged, 0 changed" in cli("data", "verify", *DEMO).out
    assert "parts of 0 month files merged" in cli("data", "compact", *DEMO).out
    ended = cli("data", "export", "out", "--symbols", "BTC", "--format", "csv", *DEMO)
    assert ended.code == 0, ended.err
    got = pd.read_csv(tmp_path / "out/candles_1h.csv", float_precision="round_trip")
    assert got["close"].tolist() == given["close"][given["symbol"] == "BTC/USDT:USDT"].tolist()


def test_a_damaged_file_is_found_and_named(cli: Run, tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "mine_1h.parquet")
    cli("data", "import", "mine_1h.parquet", *DEMO)
    path = next((tmp_path / "workspace").rglob("2025-02.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    ended = cli("data", "verify", *DEMO)
    assert ended.code == 2
    assert "1 damaged" in ended.err
    assert str(path.relative_to(tmp_path)) in ended.err
    assert "data repair" in ended.err
    assert "Traceback" not in ended.err


def test_verify_compares_qlibs_store_with_the_lake_bit_by_bit(cli: Run, tmp_path: Path) -> None:
    paths = Paths(tmp_path / "workspace" / "okx-demo")
    lake = Lake(paths.lake)
    n = 60
    ts = parse_utc("2025-01-30") + NS_PER_HOUR * np.arange(n)
    close = np.linspace(100.0, 110.0, n)
    bars = dict.fromkeys(("open", "high", "low", "close", "volume", "quote_volume"), close)
    lake.upsert(Series(Kind.CLEAN, "1h", "BTCUSDT"), {TIME: ts, **bars, "flag": np.zeros(n, np.uint16)})
    write_qlib_store(paths.qlib, load_panel(lake, ["BTCUSDT"], "1h"))
    assert "Qlib store: equal to the lake's cleaned 1h bars, 1 symbols" in cli("data", "verify", *DEMO).out
    path = paths.qlib / "features/btcusdt/close.60min.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    said = cli("data", "verify", *DEMO).out
    assert "1 files are not what the lake says" in said
    assert "close.60min.bin" in said


def test_the_simulated_market_takes_no_prices_from_files(cli: Run, tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "mine_1h.parquet")
    ended = cli("data", "import", "mine_1h.parquet")
    assert ended.code == 2
    assert "the simulated market makes its own prices" in ended.err


def test_a_file_that_is_not_there_is_one_clear_line(cli: Run) -> None:
    ended = cli("data", "import", "nowhere.parquet", *DEMO)
    assert ended.code == 2
    assert "nowhere.parquet" in ended.err
    assert "Traceback" not in ended.err

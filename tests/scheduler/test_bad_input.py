"""Bad input, as a person meets it: one clear line, a non-zero exit, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.scheduler.conftest import SMALL, MakePipeline

TIME = pd.date_range("2025-01-01", periods=24 * 45, freq="1h", tz="UTC")


def command(*arguments: str, root: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "crypto_qlib", *arguments, "--set", f"store.root={root}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OKX_", "CRYPTO_QLIB__"))}
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=240, cwd=root.parent, env={**environment, **(env or {})}
    )


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def candles(symbols: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    parts = []
    for symbol in symbols:
        close = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.004, len(TIME))))
        opens = np.concatenate([[100.0], close[:-1]])
        parts.append(
            pd.DataFrame(
                {
                    "symbol": symbol,
                    "ts": TIME,
                    "open": opens.round(3),
                    "high": (np.maximum(opens, close) * 1.002).round(3),
                    "low": (np.minimum(opens, close) * 0.998).round(3),
                    "close": close.round(3),
                    "volume": 50_000.0,
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    frame["open"] = frame[["open", "low"]].max(axis=1)
    frame["close"] = frame["close"].clip(lower=frame["low"], upper=frame["high"])
    return frame


def small_flags() -> list[str]:
    return [word for override in SMALL for word in ("--set", override)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "arguments", "words"),
    [
        ("a key that does not exist", ["run", "--set", "strategy.max_opne=3"], ("max_opne", "max_open")),
        ("no position may ever be open", ["run", "--set", "strategy.max_open=0"], ("strategy.max_open", "0")),
        ("an empty universe size", ["run", "--set", "universe.size=0"], ("universe.size", "0")),
        ("leverage no tier grants", ["run", "--set", "strategy.leverage=500"], ("strategy.leverage", "500")),
        ("a replay that is not there", ["run", "--replay", "nowhere.parquet"], ("nowhere.parquet",)),
        ("training before there is data", ["train"], ("no data",)),
        ("live without a second confirmation", ["paper", "--set", "exchange.mode=live"], ("confirm_live",)),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_done(
    reason: str, arguments: list[str], words: tuple[str, ...], root: Path
) -> None:
    assert_one_clear_line(command(*arguments, root=root), *words)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert_one_clear_line(command("universe", root=blocked), str(blocked))


@pytest.mark.slow
def test_an_exchange_that_does_not_answer_is_named(root: Path) -> None:
    env = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = command("universe", "--set", "exchange.mode=demo", "--set", "exchange.timeout_s=2", root=root, env=env)
    assert_one_clear_line(done, "exchange")


@pytest.mark.slow
def test_a_replay_file_that_is_no_parquet_is_named(root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "candles.parquet"
    broken.write_bytes(b"PAR1 this is not a parquet file PAR1")
    assert_one_clear_line(command("run", "--replay", str(broken), root=root), "candles.parquet")


@pytest.mark.slow
def test_a_gap_in_the_candles_is_named_with_symbol_and_times(root: Path, tmp_path: Path) -> None:
    rows = candles(["BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT"])
    hole = (rows.symbol == "ETH/USDT:USDT") & rows.ts.between("2025-02-01", "2025-02-02")
    path = tmp_path / "gap.parquet"
    rows[~hole].to_parquet(path)
    done = command("run", "--replay", str(path), *small_flags(), root=root)
    assert_one_clear_line(done, "ETHUSDT", "2025-02-01")


def _poked(frame: pd.DataFrame, row: int, **values: float) -> pd.DataFrame:
    frame = frame.copy()
    for column, value in values.items():
        frame.loc[row, column] = value
    return frame


def _with(frame: pd.DataFrame, row: int, minutes: int) -> pd.DataFrame:
    more = frame.loc[[row]].assign(ts=frame.ts[row] + pd.Timedelta(minutes=minutes))
    return pd.concat([frame, more]).sort_values(["symbol", "ts"], kind="stable")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "defect", "words"),
    [
        ("a price is missing", lambda f, k: _poked(f, k, close=np.nan), ("missing",)),
        ("a negative price", lambda f, k: _poked(f, k, low=-1.0), ("negative",)),
        ("high below low", lambda f, k: _poked(f, k, high=1.0), ("high is below low",)),
        ("a bar twice", lambda f, k: _with(f, k, 0), ("twice",)),
        ("two frames overlap", lambda f, k: _with(f, k, 30), ("grid",)),
        ("out of order", lambda f, k: f.loc[[*f.index[:k], k + 1, k, *f.index[k + 2 :]]], ("later",)),
    ],
)
def test_bad_candles_are_named_with_symbol_and_time(
    name: str, defect: Callable[[pd.DataFrame, int], pd.DataFrame], words: tuple[str, ...], root: Path, tmp_path: Path
) -> None:
    good = candles(["BTC/USDT:USDT", "ETH/USDT:USDT"])
    at = int(good.index[good.symbol == "ETH/USDT:USDT"][100])
    path = tmp_path / "candles.parquet"
    defect(good, at).to_parquet(path)
    done = command("run", "--replay", str(path), *small_flags(), root=root)
    assert_one_clear_line(done, "ETH", "2025-01-05T0", *words)


@pytest.mark.slow
def test_a_symbol_without_data_is_named_when_it_was_asked_for(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.parquet"
    candles(["BTC/USDT:USDT", "ETH/USDT:USDT"]).to_parquet(path)
    done = command("universe", "--replay", str(path), root=root)
    assert done.returncode != 0  # a flag of `run` only
    done = command("run", "--replay", str(path), *small_flags(), "--set", "universe.include=[DOGE]", root=root)
    assert_one_clear_line(done, "DOGE")


@pytest.mark.slow
def test_excluding_every_coin_leaves_an_empty_universe(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.parquet"
    candles(["BTC/USDT:USDT"]).to_parquet(path)
    done = command("run", "--replay", str(path), *small_flags(), "--set", "universe.exclude=[BTC]", root=root)
    assert_one_clear_line(done, "universe is empty")


@pytest.mark.slow
def test_a_damaged_file_in_the_lake_is_named_and_repair_mends_it(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.data.universe()
    pipeline.data.update()
    victim = max(pipeline.paths.lake.glob("candles/1h/BTCUSDT/*.parquet"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    flags = small_flags()
    done = command("data", "check", *flags, root=tmp_path / "workspace")
    assert_one_clear_line(done, victim.name, "repair")
    done = command("data", "repair", *flags, root=tmp_path / "workspace")
    assert done.returncode == 0, done.stderr
    assert victim.read_bytes() == whole


@pytest.mark.slow
def test_a_wrong_key_is_told_as_such(root: Path) -> None:
    env = {"OKX_API_KEY": "k", "OKX_API_SECRET": "s"}
    done = command("paper", "--set", "exchange.mode=demo", root=root, env=env)
    assert_one_clear_line(done, "OKX_API_PASSPHRASE")


def test_the_workspace_of_one_market_is_not_read_for_another(make_pipeline: MakePipeline) -> None:
    first, second = make_pipeline(), make_pipeline("exchange.seed=2")
    assert first.paths.root != second.paths.root
    shutil.rmtree(first.paths.root)

"""`crypto-qlib data external` as its user sees it: sources answer, one fails, a replayed market asks nobody."""

from __future__ import annotations

from pathlib import Path

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_S, SystemClock, floor_ts
from crypto_qlib.data_collector.universe_history import UniverseMember, UniverseSnapshot, keep_snapshot
from crypto_qlib.scheduler.exchange_access import market_folder
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.lake import Lake
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.series_store import SeriesStore
from tests.cli.command_line import Run
from tests.data_collector.web_server import Said, WebServer


def workspace(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "workspace" / market_folder(Settings()))
    keep_snapshot(Lake(paths.lake), UniverseSnapshot(0, (UniverseMember("BTCUSDT", "BTC", 1),), "test"))
    return paths


def test_what_answers_is_kept_and_what_does_not_is_a_warning(cli: Run, tmp_path: Path) -> None:
    paths = workspace(tmp_path)
    today = floor_ts(SystemClock().now_ns(), NS_PER_DAY)
    days = [today - n * NS_PER_DAY for n in range(1, 5)]
    answer = {"data": [{"value": "21", "timestamp": str(d // NS_PER_S)} for d in days], "metadata": {"error": None}}
    with WebServer().running() as server:
        server.speaker = lambda path, _query: Said(answer) if path == "/fng/" else Said("<html>gone", 404, kind="text/html")
        ended = cli(
            "data", "external", "--set", "external.when=always", "--set", f"external.mirror={server.url}",
            "--set", "external.sources=[alternative_me, coinmetrics]",
        )  # fmt: skip
    assert ended.code == 0
    assert "external: alternative_me: 4 new values, 0 corrected" in ended.out
    assert "WARNING: nothing from coinmetrics: 127.0.0.1: HTTP 404" in ended.out
    assert "Traceback" not in ended.err
    assert len(SeriesStore(paths.series).read("fear_greed")) == 4


def test_a_replayed_market_asks_nobody(cli: Run, tmp_path: Path) -> None:
    candles = tmp_path / "candles.csv"
    candles.write_text("symbol,ts,open,high,low,close,volume\nBTCUSDT,2025-01-01,1,1,1,1,1\n")
    wanted = ("exchange.market=replay", f"exchange.replay_path={candles}")
    with WebServer().running() as server:
        ended = cli("data", "external", *(f"--set={text}" for text in wanted), f"--set=external.mirror={server.url}")
    assert ended.code == 0
    assert "a replayed market has no outside world" in ended.out
    assert server.asked == []

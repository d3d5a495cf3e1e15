"""``data update``, ``watch``, ``status`` and ``repair`` as a person uses them, on a small simulated market."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.external_catalogue import series_on_bars
from crypto_qlib.data_collector.qlib_store import write_qlib_store
from crypto_qlib.scheduler.external_data import SIMULATED_LINE
from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.store.panel_store import PanelStore
from crypto_qlib.store.series_store import MARKET, SeriesStore
from tests.scheduler.conftest import MakePipeline

pytestmark = pytest.mark.slow


def test_what_the_watch_collects_is_at_once_in_the_hot_store_and_the_panel_stays_what_was_checked(
    make_pipeline: MakePipeline,
) -> None:
    wanted = ("exchange.simulated_symbols=4", "exchange.simulated_days=25", "data.history_days=20", "universe.size=2")
    collected = make_pipeline(*wanted)
    for step in (collected.data.universe, collected.data.update, collected.data.check):
        step()
    collected.data.renew_hot(partial(write_qlib_store, collected.paths.qlib))
    checked = collected.data.panel()
    watching = make_pipeline(*wanted)
    watching.data.watch(rounds=2, stream=False)
    store = PanelStore.open(watching.paths.panels / "1h")
    assert len(store) == checked.n_bars + 2
    newest = watching.workspace.lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT")
    np.testing.assert_array_equal(store.field("close")[-2:, store.layout.symbols.index("BTCUSDT")], newest.close[-2:])
    np.testing.assert_array_equal(watching.data.panel().close, checked.close)
    assert "and 2 newer ones as collected" in watching.data.files.verify().lines[-1]


def test_a_fresh_workspace_is_filled_by_one_command_and_the_simulated_world_outside_is_asked(
    make_pipeline: MakePipeline,
) -> None:
    wanted = ("exchange.simulated_symbols=4", "exchange.simulated_days=25", "data.history_days=20", "universe.size=2")
    sources = ("external.when=online", "external.sources=[alternative_me, coingecko, coinmetrics]")
    pipeline = make_pipeline(*wanted, *sources)
    said = pipeline.data.update().lines
    assert said[0].startswith("universe: 2 coins")
    assert SIMULATED_LINE in said
    assert not [line for line in said if "WARNING" in line]
    closes = pipeline.data.collected.end_ns - NS_PER_HOUR * np.arange(10, dtype=np.int64)[::-1]
    store = SeriesStore(pipeline.paths.series)
    for name in ("fear_greed", "active_addresses"):
        assert np.isfinite(series_on_bars(store, name, closes, ("BTC",)).value).all(), name
    assert store.read("btc_dominance", MARKET).value[-1] > 0.0


def test_collect_watch_look_and_mend(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    wanted = ("exchange.simulated_symbols=6", "exchange.simulated_days=25", "data.history_days=20", "universe.size=3")
    pipeline = make_pipeline(*wanted, "universe.hysteresis=0", "data.frames=[15m]")
    with pytest.raises(UserError, match="no data in"):
        pipeline.data.status()
    said = pipeline.data.update(("BTCUSDT",)).lines  # one coin alone, before any universe is chosen
    assert "data: 1 symbols" in said[0]
    pipeline.data.universe()
    assert "universes from" in pipeline.data.universe_history().lines[0]
    pipeline.data.update()
    assert "BTCUSDT" in pipeline.data.collected.symbols
    (line,) = make_pipeline(*wanted, "universe.hysteresis=0").data.watch(("BTCUSDT", "ETHUSDT"), 8).lines
    assert line.startswith("8 rounds brought data; log: ")
    log = Path(line.partition("log: ")[2])
    assert [json.loads(text)["event"] for text in log.read_text().splitlines()] == ["updated"] * 8
    lake = Lake(pipeline.paths.lake)
    assert lake.symbols(Kind.CANDLES, "15m")
    assert lake.span(Series(Kind.ORDER_FLOW, "1m", "BTCUSDT")) is not None
    table = "\n".join(pipeline.data.status(("BTCUSDT",)).lines)
    for word in ("candles", "15m", "mark", "funding", "order_flow", "websocket trades and books", "simulated market"):
        assert word in table
    assert "ETHUSDT" not in table
    spoilt = lake.months(Series(Kind.CANDLES, "1h", "BTCUSDT"))[0]
    spoilt.write_bytes(spoilt.read_bytes()[:200])
    mended = pipeline.data.repair(again=True).lines
    assert mended[0] == "removed 1 damaged files"
    assert lake.damaged() == []
    assert any(text.startswith("asked again in ") for text in mended)

"""What is kept beside the candles reaches the features at the time it was known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S
from crypto_qlib.core.market import PANEL_PRICES, BarBlock
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_text import text_hash
from crypto_qlib.feature_engineering.lake_side import lake_series
from crypto_qlib.feature_engineering.local_reader import LocalReader
from crypto_qlib.feature_engineering.side_data import SideData
from crypto_qlib.feature_engineering.side_loading import load_side, side_identity
from crypto_qlib.modeling.qlib_task import LakeHandler
from crypto_qlib.settings.schema import FeatureSettings, Settings
from crypto_qlib.store.lake import EVENT, Kind, Lake, Series
from crypto_qlib.store.news_store import NewsStore
from crypto_qlib.store.observations import Observations
from crypto_qlib.store.paths import Paths, open_folder
from crypto_qlib.store.series_store import MARKET, SeriesStore
from tests.noise_market import noise_panel

T = 1_704_067_200 * NS_PER_S
BTC = "BTCUSDT"


def rows(*values: float, at: int = T, **columns: float) -> dict[str, np.ndarray]:
    named = columns or {"rate": values[0]}
    return {"ts": np.array([at], np.int64), **{k: np.array([v], float) for k, v in named.items()}}


@pytest.fixture(params=["below the workspace", "elsewhere", "object store"])
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    places = {"below the workspace": str(Paths(tmp_path).lake), "elsewhere": str(tmp_path / "disk" / "lake")}
    lake = Lake(open_folder(places.get(request.param, f"memory://{tmp_path.name}/lake")))
    prices = dict.fromkeys(("open", "high", "low", "close"), 100.0)
    lake.upsert(Series(Kind.INDEX, "1h", BTC), rows(**prices))
    lake.upsert(Series(Kind.TAKER_VOLUME, "1h", BTC), rows(buy=3.0, sell=1.0))
    lake.upsert(Series(Kind.OPEN_INTEREST, EVENT, BTC), rows(open_interest=5.0))
    lake.upsert(Series(Kind.LONG_SHORT, "1h", BTC), rows(ratio=1.7))
    flow = {"buy": 1.0, "sell": 1.0, "n_trades": 2.0, "imbalance": 0.2, "spread_bps": 2.0, "depth_quote": 1e6, "n_books": 9.0}
    flow |= {"bid_slope": 3e4, "ask_slope": 1e4, "effective_bps": 2.0, "realised_bps": -1.0}
    lake.upsert(Series(Kind.ORDER_FLOW, "1m", BTC), rows(**flow, is_whole=1.0))
    lake.upsert(Series(Kind.ORDER_FLOW, "1m", BTC), rows(**flow | {"imbalance": 0.9}, is_whole=0.0, at=T + NS_PER_MINUTE))
    return lake


def test_each_series_of_the_lake_is_known_when_it_could_be(lake: Lake) -> None:
    found = lake_series(lake, [BTC, "ETHUSDT"], "1h")
    known = {name: int(r.known_ns[-1] - T) / NS_PER_S for (name, _), r in found.items()}
    assert known == {"index_close": 3600.0, "taker_buy_volume": 3600.0, "open_interest": 0.0, "long_short_ratio": 3600.0,
                     "book_imbalance": 65.0, "book_spread": 65.0, "book_depth": 65.0, "book_slope": 65.0,
                     "book_slope_skew": 65.0, "effective_spread": 65.0, "realised_spread": 65.0}  # fmt: skip
    assert found["book_imbalance", BTC].value.tolist() == [0.2], "a minute with a hole is left out"
    assert found["book_spread", BTC].value[0] == pytest.approx(2e-4)
    assert found["book_slope", BTC].value[0] == pytest.approx(np.log10(2e4))
    assert found["book_slope_skew", BTC].value[0] == pytest.approx(np.log(3.0))
    assert found["realised_spread", BTC].value[0] == pytest.approx(-1e-4)
    assert "taker_buy_volume" not in {name for name, _ in lake_series(lake, [BTC], "4h")}, "hours are no bars of four"


def test_spreads_of_trades_are_means_of_an_hour_by_volume_that_do_not_depend_on_older_minutes(lake: Lake) -> None:
    rng = np.random.default_rng(5)
    ts = T + NS_PER_MINUTE * np.sort(rng.choice(np.arange(100, 500), 250, replace=False))
    columns = {n: rng.uniform(1.0, 9.0, ts.size) for n in ("buy", "sell", "n_trades", "imbalance", "spread_bps", "depth_quote",
                                                           "n_books", "bid_slope", "ask_slope", "effective_bps")}  # fmt: skip
    columns |= {"is_whole": np.ones(ts.size), "realised_bps": np.where(rng.random(ts.size) < 0.2, np.nan, 1.0)}
    lake.upsert(Series(Kind.ORDER_FLOW, "1m", BTC), {"ts": ts, **columns})
    found = lake_series(lake, [BTC], "1h")["effective_spread", BTC]
    frame = pd.DataFrame({"x": columns["effective_bps"] * 1e-4, "w": columns["buy"] + columns["sell"]}, pd.to_datetime(ts))
    hour = frame.assign(xw=frame["x"] * frame["w"]).rolling("60min").sum()
    np.testing.assert_allclose(found.value[-250:], (hour["xw"] / hour["w"]).to_numpy(), rtol=1e-12)
    young = Lake(lake.root.with_name("young"))
    young.upsert(Series(Kind.ORDER_FLOW, "1m", BTC), {"ts": ts[100:], **{n: v[100:] for n, v in columns.items()}})
    assert np.array_equal(lake_series(young, [BTC], "1h")["effective_spread", BTC].value[-80:], found.value[-80:])


def test_hourly_open_interest_comes_before_snapshots_of_another_unit(lake: Lake) -> None:
    lake.upsert(Series(Kind.INTEREST_HISTORY, "1h", BTC), rows(open_interest=7.0, open_interest_usd=700.0))
    found = lake_series(lake, [BTC], "1h")["open_interest", BTC]
    assert found.value.tolist() == [7.0]
    assert found.known_ns.tolist() == [T + NS_PER_HOUR]


def test_everything_is_loaded_and_only_where_a_chosen_set_reads_it(tmp_path: Path, lake: Lake) -> None:
    paths = Paths(tmp_path)
    day = Observations(np.array([T]), np.array([T + NS_PER_HOUR]), np.array([40.0]))
    SeriesStore(paths.series).append("fear_greed", MARKET, day, T + 2 * NS_PER_HOUR)
    article = Article("id", "s", "", "Bitcoin soars", "", T, T)
    digest = text_hash(article.title, "")
    store = NewsStore.open(paths.news)
    store.add([(article, digest)])
    store.keep_reading("key", digest, LocalReader().read([article], ["BTC"], T + 90 * NS_PER_S)[0])
    store.close()
    wide = Settings(features=FeatureSettings(sets=("sentiment", "derivatives", "news")))
    side = load_side(paths, lake, wide, [BTC])
    assert side.has("fear_greed")
    assert side.has("open_interest")
    assert side.news is not None
    assert side.news.known_ns.tolist() == [T + 90 * NS_PER_S], "collected live, it counts from when it was scored"
    assert load_side(paths, lake, Settings(), [BTC]) == SideData()
    assert side_identity(paths, lake, Settings()) == ""
    assert side.has("long_short_ratio")
    before = side_identity(paths, lake, wide)
    assert before == side_identity(paths, lake, wide)
    lake.upsert(Series(Kind.OPEN_INTEREST, EVENT, BTC), rows(open_interest=6.0, at=T + NS_PER_HOUR))
    grown = side_identity(paths, lake, wide)
    assert grown != before
    lake.upsert(Series(Kind.LONG_SHORT, "1h", BTC), rows(ratio=1.8, at=T + NS_PER_HOUR))
    assert side_identity(paths, lake, wide) != grown


def test_a_qrun_handler_serves_the_sets_beside_the_bars(tmp_path: Path) -> None:
    lake = Lake(Paths(tmp_path).lake)
    panel = noise_panel(60, 3)
    for k, symbol in enumerate(panel.symbols):
        bars = BarBlock(panel.ts_open, *(getattr(panel, n)[:, k] for n in (*PANEL_PRICES[:4], "volume", "quote_volume")))
        columns = {n: getattr(bars, n) for n in (*PANEL_PRICES[:4], "volume", "quote_volume")}
        lake.upsert(Series(Kind.CLEAN, "1h", symbol), {"ts": bars.ts_open, **columns, "flag": np.zeros(60, np.uint16)})
    opened = int(panel.ts_open[0])
    fear = Observations(np.array([opened]), np.array([opened + NS_PER_HOUR]), np.array([40.0]))
    SeriesStore(Paths(tmp_path).series).append("fear_greed", MARKET, fear, opened + NS_PER_HOUR)
    handler = LakeHandler(lake.root, features={"sets": ["sentiment", "funding"]}, model={"horizon_bars": 4})
    found = handler.fetch(col_set="feature")["FEAR_GREED"]
    assert found.iloc[:3].to_numpy() == pytest.approx(0.4)
    assert found.iloc[-1:].isna().all(), "26 hours later it is too old"

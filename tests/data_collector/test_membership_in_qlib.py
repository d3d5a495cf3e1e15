"""Who belonged to the universe when, as Qlib users and notebooks meet it: no row of a coin outside its time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.data import D
from qlib.data.data import LocalDatasetProvider

import crypto_qlib as cq
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.data_collector.hot_store import HotStore, build_hot_store
from crypto_qlib.data_collector.qlib_data_adapter import forget_cached_bars, init_qlib, update_from_panel, update_qlib_store
from crypto_qlib.data_collector.universe_history import UniverseMember, UniverseSnapshot, keep_snapshot
from crypto_qlib.modeling.qlib_task import LakeHandler
from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.store.paths import Paths
from tests.noise_market import noise_panel

N = 240
PANEL = noise_panel(N, 4, seed=3)
H = PANEL.frame_ns
STAYS, LEAVES, RETURNS, NEVER = PANEL.symbols
TIMES = (0, 60, 150)
"""Bars at whose close the universe is chosen anew."""
CHOSEN = ((STAYS, LEAVES, RETURNS), (STAYS, LEAVES), (STAYS, RETURNS))
RULE = '{"point_in_time":true}'
MASK = np.zeros((N, 4), np.bool_)
MASK[:, 0] = MASK[:150, 1] = MASK[:60, 2] = MASK[150:, 2] = True
"""By hand: the universe chosen at the close of bar t holds from bar t on."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("workspace") / "lake")
    for j, symbol in enumerate(PANEL.symbols):
        rows = {n: getattr(PANEL, n)[:, j].copy() for n in ("open", "high", "low", "close", "volume", "quote_volume")}
        lake.upsert(Series(Kind.CLEAN, "1h", symbol), {"ts": PANEL.ts_open, **rows, "flag": np.zeros(N, np.uint16)})
    for row, symbols in zip(TIMES, CHOSEN, strict=True):
        members = tuple(UniverseMember(s, s.removesuffix("USDT"), k + 1) for k, s in enumerate(symbols))
        keep_snapshot(lake, UniverseSnapshot(int(PANEL.ts_open[row]) + H, members, "test", RULE))
    return lake


def shown(index: pd.MultiIndex, of: str = "datetime") -> np.ndarray[Any, Any]:
    """Return which bars of which symbols an index holds, ``(n_bars, n_symbols)``."""
    got = np.zeros((N, 4), np.bool_)
    rows = (pd.DatetimeIndex(index.get_level_values(of)).as_unit("ns").asi8 - int(PANEL.ts_open[0])) // H
    got[rows, [PANEL.symbols.index(s) for s in index.get_level_values("instrument")]] = True
    return got


@pytest.mark.filterwarnings("ignore")
def test_qlibs_market_universe_shows_each_coin_while_it_belonged(lake: Lake) -> None:
    paths = Paths(lake.root.parent)
    update_qlib_store(lake, paths, PANEL.symbols, "1h")
    init_qlib(paths)
    everybody = D.features(D.instruments("all"), ["$close"], freq="60min")
    assert len(everybody) == int(np.isfinite(PANEL.close).sum())
    ours = D.features(D.instruments("universe"), ["$close", "Mean($close, 5)"], freq="60min")
    np.testing.assert_array_equal(shown(ours.index), MASK)
    plain = LocalDatasetProvider().dataset(D.instruments("universe"), ["$close"], None, None, "60min")
    np.testing.assert_array_equal(shown(plain.index), MASK, "Qlib's own provider reads the same file")
    at = ours.loc[(RETURNS, pd.Timestamp(int(PANEL.ts_open[150])))]
    window = PANEL.close[146:151, 2].astype(np.float32)
    assert at["Mean($close, 5)"] == pytest.approx(window.mean(), rel=1e-5), "who returns has its past, members only its rows"
    listed = D.list_instruments(D.instruments("universe"), freq="60min")
    assert len(listed[RETURNS]) == 2
    assert NEVER not in listed


@pytest.mark.filterwarnings("ignore")
def test_a_bar_appended_since_goes_to_those_who_belonged_last(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    known = replace(PANEL, is_member=MASK).rows(0, N - 1)
    build_hot_store(paths.panels / "1h", paths.qlib, known, write_qlib=lambda panel: update_from_panel(paths, panel))
    init_qlib(paths)
    with HotStore(paths.panels / "1h", paths.qlib) as store:
        store.append(int(PANEL.ts_open[-1]), {n: getattr(PANEL, n)[-1] for n in ("open", "high", "low", "close", "volume")})
        forget_cached_bars()
        got = D.features(D.instruments("universe"), ["$close"], freq="60min")
        np.testing.assert_array_equal(shown(got.index), MASK)


FEATURES = {"sets": ["technical"]}


@pytest.mark.filterwarnings("ignore")
def test_the_lakes_handler_has_rows_of_members_alone_unless_told_otherwise(lake: Lake) -> None:
    masked = LakeHandler(lake.root, features=FEATURES).fetch(col_set="feature")
    np.testing.assert_array_equal(shown(masked.index), MASK)
    whole = LakeHandler(lake.root, features=FEATURES, point_in_time=False).fetch(col_set="feature")
    assert len(whole) == N * 4


@pytest.mark.filterwarnings("ignore")
def test_a_universe_asked_for_without_its_history_is_the_newest_throughout(tmp_path: Path, lake: Lake) -> None:
    other = Lake(tmp_path / "lake")
    for symbol in PANEL.symbols:
        rows = lake.read(Series(Kind.CLEAN, "1h", symbol))
        other.upsert(Series(Kind.CLEAN, "1h", symbol), rows)
    members = (UniverseMember(STAYS, "A", 1), UniverseMember(NEVER, "D", 2))
    keep_snapshot(other, UniverseSnapshot(int(PANEL.ts_open[-1]), members, "test", '{"point_in_time":false}'))
    got = LakeHandler(other.root, features=FEATURES).fetch(col_set="feature")
    np.testing.assert_array_equal(shown(got.index), np.tile([True, False, False, True], (N, 1)))


def write_tables(folder: Path, panel: MarketPanel) -> tuple[Path, Path]:
    """Write candles, and daily market caps by which the first coin always leads and the other two change places."""
    bars = [
        pd.DataFrame({"symbol": s, "ts": pd.to_datetime(panel.ts_open, utc=True)} | {
            n: getattr(panel, n)[:, j] for n in ("open", "high", "low", "close", "volume")})
        for j, s in enumerate(panel.symbols[:3])
    ]  # fmt: skip
    days = pd.date_range(pd.Timestamp(int(panel.ts_open[0]), tz="UTC"), periods=N // 24, freq="D")
    second = [LEAVES] * 4 + [RETURNS] * (len(days) - 4)
    caps = [
        {"symbol": s.removesuffix("USDT"), "ts": day, "market_cap": 9e9 if s == STAYS else 1e9 if s == second[k] else 1e8}
        for k, day in enumerate(days)
        for s in panel.symbols[:3]
    ]
    candles, table = folder / "candles.parquet", folder / "caps.csv"
    pd.concat(bars).to_parquet(candles)
    pd.DataFrame(caps).to_csv(table, index=False)
    return candles, table


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_with_market_caps_has_the_universe_as_known_then(tmp_path: Path) -> None:
    candles, caps = write_tables(tmp_path, PANEL)
    options = ("universe.size=2", "universe.hysteresis=0")
    data = cq.with_universe(cq.load_data(candles), caps, options)
    left = 24 * 5 - 1  # caps of day 4 are known when it is over: at the close of the last bar of that day
    belongs = {s: data.panel.is_member[:, j] for j, s in enumerate(data.panel.symbols)}
    assert belongs[STAYS].all()
    np.testing.assert_array_equal(belongs[LEAVES], np.arange(N) < left)
    np.testing.assert_array_equal(belongs[RETURNS], np.arange(N) >= left)
    frame = cq.build_features(data, ("features.sets=[technical]",))
    assert frame.n_rows == 2 * N
    assert cq.load_data(candles).panel.is_member.all(), "without market caps nothing is known of a universe"


def test_market_caps_of_other_coins_are_one_clear_line(tmp_path: Path) -> None:
    candles, caps = write_tables(tmp_path, PANEL)
    others = pd.read_csv(caps)
    others.assign(symbol="X" + others["symbol"]).to_csv(caps, index=False)
    with pytest.raises(UserError, match="no coin of"):
        cq.with_universe(cq.load_data(candles), caps, ("universe.size=2",))

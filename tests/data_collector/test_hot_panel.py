"""The mapped panel: what it serves is what the lake says, whoever has written to either, and newer bars are seen at once."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qlib.data import D

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.market import PANEL_FIELDS, FundingBlock, MarketPanel
from crypto_qlib.data_collector import hot_panel
from crypto_qlib.data_collector.hot_follow import follow_lake
from crypto_qlib.data_collector.hot_panel import HotPanel
from crypto_qlib.data_collector.hot_store import hot_bins_that_differ, lock_of
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.data_collector.qlib_data_adapter import forget_cached_bars, init_qlib
from crypto_qlib.data_collector.qlib_store import write_qlib_store
from crypto_qlib.store.hold import HeldElsewhere, held
from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.store.panel_store import PanelStore
from crypto_qlib.store.paths import Paths

H = NS_PER_HOUR
T0 = 1_738_300_000_000_000_000 // H * H  # late in January 2025: the span crosses a month
SYMBOLS = ("AUSDT", "BUSDT", "CUSDT")
N = 60


class Market:
    """A lake of three coins, one without a mark and one that begins late; and the workspace beside it."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.lake = Lake(self.paths.lake)
        self.hot = HotPanel(self.lake, self.paths.panels / "1h", "1h")
        self.n = 0
        self.grow(N)
        self.span = (T0, T0 + N * H)

    def grow(self, n: int) -> None:
        """Let ``n`` more bars close: raw and cleaned candles, marks, funding every eight hours."""
        ts = T0 + H * np.arange(self.n, self.n + n, dtype=np.int64)
        for k, symbol in enumerate(SYMBOLS):
            at = ts[ts >= T0 + 10 * H] if symbol == "CUSDT" else ts
            if not at.size:
                continue
            self.put(Kind.CANDLES, symbol, at, 100.0 * (k + 1))
            self.put(Kind.CLEAN, symbol, at, 100.0 * (k + 1))
            if symbol != "BUSDT":
                self.put(Kind.MARK, symbol, at, 100.1 * (k + 1))
            due = at[at // H % 8 == 0]
            self.lake.write_funding(symbol, FundingBlock(due, np.full(due.size, 1e-4)))
        self.n += n

    def put(self, kind: Kind, symbol: str, ts: np.ndarray, level: float) -> None:
        close = level + (ts // H % 7)
        rows = {"open": close, "high": close + 1, "low": close - 1, "close": close}
        if kind is not Kind.MARK:
            rows |= {"volume": np.ones(ts.size), "quote_volume": close}
        if kind is Kind.CLEAN:
            rows["flag"] = np.zeros(ts.size, np.uint16)
        self.lake.upsert(Series(kind, "1h", symbol), {"ts": ts, **rows})

    def renew(self, start_ns: int = 0, end_ns: int = 0) -> int:
        self.span = (start_ns or self.span[0], end_ns or T0 + self.n * H)
        return self.hot.renew(SYMBOLS, *self.span, self.paths.qlib, partial(write_qlib_store, self.paths.qlib))

    def follow(self) -> int:
        return follow_lake(self.lake, self.hot.folder, self.paths.qlib, "1h")

    def assert_served(self) -> MarketPanel:
        served = self.hot.serve(SYMBOLS, *self.span)
        wanted = load_panel(self.lake, SYMBOLS, "1h", *self.span)
        np.testing.assert_array_equal(served.ts_open, wanted.ts_open)
        np.testing.assert_array_equal(served.has_mark, wanted.has_mark)
        for name in PANEL_FIELDS:
            np.testing.assert_array_equal(getattr(served, name), getattr(wanted, name), name)
        return served


@pytest.fixture
def market(tmp_path: Path) -> Market:
    return Market(tmp_path)


@pytest.fixture
def no_lake(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give a switch after which reading the lake fails."""

    def refuse(*_: object) -> MarketPanel:
        raise AssertionError("the lake was read")

    return lambda: monkeypatch.setattr(hot_panel, "load_panel", refuse)


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, N), (7, N - 9), (-5, N), (0, N + 6), (-3, N + 4), (20, 22)],
    ids=["all", "within", "begins before the first bar", "ends after the last", "both", "one bar"],
)
def test_what_is_served_from_the_map_is_what_the_lake_gives(
    market: Market, no_lake: Callable[[], None], start: int, end: int
) -> None:
    span = (T0 + start * H + 1, T0 + end * H - 1)
    market.renew(*span)
    served = market.assert_served()
    no_lake()
    again = market.hot.serve(SYMBOLS, *span)
    for name in PANEL_FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(served, name), name)
    np.testing.assert_array_equal(again.has_mark, [True, False, True])


def rewritten_in_place(market: Market) -> None:
    """Other bytes, the same size, the same modification time: what a checksum kept by time would not see."""
    path = market.lake.months(Series(Kind.CLEAN, "1h", "AUSDT"))[0]
    before = path.stat()
    market.put(Kind.CLEAN, "AUSDT", np.array([T0 + 5 * H]), 71.0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Market], object]] = {
    "a cleaned bar": lambda m: m.put(Kind.CLEAN, "AUSDT", np.array([T0 + 5 * H]), 90.0),
    "a mark": lambda m: m.put(Kind.MARK, "CUSDT", np.array([T0 + 30 * H]), 90.0),
    "the first mark of a coin": lambda m: m.put(Kind.MARK, "BUSDT", np.array([T0 + 30 * H]), 90.0),
    "a settlement": lambda m: m.lake.write_funding("BUSDT", FundingBlock(np.array([T0 + 3 * H]), np.array([0.002]))),
    "a month is gone": lambda m: m.lake.months(Series(Kind.CLEAN, "1h", "AUSDT"))[1].unlink(),
    "a file rewritten under its old time": rewritten_in_place,
    "rows appended as a part": lambda m: m.lake.append(
        Series(Kind.FUNDING, "event", "AUSDT"), {"ts": np.array([T0 + (N - 1) * H]), "rate": np.array([0.5])}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_lake_is_never_served_stale(market: Market, change: Callable[[Market], object]) -> None:
    market.renew()
    market.assert_served()
    change(market)
    assert not market.hot.is_current(SYMBOLS, *market.span)
    market.assert_served()
    market.renew()
    market.assert_served()
    assert market.hot.is_current(SYMBOLS, *market.span)


def test_files_written_anew_with_the_same_rows_cost_one_reading(market: Market, no_lake: Callable[[], None]) -> None:
    market.renew()
    for path in market.lake.months(Series(Kind.MARK, "1h", "AUSDT")):
        path.write_bytes(path.read_bytes())
    assert not market.hot.is_current(SYMBOLS, *market.span)
    market.assert_served()
    no_lake()
    market.hot.serve(SYMBOLS, *market.span)


@pytest.mark.parametrize("row", [0, 33, N - 1])
def test_a_value_that_changed_in_the_map_is_not_served(market: Market, row: int) -> None:
    market.renew()
    store = PanelStore.open(market.hot.folder, is_writable=True)
    store.write_rows(row, {"close": np.nextafter(store.field("close", row, row + 1), np.inf)})
    assert not market.hot.is_current(SYMBOLS, *market.span)
    market.assert_served()


@pytest.mark.parametrize("what", ["vouched", "close", "layout.json", "rows"])
def test_a_damaged_store_is_read_past_and_built_anew(market: Market, what: str) -> None:
    market.renew()
    path = market.hot.folder.with_name("1h.vouched.json") if what == "vouched" else market.hot.folder / what
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    market.assert_served()
    market.renew()
    market.assert_served()
    assert market.hot.is_current(SYMBOLS, *market.span)


def test_a_kill_while_the_store_is_renewed_leaves_the_lake_in_charge(market: Market) -> None:
    market.renew()
    market.grow(5)
    market.span = (T0, T0 + market.n * H)

    def dies(_: MarketPanel) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        market.hot.renew(SYMBOLS, *market.span, market.paths.qlib, dies)
    market.assert_served()
    market.renew()
    assert market.hot.is_current(SYMBOLS, *market.span)


def test_bars_that_closed_are_seen_by_engine_and_qlib_before_they_are_cleaned(market: Market) -> None:
    market.renew()
    market.grow(3)
    market.lake.upsert(  # as an exchange might say: a high below the close, mended as a live session would
        Series(Kind.CANDLES, "1h", "AUSDT"),
        {"ts": np.array([T0 + (N + 1) * H]), "open": np.array([5.0]), "high": np.array([5.5]), "low": np.array([4.0]),
         "close": np.array([6.0]), "volume": np.array([1.0]), "quote_volume": np.array([5.0])},
    )  # fmt: skip
    before = PanelStore.open(market.hot.folder).market_panel()
    assert market.follow() == 3
    assert market.follow() == 0
    store = PanelStore.open(market.hot.folder)
    assert len(store) == N + 3
    assert store.field("high")[N + 1, 0] == 6.0
    for name in PANEL_FIELDS:
        np.testing.assert_array_equal(store.field(name, 0, N), getattr(before, name), name)
    assert hot_bins_that_differ(store, market.paths.qlib) == []
    init_qlib(market.paths)
    forget_cached_bars()
    closes = D.features(["AUSDT"], ["$close"], freq="60min")["$close"].to_numpy()
    np.testing.assert_array_equal(closes, store.field("close")[:, 0].astype(np.float32))


def test_cleaning_has_the_last_word_on_bars_a_collector_appended(market: Market, tmp_path: Path) -> None:
    market.renew()
    market.grow(4)
    market.follow()
    market.put(Kind.CLEAN, "BUSDT", np.array([T0 + (N + 2) * H]), 777.0)  # what cleaning made of an appended bar
    market.grow(1)
    market.follow()
    assert market.renew() <= 3  # from the first row that differs on
    market.assert_served()
    store = PanelStore.open(market.hot.folder)
    whole = load_panel(market.lake, SYMBOLS, "1h")
    assert len(store) == whole.n_bars
    assert market.hot.appended_rows(whole) == 0
    assert hot_bins_that_differ(store, market.paths.qlib) == []


def test_who_reads_keeps_what_it_has_while_history_is_rewritten(market: Market) -> None:
    market.renew()
    reader = PanelStore.open(market.hot.folder)
    before = reader.field("close").copy()
    market.put(Kind.CLEAN, "AUSDT", np.array([T0 + 5 * H]), 90.0)
    market.renew()
    np.testing.assert_array_equal(reader.field("close"), before)


def test_one_writer_at_a_time_and_the_second_waits(market: Market) -> None:
    market.renew()
    market.grow(1)
    with held(lock_of(market.hot.folder)), pytest.raises(HeldElsewhere, match="another process is writing"):
        market.follow()
    said: list[int] = []
    with held(lock_of(market.hot.folder)):
        waiting = Thread(target=lambda: said.append(market.renew()))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(30.0)
    assert said == [1]


def test_one_descriptor_a_bin_fits_where_the_system_allows_few(market: Market) -> None:
    market.renew()
    market.grow(1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a pseudo folder
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 40, limits[1]))  # 3 coins x 11 fields x 2 frequencies are 66
    try:
        assert market.follow() == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


STEPS = st.lists(st.sampled_from(["grow", "follow", "renew", "correct", "mark", "serve"]), min_size=3, max_size=14)


@pytest.mark.slow  # every action syncs
@settings(max_examples=10, deadline=None)
@given(steps=STEPS)
def test_in_any_order_of_writers_the_lake_is_what_is_served(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    market = Market(tmp_path_factory.mktemp("market"))
    market.renew()
    for k, step in enumerate(steps):
        at = np.array([T0 + (7 * k + 11) % market.n * H])
        match step:
            case "grow":
                market.grow(1 + k % 3)
            case "follow":
                market.follow()
            case "renew":
                market.renew()
            case "correct":
                market.put(Kind.CLEAN, SYMBOLS[k % 3], at, 50.0 + k)
            case "mark":
                market.put(Kind.MARK, SYMBOLS[k % 3], at, 50.0 + k)
            case _:
                market.assert_served()
    market.assert_served()
    market.renew()
    market.assert_served()
    assert market.hot.is_current(SYMBOLS, *market.span)
    assert hot_bins_that_differ(PanelStore.open(market.hot.folder), market.paths.qlib) == []

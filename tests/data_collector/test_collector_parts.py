"""The collector's parts: statistics, corrections, gap ledger, order flow, watch, shared request budget."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from aiohttp import web

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, ManualClock
from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.data_collector.corrections import read_corrections
from crypto_qlib.data_collector.fetch_okx_data import clock_skew, update_data
from crypto_qlib.data_collector.gap_ledger import read_ledger
from crypto_qlib.data_collector.lake_status import lake_status
from crypto_qlib.data_collector.live_flow import FlowMinutes
from crypto_qlib.data_collector.qlib_collector import OkxCollector
from crypto_qlib.exchange.gateway import Book
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.okx_stream import BookTick, Dropped, Tick, TradeTick
from crypto_qlib.exchange.request_budget import LIMITS, WINDOW_NS, RequestBudget
from crypto_qlib.scheduler.data_watch import Watch, next_round_ns, watch
from crypto_qlib.settings.schema import DataSettings, ExchangeSettings
from crypto_qlib.store import lake as lake_module
from crypto_qlib.store.event_log import EventLog
from crypto_qlib.store.lake import EVENT, TIME, Kind, Lake, Series
from tests.data_collector.fake_exchange import T0, FakeExchange, KilledError, part, walk, with_values
from tests.data_collector.test_fetch_okx_data import NOW, N, exchange

STATISTICS = DataSettings(since="2025-01-01", concurrency=3)


async def test_statistics_are_archived_as_far_back_as_the_exchange_keeps_them(tmp_path: Path) -> None:
    fake, lake = exchange(), Lake(tmp_path)
    await update_data(fake, lake, ["BTCUSDT"], STATISTICS, NOW)  # type: ignore[arg-type]
    rows = lake.read(Series(Kind.INTEREST_HISTORY, "1h", "BTCUSDT"))
    assert rows[TIME][0] == NOW - 60 * NS_PER_DAY + NS_PER_HOUR
    assert rows[TIME][-1] == NOW - NS_PER_HOUR
    assert np.all(np.diff(rows[TIME]) == NS_PER_HOUR)
    np.testing.assert_array_equal(rows["open_interest"], rows[TIME] / 1e12)
    flow = lake.read(Series(Kind.TAKER_VOLUME, "1h", "BTCUSDT"))
    np.testing.assert_array_equal(flow["buy"], flow[TIME] / 1e13)
    crowd = lake.read(Series(Kind.LONG_SHORT, "1h", "BTCUSDT"))
    np.testing.assert_array_equal(crowd[TIME], rows[TIME])
    np.testing.assert_array_equal(crowd["ratio"], crowd[TIME] / 1e18)
    kinds = {s.series.kind: s.source for s in lake_status(lake, NOW)}
    assert kinds[Kind.LONG_SHORT] == "REST statistics"
    quotes = lake.read(Series(Kind.FUNDING_QUOTES, EVENT, "BTCUSDT"))
    assert (quotes[TIME].tolist(), quotes["settles_ns"].tolist()) == ([NOW], [NOW + NS_PER_HOUR])


async def test_long_short_ratios_go_on_where_they_stopped_and_what_okx_forgot_is_in_the_ledger(tmp_path: Path) -> None:
    """A run dies at the first question about the crowd, the next asks for the rest; then the collector sleeps for 65 days."""
    lake, series, short = Lake(tmp_path), Series(Kind.LONG_SHORT, "1h", "BTCUSDT"), NOW - 65 * NS_PER_DAY
    wanted = DataSettings(since="2025-01-01", mark_candles=False, funding=False)
    fake = exchange(short)
    await update_data(fake, lake, ["BTCUSDT"], wanted, short)  # type: ignore[arg-type]
    counts = [call[0] for call in fake.calls]
    killed, other = exchange(short, kill_at=counts.index("long-short") + 1), Lake(tmp_path / "killed")
    with pytest.raises(KilledError):
        await update_data(killed, other, ["BTCUSDT"], wanted, short)  # type: ignore[arg-type]
    assert other.read(Series(Kind.TAKER_VOLUME, "1h", "BTCUSDT"))[TIME].size
    assert not other.read(series)[TIME].size
    await update_data(exchange(short), other, ["BTCUSDT"], wanted, short)  # type: ignore[arg-type]
    np.testing.assert_array_equal(other.read(series)["ratio"], lake.read(series)["ratio"])
    await update_data(exchange(), lake, ["BTCUSDT"], wanted, NOW)  # type: ignore[arg-type]
    times = lake.read(series)[TIME]
    (hole,) = np.flatnonzero(np.diff(times) > NS_PER_HOUR)
    assert (int(times[hole]), int(times[hole + 1])) == (short - NS_PER_HOUR, NOW - 60 * NS_PER_DAY + NS_PER_HOUR)
    (status,) = [s for s in lake_status(lake, NOW) if s.series == series]
    assert (status.n_missing, status.stale_ns) == (5 * 24 + 1, 0)


async def test_further_frames_and_index_candles_are_collected_too(tmp_path: Path) -> None:
    minutes = walk(7, 3000, T0, 15 * NS_PER_MINUTE)
    fake = exchange(T0 + 700 * NS_PER_HOUR)
    lake = Lake(tmp_path)
    seen: list[tuple[str, str]] = []

    async def candles(symbol: str, frame: str, a: int, b: int, kind: object = "last") -> object:
        seen.append((frame, str(kind)))
        block = fake.last[symbol] if frame == "1h" else minutes
        return part(block, (block.ts_open >= a) & (block.ts_open < b))

    fake.candles = candles  # type: ignore[method-assign,assignment]
    wanted = STATISTICS.model_copy(update={"frames": ("15m",), "index_candles": True, "statistics": False})
    await update_data(fake, lake, ["BTCUSDT"], wanted, fake.now_ns)  # type: ignore[arg-type]
    assert set(seen) == {("1h", "last"), ("1h", "mark"), ("1h", "index"), ("15m", "last")}
    stored = lake.read_bars(Kind.CANDLES, "15m", "BTCUSDT")
    np.testing.assert_array_equal(stored.ts_open, minutes.ts_open[: 4 * 700])
    assert len(lake.read_bars(Kind.INDEX, "1h", "BTCUSDT")) == 700


async def test_what_was_first_said_is_kept_beside_a_correction(tmp_path: Path) -> None:
    fake, lake = exchange(NOW - NS_PER_HOUR), Lake(tmp_path)
    await update_data(fake, lake, ["BTCUSDT"], STATISTICS, fake.now_ns)  # type: ignore[arg-type]
    before = fake.last["BTCUSDT"].close[N - 3]
    close = fake.last["BTCUSDT"].close.copy()
    close[N - 3] *= 1.01
    fake.last["BTCUSDT"] = with_values(fake.last["BTCUSDT"], close=close)
    fake.now_ns = NOW
    for _ in range(2):
        await update_data(fake, lake, ["BTCUSDT"], STATISTICS, NOW)  # type: ignore[arg-type]
    (row,) = read_corrections(lake, Series(Kind.CANDLES, "1h", "BTCUSDT")).to_pylist()
    assert row == {
        "ts": T0 + (N - 3) * NS_PER_HOUR, "column": "close", "old": before, "new": close[N - 3], "seen_ns": NOW
    }  # fmt: skip


async def test_the_ledger_tells_what_is_lost_for_good_and_forgets_what_was_filled(tmp_path: Path) -> None:
    fake, lake = exchange(), Lake(tmp_path)
    late = DataSettings(since="2024-09-01", concurrency=3)
    fake.settlements["BTCUSDT"] = type(fake.settlements["BTCUSDT"])(
        fake.settlements["BTCUSDT"].ts[50:], fake.settlements["BTCUSDT"].rate[50:]
    )
    await update_data(fake, lake, ["BTCUSDT", "ETHUSDT"], late, NOW)  # type: ignore[arg-type]
    gaps = {(g.series.kind, g.series.symbol, g.reason, g.is_lost) for g in read_ledger(lake)}
    assert (Kind.FUNDING, "BTCUSDT", "none", False) in gaps  # began inside the three months the exchange keeps
    assert (Kind.CANDLES, "ETHUSDT", "none", True) in gaps  # an outage: asked, and nothing is there
    young = [g for g in read_ledger(lake) if g.series == Series(Kind.CANDLES, "1h", "ETHUSDT") and not g.is_lost]
    assert [(g.start_ns, g.end_ns) for g in young] == [(T0 + (N - 5) * NS_PER_HOUR, T0 + (N - 4) * NS_PER_HOUR)]
    fake.last["ETHUSDT"] = walk(2, N)  # the exchange fills it in later
    fake.now_ns = NOW + NS_PER_HOUR
    await update_data(fake, lake, ["BTCUSDT", "ETHUSDT"], late, fake.now_ns)  # type: ignore[arg-type]
    kept = [g for g in read_ledger(lake) if g.series == Series(Kind.CANDLES, "1h", "ETHUSDT")]
    assert all(g.end_ns <= T0 + 701 * NS_PER_HOUR or g.start_ns >= NOW - NS_PER_HOUR for g in kept)
    assert {g.found_ns for g in kept if g.is_lost} == {NOW}  # when it was first noticed
    status = {s.series: s for s in lake_status(lake, fake.now_ns, ["ETHUSDT"])}
    bars = status[Series(Kind.CANDLES, "1h", "ETHUSDT")]
    assert (bars.n_rows, bars.n_missing, bars.n_lost > 0, bars.stale_ns) == (N - 3, 3, True, NS_PER_HOUR)


async def test_tiers_not_looked_at_for_days_are_lost(tmp_path: Path) -> None:
    fake, lake = exchange(NOW - 5 * NS_PER_DAY), Lake(tmp_path)
    for now in (NOW - 5 * NS_PER_DAY, NOW):
        fake.now_ns = now
        await update_data(fake, lake, ["BTCUSDT"], STATISTICS, now)  # type: ignore[arg-type]
    (gap,) = [g for g in read_ledger(lake) if g.series.kind is Kind.TIERS]
    assert (gap.start_ns, gap.end_ns, gap.is_lost) == (NOW - 5 * NS_PER_DAY, NOW - 1, True)


@pytest.mark.parametrize(("off_s", "told"), [(0.0, ""), (1.9, ""), (31.0, "31.0 s behind"), (-5.0, "5.0 s ahead of")])
async def test_a_wrong_clock_is_told(off_s: float, told: str) -> None:
    fake = FakeExchange({}, NOW)
    line = await clock_skew(fake, ManualClock(NOW - int(off_s * NS_PER_S)))  # type: ignore[arg-type]
    assert told in line
    assert bool(line) == bool(told)


def trade(k: int, second: float, size: float) -> TradeTick:
    return TradeTick("BTCUSDT", f"t{k}", T0 + int(second * NS_PER_S), 100.0, size)


def book(second: float, bid: float, ask: float) -> BookTick:
    sides = np.array([[99.0, bid]]), np.array([[101.0, ask]])
    return BookTick("BTCUSDT", Book(T0 + int(second * NS_PER_S), *sides))


def told(ticks: list[tuple[float, Tick]], until_s: float) -> dict[str, np.ndarray]:
    flow = FlowMinutes(["BTCUSDT"], T0 - 30 * NS_PER_S)
    for second, tick in ticks:
        flow.take(tick, T0 + int(second * NS_PER_S))
    return flow.finished(T0 + int(until_s * NS_PER_S)).get("BTCUSDT", {})


def test_minutes_of_flow_count_each_trade_once_and_average_the_books() -> None:
    ticks: list[tuple[float, Tick]] = [(-20.0, trade(0, -20, 1.0)), (-19.0, book(-19, 1, 1))]
    ticks += [(1.0, trade(1, 1, 2.0)), (2.0, trade(1, 1, 2.0)), (3.0, trade(2, 3, -0.5))]
    ticks += [(4.0, book(4, 3.0, 1.0)), (5.0, book(5, 1.0, 1.0)), (63.0, trade(3, 59.9, 1.0))]  # the last one is late
    rows = told(ticks, 66.0)
    assert rows[TIME].tolist() == [T0 - NS_PER_MINUTE, T0]
    assert rows["is_whole"].tolist() == [0.0, 1.0]  # watching began inside the first
    assert (rows["buy"][1], rows["sell"][1], rows["n_trades"][1]) == (3.0, 0.5, 3.0)
    assert rows["imbalance"][1] == pytest.approx(0.25)
    assert rows["spread_bps"][1] == pytest.approx(200.0)
    assert math.isnan(told([], 66.0).get("imbalance", np.array([math.nan]))[0])


def test_spreads_of_trades_and_slopes_of_the_book_on_a_hand_worked_minute() -> None:
    def levels(second: float, mid: float) -> BookTick:
        """Two levels a side, 1 and 2 % away from the mid, 3 and 5 coins bid, half of that offered."""
        bids = np.array([[0.99 * mid, 3.0], [0.98 * mid, 5.0]])
        asks = np.array([[1.01 * mid, 1.5], [1.02 * mid, 2.5]])
        return BookTick("BTCUSDT", Book(T0 + int(second * NS_PER_S), bids, asks))

    def deal(k: int, second: float, price: float, size: float) -> TradeTick:
        return TradeTick("BTCUSDT", f"d{k}", T0 + int(second * NS_PER_S), price, size)

    ticks: list[tuple[float, Tick]] = [(-20.0, trade(0, -20, 1.0)), (-19.0, levels(-19, 100.0))]
    ticks += [(1.0, levels(1.0, 100.0)), (2.0, deal(1, 2.0, 101.0, 2.0)), (3.0, deal(2, 3.0, 98.0, -1.0))]
    ticks += [(3.5, levels(3.5, 200.0)), (3.6, deal(3, 3.4, 101.0, 3.0))]  # told after a book it came before
    ticks += [(7.0, levels(7.0, 100.5)), (9.0, levels(9.0, 102.0))]
    ticks += [(50.0, deal(4, 50.0, 150.0, 9.0))]  # no book for 41 s: nobody knows the mid
    rows = {name: values[1] for name, values in told(ticks, 66.0).items()}
    # Mid 100 for all three: 2 coins at 2 x 1 %, 1 at 2 x 2 %, 3 at 2 x 1 %, in basis points.
    assert rows["effective_bps"] == pytest.approx((2 * 200.0 + 400.0 + 3 * 200.0) / 6)
    # The buys at 2.0 s and 3.4 s meet 100.5 (at 7 s) and 102 (at 9 s); the sell at 98 of 3.0 s meets 102.
    first, sold, late = 2 * (101 / 100.5 - 1), -2 * (98 / 102.0 - 1), 2 * (101 / 102.0 - 1)
    assert rows["realised_bps"] == pytest.approx((2 * first + sold + 3 * late) / 6 * 1e4)
    per_mid = np.mean([100.0, 200.0, 100.5, 102.0])
    assert rows["bid_slope"] == pytest.approx((0.99 * 3 + 0.98 * 5) * per_mid / 200.0)
    assert rows["ask_slope"] == pytest.approx((1.01 * 1.5 + 1.02 * 2.5) * per_mid / 200.0)


def test_minutes_written_before_a_column_was_there_lack_it_and_take_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, later = Series(Kind.ORDER_FLOW, "1m", "BTCUSDT"), lake_module._LATER[Kind.ORDER_FLOW]
    row = dict.fromkeys(lake_module._VALUES[Kind.ORDER_FLOW], np.array([1.0]))
    with monkeypatch.context() as earlier:
        old = {n: t for n, t in lake_module._VALUES[Kind.ORDER_FLOW].items() if n not in later}
        earlier.setitem(lake_module._VALUES, Kind.ORDER_FLOW, old)
        Lake(tmp_path).upsert(series, {TIME: np.array([T0]), **{n: row[n] for n in old}})
    assert Lake(tmp_path).upsert(series, {TIME: np.array([T0 + NS_PER_MINUTE]), **row}).added == 1
    found = Lake(tmp_path).read(series, columns=("buy", "realised_bps"))
    assert found["buy"].tolist() == [1.0, 1.0]
    assert np.isnan(found["realised_bps"]).tolist() == [True, False]


def test_a_lost_connection_is_a_hole_from_the_last_thing_heard_to_the_next() -> None:
    ticks: list[tuple[float, Tick]] = [(-20.0, trade(0, -20, 1.0)), (-19.0, book(-19, 1, 1))]
    ticks += [(k * 30.0 + 1, book(k * 30.0 + 1, 1, 1)) for k in range(16)]
    ticks += [(61.0, trade(1, 61, 1.0)), (150.0, Dropped("trades", "NetworkError")), (310.0, trade(2, 310, 1.0))]
    ticks += [(370.0, trade(3, 370, 1.0)), (430.0, trade(4, 430, 1.0))]
    rows = told(sorted(ticks, key=lambda t: t[0]), 486.0)
    whole = dict(zip(((rows[TIME] - T0) // NS_PER_MINUTE).tolist(), rows["is_whole"].tolist(), strict=True))
    assert [whole.get(m, 0.0) for m in range(8)] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]


class Tape:
    """A stream that plays ticks and then stays silent."""

    def __init__(self, ticks: list[Tick]) -> None:
        self._ticks = ticks
        self.is_closed = False

    async def ticks(self) -> AsyncIterator[Tick]:
        for tick in self._ticks:
            yield tick
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.is_closed = True


async def test_a_watch_survives_a_dead_exchange_and_stores_bars_and_flow_at_every_close(tmp_path: Path) -> None:
    fake, lake, clock = exchange(NOW - 4 * NS_PER_HOUR), Lake(tmp_path), ManualClock(NOW - 4 * NS_PER_HOUR)
    said: list[str] = []
    waits: list[int] = []
    tape = Tape([TradeTick("BTCUSDT", "a", clock.now_ns() + NS_PER_S, 1.0, 2.0)])

    async def wait_until(ts_ns: int) -> None:
        waits.append(ts_ns)
        await asyncio.sleep(0.0)
        fake.now_ns = ts_ns
        clock.advance_to(ts_ns)
        fake.dies_after = len(fake.calls) if len(waits) == 2 else -1

    async def update() -> object:
        if fake.dies_after >= 0:
            raise RetryLater("OKX answered 50001: maintenance")
        return await update_data(fake, lake, ["BTCUSDT"], STATISTICS, fake.now_ns)  # type: ignore[arg-type]

    log = EventLog(tmp_path / "log.jsonl", clock)
    parts = Watch(lake, STATISTICS, ("BTCUSDT",), update, clock, wait_until, said.append, log)  # type: ignore[arg-type]
    assert await watch(parts, tape, rounds=3) == 2
    assert tape.is_closed
    assert "maintenance: asked again at the next close" in said[1]
    assert int(lake.read_bars(Kind.CANDLES, "1h", "BTCUSDT").ts_open[-1]) == NOW - 3 * NS_PER_HOUR
    flow = lake.read(Series(Kind.ORDER_FLOW, "1m", "BTCUSDT"))
    assert flow["buy"].sum() == 2.0
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["updated", "round failed", "updated"]
    assert all((w % NS_PER_HOUR) // NS_PER_S in range(3, 8) for w in waits)  # settled, jittered


def test_the_next_round_is_never_the_one_just_done() -> None:
    wanted = STATISTICS.model_copy(update={"frames": ("1m",)})
    now = T0 + 17 * NS_PER_S
    for _ in range(5):
        later = next_round_ns(now, wanted)
        assert 0 < later - now <= NS_PER_MINUTE
        now = later


def _ask_often(path: str, endpoint: str, n: int, queue: multiprocessing.Queue[list[int]]) -> None:
    budget = RequestBudget(Path(path))
    taken: list[int] = []
    for _ in range(n):
        time.sleep(budget.take(endpoint) / NS_PER_S)
        taken.append(time.time_ns())
    queue.put(taken)


@pytest.mark.slow
def test_processes_together_keep_one_limit(tmp_path: Path) -> None:
    """Three processes, one endpoint of 40 requests per two seconds: no window of two seconds may see more."""
    endpoint = "publicGetMarketCandles"
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[int]] = context.Queue()
    jobs = [context.Process(target=_ask_often, args=(str(tmp_path / "b.sqlite"), endpoint, 40, queue)) for _ in range(3)]
    for job in jobs:
        job.start()
    times = np.sort(np.concatenate([queue.get(timeout=60) for _ in jobs]))
    for job in jobs:
        job.join()
    in_window = np.searchsorted(times, times + WINDOW_NS) - np.arange(times.size)
    assert in_window.max() <= LIMITS[endpoint]
    assert times.size == 120


def test_a_refusal_holds_everybody_back_and_instruments_have_their_own_turns(tmp_path: Path) -> None:
    clock = ManualClock(10**18)
    one, other = (RequestBudget(tmp_path / "b.sqlite", clock) for _ in range(2))
    assert one.take("publicGetPublicTime") == 0
    one.refused("publicGetPublicTime", "", 3.0)
    assert other.take("publicGetPublicTime") == 3 * NS_PER_S
    assert other.take("publicGetPublicInstruments") == 0
    for _ in range(50):
        one.take("publicGetPublicOpenInterest", "BTC-USDT-SWAP")
    assert other.take("publicGetPublicOpenInterest", "BTC-USDT-SWAP") > NS_PER_S
    assert other.take("publicGetPublicOpenInterest", "ETH-USDT-SWAP") == 0
    one.refused("publicGetPublicTime", "", 500.0)  # left by a clock that ran ahead: not believed
    assert other.take("publicGetPublicTime") == 0
    one.close()
    other.close()


async def test_statistics_are_read_through_ccxt_from_a_server_that_speaks_okx() -> None:
    """Pages of 100, newest first, whatever ``begin`` says; rows as OKX documents them."""
    hour_ms, end_ms = 3_600_000, 1_735_689_600_000
    asked: list[dict[str, str]] = []

    def rows(request: web.Request, *values: str) -> web.Response:
        asked.append(dict(request.query))
        last = min(int(request.query["end"]) - 1, end_ms) // hour_ms * hour_ms
        page = [[str(last - k * hour_ms), *values] for k in range(100)]
        return web.json_response({"code": "0", "msg": "", "data": [r for r in page if int(r[0]) > int(request.query["begin"])]})

    async def interest(request: web.Request) -> web.Response:
        return rows(request, "1234", "12.34", "1234000")

    async def taker(request: web.Request) -> web.Response:
        return rows(request, "7596.2651", "7149.4855")

    async def crowd(request: web.Request) -> web.Response:
        return rows(request, "0.9398602814619824")

    async def instruments(_request: web.Request) -> web.Response:
        row = {"instType": "SWAP", "instId": "BTC-USDT-SWAP", "settleCcy": "USDT", "ctType": "linear", "ctValCcy": "BTC"}
        row |= {"ctVal": "0.01", "tickSz": "0.1", "lotSz": "0.01", "minSz": "0.01", "state": "live", "listTime": "1"}
        return web.json_response({"code": "0", "msg": "", "data": [row | {"expTime": "1735000000000"}]})

    async def funding(_request: web.Request) -> web.Response:
        times = {"fundingTime": "1735718400000", "nextFundingTime": "1735732800000"}
        row = {"instId": "BTC-USDT-SWAP", "fundingRate": "0.0001", **times}
        return web.json_response({"code": "0", "msg": "", "data": [row, row | {"instId": "OTHER-USDT-SWAP"}]})

    async def now(_request: web.Request) -> web.Response:
        return web.json_response({"code": "0", "msg": "", "data": [{"ts": str(end_ms)}]})

    app, root = web.Application(), "/api/v5/"
    paths = {"rubik/stat/contracts/open-interest-history": interest, "rubik/stat/taker-volume-contract": taker}
    paths["rubik/stat/contracts/long-short-account-ratio-contract"] = crowd
    paths |= {"public/instruments": instruments, "public/funding-rate": funding, "public/time": now}
    for path, handler in paths.items():
        app.router.add_get(root + path, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with OkxGateway(ExchangeSettings(), None, f"http://127.0.0.1:{runner.addresses[0][1]}") as gateway:
            (item,) = await gateway.instruments()
            start, end = (end_ms - 250 * hour_ms) * 10**6, end_ms * 10**6
            held = await gateway.open_interest_history("BTCUSDT", "1h", start, end)
            flow = await gateway.taker_volume("BTCUSDT", "1h", start, end)
            ratios = await gateway.long_short_ratio("BTCUSDT", "1h", start, end)
            quotes = await gateway.funding_now()
    finally:
        await runner.cleanup()
    assert (item.funding_interval_h, item.delisted_ns) == (4, 1_735_000_000_000 * 10**6)
    np.testing.assert_array_equal(held.ts, np.arange(start, end, NS_PER_HOUR))
    assert (held.coins[0], held.usd[0]) == (12.34, 1234000.0)
    np.testing.assert_array_equal(flow.ts, held.ts)
    assert (flow.sell[0], flow.buy[0]) == (7596.2651, 7149.4855)  # [ts, sell, buy]
    np.testing.assert_array_equal(ratios.ts, held.ts)
    assert set(ratios.ratio.tolist()) == {0.9398602814619824}
    assert len(asked) == 9
    assert asked[0]["period"] == "1H"
    assert [(q.symbol, q.rate, q.settles_ns) for q in quotes] == [("BTCUSDT", 0.0001, 1_735_718_400_000 * 10**6)]


def test_a_qlib_user_finds_the_collector_he_knows(tmp_path: Path) -> None:
    fake = exchange()

    @asynccontextmanager
    async def opened() -> AsyncIterator[FakeExchange]:
        yield fake

    made = OkxCollector(tmp_path, opened, ["ETHUSDT", "BTCUSDT"], "2025-01-02", "2025-01-04", "60min")  # type: ignore[arg-type]
    assert made.get_instrument_list() == ["BTCUSDT", "ETHUSDT"]
    assert [p.name for p in made.collector_data()] == ["BTCUSDT.csv", "ETHUSDT.csv"]
    table = pd.read_csv(tmp_path / "BTCUSDT.csv", parse_dates=["date"])
    true = fake.last["BTCUSDT"]
    assert (len(table), table.date[0]) == (48, pd.Timestamp("2025-01-02"))
    np.testing.assert_allclose(table.close, true.close[24:72])
    np.testing.assert_allclose(table.change[1:], true.close[25:72] / true.close[24:71] - 1.0)
    with pytest.raises(UserError, match="is no interval"):
        OkxCollector(tmp_path, opened, [], "2025-01-02", "2025-01-04", "7min")  # type: ignore[arg-type]

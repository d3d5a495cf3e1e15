"""The long/short ratio of accounts: as the market behind the server has it, through the real client; never before its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from aiohttp import web

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, parse_utc
from crypto_qlib.core.errors import DoNotRetry, SkipCycle
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.lake import TIME, Kind, Lake, Series
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec
from tests.exchange.test_replay_market import candles, saved

START = parse_utc("2025-01-01")
MARKET = SimulatedMarket(SimulationSpec(6, START, START + 12 * NS_PER_DAY, seed=5))
NOW = START + 10 * NS_PER_DAY + 30 * NS_PER_MINUTE
N_HOURS = 40


async def test_the_market_s_own_ratios_come_back_page_by_page_and_only_of_whole_periods() -> None:
    options = EmbeddedOptions(start_ns=NOW, step_frame_ns=NS_PER_MINUTE)
    async with (
        EmbeddedExchange(MARKET, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        hours = await gateway.long_short_ratio("BTCUSDT", "1h", START, NOW)
        assert len(hours) == 240, "ten days in three pages; the hour that runs is not told"
        true = MARKET.long_short_ratios("BTCUSDT", NS_PER_HOUR, START, START + 240 * NS_PER_HOUR)
        np.testing.assert_array_equal(hours.ts, true.ts)
        np.testing.assert_array_equal(hours.ratio, true.ratio)
        inner = await gateway.long_short_ratio("BTCUSDT", "1h", START + 5 * NS_PER_HOUR, START + 7 * NS_PER_HOUR)
        np.testing.assert_array_equal(inner.ratio, true.ratio[5:7])
        quarters = await gateway.long_short_ratio("BTCUSDT", "4h", START, NOW)
        np.testing.assert_array_equal(quarters.ratio, true.ratio[::4])
        five = await gateway.long_short_ratio("BTCUSDT", "5m", NOW - NS_PER_HOUR, NOW)
        assert len(five) == 12
        with pytest.raises(DoNotRetry, match="no 2h statistics"):
            await gateway.long_short_ratio("BTCUSDT", "2h", START, NOW)


def lake_of(tmp_path: Path, *, with_ratios: bool) -> Path:
    folder = tmp_path / "candles" / "1h" / "BTCUSDT"
    folder.mkdir(parents=True)
    rows = candles("x", N_HOURS).drop(columns="symbol")
    ts = pd.date_range("2025-01-01", periods=N_HOURS, freq="h", tz="UTC").as_unit("ns").asi8
    saved(rows.assign(ts=ts), folder / "2025-01.parquet")
    if with_ratios:
        kept = np.delete(np.arange(N_HOURS), 3)  # an hour OKX left out
        Lake(tmp_path).upsert(Series(Kind.LONG_SHORT, "1h", "BTCUSDT"), {TIME: ts[kept], "ratio": 1.0 + kept / 100.0})
    return tmp_path


@pytest.mark.parametrize("with_ratios", [True, False])
async def test_a_replayed_lake_tells_what_was_collected_and_makes_nothing_up(tmp_path: Path, with_ratios: bool) -> None:
    replay = ReplayMarket(lake_of(tmp_path, with_ratios=with_ratios))
    options = EmbeddedOptions(start_ns=START + 30 * NS_PER_HOUR, step_frame_ns=NS_PER_HOUR)
    async with (
        EmbeddedExchange(replay, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        told = await gateway.long_short_ratio("BTCUSDT", "1h", START, START + N_HOURS * NS_PER_HOUR)
        finer = await gateway.long_short_ratio("BTCUSDT", "5m", START, START + 30 * NS_PER_HOUR)
    hours = [k for k in range(30) if k != 3] if with_ratios else []
    assert told.ts.tolist() == [START + k * NS_PER_HOUR for k in hours], "not a row later than now"
    assert told.ratio.tolist() == [1.0 + k / 100.0 for k in hours]
    assert len(finer) == 0


START_MS = START // 10**6
INSTRUMENT = {
    "instType": "SWAP", "instId": "BTC-USDT-SWAP", "settleCcy": "USDT", "ctType": "linear", "ctValCcy": "BTC", "ctVal": "0.01",
    "tickSz": "0.1", "lotSz": "0.01", "minSz": "0.01", "state": "live", "listTime": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([str(START_MS), "0.9398602814619824"], 0.9398602814619824),
        ([str(START_MS), ""], None),  # OKX leaves a value empty: not known
        ([str(START_MS), "0"], None),  # nobody long: no such ratio has a logarithm
        ([str(START_MS), "-1.2"], None),
        ([str(START_MS), "inf"], None),
        ([str(START_MS + 1), "1.2"], ()),  # off the grid of hours: no row of it
        ([str(START_MS), "many"], SkipCycle),
        ([str(START_MS)], SkipCycle),
        (["noon", "1.2"], SkipCycle),
        ([None, "1.2"], SkipCycle),
        (7, SkipCycle),
    ],
)
async def test_an_answer_that_cannot_be_read_costs_this_series_and_nothing_else(row: object, expected: object) -> None:
    async def answer(request: web.Request) -> web.Response:
        name = request.path.rsplit("/", 1)[1]
        data = [INSTRUMENT] if name == "instruments" else [row] if name.startswith("long-short") else []
        return web.json_response({"code": "0", "msg": "", "data": data})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with OkxGateway(ExchangeSettings(), None, f"http://127.0.0.1:{runner.addresses[0][1]}") as gateway:
            asked = gateway.long_short_ratio("BTCUSDT", "1h", START, START + NS_PER_HOUR)
            if expected is SkipCycle:
                with pytest.raises(SkipCycle, match="long/short ratio of BTCUSDT: a row of the answer cannot be read"):
                    await asked
                return
            found = (await asked).ratio.tolist()
    finally:
        await runner.cleanup()
    np.testing.assert_array_equal(found, [] if expected == () else [np.nan if expected is None else expected])

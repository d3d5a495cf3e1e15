"""Days of UTC+8, weeks and months: over REST and socket, beside pandas' own resampling of the hours."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MS
from crypto_qlib.exchange.embedded.long_frames import LONG_FRAMES
from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from tests.exchange.ccxt_clients import okx_client
from tests.exchange.fake_market import START_NS, FakeMarket
from tests.exchange.raw_socket import dialled

RULES = {
    "6H": "6h", "12H": "12h", "1D": "1D", "1W": "W-MON", "1M": "MS", "3M": "QS",
    "6Hutc": "6h", "12Hutc": "12h", "1Dutc": "1D", "1Wutc": "W-MON", "1Mutc": "MS", "3Mutc": "QS",
}  # fmt: skip


def resampled(market: FakeMarket, name: str, now_ns: int) -> pd.DataFrame:
    """Return the bars pandas makes of the hours closed by now and the first price of the one that runs, by their open in ms."""
    bars = market.bars("BTCUSDT", NS_PER_HOUR, START_NS, now_ns + NS_PER_HOUR)
    frame = pd.DataFrame(
        {c: getattr(bars, c) for c in ("open", "high", "low", "close", "volume")}, index=pd.to_datetime(bars.ts_open)
    )
    frame.iloc[-1, 1:4] = frame.iloc[-1, 0]
    frame.iloc[-1, 4] = 0.0
    shift = pd.Timedelta(0 if name.endswith("utc") else "8h")
    frame.index = frame.index + shift
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    made = frame.resample(RULES[name], label="left", closed="left").agg(how)
    made.index = (made.index - shift).astype("datetime64[ms]").astype(np.int64)
    return made


async def rows_of(exchange: EmbeddedExchange, query: str) -> list[list[str]]:
    async with aiohttp.ClientSession() as http, http.get(f"{exchange.base_url}/api/v5/market/{query}") as answer:
        data: list[list[str]] = (await answer.json())["data"]
    return data


@pytest.mark.parametrize(
    "name", [name if name in ("1D", "1W", "3Mutc") else pytest.param(name, marks=pytest.mark.slow) for name in RULES]
)
async def test_a_long_bar_is_what_its_hours_make(exchange: EmbeddedExchange, market: FakeMarket, name: str) -> None:
    await exchange.step(5)
    expected = resampled(market, name, exchange.clock.market_ns)
    rows = (await rows_of(exchange, f"candles?instId=BTC-USDT-SWAP&bar={name}&limit=300"))[::-1]
    assert [int(row[0]) for row in rows] == expected.index.tolist()
    found = np.array([[float(cell) for cell in (*row[1:5], row[6])] for row in rows])
    np.testing.assert_allclose(found, expected.to_numpy(), rtol=1e-12)
    assert [row[8] for row in rows] == ["1"] * (len(rows) - 1) + ["0"]
    closed = (await rows_of(exchange, f"history-candles?instId=BTC-USDT-SWAP&bar={name}&limit=300"))[::-1]
    assert closed == rows[:-1]
    # Paged backwards, the pages meet without a gap.
    after, paged = "", []
    while page := await rows_of(exchange, f"history-candles?instId=BTC-USDT-SWAP&bar={name}&limit=2{after}"):
        paged += page
        after = f"&after={page[-1][0]}"
    assert paged[::-1] == closed


async def test_the_socket_tells_the_end_of_a_day_of_utc8(exchange: EmbeddedExchange) -> None:
    async with dialled(exchange.base_url, "business") as socket:
        await socket.subscribe(channel="candle1D", instId="BTC-USDT-SWAP")
        first = (await socket.read())["data"][0]
        told: list[Any] = []
        for _ in range(16):
            await exchange.step()
            told.append((await socket.read())["data"][0])
        assert {row[0] for row in told[:15]} == {first[0]}
        assert [row[8] for row in told] == ["0"] * 15 + ["1"]
        assert int(told[-1][0]) == (START_NS + 61 * NS_PER_DAY + 16 * NS_PER_HOUR) // NS_PER_MS
        fresh = (await socket.read())["data"][0]
        assert (int(fresh[0]) - int(first[0]), fresh[8]) == (NS_PER_DAY // NS_PER_MS, "0")


async def test_ccxt_reads_weeks_and_days(exchange: EmbeddedExchange) -> None:
    client = okx_client(exchange.base_url, exchange.credentials)
    try:
        for frame, least in (("1d", 60), ("1w", 8), ("1M", 2), ("6h", 240)):
            rows = await client.fetch_ohlcv("BTC/USDT:USDT", frame, limit=300)
            assert len(rows) >= least
            assert all(a[0] < b[0] for a, b in pairwise(rows))
    finally:
        await client.close()


def test_every_name_of_okx_is_known() -> None:
    names = ("6H", "12H", "1D", "2D", "3D", "1W", "1M", "3M")
    assert set(LONG_FRAMES) == {f"{name}{ending}" for name in names for ending in ("", "utc")}

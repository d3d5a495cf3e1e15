"""Taker volume of a simulated market: what the trades it shows add up to, through the real client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, parse_utc
from crypto_qlib.core.market import BarBlock
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.taker_tape import taker_coins
from crypto_qlib.exchange.embedded.trade_tape import bar_trades
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

START = parse_utc("2025-01-01")
MARKET = SimulatedMarket(SimulationSpec(6, START, START + 3 * NS_PER_DAY, seed=5))
NOW = START + 2 * NS_PER_DAY + 30 * NS_PER_MINUTE
BTC = next(item for item in MARKET.instruments() if item.symbol == "BTCUSDT")

prices = st.floats(0.0, 0.05).map(lambda x: round(x, 4))


@settings(max_examples=60, deadline=None)
@given(
    close=st.floats(-0.05, 0.05), up=prices, down=prices,
    lots=st.one_of(st.integers(0, 400), st.integers(10_000, 10_000_000)),
)  # fmt: skip
def test_a_bar_of_any_shape_adds_up_to_its_trades(close: float, up: float, down: float, lots: int) -> None:
    tick = BTC.tick_size
    opened, closed = 60_000.0, round(60_000.0 * (1.0 + close) / tick) * tick
    high = round(max(opened, closed) * (1.0 + up) / tick) * tick
    low = round(min(opened, closed) * (1.0 - down) / tick) * tick
    volume = lots * BTC.base_per_lot
    bars = BarBlock(np.array([START]), *(np.array([x]) for x in (opened, high, low, closed, volume, volume * closed)))
    buy, sell = taker_coins(BTC, bars)
    rows = bar_trades(BTC, bars, 0, NS_PER_HOUR)
    for side, got in (("buy", buy[0]), ("sell", sell[0])):
        told = sum(float(row["sz"]) for row in rows if row["side"] == side) * BTC.ct_val
        assert got == pytest.approx(told, rel=1e-9, abs=1e-12)


async def test_hours_are_the_sum_of_their_minutes_trades_and_an_unfinished_hour_is_not_told() -> None:
    options = EmbeddedOptions(start_ns=NOW, step_frame_ns=NS_PER_MINUTE)
    async with (
        EmbeddedExchange(MARKET, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        hours = await gateway.taker_volume("BTCUSDT", "1h", START, NOW)
        assert len(hours.ts) == 48, "the hour that runs is not told"
        np.testing.assert_array_equal(np.diff(hours.ts), NS_PER_HOUR)
        bars = MARKET.bars("BTCUSDT", NS_PER_MINUTE, START, START + 48 * NS_PER_HOUR)
        at = 17
        trades = [row for k in range(60 * at, 60 * at + 60) for row in bar_trades(BTC, bars, k, NS_PER_MINUTE)]
        bought = sum(float(row["sz"]) for row in trades if row["side"] == "buy") * BTC.ct_val
        assert hours.buy[at] == pytest.approx(bought, rel=1e-9)
        whole = bars.volume.reshape(48, 60).sum(axis=1)
        np.testing.assert_allclose(hours.buy + hours.sell, whole, atol=60 * BTC.base_per_lot)
        five = await gateway.taker_volume("BTCUSDT", "5m", START + 10 * NS_PER_HOUR, START + 12 * NS_PER_HOUR)
        np.testing.assert_allclose(five.buy.reshape(2, 12).sum(axis=1), hours.buy[10:12], rtol=1e-9)


async def test_of_recorded_candles_nobody_knows_who_took(tmp_path: Path) -> None:
    stamps = pd.date_range("2025-01-01", periods=48, freq="h", tz="UTC")
    rows = pd.DataFrame({"symbol": "BTCUSDT", "ts": stamps, "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 5.0})
    rows.to_parquet(tmp_path / "bars.parquet")
    replay = ReplayMarket(tmp_path / "bars.parquet")
    options = EmbeddedOptions(start_ns=START + 40 * NS_PER_HOUR, step_frame_ns=NS_PER_HOUR)
    async with (
        EmbeddedExchange(replay, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        assert len((await gateway.taker_volume("BTCUSDT", "1h", START, START + 40 * NS_PER_HOUR)).ts) == 0

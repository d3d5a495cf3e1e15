"""Through the unmodified ccxt client on the embedded exchange's bad day: the lake ends complete and equal to the source."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import RetryLater
from crypto_qlib.core.market import BarBlock
from crypto_qlib.data_collector.corrections import read_corrections
from crypto_qlib.data_collector.fetch_okx_data import update_data
from crypto_qlib.exchange.embedded.faults import Fault, FaultOptions, FaultRule
from crypto_qlib.exchange.embedded.router import Answer
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import DataSettings, ExchangeSettings
from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

pytestmark = pytest.mark.slow

START, END = parse_utc("2025-01-01"), parse_utc("2025-01-21")
NOW = END - 2 * NS_PER_DAY
WANTED = DataSettings(since="2025-01-01", concurrency=8)
BAD_DAY = (
    (Fault.RATE_LIMIT, FaultRule(0.02, 3, "market/")),
    (Fault.UNAVAILABLE, FaultRule(0.05, 3)),
    (Fault.BAD_GATEWAY, FaultRule(0.05, 4)),
    (Fault.DROP, FaultRule(0.05, 4)),
    (Fault.TIMEOUT, FaultRule(0.05, 4, "public/")),
)


class BadExchange:
    """Let an exchange send the rows of every page in a random order, and its last two hours of candles wrong at first."""

    def __init__(self, exchange: EmbeddedExchange, seed: int) -> None:
        self.is_late = True
        self._exchange, self._true, self._draw = exchange, exchange.router.answer, random.Random(seed)
        exchange.router.answer = self.answer  # type: ignore[method-assign]

    def answer(self, request: Any, remote: str) -> Answer:
        made = self._true(request, remote)
        if "candles" not in request.target and "funding-rate-history" not in request.target:
            return made
        body = orjson.loads(made.body)
        fresh_ms = (self._exchange.clock.market_ns - 2 * NS_PER_HOUR) // 10**6
        if self.is_late and "mark-price" not in request.target and "funding" not in request.target:
            body["data"] = [
                [*row[:5], str(1.5 * float(row[5])), str(1.5 * float(row[6])), *row[7:]] if int(row[0]) >= fresh_ms else row
                for row in body["data"]
            ]
        self._draw.shuffle(body["data"])
        return dataclasses.replace(made, body=orjson.dumps(body))


async def collect(gateway: OkxGateway, lake: Lake, symbols: list[str], wanted: DataSettings = WANTED) -> None:
    """Run updates as a person would: again after one that gave up."""
    for _ in range(6):
        try:
            await update_data(gateway, lake, symbols, wanted, await gateway.server_time_ns())
        except RetryLater:
            continue
        return
    raise AssertionError("the collector never came through")


async def test_a_bad_day_ends_in_the_same_lake_as_a_good_one(tmp_path: Path) -> None:
    market = SimulatedMarket(SimulationSpec(5, START, END, seed=3))
    options = EmbeddedOptions(
        start_ns=NOW - 6 * NS_PER_HOUR, step_frame_ns=NS_PER_HOUR, faults=FaultOptions(seed=5, rules=BAD_DAY)
    )
    lake, symbols = Lake(tmp_path), [i.symbol for i in market.instruments()]
    async with (
        EmbeddedExchange(market, options) as exchange,
        OkxGateway(ExchangeSettings(timeout_s=5.0), exchange.credentials, exchange.base_url) as gateway,
    ):
        bad = BadExchange(exchange, 1)
        await collect(gateway, lake, symbols)
        for hours in (1, 2, 3):
            await exchange.step(hours)
            await collect(gateway, lake, symbols)
        bad.is_late = False
        await exchange.step(3)
        await collect(gateway, lake, symbols)
    now = NOW + 3 * NS_PER_HOUR
    n_corrected = 0
    for symbol in symbols:
        true = market.bars(symbol, NS_PER_HOUR, START, now)
        stored = lake.read_bars(Kind.CANDLES, "1h", symbol)
        np.testing.assert_array_equal(stored.ts_open, true.ts_open)
        for name in BarBlock.__slots__[1:]:
            np.testing.assert_allclose(getattr(stored, name), getattr(true, name), rtol=1e-9, err_msg=name)
        settled = lake.read_funding(symbol)
        np.testing.assert_array_equal(settled.ts, market.funding(symbol, START, now).ts)
        first_said = read_corrections(lake, Series(Kind.CANDLES, "1h", symbol))
        n_corrected += first_said.num_rows > 0
        # a correction is known from when it was seen on, never from the bar's own time
        assert all(row["seen_ns"] > row["ts"] + NS_PER_HOUR for row in first_said.to_pylist())
    assert n_corrected == sum(i.is_listed(now) for i in market.instruments())

"""Universe and collector through the unmodified ccxt client and CoinGecko's own client, against the embedded exchange."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock
from crypto_qlib.data_collector.asset_selector import select_universe
from crypto_qlib.data_collector.fetch_okx_data import update_data
from crypto_qlib.data_collector.market_caps import CoinGeckoRanking
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import DataSettings, ExchangeSettings, UniverseSettings
from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.store.lake_identity import data_identity
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

pytestmark = pytest.mark.slow

START, END = parse_utc("2025-01-01"), parse_utc("2025-01-21")
NOW = END - 2 * NS_PER_DAY
WANTED = DataSettings(since="2025-01-01", concurrency=16)


@pytest.fixture(scope="module")
def market() -> SimulatedMarket:
    return SimulatedMarket(SimulationSpec(18, START, END, seed=3))


def assert_lake_is(lake: Lake, market: SimulatedMarket, symbol: str, now_ns: int) -> None:
    for kind, source in ((Kind.CANDLES, market.bars), (Kind.MARK, market.mark_bars)):
        stored, true = lake.read_bars(kind, "1h", symbol), source(symbol, NS_PER_HOUR, START, now_ns)
        np.testing.assert_array_equal(stored.ts_open, true.ts_open)
        for name in BarBlock.__slots__[1:]:
            np.testing.assert_allclose(getattr(stored, name), getattr(true, name), rtol=1e-9)
    crowd, true_crowd = (
        lake.read(Series(Kind.LONG_SHORT, "1h", symbol)),
        market.long_short_ratios(symbol, NS_PER_HOUR, START, now_ns),
    )
    np.testing.assert_array_equal(crowd["ts"], true_crowd.ts)
    np.testing.assert_array_equal(crowd["ratio"], true_crowd.ratio)
    # a settlement due this very instant has not happened yet
    funding, true_funding = lake.read_funding(symbol), market.funding(symbol, START, now_ns)
    np.testing.assert_array_equal(funding.ts, true_funding.ts)
    np.testing.assert_allclose(funding.rate, true_funding.rate, atol=1e-12)


@pytest.mark.parametrize("rate_limits", [False, True])
async def test_the_lake_equals_the_market_also_under_rate_limits(
    tmp_path: Path, market: SimulatedMarket, rate_limits: bool
) -> None:
    options = EmbeddedOptions(start_ns=NOW, step_frame_ns=NS_PER_HOUR, rate_limits=rate_limits)
    lake = Lake(tmp_path)
    async with (
        EmbeddedExchange(market, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        ranking = CoinGeckoRanking(f"{exchange.base_url}/api/v3")
        universe = await select_universe(gateway, ranking, lake, UniverseSettings(size=14), NOW)
        assert len(universe.members) > 10  # OKX allows ten looks at tiers in two seconds
        assert universe.source == "the embedded exchange's market caps"
        report = await update_data(gateway, lake, universe.symbols, WANTED, await gateway.server_time_ns())
        assert report.excluded == {}
        for symbol in universe.symbols:
            assert_lake_is(lake, market, symbol, NOW)
        identity = data_identity(lake)
        await update_data(gateway, lake, universe.symbols, WANTED, await gateway.server_time_ns())
        assert data_identity(lake) == identity
        await exchange.step(5)
        later = await gateway.server_time_ns()
        report = await update_data(gateway, lake, universe.symbols, WANTED, later)
        assert report.corrected == 0
        for symbol in universe.symbols:
            assert_lake_is(lake, market, symbol, NOW + 5 * NS_PER_HOUR)


async def test_market_caps_of_a_dead_server_are_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"cannot read market caps from 127\.0\.0\.1"):
        await CoinGeckoRanking("http://127.0.0.1:9/api/v3", timeout_s=2.0).page(1)

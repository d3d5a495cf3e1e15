"""The simulated market's outside world through the real clients of its five sources: complete, and nothing before its time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.data_collector.external_catalogue import CATALOGUE
from crypto_qlib.data_collector.fetch_external_data import fetch_external_data
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from crypto_qlib.scheduler.external_data import external_sources
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.series_store import MARKET, SeriesStore
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

pytestmark = pytest.mark.slow  # yfinance, and thousands of rows over HTTP

START = parse_utc("2025-01-01")
NOW = parse_utc("2025-02-20T15:00:00")
COINS = ("BTC", "ETH", "SOL")
SETTINGS = load_settings(None, [], {})


@pytest.fixture(scope="module")
def exchange() -> Iterator[EmbeddedExchangeThread]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # yfinance and its libraries warn about pandas and protobuf at import
        import yfinance  # noqa: F401, PLC0415

    market = SimulatedMarket(SimulationSpec(6, START, parse_utc("2025-03-15"), seed=4))
    with EmbeddedExchangeThread(EmbeddedExchange(market, EmbeddedOptions(start_ns=NOW, step_frame_ns=NS_PER_HOUR))) as running:
        yield running


def collected(exchange: EmbeddedExchangeThread, folder: Path, now_ns: int) -> tuple[SeriesStore, list[str]]:
    store = SeriesStore(folder)
    sources = external_sources(SETTINGS, Secrets(), exchange.base_url)
    updates = fetch_external_data(sources, store, COINS, START, now_ns)
    return store, [u.failure for u in updates if u.failure]


def test_every_series_of_the_catalogue_is_there_and_what_is_known_stays(
    exchange: EmbeddedExchangeThread, tmp_path: Path
) -> None:
    early, failures = collected(exchange, tmp_path / "early", NOW)
    assert failures == []
    for name, spec in CATALOGUE.items():
        coin = "BTC" if spec.is_by_coin else MARKET
        got = early.read(name, coin)
        assert len(got), name
        assert np.isfinite(got.value).all(), name
        assert int(got.event_ns[-1]) <= NOW
    now_ns = NOW
    while now_ns < NOW + 5 * NS_PER_DAY:
        now_ns = exchange.step()
    late, failures = collected(exchange, tmp_path / "late", now_ns)
    assert failures == []
    for name in ("fear_greed", "qqq_1h_close", "qqq_1d_close", "nq_1h_close"):
        before, after = early.read(name, MARKET), late.read(name, MARKET)
        assert len(after) > len(before), name
        np.testing.assert_array_equal(after.event_ns[: len(before)], before.event_ns, name)
        np.testing.assert_array_equal(after.value[: len(before)], before.value, name)
    for name in ("active_addresses", "mvrv", "supply", "pageviews"):
        before, after = early.read(name, "ETH"), late.read(name, "ETH")
        assert len(after) == len(before) + 5, name
        np.testing.assert_array_equal(after.value[: len(before)], before.value, name)


def test_the_newest_day_is_served_once_its_source_would_have_published_it(
    exchange: EmbeddedExchangeThread, tmp_path: Path
) -> None:
    store, _ = collected(exchange, tmp_path, now_ns := exchange.step())
    today = now_ns // NS_PER_DAY * NS_PER_DAY
    assert int(store.read("active_addresses", "BTC").event_ns[-1]) <= today - NS_PER_DAY
    share = store.read("btc_dominance", MARKET).value[-1]
    assert 0.0 < share < 1.0
    quoted = store.read("qqq_1h_close", MARKET)
    assert int(quoted.event_ns[-1]) < now_ns

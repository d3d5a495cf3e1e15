from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from tests.exchange.fake_market import START_NS, FakeMarket


@pytest.fixture
def market() -> FakeMarket:
    return FakeMarket()


@pytest.fixture
async def exchange(market: FakeMarket) -> AsyncIterator[EmbeddedExchange]:
    async with EmbeddedExchange(market, EmbeddedOptions(start_ns=START_NS + 62 * NS_PER_DAY)) as running:
        yield running


@pytest.fixture
async def gateway(exchange: EmbeddedExchange) -> AsyncIterator[OkxGateway]:
    async with OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as talking:
        yield talking

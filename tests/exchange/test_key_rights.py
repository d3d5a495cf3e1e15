"""What a key may do, asked of the embedded exchange through the real client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.key_rights import KeyRights, key_rights
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.scheduler.exchange_access import ExchangeAccess
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.secrets import Secrets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeAccess]:
    root: Path = tmp_path_factory.mktemp("store")
    flags = ["exchange.simulated_symbols=2", "exchange.simulated_days=3", f"store.root={root}"]
    with ExchangeAccess(load_settings(None, flags, {}), Secrets()) as opened:
        yield opened


async def test_the_paper_key_may_trade_and_not_withdraw(access: ExchangeAccess) -> None:
    exchange = access.embedded().exchange
    rights = await key_rights(Connection(exchange.base_url, exchange.credentials))
    assert rights == KeyRights(may_read=True, may_trade=True, may_withdraw=False, ip_bound=False)


async def test_a_wrong_key_is_refused_in_one_line(access: ExchangeAccess) -> None:
    with pytest.raises(CryptoQlibError, match="key") as caught:
        await key_rights(Connection(access.base_url, ApiCredentials.generate()))
    assert "\n" not in str(caught.value)


async def test_without_a_key_nothing_is_asked(access: ExchangeAccess) -> None:
    with pytest.raises(CryptoQlibError, match="without an API key"):
        await key_rights(Connection(access.base_url, None))

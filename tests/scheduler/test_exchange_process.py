"""The embedded exchange in a process of its own: it serves the same market, and ends with whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.scheduler.exchange_access import ExchangeAccess
from crypto_qlib.scheduler.exchange_process import EmbeddedExchangeProcess
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets

SMALL = ["exchange.simulated_symbols=2", "exchange.simulated_days=3"]
LEAVE = """
import os, sys
from crypto_qlib.scheduler.exchange_access import ExchangeAccess
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.secrets import Secrets
if __name__ == "__main__":
    settings = load_settings(None, sys.argv[1:], {})
    print(ExchangeAccess(settings, Secrets()).base_url, flush=True)
    os._exit(9)
"""


def settings(root: Path, *more: str) -> Settings:
    return load_settings(None, [*SMALL, f"store.root={root}", "exchange.own_process=true", *more], {})


@pytest.mark.slow
def test_it_serves_the_market_the_settings_name_and_is_stepped(tmp_path: Path) -> None:
    async def ask(gateway: Gateway) -> tuple[int, int, float]:
        return await gateway.server_time_ns(), len(await gateway.instruments()), (await gateway.account()).equity

    with ExchangeAccess(settings(tmp_path), Secrets()) as access:
        before_ns, n_swaps, equity = access.run(ask)
        assert (n_swaps, equity) == (2, 100_000.0)
        server = access.embedded()
        assert isinstance(server, EmbeddedExchangeProcess)
        after_ns = server.step(2)
        assert after_ns > before_ns
        assert access.run(ask)[0] == after_ns
        with pytest.raises(UserError, match="data end"):
            server.step(10_000)
        child = server._child
    assert not child.is_alive()
    refused = settings(tmp_path, "exchange.host=203.0.113.1")
    with ExchangeAccess(refused, Secrets()) as access, pytest.raises(UserError, match="can be reached from other machines"):
        access.base_url  # noqa: B018 - asking starts it


@pytest.mark.slow
def test_it_ends_with_a_parent_that_dies(tmp_path: Path) -> None:
    script = tmp_path / "leave.py"
    script.write_text(LEAVE)
    words = [*SMALL, f"store.root={tmp_path}", "exchange.own_process=true"]
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )
    assert done.returncode == 9, done.stderr
    url = done.stdout.strip()
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{url}/api/v5/public/time", timeout=2).close()
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError("the exchange outlived its parent")

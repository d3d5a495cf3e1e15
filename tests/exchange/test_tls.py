"""The certificate made here: private, trusted by clients that are told to, renewed in time, made again for another name."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, ManualClock, SystemClock
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.tls import TlsFiles, own_certificate
from tests.exchange.ccxt_clients import okx_client
from tests.exchange.fake_market import START_NS, FakeMarket


async def test_ccxt_trades_over_tls_once_it_trusts_the_certificate(tmp_path: Path) -> None:
    files = own_certificate(tmp_path, "127.0.0.1", SystemClock())
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    options = EmbeddedOptions(start_ns=START_NS + 62 * NS_PER_DAY, tls=files)
    async with EmbeddedExchange(FakeMarket(), options) as exchange:
        assert exchange.base_url.startswith("https://")

        async def balance(**trust: Any) -> float:
            client = okx_client(exchange.base_url, exchange.credentials)
            for name, value in trust.items():
                setattr(client, name, value)
            try:
                return float((await client.fetch_balance())["USDT"]["total"])
            finally:
                await client.close()

        assert await balance(cafile=str(files.certificate)) == 100_000.0
        with pytest.raises(ccxt.NetworkError):
            await balance()


def test_a_certificate_is_kept_while_it_is_good_and_made_again_when_it_is_not(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now_ns())
    first = own_certificate(tmp_path, "127.0.0.1", clock).certificate.read_bytes()
    assert own_certificate(tmp_path, "localhost", clock).certificate.read_bytes() == first
    assert own_certificate(tmp_path, "192.0.2.7", clock).certificate.read_bytes() != first, "for another address another one"
    second = (tmp_path / "tls_certificate.pem").read_bytes()
    clock.advance_to(clock.now_ns() + 370 * NS_PER_DAY)
    assert own_certificate(tmp_path, "192.0.2.7", clock).certificate.read_bytes() != second, "it soon ends"
    (tmp_path / "tls_certificate.pem").write_text("spoilt")
    own_certificate(tmp_path, "192.0.2.7", clock).context()


def test_files_that_are_no_certificate_are_named(tmp_path: Path) -> None:
    files = own_certificate(tmp_path / "a", "127.0.0.1", SystemClock())
    other = own_certificate(tmp_path / "b", "127.0.0.1", SystemClock())
    for bad in (
        TlsFiles(tmp_path / "none.pem", files.key),
        TlsFiles(files.certificate, other.key),
        TlsFiles(files.key, files.key),
    ):
        with pytest.raises(UserError, match="cannot serve TLS with"):
            bad.context()
    assert isinstance(files.context(), ssl.SSLContext)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (EmbeddedOptions(host="0.0.0.0"), "other machines"),
        (EmbeddedOptions(host="192.0.2.1", allow_public=True), "TLS only"),
        (EmbeddedOptions(host="example.org"), "other machines"),
    ],
)
def test_a_public_address_needs_leave_and_tls(options: EmbeddedOptions, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        EmbeddedExchange(FakeMarket(), options)

"""``live start`` asks the exchange what the key may do, over the real client, before anything else: unfit keys are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.order import OrderRequest, Side
from crypto_qlib.exchange import okx_session
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.key_terms import KeyTerms
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.thread import EmbeddedExchangeThread
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from tests.cli.command_line import Ended, Run
from tests.exchange.fake_market import START_NS, FakeMarket

KEY = ApiCredentials("key-of-this-test", "secret-of-this-test", "passphrase-of-this-test")
Serve = Callable[..., None]


@pytest.fixture
def okx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return what serves an exchange in OKX's place: the client asks it, whatever host the mode names."""
    with ExitStack() as stack:

        def serve(perm: str, ip: str = "") -> None:
            options = EmbeddedOptions(start_ns=START_NS + 62 * NS_PER_DAY, key=KeyTerms(perm, ip))
            served = EmbeddedExchangeThread(EmbeddedExchange(FakeMarket(), options, KEY))
            served.start()
            stack.callback(served.stop)
            real = okx_session.Connection
            monkeypatch.setattr(okx_session, "Connection", lambda _url, *rest: real(served.base_url, *rest))
            for name, value in (("KEY", KEY.key), ("SECRET", KEY.secret), ("PASSPHRASE", KEY.passphrase)):
                monkeypatch.setenv(f"OKX_API_{name}", value)

        yield serve


def started(cli: Run, mode: str = "live") -> Ended:
    return cli("--set", "live.confirm_live=true", "live", "start", "--mode", mode)


def last_line(ended: Ended) -> str:
    return ended.err.strip().splitlines()[-1]


@pytest.mark.parametrize("mode", ["live", "demo"])
def test_a_key_that_may_withdraw_is_refused_before_anything_is_done(cli: Run, okx: Serve, mode: str) -> None:
    okx("read_only,trade,withdraw", "192.0.2.1")
    ended = started(cli, mode)
    assert ended.code == 2
    assert last_line(ended) == "error: the API key may withdraw funds — make a key at OKX with Read and Trade only"
    assert "limits in force" in ended.err
    assert KEY.secret not in ended.out + ended.err


def test_a_key_that_may_only_read_is_refused(cli: Run, okx: Serve) -> None:
    okx("read_only")
    ended = started(cli)
    assert (ended.code, "the API key may not trade" in last_line(ended)) == (2, True)


@pytest.mark.parametrize(("ip", "warned"), [("", True), ("192.0.2.1", False)])
def test_a_fit_key_passes_and_one_bound_to_no_address_is_warned_of(cli: Run, okx: Serve, ip: str, warned: bool) -> None:
    okx("read_only,trade", ip)
    ended = started(cli)
    assert "the key may trade and may not withdraw" in ended.err
    assert ("warning: the key works from any address" in ended.err) is warned
    assert ended.code == 2
    assert "no champion model" in last_line(ended)  # it went on to the next thing needed


async def test_the_embedded_exchange_takes_no_orders_of_a_key_without_the_right_to_trade() -> None:
    options = EmbeddedOptions(start_ns=START_NS + 62 * NS_PER_DAY, key=KeyTerms("read_only"))
    async with (
        EmbeddedExchange(FakeMarket(), options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        assert (await gateway.account()).equity == 100_000.0
        with pytest.raises(UserError, match="50120"):
            await gateway.place(OrderRequest("a1", "BTCUSDT", Side.BUY, 1))

"""The exchange's dead-man's countdown: kept running by the session, of effect at the exchange, ended with a good end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_S, ManualClock
from crypto_qlib.core.errors import HaltTrading, RetryLater, UserError
from crypto_qlib.core.order import OrderKind, OrderRequest, OrderStatus, Protection, Side
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading.controls import Controls
from crypto_qlib.live_trading.dead_man import DeadManSwitch
from crypto_qlib.live_trading.instance import one_session_of
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.risk_control import Mode
from crypto_qlib.live_trading.runner import SessionParts, SessionRunner, SteppedBars
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.ledger import Ledger, SessionRow
from tests.exchange.fake_market import START_NS, FakeMarket
from tests.live_trading.paper_fakes import RULES, FakeExchange, contracts
from tests.live_trading.test_runner import FIRST, TAPE, momentum, no_sleep


async def test_it_is_refreshed_three_times_within_its_length() -> None:
    exchange, clock = FakeExchange(TAPE, FIRST), ManualClock(0)
    switch = DeadManSwitch(exchange, 60, clock)  # type: ignore[arg-type]
    for second in range(61):
        clock.advance_to(second * NS_PER_S)
        assert await switch.refresh() == ""
    assert exchange.countdowns == [60, 60, 60, 60]  # at 0, 20, 40, 60 s
    assert await switch.disarm() == ""
    assert exchange.countdowns[-1] == 0


async def test_two_failures_are_borne_and_then_it_says_so() -> None:
    exchange, clock = FakeExchange(TAPE, FIRST), ManualClock(0)
    switch = DeadManSwitch(exchange, 60, clock)  # type: ignore[arg-type]
    await switch.refresh()

    async def refused(seconds: int) -> None:
        raise HaltTrading("no")

    exchange.cancel_all_after = refused  # type: ignore[method-assign]
    said = []
    for second in (20, 40, 59, 60, 61):
        clock.advance_to(second * NS_PER_S)
        said.append(await switch.refresh())
    assert said[:3] == ["", "", ""]
    assert all("not armed" in text for text in said[3:])


async def test_a_switch_set_to_zero_asks_for_nothing() -> None:
    exchange = FakeExchange(TAPE, FIRST)
    switch = DeadManSwitch(exchange, 0, ManualClock(0))  # type: ignore[arg-type]
    assert (await switch.refresh(), await switch.disarm(), exchange.countdowns) == ("", "", [])


def runner(exchange: FakeExchange, folder: Path) -> SessionRunner:
    ledger = Ledger.open(folder / "l.sqlite", SessionRow("s1", FIRST, "embedded", {}))
    feed = MarketFeed(exchange, TAPE.known_until(FIRST), FeedConfig("1h", 60), {})
    parts = SessionParts(
        exchange, SignalProcessor(feed, momentum, RULES, contracts()), ledger, SessionConfig("s1", RULES),
        ManualClock(FIRST), no_sleep, Controls(ControlBook(folder / "l.sqlite", "s1"), folder / "HALT"), dead_man_s=60,
    )  # fmt: skip
    return SessionRunner(parts)


async def test_a_session_arms_it_first_and_ends_it_last(tmp_path: Path) -> None:
    exchange = FakeExchange(TAPE, FIRST)
    before_the_first_order: list[int] = []
    real = exchange.place

    async def place(request):  # type: ignore[no-untyped-def]
        before_the_first_order.append(len(exchange.countdowns))
        return await real(request)

    exchange.place = place  # type: ignore[method-assign]
    await runner(exchange, tmp_path).run(SteppedBars(exchange.step, FIRST), FIRST, 3)
    assert before_the_first_order[0] >= 1
    assert (exchange.countdowns[0], exchange.countdowns[-1]) == (60, 0)


async def test_a_session_that_cannot_arm_it_opens_nothing_until_it_can(tmp_path: Path) -> None:
    exchange = FakeExchange(TAPE, FIRST)

    async def away(seconds: int) -> None:
        raise RetryLater("busy")

    exchange.cancel_all_after = away  # type: ignore[method-assign]
    result = await runner(exchange, tmp_path).run(SteppedBars(exchange.step, FIRST), FIRST, 3)
    assert result.mode is Mode.REDUCE_ONLY
    assert exchange.sent == []
    exchange = FakeExchange(TAPE, FIRST)
    again = runner(exchange, tmp_path)  # the voice is in the ledger, and lifts once the countdown runs
    result = await again.run(SteppedBars(exchange.step, FIRST), FIRST, 3)
    assert result.mode is Mode.ACTIVE


@pytest.fixture
def market() -> FakeMarket:
    return FakeMarket()


async def test_at_the_exchange_it_cancels_what_rests_and_leaves_positions_their_stops(market: FakeMarket) -> None:
    options = EmbeddedOptions(start_ns=START_NS + 62 * NS_PER_DAY)
    async with (
        EmbeddedExchange(market, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        assert (await gateway.account_id()).isdigit()
        held = OrderRequest("held", "BTCUSDT", Side.BUY, 20, protection=Protection(stop_price=60_000.0))
        await gateway.place(held)
        rest = OrderRequest("rest", "BTCUSDT", Side.BUY, 20, kind=OrderKind.LIMIT, price=60_000.0)
        for name, seconds, status in (("a", 60, OrderStatus.CANCELED), ("b", 0, OrderStatus.LIVE)):
            await gateway.place(replace(rest, client_order_id=name))
            await gateway.cancel_all_after(60)
            await gateway.cancel_all_after(seconds)
            await exchange.step()
            report = await gateway.order("BTCUSDT", name)
            assert report is not None
            assert report.status is status
        (position,) = (await gateway.account()).positions
        assert position.stop_price == 60_000.0


def test_an_account_is_traded_by_one_session_of_this_machine(tmp_path: Path) -> None:
    with one_session_of("demo", "7", tmp_path):
        with pytest.raises(UserError, match="already trades this demo account"), one_session_of("demo", "7", tmp_path):
            pass
        with one_session_of("demo", "8", tmp_path), one_session_of("live", "7", tmp_path):
            pass
    with one_session_of("demo", "7", tmp_path):
        pass

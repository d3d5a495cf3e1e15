"""Websockets of a live session through ccxt.pro: what they push equals what REST answers, and losing them costs no bar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock
from crypto_qlib.core.order import MarginMode, OrderKind, OrderRequest, OrderStatus, Protection, Side
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.gateway import OrderReport, PriceKind
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.okx_live_stream import AccountTick, CandleTick, Connected, LiveTick, OkxLiveStream, OrderTick
from crypto_qlib.exchange.okx_session import Connection, make_client
from crypto_qlib.exchange.okx_stream import Dropped
from crypto_qlib.live_trading.bar_waiters import RealBars
from crypto_qlib.live_trading.live_feed import LiveFeed
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.settings.schema import ExchangeSettings
from tests.live_trading.test_parity import START_NS, SYMBOLS, WARM_UP, Tape

FIRST = START_NS + WARM_UP * NS_PER_HOUR


@dataclass
class Rig:
    """An embedded exchange, its client, and what the client's sockets heard."""

    exchange: EmbeddedExchange
    gateway: OkxGateway
    feed: LiveFeed
    tape: Tape
    asked: list[str]

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(400):
            if holds():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it never came")


@asynccontextmanager
async def rig(silent_s: float | None = None, first: int = len(SYMBOLS)) -> AsyncIterator[Rig]:
    tape = Tape(3)
    options = EmbeddedOptions(start_ns=FIRST, funding_retention_days=None)
    async with (
        EmbeddedExchange(tape, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        connection = Connection(exchange.base_url, exchange.credentials)
        feed = LiveFeed(OkxLiveStream(connection, tape.instruments()[:first], "1h", silent_s), NS_PER_HOUR)
        listening = asyncio.create_task(feed.listen())
        found = Rig(exchange, gateway, feed, tape, [])
        real = gateway.candles

        async def counted(symbol: str, *args: Any, **kwargs: Any) -> BarBlock:
            found.asked.append(symbol)
            return await real(symbol, *args, **kwargs)

        gateway.candles = counted  # type: ignore[method-assign]
        try:
            await found.until(lambda: feed.up == {"business", "private"})
            yield found
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def market_feed(r: Rig, heard: LiveFeed | None) -> MarketFeed:
    history = r.tape.panel.known_until(FIRST)
    return MarketFeed(r.gateway, history, FeedConfig("1h", 60, funding=False, patience_s=5.0), {}, None, heard)


async def test_pushed_bars_are_those_of_rest_bit_for_bit_and_none_is_asked_for() -> None:
    async with rig() as r:
        pushed, asked = market_feed(r, r.feed), market_feed(r, None)
        for k in range(1, 3):
            now = await r.exchange.step()
            panel, fresh = await pushed.update(now)
            assert fresh.share == 1.0
            assert r.asked == [], k
        by_rest, _ = await asked.update(now)
        assert len(r.asked) == 2 * len(SYMBOLS)
        for name in PANEL_FIELDS:
            np.testing.assert_array_equal(getattr(panel, name), getattr(by_rest, name), err_msg=name)


async def test_a_socket_that_drops_at_the_close_costs_no_bar_and_comes_back() -> None:
    async with rig() as r:
        r.exchange.switchboard.switch({"fault": "socket_drop", "rate": 1.0, "times": 1, "where": "candle1H"})
        feed = market_feed(r, r.feed)
        feed._config = FeedConfig("1h", 60, funding=False, patience_s=0.3)
        now = await r.exchange.step()
        panel, fresh = await feed.update(now)
        assert fresh.share == 1.0  # what was not pushed was asked for
        assert r.asked
        await r.until(lambda: any(isinstance(c, Dropped) for c in r.feed._changes))
        await r.until(lambda: r.feed.up == {"business", "private"})
        assert r.feed.account_changed.is_set()  # whatever was missed in between wants a look
        r.asked.clear()
        now = await r.exchange.step()
        await r.feed.wait_for_bar(SYMBOLS, now, 5.0)
        await feed.update(now)
        assert not r.asked
        assert np.isfinite(panel.close[-1]).all()


async def test_a_silent_market_connection_is_dialled_anew() -> None:
    async with rig(silent_s=0.4) as r:
        await r.until(lambda: any(isinstance(c, Dropped) and c.what != "private" for c in r.feed._changes))
        await r.until(lambda: sum(isinstance(c, Connected) and c.what == "business" for c in r.feed._changes) > 1)


async def test_a_swap_watched_later_is_heard_without_a_new_connection() -> None:
    async with rig(first=2) as r:
        now = await r.exchange.step()
        assert await r.feed.wait_for_bar(SYMBOLS[:2], now, 5.0)
        assert not r.feed.has_bar(SYMBOLS[2:], now, (PriceKind.LAST,))
        r.feed.watch(r.tape.instruments())
        for _ in range(10):  # the request is on its way while the market may already stand at the next close
            if await r.feed.wait_for_bar(SYMBOLS, await r.exchange.step(), 1.0, (PriceKind.LAST, PriceKind.MARK)):
                break
        else:
            raise AssertionError("the swap watched later is never heard")
        assert not any(isinstance(c, Dropped) for c in r.feed.take_changes())


async def test_orders_and_stops_are_pushed_and_an_order_that_ended_need_not_be_asked_for() -> None:
    async with rig() as r:
        r.feed.account_changed.clear()
        await r.gateway.set_leverage("AAAUSDT", 2.0, MarginMode.ISOLATED)
        price = float((await r.gateway.book("AAAUSDT")).bids[0, 0])
        request = OrderRequest("pushed1", "AAAUSDT", Side.BUY, 10, protection=Protection(round(price * 0.9, 3)))
        report = await r.gateway.place(request)
        await r.until(lambda: r.feed.order("pushed1") is not None)
        heard = r.feed.order("pushed1")
        assert heard is not None
        assert (heard.status, heard.filled_lots, heard.average_price) == (OrderStatus.FILLED, 10, report.average_price)
        assert r.feed.account_changed.is_set()


def candle(symbol: str, ts: int, *, final: bool, kind: PriceKind = PriceKind.LAST) -> CandleTick:
    return CandleTick(symbol, kind, ts, (str(ts // 10**6), *"1" * 8), is_final=final)


def test_a_running_bar_is_never_kept() -> None:
    feed = LiveFeed(Scripted([]), NS_PER_HOUR)
    feed.note(candle("AAAUSDT", FIRST, final=False))
    assert not feed.has_bar(["AAAUSDT"], FIRST + NS_PER_HOUR, [PriceKind.LAST])
    assert feed.bars("AAAUSDT", PriceKind.LAST, FIRST, FIRST + NS_PER_HOUR) is None
    feed.note(candle("AAAUSDT", FIRST, final=True))
    assert feed.bars("AAAUSDT", PriceKind.LAST, FIRST, FIRST + NS_PER_HOUR) is not None
    assert feed.bars("AAAUSDT", PriceKind.LAST, FIRST - NS_PER_HOUR, FIRST + NS_PER_HOUR) is None  # a hole: REST is asked


def test_only_final_states_of_orders_are_trusted() -> None:
    feed = LiveFeed(Scripted([]), NS_PER_HOUR)
    for status, expected in ((OrderStatus.LIVE, False), (OrderStatus.PARTIALLY_FILLED, False), (OrderStatus.CANCELED, True)):
        feed.note(OrderTick(OrderReport("a", "1", "AAAUSDT", status, 0, float("nan"), 0.0)))
        assert (feed.order("a") is not None) is expected
    feed.note(AccountTick("positions"))
    assert feed.account_changed.is_set()


class Scripted:
    """A stream that says what it is told to, then nothing."""

    def __init__(self, script: list[LiveTick]) -> None:
        self._script = script

    async def ticks(self) -> AsyncIterator[LiveTick]:
        for tick in self._script:
            yield tick
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(("comes", "expected"), [(True, True), (False, False)])
async def test_a_bar_is_waited_for_no_longer_than_patience_lasts(comes: bool, expected: bool) -> None:
    feed = LiveFeed(Scripted([candle("AAAUSDT", FIRST, final=True)] if comes else []), NS_PER_HOUR)
    listening = asyncio.create_task(feed.listen())
    try:
        assert await feed.wait_for_bar(["AAAUSDT"], FIRST + NS_PER_HOUR, 5.0 if comes else 0.05) is expected
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_real_bars_do_not_wait_longer_than_for_the_push() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def arrived(close_ns: int, patience_s: float) -> bool:
        slept.append(-patience_s)
        return close_ns == FIRST

    clock = ManualClock(FIRST - 3 * 10**9)
    await RealBars(clock, sleep, 2.0, arrived).wait_until(FIRST)
    assert slept == [3.0, -2.0]
    slept.clear()
    await RealBars(clock, sleep, 2.0).wait_until(FIRST)
    assert slept == [5.0]


async def test_a_resting_order_is_amended_through_the_client_and_one_that_is_gone_is_no_error() -> None:
    async with rig() as r:
        await r.gateway.set_leverage("AAAUSDT", 2.0, MarginMode.ISOLATED)
        bid = float((await r.gateway.book("AAAUSDT")).bids[0, 0])
        price = round(bid * 0.99, 3)
        await r.gateway.place(OrderRequest("amended", "AAAUSDT", Side.BUY, 10, OrderKind.POST_ONLY, price))
        await r.gateway.amend("AAAUSDT", "amended", round(bid * 0.995, 3))
        await r.gateway.amend("AAAUSDT", "never", price)
        report = await r.gateway.order("AAAUSDT", "amended")
        assert report is not None
        assert report.status is OrderStatus.LIVE
        client = make_client(Connection(r.exchange.base_url, r.exchange.credentials))
        try:
            row = (await client.privateGetTradeOrder({"instId": "AAA-USDT-SWAP", "clOrdId": "amended"}))["data"][0]
        finally:
            await client.close()
        assert float(row["px"]) == round(bid * 0.995, 3)

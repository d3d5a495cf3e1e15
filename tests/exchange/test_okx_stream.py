"""The public websockets through the unmodified ccxt.pro client against the embedded exchange, drops included."""

from __future__ import annotations

import asyncio

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, parse_utc
from crypto_qlib.exchange.embedded.faults import Fault, FaultOptions, FaultRule
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.okx_session import Connection
from crypto_qlib.exchange.okx_stream import BookTick, Dropped, OkxStream, Tick, TradeTick
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

START, END = parse_utc("2025-01-01"), parse_utc("2025-01-05")
NOW = END - 48 * NS_PER_HOUR

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("drops", [0, 1])
async def test_trades_and_books_arrive_in_coins_and_a_drop_is_told(drops: int) -> None:
    market = SimulatedMarket(SimulationSpec(4, START, END, seed=3))
    rules = ((Fault.SOCKET_DROP, FaultRule(1.0, drops, "trades")),) if drops else ()
    options = EmbeddedOptions(start_ns=NOW, step_frame_ns=NS_PER_HOUR, faults=FaultOptions(seed=1, rules=rules))
    seen: list[Tick] = []
    async with (
        EmbeddedExchange(market, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        instruments = [i for i in await gateway.instruments() if i.is_listed(NOW)][:2]
        stream = OkxStream(Connection(exchange.base_url), instruments, silent_s=10.0)

        async def listen() -> None:
            async for tick in stream.ticks():
                seen.append(tick)  # noqa: PERF401 - the stream never ends

        listening = asyncio.create_task(listen())
        try:
            for _ in range(24):
                await asyncio.sleep(0.3)
                await exchange.step(1)
                kinds = {type(t) for t in seen}
                if {TradeTick, BookTick} <= kinds and (not drops or Dropped in kinds):
                    break
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await stream.close()
    symbols = {i.symbol for i in instruments}
    trades = [t for t in seen if isinstance(t, TradeTick)]
    books = [t for t in seen if isinstance(t, BookTick)]
    assert trades
    assert books
    assert {t.symbol for t in (*trades, *books)} <= symbols
    assert bool(drops) == any(isinstance(t, Dropped) for t in seen)
    for trade in trades:
        bars = market.bars(trade.symbol, NS_PER_HOUR, NOW - NS_PER_HOUR, END)
        k = int((bars.ts_open <= trade.ts_ns).sum()) - 1
        assert bars.low[max(k - 1, 0) : k + 2].min() * 0.98 <= trade.price <= bars.high[max(k - 1, 0) : k + 2].max() * 1.02
        assert abs(trade.size) <= bars.volume[max(k - 1, 0) : k + 2].max()  # coins, not contracts
    for tick in books:
        assert tick.book.bids[0, 0] < tick.book.asks[0, 0]
        assert tick.book.bids.shape[0] <= 5

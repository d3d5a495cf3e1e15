"""Cards 80-89: the package's own simulated market (1-minute base bars, hourly steps) behind the server."""

from __future__ import annotations

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, parse_utc
from crypto_qlib.core.order import MarginMode, OrderRequest, OrderStatus, Side
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.gateway import PriceKind
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.venue.market_simulator import SimulatedMarket

SETTINGS = ExchangeSettings(simulated_symbols=4, simulated_days=40)


async def test_card_16_every_frame_reads_back_bit_for_bit_and_orders_fill() -> None:
    market = SimulatedMarket.from_settings(SETTINGS)
    now = parse_utc(SETTINGS.simulated_end)
    options = EmbeddedOptions(start_ns=now, step_frame_ns=NS_PER_HOUR)
    exchange = EmbeddedExchange(market, options)
    async with exchange, OkxGateway(SETTINGS, exchange.credentials, exchange.base_url) as gateway:
        symbol = (await gateway.instruments())[0].symbol
        for frame, span, days in (("1m", NS_PER_MINUTE, 1), ("1h", NS_PER_HOUR, 30), ("1d", NS_PER_DAY, 30)):
            got = await gateway.candles(symbol, frame, now - days * NS_PER_DAY, now + NS_PER_DAY)
            true = market.bars(symbol, span, now - days * NS_PER_DAY, now)
            for name in ("ts_open", "open", "high", "low", "close", "volume", "quote_volume"):
                np.testing.assert_array_equal(getattr(got, name), getattr(true, name), err_msg=f"{frame} {name}")
        marks = await gateway.candles(symbol, "1h", now - 9 * NS_PER_DAY, now, PriceKind.MARK)
        true = market.mark_bars(symbol, NS_PER_HOUR, now - 9 * NS_PER_DAY, now)
        np.testing.assert_array_equal(marks.close, true.close)
        await gateway.set_leverage(symbol, 3.0, MarginMode.ISOLATED)
        report = await gateway.place(OrderRequest("a1", symbol, Side.BUY, 10))
        assert report.status is OrderStatus.FILLED
        await exchange.step(30)
        state = await gateway.account()
        assert state.as_of_ns == now + 30 * NS_PER_HOUR
        assert state.equity == exchange.venue.exchange.snapshot(exchange.credentials.key).equity

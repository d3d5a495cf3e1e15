"""Stops that go missing at the exchange are put back, through the real client, through its faults, and after a partial fill."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, ManualClock
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.errors import DoNotRetry, OutcomeUnknown
from crypto_qlib.core.order import MarginMode, OrderKind, OrderRequest, OrderStatus, Protection, Side
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.exchange.okx_session import Connection, make_client
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.risk_control import Mode, RiskLimits
from crypto_qlib.live_trading.runner import SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.ledger import Ledger, SessionRow
from crypto_qlib.venue.venue_config import VenueConfig
from tests.exchange.fake_market import START_NS as MARKET_START_NS
from tests.exchange.fake_market import FakeMarket
from tests.live_trading.test_parity import RULES, START_NS, WARM_UP, Tape, score


async def cancel_every_stop(exchange: EmbeddedExchange) -> int:
    """Cancel all stops of the account, as a person on the exchange's own page might; return how many there were."""
    client = make_client(Connection(exchange.base_url, exchange.credentials))
    rows = []
    try:
        for kind in ("oco", "conditional"):
            rows += (await client.privateGetTradeOrdersAlgoPending({"ordType": kind}))["data"]
        if rows:
            await client.privatePostTradeCancelAlgos([{"instId": r["instId"], "algoId": r["algoId"]} for r in rows])
    finally:
        await client.close()
    return len(rows)


@pytest.mark.parametrize("fault", ["", "timeout", "unavailable"])
async def test_the_session_puts_back_stops_that_somebody_cancelled(fault: str, tmp_path: Path) -> None:
    tape, first = Tape(1), START_NS + WARM_UP * NS_PER_HOUR
    options = EmbeddedOptions(
        start_ns=first, fees=FeeSchedule(0.0002, 0.0005), venue=VenueConfig(RULES.impact_y, RULES.half_spread_bps, 0.05),
        funding_retention_days=None,
    )  # fmt: skip
    cancelled: list[int] = []
    async with (
        EmbeddedExchange(tape, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):

        async def step() -> int:
            now = await exchange.step()
            if now == first + 2 * NS_PER_HOUR:
                cancelled.append(await cancel_every_stop(exchange))
                if fault:
                    exchange.switchboard.switch({"fault": fault, "rate": 1.0, "times": 1, "where": "trade/order-algo"})
            return now

        feed = MarketFeed(gateway, tape.panel.known_until(first), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        ledger = Ledger.open(tmp_path / "l.sqlite", SessionRow("p", first, "embedded", {}))
        signals = SignalProcessor(feed, score, RULES, Contracts(tape.items, tape.tables))
        parts = SessionParts(gateway, signals, ledger, SessionConfig("p", RULES, RiskLimits()), ManualClock(first))
        result = await run_session(parts, SteppedBars(step, first), first, 2)
        ledger.close()
        held = (await gateway.account()).positions
    assert cancelled[0] > 0
    assert any("placing it" in alert for alert in result.alerts)
    assert held
    assert all(math.isfinite(p.stop_price) for p in held)
    assert result.mode is Mode.ACTIVE
    assert not any("closing a position" in alert for alert in result.alerts)


async def test_a_stop_alone_covers_a_partly_filled_entry_and_is_refused_beyond_the_market() -> None:
    market = FakeMarket()
    async with (
        EmbeddedExchange(market, EmbeddedOptions(start_ns=MARKET_START_NS + 62 * NS_PER_DAY)) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        exchange.switchboard.switch({"fault": "partial_fill", "fraction": 0.5})
        price = float((await gateway.book("BTCUSDT")).asks[0][0]) * 1.01
        await gateway.place(OrderRequest("part", "BTCUSDT", Side.BUY, 20, kind=OrderKind.LIMIT, price=round(price, 1)))
        await gateway.cancel("BTCUSDT", "part")
        report = await gateway.order("BTCUSDT", "part")
        assert report is not None
        assert (report.status, report.filled_lots) == (OrderStatus.CANCELED, 10)
        (position,) = (await gateway.account()).positions
        assert math.isnan(position.stop_price)
        await gateway.protect("BTCUSDT", 10, Protection(60_000.0, 250_000.0), MarginMode.ISOLATED, "stop1")
        (position,) = (await gateway.account()).positions
        assert (position.lots, position.stop_price, position.take_profit_price) == (10, 60_000.0, 250_000.0)
        with pytest.raises(DoNotRetry):
            await gateway.protect("BTCUSDT", 10, Protection(stop_price=240_000.0), MarginMode.ISOLATED, "stop2")
        exchange.switchboard.switch({"fault": "timeout", "rate": 1.0, "times": 1, "where": "trade/order-algo"})
        with pytest.raises(OutcomeUnknown):
            await gateway.protect("BTCUSDT", 10, Protection(stop_price=61_000.0), MarginMode.ISOLATED, "stop3")

"""Trailing stops behind the gateway: placed after the fill, verified to exist, and they fire."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.order import ExitKind, Fill, MarginMode, OrderRequest, Protection, Side
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.runner import SessionParts, SessionRunner, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import Contracts, SignalProcessor
from crypto_qlib.portfolio.market_columns import history_bars
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.ledger import IntentRow, Ledger, SessionRow
from crypto_qlib.venue.venue_config import VenueConfig
from tests.live_trading.test_parity import RULES, START_NS, WARM_UP, Tape, score
from tests.live_trading.test_session import NOTHING, T, account, bar, decide, held, of, session, verify

FIRST = START_NS + WARM_UP * NS_PER_HOUR


def trailed(position_ratio: float, untrailed: int = 0) -> list[ev.Instruction]:
    """Return what the machine asks for where the exchange shows such a trailing stop, one of 2 % being wanted."""
    machine = session()
    intent = IntentRow("old", T - NS_PER_HOUR, "BBBUSDT", 50, True, None, 3.0, 90.0, None, 0.01, trailing_ratio=0.02)
    machine._state.tracker.note_intent(intent)
    machine._state.tracker.note_fill(Fill(T - 1, "BBBUSDT", 50, 100.0, 0.0, client_order_id="old"))
    shown = replace(held("BBBUSDT", 50), trailing_ratio=position_ratio, untrailed_lots=untrailed)
    decide(machine, bar(*NOTHING), account(shown))
    return verify(machine, account(shown))


def test_a_missing_trailing_stop_is_placed_over_the_whole_position_and_a_present_one_is_left() -> None:
    out = trailed(math.nan)
    (placed,) = of(ev.RestoreStop, out)
    assert (placed.symbol, placed.lots) == ("BBBUSDT", 50)
    assert placed.protection == Protection(trailing_ratio=0.02)
    out = trailed(0.02)
    assert not of(ev.RestoreStop, out)
    assert of(ev.CycleDone, out)


def test_a_trailing_stop_follows_the_size_of_its_position() -> None:
    (placed,) = of(ev.RestoreStop, trailed(0.02, untrailed=20))
    assert (placed.lots, placed.replaces) == (20, False)  # the part that filled later gets one of its own
    (placed,) = of(ev.RestoreStop, trailed(0.02, untrailed=-30))
    assert (placed.lots, placed.replaces) == (50, True)  # part of the position was closed


async def test_after_a_partial_close_the_trailing_stop_has_the_size_of_what_is_left(tmp_path: Path) -> None:
    tape = Tape(1)
    rules = RULES._replace(trailing_atr=3.0, min_stop_distance=0.1, max_stop_distance=0.3, holding_bars=200)
    async with (
        EmbeddedExchange(tape, EmbeddedOptions(start_ns=FIRST, funding_retention_days=None)) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        feed = MarketFeed(gateway, tape.panel.known_until(FIRST), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        ledger = Ledger.open(tmp_path / "l.sqlite", SessionRow("p", FIRST, "embedded", {}))
        signals = SignalProcessor(feed, score, rules, Contracts(tape.items, tape.tables))
        runner = SessionRunner(SessionParts(gateway, signals, ledger, SessionConfig("p", rules), ManualClock(FIRST)))
        await runner.run(SteppedBars(exchange.step, FIRST), FIRST, 1)
        before = (await gateway.account()).positions[0]
        assert before.untrailed_lots == 0
        side, part = Side.of(before.lots).opposite, abs(before.lots) // 3
        await gateway.place(OrderRequest("byhand", before.symbol, side, part, reduce_only=True))
        now = {p.symbol: p for p in (await gateway.account()).positions}[before.symbol]
        assert now.untrailed_lots == -part
        await runner.dispatch(ev.CheckDue(FIRST + NS_PER_HOUR))
        after = {p.symbol: p for p in (await gateway.account()).positions}[before.symbol]
        ledger.close()
    assert abs(after.lots) == abs(before.lots) - part
    assert after.untrailed_lots == 0
    assert after.trailing_ratio == pytest.approx(before.trailing_ratio)
    assert after.stop_price == before.stop_price


async def test_the_gateway_places_it_shows_it_and_tells_apart_whose_side_it_closes() -> None:
    tape = Tape(1)
    async with (
        EmbeddedExchange(tape, EmbeddedOptions(start_ns=FIRST, funding_retention_days=None)) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        await gateway.set_leverage("AAAUSDT", 2.0, MarginMode.ISOLATED)
        price = float((await gateway.book("AAAUSDT")).bids[0, 0])
        request = OrderRequest("t1", "AAAUSDT", Side.BUY, 100, protection=Protection(round(price * 0.8, 3)))
        await gateway.place(request)
        (position,) = (await gateway.account()).positions
        assert math.isnan(position.trailing_ratio)
        assert position.unprotected_lots == 0
        await gateway.protect("AAAUSDT", 100, Protection(trailing_ratio=0.03), MarginMode.ISOLATED, "trail1")
        (position,) = (await gateway.account()).positions
        assert position.trailing_ratio == pytest.approx(0.03)
        assert position.stop_price == pytest.approx(price * 0.8, abs=0.01)  # the fixed one stands beside it


async def test_a_session_with_trailing_stops_holds_one_for_every_position_and_they_fire(tmp_path: Path) -> None:
    tape = Tape(1)
    rules = RULES._replace(trailing_atr=0.8, min_stop_distance=0.004)
    options = EmbeddedOptions(
        start_ns=FIRST, fees=FeeSchedule(0.0002, 0.0005), venue=VenueConfig(rules.impact_y, rules.half_spread_bps, 0.05),
        funding_retention_days=None,
    )  # fmt: skip
    async with (
        EmbeddedExchange(tape, options) as exchange,
        OkxGateway(ExchangeSettings(), exchange.credentials, exchange.base_url) as gateway,
    ):
        feed = MarketFeed(gateway, tape.panel.known_until(FIRST), FeedConfig("1h", history_bars(NS_PER_HOUR) + 1), {})
        ledger = Ledger.open(tmp_path / "l.sqlite", SessionRow("p", FIRST, "embedded", {}))
        signals = SignalProcessor(feed, score, rules, Contracts(tape.items, tape.tables))
        parts = SessionParts(gateway, signals, ledger, SessionConfig("p", rules), ManualClock(FIRST))
        result = await run_session(parts, SteppedBars(exchange.step, FIRST), FIRST, 12)
        intents, fills = ledger.intents(), ledger.fills()
        ledger.close()
        held_now = (await gateway.account()).positions
    entries = [i for i in intents if i.is_entry]
    assert entries
    assert all(i.trailing_ratio for i in entries)
    assert held_now
    assert all(math.isfinite(p.trailing_ratio) for p in held_now)
    assert not any("could not be placed" in alert for alert in result.alerts)
    stopped = [f for f in fills if f.client_order_id not in {i.client_order_id for i in intents}]
    assert stopped
    assert {ExitKind.STOP, ExitKind.TRAILING} >= {f.exit_kind for f in stopped if f.exit_kind is not None} - {
        ExitKind.TAKE_PROFIT
    }

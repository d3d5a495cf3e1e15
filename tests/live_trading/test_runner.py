"""The whole session on a made-up exchange: through faults, restarts and gaps."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR, Clock, ManualClock
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.order import MarginMode, OrderStatus
from crypto_qlib.core.signal import Scores
from crypto_qlib.live_trading.journal import rows_of
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.paper_view import PaperView
from crypto_qlib.live_trading.replay import differences, replay
from crypto_qlib.live_trading.risk_control import Mode, RiskLimits
from crypto_qlib.live_trading.runner import PaperResult, RealBars, SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.store.ledger import Ledger, SessionRow
from tests.live_trading.paper_fakes import RULES, START_NS, SYMBOLS, FakeExchange, contracts, panel, scores

TAPE = panel(120, seed=5)
FIRST = START_NS + 60 * NS_PER_HOUR


def momentum(view: MarketPanel) -> Scores:
    """Score by the last return: deterministic, changes every bar."""
    last = view.close[-1] / view.close[-2] - 1.0
    as_of = int(view.ts_open[-1]) + view.frame_ns
    return scores(as_of, *last, symbols=view.symbols)


class KilledError(BaseException):
    """The process dies here."""


class DyingList(list):  # type: ignore[type-arg]
    """Collect views and die after one of them."""

    def __init__(self, last_bar: int) -> None:
        self.last_bar = last_bar

    def append(self, view: PaperView) -> None:
        if view.bar == self.last_bar:
            raise KilledError


async def no_sleep(_seconds: float) -> None:
    return None


async def run(
    exchange: FakeExchange,
    path: Path,
    n_bars: int,
    views: list[PaperView] | None = None,
    session_id: str = "s1",
    clock: Clock | None = None,
    limits: RiskLimits | None = None,
) -> PaperResult:
    first = exchange.now_ns
    history = TAPE.known_until(first)
    feed = MarketFeed(exchange, history, FeedConfig("1h", 60), {})
    ledger = Ledger.open(path, SessionRow(session_id, first, "embedded", {}))
    parts = SessionParts(
        exchange,
        SignalProcessor(feed, momentum, RULES, contracts()),
        ledger,
        SessionConfig(session_id, RULES, limits or RiskLimits(), MarginMode.ISOLATED),
        clock or ManualClock(first),
        no_sleep,
    )
    try:
        return await run_session(
            parts, SteppedBars(exchange.step, first), first, n_bars, (views if views is not None else []).append
        )
    finally:
        ledger.close()


def sound(exchange: FakeExchange, path: Path, session_id: str = "s1") -> None:
    """Check what must hold whatever happened."""
    assert len(exchange.positions) <= RULES.max_open
    assert all(math.isfinite(p.stop_price) for p in exchange.positions.values())
    assert max(Counter(f.client_order_id for f in exchange.executed).values(), default=1) == 1
    ledger = Ledger.open(path, SessionRow(session_id, 0, "embedded", {}))
    intended = {i.client_order_id for i in ledger.intents()}
    assert {r.client_order_id for r in exchange.sent} <= intended  # nothing is sent that was not written first
    for order in exchange.orders.values():
        row = ledger.order(order.client_order_id)
        assert row is not None
        assert row.status is OrderStatus.FILLED or not row.status.is_final  # never written off while it exists
    assert list(differences(replay(rows_of(ledger.journal())), ledger)) == []  # the journal alone tells the same story
    ledger.close()


async def test_a_quiet_session_trades_keeps_its_book_and_shows_it(tmp_path: Path) -> None:
    views: list[PaperView] = []
    exchange = FakeExchange(TAPE, FIRST)
    result = await run(exchange, tmp_path / "l.sqlite", 24, views)
    sound(exchange, tmp_path / "l.sqlite")
    assert len(views) == 25
    assert result.orders_sent == len(exchange.sent) > 10
    assert list(result.fills) == exchange.executed
    assert len(result.equity) == 25
    assert result.final_equity == pytest.approx((await exchange.account()).equity)
    assert views[-1].equity == result.final_equity
    assert views[-1].pnl == pytest.approx(result.final_equity - 10_000.0)
    assert any(v.open_count == 2 for v in views)
    line = next(v for v in views if v.positions).positions[0]
    assert line.margin_ratio > 1.0
    assert line.side in ("long", "short")
    assert line.is_ours
    assert result.mode is Mode.ACTIVE
    assert result.alerts == ()
    assert len(result.decision_seconds) == 25


async def test_running_twice_gives_the_same_trades(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        exchange = FakeExchange(TAPE, FIRST)
        await run(exchange, tmp_path / f"{name}.sqlite", 12)
        runs.append(exchange.executed)
    assert runs[0] == runs[1]


async def test_dying_between_bars_and_starting_again_gives_the_same_trades(tmp_path: Path) -> None:
    whole = FakeExchange(TAPE, FIRST)
    await run(whole, tmp_path / "whole.sqlite", 24)
    broken = FakeExchange(TAPE, FIRST)
    views = DyingList(12)
    with pytest.raises(KilledError):
        await run(broken, tmp_path / "broken.sqlite", 24, views)
    result = await run(broken, tmp_path / "broken.sqlite", 12)  # starts at the close that was decided already
    assert [f.client_order_id for f in broken.executed] == [f.client_order_id for f in whole.executed]
    assert list(result.fills) == broken.executed
    assert [e.ts_ns for e in result.equity] == [FIRST + n * NS_PER_HOUR for n in range(25)]
    assert result.alerts == ()


@given(seed=st.integers(0, 10**6))
@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_through_lost_answers_and_refusals_nothing_is_doubled_or_forgotten(seed: int, tmp_path: Path) -> None:
    path = tmp_path / f"{seed}.sqlite"
    path.unlink(missing_ok=True)
    exchange = FakeExchange(TAPE, FIRST, fault_rng=np.random.default_rng(seed))
    await run(exchange, path, 20)
    sound(exchange, path)


@given(seed=st.integers(0, 10**6))
@hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_killed_between_send_and_answer_and_started_again_nothing_is_doubled(seed: int, tmp_path: Path) -> None:
    path = tmp_path / f"k{seed}.sqlite"
    path.unlink(missing_ok=True)
    rng = np.random.default_rng(seed)
    exchange = FakeExchange(TAPE, FIRST)
    real_place = exchange.place

    async def deadly(request):  # type: ignore[no-untyped-def]
        if rng.random() < 0.15:
            raise KilledError
        report = await real_place(request)
        if rng.random() < 0.15:
            raise KilledError
        return report

    exchange.place = deadly  # type: ignore[method-assign]
    end = FIRST + 15 * NS_PER_HOUR
    while exchange.now_ns < end:
        try:
            await run(exchange, path, (end - exchange.now_ns) // NS_PER_HOUR)
        except KilledError:
            sound(exchange, path)
            continue
        break
    sound(exchange, path)
    assert exchange.now_ns == end


async def test_a_symbol_without_a_fresh_bar_makes_the_cycle_reduce_only(tmp_path: Path) -> None:
    exchange = FakeExchange(TAPE, FIRST)
    real = exchange.candles

    async def partial(symbol, *args, **kwargs):  # type: ignore[no-untyped-def]
        if symbol == "CCCUSDT" and exchange.now_ns >= FIRST + 2 * NS_PER_HOUR:
            return await real(symbol, args[0], 0, 0)
        return await real(symbol, *args, **kwargs)

    exchange.candles = partial  # type: ignore[method-assign]
    views: list[PaperView] = []
    await run(exchange, tmp_path / "l.sqlite", 8, views)
    assert [v.mode for v in views[:2]] == [Mode.ACTIVE, Mode.ACTIVE]
    assert all(v.mode is Mode.REDUCE_ONLY for v in views[2:])
    entries = [f for f in exchange.executed if f.ts_ns >= FIRST + 2 * NS_PER_HOUR]
    assert all(f.client_order_id in {r.client_order_id for r in exchange.sent if r.reduce_only} for f in entries)


async def test_the_rolling_window_equals_the_tape(tmp_path: Path) -> None:
    exchange = FakeExchange(TAPE, FIRST)
    feed = MarketFeed(exchange, TAPE.known_until(FIRST), FeedConfig("1h", 30), {})
    for n in (1, 2, 5):  # a bar, a bar, and three bars at once after a pause
        exchange.now_ns = FIRST + n * NS_PER_HOUR
        window, fresh = await feed.update(exchange.now_ns)
    want = TAPE.known_until(exchange.now_ns)
    want = want.rows(want.n_bars - 30, want.n_bars)
    for name in ("ts_open", "open", "close", "quote_volume", "mark_low", "funding_rate"):
        assert np.array_equal(getattr(window, name), getattr(want, name), equal_nan=True), name
    assert fresh.share == 1.0
    assert window.symbols == SYMBOLS


async def test_history_that_ends_days_ago_is_filled_up_whole() -> None:
    exchange = FakeExchange(TAPE, FIRST)
    feed = MarketFeed(exchange, TAPE.known_until(FIRST - 55 * NS_PER_HOUR), FeedConfig("1h", 58), {})
    window, fresh = await feed.update(FIRST)
    assert np.array_equal(window.close, TAPE.known_until(FIRST).close[2:])
    assert fresh.share == 1.0


async def test_waiting_for_real_bars_sleeps_until_a_moment_after_the_close() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    bars = RealBars(ManualClock(FIRST), sleep, settle_s=2.0)
    await bars.wait_until(FIRST + NS_PER_HOUR)
    await bars.wait_until(FIRST - NS_PER_HOUR)
    assert slept == [3602.0]

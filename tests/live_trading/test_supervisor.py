"""The session lives on: through an exchange in maintenance, a ledger that is gone for a while, and faults nobody foresaw."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock
from crypto_qlib.core.errors import DoNotRetry, HaltTrading, RetryLater
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.core.order import MarginMode
from crypto_qlib.core.signal import Scores
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.risk_control import Mode, risk_from_json
from crypto_qlib.live_trading.runner import SUPERVISOR, SessionParts, SessionRunner, SteppedBars
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.session_parts import PaperResult
from crypto_qlib.live_trading.signal_processor import Contracts, Scorer, SignalProcessor
from crypto_qlib.live_trading.system_watch import SystemLimits
from crypto_qlib.store.ledger import Ledger, SessionRow
from crypto_qlib.store.live_events import EventKind, LiveEvent
from tests.live_trading.paper_fakes import RULES, FakeExchange, contracts
from tests.live_trading.test_runner import FIRST, TAPE, momentum, no_sleep

BAR = NS_PER_HOUR


class Rig:
    """A session on the fake exchange, with whatever goes wrong."""

    def __init__(self, path: Path, scorer: Scorer = momentum, **parts: object) -> None:
        self.exchange = FakeExchange(TAPE, FIRST)
        self.ledger = Ledger.open(path, SessionRow("s1", FIRST, "embedded", {}))
        self.told: list[LiveEvent] = []
        self.contracts: Contracts = contracts()
        feed = MarketFeed(self.exchange, TAPE.known_until(FIRST), FeedConfig("1h", 60), {})  # type: ignore[arg-type]
        known = SessionParts(
            self.exchange,  # type: ignore[arg-type]
            SignalProcessor(feed, scorer, RULES, self.contracts),
            self.ledger,
            SessionConfig("s1", RULES, margin_mode=MarginMode.ISOLATED),
            ManualClock(FIRST),
            no_sleep,
            tell=self.told.append,
        )
        self.runner = SessionRunner(replace(known, **parts))  # type: ignore[arg-type]

    async def run(self, n_bars: int) -> PaperResult:
        return await self.runner.run(SteppedBars(self.exchange.step, FIRST), FIRST, n_bars)

    def is_sound(self) -> bool:
        """Return whether the ledger's fills are the exchange's, each once."""
        return sorted(f.client_order_id for f in self.ledger.fills()) == sorted(
            f.client_order_id for f in self.exchange.executed
        )


async def test_a_fault_nobody_foresaw_ends_a_cycle_not_the_session_and_stays_until_a_person_resumes(tmp_path: Path) -> None:
    def faulty(panel: MarketPanel) -> Scores:
        if int(panel.ts_open[-1]) + BAR == FIRST + 2 * BAR:
            raise ZeroDivisionError("a bug")
        return momentum(panel)

    rig = Rig(tmp_path / "l.sqlite", faulty)
    result = await rig.run(6)
    assert result.mode is Mode.REDUCE_ONLY
    assert [c.ts_ns for c in result.cycles] == [FIRST + k * BAR for k in range(7)]
    assert any("ZeroDivisionError: a bug" in e.text for e in rig.told if e.kind is EventKind.CYCLE)
    opened = [i.decided_ns for i in rig.ledger.intents() if i.is_entry]
    assert opened
    assert max(opened) < FIRST + 2 * BAR  # nothing was opened after it
    kept = risk_from_json(rig.ledger.state("risk"))
    assert kept is not None
    assert kept.voices[SUPERVISOR][0] is Mode.REDUCE_ONLY
    await rig.runner.dispatch(ev.Resumed(FIRST, "seen"))
    assert rig.runner.session.risk.mode is Mode.ACTIVE
    assert rig.is_sound()


@pytest.mark.parametrize("refusal", [RetryLater("50001 maintenance", retry_after_s=0.0), DoNotRetry("51000", code="51000")])
async def test_maintenance_skips_cycles_opens_nothing_meanwhile_and_ends_by_itself(refusal: Exception, tmp_path: Path) -> None:
    rig = Rig(tmp_path / "l.sqlite", system=SystemLimits(max_api_errors=3))
    real = rig.exchange.account

    async def account():  # type: ignore[no-untyped-def]
        if FIRST + 2 * BAR <= rig.exchange.now_ns < FIRST + 4 * BAR:
            raise refusal
        return await real()

    rig.exchange.account = account  # type: ignore[method-assign]
    result = await rig.run(8)
    kinds = [e.kind for e in rig.told]
    if isinstance(refusal, RetryLater):
        assert result.mode is Mode.ACTIVE
        assert kinds.index(EventKind.API_LOST) < kinds.index(EventKind.API_BACK)
        assert any(i.is_entry and i.decided_ns >= FIRST + 4 * BAR for i in rig.ledger.intents())
    else:  # a refusal to show the account is for a person to look at
        assert result.mode is Mode.REDUCE_ONLY
    assert len(result.cycles) == 9
    assert rig.is_sound()


async def test_a_ledger_that_is_gone_for_a_while_stops_everything_and_comes_back_in_a_safe_mode(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "l.sqlite")
    real, sent_without = rig.ledger.append_journal, []

    def append(*args: object) -> None:
        if FIRST + 2 * BAR <= rig.exchange.now_ns < FIRST + 4 * BAR:
            sent_without.append(len(rig.exchange.sent))
            raise HaltTrading("cannot write the ledger: disk is full")
        real(*args)  # type: ignore[arg-type]

    rig.ledger.append_journal = append  # type: ignore[method-assign]
    result = await rig.run(8)
    assert len(set(sent_without)) == 1  # not one order left while nothing could be written
    assert result.mode is Mode.HALTED
    assert any("disk is full" in e.text for e in rig.told)
    assert result.equity[-1].ts_ns == FIRST + 8 * BAR
    assert rig.is_sound()


async def test_between_bars_a_stop_that_went_missing_is_put_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "l.sqlite", check_every_s=0.1)
    lost = asyncio.Event()

    class Waiter:
        """Loses a stop after the first decision, and lets real seconds pass until it is back."""

        async def wait_until(self, close_ns: int) -> None:
            rig.exchange.now_ns = max(close_ns, rig.exchange.now_ns)
            if close_ns != FIRST + BAR:
                return
            symbol = next(iter(rig.exchange.positions))
            rig.exchange.positions[symbol] = replace(rig.exchange.positions[symbol], stop_price=math.nan)
            for _ in range(600):
                if math.isfinite(rig.exchange.positions[symbol].stop_price):
                    lost.set()
                    return
                await asyncio.sleep(0.02)

    await rig.runner.run(Waiter(), FIRST, 1)
    assert lost.is_set()
    assert len(rig.exchange.stops_placed) == 1
    assert any(e.kind is EventKind.UNPROTECTED for e in rig.told)

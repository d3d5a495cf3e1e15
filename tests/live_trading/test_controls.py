"""A person tells a running session what to do: by command, file and signal, in the middle of a cycle and over restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, ManualClock
from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.core.order import OrderStatus
from crypto_qlib.live_trading.controls import KILL_FILE_VOICE, OPERATOR, SIGNAL_VOICE, Controls
from crypto_qlib.live_trading.instance import SessionCard, last_session, one_instance
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.risk_control import Mode, risk_from_json
from crypto_qlib.live_trading.runner import PaperResult, SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.store.control_book import ControlBook
from crypto_qlib.store.ledger import Ledger, SessionRow
from tests.live_trading.paper_fakes import RULES, FakeExchange, contracts
from tests.live_trading.test_runner import FIRST, TAPE, momentum, no_sleep


class Desk:
    """A session on the made-up exchange with somebody who watches it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "l.sqlite"
        self.kill_file = folder / "HALT"
        self.exchange = FakeExchange(TAPE, FIRST)
        Ledger.open(self.path, SessionRow("s1", FIRST, "embedded", {})).close()
        self.book = ControlBook(self.path, "s1")

    async def run(self, n_bars: int, at_bar: Callable[[int], None] = lambda _bar: None, started_ns: int = 0) -> PaperResult:
        first = self.exchange.now_ns

        async def step() -> int:
            at_bar((self.exchange.now_ns - FIRST) // NS_PER_HOUR)
            return await self.exchange.step()

        ledger = Ledger.open(self.path, SessionRow("s1", first, "embedded", {}))
        feed = MarketFeed(self.exchange, TAPE.known_until(first), FeedConfig("1h", 60), {})
        parts = SessionParts(
            self.exchange, SignalProcessor(feed, momentum, RULES, contracts()), ledger, SessionConfig("s1", RULES),
            ManualClock(first), no_sleep, Controls(self.book, self.kill_file, started_ns),
        )  # fmt: skip
        try:
            return await run_session(parts, SteppedBars(step, first), first, n_bars)
        finally:
            ledger.close()

    def ask(self, verb: str, argument: str = "") -> int:
        return self.book.ask(time.time_ns(), verb, argument, "ann")

    def answer(self, seq: int) -> str:
        row = self.book.row(seq)
        assert row is not None
        assert row.answered_ns is not None
        return row.answer

    def voices(self) -> dict[str, Mode]:
        ledger = Ledger.open(self.path, SessionRow("s1", 0, "embedded", {}))
        risk = risk_from_json(ledger.state("risk"))
        ledger.close()
        assert risk is not None
        return {voice: mode for voice, (mode, _) in risk.voices.items()}

    def sent_since(self, count: int) -> list[str]:
        return ["exit" if r.reduce_only else "entry" for r in self.exchange.sent[count:]]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_halt_by_command_sends_nothing_more_over_a_restart_until_resumed(desk: Desk) -> None:
    asked: list[int] = []
    before: list[int] = []

    def at_bar(bar: int) -> None:
        if bar == 5:
            before.append(len(desk.exchange.sent))
            asked.append(desk.ask("halt"))

    result = await desk.run(8, at_bar)
    assert result.mode is Mode.HALTED
    assert before[0] > 0
    assert len(desk.exchange.sent) == before[0]
    assert "mode HALTED" in desk.answer(asked[0])
    again = await desk.run(4)
    assert again.mode is Mode.HALTED
    assert len(desk.exchange.sent) == before[0]
    seq = desk.ask("resume")
    resumed = await desk.run(6)
    assert resumed.mode is Mode.ACTIVE
    assert "mode ACTIVE" in desk.answer(seq)
    assert len(desk.exchange.sent) > before[0]


async def test_reduce_lets_exits_go_on_and_opens_nothing(desk: Desk) -> None:
    count: list[int] = []

    def at_bar(bar: int) -> None:
        if bar == 5:
            count.append(len(desk.exchange.sent))
            desk.ask("reduce")

    await desk.run(12, at_bar)
    assert set(desk.sent_since(count[0])) == {"exit"}
    assert desk.exchange.positions == {}


async def test_the_kill_file_halts_while_it_exists_and_then_until_resumed(desk: Desk) -> None:
    await desk.run(4, lambda bar: desk.kill_file.touch() if bar == 2 else None)
    count = len(desk.exchange.sent)
    assert desk.voices() == {KILL_FILE_VOICE: Mode.HALTED}
    refused = desk.ask("resume")
    await desk.run(2)
    assert "remove" in desk.answer(refused)
    desk.kill_file.unlink()
    await desk.run(2)
    assert len(desk.exchange.sent) == count
    desk.ask("resume")
    await desk.run(4)
    assert len(desk.exchange.sent) > count


async def test_sigusr1_halts_and_sigterm_ends_leaving_positions_with_their_stops(desk: Desk) -> None:
    def at_bar(bar: int) -> None:
        if bar in (3, 6):
            os.kill(os.getpid(), signal.SIGUSR1 if bar == 3 else signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = await desk.run(20, at_bar)
    assert desk.voices() == {SIGNAL_VOICE: Mode.HALTED}
    assert result.stopped_by == "SIGTERM"
    assert desk.exchange.now_ns < FIRST + 9 * NS_PER_HOUR
    assert desk.exchange.positions
    assert signal.getsignal(signal.SIGTERM) is before


async def test_a_halt_between_two_orders_of_one_cycle_stops_the_second(desk: Desk) -> None:
    """The kill file appears while the first entry is being sent: the second, decided with it, never leaves."""
    real = desk.exchange.place

    async def place(request):  # type: ignore[no-untyped-def]
        report = await real(request)
        desk.kill_file.touch()
        return report

    desk.exchange.place = place  # type: ignore[method-assign]
    result = await desk.run(1)
    assert len(desk.exchange.sent) == 1
    assert any("not sent: the mode is HALTED" in alert for alert in result.alerts)
    ledger = Ledger.open(desk.path, SessionRow("s1", 0, "embedded", {}))
    rows = {i.client_order_id: ledger.order(i.client_order_id) for i in ledger.intents()}
    withheld = [row for row in rows.values() if row is not None and row.status is OrderStatus.REJECTED]
    assert [row.note for row in withheld] == ["not sent: the mode is HALTED"]
    ledger.close()


async def test_close_works_in_halted_mode_once_and_never_touches_what_is_not_ours(desk: Desk) -> None:
    await desk.run(5)
    ours = sorted(desk.exchange.positions)
    assert ours
    symbol, count = ours[0], len(desk.exchange.sent)
    desk.ask("halt")
    asked = time.time_ns()
    first, twin = (desk.book.ask(asked, "close", symbol, "ann") for _ in range(2))
    foreign = desk.ask("close", "ZZZUSDT")
    await desk.run(1)
    assert symbol not in desk.exchange.positions
    assert len(desk.exchange.sent) == count + 1
    assert "1 orders sent" in desk.answer(first)
    assert "0 orders sent" in desk.answer(twin)
    assert "no position of ours" in desk.answer(foreign)


@pytest.mark.parametrize(("argument", "is_flat"), [("flatten", True), ("leave", False), ("", False)])
async def test_stop_ends_after_the_cycle_and_flattens_only_when_told(desk: Desk, argument: str, is_flat: bool) -> None:
    result = await desk.run(40, lambda bar: desk.ask("stop", argument) if bar == 5 else None)  # type: ignore[arg-type, func-returns-value]
    assert result.stopped_by == "ann"
    assert desk.exchange.now_ns == FIRST + 6 * NS_PER_HOUR
    assert (desk.exchange.positions == {}) is is_flat


async def test_to_stop_or_close_asked_of_an_earlier_run_expires(desk: Desk) -> None:
    asked = [desk.ask("stop"), desk.ask("close")]
    result = await desk.run(3, started_ns=time.time_ns())
    assert result.stopped_by == ""
    assert all("not done" in desk.answer(seq) for seq in asked)


async def test_a_wait_for_a_far_bar_is_cut_short(desk: Desk) -> None:
    class Forever:
        async def wait_until(self, close_ns: int) -> None:
            if close_ns > FIRST:
                await asyncio.sleep(3600)

    ledger = Ledger.open(desk.path, SessionRow("s1", FIRST, "embedded", {}))
    feed = MarketFeed(desk.exchange, TAPE.known_until(FIRST), FeedConfig("1h", 60), {})
    signals = SignalProcessor(feed, momentum, RULES, contracts())
    controls = Controls(desk.book, desk.kill_file)
    parts = SessionParts(desk.exchange, signals, ledger, SessionConfig("s1", RULES), ManualClock(FIRST), no_sleep, controls)
    threading.Timer(0.3, lambda: desk.ask("stop")).start()
    result = await asyncio.wait_for(run_session(parts, Forever(), FIRST, 3), timeout=20)
    ledger.close()
    assert result.stopped_by == "ann"


async def test_a_ledger_that_cannot_be_read_for_a_while_does_not_end_the_session(desk: Desk) -> None:
    real = desk.book.waiting
    refusals = iter([False, False, True])  # the third look is the one before the first order

    def waiting():  # type: ignore[no-untyped-def]
        if next(refusals, False):
            raise RetryLater("cannot read the ledger")
        return real()

    desk.book.waiting = waiting  # type: ignore[method-assign]
    result = await desk.run(4)
    assert len(result.equity) == 5
    assert any("ended rejected: not sent: cannot read the ledger" in alert for alert in result.alerts)
    assert result.mode is Mode.ACTIVE


def test_one_instance_and_its_card(tmp_path: Path) -> None:
    card = SessionCard("s1", "demo", "l.sqlite", os.getpid(), 7)
    assert last_session(tmp_path, "demo") is None
    with one_instance(tmp_path, card):
        assert last_session(tmp_path, "demo") == (card, True)
        with pytest.raises(UserError, match="already trades"), one_instance(tmp_path, card):
            pass
    assert last_session(tmp_path, "demo") == (card, False)
    assert (tmp_path / "demo.json").stat().st_mode & 0o077 == 0


def test_a_ledger_others_may_write_is_no_control_surface(desk: Desk) -> None:
    assert desk.path.stat().st_mode & 0o077 == 0
    desk.path.chmod(0o620)
    with pytest.raises(UserError, match="other users") as refused:
        ControlBook(desk.path, "s1")
    assert "chmod go-w" in refused.value.hint


async def test_resuming_forgives_a_drawdown_only_when_asked_to(desk: Desk) -> None:
    await desk.run(3)
    ledger = Ledger.open(desk.path, SessionRow("s1", 0, "embedded", {}))
    saved = ledger.state("risk")
    saved["voices"] = {"drawdown": [2, "fell"], OPERATOR: [2, "asked"]}
    ledger.put_state("risk", saved | {"peak_equity": 1e9})
    ledger.close()
    desk.ask("resume")
    assert (await desk.run(1)).mode is Mode.HALTED
    assert desk.voices() == {"drawdown": Mode.HALTED}
    desk.ask("resume", "drawdown")
    assert (await desk.run(1)).mode is Mode.ACTIVE

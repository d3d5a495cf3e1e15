"""Alerts over real HTTP to a service that fails, hangs and recovers; trading never waits for one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, ManualClock
from crypto_qlib.core.errors import RetryLater, UserError
from crypto_qlib.core.order import ExitKind, Fill
from crypto_qlib.live_trading.alerts.channels import AppriseChannel, channels_of
from crypto_qlib.live_trading.alerts.courier import Courier, Patience
from crypto_qlib.live_trading.alerts.daily_summary import DailySummary, daily_summary
from crypto_qlib.live_trading.alerts.desk import AlertDesk
from crypto_qlib.live_trading.alerts.policy import AlertRules, Policy
from crypto_qlib.live_trading.market_feed import FeedConfig, MarketFeed
from crypto_qlib.live_trading.runner import SessionParts, SteppedBars, run_session
from crypto_qlib.live_trading.session import SessionConfig
from crypto_qlib.live_trading.signal_processor import SignalProcessor
from crypto_qlib.scheduler.alerting import alerting
from crypto_qlib.settings.alert_schema import AlertKind, AlertSettings
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.ledger import EquityRow, FundingRow, Ledger, LedgerPlace, PositionRow, SessionRow
from crypto_qlib.store.live_events import EventKind, LiveEvent, Severity
from crypto_qlib.store.notice_box import NoticeBox, NoticeState
from tests.live_trading.paper_fakes import RULES, FakeExchange, contracts
from tests.live_trading.test_runner import FIRST, TAPE, momentum, no_sleep
from tests.loopback import Loopback, Reply, Request, serving

SESSION = SessionRow("s1", FIRST, "demo", {})
TRADE = LiveEvent(FIRST, EventKind.TRADE, Severity.INFO, "AUSDT long: opened, 3 lots at 1.5", "AUSDT")
HALT = LiveEvent(FIRST, EventKind.MODE, Severity.CRITICAL, "operator asks for HALTED: asked by ann")


@dataclass
class Service:
    """A web hook whose mood a test sets."""

    answer: Callable[[Request], Reply] = lambda _request: Reply()

    def __call__(self, request: Request) -> Reply:
        return self.answer(request)


@pytest.fixture
def first() -> Service:
    return Service()


@pytest.fixture
def second() -> Service:
    return Service()


@pytest.fixture
def servers(first: Service, second: Service) -> Iterator[tuple[Loopback, Loopback]]:
    with serving(first) as one, serving(second) as two:
        yield one, two


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "l.sqlite", SESSION)
    yield opened
    opened.close()


@pytest.fixture
def box(ledger: Ledger) -> NoticeBox:
    return NoticeBox(ledger.engine, "s1")


def hook(server: Loopback) -> str:
    return server.url.replace("http://", "json://") + "/hook?rto=0.3&cto=0.3"


def texts(server: Loopback) -> list[str]:
    return [json.loads(request.body)["message"] for request in server.requests]


def soon(condition: Callable[[], bool]) -> None:
    """Wait until a condition that another thread brings about holds; its absence is the failure, not its pace."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not come about within a minute")


def carry(courier: Courier) -> None:
    """Let a courier without a thread send what is due now, and wait for the answers."""
    while courier.look():
        time.sleep(0.005)


def courier_to(box: NoticeBox, clock: ManualClock, *servers: Loopback, tries: int = 3) -> Courier:
    channels = [AppriseChannel(hook(server), k) for k, server in enumerate(servers, 1)]
    return Courier(box, channels, clock, Patience(tries=tries, acknowledge_ns=15 * NS_PER_MINUTE))


# ---- what is told


ROWS = [
    ("a trade is told", [(0, TRADE)], 1),
    ("the very same line again is not", [(0, TRADE), (5, TRADE)], 1),
    ("after the time for repeats it is", [(0, TRADE), (61, TRADE)], 2),
    ("another line of the same kind is another deed", [(0, TRADE), (5, replace(TRADE, text="other"))], 2),
    (
        "a state whose figure moves is still the same state",
        [(k, LiveEvent(0, EventKind.NEAR_LIQUIDATION, Severity.WARNING, f"{k} % away", "AUSDT")) for k in range(5)],
        1,
    ),
    (
        "a state that becomes critical is told again",
        [
            (0, LiveEvent(0, EventKind.NEAR_LIQUIDATION, Severity.WARNING, "near", "AUSDT")),
            (1, LiveEvent(0, EventKind.NEAR_LIQUIDATION, Severity.CRITICAL, "nearer", "AUSDT")),
        ],
        2,
    ),
    ("a muted kind is silent", [(0, LiveEvent(0, EventKind.FUNDING, Severity.INFO, "paid"))], 0),
    ("a muted kind that is critical is not", [(0, LiveEvent(0, EventKind.FUNDING, Severity.CRITICAL, "paid"))], 1),
]


@pytest.mark.parametrize(("name", "happens", "told"), ROWS, ids=[row[0] for row in ROWS])
def test_repeats_and_muted_kinds(name: str, happens: list[tuple[int, LiveEvent]], told: int) -> None:
    policy = Policy(AlertRules(muted=frozenset({EventKind.FUNDING})))
    out = [e for minute, event in happens for e in policy.consider(replace(event, ts_ns=FIRST + minute * NS_PER_MINUTE))]
    assert len(out) == told, name


def test_a_flood_is_held_back_counted_and_told_in_one_line_later_and_critical_passes() -> None:
    policy = Policy(AlertRules(per_hour=5))
    flood = [replace(TRADE, ts_ns=FIRST + k, text=f"trade {k}") for k in range(12)]
    assert sum(len(policy.consider(event)) for event in flood) == 5
    assert policy.consider(replace(HALT, ts_ns=FIRST + 99)) == [replace(HALT, ts_ns=FIRST + 99)]
    assert policy.release(FIRST + NS_PER_MINUTE) == []
    (late,) = policy.release(FIRST + NS_PER_HOUR + 10)
    assert late.text == "7 more notices of trade were held back, the last: trade 11"
    assert policy.release(FIRST + 2 * NS_PER_HOUR) == []


def test_what_was_told_before_a_restart_is_not_told_again(box: NoticeBox) -> None:
    for _ in range(2):
        AlertDesk(box, AlertRules(), threading.Event())(TRADE)
    assert [n.text for n in box.notices()] == [TRADE.text]


def test_every_kind_can_be_muted_by_its_name() -> None:
    assert set(get_args(AlertKind)) == {kind.value for kind in EventKind}


# ---- how it is brought


def test_a_service_that_fails_is_tried_again_later_and_later_and_gets_it_when_it_recovers(
    box: NoticeBox, first: Service, servers: tuple[Loopback, Loopback]
) -> None:
    clock = ManualClock(FIRST)
    AlertDesk(box, AlertRules(), threading.Event())(TRADE)
    first.answer = lambda _request: Reply(status=500)
    courier = courier_to(box, clock, servers[0])
    pauses = []
    for tries in range(1, 5):
        carry(courier)
        (notice,) = box.notices()
        assert (notice.state, notice.tries) == (NoticeState.WAITING, tries)
        assert "did not take the message" in notice.note
        pauses.append(notice.next_try_ns - clock.now_ns())
        carry(courier)
        assert len(servers[0].requests) == tries, "not before its time"
        clock.advance_to(notice.next_try_ns)
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2 * pauses[0]
    first.answer = lambda _request: Reply()
    carry(courier)
    (notice,) = box.notices()
    assert (notice.state, notice.note) == (NoticeState.DONE, "")
    assert texts(servers[0])[-1] == TRADE.text
    assert "INFO trade" in json.loads(servers[0].requests[-1].body)["title"]


def test_a_dead_channel_hands_on_to_the_next(box: NoticeBox, first: Service, servers: tuple[Loopback, Loopback]) -> None:
    clock = ManualClock(FIRST)
    AlertDesk(box, AlertRules(), threading.Event())(TRADE)
    first.answer = lambda _request: Reply(status=503)
    courier = courier_to(box, clock, *servers, tries=2)
    for _ in range(4):
        carry(courier)
        clock.advance_to(clock.now_ns() + NS_PER_HOUR)
    assert len(servers[0].requests) == 2
    assert texts(servers[1]) == [TRADE.text]
    assert box.notices()[0].state is NoticeState.DONE


def test_what_is_critical_goes_to_the_next_channel_unless_somebody_acknowledges(
    box: NoticeBox, servers: tuple[Loopback, Loopback]
) -> None:
    clock = ManualClock(FIRST)
    desk, courier = AlertDesk(box, AlertRules(), threading.Event()), courier_to(box, clock, *servers)
    desk(HALT)
    desk(replace(HALT, text="another"))
    desk(TRADE)
    carry(courier)
    assert sorted(texts(servers[0])) == sorted([HALT.text, "another", TRADE.text])
    assert texts(servers[0])[-1] == TRADE.text, "what is critical goes first"
    assert [n.text for n in box.unacknowledged()] == [HALT.text, "another"]
    assert box.acknowledge(clock.now_ns(), "ann", 1) == 1
    assert box.acknowledge(clock.now_ns(), "ann", 1) == 0
    clock.advance_to(clock.now_ns() + 16 * NS_PER_MINUTE)
    carry(courier)
    assert texts(servers[1]) == ["another"]
    for _ in range(9):
        clock.advance_to(clock.now_ns() + 16 * NS_PER_MINUTE)
        carry(courier)
    assert texts(servers[1]) == ["another"] * 4, "the last channel is reminded three times, then it ends"
    assert {n.state for n in box.notices()} == {NoticeState.DONE}
    assert "nobody acknowledged" in box.notices()[1].note
    assert box.notices()[0].acknowledged_by == "ann"


def test_a_channel_that_hangs_holds_up_no_other_and_is_not_given_more(
    box: NoticeBox, first: Service, servers: tuple[Loopback, Loopback]
) -> None:
    gate = threading.Event()

    class Hanging:
        name = "hanging"
        calls = 0

        def send(self, title: str, body: str, severity: Severity) -> None:
            self.calls += 1
            gate.wait()

    clock, hanging = ManualClock(FIRST), Hanging()
    courier = Courier(box, [hanging, AppriseChannel(hook(servers[1]))], clock)
    desk = AlertDesk(box, AlertRules(), courier.woken)
    with courier:
        desk(TRADE)
        desk(replace(TRADE, text="second"))
        soon(lambda: hanging.calls == 1)
        box.update(2, level=1)
        soon(lambda: texts(servers[1]) == ["second"])
        assert hanging.calls == 1
        gate.set()
        soon(lambda: all(n.state is NoticeState.DONE for n in box.notices()))


def test_a_service_that_never_answers_is_given_up_after_its_own_time(
    box: NoticeBox, first: Service, servers: tuple[Loopback, Loopback]
) -> None:
    gate = threading.Event()

    def hangs(_request: Request) -> Reply:
        gate.wait(60)
        return Reply()

    first.answer = hangs
    channel = AppriseChannel(hook(servers[0]))
    with pytest.raises(RetryLater, match="did not take the message"):
        channel.send("t", "b", Severity.INFO)
    gate.set()


def test_what_was_not_sent_when_the_process_ended_is_sent_by_the_next(
    box: NoticeBox, first: Service, servers: tuple[Loopback, Loopback]
) -> None:
    AlertDesk(box, AlertRules(), threading.Event())(TRADE)
    first.answer = lambda _request: Reply(status=500)
    with courier_to(box, ManualClock(FIRST), servers[0]):
        soon(lambda: len(servers[0].requests) == 1)
    first.answer = lambda _request: Reply()
    with courier_to(box, ManualClock(FIRST + NS_PER_HOUR), servers[0]):
        soon(lambda: box.notices()[0].state is NoticeState.DONE)
    assert texts(servers[0]) == [TRADE.text] * 2


async def test_a_session_ends_its_bars_while_every_channel_hangs(tmp_path: Path, first: Service) -> None:
    """The service answers only after the session has ended: were trading to wait for a message, this would never end."""
    ended = threading.Event()

    def answers_after_the_end(_request: Request) -> Reply:
        ended.wait(100)
        return Reply()

    first.answer = answers_after_the_end
    settings = Settings(alerts=AlertSettings(when="always"))
    with serving(first) as server:
        place = LedgerPlace(str(tmp_path / "l.sqlite"))
        secrets = Secrets(alert_urls=server.url.replace("http://", "json://") + "/?rto=90")
        exchange = FakeExchange(TAPE, FIRST)
        feed = MarketFeed(exchange, TAPE.known_until(FIRST), FeedConfig("1h", 60), {})
        with alerting(settings, secrets, place, SESSION) as tell:
            ledger = Ledger.open(place, SESSION)
            parts = SessionParts(
                exchange, SignalProcessor(feed, momentum, RULES, contracts()), ledger, SessionConfig("s1", RULES),
                ManualClock(FIRST), no_sleep, tell=tell,
            )  # fmt: skip
            result = await run_session(parts, SteppedBars(exchange.step, FIRST), FIRST, 12)
            box = NoticeBox(ledger.engine, "s1")
            told = {notice.kind for notice in box.notices()}
            ended.set()
            soon(lambda: all(n.state is not NoticeState.WAITING for n in box.notices()))
            ledger.close()
        assert len(result.equity) == 13
        assert {EventKind.TRADE, EventKind.EXIT} <= told
        assert len(texts(server)) == len(set(texts(server))) > 5


def test_a_database_that_refuses_loses_nothing_and_raises_nothing(box: NoticeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = AlertDesk(box, AlertRules(), threading.Event())
    with monkeypatch.context() as broken:
        broken.setattr(box, "add", lambda *_args: (_ for _ in ()).throw(RetryLater("locked")))
        desk(TRADE)
        assert box.notices() == []
    desk(HALT)
    assert [n.text for n in box.notices()] == [TRADE.text, HALT.text]


# ---- the environment's channels


def test_bad_addresses_are_one_line_that_never_repeats_them() -> None:
    with pytest.raises(UserError, match=r"ALERT_URLS: address 2 \(nosuch://...\)") as refused:
        channels_of(Secrets(alert_urls="json://127.0.0.1:1/ nosuch://user:hunter2@host"))
    assert "hunter2" not in str(refused.value)
    with pytest.raises(UserError, match="TELEGRAM_CHAT_ID is set without"):
        channels_of(Secrets(telegram_chat_id="1"))
    assert channels_of(Secrets(telegram_bot_token="123456789:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")) == []
    pair = Secrets(telegram_bot_token="123456789:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", telegram_chat_id="42")
    assert [channel.name for channel in channels_of(pair)] == ["tgram (1)"]
    assert "AAAA" not in repr(channels_of(pair))


def test_nothing_is_written_down_for_the_embedded_exchange_unless_asked_for(tmp_path: Path) -> None:
    secrets = Secrets(alert_urls="json://127.0.0.1:1/")
    with alerting(Settings(), secrets, LedgerPlace(str(tmp_path / "l.sqlite")), SESSION) as tell:
        tell(HALT)
    assert not (tmp_path / "l.sqlite").exists()


# ---- the day in a few lines


def test_the_daily_summary_says_what_a_person_wants_to_know(ledger: Ledger, box: NoticeBox) -> None:
    day = FIRST // NS_PER_DAY
    start = day * NS_PER_DAY
    ledger.record_equity(EquityRow(start, 1000.0, 900.0, None, 0.0, 0.0, 0))
    end = start + NS_PER_DAY
    ledger.record_equity(EquityRow(end, 1025.5, 800.0, 12.0, 500.0, 100.0, 2, 150.0))
    ledger.record_positions([
        PositionRow(end, "AUSDT", 5, 5.0, 10.0, 11.0, 3.0, 17.0, 7.7, 9.0, None, 5.0),
        PositionRow(end, "BUSDT", -5, 5.0, 10.0, 12.0, 2.0, 25.0, 12.6, None, None, -10.0),
    ])  # fmt: skip
    ledger.record_fills([
        Fill(start + 1, "AUSDT", 5, 10.0, 0.25, client_order_id="x"),
        Fill(start + 2, "CUSDT", -1, 1.0, 0.5, exit_kind=ExitKind.STOP),
    ])  # fmt: skip
    ledger.record_funding([FundingRow("b", start + 3, "AUSDT", -1.5)])
    ledger.put_state("risk", {"voices": {"margin": [1, "thin"]}, "peak_equity": 1.0, "day": 1, "day_start_equity": 1.0})
    desk = AlertDesk(box, AlertRules(), threading.Event())
    desk(replace(HALT, ts_ns=start + 5, text="an order was refused"))
    told: list[LiveEvent] = []
    ledger.put_state("summary_day", day - 1)
    chore = DailySummary(ledger, box, told.append, after_ns=5 * NS_PER_MINUTE)
    chore(end + 4 * NS_PER_MINUTE)
    assert told == [], "not before its time"
    chore(end + 6 * NS_PER_MINUTE)
    chore(end + 7 * NS_PER_MINUTE)
    DailySummary(ledger, box, told.append, after_ns=0)(end + 8 * NS_PER_MINUTE)
    assert len(told) == 1, "once a day, over restarts too"
    assert told[0].kind is EventKind.SUMMARY
    text = told[0].text
    for words in (
        "Equity 1,025.50 USDT (+25.50, +2.55%)", "2 executions, fees -0.75, funding -1.50", "2 open, -5.00 unrealised",
        "BUSDT short 2x -10.00", "Nearest liquidation BUSDT, 5.0% away", "WITHOUT A STOP: BUSDT",
        "Mode REDUCE_ONLY (margin)", "1 warnings, 1 critical; last: an order was refused",
    ):  # fmt: skip
        assert words in text, (words, text)
    assert max(len(line) for line in text.splitlines()) <= 70, "fits a phone"
    assert daily_summary(ledger, box, day - 9) is None

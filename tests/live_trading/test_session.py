"""The session machine: what it asks for, in which order, and what it never does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.order import ExitKind, Fill, OrderStatus, Side
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import Mode, RiskLimits
from crypto_qlib.live_trading.session import Session, SessionConfig
from crypto_qlib.portfolio.market_panel import market_states
from crypto_qlib.store.ledger import IntentRow
from tests.live_trading.paper_fakes import RULES, START_NS, SYMBOLS, contracts, panel, scores

TAPE = panel(60)
CONTRACTS = contracts()
STATES = market_states(TAPE, CONTRACTS.instruments, CONTRACTS.tiers, RULES)
T = START_NS + 50 * NS_PER_HOUR
FULL = ev.Freshness(4, 4)


def session(**changes: object) -> Session:
    config = replace(SessionConfig("s1", RULES), **changes)  # type: ignore[arg-type]
    return Session(config, PositionTracker(RULES.frame_ns, RULES.cooldown_ns))


def bar(*expected: float, at: int = T, fresh: ev.Freshness = FULL, is_last: bool = False) -> ev.BarClosed:
    return ev.BarClosed(at, scores(at, *expected), STATES.at(at), fresh, is_last)


def account(*positions: OpenPosition, equity: float = 10_000.0, at: int = T) -> AccountState:
    return AccountState(at, equity, equity, positions, margin_ratio=10.0)


def held(symbol: str, lots: int, opened_ns: int = T, stop: float = 90.0) -> OpenPosition:
    mark = float(STATES.at(T).mark[SYMBOLS.index(symbol)])
    return OpenPosition(symbol, lots, abs(lots) * 0.01, mark, mark, 3.0, abs(lots) * mark * 0.01 / 3, opened_ns, stop)


def decide(machine: Session, event: ev.BarClosed, state: AccountState) -> list[ev.Instruction]:
    assert machine.handle(event)[-1] == ev.ReadAccount(ev.Purpose.DECIDE)
    return machine.handle(ev.AccountRead(event.ts_ns, state, ev.Purpose.DECIDE))


def of(kind: type, instructions: list[ev.Instruction]) -> list:  # type: ignore[type-arg]
    return [i for i in instructions if isinstance(i, kind)]


def own(machine: Session, symbol: str, lots: int, at: int = T - NS_PER_HOUR, stop: float | None = 90.0) -> None:
    """Let the tracker know a position as ours."""
    intent = IntentRow(f"old{symbol}", at, symbol, lots, True, None, 3.0, stop, None, 0.01)
    machine._tracker.note_intent(intent)
    machine._tracker.note_fill(Fill(at, symbol, lots, 100.0, 0.0, client_order_id=f"old{symbol}"))


def filled(coid: str) -> ev.OrderReported:
    return ev.OrderReported(T, coid, OrderStatus.FILLED, 1)


def test_an_entry_sets_leverage_first_then_sends_with_its_stop_attached() -> None:
    machine = session()
    first = decide(machine, bar(0.05, np.nan, np.nan, np.nan), account())
    (leverage,) = of(ev.SetLeverage, first)
    assert leverage.symbol == "AAAUSDT"
    assert not of(ev.PlaceOrder, first)
    (place,) = of(ev.PlaceOrder, machine.handle(ev.LeverageSet(T, "AAAUSDT", leverage.leverage)))
    price = float(STATES.at(T).close[0])
    assert place.request.side is Side.BUY
    assert place.request.protection is not None
    assert place.request.protection.stop_price == pytest.approx(price * 0.95, rel=1e-3)
    assert place.intent.stop_price == place.request.protection.stop_price
    assert place.intent.entry_score is not None


def test_entries_follow_one_another_and_a_verified_leverage_is_not_set_again() -> None:
    machine = session()
    first = decide(machine, bar(0.05, -0.04, np.nan, np.nan), account())
    (leverage,) = of(ev.SetLeverage, first)
    (place,) = of(ev.PlaceOrder, machine.handle(ev.LeverageSet(T, "AAAUSDT", leverage.leverage)))
    (second,) = of(ev.SetLeverage, machine.handle(filled(place.intent.client_order_id)))
    assert second.symbol == "BBBUSDT"
    machine.handle(ev.LeverageRefused(T, "BBBUSDT", "no"))
    again = decide(machine, bar(0.05, np.nan, np.nan, np.nan, at=T + NS_PER_HOUR), account(at=T + NS_PER_HOUR))
    assert not of(ev.SetLeverage, again)  # AAA keeps the leverage it was verified with
    assert of(ev.PlaceOrder, again)[0].request.symbol == "AAAUSDT"


def test_the_same_decision_always_has_the_same_ids() -> None:
    ids = []
    for _ in range(2):
        machine = session()
        leverage = of(ev.SetLeverage, decide(machine, bar(0.05, np.nan, np.nan, np.nan), account()))[0]
        placed = of(ev.PlaceOrder, machine.handle(ev.LeverageSet(T, "AAAUSDT", leverage.leverage)))[0]
        ids.append(placed.intent.client_order_id)
    assert ids[0] == ids[1]
    assert ids[0].isalnum()
    assert len(ids[0]) <= 32


def test_entries_wait_for_every_exit_and_an_exit_that_fails_takes_an_entry_along() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    own(machine, "CCCUSDT", -50)
    old = T - 4 * NS_PER_HOUR  # held for holding_bars: both leave by time, their slots are not free yet
    state = account(held("BBBUSDT", 50, old), held("CCCUSDT", -50, old))
    out = decide(machine, bar(0.2, np.nan, np.nan, np.nan), state)
    exits = of(ev.PlaceOrder, out)
    assert [e.request.symbol for e in exits] == ["BBBUSDT", "CCCUSDT"]
    assert all(e.request.reduce_only and e.intent.exit_kind is ExitKind.TIME for e in exits)
    assert machine.handle(filled(exits[0].intent.client_order_id)) == []
    done = machine.handle(filled(exits[1].intent.client_order_id))
    assert of(ev.ReadAccount, done) == [ev.ReadAccount(ev.Purpose.VERIFY)]


def test_a_replacement_whose_exit_is_refused_opens_nothing() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    own(machine, "CCCUSDT", 50)
    state = account(held("BBBUSDT", 50), held("CCCUSDT", 50))
    (leave,) = of(ev.PlaceOrder, decide(machine, bar(0.2, 0.001, np.nan, 0.01), state))
    assert (leave.request.symbol, leave.intent.exit_kind) == ("BBBUSDT", ExitKind.REPLACED)
    after = machine.handle(ev.OrderReported(T, leave.intent.client_order_id, OrderStatus.REJECTED, 0, "no"))
    assert not of(ev.SetLeverage, after)
    assert not of(ev.PlaceOrder, after)
    assert any("dropped" in a.text for a in of(ev.Alert, after))


def _sent(machine: Session) -> str:
    leverage = of(ev.SetLeverage, decide(machine, bar(0.05, np.nan, np.nan, np.nan), account()))[0]
    return str(of(ev.PlaceOrder, machine.handle(ev.LeverageSet(T, "AAAUSDT", leverage.leverage)))[0].intent.client_order_id)


def test_no_answer_is_looked_up_and_never_sent_again() -> None:
    machine = session()
    coid = _sent(machine)
    assert machine.handle(ev.OrderUnknown(T, coid)) == [ev.LookUpOrder("AAAUSDT", coid, 1)]
    assert machine.handle(ev.OrderNotFound(T, coid)) == [ev.LookUpOrder("AAAUSDT", coid, 2)]  # one miss proves nothing
    out = machine.handle(ev.OrderNotFound(T, coid))
    assert of(ev.GiveUpOrder, out) == [ev.GiveUpOrder(coid, "never arrived at the exchange")]
    assert not of(ev.PlaceOrder, out)
    assert machine.pending == ()


def test_an_order_nobody_can_resolve_holds_its_slot_and_is_asked_for_next_bar() -> None:
    machine = session(max_lookups=2)
    coid = _sent(machine)
    machine.handle(ev.OrderUnknown(T, coid))
    machine.handle(ev.OrderUnknown(T, coid))
    out = machine.handle(ev.OrderUnknown(T, coid))
    assert any(a.severity is ev.Severity.CRITICAL for a in of(ev.Alert, out))
    assert of(ev.ReadAccount, out) == [ev.ReadAccount(ev.Purpose.VERIFY)]  # the cycle ends all the same
    assert machine.pending == ("AAAUSDT",)
    later = T + NS_PER_HOUR
    out = machine.handle(bar(0.05, 0.04, 0.03, np.nan, at=later))
    assert out[0] == ev.LookUpOrder("AAAUSDT", coid, 1)
    out = machine.handle(ev.AccountRead(later, account(at=later), ev.Purpose.DECIDE))
    wanted = [i.symbol for i in of(ev.SetLeverage, out)]
    assert wanted == ["BBBUSDT"]  # one slot of two is left; AAA is never touched
    assert machine._cycle is not None
    assert not machine._cycle.entries


@pytest.mark.parametrize(
    ("name", "fresh", "voice", "expect_exit"),
    [
        ("too few fresh symbols: only what reduces", ev.Freshness(4, 2), None, True),
        ("an operator's reduce-only", FULL, Mode.REDUCE_ONLY, True),
        ("halted: nothing at all", FULL, Mode.HALTED, False),
    ],
)
def test_stricter_modes_open_nothing(name: str, fresh: ev.Freshness, voice: Mode | None, expect_exit: bool) -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    if voice is not None:
        machine.handle(ev.ModeVoiced(T, "operator", voice, "test"))
    out = decide(machine, bar(0.2, np.nan, np.nan, 0.1, fresh=fresh), account(held("BBBUSDT", 50, T - 4 * NS_PER_HOUR)))
    placed = of(ev.PlaceOrder, out)
    assert [p.request.symbol for p in placed] == (["BBBUSDT"] if expect_exit else []), name
    assert not of(ev.SetLeverage, out), name
    for p in placed:
        after = machine.handle(filled(p.intent.client_order_id))
        assert not of(ev.SetLeverage, after), name


def test_a_foreign_position_is_reported_left_alone_and_holds_a_slot() -> None:
    machine = session()
    foreign = held("BBBUSDT", 50, T - 100 * NS_PER_HOUR, stop=math.nan)
    machine.handle(ev.Started(T))
    alerts = of(ev.Alert, machine.handle(ev.AccountRead(T, account(foreign), ev.Purpose.START)))
    assert len(alerts) == 1
    assert "not ours, left alone" in alerts[0].text
    out = decide(machine, bar(0.05, 0.2, 0.04, np.nan), account(foreign))
    assert not of(ev.PlaceOrder, out)  # far beyond its holding time, but not ours to close
    assert [i.symbol for i in of(ev.SetLeverage, out)] == ["AAAUSDT"]
    assert machine._cycle is not None
    assert not machine._cycle.entries  # BTC would be the third


def test_a_position_without_its_stop_is_reported_then_closed() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    bare = held("BBBUSDT", 50, stop=math.nan)
    nothing = bar(np.nan, np.nan, np.nan, np.nan)
    assert not of(ev.PlaceOrder, decide(machine, nothing, account(bare)))
    first = machine.handle(ev.AccountRead(T, account(bare), ev.Purpose.VERIFY))
    assert any("stop of the open position" in a.text for a in of(ev.Alert, first))
    assert of(ev.CycleDone, first)
    later = T + NS_PER_HOUR
    decide(machine, bar(np.nan, np.nan, np.nan, np.nan, at=later), account(bare, at=later))
    second = machine.handle(ev.AccountRead(later, account(bare, at=later), ev.Purpose.VERIFY))
    (close,) = of(ev.PlaceOrder, second)
    assert close.request.reduce_only
    assert close.intent.exit_kind is ExitKind.RISK
    assert not of(ev.CycleDone, second)
    after = machine.handle(filled(close.intent.client_order_id))
    assert of(ev.ReadAccount, after) == [ev.ReadAccount(ev.Purpose.VERIFY)]
    machine._tracker.note_fill(Fill(later, "BBBUSDT", -50, 100.0, 0.0, client_order_id=close.intent.client_order_id))
    assert of(ev.CycleDone, machine.handle(ev.AccountRead(later, account(at=later), ev.Purpose.VERIFY)))


def test_after_a_restart_orders_of_the_earlier_run_are_looked_up_first() -> None:
    intent = IntentRow("cqold", T - NS_PER_HOUR, "AAAUSDT", 5, True)
    machine = Session(SessionConfig("s1", RULES), PositionTracker(NS_PER_HOUR, 0), None, (intent,))
    out = machine.handle(ev.Started(T))
    assert out[0] == ev.LookUpOrder("AAAUSDT", "cqold", 1)
    assert machine.pending == ("AAAUSDT",)
    machine.handle(ev.OrderReported(T, "cqold", OrderStatus.CANCELED, 0))
    assert machine.pending == ()


def test_the_last_bar_takes_no_new_risk_and_flattens_when_told_to() -> None:
    for flatten, expected in ((False, []), (True, ["BBBUSDT"])):
        machine = session(flatten=flatten)
        own(machine, "BBBUSDT", 50)
        out = decide(machine, bar(0.2, np.nan, np.nan, np.nan, is_last=True), account(held("BBBUSDT", 50)))
        assert [p.request.symbol for p in of(ev.PlaceOrder, out)] == expected
        assert not of(ev.SetLeverage, out)


def test_a_drawdown_halts_and_stays_halted_after_a_restart() -> None:
    limits = RiskLimits(halt_drawdown=0.3)
    machine = session(limits=limits)
    decide(machine, bar(np.nan, np.nan, np.nan, np.nan), account(equity=10_000.0))
    later = T + NS_PER_HOUR
    out = decide(machine, bar(0.2, np.nan, np.nan, np.nan, at=later), account(equity=6_900.0, at=later))
    assert machine.risk.mode is Mode.HALTED
    assert not of(ev.SetLeverage, out)
    (saved,) = of(ev.SaveRisk, out)
    assert saved.voices["drawdown"][0] is Mode.HALTED
    restarted = Session(SessionConfig("s1", RULES, limits), PositionTracker(NS_PER_HOUR, 0), machine.risk)
    out = decide(restarted, bar(0.2, np.nan, np.nan, np.nan, at=later), account(equity=12_000.0, at=later))
    assert not of(ev.SetLeverage, out)

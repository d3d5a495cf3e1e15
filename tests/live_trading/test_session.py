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
    return look(machine, ev.AccountRead(event.ts_ns, state, ev.Purpose.DECIDE))


def look(machine: Session, read: ev.AccountRead) -> list[ev.Instruction]:
    """Hand an account in; a difference is believed on the second look only."""
    out = machine.handle(read)
    return machine.handle(read) if out and out[-1] == ev.ReadAccount(read.purpose) else out


def of(kind: type, instructions: list[ev.Instruction]) -> list:  # type: ignore[type-arg]
    return [i for i in instructions if isinstance(i, kind)]


def own(machine: Session, symbol: str, lots: int, at: int = T - NS_PER_HOUR, stop: float | None = 90.0) -> None:
    """Let the tracker know a position as ours."""
    intent = IntentRow(f"old{symbol}", at, symbol, lots, True, None, 3.0, stop, None, 0.01)
    machine._state.tracker.note_intent(intent)
    machine._state.tracker.note_fill(Fill(at, symbol, lots, 100.0, 0.0, client_order_id=f"old{symbol}"))


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
    assert of(ev.ReadFills, after)
    assert not of(ev.SetLeverage, after)
    after = machine.handle(ev.FillsRead(T, ()))
    assert not of(ev.SetLeverage, after)
    assert not of(ev.PlaceOrder, after)
    assert any("dropped" in a.text for a in of(ev.Alert, after))


@pytest.mark.parametrize(("taken", "is_free"), [(50, True), (20, False)])
def test_an_exit_that_came_after_the_take_profit_frees_its_slot_all_the_same(taken: int, is_free: bool) -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    own(machine, "CCCUSDT", 50)
    state = account(held("BBBUSDT", 50), held("CCCUSDT", 50))
    (leave,) = of(ev.PlaceOrder, decide(machine, bar(0.2, 0.001, np.nan, 0.01), state))
    machine.handle(ev.OrderReported(T, leave.intent.client_order_id, OrderStatus.REJECTED, 0, "nothing to reduce"))
    after = machine.handle(ev.FillsRead(T, (Fill(T, "BBBUSDT", -taken, 110.0, 0.0, exit_kind=ExitKind.TAKE_PROFIT),)))
    assert [i.symbol for i in of(ev.SetLeverage, after)] == (["AAAUSDT"] if is_free else [])
    assert any("dropped" in a.text for a in of(ev.Alert, after)) is not is_free


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
    assert machine._state.cycle is not None
    assert not machine._state.cycle.entries


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
    assert machine._state.cycle is not None
    assert not machine._state.cycle.entries  # BTC would be the third


NOTHING = (np.nan, np.nan, np.nan, np.nan)


def verify(machine: Session, state: AccountState) -> list[ev.Instruction]:
    return machine.handle(ev.AccountRead(state.as_of_ns, state, ev.Purpose.VERIFY))


def test_a_missing_stop_is_placed_alone_and_looked_at_again() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    bare = held("BBBUSDT", 50, stop=math.nan)
    decide(machine, bar(*NOTHING), account(bare))
    first = verify(machine, account(bare))
    (stop,) = of(ev.RestoreStop, first)
    assert (stop.symbol, stop.lots, stop.protection.stop_price) == ("BBBUSDT", 50, 90.0)
    assert any(a.severity is ev.Severity.CRITICAL for a in of(ev.Alert, first))
    assert not of(ev.CycleDone, first)
    again = machine.handle(ev.StopSent(T, "BBBUSDT"))
    assert again[-1] == ev.ReadAccount(ev.Purpose.VERIFY)
    assert of(ev.CycleDone, verify(machine, account(held("BBBUSDT", 50))))


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_position_that_stays_without_its_stop_is_closed_within_the_cycle(is_refused: bool) -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    bare = held("BBBUSDT", 50, stop=math.nan)
    decide(machine, bar(*NOTHING), account(bare))
    names = [of(ev.RestoreStop, verify(machine, account(bare)))[0].client_id]
    if is_refused:
        machine.handle(ev.StopRefused(T, "BBBUSDT", "the market is beyond it"))
    else:
        machine.handle(ev.StopSent(T, "BBBUSDT"))
        names.append(of(ev.RestoreStop, verify(machine, account(bare)))[0].client_id)
        machine.handle(ev.StopSent(T, "BBBUSDT"))
    assert len(set(names)) == len(names)
    (close,) = of(ev.PlaceOrder, verify(machine, account(bare)))
    assert close.request.reduce_only
    assert close.intent.exit_kind is ExitKind.RISK
    coid = close.intent.client_order_id
    after = machine.handle(ev.OrderReported(T, coid, OrderStatus.REJECTED, 0, "no"))
    assert of(ev.ReadAccount, after) == [ev.ReadAccount(ev.Purpose.VERIFY)]
    last = verify(machine, account(bare))  # it could not be closed either: said loudly, and tried anew with the next bar
    assert any("WITHOUT A STOP" in a.text for a in of(ev.Alert, last))
    assert of(ev.CycleDone, last)


def test_halted_a_missing_stop_is_still_placed_but_nothing_is_closed() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    machine.handle(ev.ModeVoiced(T, "operator", Mode.HALTED, "test"))
    bare = held("BBBUSDT", 50, stop=math.nan)
    decide(machine, bar(*NOTHING), account(bare))
    assert of(ev.RestoreStop, verify(machine, account(bare)))
    machine.handle(ev.StopRefused(T, "BBBUSDT", "no"))
    last = verify(machine, account(bare))
    assert not of(ev.PlaceOrder, last)
    assert of(ev.CycleDone, last)


def test_a_partly_filled_entry_that_still_rests_gets_its_stop_at_once() -> None:
    machine = session(max_lookups=1)
    coid = _sent(machine)
    machine.handle(ev.OrderReported(T, coid, OrderStatus.PARTIALLY_FILLED, 7))
    machine.handle(ev.OrderReported(T, coid, OrderStatus.PARTIALLY_FILLED, 7))
    assert machine.pending == ("AAAUSDT",)
    machine.handle(ev.FillsRead(T, (Fill(T, "AAAUSDT", 7, 100.0, 0.0, client_order_id=coid),)))
    (stop,) = of(ev.RestoreStop, verify(machine, account(held("AAAUSDT", 7, stop=math.nan))))
    assert (stop.symbol, stop.lots) == ("AAAUSDT", 7)


def test_the_start_restores_a_stop_that_went_missing_while_the_session_was_down() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    machine.handle(ev.Started(T))
    bare = account(held("BBBUSDT", 50, stop=math.nan))
    assert of(ev.RestoreStop, machine.handle(ev.AccountRead(T, bare, ev.Purpose.START)))


def test_a_position_that_differs_from_the_ledger_allows_exits_only_until_it_agrees() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    out = decide(machine, bar(0.2, np.nan, np.nan, np.nan), account(held("BBBUSDT", 70)))
    assert machine.risk.mode is Mode.REDUCE_ONLY
    assert machine.risk.voices["drift"][1] == "BBBUSDT: exchange holds 70 lots, ledger 50"
    assert not of(ev.SetLeverage, out)
    assert any(a.severity is ev.Severity.CRITICAL for a in of(ev.Alert, out))
    machine.handle(ev.Resumed(T, "a person cannot talk a difference away"))
    assert machine.risk.mode is Mode.REDUCE_ONLY
    later = T + NS_PER_HOUR
    out = decide(machine, bar(0.2, np.nan, np.nan, np.nan, at=later), account(held("BBBUSDT", 50), at=later))
    assert machine.risk.mode is Mode.ACTIVE
    assert of(ev.SetLeverage, out)


def test_what_is_foreign_is_told_once() -> None:
    machine = session()
    state = replace(account(held("BBBUSDT", 50)), pending_symbols=("CCCUSDT",))
    first = of(ev.Alert, decide(machine, bar(*NOTHING), state))
    assert ["BBBUSDT" in first[0].text, "CCCUSDT" in first[1].text, len(first)] == [True, True, 2]
    assert of(ev.Alert, verify(machine, state)) == []
    assert machine.risk.mode is Mode.ACTIVE


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


def test_asking_once_to_close_closes_once_however_often_it_is_read() -> None:
    ids = []
    for read_at in (T, T + NS_PER_HOUR):  # read again after a kill between the order and the answer
        machine = session()
        own(machine, "BBBUSDT", 50)
        asked = machine.handle(ev.CloseAsked(read_at, T - 5, ("BBBUSDT",)))
        assert asked[-1] == ev.ReadAccount(ev.Purpose.CLOSE)
        (close,) = of(ev.PlaceOrder, machine.handle(ev.AccountRead(read_at, account(held("BBBUSDT", 50)), ev.Purpose.CLOSE)))
        ids.append(close.intent.client_order_id)
    assert ids[0] == ids[1]

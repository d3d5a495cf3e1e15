"""What the session checks before and after it sends: the book of the moment, parts, rest, liquidation, balance, adoption."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.order import ExitKind, Fill, OrderKind, OrderStatus, Side
from crypto_qlib.exchange.gateway import Transfer
from crypto_qlib.live_trading import events as ev
from crypto_qlib.live_trading import session as session_module
from crypto_qlib.live_trading.order_checks import Held, Quote, correlation_refusal, entry_refusal
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.live_trading.risk_control import BALANCE, Mode, RiskLimits
from crypto_qlib.live_trading.session import Session, SessionConfig
from crypto_qlib.live_trading.wallet import Wallet, balance_of
from crypto_qlib.portfolio.market_state import MarketState
from crypto_qlib.portfolio.plan import Plan, PlannedOrder
from crypto_qlib.store.ledger import FundingRow
from crypto_qlib.store.live_events import EventKind
from tests.live_trading.paper_fakes import RULES
from tests.live_trading.test_session import (
    NOTHING,
    STATES,
    T,
    account,
    bar,
    decide,
    filled,
    held,
    look,
    of,
    own,
    session,
    verify,
)

CONTRACTS = STATES.at(T).contracts
CLOSE = float(STATES.at(T).close[0])
LIMITS = RiskLimits(max_price_deviation=0.02, max_order_risk=0.02, max_depth_share=0.5)
ENTRY = PlannedOrder("AAAUSDT", Side.BUY, 1000, 3.0, reduce_only=False, stop_price=0.95 * CLOSE, reference_price=CLOSE)
SEEN = ev.ContractsSeen(T, STATES.at(T).symbols, CONTRACTS)
AROUND = Quote(CLOSE * 0.9999, CLOSE * 1.0001)


@pytest.mark.parametrize(
    ("name", "order", "quote", "book", "expected"),
    [
        ("nothing speaks against it", {}, AROUND, {}, ""),
        ("the market ran away between close and order", {}, Quote(CLOSE * 1.03, CLOSE * 1.031), {}, "price sanity"),
        ("or came too cheap to be true", {}, Quote(CLOSE * 0.97, CLOSE * 0.971), {}, "price sanity"),
        ("the stop would fire at once (OKX 51280)", {"stop_price": CLOSE * 1.001}, AROUND, {}, "stop side"),
        ("higher leverage than the rules ask for", {"leverage": 3.5}, AROUND, {}, "leverage"),
        ("larger than one position may be", {"lots": 1_000_000}, AROUND, {}, "position size"),
        ("loses more at its stop than one order may", {"lots": 4600, "stop_price": CLOSE * 0.9}, AROUND, {}, "order risk"),
        ("no slot is left", {}, AROUND, {"BBBUSDT": 10.0, "CCCUSDT": -10.0}, "open positions"),
        ("gross exposure is used up", {}, AROUND, {"BBBUSDT": 31_000.0, "AAAUSDT": -400.0}, "gross exposure"),
        ("net exposure is used up", {}, AROUND, {"BBBUSDT": 4_400.0}, "net exposure"),
        (
            "liquidation comes before the stop",
            {"leverage": 3.0, "stop_price": CLOSE * 0.6, "lots": 50},
            AROUND,
            {},
            "stop before",
        ),
    ],
)
def test_an_entry_is_refused_by(name: str, order: dict, quote: Quote, book: dict, expected: str) -> None:  # type: ignore[type-arg]
    rules = RULES._replace(max_gross=3.0, max_net=0.3)
    found = entry_refusal(replace(ENTRY, **order), quote, Held(10_000.0, book), CONTRACTS, 0, rules, LIMITS)
    assert (str(found) if found else "")[: len(expected)] == expected, name
    assert bool(found) is bool(expected), name


def test_an_entry_is_measured_with_what_the_plan_closes_after_it_still_held() -> None:
    rules = RULES._replace(max_gross=3.0, max_net=0.3)
    held_now = {"BBBUSDT": 4_400.0}
    room_after_it = Held(10_000.0, held_now, {"CCCUSDT": 4_000.0, "DDDUSDT": -3_000.0})
    room_before_it = Held(10_000.0, held_now, {"DDDUSDT": -3_000.0, "CCCUSDT": 4_000.0})
    assert entry_refusal(ENTRY, AROUND, room_after_it, CONTRACTS, 0, rules, LIMITS) is None
    refusal = entry_refusal(ENTRY, AROUND, room_before_it, CONTRACTS, 0, rules, LIMITS)
    assert refusal is not None
    assert refusal.rule == "net exposure"


def alike(rng_seed: int = 1) -> MarketState:
    """Return the market in which BBB moves as AAA does, CCC the other way, and BTC by itself."""
    own_way = np.random.default_rng(rng_seed).normal(0.0, 0.01, (168, 2))
    returns = np.column_stack([own_way[:, 0], own_way[:, 0], own_way[:, 1], -own_way[:, 0]])
    return replace(STATES.at(T), returns=returns)


@pytest.mark.parametrize(
    ("name", "book", "limit", "refused"),
    [
        ("a name on the same side moves alike", {"BBBUSDT": 500.0}, 0.8, True),
        ("it is held the other way: a hedge", {"BBBUSDT": -500.0}, 0.8, False),
        ("one that moves the other way", {"CCCUSDT": 500.0}, 0.8, False),
        ("one that moves by itself", {"BTCUSDT": 500.0}, 0.8, False),
        ("no limit is set", {"BBBUSDT": 500.0}, 1.0, False),
        ("a foreign position the market does not show", {"ZZZUSDT": 500.0}, 0.8, False),
    ],
)
def test_an_entry_is_refused_at_the_gate_for_moving_like_what_is_held(
    name: str, book: dict[str, float], limit: float, refused: bool
) -> None:
    found = correlation_refusal(ENTRY, Held(10_000.0, book), alike(), RULES._replace(max_correlation=limit))
    assert (found is not None and found.rule == "correlation") is refused, name


def test_a_plan_that_breaks_the_correlation_limit_is_stopped_before_its_second_order(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = tuple(replace(ENTRY, symbol=s, lots=100, stop_price=1.0, leverage=1.0) for s in ("AAAUSDT", "BBBUSDT"))
    monkeypatch.setattr(session_module, "decide", lambda *_: Plan(T, twice))  # a decision that forgot the rule
    machine = session(rules=RULES._replace(max_correlation=0.8))
    machine.handle(SEEN)
    event = replace(bar(0.05, 0.05, np.nan, np.nan), market=alike())
    (leverage,) = of(ev.SetLeverage, decide(machine, event, account()))
    (place,) = of(ev.PlaceOrder, machine.handle(ev.LeverageSet(T, "AAAUSDT", leverage.leverage)))
    after = machine.handle(filled(place.intent.client_order_id))
    assert not of(ev.SetLeverage, after)
    assert not of(ev.PlaceOrder, after)
    assert "entry of BBBUSDT dropped: correlation limit 0.8, actual 1" in of(ev.Alert, after)[0].text


def test_a_position_whose_exit_failed_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = PlannedOrder("BBBUSDT", Side.SELL, 50, 3.0, reduce_only=True, reason=ExitKind.TIME)
    entries = tuple(replace(ENTRY, symbol=s, lots=100, stop_price=1.0, leverage=1.0) for s in ("AAAUSDT", "BTCUSDT"))
    monkeypatch.setattr(session_module, "decide", lambda *_: Plan(T, (leaving, *entries)))
    machine = session(rules=RULES._replace(max_correlation=0.8, max_open=3))
    machine.handle(SEEN)
    own(machine, "BBBUSDT", 50)
    event = replace(bar(0.05, 0.05, np.nan, np.nan), market=alike())
    (leave,) = of(ev.PlaceOrder, decide(machine, event, account(held("BBBUSDT", 50))))
    machine.handle(ev.OrderReported(T, leave.intent.client_order_id, OrderStatus.REJECTED, 0, "no"))
    after = machine.handle(ev.FillsRead(T, ()))  # its stop has not closed it either
    assert any("entry of AAAUSDT dropped: correlation" in a.text for a in of(ev.Alert, after))


def test_the_book_is_read_before_an_entry_and_without_one_nothing_is_sent() -> None:
    machine = session(limits=LIMITS)
    machine.handle(SEEN)
    out = decide(machine, bar(0.05, np.nan, np.nan, np.nan), account())
    assert of(ev.ReadBook, out) == [ev.ReadBook("AAAUSDT", 0.01)]
    assert not of(ev.SetLeverage, out)
    after = machine.handle(ev.BookRead(T, "AAAUSDT", None))
    assert "could not be read" in of(ev.Alert, after)[0].text
    assert not of(ev.SetLeverage, after)
    machine = session(limits=LIMITS)
    machine.handle(SEEN)
    decide(machine, bar(0.05, np.nan, np.nan, np.nan), account())
    assert of(ev.SetLeverage, machine.handle(ev.BookRead(T, "AAAUSDT", AROUND)))


def entry_parts(ask_lots: float) -> list[int]:
    """Return the sizes of the orders one entry is sent in where the book shows so many lots."""
    machine = session(limits=LIMITS)
    machine.handle(SEEN)
    decide(machine, bar(0.05, np.nan, np.nan, np.nan), account())
    leverage = of(ev.SetLeverage, machine.handle(ev.BookRead(T, "AAAUSDT", replace(AROUND, ask_lots=ask_lots))))[0]
    out = machine.handle(ev.LeverageSet(T, "AAAUSDT", leverage.leverage))
    sizes, ids = [], set()
    while placed := of(ev.PlaceOrder, out):
        (part,) = placed  # one after the other
        sizes.append(part.request.lots)
        ids.add(part.intent.client_order_id)
        out = machine.handle(filled(part.intent.client_order_id))
    assert len(ids) == len(sizes)
    assert of(ev.ReadAccount, out) == [ev.ReadAccount(ev.Purpose.VERIFY)]
    return sizes


def test_an_order_larger_than_its_share_of_the_book_is_sent_in_parts() -> None:
    (whole,) = entry_parts(1e9)
    parts = entry_parts(whole / 1.5)
    assert sum(parts) == whole
    assert len(parts) == math.ceil(whole / math.floor(0.5 * whole / 1.5))
    assert max(parts) - min(parts) <= 1
    assert max(parts) <= 0.5 * whole / 1.5


def test_an_exit_larger_than_the_largest_market_order_is_sent_in_parts_at_once() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    machine.handle(replace(SEEN, contracts=replace(CONTRACTS, max_lots=np.full(4, 20.0))))
    out = decide(machine, bar(*NOTHING), account(held("BBBUSDT", 50, T - 9 * NS_PER_HOUR)))
    exits = of(ev.PlaceOrder, out)
    assert [e.request.lots for e in exits] == [17, 17, 16]
    assert len({e.intent.client_order_id for e in exits}) == 3
    for placed in exits[:2]:
        assert machine.handle(filled(placed.intent.client_order_id)) == []
    assert of(ev.ReadAccount, machine.handle(filled(exits[2].intent.client_order_id)))


def resting(machine: Session) -> str:
    """Let the machine send an entry that rests, and the exchange take it."""
    leverage = of(ev.SetLeverage, decide(machine, bar(0.05, np.nan, np.nan, np.nan), account()))[0]
    (place,) = of(ev.PlaceOrder, machine.handle(ev.LeverageSet(T, "AAAUSDT", leverage.leverage)))
    assert place.request.kind is OrderKind.POST_ONLY
    assert place.request.price == place.intent.limit_price
    assert place.intent.expires_ns == T + NS_PER_HOUR
    coid = place.intent.client_order_id
    out = machine.handle(ev.OrderReported(T, coid, OrderStatus.LIVE, 0))
    assert not of(ev.LookUpOrder, out)  # it rests: nobody waits for it
    assert of(ev.ReadAccount, out) == [ev.ReadAccount(ev.Purpose.VERIFY)]
    assert machine.pending == ("AAAUSDT",)  # and holds its slot
    return coid


RESTING_RULES = RULES._replace(entry_order=2, entry_offset=0.001)


def test_an_entry_that_rests_is_cancelled_before_the_decision_it_expires_at() -> None:
    machine = session(rules=RESTING_RULES)
    coid = resting(machine)
    out = machine.handle(bar(*NOTHING, at=T + NS_PER_HOUR))
    assert out[:2] == [ev.CancelOrder("AAAUSDT", coid), ev.LookUpOrder("AAAUSDT", coid, 1)]
    machine.handle(ev.CancelAnswered(T, coid))
    (again,) = machine.handle(ev.OrderReported(T, coid, OrderStatus.LIVE, 0))  # not gone yet: it is looked at again
    assert again == ev.LookUpOrder("AAAUSDT", coid, 2)
    machine.handle(ev.OrderReported(T, coid, OrderStatus.CANCELED, 3))
    assert machine.pending == ()


def test_a_stricter_mode_withdraws_what_rests_at_once() -> None:
    machine = session(rules=RESTING_RULES)
    coid = resting(machine)
    out = machine.handle(ev.ModeVoiced(T, "operator", Mode.REDUCE_ONLY, "asked"))
    assert of(ev.CancelOrder, out) == [ev.CancelOrder("AAAUSDT", coid)]


def test_a_resting_entry_follows_the_market_step_by_step_and_not_beyond_its_bound() -> None:
    machine = session(rules=RESTING_RULES, limits=RiskLimits(reprice_distance=0.0005, max_reprice=0.002))
    coid = resting(machine)
    planned = machine._state.open[coid].limit_price
    assert planned is not None

    def asked(bid: float) -> list[ev.Instruction]:
        out = machine.handle(ev.CheckDue(T + 1))
        assert of(ev.ReadBook, out)
        return of(ev.AmendOrder, machine.handle(ev.BookRead(T + 1, "AAAUSDT", Quote(bid, bid * 1.0001))))

    assert asked(planned * 1.0004) == []  # too near to move for
    assert asked(planned * 0.99) == []  # a market that comes nearer is waited for
    (amend,) = asked(planned * 1.001)
    assert amend == ev.AmendOrder("AAAUSDT", coid, planned * 1.001)
    machine.handle(ev.Amended(T + 1, coid, amend.price, is_known=False))
    assert asked(planned * 1.001) == [amend]  # nobody knows whether it stands: asked for again
    machine.handle(ev.Amended(T + 1, coid, amend.price))
    assert asked(planned * 1.0011) == []
    (last,) = asked(planned * 1.05)
    assert last.price == pytest.approx(planned * 1.002)
    machine.handle(ev.Amended(T + 1, coid, last.price))
    assert asked(planned * 1.06) == []


def test_an_entry_whose_position_closed_meanwhile_is_withdrawn() -> None:
    machine = session(rules=RESTING_RULES)
    coid = resting(machine)
    fills = (
        Fill(T, "AAAUSDT", 3, 100.0, 0.0, client_order_id=coid),
        Fill(T, "AAAUSDT", -3, 94.0, 0.0, exit_kind=ExitKind.STOP),
    )
    assert not of(ev.CancelOrder, machine.handle(ev.FillsRead(T, fills[:1])))
    assert of(ev.CancelOrder, machine.handle(ev.FillsRead(T, fills[1:]))) == [ev.CancelOrder("AAAUSDT", coid)]


def test_a_stop_that_covers_a_part_only_is_placed_over_the_whole() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    part = replace(held("BBBUSDT", 50), unprotected_lots=20)
    decide(machine, bar(*NOTHING), account(part))
    out = verify(machine, account(part))
    (stop,) = of(ev.RestoreStop, out)
    assert (stop.symbol, stop.lots) == ("BBBUSDT", 50)
    assert "20 of 50" in of(ev.Alert, out)[0].text


def test_a_stop_beyond_the_liquidation_price_closes_the_position() -> None:
    machine = session()
    own(machine, "BBBUSDT", 50)
    late = replace(held("BBBUSDT", 50, stop=90.0), liquidation_price=91.0)
    decide(machine, bar(*NOTHING), account(late))
    (close,) = of(ev.PlaceOrder, verify(machine, account(late)))
    assert (close.request.reduce_only, close.intent.exit_kind) == (True, ExitKind.RISK)


def test_near_liquidation_the_nearest_position_is_closed_first_and_nothing_while_halted() -> None:
    limits = RiskLimits(deleverage_ratio=1.2)
    far, near = held("BBBUSDT", 50), held("CCCUSDT", -50, stop=200.0)
    positions = (
        replace(far, stop_price=far.mark * 0.95, liquidation_price=far.mark * 0.8),
        replace(near, stop_price=near.mark * 1.01, liquidation_price=near.mark * 1.02),
    )
    for mode, expected in ((Mode.ACTIVE, ["CCCUSDT"]), (Mode.REDUCE_ONLY, ["CCCUSDT"]), (Mode.HALTED, [])):
        machine = session(limits=limits)
        own(machine, "BBBUSDT", 50)
        own(machine, "CCCUSDT", -50, stop=200.0)
        machine.handle(ev.ModeVoiced(T, "operator", mode, "test"))
        machine.handle(ev.CheckDue(T))
        thin = replace(account(*positions), margin_ratio=1.15)
        out = look(machine, ev.AccountRead(T, thin, ev.Purpose.CHECK))
        assert [p.request.symbol for p in of(ev.PlaceOrder, out)] == expected
        alerts = [a for a in of(ev.Alert, out) if a.kind is EventKind.NEAR_LIQUIDATION]
        assert [a.symbol for a in alerts] == ["CCCUSDT"]
        if expected:  # looked at again when it is closed: sound now, the other one stays
            coid = of(ev.PlaceOrder, out)[0].intent.client_order_id
            assert machine.handle(filled(coid))
            machine.handle(ev.FillsRead(T, (Fill(T, "CCCUSDT", 50, 100.0, 0.0, client_order_id=coid),)))
            after = verify(machine, replace(account(positions[0]), margin_ratio=5.0))
            assert not of(ev.PlaceOrder, after)


def test_exposure_and_count_beyond_their_limits_allow_exits_only_until_they_are_within() -> None:
    machine = session(limits=RiskLimits(max_gross=0.4, max_open=2))
    for name, lots in (("AAAUSDT", 30), ("BBBUSDT", 30)):
        own(machine, name, lots)
    heavy = account(held("AAAUSDT", 30), held("BBBUSDT", 30), equity=100.0)
    machine.handle(ev.CheckDue(T))
    out = look(machine, ev.AccountRead(T, heavy, ev.Purpose.CHECK))
    assert machine.risk.voices["exposure"][0] is Mode.REDUCE_ONLY
    assert any("exposure limit 0.4" in a.text for a in of(ev.Alert, out))
    machine.handle(ev.Resumed(T, "a person cannot talk it away"))
    assert "exposure" in machine.risk.voices
    machine.handle(ev.CheckDue(T))
    look(machine, ev.AccountRead(T, replace(heavy, equity=1e6), ev.Purpose.CHECK))
    assert machine.risk.mode is Mode.ACTIVE


# ---- the balance

WATCHED = RiskLimits(balance_tolerance=1e-4)


def test_the_balance_follows_fills_fees_and_funding_and_ignores_prices() -> None:
    wallet = Wallet()
    start = account(held("BBBUSDT", 50))
    assert wallet.difference(start) == 0.0
    per_lot = {"BBBUSDT": 0.01, "AAAUSDT": 0.01}
    mark = start.positions[0].avg_entry
    wallet.note_fills([Fill(T, "BBBUSDT", -20, mark + 5.0, 0.3), Fill(T, "AAAUSDT", 10, 50.0, 0.1)], per_lot)
    wallet.note_funding([FundingRow("1", T, "BBBUSDT", -0.25)])
    left = replace(start.positions[0], lots=30, qty=0.3, mark=mark + 7.0)
    new = replace(held("AAAUSDT", 10), avg_entry=50.0, mark=40.0, qty=0.1)
    cash = 10_000.0 + 5.0 * 0.2 - 0.3 - 0.1 - 0.25
    equity = cash + 0.3 * 7.0 - 0.1 * 10.0
    seen = replace(start, equity=equity, positions=(left, new))
    assert balance_of(seen) == pytest.approx(cash)
    assert wallet.difference(seen) == pytest.approx(0.0, abs=1e-9)
    again = Wallet(wallet.saved())  # a restart compares with the same figure
    assert again.difference(seen) == pytest.approx(0.0, abs=1e-9)
    assert again.difference(replace(seen, equity=equity - 3.0)) == pytest.approx(-3.0)


def test_a_balance_nobody_explains_is_looked_at_twice_then_allows_exits_until_a_person_resumes() -> None:
    machine = session(limits=WATCHED)
    machine.handle(ev.Started(T))
    machine.handle(ev.FundingRead(T, ()))
    machine.handle(ev.AccountRead(T, account(), ev.Purpose.START))
    machine.handle(ev.CheckDue(T))
    machine.handle(ev.FundingRead(T, ()))
    short = account(equity=9_900.0)
    first = machine.handle(ev.AccountRead(T, short, ev.Purpose.CHECK))
    assert of(ev.ReadTransfers, first)
    assert machine.risk.mode is Mode.ACTIVE
    machine.handle(ev.TransfersRead(T, ()))
    out = machine.handle(ev.AccountRead(T, short, ev.Purpose.CHECK))
    assert machine.risk.voices[BALANCE][0] is Mode.REDUCE_ONLY
    assert any(a.kind is EventKind.DRIFT and a.facts["difference"] == pytest.approx(-100.0) for a in of(ev.Alert, out))
    machine.handle(ev.Resumed(T, "seen"))
    machine.handle(ev.CheckDue(T))
    machine.handle(ev.FundingRead(T, ()))
    machine.handle(ev.AccountRead(T, short, ev.Purpose.CHECK))
    assert machine.risk.mode is Mode.ACTIVE


def test_money_paid_in_or_out_is_neither_a_difference_nor_a_gain_nor_a_loss() -> None:
    machine = session(limits=replace(WATCHED, halt_drawdown=0.3))
    machine.handle(ev.Started(T))
    machine.handle(ev.FundingRead(T, ()))
    machine.handle(ev.AccountRead(T, account(), ev.Purpose.START))
    decide(machine, bar(*NOTHING), account())
    machine.handle(ev.CheckDue(T))
    machine.handle(ev.FundingRead(T, ()))
    poorer = account(equity=5_000.0)
    assert of(ev.ReadTransfers, machine.handle(ev.AccountRead(T, poorer, ev.Purpose.CHECK)))
    (alert, _) = machine.handle(ev.TransfersRead(T, (Transfer("7", T, -5_000.0),)))
    assert isinstance(alert, ev.Alert)
    assert "out of the account" in alert.text
    machine.handle(ev.AccountRead(T, poorer, ev.Purpose.CHECK))
    assert machine.risk.mode is Mode.ACTIVE  # no difference, and no drawdown of a half either
    assert machine.risk.peak_equity == pytest.approx(5_000.0)


# ---- adoption


def test_a_foreign_position_is_adopted_when_told_gets_a_stop_and_leaves_like_our_own() -> None:
    machine = session(adopt=True)
    foreign = held("BBBUSDT", 50, T, stop=math.nan)
    machine.handle(ev.Started(T))
    (adopted,) = of(ev.AdoptPosition, machine.handle(ev.AccountRead(T, account(foreign), ev.Purpose.START)))
    assert adopted.fill.signed_lots == 50
    assert adopted.intent.stop_price == pytest.approx(foreign.mark * 0.95)
    again = machine.handle(ev.PositionAdopted(T, adopted.fill))
    assert again[-1] == ev.ReadAccount(ev.Purpose.CHECK)
    (stop,) = of(ev.RestoreStop, look(machine, ev.AccountRead(T, account(foreign), ev.Purpose.CHECK)))
    assert stop.symbol == "BBBUSDT"
    rebuilt = PositionTracker.rebuild(RULES.frame_ns, RULES.cooldown_ns, [adopted.intent], [adopted.fill])
    restarted = Session(SessionConfig("s1", RULES), rebuilt)
    out = decide(restarted, bar(*NOTHING, at=T), account(held("BBBUSDT", 50, T - 9 * NS_PER_HOUR)))
    assert [p.request.symbol for p in of(ev.PlaceOrder, out)] == ["BBBUSDT"]


def test_asked_to_adopt_one_symbol_the_others_stay_foreign() -> None:
    machine = session()
    state = account(held("BBBUSDT", 50), held("CCCUSDT", 50))
    machine.handle(ev.Started(T))
    machine.handle(ev.AccountRead(T, state, ev.Purpose.START))
    machine.handle(ev.AdoptAsked(T, "CCCUSDT"))
    adopted = of(ev.AdoptPosition, machine.handle(ev.AccountRead(T, state, ev.Purpose.CHECK)))
    assert [a.intent.symbol for a in adopted] == ["CCCUSDT"]

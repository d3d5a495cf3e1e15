"""Voices about the way to the exchange: each trips, says why, and lifts as declared."""

from __future__ import annotations

import pytest

from crypto_qlib.core.clock import NS_PER_MS, NS_PER_S, ManualClock
from crypto_qlib.live_trading.risk_control import API, CLOCK, LATENCY, REJECTS, Mode, RiskState
from crypto_qlib.live_trading.system_watch import ClockOffset, SystemLimits, SystemWatch

LIMITS = SystemLimits(max_api_errors=3, max_rejects=3, max_latency_s=2.0, max_clock_skew_s=0.5)


def watch() -> SystemWatch:
    return SystemWatch(LIMITS, ManualClock(10 * NS_PER_S))


def fail(w: SystemWatch) -> None:
    for _ in range(3):
        w.failed("no answer")


def refuse(w: SystemWatch) -> None:
    for _ in range(3):
        w.order_ended(refused=True)


def skew(w: SystemWatch, seconds: float) -> None:
    w.clock_read(ClockOffset.measured(0, int(seconds * NS_PER_S), 0))


@pytest.mark.parametrize(
    ("voice", "trip", "lift", "why"),
    [
        (API, fail, lambda w: w.answered(0.1), "3 requests in a row failed: no answer"),
        (LATENCY, lambda w: w.answered(2.5), lambda w: w.answered(0.1), "an answer took 2.5 s"),
        (CLOCK, lambda w: skew(w, -1.0), lambda w: skew(w, 0.4), "the exchange's clock is -1.00 s off ours"),
        (REJECTS, refuse, None, "3 orders in a row were refused"),
    ],
)
def test_a_voice_trips_once_says_why_and_lifts_as_declared(voice, trip, lift, why) -> None:  # type: ignore[no-untyped-def]
    w = watch()
    assert w.changes(1, ()) == []
    trip(w)
    (said,) = w.changes(1, ())
    assert (said.voice, said.mode) == (voice, Mode.REDUCE_ONLY)
    assert said.reason.startswith(why)
    assert w.changes(1, {voice}) == []
    state = RiskState().with_voice(voice, said.mode, said.reason)
    if lift is None:  # a person lifts it, and it does not trip again for what was seen
        assert voice not in state.resumed(forgives_drawdown=False).voices
        assert w.changes(1, ()) == []
        refuse(w)
        assert w.changes(1, ())
        return
    assert voice in state.resumed(forgives_drawdown=True).voices  # a person cannot talk it down
    lift(w)
    (back,) = w.changes(1, {voice})
    assert (back.voice, back.mode) == (voice, Mode.ACTIVE)


def test_one_failure_less_or_a_success_in_between_trips_nothing() -> None:
    w = watch()
    for _ in range(2):
        w.failed("no answer")
        w.failed("no answer")
        w.answered(0.1)
        w.order_ended(refused=True)
        w.order_ended(refused=True)
        w.order_ended(refused=False)
    assert w.changes(1, ()) == []


def test_limits_of_zero_watch_nothing() -> None:
    w = SystemWatch(SystemLimits(), ManualClock(0))
    fail(w)
    refuse(w)
    w.answered(1e9)
    skew(w, 1e6)
    assert w.changes(1, ()) == []
    assert not w.clock_is_due


def test_a_slow_answer_makes_the_clock_uncertain_rather_than_wrong() -> None:
    offset = ClockOffset.measured(0, 3 * NS_PER_S, 4 * NS_PER_S)  # asked at 0, answered after 4 s, the server says 3 s
    assert (offset.offset_s, offset.error_s) == (1.0, 2.0)
    assert not offset.exceeds(0.5)
    exact = ClockOffset.measured(0, 700 * NS_PER_MS, 10 * NS_PER_MS)
    assert exact.exceeds(0.5)


def test_the_clock_is_asked_for_once_a_minute() -> None:
    clock = ManualClock(0)
    w = SystemWatch(LIMITS, clock)
    assert w.clock_is_due
    skew(w, 0.0)
    clock.advance_to(59 * NS_PER_S)
    assert not w.clock_is_due
    clock.advance_to(60 * NS_PER_S)
    assert w.clock_is_due

"""Limits of the running session."""

from __future__ import annotations

import math

import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.live_trading.risk_control import Mode, Observation, RiskLimits, RiskState, observe, risk_from_json

LIMITS = RiskLimits(max_daily_loss=0.1, halt_drawdown=0.3, min_fresh_share=0.9, min_margin_ratio=1.5)
NOON = 20_000 * NS_PER_DAY + 12 * NS_PER_HOUR


def see(state: RiskState, equity: float, at: int = NOON, ratio: float = math.inf, fresh: float = 1.0):  # type: ignore[no-untyped-def]
    return observe(state, Observation(at, equity, ratio, fresh), LIMITS)


@pytest.mark.parametrize(
    ("name", "equity", "ratio", "fresh", "rules", "mode"),
    [
        ("all is well", 99.0, 3.0, 1.0, [], Mode.ACTIVE),
        ("more than a tenth lost today", 89.9, 3.0, 1.0, ["daily_loss"], Mode.REDUCE_ONLY),
        ("thin margin", 100.0, 1.49, 1.0, ["margin"], Mode.REDUCE_ONLY),
        ("unknown margin is no verdict", 100.0, math.nan, 1.0, [], Mode.ACTIVE),
        ("partial data", 100.0, 3.0, 0.89, ["stale_data"], Mode.REDUCE_ONLY),
        ("the strictest voice wins", 70.0, 3.0, 0.5, ["stale_data", "daily_loss", "drawdown"], Mode.HALTED),
    ],
)
def test_each_limit_speaks_for_itself(
    name: str, equity: float, ratio: float, fresh: float, rules: list[str], mode: Mode
) -> None:
    state, _ = see(RiskState(), 100.0)
    state, tripped = see(state, equity, ratio=ratio, fresh=fresh)
    assert [veto.rule for veto in tripped] == rules, name
    assert state.mode is mode, name


def test_a_voice_is_announced_once_and_lifts_when_its_cause_is_gone() -> None:
    state, _ = see(RiskState(), 100.0)
    state, first = see(state, 100.0, fresh=0.1)
    state, again = see(state, 100.0, fresh=0.1)
    assert (len(first), len(again)) == (1, 0)
    assert state.mode is Mode.REDUCE_ONLY
    state, _ = see(state, 100.0)
    assert state.mode is Mode.ACTIVE


def test_the_days_loss_lifts_at_midnight_but_a_drawdown_stays() -> None:
    state, _ = see(RiskState(), 100.0)
    state, _ = see(state, 85.0)
    assert state.mode is Mode.REDUCE_ONLY
    state, _ = see(state, 85.0, at=NOON + NS_PER_DAY)
    assert state.mode is Mode.ACTIVE
    state, _ = see(state, 69.0, at=NOON + NS_PER_DAY)
    assert state.mode is Mode.HALTED
    state, _ = see(state, 200.0, at=NOON + 9 * NS_PER_DAY)
    assert state.mode is Mode.HALTED
    assert state.with_voice("drawdown", Mode.ACTIVE, "operator").mode is Mode.ACTIVE


def test_limits_at_one_are_off() -> None:
    off = RiskLimits(max_daily_loss=1.0, halt_drawdown=1.0, min_fresh_share=0.0, min_margin_ratio=1.0)
    state, tripped = observe(RiskState({}, 100.0, NOON // NS_PER_DAY, 100.0), Observation(NOON, 0.1, 2.0, 0.0), off)
    assert tripped == ()
    assert state.mode is Mode.ACTIVE


def test_the_state_survives_the_ledger() -> None:
    state = RiskState({"operator": (Mode.HALTED, "why")}, 123.0, 7, 99.0)
    saved = {"voices": {"operator": [2, "why"]}, "peak_equity": 123.0, "day": 7, "day_start_equity": 99.0}
    assert risk_from_json(saved) == state  # type: ignore[arg-type]
    assert risk_from_json(None) is None

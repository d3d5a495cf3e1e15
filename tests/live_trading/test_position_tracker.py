"""What the ledger knows of positions that the exchange does not."""

from __future__ import annotations

import math

import pytest

from crypto_qlib.core.account import AccountState, OpenPosition
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.order import ExitKind, Fill
from crypto_qlib.live_trading.position_tracker import PositionTracker
from crypto_qlib.store.ledger import IntentRow

H = NS_PER_HOUR
ENTRY = IntentRow("in", 10 * H, "AAAUSDT", 5, True, None, 3.0, 95.0, 110.0, 0.02)
SHORT = IntentRow("in", 10 * H, "AAAUSDT", -5, True, None, 3.0, 105.0, 90.0, 0.02)
LEAVE = IntentRow("out", 12 * H, "AAAUSDT", -5, False, ExitKind.TIME)


def opened(entry: IntentRow = ENTRY) -> PositionTracker:
    opening = Fill(10 * H, "AAAUSDT", entry.signed_lots, 100.0, 0.0, client_order_id="in")
    return PositionTracker.rebuild(H, 3 * H, [entry, LEAVE], [opening])


@pytest.mark.parametrize(
    ("name", "entry", "fill", "kind"),
    [
        ("our own exit", ENTRY, Fill(12 * H, "AAAUSDT", -5, 95.0, 0.0, client_order_id="out"), ExitKind.TIME),
        ("the exchange's word beats all", ENTRY, Fill(12 * H, "AAAUSDT", -5, 99.0, 0.0, exit_kind=ExitKind.ADL), ExitKind.ADL),
        ("below a long's stop", ENTRY, Fill(12 * H, "AAAUSDT", -5, 94.0, 0.0), ExitKind.STOP),
        ("slipped a little above it", ENTRY, Fill(12 * H, "AAAUSDT", -5, 95.1, 0.0), ExitKind.STOP),
        ("near the take-profit", ENTRY, Fill(12 * H, "AAAUSDT", -5, 109.8, 0.0), ExitKind.TAKE_PROFIT),
        ("above a short's stop", SHORT, Fill(12 * H, "AAAUSDT", 5, 106.0, 0.0), ExitKind.STOP),
        ("near a short's take-profit", SHORT, Fill(12 * H, "AAAUSDT", 5, 90.2, 0.0), ExitKind.TAKE_PROFIT),
    ],
)  # fmt: skip
def test_why_a_position_was_closed(name: str, entry: IntentRow, fill: Fill, kind: ExitKind) -> None:
    tracker = opened(entry)
    assert tracker.note_fill(fill) is kind, name
    assert tracker.lots("AAAUSDT") == 0


@pytest.mark.parametrize(
    ("name", "ts", "until"),
    [
        ("inside bar 12: from its close at 13", 12 * H + 5, 16 * H),
        ("a gap at the open of bar 12", 12 * H, 16 * H),
        ("a moment before the close", 13 * H - 1_000_000, 16 * H),
    ],
)
def test_a_stop_out_cools_down_from_the_close_of_its_bar(name: str, ts: int, until: int) -> None:
    tracker = opened()
    tracker.note_fill(Fill(ts, "AAAUSDT", -5, 94.0, 0.0))
    assert tracker.enrich(AccountState(0, 1.0, 1.0), (), 0.0).cooldown_until_ns == {"AAAUSDT": until}, name


def test_other_exits_do_not_cool_down() -> None:
    tracker = opened()
    tracker.note_fill(Fill(12 * H, "AAAUSDT", -5, 110.0, 0.0))
    assert tracker.enrich(AccountState(0, 1.0, 1.0), (), 0.0).cooldown_until_ns == {}


def test_our_positions_get_their_score_and_foreign_ones_leave_the_view() -> None:
    ours = OpenPosition("AAAUSDT", 5, 5.0, 100.0, 101.0, 3.0, 166.0, 10 * H)
    foreign = OpenPosition("BBBUSDT", -1, 1.0, 100.0, 101.0, 3.0, 33.0, 1)
    state = AccountState(0, 90.0, 50.0, (ours, foreign))
    seen = opened().enrich(state, ("CCCUSDT",), 100.0)
    assert [p.symbol for p in seen.positions] == ["AAAUSDT"]
    assert seen.positions[0].entry_score == 0.02
    assert seen.pending_symbols == ("BBBUSDT", "CCCUSDT")
    assert seen.peak_equity == 100.0
    (mismatch,) = opened().mismatches(state)
    assert mismatch.is_foreign
    assert "exchange holds -1 lots, ledger 0" in str(mismatch)


def test_partial_closes_keep_the_position_and_its_terms() -> None:
    tracker = opened()
    tracker.note_fill(Fill(12 * H, "AAAUSDT", -2, 94.0, 0.0))
    assert tracker.lots("AAAUSDT") == 3
    assert tracker.expected_protection("AAAUSDT") == (95.0, 110.0)
    tracker.note_fill(Fill(12 * H, "AAAUSDT", -3, 94.0, 0.0))
    assert math.isnan(tracker.expected_protection("AAAUSDT")[0])


def test_what_others_trade_meanwhile_is_not_ours() -> None:
    tracker = opened()
    tracker.note_fill(Fill(12 * H, "BBBUSDT", 3, 100.0, 0.0))  # opened by hand
    tracker.note_fill(Fill(12 * H, "BBBUSDT", 3, 100.0, 0.0, client_order_id="byhand"))
    assert tracker.lots("BBBUSDT") == 0
    tracker.note_fill(Fill(12 * H, "AAAUSDT", 2, 100.0, 0.0))  # added by hand to ours
    assert tracker.lots("AAAUSDT") == 5
    tracker.note_fill(Fill(13 * H, "AAAUSDT", -9, 100.0, 0.0))  # turned round by hand: ours is closed, the rest is theirs
    assert tracker.lots("AAAUSDT") == 0
    assert tracker.last_fill_ns == 13 * H

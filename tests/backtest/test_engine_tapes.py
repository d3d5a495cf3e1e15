"""The venue's golden tapes through the compiled engine, with the same numbers worked by hand, and tapes of its own rules."""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from crypto_qlib.backtest.engine import run_backtest
from crypto_qlib.core.order import ExitKind
from crypto_qlib.venue.matching import EXIT_KIND_BY_CODE
from tests.backtest.engine_tape import inputs_of, play
from tests.venue.test_golden_tapes import ALL
from tests.venue.venue_tape import FLAT, B, Tape

NONE = B(math.nan, math.nan, math.nan, math.nan)
PAIR = {"AUSDT": FLAT, "BUSDT": FLAT}
TIME, STOP, REPLACED, DELISTED = ExitKind.TIME, ExitKind.STOP, ExitKind.REPLACED, ExitKind.DELISTED
BUY_A = {0: {"AUSDT": 0.5}}
BOUGHT = (0, "AUSDT", 10, 100.0, None)

PLAYED = [(tape, run) for tape in ALL if (run := inputs_of(tape)) is not None]


@dataclass(frozen=True)
class Own:
    """Bars and scores, and what must come of them; ``fills`` are (bar, symbol, signed lots, price, exit kind)."""

    name: str
    reason: str
    bars: list[Any]
    scores: dict[int, dict[str, float]]
    rules: dict[str, Any]
    fills: list[tuple[int, str, int, float, ExitKind | None]]
    cash: float
    equity: float
    rejected: int = 0
    expired: int = 0


OWN = [
    Own("a position leaves after its time", "two bars held: 899 + 100 + 20 - 1.02",
        [FLAT, FLAT, B(102, 102, 102, 102)], BUY_A, {"holding_bars": 2}, [BOUGHT, (2, "AUSDT", -10, 102.0, TIME)], 1017.98, 1017.98),
    Own("a time exit waits for a price", "due at bar 1, which is missing: 899 + 100 + 30 - 1.03",
        [FLAT, NONE, B(103, 103, 103, 103)], BUY_A, {"holding_bars": 1}, [BOUGHT, (2, "AUSDT", -10, 103.0, TIME)], 1027.97, 1027.97),
    Own("a stop the open has passed comes before a time exit", "both at the open of bar 1, at 93: 899 + 100 - 70 - 0.93",
        [FLAT, B(93, 97, 92, 96)], BUY_A, {"holding_bars": 1, "stop_atr": 5.0}, [BOUGHT, (1, "AUSDT", -10, 93.0, STOP)], 928.07, 928.07),
    Own("no more than the slots", "one slot, two good names: the better one",
        [PAIR], {0: {"AUSDT": 0.5, "BUSDT": 0.4}}, {"max_open": 1}, [BOUGHT], 899.0, 999.0),
    Own("the best is the largest expected return, short where it is negative", "-0.6 beats 0.3",
        [PAIR], {0: {"AUSDT": 0.3, "BUSDT": -0.6}}, {"max_open": 1}, [(0, "BUSDT", -10, 100.0, None)], 899.0, 999.0),
    Own("a better name replaces the worst", "0.6 - 0.002 cost beats 0.1 by 0.1: A out at 101 (998 + 10 - 0.01), B in at 100",
        [PAIR, {"AUSDT": B(101, 101, 101, 101), "BUSDT": FLAT}], {0: {"AUSDT": 0.3}, 1: {"AUSDT": 0.1, "BUSDT": 0.6}},
        {"max_open": 1, "replace_margin": 0.1},
        [BOUGHT, (1, "AUSDT", -10, 101.0, REPLACED), (1, "BUSDT", 10, 100.0, None)], 906.99, 1006.99),
    Own("a switch that does not pay is not made", "0.598 - 0.1 is below the margin 0.5",
        [PAIR, PAIR], {0: {"AUSDT": 0.3}, 1: {"AUSDT": 0.1, "BUSDT": 0.6}}, {"max_open": 1, "replace_margin": 0.5}, [BOUGHT], 899.0, 999.0),
    Own("a replaced position without a price stays, and its successor waits", "bar 1 of A is missing: B is refused",
        [PAIR, {"AUSDT": NONE, "BUSDT": FLAT}, PAIR], {0: {"AUSDT": 0.3}, 1: {"AUSDT": 0.1, "BUSDT": 0.6}},
        {"max_open": 1, "replace_margin": 0.1}, [BOUGHT], 899.0, 999.0, 1),
    Own("a stopped-out name pauses", "out at 95 in bar 1; two bars from its close; then 10.5 x 948.05 / 1000 = 9 lots",
        [FLAT, B(100, 100, 94, 100), FLAT, FLAT, FLAT], {k: {"AUSDT": 0.5} for k in range(5)}, {"cooldown_bars": 2, "stop_atr": 5.0},
        [BOUGHT, (1, "AUSDT", -10, 95.0, STOP), (4, "AUSDT", 9, 100.0, None)], 948.05 - 90.9, 948.05 - 0.9),
    Own("no entries below the drawdown brake", "948.05 of 1000 is more than 5 % down",
        [FLAT, B(100, 100, 94, 100), FLAT, FLAT], {k: {"AUSDT": 0.5} for k in range(4)}, {"max_drawdown": 0.05, "stop_atr": 5.0},
        [BOUGHT, (1, "AUSDT", -10, 95.0, STOP)], 948.05, 948.05),
    Own("an entry without a price is refused", "bar 0 of A is missing; a plan lives for one bar",
        [{"AUSDT": NONE, "BUSDT": FLAT}, PAIR], BUY_A, {}, [], 1000.0, 1000.0, 1),
    Own("an entry the margin cannot carry is refused", "97 lots at 104: 1008.8 of margin out of 1000",
        [B(104, 104, 104, 104)], BUY_A, {"position_fraction": 0.97}, [], 1000.0, 1000.0, 1),
    Own("decisions wait for their bar", "every second bar decides; the score of bar 1 is not traded",
        [FLAT, FLAT, FLAT], {1: {"AUSDT": 0.5}}, {"decide_every_bars": 2}, [], 1000.0, 1000.0),
    Own("a symbol whose bars end is closed at its last mark", "A ends with bar 1 at 104: 899 + 100 + 40 - 1.04",
        [PAIR, {"AUSDT": B(100, 105, 100, 104), "BUSDT": FLAT}, {"BUSDT": FLAT}], BUY_A, {},
        [BOUGHT, (2, "AUSDT", -10, 104.0, DELISTED)], 1037.96, 1037.96),
    Own("two names share the money", "ten lots each, fees 1 and 1", [PAIR], {0: {"AUSDT": 0.5, "BUSDT": 0.4}}, {},
        [BOUGHT, (0, "BUSDT", 10, 100.0, None)], 798.0, 998.0),
    Own("a target on the mark trades at last", "mark at 106 sets 105 off, but last stays at 100: 899 + 100 - 1",
        [FLAT, B(100, 100, 100, 100, mark=(100, 106, 100, 100))], BUY_A, {"stop_on_mark": True, "take_profit_atr": 5.0},
        [BOUGHT, (1, "AUSDT", -10, 100.0, ExitKind.TAKE_PROFIT)], 998.0, 998.0),
    Own("a target on the mark trades the basis worse", "at the highs last is 1 below the mark: 105 - 1; 899 + 100 + 40 - 1.04",
        [FLAT, B(100, 105, 100, 103, mark=(100, 106, 100, 103))], BUY_A, {"stop_on_mark": True, "take_profit_atr": 5.0},
        [BOUGHT, (1, "AUSDT", -10, 104.0, ExitKind.TAKE_PROFIT)], 1037.96, 1037.96),
    Own("funding at the entry is capped at what keeps the ratio at one", "200 due; margin 100, less 11 of requirement and a billionth of it",
        [B(100, 100, 100, 100, funding=0.2), FLAT], BUY_A, {}, [BOUGHT], 899.0, 910.0 - 1.1e-8),
    Own("funding at the entry is capped by the whole cross account", "1500 due; 999 of equity, less 11 of requirement and a billionth of it",
        [B(100, 100, 100, 100, funding=1.5), FLAT], BUY_A, {"cross": True, "stop_atr": 5.0}, [BOUGHT], 11.0 + 1.1e-8, 11.0 + 1.1e-8),
]  # fmt: skip


def kind_of(code: int) -> ExitKind | None:
    return EXIT_KIND_BY_CODE[code] if code else None


@pytest.mark.parametrize(("tape", "run"), PLAYED, ids=[tape.name.replace(" ", "_") for tape, _ in PLAYED])
def test_a_tape_of_the_venue_ends_the_same_in_the_engine(tape: Tape, run: Any) -> None:
    result = run_backtest(run)
    fills = [(int(f["bar"]), int(f["lots"]), kind_of(f["kind"])) for f in result.fills]
    # The venue says why its client closed (SIGNAL); the engine's own reason for an exit after some bars is TIME.
    expected = [(bar, lots, ExitKind.TIME if kind is ExitKind.SIGNAL else kind) for bar, lots, _, kind in tape.fills]
    assert sorted(fills, key=str) == sorted(expected, key=str), tape.reason
    prices = sorted(float(f["price"]) for f in result.fills)
    assert prices == pytest.approx(sorted(price for _, _, price, _ in tape.fills), rel=1e-12), tape.reason
    for name, value in (("cash", tape.cash), ("equity", tape.equity)):
        if not math.isnan(value):
            assert result.series[name][-1] == pytest.approx(value, rel=1e-9, abs=1e-9), tape.reason
    assert result.n_ambiguous_bars == tape.ambiguous, tape.reason


def test_at_least_forty_tapes_run_through_the_engine() -> None:
    assert len(PLAYED) + len(OWN) >= 40
    kinds = {kind for tape, _ in PLAYED for *_, kind in tape.fills if kind}
    assert kinds >= {
        ExitKind.STOP, ExitKind.TAKE_PROFIT, ExitKind.LIQUIDATION, ExitKind.PARTIAL_LIQUIDATION, ExitKind.TRAILING,
        ExitKind.SIGNAL, ExitKind.DELISTED,
    }  # fmt: skip


def assert_ends_as_worked(tape: Own) -> None:
    """Play a tape and compare fills, cash, equity and refusals with the numbers worked by hand."""
    result = run_backtest(play(tape.bars, tape.scores, 1_000.0, **tape.rules))
    fills = [
        (int(f["bar"]), result.symbols[f["symbol"]], int(f["lots"]), pytest.approx(f["price"], rel=1e-12), kind_of(f["kind"]))
        for f in result.fills
    ]
    assert fills == tape.fills, tape.reason
    assert result.series["cash"][-1] == pytest.approx(tape.cash), tape.reason
    assert result.equity[-1] == pytest.approx(tape.equity), tape.reason
    assert result.entries_rejected == tape.rejected, tape.reason
    assert result.entries_expired == tape.expired, tape.reason


@pytest.mark.parametrize("tape", OWN, ids=[tape.name.replace(" ", "_") for tape in OWN])
def test_a_tape_of_the_engine(tape: Own) -> None:
    assert_ends_as_worked(tape)

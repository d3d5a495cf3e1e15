"""The compiled rules one by one, where a whole tape would hide what is tested."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.core.order import ExitKind
from crypto_qlib.venue import funding_clock, liquidation, matching

NAN = math.nan
HOUR = 3_600 * 10**9
BOUNDS = np.array([100.0, 200.0, 300.0, 400.0])


@pytest.mark.parametrize(
    ("name", "level", "last_adverse", "mark_adverse", "on_mark", "expected"),
    [
        ("a last stop fills at its trigger", 95.0, 94.0, 96.0, False, 95.0),
        ("a mark stop with equal streams fills at its trigger", 95.0, 94.0, 94.0, True, 95.0),
        ("a mark stop with last below mark is moved down", 95.0, 92.0, 94.0, True, 93.0),
        ("a mark stop with last above mark is not moved up", 95.0, 96.0, 94.0, True, 95.0),
        ("a stop above the open fills at the open", 102.0, 94.0, 94.0, False, 100.0),
    ],
)
def test_stop_fill(name: str, level: float, last_adverse: float, mark_adverse: float, on_mark: bool, expected: float) -> None:
    assert matching.stop_fill(1.0, level, 100.0, last_adverse, mark_adverse, on_mark) == pytest.approx(expected), name
    mirrored = matching.stop_fill(-1.0, 200 - level, 100.0, 200 - last_adverse, 200 - mark_adverse, on_mark)
    assert mirrored == pytest.approx(200 - expected), name


@pytest.mark.parametrize(
    ("stop", "trailing", "expected"),
    [
        (NAN, NAN, (NAN, matching.STOP)),
        (95.0, NAN, (95.0, matching.STOP)),
        (NAN, 97.0, (97.0, matching.TRAILING)),
        (95.0, 97.0, (97.0, matching.TRAILING)),
        (97.0, 95.0, (97.0, matching.STOP)),
        (96.0, 96.0, (96.0, matching.STOP)),  # a tie counts as the fixed stop
    ],
)
def test_the_nearer_stop_of_a_long_is_the_higher_one(stop: float, trailing: float, expected: tuple[float, int]) -> None:
    level, code = matching.nearer_stop(1.0, stop, trailing)
    assert (level == pytest.approx(expected[0], nan_ok=True), code) == (True, expected[1])


@pytest.mark.parametrize(
    ("conservative", "kindest"),
    [
        # stop 95 and target 105 both inside 94..106: the target first
        ((matching.STOP, 95.0), (matching.TAKE_PROFIT, 105.0)),
        ((matching.LIQUIDATION, 91.0), (matching.TAKE_PROFIT, 105.0)),
    ],
)
def test_the_kindest_order_takes_the_profit_first(conservative: tuple[int, float], kindest: tuple[int, float]) -> None:
    assert matching.optimistic_exit(1.0, 106.0, 90.0, 106.0, 90.0, 105.0, 95.0, *conservative, False) == kindest


def test_the_kindest_order_lets_the_stop_save_what_could_not_be_told() -> None:
    got = matching.optimistic_exit(1.0, 100.0, 91.0, 100.0, 89.0, 110.0, 92.0, matching.LIQUIDATION, 91.0, False)
    assert got == (matching.STOP, 92.0)


@pytest.mark.parametrize(
    ("stop", "code", "is_ambiguous"),
    [
        # last falls to 90 and mark to 88: they differ by 2; the mark that liquidates is 91
        (93.1, matching.STOP, False),  # nearer by more than that
        (93.0, matching.LIQUIDATION, True),  # by just that: it cannot be told
        (90.0, matching.LIQUIDATION, True),  # the stop is further, but by less than that
        (89.0, matching.LIQUIDATION, False),  # it is not even hit
    ],
)
def test_a_stop_saves_only_where_it_is_nearer_by_more_than_the_streams_differ(
    stop: float, code: int, is_ambiguous: bool
) -> None:
    got = matching.intrabar_exit(1.0, 100.0, 100.0, 90.0, 100.0, 100.0, 88.0, stop, NAN, 91.0, False, False)
    assert (got[0], got[2]) == (code, is_ambiguous)


PRICES = st.floats(80.0, 120.0)
LEVELS = st.one_of(st.just(NAN), st.floats(70.0, 130.0))


@given(PRICES, PRICES, PRICES, PRICES, LEVELS, LEVELS, LEVELS, st.booleans(), st.booleans())
def test_long_and_short_are_mirror_images_in_a_bar(
    a: float, b: float, c: float, d: float, stop: float, target: float, liq: float, on_mark: bool, entered: bool
) -> None:
    opening, high, low = a, max(a, b, c), min(a, b, c)
    m_open, m_high, m_low = d, max(d, high), min(d, low)

    def flip(x: float) -> float:
        return 200.0 - x

    there = matching.intrabar_exit(1.0, opening, high, low, m_open, m_high, m_low, stop, target, liq, on_mark, entered)
    back = matching.intrabar_exit(
        -1.0, *(flip(x) for x in (opening, low, high, m_open, m_low, m_high, stop, target, liq)), on_mark, entered
    )
    # Flipping rounds in binary, so levels within a hair of an extreme may fall on either side of it.
    near = [
        abs(x - y) for x in (stop, target, liq) for y in (opening, high, low, m_open, m_high, m_low, stop, liq) if x is not y
    ]
    if min((gap for gap in near if not math.isnan(gap)), default=1.0) < 1e-9:
        return
    assert back[0] == there[0]
    assert flip(back[1]) == pytest.approx(there[1], nan_ok=True)


@given(PRICES, PRICES, PRICES, LEVELS, LEVELS, LEVELS)
def test_the_kindest_outcome_is_never_worse_than_the_booked_one(
    a: float, b: float, c: float, stop: float, target: float, liq: float
) -> None:
    high, low = max(a, b, c), min(a, b, c)
    if stop > a or liq > a or target < a or (liq > stop):
        return  # a position carried in survived the gap test, and its levels lie on their own sides
    code, raw, ambiguous = matching.intrabar_exit(1.0, a, high, low, a, high, low, stop, target, liq, False, False)
    if ambiguous:
        _, kind = matching.optimistic_exit(1.0, high, low, high, low, target, stop, code, raw, False)
        assert kind >= raw


def test_every_exit_code_has_a_name_of_its_own() -> None:
    assert len(set(matching.EXIT_KIND_BY_CODE.values())) == len(matching.EXIT_KIND_BY_CODE) == len(ExitKind)
    assert matching.NO_EXIT not in matching.EXIT_KIND_BY_CODE


@pytest.mark.parametrize(
    ("side", "limit", "high", "low", "expected"),
    [
        (1.0, 98.0, 101.0, 98.0, NAN),  # touch
        (1.0, 98.0, 101.0, 97.995, NAN),  # half a tick through
        (1.0, 98.0, 101.0, 97.99, 98.0),  # one tick through
        (-1.0, 102.0, 102.0, 99.0, NAN),
        (-1.0, 102.0, 102.01, 99.0, 102.0),
    ],
)
def test_limits_need_a_trade_through(side: float, limit: float, high: float, low: float, expected: float) -> None:
    assert matching.limit_fill_price(side, limit, high, low, 0.01) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("lots", "volume", "share", "expected"),
    [
        (10, NAN, 0.05, 10),
        (10, 100.0, 0.05, 5),
        (10, 99.9, 0.05, 4),
        (10, 0.0, 0.05, 0),
        (10, 1e9, 0.05, 10),
        (10, 1e21, 0.05, 10),  # a volume that 64 bits do not hold in lots limits nothing
        (10, 100.0, 0.0, 0),
    ],
)
def test_fillable_lots_round_down(lots: int, volume: float, share: float, expected: int) -> None:
    assert matching.fillable_lots(lots, volume, 1.0, share) == expected


def test_a_stop_in_a_wild_thin_bar_pays_the_bars_own_impact() -> None:
    calm = matching.stop_fill_price(-1.0, 100.0, 1e4, 1e9, 300.0, 1.0, 0.8, 1e-6, 100.1, 99.9, 1e7)
    wild = matching.stop_fill_price(-1.0, 100.0, 1e4, 1e9, 300.0, 1.0, 0.8, 1e-6, 110.0, 90.0, 1e5)
    # ln(110/90) x 0.60056 = 12.05 %; x 0.8 x sqrt(0.1) = 3.0487 %, plus 2 bp of doubled half spread
    assert wild == pytest.approx(100.0 * (1 - 0.030488 - 0.0002), abs=2e-3)
    assert calm == pytest.approx(100.0 * (1 - (0.8 * 300e-4 * math.sqrt(1e-5) + 0.0002)), abs=1e-3)


def test_slippage_never_goes_beyond_half_the_price() -> None:
    fill = matching.taker_fill_price(-1.0, 100.0, 1e12, 1.0, 1e4, 1.0, 0.8, 0.01, NAN, NAN, NAN)
    assert fill == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("name", "high", "low", "turnover", "expected"),
    [
        # a day's 300 bp x 0.8 x sqrt(1e4 / 1e9) = 0.759 bp, and 1 bp of half spread
        ("no turnover known: the month's figures", 110.0, 90.0, NAN, 100.01759),
        ("a calm, deep bar is not cheaper than the month", 100.001, 99.999, 1e12, 100.01759),
        # ln(110/90) x 0.60056 = 12.0517 %; x 0.8 x sqrt(0.1) = 304.88 bp, and 1 bp
        ("a wild, thin bar charges its own impact", 110.0, 90.0, 1e5, 103.0588),
        ("an order larger than the bar counts as the whole bar", 110.0, 90.0, 1e3, 109.6514),
        ("a bar without turnover counts as the whole bar", 110.0, 90.0, 0.0, 109.6514),
    ],
)
def test_a_market_order_pays_the_worse_of_the_months_and_the_bars_impact(
    name: str, high: float, low: float, turnover: float, expected: float
) -> None:
    fill = matching.taker_fill_price(1.0, 100.0, 1e4, 1e9, 300.0, 1.0, 0.8, 1e-6, high, low, turnover)
    assert fill == pytest.approx(expected, abs=2e-4), name


# -- liquidation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lots", "closed"),
    [
        (100, 100),  # tier 1: all
        (200, 200),  # tier 2: all
        (201, 101),  # tier 3 falls to the top of tier 1
        (300, 200),
        (301, 101),  # tier 4 falls to the top of tier 2
        (400, 200),
        (500, 300),  # beyond the table: as the last tier
    ],
)
def test_a_partial_step_drops_two_tiers(lots: int, closed: int) -> None:
    assert liquidation.partial_liquidation_lots(lots, 1.0, BOUNDS) == closed


@given(st.integers(1, 10**6), st.sampled_from([0.01, 0.1, 1.0]))
def test_partial_steps_always_end(lots: int, lot_size: float) -> None:
    steps = 0
    while lots:
        closed = liquidation.partial_liquidation_lots(lots, lot_size, BOUNDS)
        assert 0 < closed <= lots
        lots -= closed
        steps += 1
    assert steps <= 3


@pytest.mark.parametrize(
    ("open_slack", "adverse_slack", "expected"),
    [(10.0, 5.0, NAN), (10.0, -10.0, 0.5), (10.0, 0.0, 1.0), (0.0, 5.0, 0.0), (-1.0, -5.0, 0.0)],
)
def test_the_trigger_fraction_is_where_equity_meets_the_requirement(
    open_slack: float, adverse_slack: float, expected: float
) -> None:
    got = liquidation.trigger_fraction(20.0 + open_slack, 20.0, 30.0 + adverse_slack, 30.0)
    assert got == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "last", "mark", "stop", "on_mark", "expected"),
    [
        ("no stop: the extreme", 90.0, 90.0, NAN, False, 90.0),
        ("a stop that is not reached: the extreme", 90.0, 90.0, 89.0, False, 90.0),
        ("a nearer stop saves the way beyond it", 90.0, 90.0, 95.0, False, 95.0),
        ("mark below last at the extreme: the stop counts as far below", 92.0, 90.0, 95.0, False, 93.0),
        ("mark above last: no better than the stop", 90.0, 92.0, 95.0, False, 95.0),
        ("never beyond the extreme itself", 94.0, 90.0, 94.5, False, 90.5),
        ("a mark stop needs the mark", 90.0, 96.0, 95.0, True, 96.0),
    ],
)
def test_cross_adverse_mark(name: str, last: float, mark: float, stop: float, on_mark: bool, expected: float) -> None:
    assert liquidation.cross_adverse_mark(1.0, last, mark, stop, on_mark) == pytest.approx(expected), name
    assert liquidation.cross_adverse_mark(-1.0, 200 - last, 200 - mark, 200 - stop, on_mark) == pytest.approx(200 - expected), (
        name
    )


def test_cross_figures_add_up_over_the_first_n_positions() -> None:
    side, qty = np.array([1.0, -1.0, 1.0]), np.array([10.0, 5.0, 99.0])
    entry, mark, mmr = np.array([100.0, 100.0, 1.0]), np.array([90.0, 110.0, 2.0]), np.array([0.01, 0.02, 0.5])
    assert liquidation.cross_equity(1000.0, 2, side, qty, entry, mark) == pytest.approx(1000 - 100 - 50)
    assert liquidation.cross_requirement(2, qty, mark, mmr, 0.001) == pytest.approx(900 * 0.011 + 550 * 0.021)


def test_deleveraging_ranks_by_profit_and_effective_leverage() -> None:
    assert liquidation.adl_rank(1.0, 10.0, 100.0, 90.0, 100.0) == 0.0  # a loser is never deleveraged
    # profit 100 on 100 of margin, 1100 held on 200 of equity
    assert liquidation.adl_rank(1.0, 10.0, 100.0, 110.0, 100.0) == pytest.approx(5.5)


# -- funding ---------------------------------------------------------------------------------------------------------


def test_settlements_of_changing_intervals_fall_on_their_bars() -> None:
    settlements = np.array([0, 8, 16, 20, 22, 23], np.int64) * HOUR  # 8 h, then 4, 2 and 1 h
    rates = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    on_bars = funding_clock.funding_on_grid(settlements, rates, np.arange(24, dtype=np.int64) * HOUR)
    assert {k: rate for k, rate in enumerate(on_bars.tolist()) if not math.isnan(rate)} == {
        0: 0.1, 8: 0.2, 16: 0.3, 20: 0.4, 22: 0.5, 23: 0.6
    }  # fmt: skip


def test_coarse_bars_sum_what_settled_since_the_open_before() -> None:
    hourly = np.arange(1, 9, dtype=np.int64) * HOUR
    on_bars = funding_clock.funding_on_grid(hourly, np.full(8, 0.01), np.array([0, 4, 8], np.int64) * HOUR)
    assert on_bars.tolist() == pytest.approx([NAN, 0.04, 0.04], nan_ok=True)


def test_a_settlement_at_rate_zero_is_a_settlement() -> None:
    on_bars = funding_clock.funding_on_grid(np.array([0], np.int64), np.array([0.0]), np.array([0, HOUR], np.int64))
    assert funding_clock.is_settlement(on_bars[0])
    assert not funding_clock.is_settlement(on_bars[1])


def test_settlements_are_found_by_time() -> None:
    settlements = np.array([0, 8, 16, 20], np.int64)
    assert funding_clock.settlements_in(settlements, 8, 20) == (1, 3)  # the start counts, the end does not


@pytest.mark.parametrize(
    ("side", "rate", "expected"),
    [
        (1.0, 0.001, -1.0),  # a long pays
        (-1.0, 0.001, 1.0),  # a short receives
        (1.0, 0.5, -(100.0 - 11.0 * (1 + 1e-9))),  # equity 100, requirement 11: no more than 89
    ],
)
def test_isolated_funding_is_capped_by_the_margin(side: float, rate: float, expected: float) -> None:
    got = funding_clock.isolated_funding(side, 10.0, 100.0, 100.0, 100.0, rate, 0.01, 0.001)
    assert got == pytest.approx(expected, rel=1e-12)


def test_cross_funding_is_capped_by_the_account() -> None:
    assert funding_clock.cross_funding(1.0, 10.0, 100.0, 0.5, 50.0, 20.0) == pytest.approx(-30.0)
    assert funding_clock.cross_funding(1.0, 10.0, 100.0, 0.5, 10.0, 20.0) == 0.0  # below one already: nothing more is taken


def test_a_fill_at_the_settlement_pays_but_never_receives() -> None:
    assert funding_clock.same_instant_cash_flow(-2.0) == -2.0
    assert funding_clock.same_instant_cash_flow(2.0) == 0.0

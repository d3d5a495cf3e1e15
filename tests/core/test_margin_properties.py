"""What must hold of margin, liquidation and positions for any numbers, not only for those OKX published."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crypto_qlib.core import margin
from crypto_qlib.core.account_math import available_equity
from crypto_qlib.core.costs import default_half_spread_bps, slippage_bps, slipped_price, trading_fee
from crypto_qlib.core.funding import capped_funding_cash_flow, funding_cash_flow
from crypto_qlib.core.instrument import Instrument, floor_lots, round_price_against
from crypto_qlib.core.order import TRANSITIONS, Fill, MarginMode, OrderStatus, next_status
from crypto_qlib.core.position import Position, apply_fill, fold
from crypto_qlib.venue.liquidation import isolated_liquidation, partial_liquidation

SIDES = st.sampled_from([1.0, -1.0])
QTY = st.floats(1e-3, 1e6)
PRICE = st.floats(1e-6, 1e6)
LEVERAGE = st.floats(1.0, 100.0)
MMR = st.floats(0.002, 0.3)
FEE = st.floats(0.0, 0.001)


@given(SIDES, QTY, PRICE, LEVERAGE, MMR, FEE)
def test_at_liquidation_price_equity_equals_maintenance_plus_fee(
    side: float, qty: float, entry: float, leverage: float, mmr: float, fee: float
) -> None:
    posted = margin.initial_margin_isolated(qty, entry, leverage)
    mark = margin.liquidation_price_isolated(side, qty, entry, posted, mmr, fee)
    assume(mark > entry * 1e-3)
    equity = posted + margin.unrealised_pnl(side, qty, entry, mark)
    assert equity == pytest.approx(margin.requirement(qty, mark, mmr, fee), rel=1e-9, abs=1e-9 * qty * entry)
    assert margin.margin_ratio_isolated(side, qty, entry, posted, mark, mmr, fee) == pytest.approx(1.0, rel=1e-6)


@given(SIDES, QTY, PRICE, PRICE, st.floats(1.0, 1e9), st.floats(0.0, 1e6), MMR, FEE)
def test_at_the_cross_liquidation_price_account_equity_equals_the_account_requirement(
    side: float, qty: float, entry: float, mark: float, cash: float, others: float, mmr: float, fee: float
) -> None:
    equity = cash + margin.unrealised_pnl(side, qty, entry, mark)
    level = margin.liquidation_price_cross(side, qty, mark, equity, others, mmr, fee)
    assume(level > 0.0)
    there = cash + margin.unrealised_pnl(side, qty, entry, level)
    scale = cash + others + qty * (entry + mark + level)
    assert there == pytest.approx(others + margin.requirement(qty, level, mmr, fee), abs=1e-9 * scale)


@given(SIDES, QTY, PRICE, LEVERAGE, MMR, FEE)
def test_bankruptcy_lies_beyond_liquidation(
    side: float, qty: float, entry: float, leverage: float, mmr: float, fee: float
) -> None:
    posted = margin.initial_margin_isolated(qty, entry, leverage)
    liquidation = margin.liquidation_price_isolated(side, qty, entry, posted, mmr, fee)
    assert side * (liquidation - margin.bankruptcy_price(side, qty, entry, posted, fee)) >= -1e-9 * entry


@given(SIDES, QTY, PRICE, st.floats(1.0, 99.0), st.floats(0.01, 1.0), MMR, FEE)
def test_higher_leverage_never_moves_liquidation_away(
    side: float, qty: float, entry: float, leverage: float, more: float, mmr: float, fee: float
) -> None:
    def level(lever: float) -> float:
        return float(margin.liquidation_price_isolated(side, qty, entry, qty * entry / lever, mmr, fee))

    assert side * (level(leverage + more) - level(leverage)) >= -1e-9 * entry


@given(QTY, PRICE, PRICE, LEVERAGE, MMR)
def test_long_and_short_are_mirror_images_where_no_fee_and_no_maintenance_breaks_the_symmetry(
    qty: float, entry: float, mark: float, leverage: float, mmr: float
) -> None:
    mirrored = 2.0 * entry - mark
    assert margin.unrealised_pnl(1.0, qty, entry, mark) == pytest.approx(
        margin.unrealised_pnl(-1.0, qty, entry, mirrored), abs=1e-9 * qty * (entry + mark)
    )
    posted = qty * entry / leverage
    long = margin.liquidation_price_isolated(1.0, qty, entry, posted, 0.0, 0.0)
    short = margin.liquidation_price_isolated(-1.0, qty, entry, posted, 0.0, 0.0)
    assert entry - long == pytest.approx(short - entry, rel=1e-9, abs=1e-9 * entry)
    assert margin.liquidation_penalty(qty, mark, mmr) >= 0.0


@given(st.floats(0.001, 0.3), st.floats(0.0, 2.0), MMR, FEE, SIDES, QTY, PRICE)
def test_leverage_for_a_stop_keeps_the_liquidation_beyond_it(
    distance: float, buffer: float, mmr: float, fee: float, side: float, qty: float, entry: float
) -> None:
    assume(distance * (1.0 + buffer) < 0.9)
    leverage = margin.max_leverage_for_stop(distance, buffer, mmr, fee)
    level = margin.liquidation_price_isolated(side, qty, entry, qty * entry / leverage, mmr, fee)
    wanted = entry * (1.0 - side * distance * (1.0 + buffer))
    assert side * (wanted - level) >= -1e-9 * entry


@given(st.lists(st.tuples(SIDES, QTY, MMR), min_size=1, max_size=3), PRICE, st.floats(1.0, 1e9), st.floats(0.0, 1e6), FEE)
def test_at_the_price_of_hedged_legs_account_equity_equals_the_account_requirement(
    legs: list[tuple[float, float, float]], mark: float, equity: float, other: float, fee: float
) -> None:
    signed = sum(side * qty for side, qty, _ in legs)
    required = sum(qty * (mmr + fee) for _, qty, mmr in legs)
    gross = sum(qty for _, qty, _ in legs)
    assume(abs(signed - required) > 1e-3 * gross)
    price = margin.liquidation_price_cross_legs(signed, mark, equity, other, required)
    there = equity + sum(margin.unrealised_pnl(side, qty, mark, price) for side, qty, _ in legs)
    need = other + sum(margin.requirement(qty, price, mmr, fee) for _, qty, mmr in legs)
    scale = equity + other + gross * (mark + abs(price))
    assert there == pytest.approx(need, abs=1e-9 * scale)
    if len(legs) == 1:
        side, qty, mmr = legs[0]
        alone = margin.liquidation_price_cross(side, qty, mark, equity, other, mmr, fee)
        assert price == pytest.approx(alone, rel=1e-9, abs=1e-9 * scale / qty)


@given(SIDES, QTY, PRICE, st.floats(1.0, 1e9), st.floats(0.0, 1e6), FEE)
def test_at_the_cross_bankruptcy_price_nothing_is_left_after_the_closing_fees(
    side: float, qty: float, mark: float, equity: float, other_fees: float, fee: float
) -> None:
    price = margin.bankruptcy_price_cross(side, qty, mark, equity, other_fees, fee)
    left = equity + margin.unrealised_pnl(side, qty, mark, price) - fee * qty * price - other_fees
    assert left == pytest.approx(0.0, abs=1e-9 * (equity + other_fees + qty * (mark + abs(price))))


@given(SIDES, QTY, PRICE, PRICE, st.floats(1e-6, 1e6), MMR, FEE)
def test_a_full_isolated_liquidation_takes_exactly_the_margin(
    side: float, qty: float, entry: float, mark: float, posted: float, mmr: float, fee: float
) -> None:
    pnl, paid, penalty, overshoot = isolated_liquidation(side, qty, entry, posted, mark, mmr, fee)
    scale = posted + qty * (entry + mark)
    assert pnl - paid - penalty == pytest.approx(-posted - overshoot, abs=1e-9 * scale)


@given(SIDES, QTY, PRICE, LEVERAGE, st.floats(0.01, 0.3), FEE, st.floats(0.05, 0.95))
def test_a_partial_liquidation_at_the_trigger_saves_the_rest_in_a_lower_tier(
    side: float, qty: float, entry: float, leverage: float, mmr: float, fee: float, share: float
) -> None:
    posted = qty * entry / leverage
    mark = margin.liquidation_price_isolated(side, qty, entry, posted, mmr, fee)
    assume(mark > 0.01 * entry)
    pnl, paid, penalty, left = partial_liquidation(side, qty * share, entry, posted, mark, mmr, fee)
    assert left == pytest.approx(posted + pnl - paid - penalty, abs=1e-9 * qty * entry)
    rest = qty * (1.0 - share)
    assert margin.margin_ratio_isolated(side, rest, entry, left, mark, 0.5 * mmr, fee) > 1.0


@given(SIDES, QTY, PRICE, st.floats(-0.03, 0.03), st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_funding_never_takes_the_payers_ratio_below_one(
    side: float, qty: float, mark: float, rate: float, equity: float, need: float
) -> None:
    flow = funding_cash_flow(side, qty, mark, rate)
    capped = capped_funding_cash_flow(flow, equity, need)
    assert capped >= min(flow, 0.0)
    if flow >= 0.0:
        assert capped == flow
    else:
        assert capped <= 0.0
        assert equity + capped >= min(equity, need) * (1.0 - 1e-12) - 1e-9


@given(QTY, PRICE, PRICE, st.floats(-0.03, 0.03))
def test_funding_between_long_and_short_sums_to_zero(qty: float, entry: float, mark: float, rate: float) -> None:
    assert funding_cash_flow(1.0, qty, mark, rate) + funding_cash_flow(-1.0, qty, mark, rate) == 0.0


# -- rounding --------------------------------------------------------------------------------------------------------


@given(st.floats(0.0, 1e9), st.sampled_from([1e-4, 0.001, 0.01, 0.1, 1.0, 10.0, 1000.0]))
def test_rounding_to_lots_never_increases_exposure(base: float, base_per_lot: float) -> None:
    assume(base / base_per_lot < 1e6)  # beyond that one float step is more than a billionth of a lot
    assert floor_lots(base, base_per_lot) * base_per_lot <= base + 2e-9 * base_per_lot


@pytest.mark.parametrize(
    ("base", "step", "expected"),
    [
        (0.3, 0.1, 3),  # 0.3 / 0.1 is 2.9999999999999996 in binary
        (0.29999, 0.1, 2),  # clearly below three lots
        (0.0, 0.1, 0),
        (0.0999, 0.1, 0),
        (
            1e12,
            1e-9,
            2**53,
        ),  # 1e21 lots do not fit into 64 bits: it came out as the most negative integer, so as no size at all
    ],
)
def test_lots_forgive_binary_noise_only(base: float, step: float, expected: int) -> None:
    assert floor_lots(base, step) == expected


@given(st.floats(0.01, 1e6), st.sampled_from([1e-4, 0.01, 0.1, 0.5, 1.0]), SIDES)
def test_rounding_a_price_is_never_better_for_the_trader(price: float, tick: float, side: float) -> None:
    assume(price / tick < 1e8)
    rounded = round_price_against(price, tick, side)
    assert side * (rounded - price) >= -2e-9 * max(tick, price)
    assert abs(rounded - price) < tick * (1.0 + 1e-6)


@given(st.integers(1, 10**9), st.sampled_from([0.01, 0.1, 1.0, 1e-5]))
def test_formatting_a_size_is_exact(lots: int, lot_size: float) -> None:
    instrument = Instrument("BTCUSDT", "BTC-USDT-SWAP", "BTC", 0.01, 0.1, lot_size, lot_size)
    text = instrument.format_size(lots)
    assert round(float(text) / lot_size) == lots
    assert "e" not in text.lower()


# -- costs -----------------------------------------------------------------------------------------------------------


@given(st.floats(0.0, 1e9), st.floats(1.0, 1e10), st.floats(0.0, 2000.0), st.floats(0.0, 50.0), st.floats(1.0, 10.0))
def test_a_larger_order_never_slips_less(value: float, adv: float, sigma: float, spread: float, factor: float) -> None:
    small = slippage_bps(value, adv, sigma, spread, 0.8)
    assert small >= spread
    assert slippage_bps(value * factor, adv, sigma, spread, 0.8) >= small


@pytest.mark.parametrize(
    ("value", "adv", "sigma", "spread", "expected"),
    [
        (1e5, 1e9, 300.0, 0.5, 2.9),  # 0.8 * 300 * sqrt(1e-4) = 2.4, plus half a basis point
        (5e4, 1e7, 700.0, 5.0, 44.597979746446661),  # 0.8 * 700 * sqrt(0.005) = 39.598, plus 5
        (1e5, 0.0, 300.0, 1.0, 241.0),  # unknown turnover counts as a whole day of it
    ],
)
def test_slippage_is_half_spread_plus_square_root_impact(
    value: float, adv: float, sigma: float, spread: float, expected: float
) -> None:
    assert slippage_bps(value, adv, sigma, spread, 0.8) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("adv", "expected"), [(3e9, 0.2), (1e9, 0.5), (5e7, 1.5), (5e6, 5.0), (1e5, 15.0), (0.0, 15.0)])
def test_thin_markets_have_wide_spreads(adv: float, expected: float) -> None:
    assert default_half_spread_bps(adv, 1e-9, 1.0) == expected


def test_half_a_tick_is_the_least_half_spread() -> None:
    assert default_half_spread_bps(3e9, 0.01, 1.0) == pytest.approx(50.0)


def test_slippage_moves_the_price_against_the_trader() -> None:
    assert slipped_price(100.0, 1.0, 10.0) == pytest.approx(100.1)
    assert slipped_price(100.0, -1.0, 10.0) == pytest.approx(99.9)


def test_a_maker_rebate_is_a_negative_fee() -> None:
    assert trading_fee(2.0, 100.0, -0.0001) == pytest.approx(-0.02)


# -- the position as a fold ------------------------------------------------------------------------------------------

FILLS = st.lists(st.tuples(st.integers(-50, 50).filter(bool), st.floats(1.0, 1000.0), st.floats(0.0, 0.001)), max_size=30)


def to_fill(k: int, row: tuple[int, float, float]) -> Fill:
    lots, price, rate = row
    return Fill(k, "XUSDT", lots, price, trading_fee(abs(lots) * 0.1, price, rate))


@given(FILLS, st.sampled_from(list(MarginMode)), st.floats(1.0, 1000.0))
def test_equity_change_is_pnl_less_fees_for_any_sequence_of_fills(
    rows: list[tuple[int, float, float]], mode: MarginMode, mark: float
) -> None:
    fills = [to_fill(k, row) for k, row in enumerate(rows)]
    position = fold(Position("XUSDT", base_per_lot=0.1, margin_mode=mode, leverage=5.0), fills)
    cash = -sum(f.signed_lots * 0.1 * f.price + f.fee for f in fills)
    worth = position.lots * 0.1 * mark
    turnover = sum(abs(f.signed_lots) * 0.1 * f.price for f in fills) + abs(worth)
    assert position.lots == sum(f.signed_lots for f in fills)
    assert position.realised_pnl - position.fee + position.unrealised_pnl(mark) == pytest.approx(
        cash + worth, abs=1e-9 * (1.0 + turnover)
    )


@given(FILLS)
def test_isolated_margin_is_entry_notional_over_leverage_however_the_position_came_about(
    rows: list[tuple[int, float, float]],
) -> None:
    fills = [to_fill(k, row) for k, row in enumerate(rows)]
    position = fold(Position("XUSDT", base_per_lot=0.1, leverage=5.0), fills)
    expected = position.qty * position.avg_entry / 5.0
    assert position.isolated_margin == pytest.approx(expected, rel=1e-9, abs=1e-7)


@given(FILLS)
def test_mirrored_fills_give_the_mirrored_position(rows: list[tuple[int, float, float]]) -> None:
    there = fold(Position("XUSDT", base_per_lot=0.1), [to_fill(k, row) for k, row in enumerate(rows)])
    back = fold(Position("XUSDT", base_per_lot=0.1), [to_fill(k, (-lots, p, r)) for k, (lots, p, r) in enumerate(rows)])
    assert (back.lots, back.avg_entry) == (-there.lots, there.avg_entry)
    assert back.realised_pnl == pytest.approx(-there.realised_pnl, abs=1e-9)
    assert back.isolated_margin == there.isolated_margin


@given(st.integers(1, 1000), st.integers(1, 1000), PRICE, PRICE)
def test_reducing_never_moves_the_average_entry(held: int, sold: int, entry: float, price: float) -> None:
    assume(sold < held)
    position = apply_fill(Position("XUSDT", 0.1, leverage=3.0), Fill(0, "XUSDT", held, entry, 0.0))
    reduced = apply_fill(position, Fill(1, "XUSDT", -sold, price, 0.0))
    assert reduced.avg_entry == position.avg_entry
    assert reduced.isolated_margin == pytest.approx(position.isolated_margin * (held - sold) / held, rel=1e-12)
    assert reduced.opened_ns == position.opened_ns


def test_crossing_zero_closes_first_and_opens_the_rest_at_the_fill() -> None:
    position = apply_fill(Position("XUSDT", 1.0, leverage=2.0), Fill(5, "XUSDT", 3, 100.0, 0.3))
    flipped = apply_fill(position, Fill(9, "XUSDT", -5, 110.0, 0.5))
    assert (flipped.lots, flipped.avg_entry, flipped.opened_ns) == (-2, 110.0, 9)
    assert flipped.realised_pnl == pytest.approx(30.0)  # 3 coins, 10 each
    assert flipped.isolated_margin == pytest.approx(110.0)  # 2 coins at 110, leverage 2
    assert flipped.fee == pytest.approx(0.8)


def test_a_fill_of_another_symbol_is_refused() -> None:
    with pytest.raises(ValueError, match="YUSDT"):
        apply_fill(Position("XUSDT", 1.0), Fill(0, "YUSDT", 1, 1.0, 0.0))


# -- the order life-cycle --------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(list(OrderStatus)), max_size=40))
def test_an_order_only_takes_steps_of_the_table_and_never_leaves_a_final_state(wanted: list[OrderStatus]) -> None:
    status = OrderStatus.INTENT
    for new in wanted:
        if new in TRANSITIONS[status]:
            assert not status.is_final
            status = next_status(status, new)
        else:
            with pytest.raises(ValueError, match="cannot go"):
                next_status(status, new)


def test_every_state_can_reach_a_final_one() -> None:
    for start in OrderStatus:
        seen, frontier = {start}, [start]
        while frontier:
            for following in TRANSITIONS[frontier.pop()] - seen:
                seen.add(following)
                frontier.append(following)
        assert any(status.is_final for status in seen)


def test_no_answer_is_not_a_refusal() -> None:
    assert not OrderStatus.SENT.is_final
    assert OrderStatus.FILLED in TRANSITIONS[OrderStatus.SENT]


def test_nan_in_gives_nan_out() -> None:
    nan = math.nan
    assert math.isnan(margin.liquidation_price_isolated(1.0, nan, 1.0, 1.0, 0.01, 0.0005))
    assert math.isnan(margin.unrealised_pnl(1.0, 1.0, nan, 1.0))
    assert math.isnan(margin.margin_ratio_isolated(1.0, 1.0, 1.0, 1.0, nan, 0.01, 0.0))
    assert math.isnan(available_equity(nan, 1.0))


@pytest.mark.slow
def test_every_margin_formula_gives_the_same_on_arrays_as_one_by_one() -> None:
    rng = np.random.default_rng(5)
    arguments = {
        "side": rng.choice([-1.0, 1.0], 20),
        "leverage": rng.uniform(1, 50, 20),
        "mmr": rng.uniform(0.004, 0.1, 20),
        "taker_fee": rng.uniform(0.0, 0.001, 20),
    }
    functions = [f for f in vars(margin).values() if hasattr(f, "py_func")]
    assert len(functions) >= 18
    for function in functions:
        names = inspect.signature(function.py_func).parameters
        columns = [arguments[name] if name in arguments else rng.uniform(1.0, 2.0, 20) for name in names]
        together = function(*columns)
        one_by_one = [function(*(float(x) for x in row)) for row in zip(*columns, strict=True)]
        assert together.tolist() == one_by_one, function.py_func.__name__

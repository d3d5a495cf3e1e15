"""Margin figures worked by hand from the exchange's rules: tiers, cross books, partial closes, levels and contract sizes.

They stand beside the recorded payloads, none of which is above tier 1, holds several cross positions or pays a VIP's fees.
Each expected figure is the arithmetic of its reason, written out; the taker fee is 0.05 % where nothing else is said.
"""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

import numpy as np
import pytest

from crypto_qlib.core import account_math, margin
from crypto_qlib.core.costs import trading_fee
from crypto_qlib.core.fees import fees_of_level
from crypto_qlib.core.funding import capped_funding_cash_flow, funding_cash_flow
from crypto_qlib.core.instrument import Instrument, floor_lots
from crypto_qlib.core.order import Fill
from crypto_qlib.core.position import Position, fold
from crypto_qlib.core.tiers import NO_TIER, TierHistory, TierTable
from crypto_qlib.venue.liquidation import isolated_liquidation, partial_liquidation, partial_liquidation_lots

LONG, SHORT, FEE = 1.0, -1.0, 0.0005
CHANGE_NS = 1_700_000_000_000_000_000

BTC = TierTable(
    np.array([1_000.0, 5_000.0, 20_000.0, 40_000.0, 60_000.0]), np.array([0.004, 0.005, 0.0075, 0.0125, 0.0175]),
    np.array([0.01, 0.015, 0.02, 0.025, 0.03]), np.array([100.0, 66.66, 50.0, 40.0, 33.33]),
)  # fmt: skip
"""BTC's tiers of 2026, in contracts of 0.01 BTC (the fourth and fifth shortened)."""


def mmr_of(contracts: float) -> float:
    return float(BTC.mmr[BTC.row(contracts)])


def realised(position: Position, *fills: tuple[int, float]) -> Position:
    """Fold (lots, price) fills at the taker rate into ``position``."""
    fee = [trading_fee(abs(lots) * position.base_per_lot, price, FEE) for lots, price in fills]
    return fold(position, [Fill(k, "XUSDT", lots, price, fee[k]) for k, (lots, price) in enumerate(fills)])


FIGURES = [
    ("a short in tier 1: 1,000 contracts are 10 BTC at 50,000 and 20x, margin 25,000; 525,000 over 10 x 1.0045",
     margin.liquidation_price_isolated(SHORT, 10.0, 50_000.0, 25_000.0, mmr_of(1_000.0), FEE), 525_000 / 10.045),
    ("200 contracts more put the whole short into tier 2, which brings its end nearer: 630,000 over 12 x 1.0055",
     margin.liquidation_price_isolated(SHORT, 12.0, 50_000.0, 30_000.0, mmr_of(1_200.0), FEE), 630_000 / 12.066),
    ("of a short the exchange shows one tick less", margin.reported_liquidation_price(SHORT, 525_000 / 10.045, 0.1), 525_000 / 10.045 - 0.1),
    ("maintenance margin jumps with the tier: 10.0001 BTC at 50,000 and 0.5 %", margin.maintenance_margin(10.0001, 50_000.0, mmr_of(1_000.01)), 2_500.025),
    ("50 more of margin move a long's end by 50 over 10 x 0.9955: 850 over 9.955", margin.liquidation_price_isolated(LONG, 10.0, 100.0, 150.0, 0.004, FEE), 850 / 9.955),
    ("funding of 12 received moves it away too: 888 over 9.955", margin.liquidation_price_isolated(LONG, 10.0, 100.0, 112.0, 0.004, FEE), 888 / 9.955),
    ("ratio of a long after 3 of funding: (97 - 40) over 960 x 0.45 %", margin.margin_ratio_isolated(LONG, 10.0, 100.0, 97.0, 96.0, 0.004, FEE), 57 / 4.32),
    ("cross, a long BTC beside a short of 20 ETH at 2,500: 50,000 - (10,000 - 225) over 0.9955", margin.liquidation_price_cross(LONG, 1.0, 50_000.0, 10_000.0, 225.0, 0.004, FEE), 40_225 / 0.9955),
    ("the same account's ETH: 50,000 + (10,000 - 225) over 20 x 1.0045", margin.liquidation_price_cross(SHORT, 20.0, 2_500.0, 10_000.0, 225.0, 0.004, FEE), 59_775 / 20.09),
    ("both sides of one symbol, 3 long and 1 short of tier 1: 100,000 - 5,000 over 2 - 4 x 0.0045", margin.liquidation_price_cross_legs(2.0, 50_000.0, 5_000.0, 0.0, 0.018), 95_000 / 1.982),
    ("a long with more equity than value has no such price: it comes out negative", margin.liquidation_price_cross(LONG, 1.0, 50_000.0, 60_000.0, 0.0, 0.004, FEE), -10_000 / 0.9955),
    ("bankruptcy of an isolated long: 900 over 10 x 0.9995", margin.bankruptcy_price(LONG, 10.0, 100.0, 100.0, FEE), 900 / 9.995),
    ("bankruptcy of an isolated short: 1,100 over 10 x 1.0005", margin.bankruptcy_price(SHORT, 10.0, 100.0, 100.0, FEE), 1_100 / 10.005),
    ("cross ratio of the two positions: 10,000 over 2 x 225", margin.margin_ratio_cross(10_000.0, margin.requirement(1.0, 50_000.0, 0.004, FEE) + margin.requirement(20.0, 2_500.0, 0.004, FEE)), 10_000 / 450),
    ("uplRatio is upl over the entry margin: 2.5 contracts of 1,000 DOGE short from 0.20 to 0.19 at 50x, 25 over 10", margin.upl_ratio(SHORT, 2_500.0, 0.20, 0.19, 50.0), 2.5),
    ("cross margin floats with the mark, isolated does not: 2,500 x 0.19 / 50", margin.initial_margin_cross(2_500.0, 0.19, 50.0), 9.5),
    ("3.7 contracts of ten million PEPE at 0.000012 and 10x", margin.initial_margin_isolated(3.7e7, 0.000012, 10.0), 44.4),
    ("two settlements of unequal intervals, a short of 2 BTC: 2 x 50,000 x 0.01 % and 2 x 49,000 x -0.03 %",
     funding_cash_flow(SHORT, 2.0, 50_000.0, 0.0001) + funding_cash_flow(SHORT, 2.0, 49_000.0, -0.0003), 10.0 - 29.4),
    ("funding takes no more than keeps the ratio at one: 57 - 4.32 x (1 + 1e-9) of the 96 due", capped_funding_cash_flow(-96.0, 57.0, 4.32), -(57 - 4.32 * (1 + 1e-9))),
    ("a maker of VIP5 is paid 0.008 % of 100,000", trading_fee(2.0, 50_000.0, fees_of_level("VIP5").at(CHANGE_NS).maker), -8.0),
    ("a taker of VIP5 pays 0.03 %, which moves the end of a long too: 900 over 10 x 0.9957", margin.liquidation_price_isolated(LONG, 10.0, 100.0, 100.0, 0.004, fees_of_level("vip5").at(CHANGE_NS).taker), 900 / 9.957),
    ("multi-currency account: 5,000 over 180 + 0.05 % of 45,000", account_math.multi_currency_margin_ratio(5_000.0, 180.0, 45_000.0, FEE), 5_000 / 202.5),
    ("availEq is never negative", account_math.available_equity(100.0, 130.0), 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "by_hand"), [row[1:] for row in FIGURES], ids=[row[0] for row in FIGURES])
def test_a_figure_worked_by_hand(ours: float, by_hand: float) -> None:
    assert ours == pytest.approx(by_hand, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("side", "lots", "close", "funding", "net", "break_even"),
    [
        # 40 won on 4 of 10, fees 0.5 and 0.22, funding 3 paid: 36.28; (600 - 36.28) over 6 x 0.9995.
        (LONG, 10, 110.0, -3.0, 36.28, 563.72 / 5.997),
        # 40 won on 4 of 10, fees 0.5 and 0.18, funding 2 received: 41.32; (600 + 41.32) over 6 x 1.0005.
        (SHORT, -10, 90.0, 2.0, 41.32, 641.32 / 6.003),
    ],
)
def test_break_even_after_a_partial_close_and_funding(
    side: float, lots: int, close: float, funding: float, net: float, break_even: float
) -> None:
    left = realised(
        Position("XUSDT", base_per_lot=1.0, leverage=10.0, funding=funding), (lots, 100.0), (-lots * 4 // 10, close)
    )
    assert left.avg_entry == 100.0, "reducing never moves the average entry"
    assert left.net_realised == pytest.approx(net, rel=1e-12)
    price = margin.break_even_price(side, abs(left.lots), left.avg_entry, left.net_realised, FEE)
    assert price == pytest.approx(break_even, rel=1e-12)
    closed = realised(left, (-left.lots, price))
    assert closed.net_realised == pytest.approx(0.0, abs=1e-9)


def test_the_average_entry_of_a_short_that_grew() -> None:
    """4 at 100 and 6 at 105: 103; 2 closed at 100 leave it there."""
    grown = realised(Position("XUSDT", base_per_lot=0.1, leverage=5.0), (-40, 100.0), (-60, 105.0), (20, 100.0))
    assert (grown.lots, grown.avg_entry) == (-80, pytest.approx(103.0, rel=1e-12))


@pytest.mark.parametrize(
    ("contracts", "tier", "cap"),
    [(1_000.0, 0, 100.0), (1_000.01, 1, 66.66), (5_000.0, 1, 66.66), (20_000.01, 3, 40.0), (60_000.01, NO_TIER, 0.0)],
)
def test_a_size_has_the_tier_and_the_leverage_of_its_upper_bound(contracts: float, tier: int, cap: float) -> None:
    assert (BTC.row(contracts), BTC.row(-contracts), BTC.leverage_cap(contracts)) == (tier, tier, cap)


@pytest.mark.parametrize(("leverage", "most"), [(100.0, 1_000.0), (66.67, 1_000.0), (66.66, 5_000.0), (101.0, 0.0)])
def test_a_leverage_has_its_largest_size(leverage: float, most: float) -> None:
    assert BTC.max_contracts_at(leverage) == most


def test_tiers_of_another_time_have_other_rates_from_their_very_instant_on() -> None:
    old = TierTable(np.array([2_000.0, 4_000.0]), np.array([0.01, 0.015]), np.array([0.02, 0.03]), np.array([50.0, 33.33]))
    new = TierTable(BTC.max_contracts, BTC.mmr, BTC.imr, BTC.max_leverage, CHANGE_NS)
    history = TierHistory([new, old])
    rates = [float(history.at(ts).mmr[history.at(ts).row(1_500.0)]) for ts in (0, CHANGE_NS - 1, CHANGE_NS)]
    assert rates == [0.01, 0.01, 0.005]


@pytest.mark.parametrize(
    ("contracts", "closed"),
    [
        (1_000.0, 1_000.0),  # tier 1: everything
        (5_000.0, 5_000.0),  # tier 2: everything
        (6_000.0, 5_000.0),  # tier 3 falls to the bound of tier 1
        (45_000.0, 25_000.0),  # tier 5 falls to the bound of tier 3
        (70_000.0, 50_000.0),  # above the last tier the last tier counts
    ],
)
def test_one_step_of_a_partial_liquidation_drops_two_tiers(contracts: float, closed: float) -> None:
    assert partial_liquidation_lots(round(contracts * 100), 0.01, BTC.max_contracts) == round(closed * 100)


def test_a_partial_liquidation_pays_pnl_fee_and_penalty_of_its_part_from_the_margin() -> None:
    """50 of 60 BTC from 50,000 at 49,200: -40,000, 0.05 % and 0.75 % of 2,460,000; 60,000 of margin leave 320."""
    parts = partial_liquidation(LONG, 50.0, 50_000.0, 60_000.0, 49_200.0, 0.0075, FEE)
    assert parts == pytest.approx((-40_000.0, 1_230.0, 18_450.0, 320.0), rel=1e-12)


def test_a_full_liquidation_takes_the_margin_and_its_ratio_is_minus_one_but_for_the_opening_fee() -> None:
    """10 at 100 and 10x: at 900 / 9.955 price, fee and penalty are 100 together; 100.5 with the fee of the opening."""
    trigger = 900 / 9.955
    pnl, fee, penalty, overshoot = isolated_liquidation(LONG, 10.0, 100.0, 100.0, trigger, 0.004, FEE)
    assert pnl - fee - penalty == pytest.approx(-100.0, rel=1e-12)
    assert overshoot == pytest.approx(0.0, abs=1e-9)
    assert margin.closed_pnl_ratio(-100.5, 10.0, 100.0, 10.0) == pytest.approx(-1.005, rel=1e-12)


@pytest.mark.parametrize(
    ("ct_val", "lot_size", "wanted", "lots", "text"),
    [
        (0.1, 0.01, 0.0379, 37, "0.37"),  # ETH: 0.379 contracts
        (0.01, 0.01, 0.12345, 1_234, "12.34"),  # BTC: 12.345 contracts
        (1_000.0, 0.01, 2_500.0, 250, "2.5"),  # DOGE
        (1e7, 0.1, 3.79e7, 37, "3.7"),  # PEPE: 3.79 contracts
    ],
)
def test_sizes_are_whole_lots_of_contracts(ct_val: float, lot_size: float, wanted: float, lots: int, text: str) -> None:
    item = Instrument("XUSDT", "X-USDT-SWAP", "X", ct_val, 0.1, lot_size, lot_size)
    assert floor_lots(wanted, item.base_per_lot) == lots
    assert (item.format_size(lots), item.contracts(lots)) == (text, float(text))

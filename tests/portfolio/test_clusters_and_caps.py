"""Exposure limits of a long/short book, worked by hand: net, beta, cluster, and what a cross account can bear at its stops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.account import OpenPosition
from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.margin import requirement
from crypto_qlib.portfolio.clusters import clusters_by_day, correlations, linked
from crypto_qlib.portfolio.decision import decide
from crypto_qlib.portfolio.rules import FIXED_FRACTION
from crypto_qlib.portfolio.veto import VetoRule
from tests.portfolio.portfolio_market import NOW, PLAIN, account, market, position, scores

NAN = math.nan
TOGETHER = np.array([0, 1, 1, 3])  # AUSDT and BUSDT are one cluster


def notional(plan: Any) -> dict[str, float]:
    return {o.symbol: o.signed_lots * 0.01 * o.reference_price for o in plan.entries}


# -- caps cut sizes to exactly their room ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rules", "state", "held", "score", "expected"),
    [
        # 10,000 USDT of equity; a wish of 3,000
        ("net room left: 0.2 x 10,000", {"max_net": 0.2}, {}, (), 0.03, 2000.0),
        ("a long held takes net room: 2,500 - 1,000", {"max_net": 0.25}, {}, (position("AUSDT"),), 0.03, 1500.0),
        ("a short held gives it, the wish is less", {"max_net": 0.25}, {}, (position("AUSDT", -1000),), 0.03, 3000.0),
        ("a short entry: -2,500 + 1,000", {"max_net": 0.25}, {}, (position("AUSDT", -1000),), -0.03, -1500.0),
        ("gross counts both sides: 3,000 - 1,000", {"max_gross": 0.3}, {}, (position("AUSDT", -1000),), 0.03, 2000.0),
        ("beta 2 halves the room: 0.2 x 10,000 / 2", {"max_beta": 0.2}, {"beta": np.full(4, 2.0)}, (), 0.03, 1000.0),
        ("beta held counts: (2,000 - 1.5 x 1,000) / 2", {"max_beta": 0.2}, {"beta": np.array([2.0, 1.5, 1.0, 1.0])},
         (position("AUSDT"),), 0.03, 250.0),
        ("an unknown beta counts as 1", {"max_beta": 0.2}, {"beta": np.full(4, NAN)}, (), 0.03, 2000.0),
        ("one position: 0.15 x 10,000", {"max_position_fraction": 0.15}, {}, (), 0.03, 1500.0),
        ("risk per trade: 0.5 % of 10,000 at a loss of 5.1 %", {"risk_per_trade": 0.005}, {}, (), 0.03, 980.0),
    ],
)  # fmt: skip
def test_a_cap_cuts_the_size_to_its_room(
    name: str, rules: dict[str, Any], state: dict[str, Any], held: tuple[OpenPosition, ...], score: float, expected: float
) -> None:
    plan = decide(scores([score, NAN, NAN, NAN]), account(positions=held), market(**state), PLAIN._replace(**rules))
    assert notional(plan) == {"BTCUSDT": pytest.approx(expected, abs=1.0)}, name
    assert abs(notional(plan)["BTCUSDT"]) <= abs(expected) + 1.0


def test_short_entries_can_be_switched_off() -> None:
    plan = decide(scores([-0.03, 0.02, NAN, NAN]), account(), market(), PLAIN._replace(allow_short=False))
    assert [o.symbol for o in plan.entries] == ["AUSDT"]
    assert [(v.rule, v.symbol) for v in plan.vetoes] == [(VetoRule.SIDE_OFF, "BTCUSDT")]


def test_the_drawdown_brake_ends_entries_below_its_level_and_lets_time_exits_go() -> None:
    held = (position("AUSDT", hours=24.0),)
    braked = PLAIN._replace(max_drawdown=0.2)
    below = decide(scores([0.03, NAN, NAN, NAN]), account(7_999.0, peak_equity=10_000.0, positions=held), market(), braked)
    assert [o.symbol for o in below.orders] == ["AUSDT"]
    (veto,) = below.vetoes
    assert (veto.rule, veto.limit) == (VetoRule.DRAWDOWN, 0.2)
    assert veto.actual == pytest.approx(0.2001)
    at = decide(scores([0.03, NAN, NAN, NAN]), account(8_000.0, peak_equity=10_000.0), market(), braked)
    assert at.entries


@pytest.mark.parametrize(
    ("buffer", "leverage"),
    # 1 / (d (1 + k) + k) with d = 5 % (1 + buffer), k = 0.45 %: 1 / 0.054725, then 1 / 0.0798375 and 1 / 0.10495
    [(0.0, 18.27), (0.5, 12.52), (1.0, 9.52)],
)
def test_leverage_keeps_the_liquidation_a_buffer_beyond_the_stop(buffer: float, leverage: float) -> None:
    rules = PLAIN._replace(leverage=50.0, liquidation_buffer=buffer, position_fraction=0.01)
    (order,) = decide(scores([0.03, NAN, NAN, NAN]), account(), market(), rules).entries
    assert order.leverage == leverage


# -- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "held", "score", "expected"),
    [
        ("nothing held in the cluster: 0.2 x 10,000", (), 0.03, 2000.0),
        ("1,000 long held in it: 2,000 - 1,000", (position("BUSDT"),), 0.03, 1000.0),
        ("1,000 short held in it hedges: 2,000 + 1,000", (position("BUSDT", -1000),), 0.03, 3000.0),
        ("a short adds to a short: -2,000 + 1,000", (position("BUSDT", -1000),), -0.03, -1000.0),
        ("another cluster does not count", (position("CUSDT"),), 0.03, 2000.0),
    ],
)
def test_net_notional_in_a_cluster_is_capped(name: str, held: tuple[OpenPosition, ...], score: float, expected: float) -> None:
    rules = PLAIN._replace(max_cluster=0.2)
    plan = decide(scores([NAN, score, NAN, NAN]), account(positions=held), market(cluster=TOGETHER), rules)
    assert notional(plan) == {"AUSDT": pytest.approx(expected, abs=1.0)}, name


def test_names_chosen_in_one_plan_share_their_clusters_room_and_the_refusal_says_so() -> None:
    rules = PLAIN._replace(max_cluster=0.2)
    plan = decide(scores([NAN, 0.04, 0.03, 0.02]), account(), market(cluster=TOGETHER), rules)
    assert notional(plan) == {"AUSDT": pytest.approx(2000.0, abs=1.0), "CUSDT": pytest.approx(2000.0, abs=1.0)}
    (veto,) = plan.vetoes
    assert (veto.rule, veto.symbol, veto.limit) == (VetoRule.CLUSTER, "BUSDT", 0.2)
    assert veto.actual == pytest.approx(0.2, abs=1e-3)


def test_a_replaced_position_gives_its_clusters_room_back() -> None:
    rules = PLAIN._replace(max_cluster=0.1, max_open=1, replace_margin=0.0)
    plan = decide(scores([NAN, 0.04, 0.001, NAN]), account(positions=(position("BUSDT"),)), market(cluster=TOGETHER), rules)
    assert [o.symbol for o in plan.orders] == ["BUSDT", "AUSDT"]
    assert notional(plan)["AUSDT"] == pytest.approx(1000.0, abs=1.0)


def test_average_linkage_merges_what_moves_together_on_average() -> None:
    similarity = np.array([[1.0, 0.9, 0.5, 0.1], [0.9, 1.0, 0.7, 0.1], [0.5, 0.7, 1.0, 0.2], [0.1, 0.1, 0.2, 1.0]])
    # 0 and 1 at 0.9; 2 joins them at (0.5 + 0.7) / 2 = 0.6; 3 would at (0.1 + 0.1 + 0.2) / 3
    assert linked(similarity.copy(), 0.95).tolist() == [0, 1, 2, 3]
    assert linked(similarity.copy(), 0.65).tolist() == [0, 0, 2, 3]
    assert linked(similarity.copy(), 0.6).tolist() == [0, 0, 0, 3]
    assert linked(similarity.copy(), 0.1).tolist() == [0, 0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.95))
def test_clusters_agree_with_an_independent_implementation(seed: int, threshold: float) -> None:
    from scipy.cluster.hierarchy import fcluster, linkage  # noqa: PLC0415 - the oracle
    from scipy.spatial.distance import squareform  # noqa: PLC0415

    rng = np.random.default_rng(seed)
    common = rng.normal(size=(300, 3))
    returns = common @ rng.normal(size=(3, 7)) + rng.normal(size=(300, 7))
    similarity = correlations(returns, 0, 300, 24)
    np.testing.assert_allclose(similarity, np.corrcoef(returns.T), atol=1e-9)
    theirs = fcluster(linkage(squareform(1.0 - similarity, checks=False), "average"), 1.0 - threshold, "distance")
    ours = linked(similarity.copy(), threshold)
    assert [[a == b for b in ours] for a in ours] == [[a == b for b in theirs] for a in theirs]


def test_clusters_use_complete_days_before_the_midnight_alone() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=24 * 40)
    returns = np.column_stack([a, a + 0.1 * rng.normal(size=a.size), rng.normal(size=a.size)])
    before = clusters_by_day(returns, 0, 24, 40, 0.7)
    assert before[0].tolist() == [0, 1, 2]
    assert before[5].tolist() == [0, 0, 2]
    returns[24 * 20 :, 1] = rng.normal(size=24 * 20)
    after = clusters_by_day(returns, 0, 24, 40, 0.7)
    assert (after[:21] == before[:21]).all()
    assert after[40].tolist() == [0, 1, 2]  # ten of the last thirty days together are too few


# -- a cross account at its stops ------------------------------------------------------------------------------------


def cross_position(symbol: str, lots: int, mark: float, stop: float) -> OpenPosition:
    qty = abs(lots) * 0.01
    return OpenPosition(symbol, lots, qty, 100.0, mark, 10.0, qty * mark / 10.0, NOW - NS_PER_HOUR, stop_price=stop)


def test_a_cross_book_leaves_room_for_every_stop_and_its_requirement() -> None:
    rules = PLAIN._replace(cross=True, leverage=10.0, position_fraction=0.4)
    # 600 coins long at 120 (entry 100), stop at 95: 25 each to lose; the tier of 60,000 lots asks 1 % and 0.05 % of fee
    held = (cross_position("AUSDT", 60_000, 120.0, 95.0),)
    plan = decide(scores([0.03, NAN, NAN, NAN]), account(20_000.0, available=12_800.0, positions=held), market(), rules)
    # 20,000 - 600 x (25 + 95 x 0.0105) = 4,401.5 left; the wish is 80,000 USDT
    # at BTC's second tier (1 %): 100 x (0.05 + 0.95 x 0.0105 + 0.0005) = 6.0475 a coin
    assert plan.entries[0].lots == pytest.approx(4401.5 / 6.0475 * 100, abs=1)


def test_a_cross_book_without_room_at_its_stops_refuses_by_name() -> None:
    rules = PLAIN._replace(cross=True, leverage=10.0)
    held = (cross_position("AUSDT", 60_000, 120.0, 95.0),)
    plan = decide(scores([0.03, NAN, NAN, NAN]), account(15_500.0, available=8_000.0, positions=held), market(), rules)
    assert [(v.rule, v.symbol) for v in plan.vetoes] == [(VetoRule.STOPS, "BTCUSDT")]
    isolated = decide(
        scores([0.03, NAN, NAN, NAN]),
        account(15_500.0, available=8_000.0, positions=held),
        market(),
        rules._replace(cross=False),
    )
    assert isolated.entries


@settings(max_examples=60, deadline=None)
@given(
    marks=st.lists(st.floats(80.0, 140.0), min_size=2, max_size=2),
    sides=st.lists(st.sampled_from([1, -1]), min_size=4, max_size=4),
    lots=st.integers(100, 90_000),
    equity=st.floats(1_000.0, 100_000.0),
    buffer=st.floats(0.0, 1.0),
    leverage=st.floats(2.0, 50.0),
)
def test_a_cross_account_with_every_position_beyond_its_stop_still_meets_its_requirement(
    marks: list[float], sides: list[int], lots: int, equity: float, buffer: float, leverage: float
) -> None:
    rules = PLAIN._replace(
        cross=True, leverage=leverage, liquidation_buffer=buffer, position_fraction=2.0, sizing=FIXED_FRACTION
    )
    held = tuple(
        cross_position(s, sides[k] * lots, marks[k], marks[k] * (1 - 0.04 * sides[k])) for k, s in enumerate(("AUSDT", "BUSDT"))
    )
    signs = [0.03 * sides[2], NAN, NAN, 0.02 * sides[3]]
    plan = decide(scores(signs), account(equity, positions=held), market(), rules)
    if not plan.entries:
        return
    rows = [(p.side, p.qty, p.mark, p.stop_price) for p in held]
    rows += [(o.side.sign, o.lots * 0.01, o.reference_price, o.stop_price) for o in plan.entries]
    left = equity - sum(o.lots * 0.01 * o.reference_price * 0.0005 for o in plan.entries)
    for side, qty, mark, stop in rows:
        worst = mark - (mark - stop) * (1 + buffer)
        mmr = 0.004 if qty * 100 <= 1e4 else 0.01 if qty * 100 <= 1e5 else 0.02
        left += side * qty * (worst - mark) - requirement(qty, worst, mmr, 0.0005)
    tick = sum(q for _, q, _, _ in rows) * 0.01 * (1 + buffer)  # stops lie on the tick nearer to the price
    assert left >= -tick - 1e-6 * equity

"""Fills folded into positions, and the split of their results into parts that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.analytics.account_book import (
    PARTS,
    FillBook,
    Flows,
    attribution,
    book_positions,
    grouped,
    number_positions,
)
from crypto_qlib.core.market_factor import MarketFactor


def fills(*rows: tuple[int, int, int, float, float, str]) -> FillBook:
    """Make fills of (instant, symbol, lots, price, raw price, exit kind); lots of half a coin, a fee of 1 each."""
    ts, symbol, lots, price, raw, kind = (np.array(column) for column in zip(*rows, strict=True))
    position = number_positions(symbol, lots)
    n = len(rows)
    return FillBook(ts, symbol, position, lots, np.full(n, 0.5), price.astype(float), raw.astype(float), np.ones(n), kind)


FACTOR = MarketFactor(
    ts_ns=np.array([0, 10, 20, 30]),
    price=np.array([100.0, 110.0, 121.0, 121.0]),
    beta_ts_ns=np.array([0, 10]),
    beta=np.array([[1.0, np.nan], [1.0, 2.0]]),
)


def test_a_long_and_a_short_by_hand() -> None:
    book = fills(
        (0, 0, 4, 50.5, 50.0, ""),  # 2 coins bought at 50, slipped to 50.5
        (10, 1, -2, 10.0, 10.0, ""),  # 1 coin sold short; beta 2 is known by now
        (20, 0, -4, 60.0, 60.0, "time"),
        (30, 1, 2, 9.0, 8.5, "stop"),
    )
    got = book_positions(book, Flows(np.array([0, 0]), np.array([-0.5, 0.2])), Flows.none(), np.full(2, np.nan), 30, FACTOR)
    np.testing.assert_allclose(got.price, [2 * 10.0, 1.5])
    np.testing.assert_allclose(got.slippage, [-1.0, -0.5])
    np.testing.assert_allclose(got.fees, [-2.0, -2.0])
    np.testing.assert_allclose(got.funding, [-0.3, 0.0])
    # BTC rose 21 % while the long of 101 USDT was held, at beta 1 (unknown betas count as 1); 10 % during the short of 10 at 2
    np.testing.assert_allclose(got.market, [101.0 * 0.21, -10.0 * 2.0 * 0.1])
    np.testing.assert_allclose(got.net, [20.0 - 1.0 - 2.0 - 0.3, 1.5 - 0.5 - 2.0])
    assert got.exit_kind.tolist() == ["time", "stop"]
    assert got.closed_in_order().tolist() == got.net.tolist()


def test_what_is_still_held_is_valued_at_its_mark_and_called_open() -> None:
    book = fills((0, 0, 4, 50.0, 50.0, ""), (10, 0, -2, 60.0, 60.0, "partial_liquidation"))
    got = book_positions(book, Flows.none(), Flows(np.array([0]), np.array([-3.0])), np.array([70.0]), 20, FACTOR)
    assert got.exit_kind.tolist() == ["open"]
    assert got.price[0] == pytest.approx(10.0 + 20.0)
    assert got.market[0] == pytest.approx(50.0 * 0.1 + 50.0 * 0.21)  # half left after the first tenth
    assert got.net[0] == pytest.approx(30.0 - 2.0 - 3.0)
    assert not got.is_closed.any()
    assert got.closed_in_order().size == 0


def test_a_symbol_traded_again_is_another_position() -> None:
    symbol, lots = np.array([0, 1, 0, 0, 0, 1]), np.array([3, -1, -1, -2, 5, 1])
    assert number_positions(symbol, lots).tolist() == [0, 1, 0, 0, 2, 1]


def test_an_empty_book_has_no_positions_and_no_result() -> None:
    none = FillBook(*(np.empty(0, np.int64) for _ in range(4)), *(np.empty(0) for _ in range(4)), np.empty(0, "U8"))
    got = book_positions(none, Flows.none(), Flows.none(), np.full(1, np.nan), 0, FACTOR)
    assert attribution(got) == dict.fromkeys(PARTS, 0.0)
    assert grouped(got, got.exit_kind) == {}


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_parts_add_up_to_the_money_that_moved(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    symbol, lots = rng.integers(0, 2, n), rng.integers(1, 5, n) * rng.choice([-1, 1], n)
    raw = rng.uniform(50.0, 150.0, n)
    price, fee = raw * (1.0 + 0.001 * np.sign(lots)), rng.uniform(0.0, 1.0, n)
    position = number_positions(symbol, lots)
    book = FillBook(np.arange(n), symbol, position, lots, np.full(n, 0.1), price, raw, fee, np.full(n, "signal"))
    flow = rng.normal(size=int(position.max()) + 1)
    marks = rng.uniform(50.0, 150.0, 2)
    got = book_positions(book, Flows(np.arange(flow.size), flow), Flows(np.arange(flow.size), -flow / 2), marks, n, FACTOR)
    left = np.bincount(symbol, weights=lots * 0.1, minlength=2)
    cash = -np.sum(lots * 0.1 * price) - fee.sum() + flow.sum() / 2 + left @ marks
    assert sum(attribution(got).values()) == pytest.approx(cash, abs=1e-8)
    for labels in (got.exit_kind, symbol[np.unique(position, return_index=True)[1]].astype(str)):
        rows = grouped(got, labels)
        assert sum(row["net"] for row in rows.values()) == pytest.approx(cash, abs=1e-8)
        assert sum(row["count"] for row in rows.values()) == flow.size

"""Tiers: the whole position takes one rate, bounds are inclusive contracts, tables change over time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.core.tiers import NO_TIER, TierHistory, TierTable


def table(valid_from_ns: int = 0, mmr: float = 0.004) -> TierTable:
    return TierTable(
        np.array([1000.0, 5000.0, 20000.0]),
        np.array([mmr, 2 * mmr, 3 * mmr]),
        np.array([0.01, 0.02, 0.04]),
        np.array([100.0, 50.0, 25.0]),
        valid_from_ns,
    )


@pytest.mark.parametrize(
    ("contracts", "row", "cap"),
    [
        (0.01, 0, 100.0),  # the smallest size
        (1000.0, 0, 100.0),  # a bound belongs to the tier below
        (1000.01, 1, 50.0),  # one lot more does not
        (-1000.01, 1, 50.0),  # a short of the same size
        (20000.0, 2, 25.0),  # the last bound
        (20000.01, NO_TIER, 0.0),  # nothing may be held beyond it
    ],
)
def test_the_tier_is_found_by_contracts(contracts: float, row: int, cap: float) -> None:
    assert table().row(contracts) == row
    assert table().leverage_cap(contracts) == cap


@given(st.floats(1.0, 150.0))
def test_the_largest_size_at_a_leverage_is_allowed_and_the_next_tier_is_not(leverage: float) -> None:
    tiers = table()
    largest = tiers.max_contracts_at(leverage)
    if largest == 0.0:
        assert leverage > 100.0
        return
    assert tiers.leverage_cap(largest) >= leverage * (1 - 1e-9)
    assert tiers.leverage_cap(largest + 1.0) < leverage


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True), st.integers(-10, 1100))
def test_a_history_gives_the_newest_table_not_after_the_moment(starts: list[int], at: int) -> None:
    history = TierHistory([table(valid_from_ns=start) for start in starts])
    past = [start for start in starts if start <= at]
    assert history.at(at).valid_from_ns == (max(past) if past else min(starts))


def test_a_table_holds_from_its_very_instant_on() -> None:
    history = TierHistory([table(0, 0.004), table(1000, 0.01)])
    assert [float(history.at(ts).mmr[0]) for ts in (-5, 0, 999, 1000, 1001)] == [0.004, 0.004, 0.004, 0.01, 0.01]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], [], [], []), "non-empty"),
        (([1.0], [0.1, 0.2], [0.1], [10.0]), "equally long"),
        (([2.0, 1.0], [0.1, 0.2], [0.1, 0.2], [10.0, 5.0]), "increase"),
        (([1.0], [0.0], [0.1], [10.0]), "mmr"),
        (([1.0], [0.1], [1.5], [10.0]), "imr"),
    ],
)
def test_a_broken_table_is_refused(columns: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TierTable(*(np.array(column) for column in columns))


def test_a_history_without_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        TierHistory([])

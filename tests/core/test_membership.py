from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.core.membership import Membership, membership_of


def test_a_snapshot_counts_from_its_own_instant_until_the_next() -> None:
    universe = membership_of([(20, ("ETH", "SOL")), (10, ("BTC", "ETH"))])
    found = universe.at(("SOL", "BTC", "NOBODY"), np.array([9, 10, 19, 20, 99]))
    assert found.tolist() == [
        [False, False, False],  # nobody was known to be a member yet
        [False, True, False],
        [False, True, False],
        [True, False, False],
        [True, False, False],
    ]


def test_who_ever_belonged_includes_the_snapshot_in_force_at_the_start() -> None:
    universe = membership_of([(10, ("A",)), (20, ("B",)), (30, ("C",))])
    assert universe.ever(15, 30) == ("A", "B")
    assert universe.ever(20, 31) == ("B", "C")
    assert universe.ever(0, 10) == ()


def test_shapes_and_order_are_checked() -> None:
    with pytest.raises(ValueError, match="must increase"):
        Membership(np.array([2, 2]), ("A",), np.ones((2, 1), np.bool_))
    with pytest.raises(ValueError, match="shape"):
        Membership(np.array([1]), ("A",), np.ones((1, 2), np.bool_))


@given(st.lists(st.tuples(st.integers(0, 50), st.sets(st.sampled_from("ABCD"))), unique_by=lambda s: s[0], max_size=6))
def test_later_snapshots_change_nothing_earlier(snapshots: list[tuple[int, set[str]]]) -> None:
    times = np.arange(-1, 60)
    whole = membership_of([(t, sorted(names)) for t, names in snapshots]).at("ABCD", times)
    for cut in (0, 25, 50):
        part = membership_of([(t, sorted(names)) for t, names in snapshots if t <= cut]).at("ABCD", times)
        np.testing.assert_array_equal(part[times <= cut], whole[times <= cut])

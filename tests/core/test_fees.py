"""Fees by level and date."""

from __future__ import annotations

import pytest

from crypto_qlib.core.clock import parse_utc
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.fees import OKX_SWAP_2019, FeeHistory, FeeTable, fees_of_level


@pytest.mark.parametrize(
    ("level", "maker", "taker"),
    [
        ("LV1", 0.0002, 0.0005),  # the regular user
        ("lv3", 0.00017, 0.0004),
        ("VIP3", 0.0, 0.0003),  # makers trade for nothing
        ("VIP7", -0.00015, 0.0003),  # a rebate
    ],
)
def test_a_level_gives_its_maker_and_taker_rate(level: str, maker: float, taker: float) -> None:
    schedule = OKX_SWAP_2019.schedule(level)
    assert (schedule.maker, schedule.taker) == (maker, taker)


def test_an_unknown_level_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"VIP9.*LV1"):
        OKX_SWAP_2019.schedule("VIP9")
    with pytest.raises(ValueError, match="VIP9"):
        fees_of_level("VIP9")


def test_a_new_table_holds_from_its_day_and_not_before() -> None:
    change = parse_utc("2026-01-01")
    history = fees_of_level("VIP1", (FeeTable(change, {"VIP1": (0.00016, 0.00045)}), OKX_SWAP_2019))
    assert history.at(change - 1).taker == 0.0003
    assert history.at(change).taker == 0.00045
    assert history.at(0).taker == 0.0003  # before the first table, the first


def test_a_history_needs_a_schedule() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FeeHistory([])
    assert FeeHistory([FeeSchedule()]).at(5) == FeeSchedule(0.0002, 0.0005)

"""Fees by level and date."""

from __future__ import annotations

import pytest

from crypto_qlib.core.clock import parse_utc
from crypto_qlib.core.costs import FeeSchedule
from crypto_qlib.core.fees import OKX_SWAP_2019, FeeHistory, FeeTable, account_fees, fees_of_level


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


def test_an_account_begins_with_its_rates_and_rises_through_levels() -> None:
    """From its own two rates to a level, then to rates agreed on, in whatever order the changes are told."""
    march, june = parse_utc("2026-03-01"), parse_utc("2026-06-01T12:00")
    fees = account_fees(FeeSchedule(0.0002, 0.0005), "", ("2026-06-01T12:00=-0.0001/0.0002", "2026-03-01=VIP2"))
    assert [(fees.at(ts).maker, fees.at(ts).taker) for ts in (0, march - 1, march, june - 1, june)] == [
        (0.0002, 0.0005), (0.0002, 0.0005), (0.00005, 0.0003), (0.00005, 0.0003), (-0.0001, 0.0002),
    ]  # fmt: skip
    assert [s.valid_from_ns for s in fees.after(march)] == [june]
    assert [s.valid_from_ns for s in fees.after(0)] == [march, june]
    assert account_fees(FeeSchedule(), "vip7").at(0).maker == -0.00015


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("2026-03-01=VIP99",), "VIP99"),
        (("soon=VIP1",), "soon"),
        (("2026-03-01=0.02/0.05",), "fractions"),  # per cent taken for fractions
        (("2026-03-01=a/b",), "DATE="),
        (("2026-03-01=VIP1", "2026-03-01=VIP2"), "one instant"),
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(changes: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        account_fees(FeeSchedule(), "", changes)

"""The study of hindsight on the real rankings, and its arithmetic on rankings small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.universe_hindsight import Month, curve, figures, month_returns, months


def month(ts: str, **coins: tuple[float, float]) -> Month:
    table = pd.DataFrame(
        {"price_usd": [p for p, _ in coins.values()], "market_cap_usd": [c for _, c in coins.values()]}, index=list(coins)
    ).sort_values("market_cap_usd", ascending=False)
    return Month(pd.Timestamp(ts, tz="UTC"), table, tuple(table.index))


TABLES = [
    month("2024-01-01", A=(10, 100), DEAD=(5, 90), B=(1, 10), Z=(1, 5)),
    month("2024-02-01", A=(20, 200), B=(3, 30), Z=(1, 4)),
    month("2024-03-01", A=(20, 200), B=(6, 60), Z=(1, 4)),
]


def test_the_curves_of_a_small_market_are_as_worked_out_by_hand() -> None:
    # as known then: (A +100 %, DEAD at most 4/90 of its worth), then (A 0 %, B +100 %)
    then, n_then = curve(TABLES, 2, hindsight=False)
    np.testing.assert_allclose(then, [1, (2 + 4 / 90) / 2, (2 + 4 / 90) / 2 * 1.5])
    # with hindsight A and B from the start: (+100 %, +200 %), then the same
    late, n_late = curve(TABLES, 2, hindsight=True)
    np.testing.assert_allclose(late, [1, 2.5, 3.75])
    assert (n_then, n_late) == (3, 2)


def test_a_change_of_units_is_taken_from_the_market_cap() -> None:
    now, later = month("2024-01-01", A=(1000.0, 50.0), Z=(1, 1)), month("2024-02-01", A=(1.0, 55.0), Z=(1, 1))
    np.testing.assert_allclose(month_returns(now, later, ["A"]), [0.1])


@pytest.mark.real_data
def test_hindsight_flatters_the_real_market_by_tens_of_percent_a_year(shared: Path) -> None:
    rankings = months(shared / "data/cmc_top200_monthly.parquet")
    for size in (20, 50):
        f = figures(rankings, size, "2022-01-01")
        assert f.per_year(f.hindsight) - f.per_year(f.then) > 0.25
        assert f.n_then > 1.5 * f.n_hindsight

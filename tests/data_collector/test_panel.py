from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, NS_PER_MS
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, FundingBlock
from crypto_qlib.data_collector.panel import funding_on_grid, load_panel
from crypto_qlib.store.lake import Kind, Lake
from tests.data_collector.fake_exchange import T0, part, walk, with_values

N = 100
H = NS_PER_HOUR


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    rows = np.arange(N)
    a, b = walk(1, N), walk(2, N)
    lake.write_bars(Kind.CANDLES, "1h", "AUSDT", a)
    lake.write_bars(Kind.CANDLES, "1h", "BUSDT", part(b, (rows >= 10) & (rows < 90) & (rows != 50)))
    lake.write_bars(Kind.MARK, "1h", "AUSDT", part(with_values(a, close=a.close * 1.001), rows != 20))
    lake.write_funding("AUSDT", FundingBlock(T0 + 8 * H * np.arange(-1, 13), np.full(14, 1e-4)))
    return lake


def test_symbols_share_one_grid_and_missing_bars_stay_missing(lake: Lake) -> None:
    panel = load_panel(lake, ["AUSDT", "BUSDT"], "1h", kind=Kind.CANDLES)
    assert panel.ts_open.tolist() == (T0 + H * np.arange(N)).tolist()
    np.testing.assert_array_equal(panel.close[:, 0], walk(1, N).close)
    absent = np.isnan(panel.close[:, 1])
    assert np.flatnonzero(absent).tolist() == [*range(10), 50, *range(90, 100)]
    np.testing.assert_array_equal(panel.quote_volume[~absent, 1], walk(2, N).quote_volume[~absent])


def test_the_mark_is_the_last_price_only_where_it_is_unknown(lake: Lake) -> None:
    panel = load_panel(lake, ["AUSDT", "BUSDT"], "1h", kind=Kind.CANDLES)
    assert panel.has_mark.tolist() == [True, False]
    known = np.arange(N) != 20
    np.testing.assert_array_equal(panel.mark_close[known, 0], panel.close[known, 0] * 1.001)
    assert panel.mark_close[20, 0] == panel.close[20, 0]
    np.testing.assert_array_equal(panel.mark_low[:, 1], panel.low[:, 1])


def test_a_window_is_cut_exactly_and_may_reach_beyond_the_data(lake: Lake) -> None:
    panel = load_panel(lake, ["AUSDT"], "1h", T0 + 90 * H, T0 + 110 * H, Kind.CANDLES)
    assert (panel.n_bars, int(panel.ts_open[0]), int(panel.ts_open[-1])) == (20, T0 + 90 * H, T0 + 109 * H)
    assert np.isnan(panel.close[10:]).all()
    off_grid = load_panel(lake, ["AUSDT"], "1h", T0 + 90 * H + 1, T0 + 92 * H + 1, Kind.CANDLES)
    assert off_grid.ts_open.tolist() == [T0 + 91 * H, T0 + 92 * H]


def test_the_last_bar_of_a_long_history_is_on_the_grid(tmp_path: Path) -> None:
    """2**53 ns are 104 days: a grid counted in floating point loses its last bar after a year."""
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "AUSDT", walk(1, 8760))
    panel = load_panel(lake, ["AUSDT"], "1h", kind=Kind.CANDLES)
    assert panel.n_bars == 8760
    assert np.isfinite(panel.close).all()


def test_an_empty_window_and_an_uncleaned_lake_are_clear_errors(lake: Lake) -> None:
    with pytest.raises(UserError, match="no candles 1h bars of AUSDT from 2026-01-01T00:00:00Z"):
        load_panel(lake, ["AUSDT"], "1h", T0 + 365 * NS_PER_DAY, kind=Kind.CANDLES)
    with pytest.raises(UserError, match=r"no clean 1h bars of AUSDT.*crypto-qlib data check"):
        load_panel(lake, ["AUSDT"], "1h")


@pytest.mark.parametrize(
    ("settlement", "row", "why"),
    [
        (T0, 0, "at an open"),
        (T0 + 8 * H, 8, "at an open"),
        (T0 + 8 * H + 3 * NS_PER_MS, 8, "some milliseconds late: the exchange's jitter"),
        (T0 + 8 * H + 2 * NS_PER_MINUTE, 9, "inside a bar: the next open"),
        (T0 + 8 * H + 30 * NS_PER_MINUTE, 9, "inside a bar: the next open"),
        (T0 - 30 * NS_PER_MINUTE, 0, "inside the bar before the grid"),
    ],
)
def test_a_settlement_is_put_on_the_first_bar_that_opens_at_or_after_it(settlement: int, row: int, why: str) -> None:
    found = funding_on_grid(np.array([settlement]), np.array([2e-4]), T0 + H * np.arange(20), H)
    assert np.flatnonzero(np.isfinite(found)).tolist() == [row], why
    assert found[row] == 2e-4


def test_settlements_of_one_bar_add_up_and_a_rate_of_zero_is_not_the_absence_of_one() -> None:
    ts = T0 + 8 * H * np.arange(7)
    daily = funding_on_grid(ts, np.array([1, 2, 3, 4, 0, 0, 0]) * 1e-4, T0 + NS_PER_DAY * np.arange(4), NS_PER_DAY)
    np.testing.assert_allclose(daily, [1e-4, 9e-4, 0.0, np.nan])


def test_nothing_later_than_the_moment_is_in_the_cut_and_it_cannot_be_written(lake: Lake) -> None:
    panel = load_panel(lake, ["AUSDT", "BUSDT"], "1h", kind=Kind.CANDLES)
    cut = panel.known_until(T0 + 30 * H + 59 * NS_PER_MINUTE)
    assert int(cut.ts_open[-1]) == T0 + 29 * H
    for name in PANEL_FIELDS:
        assert getattr(cut, name).shape == (30, 2)
        with pytest.raises(ValueError, match="read-only"):
            getattr(cut, name)[0, 0] = 1.0

"""The rules about whole series, the schema at the border, causes of gaps, and how well defects in real hours are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.cleaning import COINS, Score, real_hours, scores

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import InstrumentState
from crypto_qlib.core.market import BarBlock
from crypto_qlib.data_collector.bar_rules import Flag
from crypto_qlib.data_collector.bar_schema import require_bars
from crypto_qlib.data_collector.clean_data import clean
from crypto_qlib.data_collector.contract_archive import archive_instruments
from crypto_qlib.data_collector.series_rules import check_series, find_rescaling, find_volume_steps, mend_volume
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.lake import Kind, Lake, Series
from tests.data_collector.fake_exchange import T0, instrument, part, walk, with_values

N = 400
PRICES = ("open", "high", "low", "close")


def scaled(block: BarBlock, start: int, stop: int, factor: float) -> BarBlock:
    changed = {n: getattr(block, n).copy() for n in PRICES}
    for values in changed.values():
        values[start:stop] *= factor
    return with_values(block, **changed)


@pytest.mark.parametrize(
    ("factor", "start", "stop", "breaks", "why"),
    [
        (1e-3, 200, N, [200], "1000X becomes X"),
        (100.0, 200, N, [200], "a hundred old coins for a new one"),
        (0.13, 200, N, [], "no power of ten: a crash between two bars stays a crash"),
        (10.0, 200, 201, [], "one bad print goes back at once"),
        (1e-3, 1, N, [1], "right at the start"),
    ],
)
def test_a_change_of_units_is_told_from_a_crash(factor: float, start: int, stop: int, breaks: list[int], why: str) -> None:
    assert np.flatnonzero(find_rescaling(scaled(walk(3, N), start, stop, factor))).tolist() == breaks, why


def test_a_fall_by_nine_tenths_inside_a_bar_is_no_change_of_units() -> None:
    block = walk(3, N)
    crashed = scaled(block, 201, N, 0.1)
    low, close = crashed.low.copy(), crashed.close.copy()
    low[200] = close[200] = crashed.open[201]
    assert not find_rescaling(with_values(crashed, low=low, close=close)).any()


def test_bars_in_old_units_are_left_out_and_the_newest_units_stay(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write_bars(Kind.CANDLES, "1h", "NEWUSDT", scaled(walk(3, N), 200, N, 1e-3))
    report = clean(lake, ["NEWUSDT"], DataSettings())
    rows = lake.read(Series(Kind.CLEAN, "1h", "NEWUSDT"))
    assert np.isnan(rows["close"][:200]).all()
    assert np.isfinite(rows["close"][200:]).all()
    assert report.symbols[0].notes == ("quoted in other units before 2025-01-09T08:00:00Z: those bars are left out",)
    raw = lake.read_bars(Kind.CANDLES, "1h", "NEWUSDT")  # the raw bars stay beside the cleaned ones
    assert np.isfinite(raw.close).all()


def test_volume_in_another_unit_is_worked_out_from_turnover_but_a_bad_price_is_not_taken_for_one() -> None:
    block = walk(4, N)
    volume = block.volume.copy()
    volume[100:110] *= 100.0  # contracts of 0.01 coins
    volume[200] = block.quote_volume[200]  # turnover in the wrong column
    spoilt = scaled(with_values(block, volume=volume), 300, 301, 4.0)
    mended, is_off = mend_volume(spoilt)
    assert np.flatnonzero(is_off).tolist() == [*range(100, 110), 200]
    np.testing.assert_allclose(mended[100:110], block.volume[100:110], rtol=0.05)
    np.testing.assert_array_equal(mended[300], block.volume[300])


def test_a_lasting_step_of_the_volume_is_told_where_no_turnover_is_known() -> None:
    block = with_values(walk(5, N), quote_volume=np.full(N, np.nan))
    volume = block.volume.copy()
    volume[250:] *= 1000.0
    assert 250 in np.flatnonzero(find_volume_steps(with_values(block, volume=volume)))
    assert not find_volume_steps(block).any()


def test_a_feed_that_repeats_itself_and_bars_after_the_last_day_are_left_out() -> None:
    block = walk(6, N)
    changed = {n: getattr(block, n).copy() for n in (*PRICES, "volume")}
    for values in changed.values():
        values[50:53] = values[49]
    cleaned, flags = check_series(with_values(block, **changed), 0, T0 + 390 * NS_PER_HOUR)
    assert np.flatnonzero(flags & Flag.FROZEN).tolist() == [50, 51, 52]
    assert np.flatnonzero(flags & Flag.DELISTED).tolist() == [*range(390, N)]
    assert np.flatnonzero(np.isnan(cleaned.close)).tolist() == [50, 51, 52, *range(390, N)]


def test_gaps_are_told_apart_by_what_caused_them(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    asked = (T0, T0 + N * NS_PER_HOUR)
    keep = np.ones(N, bool)
    keep[[100, 101]] = False
    thin = walk(2, N)
    volume = thin.volume.copy()
    volume[80:120:2] = 0.0
    blocks = {"SUSPUSDT": walk(1, N), "THINUSDT": with_values(thin, volume=volume), "LACKUSDT": walk(3, N)}
    blocks |= {f"C{k}USDT": walk(10 + k, N) for k in range(6)}
    for symbol, block in blocks.items():
        is_whole = symbol.startswith("C")
        lake.write_bars(Kind.CANDLES, "1h", symbol, block if is_whole else part(block, keep))
        if symbol != "LACKUSDT":
            lake.remember_asked(Series(Kind.CANDLES, "1h", symbol), [asked])
    causes = {s.symbol: [g.cause for g in s.gaps] for s in clean(lake, list(blocks), DataSettings()).symbols if s.gaps}
    assert causes == {"SUSPUSDT": ["suspended"], "THINUSDT": ["illiquid"], "LACKUSDT": ["not collected"]}
    gone = instrument("SUSPUSDT", state=InstrumentState.EXPIRED, delisted_ns=T0 + 100 * NS_PER_HOUR)
    archive_instruments(lake, [gone, *(instrument(s) for s in blocks if s != "SUSPUSDT")], T0)
    (found,) = [s for s in clean(lake, list(blocks), DataSettings()).symbols if s.symbol == "SUSPUSDT"]
    assert [g.cause for g in found.gaps] == ["not listed"]


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("high", 1.0, "high is below"),
        ("close", np.nan, "some prices of a bar are missing"),
        ("volume", -1.0, "a volume is negative"),
        ("low", -1.0, "not positive"),
        ("ts_open", 17, "not open on the grid"),
    ],
)
def test_the_border_refuses_a_table_that_breaks_its_promise_by_name_and_time(field: str, value: float, rule: str) -> None:
    block = walk(1, 50)
    require_bars(block, NS_PER_HOUR, "BTCUSDT", is_clean=True)
    values = getattr(block, field).copy()
    values[0 if field == "ts_open" else 20] = value
    with pytest.raises(UserError, match=rule) as e:
        require_bars(with_values(block, **{field: values}), NS_PER_HOUR, "BTCUSDT", is_clean=True)
    assert field == "ts_open" or "2025-01-01T20:00:00Z" in e.value.message


def test_the_raw_border_refuses_doubled_and_disordered_rows() -> None:
    block = part(walk(1, 50), np.array([0, 1, 3, 2]))
    with pytest.raises(UserError, match="not in order of time"):
        require_bars(block, NS_PER_HOUR, "BTCUSDT", is_clean=False)


@pytest.fixture(scope="module")
def hours(shared: Path) -> tuple[dict[str, BarBlock], dict[str, BarBlock]]:
    return real_hours(shared / "data", "okx_perp_1h.parquet"), real_hours(shared / "data", "okx_mark_1h.parquet")


@pytest.mark.real_data
@pytest.mark.parametrize(("with_marks", "least"), [(True, 0.9), (False, 0.7)])
def test_seeded_defects_in_real_hours_are_found_and_the_crash_of_october_is_left_alone(
    hours: tuple[dict[str, BarBlock], dict[str, BarBlock]], with_marks: bool, least: float
) -> None:
    blocks, marks = hours
    assert len(blocks) == len(COINS)
    found: dict[str, Score] = {s.kind: s for s in scores(blocks, marks if with_marks else {}, seed=7)}
    assert {k: s.precision for k, s in found.items() if s.precision < 0.95} == {}
    assert {k: s.recall for k, s in found.items() if s.recall < (least if k == "bad_print" else 0.98)} == {}
    assert all(pd.notna(s.recall) for s in found.values())

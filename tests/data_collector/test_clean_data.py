from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import BarBlock
from crypto_qlib.data_collector.bar_rules import Flag, in_order, repair, trailing_sigma
from crypto_qlib.data_collector.clean_data import clean
from crypto_qlib.data_collector.quality_report import write_quality_report
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.lake import Kind, Lake, Series
from tests.data_collector.fake_exchange import part, walk, with_values

N = 1200
SETTINGS = DataSettings(since="2025-01-01")
SYMBOLS = tuple(f"C{k:02d}USDT" for k in range(12))


def fill(lake: Lake, last: dict[str, BarBlock], mark: dict[str, BarBlock] | None = None) -> None:
    for symbol, block in last.items():
        lake.write_bars(Kind.CANDLES, "1h", symbol, block)
    for symbol, block in (mark or {}).items():
        lake.write_bars(Kind.MARK, "1h", symbol, block)


def flags(lake: Lake, symbol: str) -> np.ndarray:
    return lake.read(Series(Kind.CLEAN, "1h", symbol))["flag"]


def scaled(block: BarBlock, at: int, factor: float) -> BarBlock:
    """Return ``block`` with the whole bar ``at`` printed ``factor`` times too high."""
    changes = {n: getattr(block, n).copy() for n in ("open", "high", "low", "close")}
    for prices in changes.values():
        prices[at] *= factor
    return with_values(block, **changes)


def test_clean_bars_pass_unchanged(tmp_path: Path) -> None:
    lake, block = Lake(tmp_path), walk(1, N)
    fill(lake, {"BTCUSDT": block}, {"BTCUSDT": block})
    report = clean(lake, ["BTCUSDT"], SETTINGS)
    stored = lake.read_bars(Kind.CLEAN, "1h", "BTCUSDT")
    for name in BarBlock.__slots__:
        np.testing.assert_array_equal(getattr(stored, name), getattr(block, name))
    assert report.symbols[0].counts == {}
    assert report.failures == ()


@pytest.mark.parametrize(
    ("field", "value", "flag", "close_survives"),
    [
        ("close", 0.0, Flag.BAD_PRICE, False),
        ("open", -1.0, Flag.BAD_PRICE, False),
        ("low", np.nan, Flag.BAD_PRICE, False),
        ("high", np.inf, Flag.BAD_PRICE, False),
        ("high", 1.0, Flag.BAD_RANGE, True),
        ("low", 1e6, Flag.BAD_RANGE, True),
        ("volume", -5.0, Flag.BAD_VOLUME, True),
        ("quote_volume", np.inf, Flag.BAD_VOLUME, True),
    ],
)
def test_one_bad_value_is_flagged_and_only_its_bar_changes(field: str, value: float, flag: Flag, close_survives: bool) -> None:
    block = walk(2, 100)
    values = getattr(block, field).copy()
    values[40] = value
    mended, found = repair(with_values(block, **{field: values}), NS_PER_HOUR)
    assert found[40] == flag
    assert np.count_nonzero(found) == 1
    assert np.isfinite(mended.close[40]) == close_survives
    if close_survives:
        assert (
            mended.low[40]
            <= min(mended.open[40], mended.close[40])
            <= max(mended.open[40], mended.close[40])
            <= mended.high[40]
        )
    others = np.arange(100) != 40
    for name in BarBlock.__slots__:
        np.testing.assert_array_equal(getattr(mended, name)[others], getattr(block, name)[others])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_shuffled_and_doubled_bars_come_back_in_order(data: st.DataObject) -> None:
    block = walk(3, 30)
    doubled = data.draw(st.lists(st.integers(0, 29), max_size=5))
    order = np.array(data.draw(st.permutations([*range(30), *doubled])))
    sorted_again, found = in_order(part(block, order))
    for name in BarBlock.__slots__:
        np.testing.assert_array_equal(getattr(sorted_again, name), getattr(block, name))
    assert set(np.flatnonzero(found & Flag.DUPLICATE)) == set(doubled)


def test_flat_bars_after_a_delisting_end_after_a_day_and_not_before(tmp_path: Path) -> None:
    block = walk(4, 300)
    dead = np.arange(300) >= 200
    price = block.close[199]
    changes = {n: np.where(dead, price, getattr(block, n)) for n in ("open", "high", "low", "close")}
    changes |= {n: np.where(dead, 0.0, getattr(block, n)) for n in ("volume", "quote_volume")}
    mended, found = repair(with_values(block, **changes), NS_PER_HOUR)
    np.testing.assert_array_equal(np.flatnonzero(found == Flag.STALE), np.arange(223, 300))
    np.testing.assert_array_equal(np.isnan(mended.close), np.arange(300) >= 223)


def test_volatility_uses_nothing_of_the_bar_itself_or_later() -> None:
    returns = np.random.default_rng(5).normal(0, 0.01, (500, 3))
    changed = returns.copy()
    changed[300:] *= 50.0
    np.testing.assert_array_equal(trailing_sigma(returns)[:301], trailing_sigma(changed)[:301])


def test_seeded_spikes_are_found_with_full_precision_and_recall(tmp_path: Path) -> None:
    """Half of the coins have a mark, which contradicts the spike (mended); the others have none (told only)."""
    rng = np.random.default_rng(6)
    lake, truth = Lake(tmp_path), {}
    last = {s: walk(100 + k, N) for k, s in enumerate(SYMBOLS)}
    mark = {s: last[s] for s in SYMBOLS[:6]}
    times = np.sort(rng.permutation(np.arange(60, N - 5, 10))[: 5 * len(SYMBOLS)].reshape(len(SYMBOLS), 5))
    for symbol, at in zip(SYMBOLS, times, strict=True):  # no bar twice: what several coins do together is no error
        truth[symbol] = at
        for t in at:
            last[symbol] = scaled(last[symbol], int(t), float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.6, 2.0))))
    fill(lake, last, mark)
    clean(lake, SYMBOLS, SETTINGS)
    hits = false_alarms = 0
    for symbol in SYMBOLS:
        found = np.flatnonzero(flags(lake, symbol) & (Flag.OUTLIER | Flag.SUSPECT))
        hits += np.isin(truth[symbol], found).sum()
        false_alarms += np.setdiff1d(found, truth[symbol]).size
    recall, precision = hits / (5 * len(SYMBOLS)), hits / (hits + false_alarms)
    assert recall >= 0.98
    assert precision >= 0.98
    for symbol in SYMBOLS[:6]:  # the mark contradicts: the mended close is the mark's
        close = lake.read_bars(Kind.CLEAN, "1h", symbol).close
        np.testing.assert_allclose(close[truth[symbol]], mark[symbol].close[truth[symbol]])
    for symbol in SYMBOLS[6:]:  # only the next bar proves it: the value that was seen at the time stays
        np.testing.assert_array_equal(lake.read_bars(Kind.CLEAN, "1h", symbol).close, last[symbol].close)


@pytest.mark.parametrize("reverts", [False, True])
def test_a_crash_of_all_coins_is_never_touched(tmp_path: Path, reverts: bool) -> None:
    lake, last = Lake(tmp_path), {}
    for k, symbol in enumerate(SYMBOLS):
        block = walk(200 + k, N)
        fall = np.ones(N)
        fall[600 : 601 if reverts else N] = 0.45
        last[symbol] = with_values(block, **{n: getattr(block, n) * fall for n in ("open", "high", "low", "close")})
    fill(lake, last)
    report = clean(lake, SYMBOLS, SETTINGS)
    assert all(s.counts == {} for s in report.symbols)


def test_a_crash_of_one_coin_that_its_mark_shares_is_never_touched(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    last = {s: walk(300 + k, N) for k, s in enumerate(SYMBOLS)}
    last[SYMBOLS[0]] = scaled(last[SYMBOLS[0]], 700, 0.3)
    fill(lake, last, last)
    clean(lake, SYMBOLS, SETTINGS)
    assert not flags(lake, SYMBOLS[0]).any()
    np.testing.assert_array_equal(lake.read_bars(Kind.CLEAN, "1h", SYMBOLS[0]).close, last[SYMBOLS[0]].close)


def test_no_cleaned_value_depends_on_a_later_bar(tmp_path: Path) -> None:
    last = {s: walk(400 + k, N) for k, s in enumerate(SYMBOLS)}
    mark = {s: b for s, b in last.items() if s < "C06USDT"}
    last = {s: scaled(b, 800, 3.0) for s, b in last.items()}
    short = {s: part(b, np.arange(N) <= 800) for s, b in last.items()}
    fill(Lake(tmp_path / "long"), last, mark)
    fill(Lake(tmp_path / "short"), short, {s: part(b, np.arange(N) <= 800) for s, b in mark.items()})
    for name in ("long", "short"):
        clean(Lake(tmp_path / name), SYMBOLS, SETTINGS)
    for symbol in SYMBOLS:
        whole = lake_rows(tmp_path / "long", symbol)
        cut = lake_rows(tmp_path / "short", symbol)
        for field in BarBlock.__slots__:
            np.testing.assert_array_equal(getattr(whole, field)[:801], getattr(cut, field))


def lake_rows(root: Path, symbol: str) -> BarBlock:
    return Lake(root).read_bars(Kind.CLEAN, "1h", symbol)


def test_a_long_gap_fails_the_check_with_one_line_naming_symbol_and_times(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    keep = (np.arange(N) < 100) | (np.arange(N) >= 107)
    fill(lake, {"BTCUSDT": walk(7, N), "ETHUSDT": part(walk(8, N), keep)})
    report = clean(lake, ["BTCUSDT", "ETHUSDT"], SETTINGS)
    assert report.failures == (
        "ETHUSDT: 7 bars are missing from 2025-01-05T04:00:00Z to 2025-01-05T11:00:00Z (not collected), "
        "more than data.max_gap_bars = 6",
    )
    with pytest.raises(UserError, match="ETHUSDT: 7 bars are missing"):
        report.raise_if_unfit()
    clean(lake, ["BTCUSDT", "ETHUSDT"], SETTINGS.model_copy(update={"max_gap_bars": 7})).raise_if_unfit()


def test_every_coin_with_a_long_gap_is_named_with_the_setting_that_leaves_them_out(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    once = (np.arange(N) < 100) | (np.arange(N) >= 107)
    twice = once & ((np.arange(N) < 30) | (np.arange(N) >= 40))
    fill(lake, {"BTCUSDT": walk(7, N), "ETHUSDT": part(walk(8, N), once), "SOLUSDT": part(walk(9, N), twice)})
    with pytest.raises(UserError, match="; 2 more such, in ETHUSDT, SOLUSDT") as stop:
        clean(lake, ["BTCUSDT", "ETHUSDT", "SOLUSDT"], SETTINGS).raise_if_unfit()
    assert "--set universe.exclude=[ETH,SOL]" in str(stop.value.hint)


def test_bars_missing_for_most_symbols_are_called_an_outage(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    keep = (np.arange(N) < 100) | (np.arange(N) >= 103)
    fill(lake, {s: part(walk(k, N), keep) if k < 8 else walk(k, N) for k, s in enumerate(SYMBOLS)})
    report = clean(lake, SYMBOLS, SETTINGS)
    assert [g.cause for g in report.symbols[0].gaps] == ["outage"]
    assert report.symbols[0].n_missing == 3


def test_cleaning_twice_touches_no_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    fill(lake, {"BTCUSDT": walk(9, N)})
    clean(lake, ["BTCUSDT"], SETTINGS)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    clean(lake, ["BTCUSDT"], SETTINGS)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == before


def test_a_mark_on_another_scale_is_not_believed(tmp_path: Path) -> None:
    lake, block = Lake(tmp_path), scaled(walk(10, N), 700, 4.0)
    off = with_values(block, **{n: getattr(block, n) / 1000 for n in ("open", "high", "low", "close")})
    fill(lake, {"BTCUSDT": block}, {"BTCUSDT": off})
    report = clean(lake, ["BTCUSDT"], SETTINGS)
    assert report.symbols[0].notes == ("the mark is on another scale than the last price and was not used",)
    assert report.symbols[0].counts == {"suspect": 1}


def test_the_report_is_written_for_machines_and_people(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    fill(lake, {"BTCUSDT": part(walk(11, N), np.arange(N) != 50), "ETHUSDT": walk(12, N)})
    page = write_quality_report(clean(lake, ["BTCUSDT", "ETHUSDT"], SETTINGS), tmp_path / "report").read_text()
    document = json.loads((tmp_path / "report/quality.json").read_text())
    assert document["totals"] == {"bars": 2 * N - 1, "missing": 1}
    assert document["symbols"][0]["gaps"] == [
        {"start": "2025-01-03T02:00:00Z", "end": "2025-01-03T03:00:00Z", "n_bars": 1, "cause": "not collected"}
    ]
    assert "2025-01-03T02:00:00Z" in page
    assert "No gap is longer than allowed" in page


def test_a_symbol_without_candles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no 1h candles of BTCUSDT"):
        clean(Lake(tmp_path), ["BTCUSDT"], SETTINGS)

"""Replay: what the file says is served as it stands; what it does not say is decided as documented; defects are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.replay_contracts import price_decimals
from crypto_qlib.exchange.embedded.replay_files import base_coin
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket

START = parse_utc("2025-01-01")
COLUMNS = ["symbol", "ts", "open", "high", "low", "close", "volume"]


def candles(symbol: str, n: int = 30, first: str = "2025-01-01", price: float = 100.0) -> pd.DataFrame:
    """Return ``n`` plain hours: each closes 0.1 above its open, range 0.2, volume 10, 11, 12 ..."""
    k = np.arange(n)
    ts = pd.date_range(first, periods=n, freq="h", tz="UTC").astype("datetime64[ms, UTC]")
    o = np.round(price + 0.1 * k, 1)
    close = np.round(o + 0.1, 1)
    return pd.DataFrame(
        {"symbol": symbol, "ts": ts, "open": o, "high": close, "low": np.round(o - 0.1, 1), "close": close, "volume": 10.0 + k}
    )


def saved(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".feather":
        frame.to_feather(path)
    else:
        frame.to_parquet(path, index=False)
    return path


# What the file says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
@pytest.mark.parametrize("name", ["BTC/USDT:USDT", "BTC-USDT-SWAP", "BTCUSDT", "btc_usdt"])
def test_rows_are_served_as_they_stand_from_any_format_and_spelling(tmp_path: Path, suffix: str, name: str) -> None:
    rows = candles(name)
    market = ReplayMarket(saved(rows, tmp_path / f"history{suffix}"))
    assert (market.is_simulated, market.base_frame_ns) == (False, NS_PER_HOUR)
    assert (market.start_ns, market.end_ns) == (START, START + 30 * NS_PER_HOUR)
    bars = market.bars("BTCUSDT", NS_PER_HOUR, 0, market.end_ns)
    np.testing.assert_array_equal(bars.ts_open, START + np.arange(30) * NS_PER_HOUR)
    for column in ("open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(bars, column), rows[column])


def test_coarse_bars_are_aggregates_and_only_complete_ones_are_served(tmp_path: Path) -> None:
    market = ReplayMarket(saved(candles("BTCUSDT"), tmp_path / "c.parquet"))
    bars = market.bars("BTCUSDT", FRAME_NS["4h"], START, market.end_ns)
    assert len(bars) == 7, "30 hours hold 7 whole 4-hour bars"
    # hours 4..7: opens at 100.4, last close 100.8, low of the first 100.3, volumes 14 + 15 + 16 + 17
    assert (bars.open[1], bars.high[1], bars.low[1], bars.close[1], bars.volume[1]) == (100.4, 100.8, 100.3, 100.8, 62.0)
    assert len(market.bars("BTCUSDT", FRAME_NS["1d"], START, market.end_ns)) == 1
    with pytest.raises(ValueError, match="not a multiple"):
        market.bars("BTCUSDT", FRAME_NS["15m"], START, market.end_ns)


def test_turnover_is_the_files_or_else_volume_times_the_mean_price(tmp_path: Path) -> None:
    rows = candles("BTCUSDT", 2)
    derived = ReplayMarket(saved(rows, tmp_path / "a.parquet")).bars("BTCUSDT", NS_PER_HOUR, START, START + NS_PER_DAY)
    assert derived.quote_volume[0] == pytest.approx(10.0 * (100.0 + 100.1 + 99.9 + 100.1) / 4)
    given = ReplayMarket(saved(rows.assign(quote_volume=[7.0, 8.0]), tmp_path / "b.parquet"))
    assert given.bars("BTCUSDT", NS_PER_HOUR, START, START + NS_PER_DAY).quote_volume.tolist() == [7.0, 8.0]


@pytest.mark.parametrize("unit", [1, 1000, 10**6, 10**9], ids=["s", "ms", "us", "ns"])
def test_epoch_numbers_are_read_by_their_size(tmp_path: Path, unit: int) -> None:
    rows = candles("BTCUSDT").drop(columns="ts")
    rows["timestamp"] = (START // 10**9 + 3600 * np.arange(30)) * unit
    assert ReplayMarket(saved(rows, tmp_path / "c.csv")).start_ns == START


def test_a_folder_of_single_symbol_files_is_one_market(tmp_path: Path) -> None:
    saved(candles("x").drop(columns="symbol").rename(columns={"ts": "date"}), tmp_path / "BTC_USDT_USDT-1h-futures.feather")
    saved(candles("x").drop(columns="symbol"), tmp_path / "ETHUSDT.parquet")
    (tmp_path / "SOLUSDT").mkdir()
    saved(candles("x", 744).drop(columns="symbol"), tmp_path / "SOLUSDT" / "2025-01.parquet")
    saved(candles("x", 5, "2025-02-01").drop(columns="symbol"), tmp_path / "SOLUSDT" / "2025-02.parquet")
    market = ReplayMarket(tmp_path)
    assert [i.symbol for i in market.instruments()] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    assert len(market.bars("SOLUSDT", NS_PER_HOUR, 0, market.end_ns)) == 749


def test_our_own_lake_is_replayed_at_its_finest_frame_with_its_funding(tmp_path: Path) -> None:
    for frame, freq in (("1h", "h"), ("4h", "4h")):
        folder = tmp_path / "candles" / frame / "BTCUSDT"
        folder.mkdir(parents=True)
        rows = candles("x", 10).drop(columns="symbol")
        saved(
            rows.assign(ts=pd.date_range("2025-01-01", periods=10, freq=freq, tz="UTC").as_unit("ns").asi8),
            folder / "2025-01.parquet",
        )
    events = tmp_path / "funding" / "event" / "BTCUSDT"
    events.mkdir(parents=True)
    saved(pd.DataFrame({"ts": [START, START + 8 * NS_PER_HOUR], "rate": [1e-4, 2e-4]}), events / "2025-01.parquet")
    market = ReplayMarket(tmp_path)
    assert market.base_frame_ns == NS_PER_HOUR
    assert market.funding("BTCUSDT", START, market.end_ns).rate.tolist() == [1e-4, 2e-4]


def test_funding_marks_and_what_is_not_recorded(tmp_path: Path) -> None:
    path = saved(pd.concat([candles("BTCUSDT"), candles("ETHUSDT")]), tmp_path / "c.parquet")
    hours = pd.to_datetime([START + k * 4 * NS_PER_HOUR for k in range(3)], utc=True)
    funding = saved(
        pd.DataFrame({"symbol": "BTC/USDT:USDT", "ts": hours, "funding_rate": [1e-4, -2e-4, 0.0]}), tmp_path / "f.csv"
    )
    mark = saved(candles("BTC/USDT:USDT", price=101.0).drop(columns="volume"), tmp_path / "m.parquet")
    market = ReplayMarket(path, funding=funding, mark=mark)
    block = market.funding("BTCUSDT", START, START + 8 * NS_PER_HOUR)
    assert (block.ts.tolist(), block.rate.tolist()) == ([START, START + 4 * NS_PER_HOUR], [1e-4, -2e-4])
    assert {i.symbol: i.funding_interval_h for i in market.instruments()} == {"BTCUSDT": 4, "ETHUSDT": 8}
    marks = market.mark_bars("BTCUSDT", NS_PER_HOUR, START, START + NS_PER_HOUR)
    assert marks.open.tolist() == [101.0]
    assert np.isnan(marks.volume[0])
    assert len(market.mark_bars("ETHUSDT", NS_PER_HOUR, START, market.end_ns)) == 0
    assert len(market.funding("ETHUSDT", START, market.end_ns)) == 0, "none is made up"
    assert len(market.index_bars("BTCUSDT", NS_PER_HOUR, START, market.end_ns)) == 0
    assert np.isnan(market.open_interest("BTCUSDT", START))
    assert market.market_caps(START) == {}


def test_a_days_market_cap_is_known_when_the_day_is_over(tmp_path: Path) -> None:
    path = saved(pd.concat([candles("BTCUSDT", 24 * 60), candles("1000PEPEUSDT", 24 * 60)]), tmp_path / "c.parquet")
    days = pd.to_datetime(["2025-01-01", "2025-01-02"], utc=True)
    caps = pd.concat([
        pd.DataFrame({"base": "BTC", "ts": days, "market_cap_usd": [10.0, 20.0]}),
        pd.DataFrame({"base": "PEPE", "ts": days[:1], "market_cap_usd": [3.0]}),
    ])  # fmt: skip
    market = ReplayMarket(path, market_caps=saved(caps, tmp_path / "caps.parquet"))
    assert market.market_caps(START + NS_PER_DAY - 1) == {}
    assert market.market_caps(START + NS_PER_DAY) == {"BTC": 10.0, "1000PEPE": 3.0}
    assert market.market_caps(START + 2 * NS_PER_DAY) == {"BTC": 20.0, "1000PEPE": 3.0}
    assert market.market_caps(START + 50 * NS_PER_DAY) == {}, "too old to be known"
    prompt = ReplayMarket(path, market_caps=tmp_path / "caps.parquet", caps_known_after_ns=0)
    assert prompt.market_caps(START)["BTC"] == 10.0


# What is decided ------------------------------------------------------------------------------------------------------


def test_a_gap_stays_a_gap_and_is_told(tmp_path: Path) -> None:
    market = ReplayMarket(saved(candles("BTCUSDT").drop(index=[10, 11, 12]), tmp_path / "c.parquet"))
    (gap,) = market.gaps()
    assert (gap.symbol, gap.n_bars) == ("BTCUSDT", 3)
    assert (gap.start_ns, gap.end_ns) == (START + 10 * NS_PER_HOUR, START + 13 * NS_PER_HOUR)
    assert len(market.bars("BTCUSDT", NS_PER_HOUR, gap.start_ns, gap.end_ns)) == 0


def test_a_dead_tail_is_cut_and_the_symbol_delisted_at_its_last_trade(tmp_path: Path) -> None:
    dead = candles("FTTUSDT", 40)
    dead.loc[10:, ["open", "high", "low", "close"]] = dead.loc[9, "close"]
    dead.loc[10:, "volume"] = 0.0
    market = ReplayMarket(saved(pd.concat([candles("BTCUSDT", 40), dead]), tmp_path / "c.parquet"))
    instruments = {i.symbol: i for i in market.instruments()}
    assert instruments["BTCUSDT"].delisted_ns is None
    assert instruments["FTTUSDT"].delisted_ns == START + 10 * NS_PER_HOUR
    assert len(market.bars("FTTUSDT", NS_PER_HOUR, START, market.end_ns)) == 10


def test_a_quiet_tail_shorter_than_a_day_is_no_delisting(tmp_path: Path) -> None:
    quiet = candles("FTTUSDT", 40)
    quiet.loc[30:, ["open", "high", "low", "close"]] = 1.0
    quiet.loc[30:, "volume"] = 0.0
    (instrument,) = ReplayMarket(saved(quiet, tmp_path / "c.parquet")).instruments()
    assert instrument.delisted_ns is None


def test_rows_that_end_early_mean_a_delisting_unless_told_otherwise(tmp_path: Path) -> None:
    path = saved(pd.concat([candles("BTCUSDT", 100), candles("EOSUSDT", 50), candles("XRPUSDT", 90)]), tmp_path / "c.parquet")
    ends = {i.symbol: i.delisted_ns for i in ReplayMarket(path).instruments()}
    # XRP ends 10 hours early, within a day of the end: how collections end, not a delisting
    assert ends == {"BTCUSDT": None, "EOSUSDT": START + 50 * NS_PER_HOUR, "XRPUSDT": None}
    kept = ReplayMarket(path, delisted_after_ns=None).instruments()
    assert all(i.delisted_ns is None for i in kept)


def test_the_contract_is_derived_from_prices_or_given(tmp_path: Path) -> None:
    path = saved(candles("BTCUSDT", 48), tmp_path / "c.parquet")
    market = ReplayMarket(path)
    (derived,) = market.instruments()
    assert derived.tick_size == 0.1
    assert (derived.listed_ns, derived.ct_val, derived.max_leverage) == (START, 0.1, 20.0)
    assert market.tiers("BTCUSDT").at(START).max_leverage[0] == 20.0
    true = replace(derived, tick_size=0.05, ct_val=0.01, listed_ns=0)
    (given,) = ReplayMarket(path, instruments={"BTCUSDT": true}).instruments()
    assert (given.tick_size, given.ct_val, given.listed_ns) == (0.05, 0.01, START)


@pytest.mark.parametrize(
    ("prices", "decimals"),
    [([94000.1, 93999.5], 1), ([100.0, 20.0], 0), ([0.00002131], 8), ([1e-10, 3e-10], 10), ([0.1 + 0.2], 1)],
)
def test_decimals_are_those_the_prices_are_written_with(prices: list[float], decimals: int) -> None:
    assert price_decimals(np.array(prices)) == decimals


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("1000PEPE/USDT:USDT", "1000PEPE"),
        ("BTCUSDT", "BTC"),
        ("ETH-USDT-SWAP", "ETH"),
        ("SOL", "SOL"),
        ("BTC_USDT_USDT", "BTC"),
    ],
)
def test_names_are_understood(name: str, base: str) -> None:
    assert base_coin(name, "file") == base


# What is refused ------------------------------------------------------------------------------------------------------


def broken(**changes: object) -> pd.DataFrame:
    """Return good candles with row 5 (the sixth) changed."""
    rows = candles("BTCUSDT")
    for column, value in changes.items():
        rows.loc[5, column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (broken(close=np.nan), r"BTC row 6 \(2025-01-01T05:00:00Z\): a price is missing"),
        (broken(low=-1.0), "row 6 .*: a price is zero or negative"),
        (broken(high=90.0), "row 6 .*: high is below low"),
        (broken(open=200.0), "row 6 .*: open or close lies outside"),
        (broken(volume=-1.0), "row 6 .*: volume is missing or negative"),
        (broken(volume=np.nan), "row 6 .*: volume is missing or negative"),
        (candles("BTCUSDT").iloc[[0, 1, 3, 2, 4]], r"row 4 \(2025-01-01T02:00:00Z\) comes after a later one"),
        (candles("BTCUSDT").iloc[[0, 1, 1, 2]], "row 3 .* is there twice"),
        (candles("BTCUSDT").drop(columns="high"), "the column 'high' is missing"),
        (candles("BTCUSDT").drop(columns="ts"), "the column 'ts' is missing"),
        (candles("BTCUSDT").assign(close="high"), "the column 'close' is not numeric"),
        (candles("BTC/EUR"), "is not a USDT swap"),
        (candles("BTCUSDT").iloc[:0], "no rows"),
        (candles("BTCUSDT").iloc[:1], "bar length is unknown"),
        (candles("BTCUSDT").iloc[::7], "420 minutes apart"),
        (candles("BTCUSDT", first="2025-01-01 00:20"), "not on the 60-minute grid"),
        (candles("BTCUSDT").assign(ts="yesterday"), "holds no times"),
        (broken(ts=pd.NaT), "row 6 has no time"),
        (broken(symbol=None), "row 6 has no symbol"),
    ],
)
def test_a_defective_file_is_refused_naming_file_and_row(tmp_path: Path, rows: pd.DataFrame, message: str) -> None:
    path = saved(rows, tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=message) as refusal:
        ReplayMarket(path)
    assert "bad.parquet" in refusal.value.message


def test_missing_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        ReplayMarket(tmp_path / "absent.parquet")
    with pytest.raises(UserError, match="has no candles"):
        ReplayMarket(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"not \.txt"):
        ReplayMarket(tmp_path / "notes.txt")
    for name in ("torn.parquet", "torn.feather"):
        whole = saved(candles("BTCUSDT"), tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            ReplayMarket(tmp_path / name)


@pytest.mark.parametrize("argument", ["funding", "market_caps"])
def test_side_files_are_checked_too(tmp_path: Path, argument: str) -> None:
    path = saved(candles("BTCUSDT"), tmp_path / "c.parquet")
    column = {"funding": "funding_rate", "market_caps": "market_cap"}[argument]
    rows = pd.DataFrame(
        {"symbol": "BTCUSDT", "ts": pd.date_range("2025-01-01", periods=3, tz="UTC"), column: [1.0, np.nan, 1.0]}
    )
    with pytest.raises(UserError, match=f"side.parquet: BTC row 2 .*{column} is missing"):
        ReplayMarket(path, **{argument: saved(rows, tmp_path / "side.parquet")})


# Real history ---------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_okx_hours_are_served_row_by_row(shared: Path) -> None:
    path = shared / "data" / "okx_perp_1h.parquet"
    market = ReplayMarket(path, shared / "data" / "okx_funding.parquet", shared / "data" / "okx_mark_1h.parquet")
    rows = pd.read_parquet(path)
    assert len(market.instruments()) == rows["symbol"].nunique() == 32
    for symbol, part in rows.groupby("symbol"):
        bars = market.bars(str(symbol).split("/")[0] + "USDT", NS_PER_HOUR, market.start_ns, market.end_ns)
        np.testing.assert_array_equal(bars.ts_open, part["ts"].dt.as_unit("ns").astype(np.int64))
        for column in ("open", "high", "low", "close", "volume"):
            np.testing.assert_array_equal(getattr(bars, column), part[column])
    delisted = {i.symbol for i in market.instruments() if i.delisted_ns is not None}
    assert len(delisted) == 21, "the 21 symbols whose collection ended on 2025-05-11 leave there"
    assert market.gaps() == ()
    btc = next(i for i in market.instruments() if i.symbol == "BTCUSDT")
    assert (btc.tick_size, btc.ct_val, btc.lot_size) == (0.1, 0.01, 0.01), "as on the exchange"


@pytest.mark.real_data
def test_real_binance_delistings_and_gaps_are_seen(shared: Path) -> None:
    market = ReplayMarket(shared / "data" / "binance_um_perp_1h.parquet")
    ends = {i.symbol: i.delisted_ns for i in market.instruments() if i.delisted_ns is not None}
    assert {s: pd.Timestamp(ns).strftime("%Y-%m-%d") for s, ns in ends.items()} == {
        "FTTUSDT": "2022-11-14",
        "RAYUSDT": "2022-11-15",
        "WAVESUSDT": "2024-06-11",
    }
    assert {g.symbol: g.n_bars for g in market.gaps()} == {"TRXUSDT": 399, "XLMUSDT": 328}


@pytest.mark.real_data
def test_real_minutes_sum_to_real_hours(shared: Path) -> None:
    minutes = ReplayMarket(shared / "data" / "okx_perp_1m.parquet")
    hours = ReplayMarket(shared / "data" / "okx_perp_1h.parquet")
    begin, end = parse_utc("2025-03-20"), parse_utc("2025-04-17")
    for symbol in ("BTCUSDT", "SOLUSDT"):
        a, b = (m.bars(symbol, NS_PER_HOUR, begin, end) for m in (minutes, hours))
        np.testing.assert_array_equal(a.ts_open, b.ts_open)
        np.testing.assert_array_equal(a.close, b.close)
        np.testing.assert_array_equal(a.high, b.high)
        np.testing.assert_allclose(a.volume, b.volume, rtol=1e-9)

"""Files in, files out: formats, layouts, what is refused; the real sets come out as they went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.external_catalogue import series_on_bars
from crypto_qlib.data_collector.import_export import export_history, export_series, import_files
from crypto_qlib.store.lake import EVENT, TIME, Kind, Lake, Series
from crypto_qlib.store.observations import Observations
from crypto_qlib.store.series_store import MARKET, SeriesStore

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
NOW = parse_utc("2026-09-01")
H = NS_PER_HOUR
real = pytest.mark.skipif(not REAL.is_dir(), reason="real data are not beside this checkout")


def stores(place: Path) -> tuple[Lake, SeriesStore]:
    return Lake(place / "lake"), SeriesStore(place / "series")


def contents(lake: Lake) -> dict[str, bytes]:
    return {p.relative_to(lake.root).as_posix(): p.read_bytes() for p in sorted(lake.root.rglob("*.parquet"))}


def frame(symbols: tuple[str, ...] = ("BTC/USDT:USDT", "ETH/USDT:USDT"), n: int = 50) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    ts = pd.date_range("2025-01-30 12:00", periods=n, freq="h", tz="UTC").as_unit("ms")
    parts = []
    for symbol in symbols:
        close = rng.uniform(0.1, 1e5) * np.exp(np.cumsum(rng.standard_normal(n) * 0.01))
        values = {
            "open": close / 3.0,
            "high": close * 1.1,
            "low": close * 0.3,
            "close": close,
            "volume": rng.uniform(0, 1e9, n),
        }
        parts.append(pd.DataFrame({"symbol": symbol, "ts": ts, **values, "quote_volume": rng.uniform(0, 1e12, n)}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("file_format", ["parquet", "csv", "feather"])
@pytest.mark.parametrize("layout", ["table", "freqtrade"])
def test_what_goes_out_comes_in_again_to_the_same_bytes(tmp_path: Path, file_format: Any, layout: Any) -> None:
    lake, store = stores(tmp_path / "one")
    given = frame() if layout == "table" else frame().drop(columns="quote_volume")
    given.to_parquet(tmp_path / "history_1h.parquet")
    funding = pd.DataFrame(
        {"symbol": "BTC/USDT:USDT", "ts": given["ts"][:5] + pd.Timedelta("8h"), "funding_rate": [0.1, -1 / 3, 0, 1e-9, 2e-4]}
    )
    funding.to_parquet(tmp_path / "funding.parquet")
    import_files(tmp_path, lake, store, NOW)
    for kind, at in ((Kind.CANDLES, "1h"), (Kind.FUNDING, EVENT)):
        export_history(lake, tmp_path / "out", (kind, at), file_format, layout=layout)
    again, other = stores(tmp_path / "two")
    import_files(tmp_path / "out", again, other, NOW)
    assert contents(again) == contents(lake)
    assert len(contents(lake)) == 5


def test_freqtrades_own_names_and_columns_are_written(tmp_path: Path) -> None:
    lake, store = stores(tmp_path)
    frame().to_feather(tmp_path / "x_1h.feather")
    import_files(tmp_path / "x_1h.feather", lake, store, NOW)
    (path, _) = export_history(lake, tmp_path / "ft", (Kind.CANDLES, "1h"), "feather", layout="freqtrade")
    assert path.name == "BTC_USDT_USDT-1h-futures.feather"
    got = pd.read_feather(path)
    assert list(got.columns) == ["date", "open", "high", "low", "close", "volume"]
    assert str(got["date"].dt.tz) == "UTC"


def test_a_file_of_freqtrade_is_told_by_its_name(tmp_path: Path) -> None:
    lake, store = stores(tmp_path)
    bars = frame(("X",), 10).drop(columns=["symbol", "quote_volume"]).rename(columns={"ts": "date"})
    bars.to_feather(tmp_path / "1000PEPE_USDT_USDT-1h-futures.feather")
    bars.to_feather(tmp_path / "1000PEPE_USDT_USDT-1h-mark.feather")
    bars.assign(open=1e-4).to_feather(tmp_path / "1000PEPE_USDT_USDT-8h-funding_rate.feather")
    import_files(tmp_path, lake, store, NOW)
    assert lake.symbols(Kind.CANDLES, "1h") == lake.symbols(Kind.MARK, "1h") == ("1000PEPEUSDT",)
    assert lake.read(Series(Kind.FUNDING, EVENT, "1000PEPEUSDT"))["rate"].tolist() == [1e-4] * 10


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_whole_numbers_are_times_by_their_size(tmp_path: Path, unit: str) -> None:
    lake, store = stores(tmp_path)
    bars = frame(("BTCUSDT",), 10)
    bars["ts"] = bars["ts"].dt.as_unit("ns").astype("int64") // {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    bars.rename(columns={"ts": "timestamp"}).to_csv(tmp_path / "b.csv", index=False)
    import_files(tmp_path / "b.csv", lake, store, NOW)
    assert lake.read(Series(Kind.CANDLES, "1h", "BTCUSDT"))[TIME][0] == parse_utc("2025-01-30T12:00:00")


def test_unfinished_bars_and_double_rows_are_left_out_and_told(tmp_path: Path) -> None:
    lake, store = stores(tmp_path)
    bars = frame(("BTCUSDT",), 10)
    pd.concat([bars, bars.iloc[[3]].assign(close=7.0)]).assign(trades=1).to_parquet(tmp_path / "b_1h.parquet")
    (done,) = import_files(tmp_path / "b_1h.parquet", lake, store, parse_utc("2025-01-30T20:30:00"))
    assert done.added == 8
    assert [note.split(" ", 1)[0] for note in done.notes[:2]] == ["2", "1"]
    assert "trades" in done.notes[2]
    assert lake.read(Series(Kind.CANDLES, "1h", "BTCUSDT"))["close"][3] == 7.0


BAD: dict[str, tuple[str, Any, str]] = {
    "spot": ("a_1h.parquet", frame(("BTC/USDT",), 3), "BTC/USDT is a spot pair"),
    "no symbol": ("a_1h.parquet", frame(n=3).drop(columns="symbol"), "does not say which swap"),
    "freqtrade spot": ("BTC_USDT-1h.feather", frame(n=3).drop(columns="symbol"), "does not say which swap"),
    "no time": ("a_1h.parquet", frame(n=3).drop(columns="ts"), "has no time column"),
    "no prices": ("a_1h.parquet", frame(n=3)[["symbol", "ts", "open"]], "neither open, high, low, close nor funding_rate"),
    "text": ("a_1h.csv", frame(n=3).assign(close="dear"), "close holds something that is no number"),
    "off the grid": (
        "a_1h.parquet",
        frame(n=3).assign(ts=lambda d: d["ts"] + pd.Timedelta("7min")),
        "do not open on the grid of 1h",
    ),
    "no frame": ("a.parquet", frame(("BTCUSDT",), 1), "length of its bars cannot be told"),
    "odd frame": ("a.parquet", frame(("BTCUSDT",), 9).iloc[::3], "bars of 10800 s have no place"),
    "missing time": ("a_1h.parquet", frame(n=3).assign(ts=lambda d: d["ts"].where(d.index > 0)), "1 rows have no ts"),
    "cut": ("a_1h.parquet", b"PAR1 nonsense", "cannot read"),
    "other format": ("a.xlsx", b"?", "there is no file to import|not one of"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_file_that_cannot_be_understood_is_one_clear_line_and_changes_nothing(tmp_path: Path, case: str) -> None:
    name, content, why = BAD[case]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".csv":
        content.to_csv(path, index=False)
    else:
        getattr(content.reset_index(drop=True), f"to_{path.suffix[1:]}")(path)
    lake, store = stores(tmp_path)
    with pytest.raises(UserError, match=why) as caught:
        import_files(path, lake, store, NOW)
    assert "\n" not in str(caught.value)
    assert contents(lake) == {}


def test_an_empty_folder_and_an_empty_lake_are_one_clear_line(tmp_path: Path) -> None:
    lake, store = stores(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no file to import"):
        import_files(tmp_path / "empty", lake, store, NOW)
    with pytest.raises(UserError, match="the lake has no candles 1h to export"):
        export_history(lake, tmp_path / "out", (Kind.CANDLES, "1h"))
    with pytest.raises(UserError, match="no external series to export"):
        export_series(store, tmp_path / "out")


@pytest.mark.parametrize("file_format", ["parquet", "csv", "feather"])
def test_external_series_go_out_and_in_with_their_vintages(tmp_path: Path, file_format: Any) -> None:
    lake, store = stores(tmp_path / "one")
    day = parse_utc("2025-03-01")
    known = np.array([day + 5, day + H, day + NS_PER_DAY + 7])
    rows = Observations(np.array([day, day, day + NS_PER_DAY]), known, np.array([1 / 3, 40.0, 41.0]))
    store.append("fear_greed", MARKET, rows, NOW)
    store.append("active_addresses", "BTC", Observations(np.array([day]), np.array([day + 9]), np.array([7e5])), NOW)
    path = export_series(store, tmp_path / "out", file_format)
    again, other = stores(tmp_path / "two")
    import_files(path, again, other, NOW)
    for name, symbol in (("fear_greed", MARKET), ("active_addresses", "BTC")):
        for column in ("event_ns", "known_ns", "value"):
            np.testing.assert_array_equal(getattr(other.read(name, symbol), column), getattr(store.read(name, symbol), column))
    assert lake.symbols(Kind.CANDLES, "1h") == ()


# ---------------------------------------------------------------- the real sets

CANDLES = {"okx_perp_1m": "1m", "okx_mark_1h": "1h", "okx_mark_4h": "4h", "binance_um_mark_1h": "1h"}
LARGE = {"okx_perp_1h": "1h", "binance_um_perp_1h": "1h", "binance_um_perp_1d": "1d"}


def assert_round_trip(name: str, bar: str, tmp_path: Path) -> None:
    given = pd.read_parquet(REAL / f"{name}.parquet").drop(columns="trades", errors="ignore")
    lake, store = stores(tmp_path)
    (done,) = import_files(REAL / f"{name}.parquet", lake, store, NOW)
    kind = Kind.CANDLES if "volume" in given else Kind.MARK
    (path,) = export_history(lake, tmp_path / "out", (kind, bar))
    got = pd.read_parquet(path)
    assert done.added == len(given) == len(got)
    order = ["symbol", "ts"]
    wanted = given.sort_values(order).reset_index(drop=True)
    got = got.sort_values(order).reset_index(drop=True)
    assert "quote_volume" in given or got.pop("quote_volume").isna().all() if "quote_volume" in got else True
    pd.testing.assert_frame_equal(got[list(wanted.columns)], wanted, check_exact=True, check_dtype=False)


@real
@pytest.mark.real_data
@pytest.mark.parametrize("name", list(CANDLES))
def test_real_candles_come_out_exactly_as_they_went_in(name: str, tmp_path: Path) -> None:
    assert_round_trip(name, CANDLES[name], tmp_path)


@real
@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("name", list(LARGE))
def test_large_real_candles_come_out_exactly_as_they_went_in(name: str, tmp_path: Path) -> None:
    assert_round_trip(name, LARGE[name], tmp_path)


@real
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["okx_funding", "binance_um_funding"])
def test_real_funding_comes_out_exactly_as_it_went_in(name: str, tmp_path: Path) -> None:
    lake, store = stores(tmp_path)
    given = pd.read_parquet(REAL / f"{name}.parquet")
    import_files(REAL / f"{name}.parquet", lake, store, NOW)
    (path,) = export_history(lake, tmp_path / "out", (Kind.FUNDING, EVENT), "csv")
    got = pd.read_csv(path, float_precision="round_trip", parse_dates=["ts"])
    order = ["symbol", "ts"]
    wanted = given.sort_values(order).reset_index(drop=True)
    got = got.sort_values(order).reset_index(drop=True)
    assert got["funding_rate"].tolist() == wanted["funding_rate"].tolist()
    assert (got["ts"].dt.tz_convert("UTC") == wanted["ts"]).all()
    assert got["symbol"].tolist() == wanted["symbol"].tolist()


@real
@pytest.mark.real_data
def test_real_sentiment_and_stock_hours_are_known_when_they_were_published(tmp_path: Path) -> None:
    lake, store = stores(tmp_path)
    for name in ("fear_greed_daily", "qqq_1h", "qqq_1d"):
        import_files(REAL / f"{name}.parquet", lake, store, NOW)
    fng = pd.read_parquet(REAL / "fear_greed_daily.parquet")
    rows = store.read("fear_greed")
    assert rows.value.tolist() == fng["fear_greed"].tolist()
    assert ((rows.known_ns - rows.event_ns) == 45 * NS_PER_MINUTE).all()
    # every crypto hour of two years: what is served was published before, and the newest that was
    closes = np.arange(parse_utc("2024-01-03"), parse_utc("2025-12-31"), H)
    served = series_on_bars(store, "qqq_1h_close", closes)
    hours = store.read("qqq_1h_close")
    qqq = pd.read_parquet(REAL / "qqq_1h.parquet")
    assert len(hours) == len(qqq)
    known = served.event_ns[:, 0] >= 0
    at = np.searchsorted(hours.event_ns, served.event_ns[known, 0])
    assert (hours.known_ns[at] <= closes[known]).all()
    next_known = np.append(hours.known_ns, np.iinfo(np.int64).max)[at + 1]
    assert (next_known > closes[known]).all()
    # Friday before and Monday after daylight saving, summer, winter: known a minute after the session
    for day, hour in {"2024-03-08": 21, "2024-03-11": 20, "2024-07-05": 20, "2024-12-26": 21}.items():
        last = int(np.searchsorted(hours.event_ns, parse_utc(day) + NS_PER_DAY) - 1)
        assert hours.known_ns[last] == parse_utc(day) + hour * H + NS_PER_MINUTE, day
    days = store.read("qqq_1d_close")
    assert len(days) == len(pd.read_parquet(REAL / "qqq_1d.parquet"))
    # half days close at 13:00 in New York, and count an hour later
    for day, hour in {"2024-07-03": 18, "2024-11-29": 19, "2024-12-24": 19, "2025-07-03": 18, "2024-07-05": 21}.items():
        at_day = int(np.searchsorted(days.event_ns, parse_utc(day)))
        assert days.known_ns[at_day] == parse_utc(day) + hour * H, day


@real
@pytest.mark.real_data
def test_real_on_chain_days_are_known_on_the_next_day(tmp_path: Path) -> None:
    lake, store = stores(tmp_path)
    (done,) = import_files(REAL / "onchain_coinmetrics_daily.parquet", lake, store, NOW)
    given = pd.read_parquet(REAL / "onchain_coinmetrics_daily.parquet")
    btc = given[(given["asset"] == "btc") & given["AdrActCnt"].notna()]
    rows = store.read("active_addresses", "BTC")
    assert rows.value.tolist() == btc["AdrActCnt"].astype(float).tolist()
    assert ((rows.known_ns - rows.event_ns) == NS_PER_DAY + 8 * H).all()
    assert len(store.symbols("whale_supply")) > 20
    assert any("PriceUSD" in note for note in done.notes)

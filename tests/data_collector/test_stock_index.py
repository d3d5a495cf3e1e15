"""When a QQQ bar is known: through real yfinance, around half days, holidays and daylight saving. Times by hand, in UTC."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, parse_utc
from crypto_qlib.core.errors import RetryLater, SkipCycle
from crypto_qlib.data_collector.external_catalogue import series_on_bars
from crypto_qlib.data_collector.fetch_external_data import fetch_external_data
from crypto_qlib.data_collector.sources.source import Ask
from crypto_qlib.data_collector.sources.yahoo import StockIndex
from crypto_qlib.data_collector.stock_sessions import carried_until, hour_ends
from crypto_qlib.store.series_store import MARKET, SeriesStore
from tests.data_collector.web_server import Said, WebServer

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "qqq_1h.parquet"
H, M = NS_PER_HOUR, NS_PER_MINUTE


def at(text: str) -> int:
    return parse_utc(text)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    with warnings.catch_warnings():
        # yfinance and its libraries warn about pandas and protobuf at import.
        warnings.simplefilter("ignore")
        import yfinance as yf  # noqa: PLC0415

    yf.set_tz_cache_location(str(tmp_path / "yfinance"))
    with WebServer().running() as running:
        yield running


def chart(symbol: str, opens: list[str], interval: str, closes: list[float | None] | None = None) -> dict[str, Any]:
    """Return a chart as Yahoo's v8 API has it: stamps at the bars' opens, columns of numbers or null."""
    stamps = [at(t) // NS_PER_S for t in opens]
    prices: list[float | None] = closes or [100.0 + i for i in range(len(stamps))]
    period = {"timezone": "EST", "start": 0, "end": 1, "gmtoffset": -18000}
    meta = {
        "symbol": symbol, "currency": "USD", "instrumentType": "ETF", "exchangeTimezoneName": "America/New_York",
        "timezone": "EST", "gmtoffset": -18000, "regularMarketTime": stamps[-1] if stamps else 0, "dataGranularity": interval,
        "validRanges": ["1d", "1y"], "hasPrePostMarketData": True, "firstTradeDate": 0,
        "currentTradingPeriod": {"pre": period, "regular": period, "post": period},
    }  # fmt: skip
    quote = dict.fromkeys(("open", "high", "low", "close"), prices) | {"volume": [7 for _ in prices]}
    indicators = {"quote": [quote]} | ({"adjclose": [{"adjclose": prices}]} if interval == "1d" else {})
    return {"chart": {"result": [{"meta": meta, "timestamp": stamps, "indicators": indicators}], "error": None}}


def yahoo(server: WebServer, charts: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Serve ``charts`` by ticker and interval; anything else of Yahoo is answered as it would be for no data."""
    none = {"chart": {"result": None, "error": {"code": "Not Found", "description": "No data found, symbol may be delisted"}}}

    def speaker(path: str, query: dict[str, str]) -> Said:
        if path.startswith("/v8/finance/chart/"):
            ticker = path.rpartition("/")[2]
            if query.get("range") == "1d":  # yfinance asks for the exchange's time zone first
                return Said(chart(ticker, [], "1d"))
            found = charts.get((ticker, query["interval"]))
            return Said(found) if found is not None else Said(none, 404)
        return Said("crumb", kind="text/plain")

    server.speaker = speaker


def ask(now: str, since: str) -> Ask:
    return Ask((), at(now), lambda _series, _symbol: at(since))


HOURS = [
    # (open, known, why), New York in brackets; a minute of delay
    ("2024-11-27T20:30:00", "2024-11-27T21:01:00", "winter: the half hour before the close at 21:00 (16:00)"),
    ("2024-11-27T21:00:00", "2024-11-27T22:01:00", "an hour of the after-market"),
    ("2024-11-29T14:00:00", "2024-11-29T14:31:00", "pre-market ends with the opening at 14:30 (09:30)"),
    ("2024-11-29T17:30:00", "2024-11-29T18:01:00", "half day: it closes at 18:00 (13:00)"),
    ("2025-03-07T20:30:00", "2025-03-07T21:01:00", "Friday before daylight saving"),
    ("2025-03-10T13:30:00", "2025-03-10T14:31:00", "Monday after it: the session opens at 13:30"),
    ("2025-03-10T19:30:00", "2025-03-10T20:01:00", "and closes at 20:00"),
    ("2025-10-31T19:30:00", "2025-10-31T20:01:00", "Friday before it ends"),
    ("2025-11-03T20:30:00", "2025-11-03T21:01:00", "Monday after"),
]


def test_an_hour_is_known_when_it_has_ended_and_was_published(server: WebServer) -> None:
    holiday = ["2024-11-28T15:30:00", "2025-03-08T15:30:00"]  # Thanksgiving, a Saturday: Yahoo would be wrong
    opens = sorted([row[0] for row in HOURS] + holiday)
    yahoo(server, {("QQQ", "1h"): chart("QQQ", opens, "1h")})
    got = StockIndex(server.url, 5.0).fetch(ask("2025-11-04T00:00:00", "2024-11-20"))
    close = next(a for a in got.answers if a.series == "qqq_1h_close")
    known = dict(zip(close.event_ns.tolist(), close.usually_known_ns.tolist(), strict=True))
    assert known == {at(o): at(k) for o, k, _ in HOURS}
    assert close.value.tolist() == [100.0 + opens.index(o) for o, _, _ in HOURS]
    assert any("2 bars without a price or outside any session" in note for note in got.notes)
    assert {a.series for a in got.answers} == {f"qqq_1h_{f}" for f in ("open", "high", "low", "close", "volume")}
    chart_queries = [q for p, q in server.asked if p.endswith("/QQQ") and q["interval"] == "1h"]
    assert chart_queries[0]["includePrePost"] == "true"


def test_an_unfinished_bar_and_one_without_a_price_are_left_out(server: WebServer) -> None:
    opens = ["2025-01-06T14:30:00", "2025-01-06T15:30:00", "2025-01-06T16:30:00"]
    yahoo(server, {("QQQ", "1h"): chart("QQQ", opens, "1h", [100.0, None, 102.0])})
    got = StockIndex(server.url, 5.0).fetch(ask("2025-01-06T17:30:00", "2025-01-01"))
    assert next(a for a in got.answers if a.series == "qqq_1h_close").event_ns.tolist() == [at(opens[0])]


def test_a_day_is_known_an_hour_after_its_session_closed(server: WebServer) -> None:
    days = ["2024-11-27", "2024-11-29", "2025-07-03", "2025-07-07"]  # half days: 29 November and 3 July
    yahoo(server, {("QQQ", "1d"): chart("QQQ", [f"{d}T14:30:00" for d in days], "1d")})
    got = StockIndex(server.url, 5.0).fetch(ask("2025-07-08T00:00:00", "2024-11-20"))
    close = next(a for a in got.answers if a.series == "qqq_1d_close")
    assert [pd.Timestamp(t).isoformat() for t in close.usually_known_ns.tolist()] == [
        "2024-11-27T22:00:00", "2024-11-29T19:00:00", "2025-07-03T18:00:00", "2025-07-07T21:00:00"]  # fmt: skip
    assert close.event_ns[0] == at("2024-11-27T14:30:00")


def test_hours_of_the_future_are_whole_hours_with_ten_minutes_of_delay(server: WebServer) -> None:
    opens = ["2025-01-05T23:00:00", "2025-01-06T14:00:00"]
    yahoo(server, {("NQ=F", "1h"): chart("NQ=F", opens, "1h")})
    got = StockIndex(server.url, 5.0).fetch(ask("2025-01-07T00:00:00", "2025-01-01"))
    close = next(a for a in got.answers if a.series == "nq_1h_close")
    assert (close.usually_known_ns - close.event_ns).tolist() == [70 * M, 70 * M]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (Said("Too Many Requests", 429, kind="text/plain"), RetryLater, "too many requests"),
        (Said("<html>Will be right back</html>", 502, kind="text/html"), SkipCycle, "QQQ"),
        (Said("<html>consent</html>", kind="text/html"), SkipCycle, "QQQ"),
        (Said({"chart": {"result": [], "error": None}}), SkipCycle, "QQQ"),
        (
            Said({"chart": {"result": [{"meta": {}, "indicators": {"quote": [{"close": [1]}]}}], "error": None}}),
            SkipCycle,
            "QQQ",
        ),
        (Said({"finance": {}}), SkipCycle, "QQQ"),
    ],
    ids=["429", "502", "web page", "empty", "drift", "another shape"],
)
def test_yahoo_failing_is_one_clear_line(server: WebServer, said: Said, error: type[Exception], words: str) -> None:
    server.says(said)
    with pytest.raises(error, match=words) as caught:
        StockIndex(server.url, 2.0).fetch(ask("2025-01-07T00:00:00", "2025-01-01"))
    assert "\n" not in str(caught.value)


def test_the_last_value_is_carried_to_two_hours_into_the_next_session_and_not_beyond() -> None:
    rows = [
        ("2024-11-27T20:30:00", "2024-11-29T16:30:00", "over Thanksgiving"),
        ("2024-11-29T17:30:00", "2024-12-02T16:30:00", "Friday to Monday"),
        ("2025-03-07T21:00:00", "2025-03-10T15:30:00", "after-market, over the start of daylight saving"),
        ("2025-01-06T10:00:00", "2025-01-07T16:30:00", "pre-market belongs to its own day"),
        ("2025-01-06T02:00:00", "2025-01-06T16:30:00", "night hours of the future end with the day's session"),
    ]
    got = carried_until(np.array([at(o) for o, _, _ in rows] + [-1]))
    assert got.tolist() == [*(at(u) for _, u, _ in rows), -1]


def test_bars_see_the_close_of_the_session_when_it_was_known_and_nothing_stale(server: WebServer, tmp_path: Path) -> None:
    """Fetched every hour over a half day and the weekend: at every crypto bar's close, what was known by then."""
    store = SeriesStore(tmp_path)
    opens = ["2024-11-27T20:30:00", "2024-11-29T14:30:00", "2024-11-29T15:30:00", "2024-11-29T16:30:00", "2024-11-29T17:30:00"]
    yahoo(server, {("QQQ", "1h"): chart("QQQ", opens, "1h")})
    now = at("2024-12-02T20:00:00")
    (update,) = fetch_external_data([StockIndex(server.url, 5.0)], store, (), at("2024-11-01"), now)
    assert update.added == 25
    closes = np.arange(at("2024-11-27T20:00:00"), now, H)
    got = series_on_bars(store, "qqq_1h_close", closes).value[:, 0]
    value = dict(zip(closes.tolist(), got.tolist(), strict=True))
    assert np.isnan(value[at("2024-11-27T21:00:00")])  # ended that instant, not yet published
    assert value[at("2024-11-27T22:00:00")] == 100.0
    assert value[at("2024-11-29T15:00:00")] == 100.0  # the day's first bar ends at 15:30
    assert value[at("2024-11-29T16:00:00")] == 101.0
    assert value[at("2024-11-29T18:00:00")] == 103.0  # the last bar of the half day ends at 18:00 and is known at 18:01
    assert value[at("2024-11-29T19:00:00")] == 104.0
    assert value[at("2024-12-02T16:00:00")] == 104.0
    assert np.isnan(value[at("2024-12-02T17:00:00")])  # Monday has traded for two hours: Friday's close is stale
    assert store.last_poll_ns("yahoo") == now
    assert len(store.read("qqq_1h_close", MARKET)) == 5


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason="real data are not beside this checkout")
def test_every_real_hour_of_qqq_lies_in_a_session_and_ends_within_it() -> None:
    ts = pd.read_parquet(REAL)["ts"].to_numpy("datetime64[ns]").astype(np.int64)
    ends = hour_ends(ts)
    assert (ends > 0).all()
    length_min = (ends - ts) // M
    days = pd.Series(length_min).groupby(pd.to_datetime(ts).date).agg(["sum", "size", "last"])
    whole = days[days["size"] == 7]
    assert (whole["sum"] == 390).all()  # six hours and a half
    assert (whole["last"] == 30).all()
    assert len(whole) > 450

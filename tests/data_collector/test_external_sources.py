"""Every external source through its real client, against a server that says what the real one said, and worse."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, NS_PER_S, iso, parse_utc
from crypto_qlib.core.errors import DoNotRetry, RetryLater
from crypto_qlib.data_collector.external_catalogue import series_on_bars
from crypto_qlib.data_collector.fetch_external_data import fetch_external_data
from crypto_qlib.data_collector.sources import web
from crypto_qlib.data_collector.sources.alternative_me import FearGreed
from crypto_qlib.data_collector.sources.coingecko_global import GlobalMarket
from crypto_qlib.data_collector.sources.coinmetrics import OnChain
from crypto_qlib.data_collector.sources.source import Ask, ExternalSource
from crypto_qlib.data_collector.sources.wikimedia import PageViews
from crypto_qlib.data_collector.sources.yahoo import StockIndex
from crypto_qlib.store.series_store import MARKET, SeriesStore
from tests.data_collector.web_server import Said, WebServer

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "external_samples.json"
DAY = parse_utc("2026-02-17")
D, H, M = NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE
NOW = DAY + 3 * D + 12 * H


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer().running() as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.WebApi.__init__, "__defaults__", (0.0, lambda _s: None))


def ask(*coins: str, now_ns: int = NOW, since_ns: int = DAY) -> Ask:
    return Ask(coins, now_ns, lambda _series, _symbol: since_ns)


def fear_greed(days: dict[int, int]) -> dict[str, Any]:
    rows = [{"value": str(v), "value_classification": "Fear", "timestamp": str(t // NS_PER_S)} for t, v in days.items()]
    return {"name": "Fear and Greed Index", "data": rows[::-1], "metadata": {"error": None}}


def on_chain(*rows: dict[str, str], **more: str) -> dict[str, Any]:
    return {"data": list(rows), **more}


def views(days: dict[int, int]) -> dict[str, Any]:
    article = {"project": "en.wikipedia", "article": "Bitcoin", "granularity": "daily", "access": "all-access", "agent": "user"}
    return {"items": [{**article, "timestamp": iso(t)[:10].replace("-", "") + "00", "views": v} for t, v in days.items()]}


def snapshot(cap: float, share: float, updated_s: int) -> dict[str, Any]:
    shares = {"btc": share, "eth": 11.84, "usdt": 4.2}
    return {"data": {"total_market_cap": {"usd": cap, "eur": cap}, "total_volume": {"usd": 9e10}, "updated_at": updated_s,
                     "market_cap_percentage": shares, "markets": 1300}}  # fmt: skip


GOOD: dict[str, Any] = {
    "alternative_me": fear_greed({DAY: 10, DAY + D: 12}),
    "coingecko": snapshot(3.1e12, 56.9, NOW // NS_PER_S - 60),
    "coinmetrics": on_chain({"asset": "btc", "time": "2026-02-17T00:00:00.000000000Z", "AdrActCnt": "595445"}),
    "wikimedia": views({DAY: 5000}),
}


def source(name: str, url: str, timeout_s: float = 5.0) -> ExternalSource:
    made: dict[str, ExternalSource] = {
        "alternative_me": FearGreed(url, timeout_s),
        "coingecko": GlobalMarket(url, "", timeout_s),
        "coinmetrics": OnChain(f"{url}/v4", timeout_s, pause_s=0.0),
        "wikimedia": PageViews(f"{url}/api/rest_v1", timeout_s),
        "yahoo": StockIndex(url, timeout_s),
    }
    return made[name]


NAMES = sorted(GOOD)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Said("<html><body><h1>502 Bad Gateway</h1></body></html>", 502, kind="text/html"), "does not answer"),
        (Said({"error": "slow down"}, 429, {"Retry-After": "900"}), "does not answer|too many requests"),
        (Said("<!DOCTYPE html><title>Just a moment...</title>", kind="text/html"), "Just a moment|something else|no data"),
        (Said(""), "instead of JSON|something else|does not answer|no data"),
        (Said({"data": [], "items": []}), "gave no|changed its answer"),
        (Said({"data": {"message": "v5 is here"}, "items": {"n": 1}}), "changed its answer"),
        (Said({"data": [{"value": "high", "timestamp": "x", "asset": 1}], "items": [{"views": -1}]}), "changed its answer"),
        (Said([1, 2]), "changed its answer|no data"),
    ],
    ids=["502", "429", "web page", "nothing", "empty", "another shape", "another type", "a list"],
)
def test_whatever_a_source_answers_it_fails_alone_with_one_clear_line(
    server: WebServer, tmp_path: Path, name: str, trouble: Said, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = "wikimedia" if name != "wikimedia" else "alternative_me"
    with WebServer().running() as fine:
        fine.says(Said(GOOD[other]))
        server.says(trouble)
        with caplog.at_level(logging.WARNING):
            updates = fetch_external_data(
                [source(name, server.url), source(other, fine.url)], SeriesStore(tmp_path), ("BTC",), DAY, NOW
            )
    assert updates[0].failure
    assert "\n" not in updates[0].failure
    assert any(part in updates[0].failure for part in says.split("|")), updates[0].failure
    assert updates[1].failure == ""
    assert updates[1].added > 0
    assert [r.levelname for r in caplog.records if r.name.startswith("crypto_qlib")] == ["WARNING"]


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_does_not_answer_in_time_is_given_up(server: WebServer, name: str) -> None:
    server.says(Said(GOOD[name], wait_s=1.0))
    with pytest.raises(RetryLater, match="does not answer"):
        source(name, server.url, timeout_s=0.05).fetch(ask("BTC"))


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_limit_or_an_outage_that_passes_is_waited_for(server: WebServer, name: str) -> None:
    server.says(Said({}, 429, {"Retry-After": "0.1"}), Said("<h1>503</h1>", 503, kind="text/html"), Said(GOOD[name]))
    assert source(name, server.url).fetch(ask("BTC")).answers
    assert len(server.asked) == 3


def test_we_say_who_we_are(server: WebServer) -> None:
    server.says(Said(GOOD["wikimedia"]))
    source("wikimedia", server.url).fetch(ask("BTC"))
    assert server.agents[0].startswith("crypto-qlib/")


def test_a_refusal_for_good_is_not_asked_again(server: WebServer) -> None:
    server.says(Said({"error": {"type": "forbidden"}}, 403))
    with pytest.raises(DoNotRetry, match="HTTP 403"):
        source("coinmetrics", server.url).fetch(ask("BTC"))
    assert len(server.asked) == 1


# ---------------------------------------------------------------- what each source means


def test_fear_and_greed_is_known_from_three_quarters_of_an_hour_into_its_day(server: WebServer) -> None:
    server.says(Said(fear_greed({DAY: 11, DAY + D: 13, DAY + 9 * D: 50})))
    (answer,) = source("alternative_me", server.url).fetch(ask()).answers
    assert answer.event_ns.tolist() == [DAY, DAY + D]  # a day that has not begun is left out
    assert answer.value.tolist() == [11.0, 13.0]
    assert (answer.usually_known_ns - answer.event_ns).tolist() == [45 * M, 45 * M]
    assert server.asked == [("/fng/", {"limit": "5"})]


def test_on_chain_days_are_known_when_the_source_had_completed_them(server: WebServer) -> None:
    completed = DAY + D + 2 * H
    pages = {
        "": on_chain(
            {"asset": "btc", "time": "2026-02-17T00:00:00.000000000Z", "AdrActCnt": "595445", "TxCnt": "661420",
             "AssetEODCompletionTime": str(completed // NS_PER_S)},
            next_page_token="p2", next_page_url=f"{server.url}/v4/timeseries/asset-metrics?next_page_token=p2",
        ),
        "p2": on_chain(
            {"asset": "btc", "time": "2026-02-18T00:00:00.000000000Z", "AdrActCnt": "600000"},
            {"asset": "btc", "time": "2026-02-20T00:00:00.000000000Z", "AdrActCnt": "1"},  # today: not over yet
            {"asset": "eth", "time": "2026-02-18T00:00:00.000000000Z", "AdrActCnt": "not a number"},
        ),
    }  # fmt: skip
    server.speaker = lambda _path, query: Said(pages[query.get("next_page_token", "")])
    got = source("coinmetrics", server.url).fetch(ask("BTC", "ETH"))
    found = {(a.series, a.symbol): a for a in got.answers}
    assert set(found) == {("active_addresses", "BTC"), ("tx_count", "BTC")}
    active = found["active_addresses", "BTC"]
    assert active.value.tolist() == [595445.0, 600000.0]
    assert active.usually_known_ns.tolist() == [completed, DAY + 2 * D + 8 * H]
    assert got.notes == ("127.0.0.1 has no on-chain data of ETH",)
    path, query = server.asked[0]
    assert path == "/v4/timeseries/asset-metrics"
    assert (query["assets"], query["start_time"], query["paging_from"]) == ("btc,eth", "2026-02-17", "start")


def test_page_views_are_known_a_day_after_their_day_and_unread_articles_are_told(server: WebServer) -> None:
    def speaker(path: str, _query: dict[str, str]) -> Said:
        return Said(views({DAY: 5000, DAY + 3 * D: 7})) if "Bitcoin/" in path else Said({"title": "Not found."}, 404)

    server.speaker = speaker
    got = source("wikimedia", server.url).fetch(ask("BTC", "SOL", "XYZ"))
    (answer,) = got.answers
    assert (answer.event_ns.tolist(), answer.value.tolist()) == ([DAY], [5000.0])
    assert answer.usually_known_ns.tolist() == [DAY + 2 * D]
    assert got.notes == ("no Wikipedia article is read of XYZ (1)", "no page views of SOL")
    assert server.asked[1][0].endswith("/user/Solana_(blockchain_platform)/daily/2026021700/2026021900")


def test_a_snapshot_of_the_whole_market_is_known_from_when_it_was_seen(server: WebServer) -> None:
    server.says(Said(GOOD["coingecko"]))
    found = {a.series: a for a in source("coingecko", server.url).fetch(ask()).answers}
    assert found["btc_dominance"].value[0] == pytest.approx(0.569)
    assert found["total_market_cap"].value[0] == 3.1e12
    assert found["total_market_cap"].usually_known_ns.tolist() == [NOW]
    assert found["total_market_cap"].event_ns.tolist() == [NOW // NS_PER_S * NS_PER_S - 60 * NS_PER_S]


def test_a_part_that_is_missing_is_a_note_not_a_zero(server: WebServer) -> None:
    server.says(Said({"data": {"market_cap_percentage": {"btc": 59.5}, "updated_at": NOW // NS_PER_S}}))
    got = source("coingecko", server.url).fetch(ask())
    assert [a.series for a in got.answers] == ["btc_dominance"]
    assert any("total_market_cap" in note for note in got.notes)


# ---------------------------------------------------------------- over time


def test_a_second_run_adds_nothing_and_a_correction_is_kept_beside_the_first_value(server: WebServer, tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    fng = source("alternative_me", server.url)
    server.says(Said(fear_greed({DAY: 10, DAY + D: 12})))
    (first,) = fetch_external_data([fng], store, (), DAY, DAY + D + 2 * H)
    assert (first.added, first.corrected) == (2, 0)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    fetch_external_data([fng], store, (), DAY, DAY + D + 3 * H)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == before
    server.says(Said(fear_greed({DAY: 11, DAY + D: 12, DAY + 2 * D: 15})))
    (third,) = fetch_external_data([fng], store, (), DAY, DAY + 2 * D + 2 * H)
    assert (third.added, third.corrected) == (1, 1)
    assert store.as_known_at("fear_greed", MARKET, DAY + D + 3 * H).value.tolist() == [10.0, 12.0]
    assert store.as_known_at("fear_greed", MARKET, DAY + 2 * D + 2 * H).value.tolist() == [11.0, 12.0, 15.0]


def test_a_coin_that_joins_later_gets_its_history_by_the_usual_times(server: WebServer, tmp_path: Path) -> None:
    store = SeriesStore(tmp_path)
    server.says(Said(views({DAY: 5000, DAY + D: 6000})))
    wiki = source("wikimedia", server.url)
    fetch_external_data([wiki], store, ("BTC",), DAY, DAY + 3 * D)
    fetch_external_data([wiki], store, ("BTC", "ETH"), DAY, DAY + 4 * D)
    assert store.read("pageviews", "ETH").known_ns.tolist() == [DAY + 2 * D, DAY + 3 * D]


@pytest.mark.real_data
@pytest.mark.skipif(not SAMPLES.exists(), reason="recorded answers are not beside this checkout")
def test_recorded_hours_replayed_serve_nothing_before_it_was_seen(server: WebServer, tmp_path: Path) -> None:
    """38 real hours of CoinGecko and Fear & Greed: what the store serves at a time is what was seen by then."""
    samples = json.loads(SAMPLES.read_text())["samples"]["hourly_snapshots_coingecko_global_and_fear_greed"]["response"]
    store = SeriesStore(tmp_path)
    sources = [source("alternative_me", server.url), source("coingecko", server.url)]
    days: dict[int, int] = {}
    polls: list[tuple[int, float, float]] = []
    for row in samples["rows"]:
        seen_ns = int(datetime.fromisoformat(row[0]).timestamp() * 1e9)
        days[row[6] * NS_PER_S] = row[5]
        answers = {"/fng/": fear_greed(days), "/global": snapshot(row[2], row[3], row[1])}
        server.speaker = lambda path, _query, said=answers: Said(said[path])  # type: ignore[misc]
        updates = fetch_external_data(sources, store, (), parse_utc("2026-01-01"), seen_ns)
        assert [u.failure for u in updates] == ["", ""]
        polls.append((seen_ns, row[3] / 100.0, float(row[5])))
    instants = np.array([seen for seen, _, _ in polls])
    got = series_on_bars(store, "btc_dominance", instants).value[:, 0]
    np.testing.assert_allclose(got, [share for _, share, _ in polls], rtol=1e-12)
    np.testing.assert_array_equal(series_on_bars(store, "fear_greed", instants).value[:, 0], [v for _, _, v in polls])
    just_before = series_on_bars(store, "btc_dominance", instants - 1).value[:, 0]
    np.testing.assert_allclose(just_before[1:], got[:-1], rtol=1e-12)
    # the value stamped 2026-01-12T00:00Z was absent at 23:11 and present at 00:43
    midnight = parse_utc("2026-01-12")
    around = series_on_bars(store, "fear_greed", np.array([midnight, midnight + 40 * M, midnight + H])).value[:, 0]
    assert around.tolist() == [29.0, 29.0, 27.0]

"""News collection over real connections: feeds, robots, politeness, versions, GDELT, archives."""

from __future__ import annotations

import time
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import orjson
import pandas as pd
import pytest

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, ManualClock, parse_utc, utc
from crypto_qlib.core.errors import DoNotRetry, RetryLater, UserError
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.fetch_news import backfill_gdelt, collect_news, feeds_of, import_news
from crypto_qlib.data_collector.news_duplicates import find_stories
from crypto_qlib.data_collector.news_feeds import parse_feed
from crypto_qlib.data_collector.news_http import PoliteReader
from crypto_qlib.data_collector.news_text import article_id, clean, text_hash
from crypto_qlib.settings.schema import NewsSettings
from crypto_qlib.store.news_store import NewsStore
from tests.loopback import Reply, Request, serving

NOW_NS = parse_utc("2026-01-05T12:00:00")
NEWS_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "news"


def rss(*items: str) -> bytes:
    return f'<?xml version="1.0"?><rss version="2.0"><channel><title>x</title>{"".join(items)}</channel></rss>'.encode()


def item(
    title: str, at_ns: int = NOW_NS - NS_PER_HOUR, path: str = "a", body: str = "", host: str = "http://127.0.0.1:1"
) -> str:
    return (
        f"<item><title>{title}</title><link>{host}/{path}</link><pubDate>{format_datetime(utc(at_ns))}</pubDate>"
        f"<description>{body}</description></item>"
    )


@pytest.fixture
def store(tmp_path: Path) -> NewsStore:
    return NewsStore.open(tmp_path / "news.sqlite")


def settings(url: str, **fields: object) -> NewsSettings:
    return NewsSettings(feeds=(f"local {url}/feed",), host_interval_s=0.0, **fields)  # type: ignore[arg-type]


async def test_a_feed_is_polled_and_both_times_are_kept(store: NewsStore) -> None:
    with serving(lambda _r: Reply(rss(item("Bitcoin rises", body="&lt;p&gt;By &lt;b&gt;5%&lt;/b&gt;&lt;/p&gt;")))) as web:
        report = await collect_news(settings(web.url), store, ManualClock(NOW_NS))
    ((article, _),) = store.articles()
    assert report.n_new == 1
    assert (article.title, article.body) == ("Bitcoin rises", "By 5%")
    assert article.published_ns == NOW_NS - NS_PER_HOUR
    assert article.first_seen_ns == article.available_ns == NOW_NS, "features use the later of the two"


async def test_polling_again_adds_nothing_and_a_changed_text_is_a_new_version(store: NewsStore) -> None:
    bodies = iter(["first", "first", "second"])
    with serving(lambda _r: Reply(rss(item("Bitcoin rises", body=next(bodies))))) as web:
        for hour in range(3):
            await collect_news(settings(web.url), store, ManualClock(NOW_NS + hour * NS_PER_HOUR))
    versions = [a for a, _ in store.articles()]
    assert [(a.body, a.first_seen_ns) for a in versions] == [("first", NOW_NS), ("second", NOW_NS + 2 * NS_PER_HOUR)]
    assert len({a.article_id for a in versions}) == 1
    assert [p.is_ok for p in store.polls("local")] == [True] * 3


async def test_an_unchanged_feed_is_not_sent_again(store: NewsStore) -> None:
    def answer(request: Request) -> Reply:
        is_known = request.headers.get("if-none-match") == '"v1"'
        return Reply(b"", 304) if is_known else Reply(rss(item("One")), headers={"etag": '"v1"'})

    with serving(answer) as web:
        async with PoliteReader(0.0, 5.0) as reader:
            assert await reader.get(f"{web.url}/feed", heed_robots=False) is not None
            assert await reader.get(f"{web.url}/feed", heed_robots=False) is None


async def test_a_broken_source_is_a_failed_poll_not_silence(store: NewsStore) -> None:
    with serving(lambda _r: Reply(b"<html>maintenance</html>")) as web:
        report = await collect_news(settings(web.url), store, ManualClock(NOW_NS))
    (poll,) = report.polls
    assert not poll.is_ok
    assert "did not answer with a feed" in poll.note
    assert store.polls("local") == [poll]


async def test_full_text_is_read_only_where_robots_allow_it(store: NewsStore) -> None:
    page = (
        f"<html><body><nav>Menu</nav><article><h1>T</h1><p>{'Exchange reserves fell to a new low. ' * 12}</p></article></body>"
    )

    def answer(request: Request) -> Reply:
        if request.path == "/robots.txt":
            return Reply(b"User-agent: *\nDisallow: /private")
        if request.path == "/feed":
            host = f"http://{request.headers['host']}"
            return Reply(rss(item("Open", path="open", host=host), item("Shut", path="private/b", host=host)))
        return Reply(page.encode())

    with serving(answer) as web:
        await collect_news(settings(web.url, full_text=True), store, ManualClock(NOW_NS))
    bodies = {a.title: a.body for a, _ in store.articles()}
    assert "Exchange reserves fell" in bodies["Open"]
    assert "Menu" not in bodies["Open"]
    assert bodies["Shut"] == ""
    assert "/private/b" not in web.paths()


async def test_one_host_is_not_asked_faster_than_allowed() -> None:
    with serving(lambda _r: Reply(b"x")) as web:
        async with PoliteReader(0.15, 5.0) as reader:
            began = time.monotonic()
            for k in range(3):
                await reader.get(f"{web.url}/{k}", heed_robots=False)
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(("status", "error"), [(429, RetryLater), (503, RetryLater), (404, DoNotRetry), (403, DoNotRetry)])
async def test_refusals_say_whether_to_come_back(status: int, error: type[Exception]) -> None:
    with serving(lambda _r: Reply(b"", status, {"retry-after": "7"})) as web:
        async with PoliteReader(0.0, 5.0) as reader:
            with pytest.raises(error) as caught:
                await reader.get(f"{web.url}/x", heed_robots=False)
    if isinstance(caught.value, RetryLater):
        assert caught.value.retry_after_s == 7.0


async def test_a_dead_host_is_retried_later() -> None:
    async with PoliteReader(0.0, 2.0) as reader:
        with pytest.raises(RetryLater, match="cannot be reached"):
            await reader.get("http://127.0.0.1:9/x", heed_robots=False)


TIMES = [
    ("Mon, 05 Jan 2026 11:00:00 +0000", True, "RFC 822 with offset"),
    ("Mon, 05 Jan 2026 11:00:00 GMT", True, "named zone"),
    ("2026-01-05T11:00:00Z", True, "ISO with Z"),
    ("Mon, 05 Jan 2026 11:00:00", False, "no zone: the hour cannot be trusted"),
    ("yesterday", False, "no time"),
]


@pytest.mark.parametrize(("text", "is_kept", "reason"), TIMES, ids=[t[2] for t in TIMES])
def test_entries_without_a_trustworthy_time_are_refused(text: str, is_kept: bool, reason: str) -> None:
    feed = f"<item><title>T</title><link>http://x/1</link><pubDate>{text}</pubDate></item>"
    document = parse_feed("s", rss(feed), NOW_NS)
    assert (len(document.articles), document.refused) == ((1, 0) if is_kept else (0, 1)), reason


def test_a_publication_time_in_the_future_is_cut_to_now() -> None:
    (article,) = parse_feed("s", rss(item("T", NOW_NS + NS_PER_DAY)), NOW_NS).articles
    assert article.published_ns == NOW_NS


@pytest.mark.real_data
@pytest.mark.skipif(not NEWS_DATA.is_dir(), reason="../shared/data/news is absent")
def test_recorded_feeds_of_real_publishers_are_read_whole() -> None:
    for path in sorted((NEWS_DATA / "rss").glob("*.xml")):
        document = parse_feed(path.stem, path.read_bytes(), parse_utc("2026-11-01"))
        assert document.refused == 0
        assert len(document.articles) >= 3
        assert all(a.title and a.url.startswith("https://") and "<" not in a.body for a in document.articles)


CLEAN = [
    ("<b>Bit</b>coin &amp; co", "Bitcoin & co", "markup and entities"),
    ("a<script>steal()</script>b", "ab", "scripts"),
    ("up\u200b\u202e\u0000 5%", "up 5%", "zero-width, direction override and control characters"),
    ("\uff29\uff27\uff2e\uff2f\uff32\uff25", "IGNORE", "wide look-alikes"),
    ("a\n\n  b", "a b", "blanks"),
]


@pytest.mark.parametrize(("raw", "plain", "reason"), CLEAN, ids=[c[2] for c in CLEAN])
def test_only_plain_text_remains(raw: str, plain: str, reason: str) -> None:
    assert clean(raw) == plain, reason


async def test_gdelt_splits_full_answers_and_goes_on_where_it_stopped(store: NewsStore) -> None:
    start = parse_utc("2025-06-01")
    busy = {"after": 3}

    def answer(request: Request) -> Reply:
        if busy["after"] == 0:
            return Reply(b"Please limit requests to one every 5 seconds")
        busy["after"] -= 1
        asked = {k: v[0] for k, v in parse_qs(urlsplit(request.path).query).items()}
        a, b = (parse_utc(f"{t[:4]}-{t[4:6]}-{t[6:8]}T{t[8:10]}:{t[10:12]}:{t[12:]}") for t in
                (asked["startdatetime"], asked["enddatetime"]))  # fmt: skip
        n = 250 if b - a > 12 * NS_PER_HOUR else 2
        step = (b - a) // n
        times = [a + k * step for k in range(n)]
        fixed = {"domain": "n.example", "language": "English"}
        rows = [
            fixed | {"url": f"http://n/{t}", "title": f"Bitcoin {t}", "seendate": utc(t).strftime("%Y%m%dT%H%M%SZ")}
            for t in times
        ]
        return Reply(orjson.dumps({"articles": rows}))

    with serving(answer) as web:
        wanted = settings(web.url)
        span = (start, start + NS_PER_DAY)
        first = await backfill_gdelt(wanted, store, *span, ManualClock(NOW_NS), f"{web.url}/doc")
        assert [p.is_ok for p in first.polls] == [True, True], "a full day is split into two halves, both answered"
        n_before = len(web.requests)
        assert (await backfill_gdelt(wanted, store, *span, ManualClock(NOW_NS), f"{web.url}/doc")).polls == ()
        assert len(web.requests) == n_before, "what is done is not asked again"
        later = await backfill_gdelt(wanted, store, start, start + 2 * NS_PER_DAY, ManualClock(NOW_NS), f"{web.url}/doc")
        assert not later.polls[-1].is_ok, "errors come as text with HTTP 200"
    assert len(store.articles()) == 4
    assert all(a.is_archive and start <= a.available_ns < start + NS_PER_DAY for a, _ in store.articles())


GDELT_ANSWERS = [
    (b'{"articles": null}', True, "nothing in that window"),
    (b"{}", True, "nothing in that window"),
    (
        b'{"articles": ["text", 7, null, {"title": ["x"], "url": "http://a", "seendate": 5}]}',
        True,
        "rows that are none are left out",
    ),
    (b"[]", False, "no answer of theirs: the window is asked for again"),
    (b'{"articles": "busy"}', False, "no answer of theirs"),
    (b"7", False, "no answer of theirs"),
]


@pytest.mark.parametrize(("answer", "is_read", "reason"), GDELT_ANSWERS, ids=[str(k) for k in range(len(GDELT_ANSWERS))])
async def test_gdelt_answers_of_any_shape(store: NewsStore, answer: bytes, is_read: bool, reason: str) -> None:
    with serving(lambda _r: Reply(answer)) as web:
        done = await backfill_gdelt(settings(web.url), store, 0, NS_PER_HOUR, ManualClock(NOW_NS), f"{web.url}/doc")
        assert [p.is_ok for p in done.polls] == [is_read], reason
        assert not store.articles()
        n_asked = len(web.requests)
        await backfill_gdelt(settings(web.url), store, 0, NS_PER_HOUR, ManualClock(NOW_NS), f"{web.url}/doc")
        assert (len(web.requests) > n_asked) is not is_read, reason


async def test_gdelt_refusing_the_query_is_one_clear_line(store: NewsStore) -> None:
    with serving(lambda _r: Reply(b"Your query was too short.")) as web, pytest.raises(DoNotRetry, match="too short"):
        await backfill_gdelt(settings(web.url), store, 0, NS_PER_HOUR, ManualClock(NOW_NS), f"{web.url}/doc")


def archive(tmp_path: Path, **columns: list[object]) -> Path:
    pd.DataFrame(columns).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    return tmp_path / "a.jsonl"


def test_archive_times_are_honest(tmp_path: Path, store: NewsStore) -> None:
    path = archive(
        tmp_path,
        title=["crawled", "invented", "naive", "back-filled", ""],
        published_at=["2025-01-01T10:00:00Z", "2025-01-01T10:00:00Z", "2025-01-01 10:00", "2025-01-01T10:00:00Z", "x"],
        crawled_at=["2025-01-01T10:20:00Z", "2025-01-01T10:00:00Z", None, "2025-12-01T00:00:00Z", None],
    )
    report = import_news(path, NewsSettings(assumed_lag_minutes=60), store)
    seen = {a.title: (a.first_seen_ns - a.published_ns) // NS_PER_MINUTE for a, _ in store.articles()}
    assert seen == {"crawled": 20, "invented": 60}, "a crawl time equal to the published one was made up"
    got = report.archive
    assert (got.untimed, got.back_filled, got.untitled, got.assumed) == (1, 1, 1, 1)
    assert import_news(path, NewsSettings(), store).n_new == 0


def test_a_file_that_is_no_archive_is_one_clear_line(tmp_path: Path, store: NewsStore) -> None:
    with pytest.raises(UserError, match="title"):
        import_news(archive(tmp_path, headline=["x"]), NewsSettings(), store)
    with pytest.raises(UserError, match="no archive"):
        import_news(tmp_path / "x.docx", NewsSettings(), store)


def test_a_feed_without_an_address_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="decrypt"):
        feeds_of(NewsSettings(feeds=("decrypt",)))


def story_article(title: str, hour: float) -> Article:
    at = NOW_NS + round(hour * NS_PER_HOUR)
    return Article(article_id("s", "", title + str(hour)), "s", "", title, "", at, at)


STORIES = [
    ("Gemini Gets Electronic Money License From Ireland's Central Bank", 0.0, 0, "the first"),
    ("Bitcoin Education Centre Opens In El Salvador", 1.0, 1, "another story"),
    ("Gemini receives license to provide electronic money services in Ireland", 2.0, 0, "the same in other words"),
    ("gemini gets electronic money license from ireland's central bank", 3.0, 0, "syndicated, other case"),
    ("Solana outage enters its third hour", 4.0, 4, "unrelated"),
    ("Bitcoin Education Centre Opens In El Salvador", 80.0, 5, "the same words after more than two days are news again"),
]


def test_copies_join_the_earliest_story() -> None:
    found = find_stories([story_article(title, hour) for title, hour, _, _ in STORIES])
    assert found.story.tolist() == [s for _, _, s, _ in STORIES]
    assert found.copies.tolist() == [1, 1, 2, 3, 1, 1]


def test_a_later_article_changes_no_earlier_story() -> None:
    articles = [story_article(title, hour) for title, hour, _, _ in STORIES]
    whole = find_stories(articles).story.tolist()
    assert all(find_stories(articles[:n]).story.tolist() == whole[:n] for n in range(len(articles)))


def test_text_hash_ignores_what_does_not_matter() -> None:
    assert text_hash("Bitcoin RISES!", "By 5%.") == text_hash("bitcoin rises", "by  5%")
    assert text_hash("Bitcoin rises", "") != text_hash("Bitcoin falls", "")
    assert article_id("a", "https://www.x.com/p/?utm=1#top", "t") == article_id("b", "https://x.com/p", "u")

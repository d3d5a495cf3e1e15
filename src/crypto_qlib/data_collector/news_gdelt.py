"""History from GDELT's DOC 2.0 API: article lists by time window.

Source: GDELT DOC 2.0 API, mode ``ArtList``: at most 250 records an answer, ``seendate`` is when GDELT saw it, about one request
every five seconds, errors come as plain text with HTTP 200. A full answer is split in two halves of its window.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

import orjson

from crypto_qlib.core.clock import NS_PER_MINUTE, NS_PER_S, utc
from crypto_qlib.core.errors import DoNotRetry, RetryLater
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_http import PoliteReader
from crypto_qlib.data_collector.news_text import TITLE_CHARACTERS, article_id, clean

GDELT_URL: Final = "https://api.gdeltproject.org/api/v2/doc/doc"
INTERVAL_S: Final = 5.5
MAX_RECORDS: Final = 250
_SHORTEST_NS: Final = 15 * NS_PER_MINUTE


async def gdelt_articles(
    reader: PoliteReader, query: str, start_ns: int, end_ns: int, url: str = GDELT_URL
) -> AsyncIterator[tuple[int, int, tuple[Article, ...]]]:
    """Yield ``(window start, window end, articles)`` until the span is covered, oldest first; resumable after each window.

    Parameters
    ----------
    reader : PoliteReader
        Give it ``intervals={"api.gdeltproject.org": INTERVAL_S}``.
    query : str
        GDELT's query language, e.g. ``(bitcoin OR ethereum) sourcelang:english``.
    start_ns, end_ns : int
        Span, nanoseconds since the epoch.
    url : str
        Endpoint.

    Raises
    ------
    RetryLater
        If the service is busy or answers with one of its notices about load.
    DoNotRetry
        If it refuses the query.
    """
    todo = [(start_ns, end_ns)]
    while todo:
        a, b = todo.pop()
        found = await _window(reader, query, a, b, url)
        if len(found) >= MAX_RECORDS and b - a > _SHORTEST_NS:
            middle = a + (b - a) // 2
            todo += [(middle, b), (a, middle)]
            continue
        yield a, b, found


async def _window(reader: PoliteReader, query: str, start_ns: int, end_ns: int, url: str) -> tuple[Article, ...]:
    stamp = "%Y%m%d%H%M%S"
    arguments = {
        "query": query,
        "mode": "ArtList",
        "format": "json",
        "maxrecords": MAX_RECORDS,
        "sort": "DateAsc",
        "startdatetime": utc(start_ns).strftime(stamp),
        "enddatetime": utc(end_ns).strftime(stamp),
    }
    answer = await reader.get(f"{url}?{urlencode(arguments)}", heed_robots=False) or b"{}"
    try:
        told = orjson.loads(answer)
    except orjson.JSONDecodeError:
        note = clean(answer.decode("utf-8", "replace"), 120)
        if "limit requests" in note.lower() or "timed out" in note.lower():
            raise RetryLater(f"GDELT is busy: {note}", retry_after_s=60.0) from None
        raise DoNotRetry(f"GDELT refused the query: {note}", "change news.gdelt_query") from None
    rows = told.get("articles") or [] if isinstance(told, dict) else None
    if not isinstance(rows, list):
        # Not an empty answer: the window would count as read.
        raise RetryLater(f"GDELT's answer is no list of articles: {clean(str(told), 80)}", retry_after_s=60.0)
    found = (_article(row) for row in rows if isinstance(row, dict))
    return tuple(a for a in found if a is not None and start_ns <= a.first_seen_ns < end_ns)


def _article(row: dict[str, object]) -> Article | None:
    title = clean(str(row.get("title", "")), TITLE_CHARACTERS)
    url = str(row.get("url", ""))
    try:
        seen = datetime.strptime(str(row.get("seendate", "")), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    if not title or not url:
        return None
    seen_ns = int(seen.timestamp()) * NS_PER_S
    source = str(row.get("domain", "")).removeprefix("www.")
    language = str(row.get("language", ""))[:2].lower()
    return Article(article_id(source, url, title), source, url, title, "", seen_ns, seen_ns, is_archive=True, language=language)

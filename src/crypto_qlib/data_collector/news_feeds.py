"""An RSS or Atom document as articles, by feedparser.

Times without a zone are refused (an article whose time cannot be trusted would leak the future); a time later than the moment
of reading is cut to it. Source: RSS 2.0 ``pubDate``, Atom ``published``/``updated``.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from typing import Any

import feedparser

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.core.errors import RetryLater
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_text import TITLE_CHARACTERS, article_id, clean


@dataclass(frozen=True, slots=True)
class FeedDocument:
    """What one feed held.

    Parameters
    ----------
    articles : tuple of Article
        In the feed's order.
    refused : int
        Entries without title or trustworthy time.
    """

    articles: tuple[Article, ...]
    refused: int


def parse_feed(source: str, content: bytes, seen_ns: int) -> FeedDocument:
    """Return the articles of a feed document.

    Parameters
    ----------
    source : str
        Name of the feed in the settings.
    content : bytes
        RSS or Atom.
    seen_ns : int
        When it was read.

    Raises
    ------
    RetryLater
        If it is no feed at all (an error page).
    """
    parsed: Any = feedparser.parse(content, sanitize_html=True, resolve_relative_uris=False)
    if not parsed.entries and (parsed.bozo or not parsed.get("version")):
        raise RetryLater(f"{source} did not answer with a feed", "check its address in news.feeds", retry_after_s=60.0)
    found = [_article(source, entry, seen_ns) for entry in parsed.entries]
    kept = tuple(a for a in found if a is not None)
    return FeedDocument(kept, len(found) - len(kept))


def _article(source: str, entry: Any, seen_ns: int) -> Article | None:
    title = clean(str(entry.get("title", "")), TITLE_CHARACTERS)
    published_ns = _published_ns(entry)
    if not title or published_ns is None:
        return None
    url = str(entry.get("link", "")) or str(entry.get("id", ""))
    contents = entry.get("content") or [{}]
    body = clean(str(contents[0].get("value", "") or entry.get("summary", "")))
    return Article(
        article_id=article_id(source, url, title),
        source=source,
        url=url,
        title=title,
        body=body,
        published_ns=min(published_ns, seen_ns),
        first_seen_ns=seen_ns,
        language=str(entry.get("language", "")),
    )


def _published_ns(entry: Any) -> int | None:
    """Return the publisher's time; ``None`` where there is none or it names no zone."""
    for name in ("published", "updated", "created"):
        # Plain dict access: feedparser's own maps a missing `updated` to `published` and warns.
        text, moment = str(dict.get(entry, name) or ""), dict.get(entry, f"{name}_parsed")
        if text:
            return calendar.timegm(moment) * NS_PER_S if moment is not None and _names_a_zone(text) else None
    return None


def _names_a_zone(text: str) -> bool:
    last = text.strip().split(" ")[-1].upper()
    is_offset = len(last) >= 5 and last[-5] in "+-" and last[-4:].isdigit()  # noqa: PLR2004 - +0000
    is_iso_offset = len(last) >= 6 and last[-6] in "+-" and last[-3] == ":"  # noqa: PLR2004 - +00:00
    return last.endswith("Z") or last.isalpha() or is_offset or is_iso_offset

"""The main text of an article's page, where its publisher allows programs to read it; extracted by trafilatura."""

from __future__ import annotations

from dataclasses import replace

import trafilatura

from crypto_qlib.core.errors import DoNotRetry, RetryLater
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_http import PoliteReader
from crypto_qlib.data_collector.news_text import clean


async def with_full_text(reader: PoliteReader, article: Article) -> Article:
    """Return ``article`` with the text of its page as body; unchanged where robots.txt, a paywall or an error is in the way.

    Only the address the feed gave is read; links inside are never followed.
    """
    if not article.url:
        return article
    try:
        page = await reader.get(article.url)
    except (DoNotRetry, RetryLater):
        return article
    if page is None:
        return article
    text = trafilatura.extract(
        page.decode("utf-8", "replace"), include_comments=False, include_tables=False, include_links=False, with_metadata=False
    )
    body = clean(text or "")
    return replace(article, body=body) if len(body) > len(article.body) else article

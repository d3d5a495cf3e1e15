"""Collect news: poll the feeds, fetch full texts where allowed, fill history from GDELT, import archives.

1. Feeds are polled at once, one request to a host at a time (:mod:`news_http`).
2. Every poll is remembered, a failed one too: hours without a successful poll are gaps in what is known, not silence.
3. Published and first-seen time are both kept, features use the later; a changed text is a new version first seen now.
4. Copies and near-duplicates are merged when features are built (:mod:`news_duplicates`), never when stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from crypto_qlib.core.clock import Clock, iso
from crypto_qlib.core.errors import DoNotRetry, RetryLater, UserError
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_archive import Archive, read_archive
from crypto_qlib.data_collector.news_feeds import parse_feed
from crypto_qlib.data_collector.news_full_text import with_full_text
from crypto_qlib.data_collector.news_gdelt import GDELT_URL, INTERVAL_S, gdelt_articles
from crypto_qlib.data_collector.news_http import PoliteReader
from crypto_qlib.data_collector.news_text import text_hash
from crypto_qlib.settings.schema import NewsSettings
from crypto_qlib.store.news_store import NewsStore, Poll


@dataclass(frozen=True, slots=True)
class Feed:
    """One feed of the settings."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class NewsReport:
    """How a collection went.

    Parameters
    ----------
    polls : tuple of Poll
        One a source or window.
    """

    polls: tuple[Poll, ...]

    @property
    def n_new(self) -> int:
        """Return articles and versions not seen before."""
        return sum(p.n_new for p in self.polls)

    def summary_lines(self) -> tuple[str, ...]:
        """Return what a person should know, line by line."""
        failed = [p for p in self.polls if not p.is_ok]
        head = f"news: {self.n_new} new from {len(self.polls) - len(failed)} of {len(self.polls)} sources"
        return (head, *(f"  {p.source}: {p.note}" for p in failed))


def feeds_of(settings: NewsSettings) -> tuple[Feed, ...]:
    """Return the feeds of ``settings``.

    Raises
    ------
    UserError
        If an entry is not ``name address``.
    """
    feeds = []
    for entry in settings.feeds:
        name, _, url = entry.strip().partition(" ")
        if urlsplit(url.strip()).scheme not in {"http", "https"}:
            raise UserError(f"news.feeds: {entry!r} is not `name address`", "e.g. `decrypt https://decrypt.co/feed`")
        feeds.append(Feed(name, url.strip()))
    return tuple(feeds)


async def collect_news(settings: NewsSettings, store: NewsStore, clock: Clock) -> NewsReport:
    """Poll every feed once and keep what is new.

    Parameters
    ----------
    settings : NewsSettings
        Feeds, politeness.
    store : NewsStore
        Where to.
    clock : Clock
        Tells when articles are first seen.

    Raises
    ------
    UserError
        If the settings name a feed without an address. A feed that fails is a failed poll in the report, not an error.
    """
    feeds = feeds_of(settings)
    async with PoliteReader(settings.host_interval_s, settings.timeout_s) as reader:
        known = store.known_ids()
        polls = await asyncio.gather(*(_poll(reader, feed, settings, store, clock, known) for feed in feeds))
    return NewsReport(tuple(polls))


async def _poll(
    reader: PoliteReader, feed: Feed, settings: NewsSettings, store: NewsStore, clock: Clock, known: frozenset[str]
) -> Poll:
    try:
        content = await reader.get(feed.url, heed_robots=False)
        seen_ns = clock.now_ns()
        articles: Sequence[Article] = () if content is None else parse_feed(feed.name, content, seen_ns).articles
        if settings.full_text:
            fresh = [a for a in articles if a.article_id not in known]
            articles = [await with_full_text(reader, a) for a in fresh]
        poll = Poll(feed.name, seen_ns, is_ok=True, n_new=_keep(store, articles))
    except (DoNotRetry, RetryLater) as e:
        poll = Poll(feed.name, clock.now_ns(), is_ok=False, note=str(e))
    store.remember_poll(poll)
    return poll


def _keep(store: NewsStore, articles: Iterable[Article]) -> int:
    return store.add((a, text_hash(a.title, a.body)) for a in articles)


async def backfill_gdelt(
    settings: NewsSettings, store: NewsStore, start_ns: int, end_ns: int, clock: Clock, url: str = GDELT_URL
) -> NewsReport:
    """Fill ``start_ns .. end_ns`` from GDELT; windows that were answered before are not asked again.

    A window is remembered only after its articles are stored, so a run that is killed goes on where it stopped.

    Raises
    ------
    DoNotRetry
        If GDELT refuses the query. A busy service ends the run with a failed poll in the report; run it again later.
    """
    source = f"gdelt {settings.gdelt_query}"
    done = sorted(p.note for p in store.polls(source) if p.is_ok)
    polls: list[Poll] = []
    resume_ns = start_ns
    for note in done:
        first, _, last = note.partition(" ")
        if int(first) <= resume_ns < int(last):
            resume_ns = int(last)
    if resume_ns >= end_ns:
        return NewsReport(())
    host = urlsplit(url).netloc
    interval_s = INTERVAL_S if host.endswith("gdeltproject.org") else settings.host_interval_s
    async with PoliteReader(settings.host_interval_s, settings.timeout_s, {host: interval_s}) as reader:
        try:
            async for a, b, articles in gdelt_articles(reader, settings.gdelt_query, resume_ns, end_ns, url):
                polls.append(Poll(source, clock.now_ns(), is_ok=True, n_new=_keep(store, articles), note=f"{a:020d} {b:020d}"))
                store.remember_poll(polls[-1])
        except RetryLater as e:
            polls.append(Poll(source, clock.now_ns(), is_ok=False, note=str(e)))
            store.remember_poll(polls[-1])
    return NewsReport(tuple(polls))


@dataclass(frozen=True, slots=True)
class ImportReport:
    """How an import went."""

    path: Path
    archive: Archive
    n_new: int

    def summary_lines(self) -> tuple[str, ...]:
        """Return what a person should know, line by line."""
        a = self.archive
        kept = a.articles
        lines = [f"{self.path.name}: {self.n_new} new of {len(kept)} articles; seen time assumed for {a.assumed}"]
        if kept:
            times = [article.available_ns for article in kept]
            lines.append(f"  available {iso(min(times))} to {iso(max(times))}")
        dropped = {"back-filled later": a.back_filled, "without a zoned time": a.untimed, "without a title": a.untitled}
        lines += [f"  left out, {why}: {n}" for why, n in dropped.items() if n]
        return tuple(lines)


def import_news(path: Path, settings: NewsSettings, store: NewsStore) -> ImportReport:
    """Import an archive file (see :mod:`news_archive`); importing it again adds nothing.

    Raises
    ------
    UserError
        If the file cannot be read.
    """
    archive = read_archive(path, settings.assumed_lag_minutes)
    n_new = _keep(store, archive.articles)
    return ImportReport(path, archive, n_new)

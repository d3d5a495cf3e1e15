"""Read articles as events in time: from when each counts, until when, for which coins, with what weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.core.news import Article, EventClass, Reading
from crypto_qlib.data_collector.news_duplicates import find_stories
from crypto_qlib.feature_engineering.news_lexicon import lexicon
from crypto_qlib.settings.schema import NewsSettings
from crypto_qlib.store.news_store import NewsStore

NEVER: Final = np.iinfo(np.int64).max
EVENTS: Final = tuple(EventClass)
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NewsEvents:
    """Readings in order of the time they became usable.

    Parameters
    ----------
    known_ns : (n,) int64
        From when the reading counts; does not decrease.
    until_ns : (n,) int64
        Until when: a better reader's answer, or a corrected text, replaces it; :data:`NEVER` where it stands.
    sentiment, confidence, relevance, severity : (n,) float64
        As read.
    event : (n,) int64
        Index into :data:`EVENTS`.
    is_copy : (n,) bool
        Whether an earlier article told the same story: it counts as reach, not as a vote.
    source : (n,) int64
        Index of the publisher, for the cap of one source's weight.
    coins : tuple of tuple of str
        Base coins named.
    topics : (n, n_topics) bool
        Topics of the word list each text touches.
    polls_ns : (k,) int64
        Times at which news is known to have been looked for; sorted.
    """

    known_ns: IntArray
    until_ns: IntArray
    sentiment: FloatArray
    confidence: FloatArray
    relevance: FloatArray
    severity: FloatArray
    event: IntArray
    is_copy: npt.NDArray[np.bool_]
    source: IntArray
    coins: tuple[tuple[str, ...], ...]
    topics: npt.NDArray[np.bool_]
    polls_ns: IntArray

    def __len__(self) -> int:
        return int(self.known_ns.size)

    def digest(self, start_ns: int, end_ns: int) -> str:
        """Return a digest of what came into force, ended or was looked for in ``(start_ns, end_ns]``."""
        rows = (self.known_ns <= end_ns) & (self.until_ns > start_ns) & ((self.known_ns > start_ns) | (self.until_ns <= end_ns))
        until = np.minimum(self.until_ns[rows], end_ns)
        polls = self.polls_ns[(self.polls_ns > start_ns) & (self.polls_ns <= end_ns)]
        digest = hashlib.sha256(repr([self.coins[k] for k in np.flatnonzero(rows)]).encode())
        plain = (
            self.known_ns,
            self.sentiment,
            self.confidence,
            self.relevance,
            self.severity,
            self.event,
            self.is_copy,
            self.topics,
        )
        for array in (until, polls, *(np.ascontiguousarray(column[rows]) for column in (*plain, self.source))):
            digest.update(array.data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Row:
    known_ns: int
    until_ns: int
    reading: Reading
    is_copy: bool
    source: str
    title: str


def news_events(
    texts: Sequence[tuple[Article, str]],
    readings: Mapping[str, Sequence[Reading]],
    polls_ns: Sequence[int],
    settings: NewsSettings,
    trained_until_ns: Mapping[str, int],
) -> NewsEvents:
    """Return the events of read articles.

    Parameters
    ----------
    texts : sequence of (article, text hash)
        Every version of every article.
    readings : mapping of text hash to readings
        All answers about a text; the local one and, where there is one, the language model's.
    polls_ns : sequence of int
        Times of successful polls.
    settings : NewsSettings
        ``processing_delay_s``.
    trained_until_ns : mapping of model to int
        A model's answers about older articles are hindsight and not used. A model that is absent may read its whole past.

    Notes
    -----
    An article collected live counts from ``max(available + delay, scored)``; one imported from ``available + delay``. Where a
    language model answered after the local one, the local reading counts until then.
    """
    order = sorted(texts, key=lambda pair: (pair[0].available_ns, pair[0].article_id, pair[1]))
    stories = find_stories([a for a, _ in order])
    delay_ns = round(settings.processing_delay_s * NS_PER_S)
    replaced: dict[str, int] = {}
    rows: list[_Row] = []
    for k in range(len(order) - 1, -1, -1):  # newest version first: it ends the one before
        article, digest = order[k]
        until_ns = replaced.get(article.article_id, NEVER)
        usable = [r for r in readings.get(digest, ()) if article.available_ns >= trained_until_ns.get(r.model, 0)]
        spans = _spans(article, usable, delay_ns, until_ns)
        is_copy = order[stories.story[k]][0].article_id != article.article_id
        rows += [_Row(a, b, r, is_copy, article.source, article.title) for a, b, r in spans]
        if spans:
            replaced[article.article_id] = min(a for a, _, _ in spans)
    rows.sort(key=lambda row: (row.known_ns, row.title, row.reading.model))
    return _stacked(rows, sorted({*polls_ns, *(a.available_ns for a, _ in order)}))


def _spans(article: Article, usable: Sequence[Reading], delay_ns: int, until_ns: int) -> list[tuple[int, int, Reading]]:
    """Return ``(from, until, reading)``; the language model's answer ends the local reading."""
    ready_ns = article.available_ns + delay_ns
    timed = [(ready_ns if article.is_archive else max(ready_ns, r.scored_ns), r) for r in usable]
    local = [(a, r) for a, r in timed if r.prompt_version.startswith("local")]
    asked = [(a, r) for a, r in timed if not r.prompt_version.startswith("local")]
    spans = []
    best = min(asked, key=lambda pair: pair[0], default=None)
    if best is not None and best[0] < until_ns:
        spans.append((best[0], until_ns, best[1]))
        until_ns = best[0]
    first = max(local, key=lambda pair: (pair[1].scored_ns, pair[1].model), default=None)
    if first is not None and first[0] < until_ns:
        spans.append((first[0], until_ns, first[1]))
    return spans


def _stacked(rows: Sequence[_Row], polls_ns: Sequence[int]) -> NewsEvents:
    names = {name: k for k, name in enumerate(sorted({row.source for row in rows}))}
    matchers = list(lexicon().topics.values())

    def column(values: Sequence[float]) -> FloatArray:
        return np.array(values, dtype=np.float64)

    return NewsEvents(
        known_ns=np.array([row.known_ns for row in rows], dtype=np.int64),
        until_ns=np.array([row.until_ns for row in rows], dtype=np.int64),
        sentiment=column([row.reading.sentiment for row in rows]),
        confidence=column([row.reading.confidence for row in rows]),
        relevance=column([row.reading.relevance for row in rows]),
        severity=column([row.reading.severity for row in rows]),
        event=np.array([EVENTS.index(row.reading.event) for row in rows], dtype=np.int64),
        is_copy=np.array([row.is_copy for row in rows], dtype=np.bool_),
        source=np.array([names[row.source] for row in rows], dtype=np.int64),
        coins=tuple(row.reading.coins for row in rows),
        topics=np.array([[bool(m.find(row.title)) for m in matchers] for row in rows], np.bool_).reshape(len(rows), -1),
        polls_ns=np.array(polls_ns, dtype=np.int64),
    )


def load_news(store: NewsStore, settings: NewsSettings, trained_until_ns: Mapping[str, int]) -> NewsEvents:
    """Return the events of everything in the news database, see :func:`news_events`."""
    readings: dict[str, list[Reading]] = {}
    for digest, reading in store.readings():
        readings.setdefault(digest, []).append(reading)
    polls = [p.ts_ns for p in store.polls() if p.is_ok]
    return news_events(store.articles(), readings, polls, settings, trained_until_ns)

"""Which articles tell one and the same story: syndicated copies and near-duplicates are merged, the earliest sets the time.

Layers, cheapest first: same address (the article id), same words, then near-duplicates: cosine of the titles' words and
character 4-grams, within :data:`WINDOW_NS`, and an entity (coin, number, capitalised name) in common. A story
joined by a copy keeps its time; copies add reach, not votes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import hstack
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_text import normalised

WINDOW_NS: Final = 48 * NS_PER_HOUR
MIN_COSINE: Final = 0.55
"""Chosen by reading the pairs found on real headlines: above it nearly all tell one story."""
_ENTITY = re.compile(r"\b[A-Z][A-Za-z0-9&]+\b|\$?\d[\d.,]*[kKmMbB%]?")
_COMMON: Final = frozenset({"The", "A", "An", "How", "Why", "What", "Crypto", "Price", "New", "Here", "Is", "In", "To", "Of"})
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Stories:
    """Which story each article belongs to.

    Parameters
    ----------
    story : (n,) int64
        Index of the earliest article of its story; its own index for the first of a story.
    copies : (n,) int64
        Articles of the story so far, itself included.
    """

    story: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]


def find_stories(articles: Sequence[Article], min_cosine: float = MIN_COSINE) -> Stories:
    """Return the story of each article; the answer for one article depends on itself and earlier ones only.

    Parameters
    ----------
    articles : sequence of Article
        In order of :attr:`Article.available_ns`.
    min_cosine : float
        Least likeness of two titles of one story.
    """
    n = len(articles)
    story = np.arange(n, dtype=np.int64)
    if not n:
        return Stories(story, story.copy())
    times = np.array([a.available_ns for a in articles], dtype=np.int64)
    vectors = _vectors([a.title for a in articles])
    entities = [frozenset(_ENTITY.findall(a.title)) - _COMMON for a in articles]
    same_words: dict[str, int] = {}
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        oldest = int(np.searchsorted(times, times[start] - WINDOW_NS))
        likeness = (vectors[start:stop] @ vectors[oldest:stop].T).tocsr()
        for k in range(start, stop):
            key = normalised(articles[k].title)
            twin = same_words.setdefault(key, k)
            found = twin if twin != k and times[k] - times[twin] <= WINDOW_NS else -1
            if found < 0:
                same_words[key] = k
                row = likeness[k - start]
                found = _earlier_twin(k, oldest, row.indices, row.data, times, entities, min_cosine)
            if found >= 0:
                story[k] = story[found]
    return Stories(story, _running_count(story))


def _earlier_twin(
    k: int,
    oldest: int,
    columns: npt.NDArray[np.int32],
    cosine: npt.NDArray[np.float64],
    times: npt.NDArray[np.int64],
    entities: Sequence[frozenset[str]],
    min_cosine: float,
) -> int:
    """Return the most alike earlier article that shares an entity, or -1."""
    for at in np.argsort(-cosine, kind="stable"):
        other = oldest + int(columns[at])
        if cosine[at] < min_cosine:
            return -1
        if other < k and times[k] - times[other] <= WINDOW_NS and entities[k] & entities[other]:
            return other
    return -1


def _vectors(titles: Sequence[str]) -> Any:
    """Return unit vectors of the titles; terms carry no fitted weight, so later articles change nothing."""
    text = [normalised(t) for t in titles]
    by_word = HashingVectorizer(n_features=2**18, norm="l2", alternate_sign=False, stop_words=_STOP)
    by_piece = HashingVectorizer(n_features=2**18, norm="l2", alternate_sign=False, analyzer="char_wb", ngram_range=(4, 4))
    both = hstack([by_word.transform(text), by_piece.transform(text)]).tocsr()
    return normalize(both)


def _running_count(story: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    seen: dict[int, int] = {}
    counts = np.empty(story.size, dtype=np.int64)
    for k, s in enumerate(story.tolist()):
        seen[s] = seen.get(s, 0) + 1
        counts[k] = seen[s]
    return counts


_STOP: Final = [
    "the",
    "a",
    "an",
    "of",
    "to",
    "in",
    "for",
    "on",
    "at",
    "as",
    "by",
    "and",
    "is",
    "with",
    "its",
    "from",
    "after",
    "s",
]

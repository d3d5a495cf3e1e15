"""The reader that is always there: relevance, sentiment, event, coins and topics of an article without any language model.

It screens what the language model is asked about, and reads alone where none is configured, the budget is spent or the model
fails. Which of the two read a text is recorded with every reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from crypto_qlib.core.news import Article, EventClass, Horizon, Reading
from crypto_qlib.feature_engineering.news_classifier import Classifier, LexiconClassifier
from crypto_qlib.feature_engineering.news_lexicon import lexicon

VERSION: Final = "local-1"
_HEADLINE: Final = 0.8
_BODY: Final = 0.4
_NONE: Final = 0.05
_PER_TERM: Final = 0.05
_MOST: Final = 1.0
_SEVERE: Final = {EventClass.HACK: 0.8, EventClass.LEGAL: 0.6, EventClass.POLICY: 0.6, EventClass.INSTITUTIONAL: 0.5}
_LASTING: Final = {EventClass.POLICY: Horizon.WEEKS, EventClass.LEGAL: Horizon.WEEKS, EventClass.UPGRADE: Horizon.WEEKS,
                   EventClass.MARKET_STRUCTURE: Horizon.HOURS}  # fmt: skip


class LocalReader:
    """Read articles by word list and classifier.

    Parameters
    ----------
    classifier : Classifier, optional
        Sentiment; the lexicon's by default.
    """

    def __init__(self, classifier: Classifier | None = None) -> None:
        self._classifier = classifier or LexiconClassifier()
        self._lexicon = lexicon()

    @property
    def name(self) -> str:
        """Return the name readings are recorded under."""
        return self._classifier.name

    def read(self, articles: Sequence[Article], allowed: Sequence[str], now_ns: int) -> list[Reading]:
        """Return one reading an article; sentiment is ``P(positive) - P(negative)`` of the headline.

        Parameters
        ----------
        articles : sequence of Article
            What to read.
        allowed : sequence of str
            Base coins that may be named.
        now_ns : int
            Time of scoring.
        """
        if not articles:
            return []
        p = self._classifier.probabilities([a.title for a in articles])
        sentiment, confidence = p[:, 2] - p[:, 0], p.max(axis=1)
        return [
            self._reading(article, allowed, float(sentiment[k]), float(confidence[k]), now_ns)
            for k, article in enumerate(articles)
        ]

    def relevance(self, article: Article) -> float:
        """Return how much the text is about crypto, in [0, 1]: by its headline, else by its body."""
        in_title = len(self._lexicon.crypto.find(article.title))
        if in_title:
            return min(_MOST, _HEADLINE + _PER_TERM * (in_title - 1))
        in_body = len(self._lexicon.crypto.find(article.body))
        return min(_HEADLINE, _BODY + _PER_TERM * (in_body - 1)) if in_body else _NONE

    def coins(self, article: Article, allowed: Sequence[str]) -> tuple[str, ...]:
        """Return the allowed coins the text names; also the rule a language model's answer must agree with."""
        return self._lexicon.coins_named(f"{article.title} {article.body}", allowed)

    def _reading(self, article: Article, allowed: Sequence[str], sentiment: float, confidence: float, now_ns: int) -> Reading:
        event = self._event(article.title)
        topics = tuple(name for name, matcher in self._lexicon.topics.items() if matcher.find(article.title))
        return Reading(
            relevance=self.relevance(article),
            sentiment=sentiment,
            confidence=confidence,
            event=event,
            severity=float(np.clip(_SEVERE.get(event, 0.3) * (0.5 + abs(sentiment)), 0.0, 1.0)),
            horizon=_LASTING.get(event, Horizon.DAYS),
            coins=self._lexicon.coins_named(article.title, allowed),
            topics=topics,
            reason="words of the headline",
            model=self.name,
            prompt_version=VERSION,
            scored_ns=now_ns,
        )

    def _event(self, title: str) -> EventClass:
        """Return the class with most of its words in the headline; the earlier of the list where two tie."""
        counts = {event: len(matcher.find(title)) for event, matcher in self._lexicon.events.items()}
        best = max(counts, key=lambda e: counts[e])
        return best if counts[best] else EventClass.OTHER

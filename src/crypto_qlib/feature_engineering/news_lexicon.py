"""Words and phrases of crypto headlines: which way they point, what event, topic and coin they name. Our own list, no data.

An entry is a word, a phrase, or a beginning of words (``hack*``). Weights of one text add up with diminishing effect, so a
headline cannot be made extreme by repeating itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.news import EventClass
from crypto_qlib.data_collector.news_text import words

DIMINISH: Final = 0.6
"""Each further hit of one side counts this fraction of the one before, largest first."""
N_SIDES: Final = 5
"""Numbers :meth:`Lexicon.sides` returns."""
_SHORTEST_STEM: Final = 2


class TermMatcher:
    """Find terms in texts: words, beginnings of words (``x*``) and phrases.

    Parameters
    ----------
    terms : iterable of str
        In small letters.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        self._words: set[str] = set()
        self._stems: set[str] = set()
        self._phrases: list[tuple[str, str]] = []
        for term in terms:
            if " " in term or term == "?":
                self._phrases.append((term, f" {term.rstrip('*')}" if term.endswith("*") else f" {term} "))
            elif term.endswith("*"):
                self._stems.add(term[:-1])
            else:
                self._words.add(term)

    def find(self, text: str) -> list[str]:
        """Return the terms ``text`` holds, each once."""
        tokens, padded = _prepared(text)
        found = self._words & tokens
        if self._stems:
            for token in tokens:
                found |= {f"{token[:n]}*" for n in range(_SHORTEST_STEM, len(token) + 1) if token[:n] in self._stems}
        found |= {term for term, pattern in self._phrases if (pattern in padded if term != "?" else "?" in text)}
        return sorted(found)


@lru_cache(maxsize=64)
def _prepared(text: str) -> tuple[frozenset[str], str]:
    """Return the words of ``text`` and the same in one line; a text is looked at by a hundred matchers in a row."""
    tokens = words(text.replace("-", " "))
    return frozenset(tokens), f" {' '.join(tokens)} "


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The list, ready to match.

    Parameters
    ----------
    weights : tuple of dict
        Term -> weight, for the positive, negative and neutral side.
    matchers : tuple of TermMatcher
        One a side.
    crypto : TermMatcher
        Terms that make a text relevant.
    events, topics, coins : dict of TermMatcher
        By event class, topic, base coin.
    calibration : (3, 6) float64
        Rows: negative, neutral, positive; columns: the five numbers of :meth:`sides` and a constant. Softmax of the product
        with them gives probabilities.
    """

    weights: tuple[Mapping[str, float], ...]
    matchers: tuple[TermMatcher, ...]
    crypto: TermMatcher
    events: Mapping[EventClass, TermMatcher]
    topics: Mapping[str, TermMatcher]
    coins: Mapping[str, TermMatcher]
    calibration: npt.NDArray[np.float64]

    def sides(self, text: str) -> npt.NDArray[np.float64]:
        """Return positive, negative and neutral weight of ``text``, and whether the first two are above zero."""
        totals = []
        for weights, matcher in zip(self.weights, self.matchers, strict=True):
            hits = sorted((weights[t] for t in matcher.find(text)), reverse=True)
            totals.append(sum(w * DIMINISH**k for k, w in enumerate(hits)))
        return np.array([*totals, totals[0] > 0.0, totals[1] > 0.0], dtype=np.float64)

    def coins_named(self, text: str, allowed: Iterable[str] | None = None) -> tuple[str, ...]:
        """Return the base coins ``text`` names, by ticker or name; only those of ``allowed`` where it is given.

        A ticker the list does not know counts where it stands in capitals or after a ``$``.
        """
        found = {coin for coin, matcher in self.coins.items() if matcher.find(text)}
        if allowed is None:
            return tuple(sorted(found))
        wanted = set(allowed)
        marks = text.replace("$", " ").replace("(", " ").replace(")", " ").replace(",", " ").replace(":", " ").split()
        found |= {mark.strip(".;'\"") for mark in marks if mark.isupper()} & (wanted - set(self.coins))
        return tuple(sorted(found & wanted))


@cache
def lexicon() -> Lexicon:
    """Return the list that comes with the package."""
    text = resources.files("crypto_qlib.feature_engineering").joinpath("news_lexicon.json").read_text("utf-8")
    raw: dict[str, Any] = json.loads(text)
    sides = tuple(raw[name] for name in ("positive", "negative", "neutral"))
    calibration = raw["calibration"]
    return Lexicon(
        weights=sides,
        matchers=tuple(TermMatcher(side) for side in sides),
        crypto=TermMatcher(raw["crypto"]),
        events={EventClass(name): TermMatcher(terms) for name, terms in raw["events"].items()},
        topics={name: TermMatcher(terms) for name, terms in raw["topics"].items()},
        coins={name: TermMatcher(terms) for name, terms in raw["coins"].items()},
        calibration=np.array([calibration[name] for name in ("negative", "neutral", "positive")], dtype=np.float64),
    )

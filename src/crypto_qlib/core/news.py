"""An article as it was published and seen, and what a reader (a language model or the local one) made of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventClass(StrEnum):
    """What kind of event an article is about."""

    POLICY = "policy"
    HACK = "hack"
    LISTING = "listing"
    INSTITUTIONAL = "institutional"
    MACRO = "macro"
    UPGRADE = "upgrade"
    PARTNERSHIP = "partnership"
    LEGAL = "legal"
    MARKET_STRUCTURE = "market_structure"
    OTHER = "other"


class Horizon(StrEnum):
    """How long an event is expected to matter."""

    HOURS = "hours"
    DAYS = "days"
    WEEKS = "weeks"


@dataclass(frozen=True, slots=True)
class Article:
    """One version of one article.

    Parameters
    ----------
    article_id : str
        Names the article over its versions: a digest of its address, or of source and title where it has none.
    source : str
        Who published it.
    url : str
        Address; empty where unknown.
    title, body : str
        Plain text, cleaned (:func:`crypto_qlib.data_collector.news_text.clean`); the body may be empty.
    published_ns : int
        What the publisher claims, nanoseconds since the epoch.
    first_seen_ns : int
        When this version was first seen by us or by the vendor of an archive.
    is_archive : bool
        Whether it was imported later (its scores were made afterwards) rather than collected as it came.
    is_seen_assumed : bool
        Whether ``first_seen_ns`` is ``published_ns`` plus an assumed lag, because nobody recorded it.
    language : str
        ISO code, empty where unknown.
    """

    article_id: str
    source: str
    url: str
    title: str
    body: str
    published_ns: int
    first_seen_ns: int
    is_archive: bool = False
    is_seen_assumed: bool = False
    language: str = ""

    @property
    def available_ns(self) -> int:
        """Return the instant before which nothing may use the article: the later of published and first seen."""
        return max(self.published_ns, self.first_seen_ns)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader says about one text.

    Parameters
    ----------
    relevance : float
        In [0, 1]: how much it matters to crypto markets.
    sentiment : float
        In [-1, 1], for the price of the coins named (of the market, where none is).
    confidence : float
        In [0, 1].
    event : EventClass
        Main event.
    severity : float
        In [0, 1].
    horizon : Horizon
        How long it is expected to matter.
    coins : tuple of str
        Base coins of the allow-list that the text names.
    topics : tuple of str
        A few lower-case words.
    reason : str
        One line.
    model, prompt_version : str
        Who read it, by which instructions.
    scored_ns : int
        When.
    flags : tuple of str
        What was odd: ``clamped``, ``coins_dropped``, ``disagreement``.
    """

    relevance: float
    sentiment: float
    confidence: float
    event: EventClass
    severity: float
    horizon: Horizon
    coins: tuple[str, ...]
    topics: tuple[str, ...]
    reason: str
    model: str
    prompt_version: str
    scored_ns: int
    flags: tuple[str, ...] = ()

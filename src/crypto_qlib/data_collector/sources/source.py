"""What every external source looks like: a name, its terms, and one question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from crypto_qlib.core.market import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of a source.

    Parameters
    ----------
    coins : tuple of str
        Base coins, for sources that know coins one by one.
    now_ns : int
        Now, ns since the epoch; nothing that ends later is an answer.
    since_ns : callable
        ``since_ns(series, symbol)``: events from then on are wanted (overlapping what is known, to see corrections).
    """

    coins: tuple[str, ...]
    now_ns: int
    since_ns: Callable[[str, str], int]


@dataclass(frozen=True, slots=True)
class Answer:
    """Values of one series.

    Parameters
    ----------
    series, symbol : str
        As in :data:`~crypto_qlib.data_collector.external_catalogue.CATALOGUE`.
    event_ns : (n,) int64
        Distinct events.
    value : (n,) float64
        Their values.
    usually_known_ns : (n,) int64
        When each value is published as a rule, an upper estimate.
    """

    series: str
    symbol: str
    event_ns: IntArray
    value: FloatArray
    usually_known_ns: IntArray


@dataclass(frozen=True, slots=True)
class Answers:
    """All a source had to say.

    Parameters
    ----------
    answers : tuple of Answer
        One a series and symbol.
    notes : tuple of str
        What it could not give, in one clear sentence each.
    """

    answers: tuple[Answer, ...]
    notes: tuple[str, ...] = ()


class ExternalSource(Protocol):
    """Serve some series of the catalogue."""

    @property
    def name(self) -> str:
        """Name the source as the catalogue does."""
        ...

    @property
    def terms(self) -> str:
        """Say in one line whose data these are and what may be done with them."""
        ...

    def fetch(self, ask: Ask) -> Answers:
        """Return what the source knows.

        Raises
        ------
        CryptoQlibError
            If it cannot be reached, is over its limits, or answers with something else.
        """
        ...

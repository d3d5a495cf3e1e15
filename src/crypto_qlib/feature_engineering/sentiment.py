"""News as features: decayed sentiment, volume and surprise, disagreement, event flags, daily index, topics; coin and market.

A reading counts at a bar if it became usable by the bar's close and was not replaced by then. Weights halve every half-life and
end after :data:`MEMORY_H` hours, so a live row reads what the batch read. One source's share of a weight sum is capped, copies
of a story count as reach only. Where no poll and no article is known for six hours nothing is known: NaN, not zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.jit import njit
from crypto_qlib.feature_engineering.bar_series import FeatureInputs
from crypto_qlib.feature_engineering.feature_frame import FeatureSpec, Float32Array
from crypto_qlib.feature_engineering.news_events import EVENTS, NewsEvents
from crypto_qlib.feature_engineering.news_lexicon import lexicon
from crypto_qlib.feature_engineering.side_data import base_coin

GROUP: Final = "news"
MEMORY_H: Final = 168
HALF_LIVES_H: Final = (6.0, 24.0)
EVENT_HALF_LIFE_H: Final = 24.0
SOURCE_CAP: Final = 0.5
"""Largest share of a weight sum one source may have by publishing more than one article, where there are others."""
MIN_RELEVANCE: Final = 0.2
MAX_GAP_NS: Final = 6 * NS_PER_HOUR

_EVENTS: Final = tuple(e.value.upper() for e in EVENTS)
_TOPICS: Final = tuple(name.upper() for name in lexicon().topics)
_N_SCOPE: Final = 7 + len(_EVENTS)
_KNOWN: Final = "first seen + news.processing_delay_s, at the latest the close of bar t"

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def _scope_rows(prefix: str, whose: str) -> list[tuple[str, str, str]]:
    rows = [
        (f"{prefix}SENT_{int(h)}H", f"weighted mean sentiment of {whose}, half-life {int(h)} h", "-1..1") for h in HALF_LIVES_H
    ]
    rows += [
        (f"{prefix}COUNT_24H", f"log(1 + stories of {whose} in 24 h)", "log count"),
        (f"{prefix}SURPRISE", f"log((1 + stories in 24 h) / (1 + stories a day over 168 h)) of {whose}", "log ratio"),
        (f"{prefix}DISAGREEMENT", f"weighted std of sentiment of {whose}, half-life 24 h", "0..1"),
        (f"{prefix}REACH_24H", f"copies / stories of {whose} in 24 h", "ratio"),
        (f"{prefix}AGE", f"hours since the last story of {whose}, {MEMORY_H} at most", "hours"),
    ]
    rows += [
        (f"{prefix}EVENT_{e}", f"sum of severity 2^(-age / 24 h) of {e.lower()} stories of {whose}", "severity")
        for e in _EVENTS
    ]
    return rows


def _rows() -> list[tuple[str, str, str]]:
    rows = [*_scope_rows("NEWS_", "the coin"), *_scope_rows("NEWS_MARKET_", "the market")]
    rows += [(f"NEWS_TOPIC_{t}", f"share of stories of 24 h that touch {t.lower()}", "share") for t in _TOPICS]
    return [
        *rows,
        ("NEWS_TOPIC_EMERGING", "largest log((1 + n 24 h) / (1 + n a day over 168 h)) of a topic", "log ratio"),
        ("NEWS_INDEX_DAY", "mean sentiment of the stories usable within the last whole UTC day, by confidence", "-1..1"),
        ("NEWS_GAP", "hours since news was last looked for with success", "hours"),
    ]


def news_specs() -> tuple[FeatureSpec, ...]:
    """Return the catalogue entries of the news set."""
    return tuple(FeatureSpec(name, GROUP, formula, unit, 1, _KNOWN, "news") for name, formula, unit in _rows())


@njit
def _weighted(
    inside: IntArray, weight: FloatArray, sentiment: FloatArray, source: IntArray, n_sources: int
) -> tuple[float, float]:
    """Return weighted mean and standard deviation of sentiment, one source's weight cut to :data:`SOURCE_CAP` of the sum."""
    by_source = np.zeros(n_sources)
    largest = np.zeros(n_sources)
    total = 0.0
    for i in range(inside.size):
        by_source[source[inside[i]]] += weight[i]
        largest[source[inside[i]]] = max(largest[source[inside[i]]], weight[i])
        total += weight[i]
    if total <= 0.0:
        return math.nan, math.nan
    mean = 0.0
    square = 0.0
    used = 0.0
    for i in range(inside.size):
        mine = by_source[source[inside[i]]]
        others = total - mine
        most = max(others * SOURCE_CAP / (1.0 - SOURCE_CAP), largest[source[inside[i]]])
        w = weight[i] * (most / mine if others > 0.0 and mine > most else 1.0)
        s = sentiment[inside[i]]
        mean += w * s
        square += w * s * s
        used += w
    mean /= used
    return mean, math.sqrt(max(square / used - mean * mean, 0.0))


@njit
def _scope(
    inside: IntArray,
    close_ns: int,
    numbers: tuple[IntArray, FloatArray, FloatArray, FloatArray, IntArray, npt.NDArray[np.bool_], IntArray],
    n_sources: int,
    out: FloatArray,
) -> None:
    """Write the :data:`_N_SCOPE` numbers of one scope at one bar; ``inside`` are its readings of the last 168 hours."""
    known_ns, sentiment, trust, severity, event, is_copy, source = numbers
    weight = np.empty(inside.size)
    for h in range(2):
        for i in range(inside.size):
            k = inside[i]
            age_h = (close_ns - known_ns[k]) / NS_PER_HOUR
            weight[i] = 0.0 if is_copy[k] else trust[k] * 2.0 ** (-age_h / HALF_LIVES_H[h])
        mean, spread = _weighted(inside, weight, sentiment, source, n_sources)
        out[h] = mean
        out[4] = spread
    day = 0
    week = 0
    copies = 0
    newest = float(MEMORY_H)
    out[7:] = 0.0
    for i in range(inside.size):
        k = inside[i]
        age_h = (close_ns - known_ns[k]) / NS_PER_HOUR
        is_day = age_h < 24.0  # noqa: PLR2004 - hours of a day
        if is_copy[k]:
            copies += 1 if is_day else 0
            continue
        day += 1 if is_day else 0
        week += 1
        newest = min(newest, age_h)
        out[7 + event[k]] += severity[k] * 2.0 ** (-age_h / EVENT_HALF_LIFE_H)
    out[2] = math.log(1.0 + day)
    out[3] = math.log((1.0 + day) / (1.0 + week * 24.0 / MEMORY_H))
    out[5] = copies / day if day > 0 else 0.0
    out[6] = newest


@njit
def _topics(inside: IntArray, close_ns: int, known_ns: IntArray, is_copy: npt.NDArray[np.bool_], topics: npt.NDArray[np.bool_],
            out: FloatArray) -> None:  # fmt: skip
    n_topics = topics.shape[1]
    day = np.zeros(n_topics)
    week = np.zeros(n_topics)
    stories = 0
    for i in range(inside.size):
        k = inside[i]
        if is_copy[k]:
            continue
        is_day = close_ns - known_ns[k] < NS_PER_DAY
        stories += 1 if is_day else 0
        for j in range(n_topics):
            if topics[k, j]:
                week[j] += 1.0
                day[j] += 1.0 if is_day else 0.0
    largest = -math.inf
    for j in range(n_topics):
        out[j] = day[j] / stories if stories > 0 else 0.0
        largest = max(largest, math.log((1.0 + day[j]) / (1.0 + week[j] * 24.0 / MEMORY_H)))
    out[n_topics] = largest


def _inside(rows: IntArray, events: NewsEvents, close_ns: int) -> IntArray:
    """Return the readings of ``rows`` in force at ``close_ns`` and not older than the memory."""
    first, last = np.searchsorted(events.known_ns[rows], (close_ns - MEMORY_H * NS_PER_HOUR, close_ns), side="right")
    span = rows[first:last]
    return span[events.until_ns[span] > close_ns]


def _day_index(events: NewsEvents, close_ns: int) -> float:
    """Return the confidence-weighted sentiment of stories that became usable in the last whole UTC day; NaN without one."""
    end_ns = close_ns - close_ns % NS_PER_DAY
    first, last = np.searchsorted(events.known_ns, (end_ns - NS_PER_DAY, end_ns))
    span = np.arange(first, last)
    votes = span[~events.is_copy[span] & (events.until_ns[span] > end_ns) & (events.relevance[span] >= MIN_RELEVANCE)]
    weight = events.confidence[votes] * events.relevance[votes]
    return float(np.dot(weight, events.sentiment[votes]) / weight.sum()) if weight.sum() > 0.0 else math.nan


def _scopes(events: NewsEvents, symbols: Sequence[str]) -> tuple[IntArray, dict[str, IntArray]]:
    """Return the readings of the market (all relevant ones) and of each coin, as indices."""
    relevant = np.flatnonzero(events.relevance >= MIN_RELEVANCE)
    by_coin: dict[str, list[int]] = {base_coin(s): [] for s in symbols}
    for k in relevant.tolist():
        for coin in events.coins[k]:
            if coin in by_coin:
                by_coin[coin].append(k)
    return relevant, {coin: np.array(rows, dtype=np.int64) for coin, rows in by_coin.items()}


def fill_news(inputs: FeatureInputs, wanted: dict[str, int], out: Float32Array) -> None:
    """Write the wanted news columns of every row from ``inputs.first_bar`` on.

    Parameters
    ----------
    inputs : FeatureInputs
        Rows, times, and the articles as they were read; without any, the columns are NaN.
    wanted : dict
        Name -> column of ``out``.
    out : (n_rows, n_features) float32
        Result, in place.
    """
    events, names = inputs.side.news, inputs.names
    specs = [s.name for s in news_specs()]
    which = np.array([k for k, name in enumerate(specs) if name in wanted], dtype=np.int64)
    where = np.array([wanted[specs[k]] for k in which], dtype=np.int64)
    if not which.size:
        return
    if events is None or not len(events):
        rows = inputs.rows.row_of[:, inputs.first_bar :]
        out[np.ix_(rows[rows >= 0], where)] = np.nan
        return
    trust = events.confidence * events.relevance
    numbers = (events.known_ns, events.sentiment, trust, events.severity, events.event, events.is_copy, events.source)
    n_sources = int(events.source.max()) + 1
    market, by_coin = _scopes(events, names)
    row = np.empty(len(specs))
    n_market = 2 * _N_SCOPE
    for t in range(inputs.first_bar, inputs.ts_open.size):
        close_ns = int(inputs.ts_open[t]) + inputs.frame_ns
        seen = int(np.searchsorted(events.polls_ns, close_ns, side="right"))
        gap_ns = close_ns - int(events.polls_ns[seen - 1]) if seen else MAX_GAP_NS + 1
        inside = _inside(market, events, close_ns)
        _scope(inside, close_ns, numbers, n_sources, row[_N_SCOPE:n_market])
        _topics(inside, close_ns, events.known_ns, events.is_copy, events.topics, row[n_market:])
        row[-2] = _day_index(events, close_ns)
        row[-1] = gap_ns / NS_PER_HOUR if seen else math.nan
        for s, name in enumerate(names):
            at = inputs.rows.row_of[s, t]
            if at < 0:
                continue
            _scope(_inside(by_coin[base_coin(name)], events, close_ns), close_ns, numbers, n_sources, row[:_N_SCOPE])
            values = row[which]
            if gap_ns > MAX_GAP_NS:
                values = np.where(which == len(specs) - 1, values, np.nan)
            out[at, where] = values

"""Random observations beside the bars of a noise market, and the same with another future; shares no code with the package."""

from __future__ import annotations

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.data_collector.stock_sessions import us_sessions
from crypto_qlib.feature_engineering.news_events import NEVER, NewsEvents
from crypto_qlib.feature_engineering.news_lexicon import lexicon
from crypto_qlib.feature_engineering.side_data import SIDE_SERIES, Key, SideData, base_coin
from crypto_qlib.store.observations import Observations

N_TOPICS = len(lexicon().topics)


def observations(event: np.ndarray, lag_ns: np.ndarray | int, value: np.ndarray) -> Observations:
    return Observations(event.astype(np.int64), (event + lag_ns).astype(np.int64), value)


def with_corrections(rows: Observations, rng: np.random.Generator, end_ns: int) -> Observations:
    """Add a later correction to every fifth event."""
    again = np.arange(0, len(rows), 5)
    known = np.minimum(rows.known_ns[again] + rng.integers(1, 40, again.size) * NS_PER_HOUR, end_ns + NS_PER_DAY)
    parts = (
        np.concatenate([rows.event_ns, rows.event_ns[again]]),
        np.concatenate([rows.known_ns, known]),
        np.concatenate([rows.value, rows.value[again] * rng.uniform(0.9, 1.1, again.size)]),
    )
    order = np.lexsort((parts[1], parts[0]))
    return Observations(*(p[order] for p in parts))


def noise_side(panel: MarketPanel, seed: int = 1) -> SideData:
    """Return observations of every side series and news for the coins of ``panel``."""
    rng = np.random.default_rng(seed)
    start, end = int(panel.ts_open[0]) - 40 * NS_PER_DAY, int(panel.ts_open[-1]) + panel.frame_ns
    days = np.arange(start - start % NS_PER_DAY, end, NS_PER_DAY)
    sessions = us_sessions()
    inside = (sessions.open_ns >= start) & (sessions.close_ns <= end)
    bars = np.concatenate([np.arange(a, b, NS_PER_HOUR) for a, b in
                           zip(sessions.open_ns[inside], sessions.close_ns[inside], strict=True)])  # fmt: skip
    series: dict[tuple[str, str], Observations] = {}
    for name, spec in SIDE_SERIES.items():
        columns = {"MARKET"} if spec.key is Key.MARKET else set(panel.symbols)
        for column in sorted({base_coin(c) for c in columns} if spec.key is Key.COIN else columns):
            if name.startswith("qqq_1h"):
                event, lag = bars, NS_PER_HOUR + rng.integers(1, 5, bars.size) * NS_PER_MINUTE
            elif name.startswith("qqq_1d"):
                event = sessions.day_ns[inside]
                lag = sessions.close_ns[inside] - event + 20 * NS_PER_MINUTE
            elif spec.carry_ns == 0:
                event, lag = panel.ts_open, np.full(panel.n_bars, panel.frame_ns)
            elif spec.key is Key.SYMBOL or spec.carry_ns < NS_PER_DAY:
                event = np.arange(start, end, NS_PER_HOUR)
                lag = rng.integers(0, 30, event.size) * NS_PER_MINUTE
            else:
                event, lag = days, NS_PER_DAY + rng.integers(0, 120, days.size) * NS_PER_MINUTE
            if spec.carry_ns == NS_PER_DAY + 2 * NS_PER_HOUR and spec.key is Key.MARKET:
                lag = rng.integers(0, 60, event.size) * NS_PER_MINUTE
            value = np.exp(np.cumsum(rng.normal(0.0, 0.02, event.size))) * (50.0 if name == "fear_greed" else 1.0)
            series[name, column] = with_corrections(observations(event, lag, value), rng, end)
    return SideData(series, noise_news(panel, rng, start, end))


def noise_news(panel: MarketPanel, rng: np.random.Generator, start: int, end: int, n: int = 4000) -> NewsEvents:
    coins = np.array([base_coin(s) for s in panel.symbols])
    known = np.sort(rng.integers(start, end, n))
    known[(known > start + 60 * NS_PER_DAY) & (known < start + 61 * NS_PER_DAY)] += NS_PER_DAY  # a day without news
    known.sort()
    until = np.where(rng.random(n) < 0.2, known + rng.integers(1, 90, n) * NS_PER_HOUR, NEVER)
    return NewsEvents(
        known_ns=known,
        until_ns=until,
        sentiment=rng.uniform(-1.0, 1.0, n),
        confidence=rng.uniform(0.3, 1.0, n),
        relevance=rng.uniform(0.0, 1.0, n),
        severity=rng.uniform(0.0, 1.0, n),
        event=rng.integers(0, 10, n),
        is_copy=rng.random(n) < 0.2,
        source=rng.integers(0, 5, n),
        coins=tuple(tuple(coins[rng.random(coins.size) < 0.2]) for _ in range(n)),
        topics=rng.random((n, N_TOPICS)) < 0.2,
        polls_ns=known.copy(),
    )


def side_with_other_future(side: SideData, as_of_ns: int, seed: int) -> SideData:
    """Return ``side`` with all that became known after ``as_of_ns`` changed, dropped or new."""
    rng = np.random.default_rng(seed)
    series = {}
    for key, rows in side.series.items():
        later = rows.known_ns > as_of_ns
        keep = ~later | (rng.random(len(rows)) < 0.8)
        value = np.where(later, rows.value * rng.uniform(0.2, 5.0, len(rows)), rows.value)
        old = np.flatnonzero(~later)[::3]  # corrections of what is already known, seen later
        parts = (
            np.concatenate([rows.event_ns[keep], rows.event_ns[old]]),
            np.concatenate([rows.known_ns[keep], np.full(old.size, as_of_ns + 1 + int(rng.integers(0, NS_PER_DAY)))]),
            np.concatenate([value[keep], rng.uniform(0.1, 9.0, old.size)]),
        )
        order = np.lexsort((parts[1], parts[0]))
        series[key] = Observations(*(p[order] for p in parts))
    return SideData(series, news_with_other_future(side.news, as_of_ns, rng) if side.news is not None else None)


def news_with_other_future(news: NewsEvents, as_of_ns: int, rng: np.random.Generator) -> NewsEvents:
    later = news.known_ns > as_of_ns
    n = len(news)
    soon = np.where(rng.random(n) < 0.5, NEVER, as_of_ns + 1 + rng.integers(0, NS_PER_DAY, n))
    until = np.where(news.until_ns > as_of_ns, soon, news.until_ns)
    return NewsEvents(
        known_ns=np.where(later, np.maximum.accumulate(news.known_ns + rng.integers(0, NS_PER_HOUR, n)), news.known_ns),
        until_ns=until,
        sentiment=np.where(later, -news.sentiment, news.sentiment),
        confidence=np.where(later, 0.9, news.confidence),
        relevance=np.where(later, 1.0 - news.relevance, news.relevance),
        severity=np.where(later, 1.0, news.severity),
        event=np.where(later, 9 - news.event, news.event),
        is_copy=np.where(later, ~news.is_copy, news.is_copy),
        source=np.where(later, 0, news.source),
        coins=tuple(("ETH",) if z else c for c, z in zip(news.coins, later, strict=True)),
        topics=np.where(later[:, None], ~news.topics, news.topics),
        polls_ns=np.where(news.polls_ns > as_of_ns, news.polls_ns + NS_PER_HOUR, news.polls_ns),
    )

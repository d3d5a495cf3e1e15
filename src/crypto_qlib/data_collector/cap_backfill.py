"""Fill the rankings of the past from market-cap charts: one chart a coin, one ranking a day.

Only coins that may own a swap are asked for: those of the newest ranking whose ticker a contract has (or had), and the coins of
contracts that are no longer traded, looked up by ticker. Each chart is kept as soon as it is there, so that a run that is
killed, or limited by the source, goes on where it stopped. A value stamped at midnight counts as known an hour later.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pyarrow as pa

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.data_collector.cap_rankings import keep_rankings, read_rankings
from crypto_qlib.data_collector.coin_exclusions import why_excluded
from crypto_qlib.data_collector.market_caps import CapChart, Coin
from crypto_qlib.data_collector.swap_mapping import split_multiple
from crypto_qlib.settings.schema import UniverseSettings
from crypto_qlib.store.lake import Kind, Lake

_PUBLISHED_AFTER_NS: Final = NS_PER_HOUR
_SAMPLE_WITHIN_NS: Final = 6 * NS_PER_HOUR
"""A chart's point later than this after midnight does not stand for the day."""
_COINS_PER_TICKER: Final = 3
_REACHES: Final = 4
"""How many times ``universe.size`` deep into today's ranking charts are asked for."""
_AT_ONCE: Final = 2
_WEEK_NS: Final = 7 * NS_PER_DAY


class ChartSource(Protocol):
    """Serve charts of market caps, e.g. :class:`~crypto_qlib.data_collector.market_caps.CoinGeckoRanking`."""

    @property
    def name(self) -> str:
        """Name the document its rankings are kept in."""
        ...

    async def chart(self, coin_id: str, start_ns: int, end_ns: int) -> CapChart:
        """Return price and market cap between two instants."""
        ...

    async def ids(self) -> dict[str, list[str]]:
        """Return coin ids by ticker in capitals."""
        ...


@dataclass(frozen=True, slots=True)
class Backfill:
    """What a back-fill did.

    Parameters
    ----------
    rankings : int
        Days added.
    coins : int
        Coins whose chart is known.
    missing : tuple of str
        Coins without a chart, and why.
    """

    rankings: int = 0
    coins: int = 0
    missing: tuple[str, ...] = ()


async def backfill_rankings(
    source: ChartSource,
    lake: Lake,
    contracts: Iterable[Instrument],
    settings: UniverseSettings,
    start_ns: int,
    progress: Callable[[float], None] = lambda _share: None,
) -> Backfill:
    """Add daily rankings from ``start_ns`` up to the oldest ranking of ``source`` there is.

    Parameters
    ----------
    source : ChartSource
        Whose newest ranking the lake already holds.
    lake : Lake
        Where charts and rankings are kept.
    contracts : iterable of Instrument
        Every swap there ever was.
    settings : UniverseSettings
        Exclusions (by list and name) save requests.
    start_ns : int
        Time from which the universe is wanted.
    progress : callable
        Told the share of the work just done; all add up to 1.

    Raises
    ------
    UserError
        If no chart at all can be had.
    """
    kept = read_rankings(lake, source.name)
    if not kept or kept[0].known_ns <= start_ns + NS_PER_DAY:
        progress(1.0)
        return Backfill()
    span = (start_ns - NS_PER_DAY, kept[0].known_ns)
    coins = await _candidates(source, kept[-1].coins, list(contracts), settings)
    permits = asyncio.Semaphore(_AT_ONCE)
    missing: list[str] = []

    async def ask(coin: Coin) -> CapChart | None:
        try:
            async with permits:
                return await _chart(source, lake, coin.coin_id, span)
        except UserError as e:
            missing.append(f"{coin.symbol} ({coin.coin_id}): {e.message}")
            return None
        finally:
            progress(1.0 / len(coins))

    charts = await asyncio.gather(*(ask(coin) for coin in coins))
    found = [(coin, chart) for coin, chart in zip(coins, charts, strict=True) if chart is not None and chart.ts.size]
    if not found:
        raise UserError(missing[0] if missing else "no chart of market caps could be read", "the universe's past stays unknown")
    added = keep_rankings(lake, source.name, _daily(found, span))
    return Backfill(added, len(found), tuple(missing))


class PastRankings(Protocol):
    """Serve whole rankings of the past, e.g. :class:`~crypto_qlib.data_collector.coinmarketcap.CoinMarketCapRanking`."""

    @property
    def name(self) -> str:
        """Name the document its rankings are kept in."""
        ...

    async def ranking_at(self, day_ns: int) -> tuple[int, Sequence[Coin]]:
        """Return (instant from which it was known, coins) of the ranking at the end of a UTC day."""
        ...


async def backfill_days(
    source: PastRankings, lake: Lake, start_ns: int, progress: Callable[[float], None] = lambda _share: None
) -> Backfill:
    """Add whole past rankings, one a week, from ``start_ns`` up to the oldest ranking of ``source`` there is.

    Each is kept as soon as it is there. A source that refuses (past rankings are part of paid plans) ends the back-fill, and
    ``missing`` says why.
    """
    kept = read_rankings(lake, source.name)
    if not kept or kept[0].known_ns <= start_ns + _WEEK_NS:
        progress(1.0)
        return Backfill()
    days = range(start_ns - NS_PER_DAY, kept[0].known_ns - NS_PER_DAY, _WEEK_NS)
    added = 0
    for day_ns in reversed(days):  # newest first: what is there joins up with what is known
        try:
            known_ns, coins = await source.ranking_at(day_ns)
        except UserError as e:
            return Backfill(added, 0, (e.message,))
        added += keep_rankings(lake, source.name, [(known_ns, coins)])
        progress(1.0 / len(days))
    return Backfill(added)


async def _candidates(
    source: ChartSource, newest: Sequence[Coin], contracts: Sequence[Instrument], settings: UniverseSettings
) -> list[Coin]:
    tickers = {name for i in contracts for name in (i.base, split_multiple(i.base)[1])}
    listed = [c for c in newest if c.symbol in tickers and not (settings.exclude_stablecoins and why_excluded(c))]
    chosen = listed[: _REACHES * settings.size]
    dead = {split_multiple(i.base)[1] for i in contracts if i.delisted_ns is not None} - {c.symbol for c in newest}
    if dead:
        by_ticker = await source.ids()
        chosen += [
            Coin(coin_id, ticker, ticker, np.nan, np.nan)
            for ticker in sorted(dead)
            for coin_id in by_ticker.get(ticker, ())[:_COINS_PER_TICKER]
        ]
    return chosen


async def _chart(source: ChartSource, lake: Lake, coin_id: str, span: tuple[int, int]) -> CapChart:
    """Return the chart kept in the lake if it covers ``span``, else ask for it and keep it."""
    name = re.sub(r"[^a-z0-9]+", "-", coin_id.lower())
    found = lake.read_document(Kind.CAP_CHARTS, name)
    if found is not None and found[1]["coin_id"] == coin_id:
        (first, last), table = found[1]["span"], found[0]
        if first <= span[0] and span[1] <= last:
            return CapChart(*(table.column(c).to_numpy() for c in ("ts", "price", "market_cap")))
    chart = await source.chart(coin_id, *span)
    table = pa.table({"ts": chart.ts, "price": chart.price, "market_cap": chart.market_cap})
    lake.write_document(Kind.CAP_CHARTS, name, table, {"coin_id": coin_id, "span": list(span)})
    return chart


def _daily(charts: Iterable[tuple[Coin, CapChart]], span: tuple[int, int]) -> list[tuple[int, list[Coin]]]:
    """Return one ranking a day: of each chart the first point within six hours after midnight."""
    days: dict[int, list[Coin]] = {}
    for coin, chart in charts:
        day = chart.ts - chart.ts % NS_PER_DAY
        is_first = np.append(True, day[1:] != day[:-1]) & (chart.ts - day <= _SAMPLE_WITHIN_NS) & (chart.market_cap > 0.0)
        for k in np.flatnonzero(is_first).tolist():
            then = Coin(coin.coin_id, coin.symbol, coin.name, float(chart.price[k]), float(chart.market_cap[k]))
            days.setdefault(int(day[k]) + _PUBLISHED_AFTER_NS, []).append(then)
    return [(t, coins) for t, coins in sorted(days.items()) if t < span[1]]

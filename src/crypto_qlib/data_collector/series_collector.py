"""Ask one exchange for many series: what to ask is worked out from what is stored, every answer is stored before the next.

Per symbol, oldest first: candles of every wanted frame, mark and index candles, funding, statistics (open interest, taker
volume and the long/short ratio, which the exchange keeps for weeks only), and once a day the position tiers. A series that
the exchange refuses is noted and costs the others nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, floor_ts
from crypto_qlib.core.errors import DoNotRetry, RetryLater, SkipCycle
from crypto_qlib.core.instrument import Instrument, InstrumentState
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.data_collector.contract_archive import archive_tiers
from crypto_qlib.data_collector.corrections import keep_corrections
from crypto_qlib.data_collector.fetch_plan import (
    asked_funding,
    bar_requests,
    finished,
    funding_requests,
    settled_holes,
)
from crypto_qlib.exchange.gateway import Gateway, PriceKind
from crypto_qlib.exchange.okx_statistics import RETENTION_NS
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.coverage import Range
from crypto_qlib.store.lake import EVENT, TIME, Columns, Kind, Lake, Series, Upsert, event_rows, read_times

T = TypeVar("T")

_TRIES: Final = 3
"""The gateway retries short troubles itself; this outlasts a longer one."""
_TIERS_MAX_AGE_NS: Final = NS_PER_DAY
_PRICE_KINDS: Final = {Kind.CANDLES: PriceKind.LAST, Kind.MARK: PriceKind.MARK, Kind.INDEX: PriceKind.INDEX}
STATISTICS_FRAME: Final = "1h"
"""Frame of the statistics: the finest one the exchange keeps for weeks."""
STATISTICS: Final = (Kind.INTEREST_HISTORY, Kind.TAKER_VOLUME, Kind.LONG_SHORT)


@dataclass(frozen=True, slots=True)
class SymbolUpdate:
    """What one update did for one symbol.

    Parameters
    ----------
    symbol : str
        Compact name.
    added, corrected : int
        Rows of all series that are new, and rows the exchange has changed since they were stored.
    requests : int
        Questions asked.
    first_ns, last_ns : int
        Open times of the oldest and newest candle now stored inside the wanted span; 0 if there is none.
    notes : tuple of str
        What could not be had.
    """

    symbol: str
    added: int = 0
    corrected: int = 0
    requests: int = 0
    first_ns: int = 0
    last_ns: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one update is to bring.

    Parameters
    ----------
    settings : DataSettings
        Which kinds, how many requests in flight.
    now_ns : int
        The exchange's time; bars that close later do not exist yet.
    spans : dict
        Wanted history by frame; the main frame is ``settings.frame``.
    """

    settings: DataSettings
    now_ns: int
    spans: dict[str, Range]

    def series(self, symbol: str) -> Iterator[tuple[Series, Range]]:
        """Yield every bar series of ``symbol`` with its wanted span."""
        for frame, span in self.spans.items():
            yield Series(Kind.CANDLES, frame, symbol), span
        main = self.settings.frame
        if self.settings.mark_candles:
            yield Series(Kind.MARK, main, symbol), self.spans[main]
        if self.settings.index_candles:
            yield Series(Kind.INDEX, main, symbol), self.spans[main]

    def statistics(self, symbol: str) -> Iterator[tuple[Series, Range]]:
        """Yield the statistics of ``symbol`` with the span the exchange still has."""
        frame_ns = FRAME_NS[STATISTICS_FRAME]
        start, end = self.spans[self.settings.frame]
        oldest = floor_ts(self.now_ns - RETENTION_NS[STATISTICS_FRAME], frame_ns) + frame_ns
        span = (max(floor_ts(start, frame_ns), oldest), floor_ts(end, frame_ns))
        if self.settings.statistics and span[0] < span[1]:
            for kind in STATISTICS:
                yield Series(kind, STATISTICS_FRAME, symbol), span


class SeriesCollector:
    """Ask one exchange for many series.

    Parameters
    ----------
    gateway : Gateway
        The exchange.
    lake : Lake
        Where everything goes.
    assignment : Assignment
        What is wanted.
    """

    def __init__(self, gateway: Gateway, lake: Lake, assignment: Assignment) -> None:
        self._gateway = gateway
        self._lake = lake
        self._job = assignment
        self._settings = assignment.settings
        self._now_ns = assignment.now_ns
        self._slots = asyncio.Semaphore(assignment.settings.concurrency)

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Return the answer, trying again after :class:`RetryLater` up to three times with growing pauses."""
        for attempt in range(_TRIES):
            try:
                async with self._slots:
                    return await question()
            except RetryLater as e:
                if attempt == _TRIES - 1:
                    raise
                pause = e.retry_after_s * 2**attempt
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    async def update(self, symbol: str, instrument: Instrument | None, progress: Callable[[float], None]) -> SymbolUpdate:
        """Update all series of one symbol."""
        result = SymbolUpdate(symbol)
        span = self._job.spans[self._settings.frame]
        share = 1.0
        if instrument is not None:
            steps = self._steps(symbol, instrument)
            share = 1.0 / (len(steps) + 1)
            for step in steps:
                try:
                    result = await step(result)
                except (DoNotRetry, SkipCycle) as e:
                    result = replace(result, notes=(*result.notes, e.message))
                progress(share)
        times = await in_thread(read_times, self._lake, Series(Kind.CANDLES, self._settings.frame, symbol), *span)
        progress(share)
        return result if times.size == 0 else replace(result, first_ns=int(times[0]), last_ns=int(times[-1]))

    def _steps(self, symbol: str, instrument: Instrument) -> list[Callable[[SymbolUpdate], Awaitable[SymbolUpdate]]]:
        steps: list[Callable[[SymbolUpdate], Awaitable[SymbolUpdate]]] = []
        for series, span in self._job.series(symbol):
            steps.append(lambda done, s=series, a=span: self._bars(done, s, a))  # type: ignore[misc]
        if self._settings.funding:
            start = self._job.spans[self._settings.frame][0]
            steps.append(lambda done: self._funding(done, symbol, start))
        for series, span in self._job.statistics(symbol):
            steps.append(lambda done, s=series, a=span: self._statistic(done, s, a))  # type: ignore[misc]
        is_live = instrument.state is InstrumentState.LIVE
        steps.append(lambda done: self._snapshots(done, symbol, is_live=is_live))
        return steps

    async def _bars(self, done: SymbolUpdate, series: Series, span: Range) -> SymbolUpdate:
        price = _PRICE_KINDS[series.kind]

        async def fetch(piece: Range) -> Columns:
            block = await self._gateway.candles(series.symbol, series.frame, *piece, price)
            return {TIME: block.ts_open, **{n: getattr(block, n) for n in _columns_of(series.kind)}}

        return await self._grid(done, series, span, fetch)

    async def _statistic(self, done: SymbolUpdate, series: Series, span: Range) -> SymbolUpdate:
        async def fetch(piece: Range) -> Columns:
            if series.kind is Kind.TAKER_VOLUME:
                flow = await self._gateway.taker_volume(series.symbol, series.frame, *piece)
                return {TIME: flow.ts, "buy": flow.buy, "sell": flow.sell}
            if series.kind is Kind.LONG_SHORT:
                crowd = await self._gateway.long_short_ratio(series.symbol, series.frame, *piece)
                return {TIME: crowd.ts, "ratio": crowd.ratio}
            held = await self._gateway.open_interest_history(series.symbol, series.frame, *piece)
            return {TIME: held.ts, "open_interest": held.coins, "open_interest_usd": held.usd}

        return await self._grid(done, series, span, fetch)

    async def _grid(
        self, done: SymbolUpdate, series: Series, span: Range, fetch: Callable[[Range], Awaitable[Columns]]
    ) -> SymbolUpdate:
        """Fetch what a series on a grid lacks, oldest first, storing every piece before the next is asked for."""
        if span[0] >= span[1]:
            return done
        present, empty = await in_thread(lambda: (read_times(self._lake, series, *span), self._lake.asked(series)))
        for piece in bar_requests(present, FRAME_NS[series.frame], span, empty):
            rows = await self.ask(lambda p=piece: fetch(p))  # type: ignore[misc]
            done = counted(done, await in_thread(self._store, series, piece, rows))
        return done

    def _store(self, series: Series, piece: Range, rows: Columns) -> Upsert:
        frame_ns = FRAME_NS[series.frame]
        keep = finished(rows[TIME], frame_ns, piece, self._now_ns)
        kept = {name: values[keep] for name, values in rows.items()}
        keep_corrections(self._lake, series, kept, self._now_ns)
        written = self._lake.upsert(series, kept)
        holes = settled_holes(piece, kept[TIME], frame_ns, self._now_ns)
        if holes:
            self._lake.remember_asked(series, holes)
        return written

    async def _funding(self, done: SymbolUpdate, symbol: str, start_ns: int) -> SymbolUpdate:
        series = Series(Kind.FUNDING, EVENT, symbol)
        asked = await in_thread(self._lake.asked, series)
        for piece in funding_requests((start_ns, self._now_ns), asked, self._now_ns):
            block = await self.ask(lambda p=piece: self._gateway.funding_history(symbol, p[0], p[1]))  # type: ignore[misc]
            written = await in_thread(self._store_funding, series, piece, block)
            done = counted(done, written)
        return done

    def _store_funding(self, series: Series, piece: Range, block: FundingBlock) -> Upsert:
        is_past = block.ts <= self._now_ns
        settled = FundingBlock(block.ts[is_past], block.rate[is_past])
        keep_corrections(self._lake, series, {TIME: settled.ts, "rate": settled.rate}, self._now_ns)
        written = self._lake.write_funding(series.symbol, settled)
        self._lake.remember_asked(series, [asked_funding(piece, settled.ts, self._now_ns)])
        return written

    async def _snapshots(self, done: SymbolUpdate, symbol: str, *, is_live: bool) -> SymbolUpdate:
        """Archive tiers (once a day) and open interest (every run): the exchange keeps no history of them."""
        looked = Series(Kind.TIERS, EVENT, symbol)
        last_look = max((b for _, b in await in_thread(self._lake.asked, looked)), default=0)
        if self._now_ns - last_look >= _TIERS_MAX_AGE_NS:
            table = await self.ask(lambda: self._gateway.tiers(symbol))
            await in_thread(archive_tiers, self._lake, symbol, table, self._now_ns)
            await in_thread(self._lake.remember_asked, looked, [(self._now_ns - 1, self._now_ns)])
            done = counted(done, Upsert(0, 0))
        if not is_live:
            return done
        ts_ns, coins = await self.ask(lambda: self._gateway.open_interest(symbol))
        series = Series(Kind.OPEN_INTEREST, EVENT, symbol)
        await in_thread(self._lake.upsert, series, event_rows(ts_ns, open_interest=coins))
        return counted(done, Upsert(0, 0))


async def keep_funding_quotes(gateway: Gateway, lake: Lake, symbols: frozenset[str]) -> tuple[str, ...]:
    """Archive the funding rates expected now (the exchange keeps only what was settled); return why where it cannot be."""
    try:
        quotes = await gateway.funding_now()
    except (DoNotRetry, SkipCycle) as e:
        return (e.message,)
    for quote in quotes:
        if quote.symbol in symbols:
            series = Series(Kind.FUNDING_QUOTES, EVENT, quote.symbol)
            rows = event_rows(quote.ts_ns, rate=quote.rate) | {"settles_ns": np.array([quote.settles_ns], np.int64)}
            await in_thread(lake.upsert, series, rows)
    return ()


def _columns_of(kind: Kind) -> Sequence[str]:
    names = [n for n in BarBlock.__slots__ if n != "ts_open"]
    return names if kind is Kind.CANDLES else names[:4]


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """Run ``work`` in a thread and let it end even when this task is cancelled: a write must not outlive the lake's lock."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def counted(done: SymbolUpdate, written: Upsert) -> SymbolUpdate:
    """Return ``done`` with one answered question and what it brought added."""
    return replace(
        done, added=done.added + written.added, corrected=done.corrected + written.corrected, requests=done.requests + 1
    )

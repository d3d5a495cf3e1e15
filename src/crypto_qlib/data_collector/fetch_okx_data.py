"""Step 2: bring the lake up to date with the exchange.

1. The exchange's instrument list is archived; symbols it does not know are set aside.
2. All symbols run side by side, ``data.concurrency`` requests in flight. Per symbol: candles, mark candles, funding, tiers,
   an open-interest snapshot. What to ask is worked out from what is stored (:mod:`.fetch_plan`).
3. Every answer is stored before the next question of that series, and only then is it remembered where the exchange had
   nothing. A run that is killed anywhere therefore leaves a readable lake, and the next run asks for the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, floor_ts, iso
from crypto_qlib.core.errors import DoNotRetry, RetryLater, SkipCycle, UserError
from crypto_qlib.core.instrument import Instrument, InstrumentState
from crypto_qlib.core.market import BarBlock, FundingBlock
from crypto_qlib.data_collector.contract_archive import archive_instruments, archive_tiers
from crypto_qlib.data_collector.fetch_plan import (
    asked_funding,
    bar_requests,
    finished,
    funding_requests,
    settled_holes,
    wanted_span,
)
from crypto_qlib.exchange.gateway import Gateway, PriceKind
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.coverage import Range
from crypto_qlib.store.lake import EVENT, Kind, Lake, Series, Upsert, event_rows, read_times

T = TypeVar("T")

_TRIES: Final = 3
"""The gateway retries short troubles itself; this outlasts a longer one."""
_TIERS_MAX_AGE_NS: Final = NS_PER_DAY


def _no_progress(_amount: float) -> None:
    return


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
class UpdateReport:
    """What one update did.

    Parameters
    ----------
    now_ns : int
        The time of the update; no bar that closes later is stored.
    span : (int, int)
        Wanted history.
    updates : tuple of SymbolUpdate
        In the order asked.
    excluded : dict
        Reason by symbol that has no usable candles.
    """

    now_ns: int
    span: Range
    updates: tuple[SymbolUpdate, ...]
    excluded: dict[str, str]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the symbols that have candles."""
        return tuple(u.symbol for u in self.updates if u.symbol not in self.excluded)

    @property
    def added(self) -> int:
        """Return the number of new rows."""
        return sum(u.added for u in self.updates)

    @property
    def corrected(self) -> int:
        """Return the number of rows whose values the exchange has corrected."""
        return sum(u.corrected for u in self.updates)


async def update_data(
    gateway: Gateway,
    lake: Lake,
    symbols: Sequence[str],
    settings: DataSettings,
    now_ns: int,
    progress: Callable[[float], None] = _no_progress,
    required: frozenset[str] = frozenset(),
) -> UpdateReport:
    """Fetch what the lake lacks of ``symbols`` and return what was done; running it again fetches only what is new.

    Parameters
    ----------
    gateway : Gateway
        The exchange.
    lake : Lake
        Where everything goes.
    symbols : sequence of str
        Compact names.
    settings : DataSettings
        Frame, span, what else to collect, requests in flight.
    now_ns : int
        The exchange's time now; bars that close later do not exist yet.
    progress : callable
        Called with the share of work done since the last call; all calls add up to ``len(symbols)``.
    required : frozenset of str
        Symbols without which there is no point in going on.

    Raises
    ------
    UserError
        If no symbol, or not every required one, has candles; if the lake is damaged or cannot be written.
    RetryLater
        If the exchange stays unreachable or over its limits after several tries.
    """
    if not symbols:
        raise UserError("there is no symbol to collect", "check the universe: `crypto-qlib universe`")
    span = wanted_span(settings, now_ns)
    with lake.writing():
        collector = _Collector(gateway, lake, settings, now_ns, span)
        listed = archive_instruments(lake, await gateway.instruments(), now_ns)
        try:
            async with asyncio.TaskGroup() as group:
                jobs = [group.create_task(collector.update(s, listed.get(s), progress)) for s in symbols]
        except ExceptionGroup as errors:
            # Tasks of one group fail together for one reason (connection, disk): the first error is the one to show.
            raise errors.exceptions[0] from errors
    updates = tuple(job.result() for job in jobs)
    excluded = {u.symbol: _why_excluded(u, listed.get(u.symbol), span) for u in updates if not u.last_ns}
    lost = [s for s in symbols if s in excluded and s in required] or ([] if len(excluded) < len(symbols) else list(symbols))
    if lost:
        raise UserError(f"no data for {lost[0]}: {excluded[lost[0]]}", _hint(len(lost)))
    return UpdateReport(now_ns, span, updates, excluded)


def _hint(n_lost: int) -> str:
    others = f"{n_lost - 1} more symbols have none either; " if n_lost > 1 else ""
    return f"{others}check the name, universe.include and data.since"


def _why_excluded(update: SymbolUpdate, instrument: Instrument | None, span: Range) -> str:
    if instrument is None:
        return "the exchange lists no USDT swap of that name"
    if update.notes:
        return update.notes[0]
    return f"the exchange has no candles between {iso(span[0])} and {iso(span[1])}"


class _Collector:
    """Ask one exchange for many series."""

    def __init__(self, gateway: Gateway, lake: Lake, settings: DataSettings, now_ns: int, span: Range) -> None:
        self._gateway = gateway
        self._lake = lake
        self._settings = settings
        self._now_ns = now_ns
        self._span = span
        self._slots = asyncio.Semaphore(settings.concurrency)

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
        times = await _in_thread(read_times, self._lake, Series(Kind.CANDLES, self._settings.frame, symbol), *self._span)
        progress(share)
        return result if times.size == 0 else replace(result, first_ns=int(times[0]), last_ns=int(times[-1]))

    def _steps(self, symbol: str, instrument: Instrument) -> list[Callable[[SymbolUpdate], Awaitable[SymbolUpdate]]]:
        frame_ns = FRAME_NS[self._settings.frame]
        end = self._span[1] if instrument.delisted_ns is None else min(self._span[1], instrument.delisted_ns)
        span = (max(self._span[0], floor_ts(instrument.listed_ns, frame_ns)), end)

        async def candles(done: SymbolUpdate) -> SymbolUpdate:
            return await self._bars(done, symbol, Kind.CANDLES, span)

        async def mark(done: SymbolUpdate) -> SymbolUpdate:
            return await self._bars(done, symbol, Kind.MARK, span)

        async def funding(done: SymbolUpdate) -> SymbolUpdate:
            return await self._funding(done, symbol, span[0])

        async def snapshots(done: SymbolUpdate) -> SymbolUpdate:
            return await self._snapshots(done, symbol, is_live=instrument.state is InstrumentState.LIVE)

        steps = [candles]
        if self._settings.mark_candles:
            steps.append(mark)
        if self._settings.funding:
            steps.append(funding)
        return [*steps, snapshots]

    async def _bars(self, done: SymbolUpdate, symbol: str, kind: Kind, span: Range) -> SymbolUpdate:
        frame, frame_ns = self._settings.frame, FRAME_NS[self._settings.frame]
        series = Series(kind, frame, symbol)
        price = PriceKind.MARK if kind is Kind.MARK else PriceKind.LAST
        present, known_empty = await _in_thread(lambda: (read_times(self._lake, series, *span), self._lake.asked(series)))
        for piece in bar_requests(present, frame_ns, span, known_empty):
            block = await self.ask(lambda p=piece: self._gateway.candles(symbol, frame, p[0], p[1], price))  # type: ignore[misc]
            written = await _in_thread(self._store_bars, series, piece, block)
            done = _counted(done, written)
        return done

    def _store_bars(self, series: Series, piece: Range, block: BarBlock) -> Upsert:
        frame_ns = FRAME_NS[series.frame]
        rows = finished(block.ts_open, frame_ns, piece, self._now_ns)
        bars = BarBlock(*(getattr(block, n)[rows] for n in BarBlock.__slots__))
        written = self._lake.write_bars(series.kind, series.frame, series.symbol, bars)
        holes = settled_holes(piece, bars.ts_open, frame_ns, self._now_ns)
        if holes:
            self._lake.remember_asked(series, holes)
        return written

    async def _funding(self, done: SymbolUpdate, symbol: str, start_ns: int) -> SymbolUpdate:
        series = Series(Kind.FUNDING, EVENT, symbol)
        asked = await _in_thread(self._lake.asked, series)
        for piece in funding_requests((start_ns, self._now_ns), asked, self._now_ns):
            block = await self.ask(lambda p=piece: self._gateway.funding_history(symbol, p[0], p[1]))  # type: ignore[misc]
            written = await _in_thread(self._store_funding, series, piece, block)
            done = _counted(done, written)
        return done

    def _store_funding(self, series: Series, piece: Range, block: FundingBlock) -> Upsert:
        is_past = block.ts <= self._now_ns
        settled = FundingBlock(block.ts[is_past], block.rate[is_past])
        written = self._lake.write_funding(series.symbol, settled)
        self._lake.remember_asked(series, [asked_funding(piece, settled.ts, self._now_ns)])
        return written

    async def _snapshots(self, done: SymbolUpdate, symbol: str, *, is_live: bool) -> SymbolUpdate:
        """Archive tiers (once a day) and open interest (every run): the exchange keeps no history of them."""
        checked = Series(Kind.TIERS, EVENT, symbol)
        last_look = max((b for _, b in await _in_thread(self._lake.asked, checked)), default=0)
        if self._now_ns - last_look >= _TIERS_MAX_AGE_NS:
            table = await self.ask(lambda: self._gateway.tiers(symbol))
            await _in_thread(archive_tiers, self._lake, symbol, table, self._now_ns)
            await _in_thread(self._lake.remember_asked, checked, [(self._now_ns - 1, self._now_ns)])
            done = _counted(done, Upsert(0, 0))
        if not is_live:
            return done
        ts_ns, coins = await self.ask(lambda: self._gateway.open_interest(symbol))
        series = Series(Kind.OPEN_INTEREST, EVENT, symbol)
        await _in_thread(self._lake.upsert, series, event_rows(ts_ns, open_interest=coins))
        return _counted(done, Upsert(0, 0))


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    """Run ``work`` in a thread and let it end even when this task is cancelled: a write must not outlive the lake's lock."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _counted(done: SymbolUpdate, written: Upsert) -> SymbolUpdate:
    return replace(
        done, added=done.added + written.added, corrected=done.corrected + written.corrected, requests=done.requests + 1
    )

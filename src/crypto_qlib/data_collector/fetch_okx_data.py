"""Step 2: bring the lake up to date with the exchange.

1. The exchange's instrument list is archived; symbols it does not know are set aside.
2. All symbols run side by side, ``data.concurrency`` requests in flight (:mod:`.series_collector`). What to ask is worked out
   from what is stored (:mod:`.fetch_plan`).
3. Every answer is stored before the next question of that series, and only then is it remembered where the exchange had
   nothing. A run that is killed anywhere therefore leaves a readable lake, and the next run asks for the rest.
4. What is missing in the end is written into the gap ledger (:mod:`.gap_ledger`), with what is lost for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.clock import NS_PER_S, Clock, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.data_collector.contract_archive import archive_instruments
from crypto_qlib.data_collector.fetch_plan import wanted_span
from crypto_qlib.data_collector.gap_ledger import Gap, read_ledger, update_ledger
from crypto_qlib.data_collector.series_collector import (
    Assignment,
    SeriesCollector,
    SymbolUpdate,
    in_thread,
    keep_funding_quotes,
)
from crypto_qlib.exchange.gateway import Gateway
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.coverage import Range
from crypto_qlib.store.lake import Lake

SKEW_ALLOWED_NS: Final = 2 * NS_PER_S
"""A clock further off than this is told; OKX refuses signed requests at 30 s."""


def _no_progress(_amount: float) -> None:
    return


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
    gaps : tuple of Gap
        The gap ledger after the update.
    notes : tuple of str
        What could not be had of the exchange as a whole.
    """

    now_ns: int
    span: Range
    updates: tuple[SymbolUpdate, ...]
    excluded: dict[str, str]
    gaps: tuple[Gap, ...] = ()
    notes: tuple[str, ...] = ()

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
    *,
    with_ledger: bool = True,
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
    with_ledger : bool
        Bring the gap ledger up to date, too: it reads the times of every series whole.

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
    frames: list[str] = list(dict.fromkeys((settings.frame, *settings.frames)))
    spans = {f: wanted_span(settings, now_ns, f) for f in frames}
    with lake.writing():
        job = Assignment(settings, now_ns, spans)
        collector = SeriesCollector(gateway, lake, job)
        listed = archive_instruments(lake, await gateway.instruments(), now_ns)
        try:
            async with asyncio.TaskGroup() as group:
                jobs = [group.create_task(collector.update(s, listed.get(s), progress)) for s in symbols]
        except ExceptionGroup as errors:
            # Tasks of one group fail together for one reason (connection, disk): the first error is the one to show.
            raise errors.exceptions[0] from errors
        notes: tuple[str, ...] = ()
        if settings.statistics:
            notes = await keep_funding_quotes(gateway, lake, frozenset(symbols))
        if with_ledger:
            gaps = await in_thread(update_ledger, lake, job, [listed[s] for s in symbols if s in listed])
        else:
            gaps = read_ledger(lake)
    updates = tuple(job.result() for job in jobs)
    excluded = {u.symbol: _why_excluded(u, listed.get(u.symbol), span) for u in updates if not u.last_ns}
    lost = [s for s in symbols if s in excluded and s in required] or ([] if len(excluded) < len(symbols) else list(symbols))
    if lost:
        raise UserError(f"no data for {lost[0]}: {excluded[lost[0]]}", _hint(len(lost)))
    return UpdateReport(now_ns, span, updates, excluded, gaps, notes)


def _hint(n_lost: int) -> str:
    others = f"{n_lost - 1} more symbols have none either; " if n_lost > 1 else ""
    return f"{others}check the name, universe.include and data.since"


def _why_excluded(update: SymbolUpdate, instrument: Instrument | None, span: Range) -> str:
    if instrument is None:
        return "the exchange lists no USDT swap of that name"
    if update.notes:
        return update.notes[0]
    return f"the exchange has no candles between {iso(span[0])} and {iso(span[1])}"


async def clock_skew(gateway: Gateway, clock: Clock) -> str:
    """Return one line if this machine's clock is off the exchange's by more than two seconds; empty where it is right.

    The exchange's time is compared with the middle of the request, so that a slow network is not taken for a wrong clock.
    """
    before = clock.now_ns()
    theirs = await gateway.server_time_ns()
    after = clock.now_ns()
    off = theirs - (before + after) // 2
    if abs(off) <= SKEW_ALLOWED_NS + (after - before) // 2:
        return ""
    way = "behind" if off > 0 else "ahead of"
    return f"this machine's clock is {abs(off) / NS_PER_S:.1f} s {way} the exchange's: synchronise it (NTP)"

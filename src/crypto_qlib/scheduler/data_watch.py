"""``data watch``: collect at every bar close, and gather order flow from the websockets in between.

1. A task takes trades and books off the stream and counts them into minutes (:mod:`crypto_qlib.data_collector.live_flow`).
2. Shortly after each close of the finest frame collected, with a jitter that differs between machines, the lake is brought up
   to date; whole minutes of order flow are stored with it.
3. An exchange that is down, busy or in maintenance costs nothing but that round: the next one asks for what is missing. A round
   that finds another writer in the lake waits for the next close.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from crypto_qlib.core.clock import FRAME_NS, NS_PER_S, Clock, floor_ts, iso
from crypto_qlib.core.errors import CryptoQlibError, DoNotRetry, RetryLater, SkipCycle
from crypto_qlib.data_collector.fetch_okx_data import UpdateReport
from crypto_qlib.data_collector.live_flow import FlowMinutes
from crypto_qlib.exchange.okx_stream import Dropped, Tick
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.event_log import EventLog
from crypto_qlib.store.hold import HeldElsewhere
from crypto_qlib.store.lake import Kind, Lake, Series

SETTLE_S: Final = 3.0
"""How long after a close the exchange is given to finish the bar."""
_JITTER_S: Final = 4.0
_FLOW_FRAME: Final = "1m"


class Stream(Protocol):
    """Where ticks come from, see :class:`~crypto_qlib.exchange.okx_stream.OkxStream`."""

    def ticks(self) -> AsyncIterator[Tick]:
        """Yield ticks until closed."""
        ...

    async def close(self) -> None:
        """Release the connections."""
        ...


@dataclass(frozen=True, slots=True)
class Watch:
    """What a watch works with.

    Parameters
    ----------
    lake : Lake
        Where everything goes.
    settings : DataSettings
        Which frames.
    symbols : tuple of str
        Who is watched.
    update : callable
        Brings the lake up to date.
    clock : Clock
        The exchange's time.
    wait_until : callable
        Sleeps until an instant of that clock.
    say : callable
        Shows one line to a person.
    log : EventLog
        Keeps what happened.
    """

    lake: Lake
    settings: DataSettings
    symbols: tuple[str, ...]
    update: Callable[[], Awaitable[UpdateReport]]
    clock: Clock
    wait_until: Callable[[int], Awaitable[None]]
    say: Callable[[str], None]
    log: EventLog


async def watch(parts: Watch, stream: Stream | None, rounds: int | None = None) -> int:
    """Collect until stopped (or for ``rounds`` closes) and return how many rounds brought something.

    Raises
    ------
    UserError
        If the lake is damaged or cannot be written: nothing could be kept.
    """
    flow = FlowMinutes(parts.symbols, parts.clock.now_ns())
    listener = None if stream is None else asyncio.create_task(_listen(parts, stream, flow))
    done = good = 0
    try:
        while rounds is None or done < rounds:
            done += 1
            await parts.wait_until(next_round_ns(parts.clock.now_ns(), parts.settings))
            good += await _round(parts, flow if stream is not None else None)
            if listener is not None and listener.done():
                listener.result()
    finally:
        if listener is not None:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
        if stream is not None:
            await stream.close()
    return good


def next_round_ns(now_ns: int, settings: DataSettings) -> int:
    """Return when to collect next: after the next close of the finest frame, the time to settle, and this process's jitter."""
    frame_ns = min(FRAME_NS[f] for f in (settings.frame, *settings.frames))
    delay_ns = int((SETTLE_S + _JITTER_S * zlib.crc32(str(os.getpid()).encode()) / 2**32) * NS_PER_S)
    close = floor_ts(now_ns - delay_ns, frame_ns) + frame_ns
    return close + delay_ns


async def _round(parts: Watch, flow: FlowMinutes | None) -> bool:
    try:
        if flow is not None:
            _keep_flow(parts, flow)
        report = await parts.update()
    except (RetryLater, SkipCycle, DoNotRetry) as e:
        _tell(parts, "round failed", e)
        return False
    except HeldElsewhere as e:
        _tell(parts, "round skipped", e)
        return False
    lost = sum(g.is_lost for g in report.gaps)
    parts.say(f"{iso(report.now_ns)}  {report.added:,} new rows, {report.corrected:,} corrected, {lost} gaps lost for good")
    facts = {"now": iso(report.now_ns), "added": report.added, "corrected": report.corrected, "lost": lost}
    parts.log.write("updated", **facts, notes=[n for u in report.updates for n in u.notes])
    return True


def _tell(parts: Watch, event: str, error: CryptoQlibError) -> None:
    parts.say(f"{iso(parts.clock.now_ns())}  {error.message}: asked again at the next close")
    parts.log.write(event, reason=error.message)


def _keep_flow(parts: Watch, flow: FlowMinutes) -> None:
    rows = flow.finished(parts.clock.now_ns())
    if not rows:
        return
    with parts.lake.writing():
        for symbol, columns in rows.items():
            parts.lake.upsert(Series(Kind.ORDER_FLOW, _FLOW_FRAME, symbol), columns)


async def _listen(parts: Watch, stream: Stream, flow: FlowMinutes) -> None:
    async for tick in stream.ticks():
        flow.take(tick, parts.clock.now_ns())
        if isinstance(tick, Dropped):
            parts.log.write("stream dropped", what=tick.what, reason=tick.reason)

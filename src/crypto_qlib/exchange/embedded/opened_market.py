"""Open a market for serving: the right clock and window for a simulated, a replayed, or a live one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.clock import Clock, floor_ts
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.embedded_options import EmbeddedOptions
from crypto_qlib.exchange.embedded.live_market import LiveClock, LiveSource, LiveWindow
from crypto_qlib.exchange.embedded.market_window import MarketWindow
from crypto_qlib.exchange.embedded.path_market import PathMarket
from crypto_qlib.exchange.embedded.replay_market import ReplayMarket
from crypto_qlib.exchange.embedded.server_clock import ServerClock
from crypto_qlib.exchange.embedded.state_file import StateFile
from crypto_qlib.venue.market_source import MarketSource

START_FACT: Final = "start_ns"
"""Name of the market's first moment among the facts of a state file."""


@dataclass(frozen=True, slots=True)
class OpenedMarket:
    """A market with its clock, as the server asks it."""

    source: MarketSource
    clock: ServerClock
    window: MarketWindow


def open_market(source: MarketSource, options: EmbeddedOptions, wall: Clock, state: StateFile | None) -> OpenedMarket:
    """Return the market ready to be served; its clock stands where it began.

    Raises
    ------
    UserError
        If the start lies outside the data, or the step does not fit the market's bars.
    """
    if isinstance(source, LiveSource):
        live = LiveClock(wall, source.offset_ns)
        live.resume_at(_remembered(state, live.market_ns))
        return OpenedMarket(source, live, LiveWindow(source, live))
    recording = source.recording if isinstance(source, ReplayMarket) else None
    step_ns = options.step_frame_ns or source.base_frame_ns
    if step_ns < source.base_frame_ns:
        source = PathMarket(source, step_ns)
    if step_ns % source.base_frame_ns:
        raise UserError("the step frame must be a multiple of the market's base frame")
    start_ns = floor_ts(source.end_ns, step_ns) if options.start_ns is None else options.start_ns
    clock = ServerClock(_remembered(state, start_ns), source.end_ns, step_ns, wall, options.speed)
    return OpenedMarket(source, clock, MarketWindow(source, clock, recording=recording))


def _remembered(state: StateFile | None, start_ns: int) -> int:
    """Return where the market of a kept state began; the first time, that is ``start_ns``."""
    if state is None:
        return start_ns
    state.remember(START_FACT, str(start_ns))
    return int(state.fact(START_FACT))

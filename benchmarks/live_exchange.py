"""Serve fifty swaps, stepped hour by hour, until killed: ``python -m benchmarks.live_exchange FOLDER`` prints the URL.

It runs on one core where it may choose.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_HOUR, parse_utc
from crypto_qlib.exchange.credentials import load_or_create_credentials
from crypto_qlib.exchange.embedded.event_loop import run_fast, settle_memory
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

SYMBOLS = 50
NOW_NS = parse_utc("2026-01-01")


def market() -> SimulatedMarket:
    """Return a market of which enough swaps live through the benchmark; the others come late or leave early."""
    return SimulatedMarket(SimulationSpec(2 * SYMBOLS, NOW_NS - 120 * NS_PER_DAY, NOW_NS + 10 * NS_PER_DAY, 1, 1.0))


async def serve(folder: Path) -> None:
    """Serve until killed."""
    options = EmbeddedOptions(start_ns=NOW_NS, step_frame_ns=NS_PER_HOUR, paper_equity=1e6)
    async with EmbeddedExchange(market(), options, load_or_create_credentials(folder)) as exchange:
        settle_memory()
        print(exchange.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run_fast(serve(Path(sys.argv[1])))

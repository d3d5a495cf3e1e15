"""Serve a simulated market of sixty swaps, fifty and more of them listed, accounts kept on disk, until killed.

``python -m benchmarks.exchange_server FOLDER`` prints the URL once it answers. It runs on one core where it may choose.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from crypto_qlib.core.clock import NS_PER_DAY, NS_PER_MINUTE, parse_utc
from crypto_qlib.exchange.credentials import load_or_create_credentials
from crypto_qlib.exchange.embedded.event_loop import run_fast, settle_memory
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.state_file import StateFile
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

SYMBOLS = 60
START = "2026-01-01"


async def serve(folder: Path) -> None:
    now = parse_utc(START)
    market = SimulatedMarket(SimulationSpec(SYMBOLS, now - 3 * NS_PER_DAY, now + 2 * NS_PER_DAY, 1))
    options = EmbeddedOptions(start_ns=now, step_frame_ns=NS_PER_MINUTE, paper_equity=1e9)
    state = StateFile(folder, {})
    async with EmbeddedExchange(market, options, load_or_create_credentials(folder), state=state) as exchange:
        await exchange.step(1)
        settle_memory()
        print(exchange.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run_fast(serve(Path(sys.argv[1])))

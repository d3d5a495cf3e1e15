"""Serve the fake market with a state file until killed: ``python -m tests.exchange.served_fake FOLDER`` prints the URL."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.exchange.credentials import load_or_create_credentials
from crypto_qlib.exchange.embedded.server import EmbeddedExchange, EmbeddedOptions
from crypto_qlib.exchange.embedded.state_file import StateFile
from tests.exchange.fake_market import START_NS, FakeMarket


async def serve(folder: Path) -> None:
    options = EmbeddedOptions(start_ns=START_NS + 62 * NS_PER_DAY)
    async with EmbeddedExchange(
        FakeMarket(), options, load_or_create_credentials(folder), state=StateFile(folder, {})
    ) as served:
        sys.stdout.write(f"{served.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))

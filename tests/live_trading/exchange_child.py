"""An embedded exchange in a process of its own, to be killed.

``python -m tests.live_trading.exchange_child FOLDER PORT N_BARS``: the key comes on stdin, each further line forks a server on
the same state file. ``pid N`` is printed once it serves.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import orjson

from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from crypto_qlib.exchange.embedded.state_file import StateFile
from tests.live_trading.crash_rig import exchange_options
from tests.live_trading.test_parity import Tape


async def serve(exchange: EmbeddedExchange) -> None:
    """Serve until killed."""
    await exchange.start()
    sys.stdout.write(f"pid {os.getpid()}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main(folder: str, port: str, n_bars: str) -> None:
    """Fork servers until stdin ends."""
    key = ApiCredentials(**orjson.loads(sys.stdin.readline()))
    tape = Tape(1, int(n_bars))
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            state = StateFile(Path(folder), {})
            asyncio.run(serve(EmbeddedExchange(tape, exchange_options(port=int(port)), key, state=state)))
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])

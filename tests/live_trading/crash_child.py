"""Lives of a session that end by SIGKILL: ``python -m tests.live_trading.crash_child URL LEDGER N_BARS SEED``.

The key comes on stdin. Everything slow (imports, compiled functions, the client) is done once; then each line
``FATAL,AFTER,HOURS`` forks a process that lives one life against the exchange at URL and kills itself at its point. ``pid N``
is printed when it starts, ``end CODE`` when it is over (its exit code, negative for a signal).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import orjson

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from tests.live_trading import virtual_loop
from tests.live_trading.crash_rig import Line, Switch, Way, live, rig
from tests.live_trading.test_parity import Tape


class DeadlySwitch(Switch):
    """Dies as a process dies: at once, nothing tidied up."""

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


async def one_life(base_url: str, way: Way, hours: int) -> None:
    """Ask for the market's time and live on from there."""
    async with aiohttp.ClientSession() as admin:

        async def ask(method: str, path: str) -> int:
            async with admin.request(method, f"{base_url}/admin/{path}", data=b"{}") as answer:
                return int(orjson.loads(await answer.read())["now_ms"]) * NS_PER_MS

        way = Way(way.tape, way.gateway, lambda: ask("POST", "step"), way.path, way.switch)
        await live(way, await ask("GET", "status"), hours)
        await way.gateway.close()


async def warm_up(path: Path) -> None:
    """Live a few bars on an exchange of our own: compiled functions are loaded once, not in every life."""
    async with rig(path, 8) as here:
        await here.live(4)


def main(base_url: str, path: str, n_bars: str, seed: str) -> None:
    """Fork lives until stdin ends."""
    key = ApiCredentials(**orjson.loads(sys.stdin.readline()))
    switch = DeadlySwitch()
    gateway = OkxGateway(ExchangeSettings(), key, base_url)
    for purpose in ("account", "orders", "market"):
        gateway._session._client(purpose)
    gateway._session = Line(gateway._session, switch)  # type: ignore[assignment]
    way = Way(Tape(int(seed), int(n_bars)), gateway, asyncio.Event, Path(path), switch)  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        virtual_loop.run(warm_up(Path(folder) / "ledger.sqlite"))
    for line in sys.stdin:
        fatal, after, hours = line.rstrip("\n").split(",")
        child = os.fork()
        if child == 0:
            switch.next_life(int(fatal), after)
            asyncio.run(one_life(base_url, way, int(hours)))
            os._exit(0)
        sys.stdout.write(f"pid {child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"end {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

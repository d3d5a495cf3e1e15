"""The exchange is killed with -9 in the middle of the session's cycles and comes back: nothing doubled, nothing lost."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import socket
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import aiohttp
import orjson
import pytest

from crypto_qlib.core.clock import NS_PER_HOUR, NS_PER_MS
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.okx import OkxGateway
from crypto_qlib.settings.schema import ExchangeSettings
from crypto_qlib.store.ledger import Ledger, SessionRow, sqlite_engine
from tests.live_trading.crash_rig import FIRST, SESSION, Line, Switch, Way, live
from tests.live_trading.test_crashes import KILLS
from tests.live_trading.test_parity import RULES, Tape

HOURS = 8
pytestmark = pytest.mark.timeout(0 if KILLS else 300)  # a long run takes what it takes


class Killer(Switch):
    """Kills the exchange, not the session, at its points."""

    pid = 0

    def __init__(self, kills: int) -> None:
        super().__init__()
        self.draw = random.Random(5)
        self.left = kills
        self.fatal = self.draw.randint(1, 60)

    def die(self) -> None:
        if self.left and self.pid:
            self.left -= 1
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0
        self.passed, self.fatal = 0, self.draw.randint(20, 120)


class Served:
    """Starts the exchange whenever it is gone."""

    def __init__(self, child: asyncio.subprocess.Process, killer: Killer) -> None:
        self._child, self._killer = child, killer
        self.first = asyncio.Event()

    async def keep_up(self) -> None:
        """Start it again, for ever."""
        while True:
            if not self._killer.pid:
                assert self._child.stdin is not None
                assert self._child.stdout is not None
                self._child.stdin.write(b"start\n")
                word, pid = (await self._child.stdout.readline()).split()
                assert word == b"pid"
                self._killer.pid = int(pid)
                self.first.set()
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_the_exchange_dies_in_the_middle_of_cycles_and_comes_back(tmp_path: Path) -> None:
    hours = max(HOURS, KILLS // 2)
    key, killer = ApiCredentials.generate(), Killer(KILLS or 6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.live_trading.exchange_child", str(tmp_path / "exchange"), str(port), str(hours + 4),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(orjson.dumps(asdict(key)) + b"\n")
    served = Served(child, killer)
    keeping = asyncio.ensure_future(served.keep_up())
    base_url, now_ns = f"http://127.0.0.1:{port}", FIRST
    gateway = OkxGateway(ExchangeSettings(), key, base_url)
    gateway._session = Line(gateway._session, killer)  # type: ignore[assignment]
    try:
        await served.first.wait()

        async def step() -> int:
            """Move to the next hour: said as a time, so that saying it again after a lost answer moves nothing twice."""
            nonlocal now_ns
            now_ns += NS_PER_HOUR
            posted = orjson.dumps({"to": now_ns // NS_PER_MS})
            async with aiohttp.ClientSession() as admin:
                while True:
                    try:
                        async with admin.post(f"{base_url}/admin/step", data=posted) as answer:
                            if answer.status == 200 or (await answer.json())["now_ms"] * NS_PER_MS >= now_ns:
                                return now_ns
                    except aiohttp.ClientError:
                        await asyncio.sleep(0.05)

        path = tmp_path / "ledger.sqlite"
        way = Way(Tape(1, hours + 4), gateway, step, path, killer)
        result = await live(way, FIRST, hours)
        left, killer.left = killer.left, 0
        quiet = await live(way, now_ns, 2)
        assert set(result.fills) <= set(quiet.fills)
        account = await gateway.account()
        fills = await gateway.fills(FIRST)
    finally:
        await gateway.close()
        keeping.cancel()
        if killer.pid:
            os.kill(killer.pid, signal.SIGKILL)
        child.stdin.close()
        await child.wait()
    sys.stdout.write(f"{(KILLS or 6) - left} kills of the exchange in {hours} hours\n")
    assert killer.died_at.total() >= 6
    assert len(account.positions) <= RULES.max_open
    assert all(math.isfinite(p.stop_price) for p in account.positions)
    ledger = Ledger(sqlite_engine(path), SessionRow(SESSION, FIRST, "embedded", {}))
    held = {p.symbol: p.lots for p in account.positions}
    ours, theirs = (Counter((f.ts_ns, f.symbol, f.signed_lots, f.client_order_id) for f in b) for b in (ledger.fills(), fills))
    assert ours == theirs
    sums: Counter[str] = Counter()
    for fill in ledger.fills():
        sums[fill.symbol] += fill.signed_lots
    assert {s: n for s, n in sums.items() if n} == held
    assert ledger.unresolved() == []
    ledger.close()

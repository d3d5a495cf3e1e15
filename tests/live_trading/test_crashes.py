"""Killed at any point and started again: no order doubled, no position without a stop after a cycle, ledger equals exchange."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import orjson
import pytest

from tests.live_trading import virtual_loop
from tests.live_trading.crash_rig import Rig, rig
from tests.live_trading.test_missing_stops import cancel_every_stop

KILLS = int(os.environ.get("CRYPTO_QLIB_PROOF_KILLS", "0"))
"""Kills of each long test; 0 = the few of an ordinary run. See docs/live_proofs.md."""
pytestmark = pytest.mark.timeout(0 if KILLS else 300)  # a long run takes what it takes
KILLS_A_MARKET = 50
"""After so many kills a long test goes on with another market and a new ledger."""
ORDER, STOP = "before privatePostTradeOrder", "before privatePostTradeOrderAlgo"
STEPS_OF_AN_ORDER = 10
"""From sending: answered, read back, its state in the ledger, journalled, told to the session, and what follows."""


def test_killed_at_every_step_between_send_and_settled_order(tmp_path: Path) -> None:
    async def lives() -> Rig:
        async with rig(tmp_path / "ledger.sqlite", 250) as here:
            for point in range(1, STEPS_OF_AN_ORDER + 1):
                assert await here.live(60, point, ORDER) is None
                assert await here.live(1) is not None
            return here

    here = virtual_loop.run(lives())
    died = here.way.switch.died_at
    assert died.total() == STEPS_OF_AN_ORDER
    assert {ORDER, "after privatePostTradeOrder", "before privateGetTradeOrder", "begin", "commit"} <= set(died)


@pytest.mark.slow
def test_killed_at_every_point_of_two_cycles(tmp_path: Path) -> None:
    """Each life ends one point later than the one before, from the first request of the start through two whole cycles."""

    async def lives() -> Rig:
        async with rig(tmp_path / "ledger.sqlite", 2_000) as here:
            whole = await here.live(2)
            assert whole is not None
            points = here.way.switch.passed
            for point in range(1, points, 1 if KILLS else 9):
                assert await here.live(2, point) is None or here.way.switch.passed < point
            await here.live(2)
            return here

    here = virtual_loop.run(lives())
    died_at = here.way.switch.died_at
    sys.stdout.write(f"{here.cycles} cycles, {died_at.total()} kills: {dict(died_at.most_common())}\n")
    assert died_at.total() > 40


def markets(kills: int) -> Iterator[tuple[int, int]]:
    """Yield (seed of a market, kills on it) until there are ``kills``."""
    for seed, first in enumerate(range(0, kills, KILLS_A_MARKET), 1):
        yield seed, min(KILLS_A_MARKET, kills - first)


@pytest.mark.slow
def test_killed_at_random_points_over_weeks(tmp_path: Path) -> None:
    """Half of the lives end soon after an order; before one in five somebody cancels every stop: it ends at the new ones."""
    died_at: Counter[str] = Counter()
    steps_of_a_stop, cycles = cycle(range(1, 7)), []

    async def lives(seed: int, kills: int) -> None:
        draw = random.Random(seed)
        async with rig(tmp_path / f"{seed}.sqlite", 20 * kills, seed) as here:
            while here.way.switch.died_at.total() < kills:
                fatal, after = (draw.randint(1, 40), ORDER) if draw.random() < 0.5 else (draw.randint(1, 450), "")
                if draw.random() < 0.2 and await cancel_every_stop(here.exchange):
                    fatal, after = next(steps_of_a_stop), STOP
                await here.live(12, fatal, after)
                if draw.random() < 0.2:
                    await here.exchange.step(draw.randint(1, 6))
            await here.live(2)
            cycles.append(here.cycles)
            died_at.update(here.way.switch.died_at)

    for seed, kills in markets(KILLS or 40):
        virtual_loop.run(lives(seed, kills))
    sys.stdout.write(f"{sum(cycles)} cycles, {died_at.total()} kills: {dict(died_at.most_common())}\n")
    assert sum(cycles) > died_at.total() // 3
    assert {ORDER, STOP, "after privatePostTradeOrder", "after privatePostTradeOrderAlgo"} <= set(died_at)


Life = Callable[[int, str, int], Awaitable[int]]


@asynccontextmanager
async def lives_of_processes(here: Rig, n_bars: int, seed: int, delay_s: Callable[[], float]) -> AsyncIterator[Life]:
    """Yield a function that lives one life in a process of its own and returns its exit code."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.live_trading.crash_child", here.exchange.base_url, str(here.way.path),
        str(n_bars), str(seed), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(orjson.dumps(asdict(here.exchange.credentials)) + b"\n")

    async def one(fatal: int, after: str, hours: int) -> int:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{fatal},{after},{hours}\n".encode())
        word, pid = (await child.stdout.readline()).split()
        assert word == b"pid"
        if fatal < 0:
            await asyncio.sleep(delay_s())
            os.kill(int(pid), signal.SIGKILL)
        word, code = (await child.stdout.readline()).split()
        assert word == b"end"
        return int(code)

    try:
        yield one
    finally:
        child.stdin.close()
        await child.wait()


@pytest.mark.slow
def test_kill_9_of_the_process_at_its_orders_and_at_any_moment(tmp_path: Path) -> None:
    async def lives(seed: int, kills: int) -> list[int]:
        n_bars, draw = 30 * kills, random.Random(seed)
        async with rig(tmp_path / f"{seed}.sqlite", n_bars, seed) as here:
            async with lives_of_processes(here, n_bars, seed, lambda: draw.uniform(0.0, 1.0)) as one:
                codes = []
                for life in range(kills):
                    if life % 2:
                        codes.append(await one(draw.randint(1, STEPS_OF_AN_ORDER), ORDER, 40))
                    else:
                        codes.append(await one(-1, "", 40))
                    assert await one(0, "", 1) == 0
                    here.check()
            return codes

    codes: list[int] = []
    for seed, kills in markets(KILLS or 8):
        codes += asyncio.run(lives(seed, kills))
        sys.stdout.write(f"market {seed}: {codes.count(-signal.SIGKILL)} kills -9 in {len(codes)} lives so far\n")
        sys.stdout.flush()
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert codes.count(-signal.SIGKILL) >= 0.8 * len(codes)

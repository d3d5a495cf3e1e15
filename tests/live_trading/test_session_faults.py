"""Every fault of the exchange, alone and in random combination over long virtual time: what must hold always holds.

Invariants: at most N positions and pending entries, exposure within its caps when it is taken, no position without its stop
when a cycle is over, no order unknown for longer than a few bars, no silence while something is wrong, ledger equals exchange
in the end.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.exchange.embedded.fault_switchboard import MARKET_FAULTS, NAMES, TIME_FAULTS
from crypto_qlib.live_trading.paper_view import PaperView
from tests.live_trading import virtual_loop
from tests.live_trading.crash_rig import RULES, Rig, rig
from tests.live_trading.test_missing_stops import cancel_every_stop
from tests.live_trading.test_parity import SYMBOLS

EXAMPLES = int(os.environ.get("CRYPTO_QLIB_PROOF_EXAMPLES", "3"))
"""Random combinations tried; see docs/live_proofs.md."""
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 50 else 300)  # a long run takes what it takes
RATE = 0.25
UNKNOWN_BOUND_BARS = 3
"""Bars an order may stay unresolved once the exchange answers again."""
AFTER_BARS = 3
"""Bars after the last fault within which everything must be settled again."""


def switch_of(name: str, rng: random.Random) -> dict[str, Any]:
    """Return what is posted to the exchange's owner to switch the fault on."""
    if name in TIME_FAULTS:
        return {"fault": name, "ms": 20_000 if name == "clock_skew" else 700}
    if name in MARKET_FAULTS:
        more = {"suspend": {"symbol": rng.choice(SYMBOLS)}, "funding_step": {"symbol": rng.choice(SYMBOLS), "hours": 1}}
        return {"fault": name, "on": True, "fraction": rng.choice((0.0, 0.3, 0.9)), **more.get(name, {})}
    return {"fault": name, "rate": RATE}


@dataclass
class Watch:
    """What is checked at each bar, on the exchange itself.

    Parameters
    ----------
    unknown_since : dict
        When a symbol's order was first seen pending at the end of a cycle; the market's time.
    """

    here: Rig
    unknown_since: dict[str, int] = field(default_factory=dict)
    quiet_since_ns: int | None = None

    def cycle_over(self, view: PaperView) -> None:
        """Check what must hold at the end of each cycle."""
        held = self._held()
        assert len(held.keys() | set(view.pending)) <= RULES.max_open, "more open than allowed"
        for symbol in list(self.unknown_since):
            if symbol not in view.pending:
                del self.unknown_since[symbol]
        for symbol in view.pending:
            since = self.unknown_since.setdefault(symbol, view.as_of_ns)
            if self.quiet_since_ns is not None:
                bars = (view.as_of_ns - max(since, self.quiet_since_ns)) // NS_PER_HOUR
                assert bars <= UNKNOWN_BOUND_BARS, f"an order of {symbol} is unknown for {bars} bars"
        bare = self.here.unprotected()
        said = " ".join(view.alerts)
        assert all(symbol in said for symbol in bare), f"{bare} without a stop, and nobody was told: {view.alerts}"
        gross = sum(abs(p.notional) for p in held.values())
        assert gross <= RULES.max_gross * view.equity * SLACK, "exposure beyond its cap"

    def _held(self) -> dict[str, Any]:
        return self.here.held()


SLACK = 1.25
"""Positions are sized within the cap; prices move between sizing and the end of a cycle."""


async def through(here: Rig, faults: list[tuple[int, dict[str, Any]]], n_bars: int, kills: list[int]) -> None:
    """Live through ``n_bars`` bars with faults switched at their bars, and deaths in between; then a few quiet bars."""
    watch = Watch(here)
    here.finished = watch.cycle_over
    start_ns = here.now_ns
    left = sorted(faults, key=lambda pair: pair[0])

    async def at_each_bar(now_ns: int) -> None:
        while left and left[0][0] <= (now_ns - start_ns) // NS_PER_HOUR:
            _, posted = left.pop(0)
            if posted.get("fault") == "cancel_stops":
                here.exchange.switchboard.switch({"fault": "off"})
                await cancel_every_stop(here.exchange)
            else:
                here.exchange.switchboard.switch(posted)

    here.before_step = at_each_bar
    deaths = list(kills)
    while (bars := n_bars - (here.now_ns - start_ns) // NS_PER_HOUR) > 0:
        await here.live(int(bars), deaths.pop() if deaths else 0)
    here.exchange.switchboard.switch({"fault": "off"})
    here.before_step = None
    watch.quiet_since_ns = here.now_ns
    result = await here.live(AFTER_BARS)
    assert result is not None
    here.check()
    assert here.unprotected() == set()
    if here.pending():
        raise AssertionError(f"unresolved in the end: {here.pending()}")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_fault_alone(name: str, tmp_path: Path) -> None:
    async def lives() -> None:
        async with rig(tmp_path / "ledger.sqlite", 40, seed=2) as here:
            rng = random.Random(name)
            await through(here, [(1, switch_of(name, rng)), (7, {"fault": "off"})], 9, [])

    virtual_loop.run(lives())


@pytest.mark.slow
@given(seed=st.integers(0, 10**9))
@hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 50, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_faults_in_random_combination(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    n_bars = 24
    names = rng.sample(NAMES, rng.randint(2, 5))
    faults = [(rng.randint(0, n_bars - 2), switch_of(name, rng)) for name in names]
    if rng.random() < 0.5:
        faults.append((rng.randint(1, n_bars - 1), {"fault": "cancel_stops"}))
    faults.append((rng.randint(1, n_bars), {"fault": "off"}))
    kills = [rng.randint(1, 500) for _ in range(rng.randint(0, 4))]

    async def lives() -> None:
        with TemporaryDirectory(dir=tmp_path) as folder:
            async with rig(Path(folder) / "ledger.sqlite", n_bars + 40, seed=rng.randint(1, 50)) as here:
                await through(here, faults, n_bars, kills)

    virtual_loop.run(lives())

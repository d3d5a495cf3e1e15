"""Random walks of a session through faults, deaths and lost stops, in any order: what must hold holds at the end of each cycle.

The walk is a state machine of Hypothesis: in a long run one that fails is shrunk to the few steps that matter. The exchange
lives on through it, the session dies and starts again from its ledger; then the faults end, and everything must settle.

``CRYPTO_QLIB_PROOF_EXAMPLES=300 pytest -m slow tests/live_trading/test_session_walks.py`` walks that often.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from crypto_qlib.exchange.embedded.fault_switchboard import NAMES
from tests.live_trading import virtual_loop
from tests.live_trading.crash_rig import rig
from tests.live_trading.test_crashes import ORDER, STOP
from tests.live_trading.test_missing_stops import cancel_every_stop
from tests.live_trading.test_session_faults import AFTER_BARS, EXAMPLES, Watch, switch_of

STEPS, MOST_BARS = 16, 4
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 50 else 300)  # a long run takes what it takes
REACHED: Counter[str] = Counter()
"""What all walks came to: a walk that goes nowhere proves nothing."""


class SessionWalk(RuleBasedStateMachine):
    """One session at one exchange."""

    @initialize(seed=st.integers(1, 10_000), name=st.sampled_from(NAMES), point=st.integers(1, 60))
    def open(self, seed: int, name: str, point: int) -> None:
        """Start a market; every walk begins with a fault and a death, since Hypothesis leaves whole rules out of some walks."""
        self.folder = Path(tempfile.mkdtemp(prefix="walk-"))
        self.runner = asyncio.Runner(loop_factory=virtual_loop.VirtualTimeLoop)
        self.context = rig(self.folder / "ledger.sqlite", STEPS * (MOST_BARS + 3), seed=seed)
        self.here = self._run(self.context.__aenter__())
        self.watch = Watch(self.here)
        self.here.finished = self.watch.cycle_over
        self.fault(name, seed)
        self.die(point, "")

    @rule(bars=st.integers(1, MOST_BARS))
    def live(self, bars: int) -> None:
        assert self._run(self.here.live(bars)) is not None

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 2**16))
    def fault(self, name: str, seed: int) -> None:
        self.watch.quiet_since_ns = None
        self.here.exchange.switchboard.switch(switch_of(name, random.Random(seed)))
        REACHED["fault"] += 1

    @rule()
    def calm(self) -> None:
        self.here.exchange.switchboard.switch({"fault": "off"})
        self.watch.quiet_since_ns = self.here.now_ns

    @rule(point=st.integers(1, 300), after=st.sampled_from(["", ORDER, STOP]))
    def die(self, point: int, after: str) -> None:
        """Live until a point, or through a few bars where it never comes."""
        point = 1 + point % 12 if after else point
        REACHED["death"] += self._run(self.here.live(MOST_BARS, point, after)) is None

    @rule()
    def lose_every_stop(self) -> None:
        """Somebody cancels them while the session is down."""
        self.calm()
        REACHED["lost stops"] += self._run(cancel_every_stop(self.here.exchange))

    @rule(hours=st.integers(1, 3))
    def sleep(self, hours: int) -> None:
        """The market goes on without the session."""
        self._run(self.here.exchange.step(hours))

    def teardown(self) -> None:
        if not hasattr(self, "here"):
            return
        try:
            self.calm()
            assert self._run(self.here.live(AFTER_BARS)) is not None
            self.here.check()
            assert self.here.pending() == (), "unresolved in the end"
            REACHED["cycles"] += self.here.cycles
            REACHED["fills"] += len(self.here.exchange.venue.exchange.fills(self.here.account_id))
        finally:
            self._run(self.context.__aexit__(None, None, None))
            self.runner.close()
            shutil.rmtree(self.folder)

    def _run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(doing)


@pytest.mark.slow
def test_whatever_happens_in_whatever_order_the_session_stays_safe_and_settles() -> None:
    REACHED.clear()
    run_state_machine_as_test(
        SessionWalk,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=EXAMPLES < 50, database=None,
            phases=list(Phase) if EXAMPLES > 50 else [Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )  # fmt: skip
    sys.stdout.write(f"{dict(REACHED)}\n")
    assert REACHED["cycles"] > 3 * EXAMPLES
    assert min(REACHED[what] for what in ("fault", "death", "fills")) >= max(EXAMPLES // 2, 1)

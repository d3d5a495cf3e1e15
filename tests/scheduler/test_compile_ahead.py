"""The second process compiles what the first one is about to need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crypto_qlib.scheduler.compile_ahead import CompileAhead

_BACKTEST = """
import numba.core.event as events
import crypto_qlib as cq
import numpy as np
from crypto_qlib.core.signal import ScorePanel

compiled = []
class Listener(events.Listener):
    def on_start(self, event):
        compiled.append(event.data["dispatcher"].py_func.__qualname__)
    def on_end(self, event):
        pass

data = cq.simulate(symbols=5, days=40)
shape = data.panel.close.shape
scores = ScorePanel(data.panel.ts_open + data.panel.frame_ns, data.panel.symbols,
                    np.full(shape, 0.03), np.full(shape, 0.6), np.full(shape, 0.01))
with events.install_listener("numba:compile", Listener()):
    cq.run_backtest(data, scores)
    cq.build_features(data)
print(",".join(name for name in compiled if "run_bars" in name or "plan_orders" in name or "_fill" in name))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_compiling_ahead_backtest_and_features_compile_nothing_big(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    words = [sys.executable, "-W", "ignore", "-m", "crypto_qlib.scheduler.compile_ahead"]
    subprocess.run(words, env=environment, check=True, timeout=900)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BACKTEST],
        env=environment,
        check=True,
        timeout=900,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == ""


def test_nothing_is_started_where_the_code_is_known_to_be_compiled() -> None:
    with CompileAhead(is_wanted=False) as ahead:
        assert not ahead.wait()


@pytest.mark.slow
def test_leaving_early_ends_the_process() -> None:
    with CompileAhead(is_wanted=True) as ahead:
        process = ahead._process
    assert process is not None
    assert process.returncode is not None

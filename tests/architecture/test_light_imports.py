"""What must stay quick to import stays free of what takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("qlib", "mlflow", "lightgbm", "ccxt", "aiohttp", "matplotlib", "plotly", "torch", "sklearn")
ROWS = [
    ("the backtest kernel runs in sweeps on many processes", "crypto_qlib.backtest.engine"),
    ("the decision runs in every bar of every mode", "crypto_qlib.portfolio.decision"),
    ("the simulated venue is a plain library", "crypto_qlib.venue.market_simulator"),
    ("`--help` and a typing error must answer at once", "crypto_qlib.cli.main"),
]


@pytest.mark.parametrize(("reason", "module"), ROWS, ids=[row[1] for row in ROWS])
def test_importing_brings_in_nothing_heavy(reason: str, module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], reason

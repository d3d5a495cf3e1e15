"""Compile the backtest's and the features' machine code in a second process, while the first one waits for data.

The code is compiled once per machine and version and kept in numba's cache on disk; without this the first backtest of a
fresh installation would stand still for most of a minute. ``python -m crypto_qlib.scheduler.compile_ahead`` does the
work: it scores nothing and keeps nothing, it only runs every compiled function once on a tiny simulated market.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from crypto_qlib.backtest.run_backtest_leveraged import run_backtest_leveraged
from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.data_collector.source_panel import panel_of_source
from crypto_qlib.feature_engineering.feature_generator import build_features, latest_features
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.train_model import train_model
from crypto_qlib.settings.load import load_settings
from crypto_qlib.venue.market_simulator import SimulatedMarket, SimulationSpec

_NICENESS = 5
_SMALL = {"horizon_bars": 2, "embargo_bars": 0, "train_fraction": 0.4, "valid_fraction": 0.3, "min_data_in_leaf": 5,
          "num_boost_round": 2, "threads": 1}  # fmt: skip
"""A model that fits into the tiny market."""


class CompileAhead:
    """A process that compiles in the background; leaving the context ends it, finished or not.

    Parameters
    ----------
    is_wanted : bool
        False does nothing (the code is known to be compiled).
    """

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._is_wanted:
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter and module
                [sys.executable, "-m", __name__],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def wait(self) -> bool:
        """Return, once the process has ended, whether everything is compiled; what is not is compiled at its first use."""
        return self._process is not None and self._process.wait() == 0


def compile_everything() -> None:
    """Run features, labels and backtest once on a tiny market, so that numba compiles and caches them."""
    market = SimulatedMarket(SimulationSpec(4, 0, 4 * NS_PER_DAY))
    panel = panel_of_source(market, "1h")
    instruments = {item.symbol: item for item in market.instruments()}
    rng = np.random.default_rng(0)
    shape = (panel.n_bars, len(panel.symbols))
    known = panel.ts_open + panel.frame_ns
    scores = ScorePanel(known, panel.symbols, rng.normal(0.0, 0.05, shape), np.full(shape, 0.6), np.full(shape, 0.01))
    settings = load_settings(None, ["strategy.min_listing_days=0", "strategy.min_daily_turnover=0"], {})
    run_backtest_leveraged(panel, scores, instruments, {s: market.tiers(s) for s in panel.symbols}, settings)
    latest_features(panel, settings.features)
    build_features(panel, settings.features)
    # Of the features only those whose window is filled in the training bars: the others would be refused.
    technical = build_features(panel, settings.features.model_copy(update={"sets": ("technical",)}))
    in_training = technical.values[technical.row_span(0, panel.n_bars // 3)]
    filled = np.flatnonzero(np.isfinite(in_training).any(axis=0))
    names = tuple(technical.names[k] for k in filled)
    technical = replace(technical, values=np.ascontiguousarray(technical.values[:, filled]), names=names)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("lightgbm", "linear"):
            small = settings.model.model_copy(update=_SMALL | {"name": name})
            train_model(technical, make_labels(panel, small), small, Path(scratch))


if __name__ == "__main__":
    os.nice(_NICENESS)
    compile_everything()

"""A small main job: ten simulated coins, six weeks of hours, few features, few trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crypto_qlib.scheduler.pipeline_scheduler import Pipeline
from crypto_qlib.scheduler.reporter import SilentReporter
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.secrets import Secrets

SMALL = (
    "exchange.simulated_symbols=12",
    "exchange.simulated_days=48",
    "exchange.signal_strength=1",
    "universe.size=10",
    "universe.hysteresis=1",
    "data.history_days=42",
    "features.alpha360_window=12",
    "model.num_boost_round=15",
    "model.min_data_in_leaf=50",
    "model.num_leaves=15",
    "model.horizon_bars=12",
    "model.embargo_bars=12",
    "strategy.max_open=4",
    "strategy.holding_bars=12",
    "strategy.min_win_probability=0",
    "strategy.min_net_return=-0.01",
    "strategy.min_daily_turnover=0",
    "strategy.min_listing_days=0",
    "live.paper_bars=3",
    "external.when=never",
)

MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def make_pipeline(tmp_path: Path) -> MakePipeline:
    """Return a maker of small pipelines: ``make_pipeline("strategy.max_open=2", root=...)``."""

    def make(*overrides: str, root: Path | None = None) -> Pipeline:
        where = tmp_path / "workspace" if root is None else root
        settings = load_settings(None, [f"store.root={where}", *SMALL, *overrides], {})
        return Pipeline(settings, Secrets(), SilentReporter())

    return make

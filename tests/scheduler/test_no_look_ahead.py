"""Whatever happens after a moment changes nothing that was decided at it: features, scores and plan, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import crypto_qlib as cq
from crypto_qlib.core.account import AccountState
from crypto_qlib.core.market import PANEL_FIELDS, PANEL_PRICES, MarketPanel
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling.artefact import TrainedModel
from crypto_qlib.modeling.train_model import predict_scores
from crypto_qlib.portfolio.decision import decide
from crypto_qlib.portfolio.market_panel import market_states
from crypto_qlib.portfolio.rules import rules_from_settings

OPTIONS = (
    "features.alpha360_window=12",
    "model.horizon_bars=12",
    "model.embargo_bars=12",
    "model.num_boost_round=10",
    "model.min_data_in_leaf=50",
    "strategy.min_net_return=-1",
    "strategy.min_win_probability=0",
    "strategy.min_daily_turnover=0",
    "strategy.min_listing_days=0",
)


@pytest.fixture(scope="module")
def data() -> cq.MarketData:
    return cq.simulate(symbols=8, days=40, seed=3, signal_strength=1.0)


@pytest.fixture(scope="module")
def model(data: cq.MarketData) -> TrainedModel:
    return cq.train(data, cq.build_features(data, OPTIONS), OPTIONS)


def perturbed_after(panel: MarketPanel, bar: int, rng: np.random.Generator) -> MarketPanel:
    """Return ``panel`` with every value of the bars from ``bar`` on replaced: prices, volumes, funding, and holes."""
    fields = {name: np.array(getattr(panel, name)) for name in PANEL_FIELDS}
    shape = fields["open"][bar:].shape
    factor = np.exp(rng.normal(0.0, 0.5, shape))
    holes = rng.random(shape) < 0.2
    for name in PANEL_FIELDS:
        if name in PANEL_PRICES:
            fields[name][bar:] *= factor
        elif name == "funding_rate":
            fields[name][bar:] = rng.normal(0.0, 0.01, shape)
        else:
            fields[name][bar:] *= rng.uniform(0.0, 50.0, shape)
        fields[name][bar:][holes] = np.nan
    return replace(panel, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_perturbing_everything_after_a_moment_changes_no_feature_score_or_plan(
    data: cq.MarketData, model: TrainedModel, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bar = int(rng.integers(300, data.panel.n_bars - 1))
    as_of_ns = int(data.panel.ts_open[bar])  # bars before this one are closed
    settings = cq.configure(*OPTIONS)
    rules = rules_from_settings(settings)
    outcomes = []
    for panel in (data.panel, perturbed_after(data.panel, bar, rng)):
        features = build_features(panel, model.feature_settings)
        scores = predict_scores(model, features)
        row = int(np.searchsorted(scores.as_of_ns, as_of_ns))
        state = market_states(panel, data.instruments, data.tiers, rules).at(as_of_ns)
        account = AccountState(as_of_ns, equity=100_000.0, available=100_000.0, peak_equity=100_000.0)
        plan = decide(scores.at(row), account, state, rules)
        known = features.values[features.row_span(0, bar)]
        outcomes.append(
            (known.tobytes(), scores.expected_return[: row + 1].tobytes(), scores.win_probability[: row + 1].tobytes(), plan)
        )
    first, second = outcomes
    assert first[0] == second[0], "a feature saw the future"
    assert first[1:3] == second[1:3], "a score saw the future"
    assert first[3] == second[3], "a plan saw the future"
    assert first[3].orders, "a test without orders proves nothing"

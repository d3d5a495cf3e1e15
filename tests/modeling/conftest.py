"""One small trained model per family, shared by the tests of this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling.artefact import TrainedModel
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.train_model import train_model
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from tests.noise_market import noise_panel

SETS = FeatureSettings(sets=("alpha360", "technical", "btc_relative", "funding"), alpha360_window=5)


def model_settings(name: str = "lightgbm", **changes: object) -> ModelSettings:
    """Return settings small enough for tests."""
    small = {
        "name": name,
        "horizon_bars": 12,
        "embargo_bars": 12,
        "min_data_in_leaf": 100,
        "num_leaves": 15,
        "num_boost_round": 40,
        "learning_rate": 0.1,
        "threads": 1,
    }
    return ModelSettings.model_validate(small | changes)


@dataclass(frozen=True)
class Trained:
    """A trained model with what it was trained on."""

    panel: MarketPanel
    frame: FeatureFrame
    labels: Labels
    settings: ModelSettings
    folder: Path
    model: TrainedModel


def train_on(panel: MarketPanel, settings: ModelSettings, folder: Path) -> Trained:
    """Build features and labels of ``panel`` and train."""
    frame = build_features(panel, SETS)
    labels = make_labels(panel, settings)
    return Trained(panel, frame, labels, settings, folder, train_model(frame, labels, settings, folder, identity="run0"))


@pytest.fixture(scope="session", params=["lightgbm", "linear"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a model of each family trained on a market with a planted signal."""
    panel = noise_panel(900, 12, seed=11, planted=0.15, with_gaps=True)
    return train_on(panel, model_settings(request.param), tmp_path_factory.mktemp(request.param))

"""The universe's mask in features and labels: who is no member at a bar's close takes part in nothing that bar."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crypto_qlib.core.membership import membership_of
from crypto_qlib.feature_engineering.feature_generator import build_features, latest_features
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from tests.noise_market import noise_panel, same_bits

CROSS = FeatureSettings(sets=("btc_relative",))
PANEL = noise_panel(400, 5, seed=11)
OUTSIDER = PANEL.symbols[-1]
SWITCH = int(PANEL.ts_open[300])
MASKED = PANEL.with_members(membership_of([(0, PANEL.symbols[:-1]), (SWITCH, PANEL.symbols)]))


def wild() -> np.ndarray:
    return np.random.default_rng(0).lognormal(0.0, 2.0, PANEL.close.shape[0])


def with_wild_outsider() -> object:
    fields = {n: np.array(getattr(PANEL, n)) for n in ("open", "high", "low", "close", "volume", "quote_volume")}
    for values in fields.values():
        values[:200, -1] *= wild()[:200]
    return replace(MASKED, **fields)


def test_a_coin_outside_the_universe_gets_no_row_and_changes_nobody_elses() -> None:
    frame, other = build_features(MASKED, CROSS), build_features(with_wild_outsider(), CROSS)  # type: ignore[arg-type]
    assert not frame.mask[:299, -1].any()
    assert frame.mask[299:, -1].all()  # the bar that closes at the instant of the snapshot is the first
    rows = frame.row_span(0, 200)
    assert frame.values[rows].shape[0] == 200 * 4
    assert all(same_bits(frame.values[rows][:, j], other.values[rows][:, j]) for j in range(len(frame.names)))


def test_the_live_row_of_a_masked_panel_equals_the_batch_row() -> None:
    for n in (250, 301, 320, 400):
        live = latest_features(MASKED.rows(0, n), CROSS)
        frame = build_features(MASKED, CROSS)
        rows = frame.row_span(n - 1, n)
        assert live.row_symbol.tolist() == frame.row_symbol[rows].tolist()
        assert all(same_bits(live.values[:, j], frame.values[rows][:, j]) for j in range(len(frame.names)))


def test_the_excess_return_is_over_the_members_alone() -> None:
    labels = make_labels(MASKED, ModelSettings(horizon_bars=3))
    assert np.isnan(labels.values[:299, -1]).all()
    members = labels.forward_return[100, :4]
    np.testing.assert_allclose(labels.values[100, :4], members - members.mean(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        labels.values[350], labels.forward_return[350] - labels.forward_return[350].mean(), rtol=1e-12, atol=1e-15
    )
    assert np.isfinite(labels.forward_return[100, -1])  # what it earned is known all the same

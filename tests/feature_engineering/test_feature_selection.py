"""Screening, redundancy, importance, components and drift on markets where the answer is known."""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_drift import feature_drift
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_importance import fold_importance, purged_folds, shap_shares
from crypto_qlib.feature_engineering.feature_reduction import Components, fit_reduction, load_reduction, save_reduction
from crypto_qlib.feature_engineering.feature_selection import (
    Chosen,
    FeatureIc,
    choose,
    clusters,
    evidence_of,
    false_discovery_rates,
    rank_ic_table,
    screen,
)
from crypto_qlib.feature_engineering.selection_store import load_selection, only, save_selection
from crypto_qlib.settings.schema import FeatureSettings
from tests.noise_market import START_NS, same_bits

N_BARS, N_COINS, HORIZON = 3000, 12, 5


def market(planted: float, seed: int = 1) -> tuple[FeatureFrame, np.ndarray, list[str]]:
    """Return ten features and an outcome: the first two predict it (the second is a copy of the first with a little noise)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N_BARS * N_COINS, 10)).astype(np.float32)
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    outcome = planted * x[:, 0] + rng.normal(size=x.shape[0])
    frame = FeatureFrame(
        values=x,
        names=tuple(f"F{k}" for k in range(10)),
        ts_open=START_NS + np.arange(N_BARS, dtype=np.int64) * NS_PER_HOUR,
        frame_ns=NS_PER_HOUR,
        symbols=tuple(f"C{k:02d}USDT" for k in range(N_COINS)),
        row_bar=np.repeat(np.arange(N_BARS), N_COINS).astype(np.int32),
        row_symbol=np.tile(np.arange(N_COINS), N_BARS).astype(np.int32),
        settings=FeatureSettings(),
    )
    return frame, outcome.reshape(N_BARS, N_COINS), ["a"] * 5 + ["b"] * 5


def test_rank_ics_equal_scipys() -> None:
    frame, outcome, _ = market(0.2)
    table = rank_ic_table(frame, outcome, (0, 50), HORIZON)
    assert table.shape == (10, 10)
    rows = slice(15 * N_COINS, 16 * N_COINS)
    for j in range(10):
        assert table[3, j] == pytest.approx(spearmanr(frame.values[rows, j], outcome[15]).statistic, abs=1e-12)


def test_the_planted_feature_is_found_its_copy_is_redundant_and_noise_is_not_chosen() -> None:
    frame, outcome, groups = market(0.1)
    chosen = choose(frame, groups, outcome, (0, 2000), HORIZON)
    assert len(chosen.names) == 1
    assert chosen.names[0] in {"F0", "F1"}
    assert chosen.cluster["F0"] == chosen.cluster["F1"]
    assert chosen.importance[chosen.names[0]] > 0.02
    assert chosen.shap[chosen.names[0]] == (1.0, 0.0), "it is the only one"
    periods = chosen.periods[chosen.names[0]]
    assert len(periods) == 6
    assert all(mean > 0.0 for mean in periods)
    found = {f.name: f for f in chosen.screened}["F0"]
    assert found.mean > 5 * found.standard_error
    assert found.stability == 1.0


def test_features_that_order_the_coins_alike_are_one_whatever_they_do_over_time() -> None:
    frame, _, _ = market(0.0)
    swings = 10.0 * np.sin(frame.row_bar / 7.0)
    frame.values[:, 3] = frame.values[:, 2] + swings  # as momentum and momentum less that of BTC
    frame.values[:, 5] = swings
    found = clusters(frame, [2, 3, 4, 5], slice(0, 20_000), 0.7)
    assert found[0] == found[1]
    assert found[2] not in found[[0, 1, 3]]


def test_evidence_of_hand_worked_cases() -> None:
    e = evidence_of(np.array([0.1, 0.3, np.nan, 0.2]), 0)
    assert (e.mean, e.n) == (pytest.approx(0.2), 3)
    assert e.standard_error == pytest.approx(0.1 / np.sqrt(3.0)), "sd 0.1 of three"
    assert e.p_value == pytest.approx(2.0 * (0.5 - e.t_stat / (2.0 * np.sqrt(2.0 + e.t_stat**2)))), "Student's with 2"
    swings = np.tile([0.3, -0.1], 20)
    plain = swings.std(ddof=1) / np.sqrt(40.0)
    assert evidence_of(swings).standard_error == pytest.approx(plain), "swings to and fro make nobody surer"
    lasting = evidence_of(np.repeat([0.3, -0.1], 20))
    assert lasting.standard_error > 1.5 * plain
    assert [np.isnan(evidence_of(np.array(x)).p_value) for x in ([], [0.2])] == [True, True]


@pytest.mark.parametrize("n", [3, 6, 23, 100])
def test_few_decisions_prove_nothing(n: int) -> None:
    """Of independent noise about one in a hundred is significant at one in a hundred, however few decisions there are."""
    noise = np.random.default_rng(n).normal(0.0, 0.4, (4000, n))
    found = np.mean([evidence_of(row).p_value < 0.01 for row in noise])
    assert 0.004 < found < 0.016


def test_from_noise_nothing_is_chosen() -> None:
    frame, outcome, groups = market(0.0, seed=3)
    with pytest.raises(UserError, match="no feature"):
        choose(frame, groups, outcome, (0, 2500), HORIZON)


def test_what_comes_after_the_span_changes_no_choice() -> None:
    frame, outcome, groups = market(0.1)
    later = outcome.copy()
    later[2000:] = -later[2000:]
    assert choose(frame, groups, outcome, (0, 2000), HORIZON) == choose(frame, groups, later, (0, 2000), HORIZON)


def test_false_discovery_rates_of_a_hand_worked_case() -> None:
    q = false_discovery_rates(np.array([0.01, 0.04, np.nan, 0.03, 0.5]))
    np.testing.assert_allclose(q, [0.04, 0.16 / 3, np.nan, 0.16 / 3, 0.5])


def test_a_feature_equal_for_all_coins_is_left_out_of_the_correction() -> None:
    frame, outcome, groups = market(0.1)
    frame.values[:, 9] = frame.row_bar
    found = screen(frame, groups, rank_ic_table(frame, outcome, (0, 2000), HORIZON))
    assert np.isnan(found[9].q_value)
    assert np.isfinite(found[0].q_value)


def test_a_fold_learns_from_no_row_whose_outcome_reaches_into_it() -> None:
    frame, _, _ = market(0.1)
    for train, test in purged_folds(frame, (0, 2000), HORIZON, 3):
        first, last = frame.row_bar[test[0]], frame.row_bar[test[-1]]
        bars = frame.row_bar[train]
        assert not np.any((bars + HORIZON >= first) & (bars <= last + HORIZON))
        assert np.unique(bars).size > 2000 * 0.6


def test_importance_goes_to_what_was_planted_by_shuffling_and_by_shap() -> None:
    frame, outcome, _ = market(0.3)
    found = fold_importance(frame, [0, 4, 7], outcome, (0, 2000), HORIZON)
    assert found.permutation[0] > 0.1 > np.abs(found.permutation[1:]).max() * 4
    assert found.shap.sum() == pytest.approx(1.0)
    assert found.shap[0] > 0.8
    assert found.shap_spread[0] < 0.1


def test_shap_shares_equal_a_hand_worked_tree() -> None:
    # One split: x > 0 predicts 1, else 0. Both halves hold 100 rows, so the model's mean is 1/2 and the feature that is split
    # on moves each prediction by exactly 1/2; the other one by nothing.
    x = np.column_stack([np.repeat([-1.0, 1.0], 100), np.tile([-1.0, 1.0], 100)]).astype(np.float32)
    parameters = {"objective": "regression", "num_leaves": 2, "learning_rate": 1.0, "min_data_in_leaf": 1, "lambda_l2": 0.0,
                  "verbose": -1, "min_sum_hessian_in_leaf": 0.0}  # fmt: skip
    model = lightgbm.train(parameters, lightgbm.Dataset(x, (x[:, 0] > 0.0).astype(float)), num_boost_round=1)
    parts = np.asarray(model.predict(x, pred_contrib=True))
    np.testing.assert_allclose(parts, np.column_stack([0.5 * x[:, 0], 0.0 * x[:, 1], np.full(200, 0.5)]), atol=1e-7)
    np.testing.assert_allclose(shap_shares(model, x), [1.0, 0.0])


def test_components_equal_scikit_learns_and_read_the_training_rows_only() -> None:
    frame, _, _ = market(0.0)
    rows = slice(0, 12_000)
    ours = fit_reduction("pca", frame, rows, 3)
    assert isinstance(ours, Components)
    x = np.clip((frame.values[rows] - ours.centre) / ours.scale, -5, 5)
    theirs = PCA(3).fit(x)
    np.testing.assert_allclose(np.abs(ours.axes @ theirs.components_.T), np.eye(3), atol=0.05)
    np.testing.assert_allclose(ours.shares, theirs.explained_variance_ratio_, rtol=0.02)
    assert ours.explained(frame.values[rows]) == pytest.approx(float(ours.shares.sum()), abs=1e-3)
    frame.values[12_000:] *= 100.0
    again = fit_reduction("pca", frame, rows, 3)
    assert isinstance(again, Components)
    assert same_bits(again.axes, ours.axes)
    assert ours.apply(frame.values[:4]).shape == (4, 3)
    with pytest.raises(UserError, match="components"):
        fit_reduction("pca", frame, rows, 11)
    with pytest.raises(UserError, match="pca or autoencoder"):
        fit_reduction("magic", frame, rows, 3)


@pytest.mark.slow
def test_an_autoencoder_tells_a_curve_that_components_cannot() -> None:
    pytest.importorskip("torch")
    frame, _, _ = market(0.0)
    rng = np.random.default_rng(4)
    angle = rng.uniform(-2.5, 2.5, frame.n_rows)
    curve = np.column_stack([np.sin((k % 3 + 1) * angle + k) for k in range(10)])
    frame.values[:] = curve + 0.05 * rng.normal(size=frame.values.shape)
    rows = slice(0, 12_000)
    found = fit_reduction("autoencoder", frame, rows, 2)
    straight = fit_reduction("pca", frame, rows, 2)
    later = frame.values[12_000:24_000]
    assert found.explained(later) > straight.explained(later) + 0.1
    frame.values[12_000:] = 9.0
    frame.values[5, 3] = np.nan
    assert np.isfinite(found.apply(frame.values[:9])).all(), "a missing feature counts as its median"
    again = fit_reduction("autoencoder", frame, slice(100, 12_000), 2)
    assert same_bits(fit_reduction("autoencoder", frame, slice(100, 12_000), 2).apply(later), again.apply(later))


@pytest.mark.parametrize("kind", ["pca", "autoencoder"])
def test_a_reduction_is_saved_and_read_bit_for_bit(tmp_path: Path, kind: str) -> None:
    if kind == "autoencoder":
        pytest.importorskip("torch")
    frame, _, _ = market(0.0)
    made = fit_reduction(kind, frame, slice(0, 600), 3)
    save_reduction(tmp_path / "v1.npz", made)
    back = load_reduction(tmp_path / "v1.npz")
    assert (type(back), back.names, back.n_components) == (type(made), frame.names, 3)
    assert same_bits(back.apply(frame.values[:50]), made.apply(frame.values[:50]))
    (tmp_path / "v1.npz").write_bytes(b"no")
    with pytest.raises(UserError, match="features reduce"):
        load_reduction(tmp_path / "v1.npz")


def test_drift_is_small_where_nothing_moved_and_large_where_it_did() -> None:
    frame, _, _ = market(0.0)
    frame.values[30_000:, 4] += 1.0
    frame.values[30_000:, 5] = np.nan
    found = {d.name: d for d in feature_drift(frame, slice(0, 24_000), slice(30_000, 36_000))}
    assert found["F0"].index < 0.02
    assert found["F4"].index > 0.25
    assert (found["F5"].missing_then, found["F5"].missing_now) == (0.0, 1.0)
    assert found["F5"].index > 0.25


class TestSavedSelections:
    SCREENED = tuple(FeatureIc(n, "technical", 0.02, 0.01, 2.0, 0.04, 0.04, 90, 1.0, 1.0) for n in ("RSI14", "MOM24"))
    CHOSEN = Chosen(("RSI14", "MOM24"), SCREENED, {}, {"RSI14": 0.1, "MOM24": 0.2})

    def test_versions_are_kept_and_the_newest_is_used(self, tmp_path: Path) -> None:
        first = save_selection(tmp_path, "mine", self.CHOSEN, {"horizon": 24})
        again = save_selection(tmp_path, "mine", self.CHOSEN, {"horizon": 24})
        other = save_selection(tmp_path, "mine", Chosen(("MOM24",), self.SCREENED, {}, {"MOM24": 0.2}), {"horizon": 24})
        assert (first.name, again.name, other.name) == ("v1.json", "v1.json", "v2.json")
        assert load_selection(tmp_path, "mine") == ("MOM24",)
        assert load_selection(tmp_path, "mine@1") == ("RSI14", "MOM24")
        assert (tmp_path / "mine" / "v1.png").stat().st_size > 5_000

    def test_settings_are_cut_to_the_choice(self) -> None:
        cut = only(FeatureSettings(sets=("technical",)), ("RSI14", "MOM24"), NS_PER_HOUR)
        assert "RSI6" in cut.exclude
        assert not {"RSI14", "MOM24"} & set(cut.exclude)
        with pytest.raises(UserError, match="FEAR_GREED"):
            only(FeatureSettings(sets=("technical",)), ("FEAR_GREED",), NS_PER_HOUR)

    @pytest.mark.parametrize("wanted", ["none", "mine@7", "mine@x", "../mine"])
    def test_what_is_not_there_is_one_clear_line(self, tmp_path: Path, wanted: str) -> None:
        with pytest.raises(UserError):
            load_selection(tmp_path, wanted)

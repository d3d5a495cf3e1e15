"""Trees grown with their rows spread over a Dask cluster are those one machine grows; a worker's death costs time, no tree."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.feature_engineering.feature_files import save_feature_frame
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling.evaluate_model import evaluate_model
from crypto_qlib.modeling.fold_workers import train_chosen
from crypto_qlib.modeling.labels import TradeRule, make_labels
from crypto_qlib.modeling.models import lightgbm_cluster
from crypto_qlib.modeling.models.lightgbm_cluster import shares_of, starting_score
from crypto_qlib.modeling.models.lightgbm_rounds import best_round
from crypto_qlib.modeling.train_model import predict_scores
from crypto_qlib.settings.schema import ModelSettings
from tests.modeling.conftest import SETS, model_settings
from tests.noise_market import noise_panel

PANEL = noise_panel(900, 12, seed=11, planted=0.15, with_gaps=True)
FRAME = build_features(PANEL, SETS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Return a cluster of two worker processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1") as found:
        yield found


def fitted(settings: ModelSettings, folder: Path, told: list[float] | None = None) -> Any:
    """Return (model, its test scores) of the planted market, trained as `crypto-qlib train` does."""
    labels = make_labels(PANEL, settings)
    save_feature_frame(FRAME, folder / "features")
    model = train_chosen(
        folder / "features", FRAME, labels, settings, folder / "model", identity="r", rule=TradeRule(),
        progress=(told if told is not None else []).append,
    )  # fmt: skip
    return model, predict_scores(model, FRAME, segment="test").expected_return


def splits_of(model: Any) -> list[tuple[Any, ...]]:
    """Return every split of the kept trees: tree, feature, threshold."""
    trees = model.predictor.booster.trees_to_dataframe().dropna(subset=["split_feature"])
    trees = trees[trees["tree_index"] < model.predictor.diagnostics()["trees"]]
    return list(trees[["tree_index", "split_feature", "threshold"]].itertuples(index=False, name=None))


@pytest.mark.slow
class TestOnACluster:
    def test_regression_grows_the_trees_of_one_machine(self, cluster: Any, tmp_path: Path) -> None:
        told: list[float] = []
        here, alone = fitted(model_settings(), tmp_path / "here")
        spread, together = fitted(model_settings(dask=cluster.scheduler_address), tmp_path / "spread", told)
        assert spread.predictor.diagnostics()["trees"] == here.predictor.diagnostics()["trees"]
        assert splits_of(spread) == splits_of(here)
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6 * float(np.nanstd(alone)))
        assert sum(told) == pytest.approx(1.0)
        left = {p.name for p in (tmp_path / "spread" / "model").iterdir()}
        assert not left & {"features", lightgbm_cluster.ROWS_FILE}, "what the workers read is removed"

    @pytest.mark.parametrize(
        "changes", [{"objective": "classification", "sample_weight": "uniqueness"}, {"objective": "ranking"}], ids=str
    )
    def test_other_losses_grow_the_same_trees_on_two_workers_and_on_three(
        self, changes: dict[str, str], cluster: Any, tmp_path: Path
    ) -> None:
        settings = model_settings(**changes, dask=cluster.scheduler_address, num_boost_round=15)
        two, scores = fitted(settings, tmp_path / "two")
        cluster.scale(3)
        cluster.wait_for_workers(3)
        three, again = fitted(settings, tmp_path / "three")
        cluster.scale(2)
        assert splits_of(two) == splits_of(three)
        np.testing.assert_allclose(again, scores, rtol=0, atol=1e-6 * float(np.nanstd(scores)))
        panel = ScorePanel(FRAME.known_at_ns[-scores.shape[0] :], FRAME.symbols, scores, np.abs(scores), np.abs(scores))
        found = evaluate_model(panel, make_labels(PANEL, settings)).rank_ic
        assert found.mean > 3.0 * found.standard_error, (
            "leaves are counted in another way there; the signal is found all the same"
        )

    def test_a_worker_killed_in_training_costs_no_tree(self, cluster: Any, tmp_path: Path) -> None:
        settings = model_settings(dask=cluster.scheduler_address, num_boost_round=60)
        killed: list[int] = []

        class KillAtTheFirstTree(list[float]):
            def append(self, share: float) -> None:
                super().append(share)
                if not killed:
                    killed.append(next(iter(cluster.workers.values())).process.pid)
                    os.kill(killed[0], signal.SIGKILL)

        told = KillAtTheFirstTree()
        _, scores = fitted(settings, tmp_path / "killed", told)
        _, whole = fitted(settings.model_copy(update={"dask": ""}), tmp_path / "here")
        assert killed
        np.testing.assert_allclose(scores, whole, rtol=0, atol=1e-6 * float(np.nanstd(whole)))
        assert sum(told) == pytest.approx(1.0), "progress is told once, however often the trees are grown"

    def test_a_cluster_that_loses_workers_again_and_again_is_one_clear_line(
        self, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lightgbm_cluster, "ATTEMPTS", 1)

        class Kill(list[float]):
            def append(self, share: float) -> None:
                os.kill(next(iter(cluster.workers.values())).process.pid, signal.SIGKILL)

        with pytest.raises(UserError, match="Dask workers were lost in 1 trainings"):
            fitted(model_settings(dask=cluster.scheduler_address, num_boost_round=60), tmp_path, Kill())

    def test_a_scheduler_without_workers_is_one_clear_line(self, tmp_path: Path) -> None:
        distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
        with (
            distributed.LocalCluster(n_workers=0, dashboard_address=":0", host="127.0.0.1") as empty,
            pytest.raises(UserError, match="has no workers"),
        ):
            fitted(model_settings(dask=empty.scheduler_address), tmp_path)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 8))
def test_shares_are_whole_bars_that_cover_every_row_once(sizes: list[int], n: int) -> None:
    bar = np.repeat(np.arange(len(sizes)), sizes)
    spans = shares_of(bar, n)
    assert spans[0][0] == 0
    assert spans[-1][1] == bar.size
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(a < b for a, b in spans)
    assert len(spans) <= n
    assert all(bar[b - 1] != bar[b] for _, b in spans[:-1])


@pytest.mark.parametrize(
    ("scores", "kept", "looked_at"),
    [
        ([0.1, 0.3, 0.2, 0.2], 2, 4),  # two rounds without a better one end it
        ([0.1, 0.3, 0.2, 0.2, 0.9], 2, 4),  # what comes after is never seen
        ([0.1, 0.2, 0.3], 3, 3),
        ([0.3, 0.3, 0.3], 1, 3),  # equal is not better
    ],
)
def test_the_trees_kept_are_those_of_early_stopping(scores: list[float], kept: int, looked_at: int) -> None:
    best, so_far = best_round(np.array(scores), 2)
    assert (best, len(so_far)) == (kept, looked_at)


@pytest.mark.parametrize("objective", ["regression", "binary"])
def test_the_starting_score_is_lightgbms_own(objective: str) -> None:
    rng = np.random.default_rng(5)
    label = (rng.random(500) > 0.3).astype(float) if objective == "binary" else rng.normal(0.4, 1.0, 500)
    weight = rng.random(500)
    data = lgb.Dataset(np.zeros((500, 1)), label=label, weight=weight)
    constant = lgb.train({"objective": objective, "verbosity": -1}, data, 1).predict(np.zeros((1, 1)), raw_score=True)[0]
    name = {"binary": "classification"}.get(objective, objective)
    assert starting_score(name, label, weight) == pytest.approx(constant, rel=1e-9)
    assert np.isnan(starting_score("ranking", label, weight))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "linear"}, "one LightGBM"),
        ({"per_symbol": True}, "one LightGBM"),
        ({"rolling": {"step_bars": 50, "dask": "tcp://a:1"}}, "give each a step"),
        ({"rolling": {"step_bars": 50, "workers": 2}}, "give each a step"),
    ],
)
def test_what_a_cluster_cannot_spread_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelSettings.model_validate({"dask": "tcp://127.0.0.1:1"} | changes)
    assert ModelSettings.model_validate({"dask": "tcp://127.0.0.1:1", "name": "ensemble"}).dask

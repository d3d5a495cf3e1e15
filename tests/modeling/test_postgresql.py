"""The registry in MLflow and the search of Optuna on a real PostgreSQL server, addressed as the settings say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import qlib
from qlib.workflow import R
from sqlalchemy.pool import NullPool

from crypto_qlib.core.clock import ManualClock
from crypto_qlib.core.errors import UserError
from crypto_qlib.data_collector.qlib_data_adapter import recorder_config
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.modeling.evaluate_model import evaluate_model
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.splits import split_bars
from crypto_qlib.modeling.train_model import predict_scores, train_model
from crypto_qlib.modeling.tuning import JOURNAL_FILE, tune
from crypto_qlib.scheduler.model_shelf import Market, ModelShelf
from crypto_qlib.settings.schema import FeatureSettings, ModelSettings
from crypto_qlib.store.paths import Paths
from crypto_qlib.store.tracking_database import server_address
from tests.modeling.conftest import model_settings
from tests.noise_market import noise_panel
from tests.postgres_server import PASSWORD, Postgres

PANEL = noise_panel(700, 8, seed=4, planted=0.3)
SMALL = {"horizon_bars": 4, "embargo_bars": 4, "num_boost_round": 15, "min_data_in_leaf": 50}
FRAME = build_features(PANEL, FeatureSettings(sets=("technical",)))


@pytest.fixture
def address(postgres: Postgres, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return an empty database's address without its password, which lies in the environment."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # no connection outlives its test
    return postgres.place(request.node.name.lower()[:40]).address


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow on SQLAlchemy 2.1
def test_train_record_promote_and_roll_back_on_postgresql(address: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

    from crypto_qlib.modeling.mlflow_registry import EXPERIMENT, NAME  # noqa: PLC0415

    lax = {"min_test_bars": 1, "min_rank_ic_t": -99.0, "max_calibration_error": 1.0}
    settings = ModelSettings.model_validate({"tracking": address, "promotion": lax})
    paths = Paths(tmp_path)
    shelf = ModelShelf(paths, settings, ManualClock(1_700_000_000 * 10**9))
    market = Market(FRAME, lambda chosen: make_labels(PANEL, chosen), PANEL)
    for name, rounds in (("aaa1", 5), ("bbb2", 15)):
        chosen = model_settings(**SMALL | {"num_boost_round": rounds})
        model = train_model(FRAME, make_labels(PANEL, chosen), chosen, paths.models / name, identity=name)
        labels = make_labels(PANEL, chosen)
        shelf.consider(name, evaluate_model(predict_scores(model, FRAME, segment="test"), labels), market)
    client = MlflowClient(tracking_uri=server_address(address), registry_uri=server_address(address))

    def champion() -> str:
        return str(client.get_model_version_by_alias(NAME, "champion").tags["run_id"])

    assert champion() == "bbb2"
    shelf.promoted("aaa1", market)
    assert champion() == "aaa1"
    shelf.rolled_back("worse than it looked")
    assert champion() == "bbb2"
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"aaa1", "bbb2"}
    assert runs["bbb2"].data.params["num_boost_round"] == "15"
    assert not list(tmp_path.glob("**/*.sqlite")), "nothing is kept beside the server"

    qlib.init(provider_uri=str(tmp_path), region="us", kernels=1, logging_level=30,
              exp_manager=recorder_config(paths.mlflow, tracking=address))  # fmt: skip
    found = R.list_recorders(experiment_name=EXPERIMENT)
    assert {r.name for r in found.values()} == {"aaa1", "bbb2"}, "a Qlib user sees the trainings on the server"
    with R.start(experiment_name="mine"):
        R.save_objects(answer=[42])
    (mine,) = R.list_recorders(experiment_name="mine").values()
    assert mine.load_object("answer") == [42]
    assert list(paths.mlflow.with_name("mlflow_files").glob("mine/*/artifacts/answer")), "files lie in the workspace"


@pytest.mark.slow
def test_a_search_on_postgresql_goes_on_where_it_was_killed(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = model_settings(**SMALL, tuning={"trials": 4, "storage": address})
    labels = make_labels(PANEL, settings)
    split = split_bars(FRAME.n_bars, settings, labels.horizon_bars)
    real, made = optuna.Trial.report, []

    def killed(trial: optuna.Trial, value: float, step: int) -> None:
        made.append(trial.number)
        if trial.number == 2 and len(set(made)) == 3 and made.count(2) == 1:
            raise KeyboardInterrupt
        real(trial, value, step)

    monkeypatch.setattr(optuna.Trial, "report", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(FRAME, labels, settings, tmp_path / "a", split)
    there = tune(FRAME, labels, settings, tmp_path / "another machine", split)
    assert not (tmp_path / "a" / JOURNAL_FILE).exists()
    kept = optuna.storages.RDBStorage(server_address(address), engine_kwargs={"poolclass": NullPool})
    study = optuna.load_study(study_name=None, storage=kept)
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(ended) == there.n_trials == 4
    assert sum(t.state.name == "FAIL" for t in study.trials) == 1, "the trial that was cut off is given up"
    beside = settings.model_copy(update={"tuning": settings.tuning.model_copy(update={"storage": ""})})
    here = tune(FRAME, labels, beside, tmp_path / "journal", split)
    assert here.n_trials == there.n_trials
    np.testing.assert_allclose(there.validation_ic, max(t.value for t in ended), rtol=1e-12)


class TestAServerThatIsNot:
    ADDRESS = "postgresql://me@127.0.0.1:9/nowhere"

    def test_tuning_says_so_in_one_line(self, tmp_path: Path) -> None:
        settings = model_settings(**SMALL, tuning={"trials": 1, "storage": self.ADDRESS})
        with pytest.raises(UserError, match=r"the database of model\.tuning\.storage cannot be used: .*9"):
            train_model(FRAME, make_labels(PANEL, settings), settings, tmp_path)

    def test_so_does_the_registry(self, tmp_path: Path) -> None:
        from crypto_qlib.modeling.mlflow_registry import mirror, tracking_uri  # noqa: PLC0415

        with pytest.raises(UserError, match=r"the database of model\.tracking cannot be used"):
            mirror(tmp_path, tracking_uri(self.ADDRESS, tmp_path / "unused"))

    def test_a_wrong_password_too(self, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPASSWORD", "wrong")
        settings = model_settings(**SMALL, tuning={"trials": 1, "storage": postgres.place("refused").address})
        with pytest.raises(UserError, match="password authentication failed") as caught:
            train_model(FRAME, make_labels(PANEL, settings), settings, tmp_path)
        assert "PGPASSWORD" in caught.value.hint

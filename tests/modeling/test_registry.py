"""Versions, promotion by rules, rollback, export, and the same state in MLflow's registry."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.analytics.ic import IcSummary
from crypto_qlib.core.clock import ManualClock
from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.artefact import load_model
from crypto_qlib.modeling.compare_models import Compared, Comparison
from crypto_qlib.modeling.evaluate_model import ModelPerformance, evaluate_model
from crypto_qlib.modeling.labels import make_labels
from crypto_qlib.modeling.promotion import judge
from crypto_qlib.modeling.registry import (
    JOURNAL_FILE,
    champion_id,
    count_trials,
    export_model,
    find_version,
    list_models,
    load_champion,
    promote,
    promotions,
    rollback,
    set_challenger,
)
from crypto_qlib.modeling.rolling import copy_artefact
from crypto_qlib.modeling.train_model import predict_scores, train_model
from crypto_qlib.scheduler.model_shelf import Market, ModelShelf
from crypto_qlib.settings.model_schema import PromotionSettings
from crypto_qlib.settings.schema import ModelSettings
from crypto_qlib.store.paths import Paths
from tests.modeling.conftest import Trained

RULES = PromotionSettings()


@pytest.fixture
def models(trained: Trained, tmp_path: Path) -> Path:
    """Three versions: aaa1, aab2, bbb3."""
    for name in ("aaa1", "aab2", "bbb3"):
        (tmp_path / "models" / name).mkdir(parents=True)
        copy_artefact(trained.folder, tmp_path / "models" / name)
    return tmp_path / "models"


class TestVersions:
    def test_they_are_found_by_their_beginning_and_by_their_role(self, models: Path) -> None:
        promote(models, "aab2")
        set_challenger(models, "bbb3")
        names = ["aaa1", "bb", "champion", "challenger"]
        assert [find_version(models, n) for n in names] == ["aaa1", "bbb3", "aab2", "bbb3"]
        assert [(v.run_id, v.is_champion, v.is_challenger) for v in list_models(models)] == [
            ("aaa1", False, False),
            ("aab2", True, False),
            ("bbb3", False, True),
        ]

    @pytest.mark.parametrize(
        ("given", "words"), [("aa", "begins 2"), ("zzz", "no model version"), ("champion", "no champion yet")]
    )
    def test_a_name_that_fits_none_or_several_is_refused(self, models: Path, given: str, words: str) -> None:
        with pytest.raises(UserError, match=words):
            find_version(models, given)

    def test_the_challenger_that_is_promoted_is_challenger_no_more(self, models: Path) -> None:
        set_challenger(models, "bbb3")
        promote(models, "bbb3")
        with pytest.raises(UserError, match="no challenger yet"):
            find_version(models, "challenger")


def test_a_damaged_version_is_listed_as_such(models: Path) -> None:
    (models / "aaa1" / "model.json").write_text("{}")
    assert list_models(models)[0].name == "damaged"


class TestRollback:
    def test_it_goes_back_step_by_step_and_not_to_and_fro(self, models: Path) -> None:
        for run_id in ("aaa1", "aab2", "bbb3"):
            promote(models, run_id)
        assert rollback(models) == "aab2"
        assert rollback(models, reason="worse still") == "aaa1"
        assert champion_id(models) == "aaa1"
        assert promotions(models)[-1].evidence == {"reason": "worse still"}
        with pytest.raises(UserError, match="no earlier champion"):
            rollback(models)
        promote(models, "bbb3")
        assert rollback(models) == "aaa1"

    def test_a_damaged_predecessor_is_not_gone_back_to(self, models: Path) -> None:
        promote(models, "aaa1")
        promote(models, "aab2")
        (models / "aaa1" / "model.json").write_text("{}")
        with pytest.raises(UserError, match="was changed since training"):
            rollback(models)
        assert champion_id(models) == "aab2"

    def test_a_torn_last_line_of_the_journal_is_passed_over(self, models: Path) -> None:
        promote(models, "aaa1")
        with (models / JOURNAL_FILE).open("a") as journal:
            journal.write('{"at_ns": 1, "run')
        assert [p.run_id for p in promotions(models)] == ["aaa1"]

    def test_a_broken_line_in_the_middle_stops_everything(self, models: Path) -> None:
        (models / JOURNAL_FILE).write_text("no json\n{}\n")
        with pytest.raises(UserError, match="line 1"):
            rollback(models)


def test_export_packs_what_load_reads(models: Path, tmp_path: Path) -> None:
    target = export_model(models, "aaa1", tmp_path / "out" / "model.zip")
    with zipfile.ZipFile(target) as packed:
        packed.extractall(tmp_path / "again")
    assert load_model(tmp_path / "again").sha256 == load_model(models / "aaa1").sha256
    with pytest.raises(UserError, match="exists already"):
        export_model(models, "aaa1", target)
    with pytest.raises(UserError, match=r"should end in \.zip"):
        export_model(models, "aaa1", tmp_path / "model.tar")


class TestGate:
    def performance(self, t: float = 4.0, n: int = 500, error: float = 0.02) -> ModelPerformance:
        rank = IcSummary(t * 0.01, 0.01, 0.3, n)
        return ModelPerformance("a", "b", 24, 1000, rank, rank, rank, 0.55, error, 1.0, ())

    def against(self, p_noise: float) -> Comparison:
        none = IcSummary(0.0, 0.0, 0.0, 100)
        rows = (Compared("champion", none, none, float("nan")), Compared("new", none, none, p_noise))
        return Comparison(rows, 100, 2, 0.1)

    def test_a_good_model_passes(self) -> None:
        assert judge(self.performance(), RULES).is_fit

    @pytest.mark.parametrize(
        ("rule", "found"),
        [
            ("min_rank_ic_t", {"t": 1.9}),
            ("min_test_bars", {"n": 99}),
            ("max_calibration_error", {"error": 0.2}),
            ("min_rank_ic_t", {"t": float("nan")}),
        ],
    )
    def test_each_rule_alone_keeps_a_model_out(self, rule: str, found: dict[str, float]) -> None:
        verdict = judge(self.performance(**found), RULES)  # type: ignore[arg-type]
        assert not verdict.is_fit
        assert [r.rule for r in verdict.rulings if not r.is_met] == [rule]
        json.dumps(verdict.evidence(), allow_nan=False)

    def test_a_champion_that_is_clearly_better_stays(self) -> None:
        assert not judge(self.performance(), RULES, self.against(0.01), "new").is_fit
        assert judge(self.performance(), RULES, self.against(0.5), "new").is_fit
        assert judge(self.performance(), RULES, self.against(0.5), "champion").is_fit, "the better of the two"


@pytest.fixture
def shelf(models: Path) -> ModelShelf:
    return ModelShelf(Paths(models.parent), ModelSettings(tracking="off"), ManualClock(1_700_000_000 * 10**9))


@pytest.fixture
def market(trained: Trained) -> Market:
    return Market(trained.frame, lambda chosen: make_labels(trained.panel, chosen), trained.panel)


class TestShelf:
    def test_a_fit_model_becomes_champion_with_its_evidence(
        self, shelf: ModelShelf, market: Market, trained: Trained, models: Path
    ) -> None:
        found = evaluate_model(predict_scores(trained.model, trained.frame, segment="test"), trained.labels)
        strong = replace(
            found, rank_ic=replace(found.rank_ic, mean=0.2, standard_error=0.02, n_bars=300), calibration_error=0.0
        )
        assert "is the new champion" in shelf.consider("aaa1", strong, market).lines[0]
        assert promotions(models)[0].evidence["is_fit"] is True
        assert promotions(models)[0].at_ns == 1_700_000_000 * 10**9
        weak = replace(found, rank_ic=replace(found.rank_ic, mean=0.0))
        said = shelf.consider("aab2", weak, market).lines
        assert "stays challenger" in said[0]
        assert any("min_rank_ic_t asks for 2" in line for line in said)
        assert (champion_id(models), find_version(models, "challenger")) == ("aaa1", "aab2")

    def test_promotion_against_the_rules_needs_a_reason_which_is_kept(self, models: Path, market: Market) -> None:
        chosen = ModelSettings.model_validate({"tracking": "off", "promotion": {"min_rank_ic_t": 99}})
        strict = ModelShelf(Paths(models.parent), chosen)
        with pytest.raises(UserError, match=r"not fit to be champion: failed: .*min_rank_ic_t asks for 99"):
            strict.promoted("aaa", market)
        assert champion_id(models) is None
        strict.promoted("aaa", market, "because I say so")
        assert promotions(models)[0].evidence["forced"] == "because I say so"
        assert "because I say so" in "\n".join(strict.shown("aaa1").lines)

    def test_a_champion_that_cannot_be_compared_is_said_and_kept_in_the_evidence(self, models: Path, market: Market) -> None:
        promote(models, "aaa1")
        (models / "aaa1" / "model.json").write_text("{}")
        lax = {"min_rank_ic_t": -99, "min_test_bars": 1, "max_calibration_error": 1}
        shelf = ModelShelf(Paths(models.parent), ModelSettings.model_validate({"tracking": "off", "promotion": lax}))
        shelf.promoted("aab2", market)
        assert "was changed since training" in promotions(models)[-1].evidence["not_compared"]

    def test_twins_compare_as_equals(self, shelf: ModelShelf, market: Market) -> None:
        text = "\n".join(shelf.compared((), market).lines)
        assert "best of 3 tried" in text
        assert text.count("RankIC") == 3

    def test_trials_of_a_search_count(self, models: Path) -> None:
        meta = json.loads((models / "aaa1" / "model.json").read_text())
        (models / "aaa1" / "model.json").write_text(json.dumps(meta | {"tuning": {"n_trials": 30}}))
        assert count_trials(models) == 30 + 2

    def test_a_session_trades_what_the_settings_say(self, models: Path, trained: Trained) -> None:
        def shelf(trades: str) -> ModelShelf:
            return ModelShelf(Paths(models.parent), ModelSettings.model_validate({"tracking": "off", "trades": trades}))

        with pytest.raises(UserError, match="no champion model"):
            shelf("champion").trading(lambda: trained.model, is_embedded=True)
        promote(models, "aaa1")
        held = shelf("champion").trading(lambda: trained.model, is_embedded=True)
        promote(models, "aab2")
        again = shelf("auto").trading(lambda: trained.model, is_embedded=False)
        assert held.sha256 == again.sha256 == trained.model.sha256, "twins by content"
        assert held is not again
        rollback(models)
        np.testing.assert_array_equal(
            predict_scores(held, trained.frame).expected_return, predict_scores(trained.model, trained.frame).expected_return
        )
        assert shelf("trained").trading(lambda: trained.model, is_embedded=False) is trained.model
        assert shelf("auto").trading(lambda: trained.model, is_embedded=True) is trained.model

    def test_one_model_is_no_comparison(self, shelf: ModelShelf, market: Market) -> None:
        with pytest.raises(UserError, match="no two models"):
            shelf.compared(("aaa1",), market)

    def test_show_verifies_the_files(self, shelf: ModelShelf, models: Path) -> None:
        assert any("files verified" in line for line in shelf.shown("bbb3").lines)
        (models / "bbb3" / "model.json").write_text("{}")
        with pytest.raises(UserError, match="was changed since training"):
            shelf.shown("bbb3")


def test_a_version_whose_features_are_gone_says_so(trained: Trained, models: Path) -> None:
    promote(models, "aaa1")
    gone = replace(trained.frame, names=("OTHER", *trained.frame.names[1:]))
    with pytest.raises(UserError, match="features the model needs do not exist"):
        predict_scores(load_champion(models), gone)


def test_the_same_bits_come_of_the_same_inputs(trained: Trained, tmp_path: Path) -> None:
    again = train_model(trained.frame, trained.labels, trained.settings, tmp_path, identity="run0")
    assert again.sha256 == trained.model.sha256


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow on SQLAlchemy 2.1
def test_mlflow_shows_the_same_versions_and_aliases(models: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

    from crypto_qlib.modeling.mlflow_registry import EXPERIMENT, NAME, mirror, tracking_uri, without_password  # noqa: PLC0415

    uri = tracking_uri("", tmp_path / "mlflow.sqlite")
    promote(models, "aaa1")
    set_challenger(models, "bbb3")
    assert mirror(models, uri) == 3
    assert mirror(models, uri) == 0, "repeating it adds nothing"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    champion = client.get_model_version_by_alias(NAME, "champion")
    assert champion.tags["run_id"] == "aaa1"
    assert champion.tags["sha256"] == load_model(models / "aaa1").sha256
    assert {"environment", "segments", "family", "features"} <= set(champion.tags)
    promote(models, "bbb3")
    mirror(models, uri)
    assert client.get_model_version_by_alias(NAME, "champion").tags["run_id"] == "bbb3"
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"aaa1", "aab2", "bbb3"}, "a run for each training, none twice"
    assert runs["aaa1"].info.status == "FINISHED"
    assert runs["aaa1"].data.params["net.hidden"] == "32"
    assert champion.run_id == runs["aaa1"].info.run_id
    assert "rank_ic.mean" not in runs["aaa1"].data.metrics
    (models / "aaa1" / "model_performance_report.json").write_text('{"rank_ic": {"mean": 0.05, "t_stat": 3.0}}')
    mirror(models, uri)
    assert client.get_run(champion.run_id).data.metrics["rank_ic.mean"] == 0.05, "evaluated after it was recorded"
    assert "challenger" not in client.get_registered_model(NAME).aliases
    assert without_password("postgresql://me:secret@db/x") == "postgresql://me:***@db/x"

"""``crypto-qlib features`` as its user, on a small market: build, measure, select, reduce, watch for drift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command_line import Ended, Run
from tests.scheduler.conftest import SMALL

pytestmark = pytest.mark.slow

SETS = "features.sets=[technical, btc_relative, sentiment]"


def asked(cli: Run, *command: str, sets: tuple[str, ...] = ()) -> Ended:
    chosen = [x for value in (*SMALL, SETS, *sets) for x in ("--set", value)]
    return cli(*command, *chosen)


def test_features_from_the_bars_to_a_choice_that_is_used(cli: Run) -> None:
    for step in (("universe",), ("data", "update"), ("data", "check")):
        ended = asked(cli, *step)
        assert ended.code == 0, ended.err
    built = asked(cli, "features", "build")
    assert "no fear_greed is known: left out FEAR_GREED" in built.err + built.out
    assert "features: 96 for" in built.out

    measured = asked(cli, "features", "ic", "--segment", "train").out
    assert "RankIC in the train segment" in measured
    assert "technical" in measured
    assert "btc_relative" in measured
    assert "no feature of moon was built" in asked(cli, "features", "ic", "--group", "moon").err

    # A few weeks of ten coins leave nothing after the correction; the rate is opened, the steps are what is tested.
    selected = asked(cli, "features", "select", "--name", "mine", "--most", "6", "--false-discoveries", "1").out
    assert "saved as mine@1" in selected
    assert "keep the sign of their RankIC in the test segment" in selected
    (saved,) = Path("workspace").rglob("mine/v1.json")
    document = json.loads(saved.read_text())
    assert len(document["names"]) == 6
    assert set(document["shap"]) == set(document["periods"]) == set(document["names"])
    assert sum(share for share, _ in document["shap"].values()) == pytest.approx(1.0)
    assert saved.with_suffix(".png").stat().st_size > 20_000
    again = asked(cli, "features", "build", sets=("features.selection=mine",))
    assert "features: 6 for" in again.out
    assert "there is no selection other" in asked(cli, "features", "build", sets=("features.selection=other",)).err

    reduced = asked(cli, "features", "reduce", "--kind", "pca", "--components", "4", "--name", "four").out
    assert "96 features as 4 numbers" in reduced
    assert next(Path("workspace").rglob("four/v1.npz")).stat().st_size > 1_000
    assert "choose pca or autoencoder" in asked(cli, "features", "reduce", "--kind", "magic").err

    drift = asked(cli, "features", "drift", "--days", "5").out
    assert "stability index of the last 5 days against training" in drift

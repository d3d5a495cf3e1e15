"""The run id changes with everything that can change a result, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crypto_qlib.settings.fields import leaves
from crypto_qlib.settings.identity import (
    WITHOUT_EFFECT,
    Identity,
    code_identity,
    has_no_effect,
    identity,
    run_identity,
    settings_identity,
    source_identity,
)
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings

BASE = Identity(data="d", code="c", settings="s", model="m", seed=1)


def settings_with(*flags: str) -> Settings:
    return load_settings(None, flags, {})


def test_the_same_five_parts_give_the_same_id() -> None:
    assert BASE.run_id == Identity("d", "c", "s", "m", 1).run_id
    assert len(BASE.run_id) == 16
    assert int(BASE.run_id, 16) >= 0


CHANGED = [
    ("data", Identity("d2", "c", "s", "m", 1)),
    ("code", Identity("d", "c2", "s", "m", 1)),
    ("settings", Identity("d", "c", "s2", "m", 1)),
    ("model", Identity("d", "c", "s", "m2", 1)),
    ("seed", Identity("d", "c", "s", "m", 2)),
    ("parts are not run together", Identity("dc", "", "s", "m", 1)),
]


@pytest.mark.parametrize(("reason", "other"), CHANGED, ids=[row[0] for row in CHANGED])
def test_any_changed_part_gives_another_id(reason: str, other: Identity) -> None:
    assert other.run_id != BASE.run_id, reason


EFFECT = ["strategy.leverage=4", "backtest.costs.taker_fee=0.0004", "model.seed=8", "data.frame=4h", "universe.include=BTC"]
NO_EFFECT = [
    "store.root=elsewhere",
    "monitoring.log_level=DEBUG",
    "exchange.port=8650",
    "model.threads=2",
    "data.concurrency=2",
]


@pytest.mark.parametrize("flag", EFFECT)
def test_a_setting_that_can_change_a_result_changes_the_identity(flag: str) -> None:
    assert settings_identity(settings_with(flag)) != settings_identity(Settings())


@pytest.mark.parametrize("flag", NO_EFFECT)
def test_a_setting_that_cannot_change_a_result_leaves_the_identity(flag: str) -> None:
    assert settings_identity(settings_with(flag)) == settings_identity(Settings())


def test_every_exception_names_a_setting_there_is() -> None:
    for name in WITHOUT_EFFECT:
        assert any(key == name or (name.endswith(".") and key.startswith(name)) for key in leaves()), name


def test_an_exception_does_not_reach_a_longer_name() -> None:
    assert has_no_effect("store.root")
    assert not has_no_effect("data.concurrency_limit")


def test_where_the_sources_lie_is_no_part_of_the_code(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "room").mkdir(parents=True)
        (tmp_path / folder / "room" / "x.py").write_text("x = 1\n")
    assert source_identity(tmp_path / "a") == source_identity(tmp_path / "b")


SOURCE_CHANGES = [
    ("an edited line", lambda folder: (folder / "x.py").write_text("x = 2\n")),
    ("a new file", lambda folder: (folder / "y.py").write_text("")),
    ("a renamed file", lambda folder: (folder / "x.py").rename(folder / "z.py")),
]


@pytest.mark.parametrize(("reason", "change"), SOURCE_CHANGES, ids=[row[0] for row in SOURCE_CHANGES])
def test_any_change_of_the_sources_changes_the_code(reason: str, change: object, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("x = 1\n")
    before = source_identity(tmp_path)
    assert callable(change)
    change(tmp_path)
    assert source_identity(tmp_path) != before, reason


def test_the_stamp_is_json_and_carries_all_parts() -> None:
    made = identity("data-1", Settings(), "model-1", 7)
    stamp = json.loads(json.dumps(made.stamp()))
    assert stamp["run_id"] == run_identity("data-1", code_identity(), Settings(), "model-1", 7)
    assert {"data", "code", "settings", "model", "seed", "version"} <= set(stamp)

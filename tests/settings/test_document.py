"""The written forms of the settings agree with the schema they are made from."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crypto_qlib.settings.document import commented_yaml, flat_values, json_schema, values_yaml, yaml_value
from crypto_qlib.settings.fields import leaves, sections
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings

SECTIONS = "universe data external features news model strategy backtest exchange live alerts monitoring scheduler store"


def loaded(text: str, folder: Path) -> Settings:
    path = folder / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, [], {})


def test_the_sections_are_the_agreed_ones() -> None:
    assert [name for name, _ in sections() if "." not in name] == SECTIONS.split()


@pytest.mark.parametrize("key", list(leaves()))
def test_every_setting_says_what_it_is(key: str) -> None:
    description = leaves()[key].info.description or ""
    assert len(description.split()) >= 2
    assert description.endswith(".")
    assert leaves()[key].allowed()


def test_a_written_file_with_every_default_changes_nothing(tmp_path: Path) -> None:
    assert loaded(commented_yaml(), tmp_path) == Settings()


def test_a_written_file_names_every_setting_and_explains_it() -> None:
    text = commented_yaml()
    tree = yaml.safe_load(text)
    for key, leaf in leaves().items():
        node = tree
        for part in key.split("."):
            node = node[part]
        assert " ".join((leaf.info.description or "").split()) in " ".join(text.replace("#", " ").split())


def test_every_line_of_a_written_file_fits_a_screen() -> None:
    assert max(len(line) for line in commented_yaml().splitlines()) <= 120


def test_settings_shown_and_loaded_again_are_the_same(tmp_path: Path) -> None:
    flags = ["universe.include=[ON, BTC]", "store.root=a: b #c", "data.since=2024-01-31", "backtest.costs.taker_fee=1e-3"]
    settings = load_settings(None, flags, {})
    assert loaded(values_yaml(settings), tmp_path) == settings


@given(st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**9), 10**9), st.none()))
def test_a_value_survives_its_line_in_a_file(value: float | None) -> None:
    assert yaml.safe_load(yaml_value(value)) == value


def test_the_json_schema_accepts_the_defaults_and_the_written_file() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(Settings().model_dump(mode="json"))
    validator.validate(yaml.safe_load(commented_yaml()))


SCHEMA_REFUSES = [
    ("unknown key", {"universe": {"sise": 3}}),
    ("unknown section", {"univers": {}}),
    ("out of range", {"strategy": {"leverage": 500}}),
    ("no such choice", {"data": {"frame": "2h"}}),
]


@pytest.mark.parametrize(("reason", "tree"), SCHEMA_REFUSES, ids=[row[0] for row in SCHEMA_REFUSES])
def test_the_json_schema_refuses_what_loading_refuses(reason: str, tree: dict[str, object]) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tree), reason


def test_flat_values_hold_every_setting_once() -> None:
    assert list(flat_values(Settings())) == list(leaves())

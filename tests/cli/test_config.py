"""``crypto-qlib config``: what it writes can be read again, and it never shows a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings
from tests.cli.command_line import Run


def test_init_writes_a_file_that_changes_nothing(cli: Run) -> None:
    assert cli("config", "init").code == 0
    assert load_settings(Path("config.yaml"), [], {}) == Settings()
    assert cli("config", "check").out.strip() == "settings are valid (config.yaml)"


def test_init_overwrites_only_when_told_to(cli: Run) -> None:
    Path("mine.yaml").write_text("universe: {size: 3}")
    refused = cli("config", "init", "mine.yaml")
    assert refused.code == 2
    assert "mine.yaml exists already" in refused.error_line
    assert Path("mine.yaml").read_text() == "universe: {size: 3}"
    assert cli("config", "init", "mine.yaml", "--force").code == 0
    assert "universe:" in Path("mine.yaml").read_text()


def test_init_into_no_folder_is_one_line(cli: Run) -> None:
    ended = cli("config", "init", "nowhere/config.yaml")
    assert ended.code == 2
    assert "cannot write nowhere/config.yaml" in ended.error_line


def test_show_prints_what_is_in_force_as_a_settings_file(cli: Run) -> None:
    ended = cli("config", "show", "--set", "backtest.costs.taker_fee=0.001", "--set", "universe.include=[ON]")
    tree = yaml.safe_load(ended.out)
    assert tree["backtest"]["costs"]["taker_fee"] == 0.001
    assert tree["universe"]["include"] == ["ON"]


def test_show_tells_of_secrets_only_that_they_are_set(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OKX_API_SECRET", "hush-hush-1")
    ended = cli("config", "show")
    assert "OKX_API_SECRET: set" in ended.out
    assert "OKX_API_KEY: not set" in ended.out
    assert "hush" not in ended.out + ended.err


def test_check_names_the_line_of_the_problem(cli: Run) -> None:
    Path("config.yaml").write_text("universe:\n  size: 0\n")
    ended = cli("config", "check")
    assert ended.code == 2
    assert "config.yaml line 2: universe.size = 0 must be a whole number from 1 to 500" in ended.error_line


def test_schema_goes_to_the_terminal_or_a_file(cli: Run) -> None:
    printed = json.loads(cli("config", "schema").out)
    assert cli("config", "schema", "settings.json").code == 0
    assert json.loads(Path("settings.json").read_text()) == printed
    assert set(printed["properties"]) == set(Settings.model_fields)

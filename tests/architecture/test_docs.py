"""What the documentation names is there: files, commands, settings, make targets, dependencies."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from crypto_qlib.cli.main import app
from crypto_qlib.feature_engineering.catalogue_page import catalogue_markdown
from crypto_qlib.settings.document import settings_markdown
from crypto_qlib.settings.fields import leaves, sections

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
COMMAND = re.compile(r"crypto-qlib ((?:[a-z]+)(?: [a-z|]+)?)")
TARGET = re.compile(r"`make ([a-z]+)`")
SETTING = re.compile(r"`([a-z]+(?:\.[a-z_0-9]+)+)(?: =[^`]*)?`")


def named(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Return (page, what) for everything the pages name by ``pattern``."""
    return [(page.relative_to(ROOT).as_posix(), m.group(1)) for page in PAGES for m in pattern.finditer(page.read_text())]


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield prefix + name
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = [(page, link) for page, link in named(LINK) if not (ROOT / page).parent.joinpath(link).exists()]
    assert broken == []


def test_every_command_the_pages_name_exists() -> None:
    known = set(commands(typer.main.get_command(app)))
    groups = {name.partition(" ")[0] for name in known if " " in name}
    unknown = []
    for page, words in named(COMMAND):
        first, _, second = words.partition(" ")
        wanted = [f"{first} {part}" for part in second.split("|")] if first in groups and second else [first]
        unknown += [(page, w) for w in wanted if w not in known]
    assert unknown == []


def test_every_make_target_the_pages_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert [(page, t) for page, t in named(TARGET) if t not in targets] == []


def test_every_setting_the_pages_name_exists() -> None:
    tops = {name for name, _ in sections()}
    wrong = [
        (page, key)
        for page, key in named(SETTING)
        if key.partition(".")[0] in tops and not key.endswith((".py", ".yaml", ".md")) and key not in leaves()
    ]
    assert wrong == []


def test_the_settings_page_is_the_schema() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_markdown(), "run `make docs`"


def test_the_features_page_is_the_registry() -> None:
    assert (ROOT / "docs" / "features.md").read_text() == catalogue_markdown(), "run `make docs`"


def test_every_decision_record_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    records = [p.name for p in (ROOT / "docs" / "decisions").glob("[0-9]*.md")]
    assert records
    assert [name for name in records if name not in index] == []


@pytest.mark.parametrize("extra", [None, "dev"])
def test_every_dependency_says_why_it_is_here(extra: str | None) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    names = [re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in wanted]
    spoken = {"pytest-asyncio": "asyncio", "pytest-timeout": "timeout", "pytest-xdist": "xdist"}
    assert [name for name in names if spoken.get(name, name) not in page] == []

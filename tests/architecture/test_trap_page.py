"""The page of traps names, for each of them, tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "okx_traps.md"
ID = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`(?: \(cards (\d+)\W(\d+)\))?")


def rows() -> list[tuple[str, str]]:
    """Return (trap, cell of tests) of every row of the page's tables."""
    cells = [line.strip().strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [(row[0].strip(), row[-1].strip()) for row in cells if row[0].strip() not in {"trap", "complaint"}]


def functions(file: str) -> set[str]:
    """Return the test functions of a file below ``tests/``, as they are written, without running anything."""
    tree = ast.parse((TESTS / file).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_")}


def test_the_page_is_read_as_it_is_written() -> None:
    assert len(rows()) > 40
    assert len({trap for trap, _ in rows()}) == len(rows()), "a trap is listed twice"


@pytest.mark.parametrize(("trap", "cell"), rows(), ids=[trap[:50] for trap, _ in rows()])
def test_every_trap_names_tests_that_exist(trap: str, cell: str) -> None:
    named = ID.findall(cell)
    assert named, f"no test is named for: {trap}"
    assert "`" not in ID.sub("", cell), f"what is no name of a test: {cell}"
    for file, function, first, last in named:
        assert (TESTS / file).is_file(), file
        there = functions(file)
        assert there, f"{file} has no tests"
        assert not function or function in there, f"{file} has no {function}"
        for card in range(int(first), int(last) + 1) if first else ():
            assert any(name.startswith(f"test_card_{card}_") for name in there), f"{file} has no card {card}"

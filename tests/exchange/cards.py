"""The numbered conformance cards and their page: which there are, and what the page says may differ from OKX.

``python -m tests.exchange.cards`` writes the table of cards into ``docs/conformance.md``.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "conformance.md"
_CARD = re.compile(r"test_card_(\d+)_(\w+)")
_BETWEEN = re.compile(r"(<!-- cards -->\n).*(<!-- end of cards -->)", re.DOTALL)
_CLIENTS = {
    "test_gateway_market_data": "OkxGateway (ccxt async)", "test_gateway_account": "OkxGateway (ccxt async)",
    "test_simulated_market_served": "OkxGateway (ccxt async)", "test_ccxt_conformance": "ccxt async",
    "test_ccxt_sync_conformance": "ccxt sync", "test_hedge_mode": "ccxt async", "test_algo_orders": "ccxt async",
    "test_request_rules": "raw requests", "test_ccxt_pro_conformance": "ccxt.pro",
    "test_python_okx_conformance": "python-okx", "test_recorded_samples": "OKX's recorded requests and answers",
    "test_recorded_pushes": "OKX's recorded messages", "test_margin_cases_served": "raw requests, OKX's recorded positions",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Card:
    """One card: its number, what it says, through which client, and the test that plays it."""

    number: int
    says: str
    client: str
    test: str

    def row(self) -> str:
        """Return its line in the table."""
        return f"| {self.number:02d} | {self.client} | {self.says} | `{self.test}` |"


@dataclass(frozen=True)
class Difference:
    """What may differ from OKX: in which recording, at which place of the unified object or row, and why."""

    recorded: str
    place: str
    why: str


def cards() -> list[Card]:
    """Return all cards of the test files, by number."""
    found = []
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            match = _CARD.fullmatch(node.name) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
            if match is not None:
                client = _CLIENTS[file.stem]
                found.append(Card(int(match[1]), match[2].replace("_", " "), client, f"{file.name}::{match[0]}"))
    return sorted(found)


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of the table under ``## section`` of the page."""
    text = PAGE.read_text().split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def differences() -> list[Difference]:
    """Return what the page says may differ."""
    return [Difference(*row) for row in rows_of("Differences")]


@dataclass(frozen=True)
class Allowed:
    """The places of one recording that may differ; one that ends with ``*`` stands for all below it."""

    places: frozenset[str]

    def __contains__(self, place: str) -> bool:
        return place in self.places or any(place.startswith(p[:-1]) for p in self.places if p.endswith("*"))


def allowed(recorded: str) -> Allowed:
    """Return the places of one recording that may differ."""
    return Allowed(frozenset(d.place for d in differences() if d.recorded == recorded))


def not_served() -> set[str]:
    """Return the recordings the page says have no counterpart here."""
    return {row[0] for row in rows_of("Not served")}


if __name__ == "__main__":
    table = "\n".join(["| card | through | what | test |", "|---|---|---|---|", *(card.row() for card in cards())])
    PAGE.write_text(_BETWEEN.sub(lambda m: f"{m[1]}{table}\n{m[2]}", PAGE.read_text()))

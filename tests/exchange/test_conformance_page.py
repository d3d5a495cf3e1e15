"""The page of the conformance cards says what is so: every card, every recording, no more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.exchange.cards import cards, differences, not_served, rows_of
from tests.exchange.recorded_cases import CASES
from tests.exchange.test_recorded_samples import recorded


def test_the_page_lists_every_card_once() -> None:
    """Mend with ``python -m tests.exchange.cards``."""
    found = cards()
    assert [n for n, count in Counter(card.number for card in found).items() if count > 1] == []
    assert [f"| {' | '.join(row[:3])} | `{row[3]}` |" for row in rows_of("Cards")] == [card.row() for card in found]


def test_the_cards_cover_every_client() -> None:
    clients = {card.client for card in cards()}
    assert clients >= {"ccxt async", "ccxt sync", "ccxt.pro", "python-okx"}


def test_every_recorded_answer_is_replayed_or_said_to_be_without_counterpart(shared: Path) -> None:
    known = {f"{endpoint} {n}" for endpoint, cases in recorded(shared)["rest"].items() for n in range(len(cases))}
    played, apart = {case.name for case in CASES}, {name for name in not_served() if not name.startswith("error ")}
    assert played | apart == known
    assert not played & apart


def test_no_difference_is_allowed_for_what_is_not_recorded(shared: Path) -> None:
    samples = recorded(shared)
    names = {case.name for case in CASES} | {f"ws {name}" for name in samples["ws"]}
    names |= {f"error {error['case']}" for error in samples["errors"]}
    assert {d.recorded for d in differences()} <= names
    assert all(d.why for d in differences())

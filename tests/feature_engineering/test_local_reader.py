"""The reader without a language model: rows for the word list, and how well it does on headlines people labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.core.clock import parse_utc
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.news import Article, EventClass
from crypto_qlib.feature_engineering.local_reader import LocalReader
from crypto_qlib.feature_engineering.news_calibration import fit_calibration
from crypto_qlib.feature_engineering.news_classifier import (
    FittedClassifier,
    LexiconClassifier,
    best_classifier,
    fit_classifier,
)
from crypto_qlib.feature_engineering.news_evaluation import Labelled, evaluate_classifier, quality, read_labelled
from crypto_qlib.feature_engineering.news_lexicon import TermMatcher, lexicon

LABELLED = Path(__file__).resolve().parents[3] / "shared" / "data" / "news"
needs_labels = pytest.mark.skipif(not LABELLED.is_dir(), reason="../shared/data/news is absent")

HEADLINES = [
    ("Exchange halts withdrawals after $40M hack", -1, EventClass.HACK, ()),
    ("Bitcoin soars to new all-time high as ETF inflows surge", 1, EventClass.INSTITUTIONAL, ("BTC",)),
    ("SEC sues crypto exchange over unregistered securities", -1, EventClass.LEGAL, ()),
    ("Solana validators ship protocol upgrade to mainnet", 1, EventClass.UPGRADE, ("SOL",)),
    ("What is a stablecoin? Everything you should know", 0, EventClass.OTHER, ()),
    ("Celsius founder arrested and charged with fraud", -1, EventClass.LEGAL, ()),
]  # fmt: skip


def article(title: str, body: str = "") -> Article:
    return Article(title, "s", "", title, body, 1, 1)


@pytest.mark.parametrize(("title", "sign", "event", "coins"), HEADLINES, ids=[h[0] for h in HEADLINES])
def test_headlines_are_read_as_a_person_would(title: str, sign: int, event: EventClass, coins: tuple[str, ...]) -> None:
    (reading,) = LocalReader().read([article(title)], ("BTC", "ETH", "SOL"), 5)
    assert (np.sign(reading.sentiment) if abs(reading.sentiment) > 0.25 else 0) == sign
    assert reading.event is event
    assert reading.coins == coins
    assert 0.0 <= reading.severity <= 1.0


def test_repeating_a_word_does_not_make_it_truer() -> None:
    once, often = LexiconClassifier().probabilities(["Bitcoin hack", "Bitcoin hack " + "hack " * 40])
    assert np.allclose(once, often)


def test_relevance_comes_from_crypto_words() -> None:
    reader = LocalReader()
    assert reader.relevance(article("Bitcoin miners expand")) > 0.7
    assert 0.2 < reader.relevance(article("Shares slip", "as bitcoin falls")) < 0.7
    assert reader.relevance(article("Bakery wins prize")) < 0.1


TERMS = [
    ("hack*", "Hackers strike", True, "a beginning"),
    ("hack", "hackers strike", False, "a whole word only"),
    ("rug pull", "another rug pull today", True, "a phrase"),
    ("rug pull", "rug pulls", False, "whole words of a phrase"),
    ("all time high", "new all-time high", True, "hyphens"),
    ("?", "Is it over?", True, "a question"),
]


@pytest.mark.parametrize(("term", "text", "is_found", "reason"), TERMS, ids=[t[3] for t in TERMS])
def test_terms_match(term: str, text: str, is_found: bool, reason: str) -> None:
    assert (TermMatcher([term]).find(text) == [term]) is is_found, reason


@pytest.mark.real_data
@needs_labels
def test_the_word_list_beats_finbert_and_the_majority_on_real_headlines() -> None:
    labelled = read_labelled(LABELLED / "cryptolin_dev.parquet")
    found = evaluate_classifier(LexiconClassifier(), labelled)
    assert found.accuracy > 0.62, "FinBERT's own scores in this set reach 0.522"
    assert found.macro_f1 > 0.60
    assert found.calibration_error < 0.06
    assert found.sure_accuracy > 0.75


@pytest.mark.real_data
@needs_labels
def test_the_numbers_of_the_package_are_those_of_the_headlines_it_names() -> None:
    labelled = read_labelled(LABELLED / "sentfin_dev.parquet")
    found = fit_calibration(lexicon(), labelled.titles, labelled.labels)
    assert np.allclose(found, lexicon().calibration, atol=0.02)
    # No crypto headline entered: what the word list reaches there (above) is out of sample.
    assert evaluate_classifier(LexiconClassifier(), labelled).accuracy > 0.62


def test_good_and_bad_words_count_alike_whatever_the_labels_hold_more_of() -> None:
    kinds = [("zorg crash", -1, 20), ("zorg report?", 0, 20), ("zorg surge", 1, 200)]
    rows = [(title, label) for title, label, n in kinds for _ in range(n)]
    numbers = fit_calibration(lexicon(), [t for t, _ in rows], np.array([y for _, y in rows]))
    assert np.array_equal(numbers[0], numbers[2][[1, 0, 2, 4, 3, 5]])
    assert np.array_equal(numbers[1], numbers[1][[1, 0, 2, 4, 3, 5]])


def test_a_calibration_is_saved_named_and_kept_from_its_past(tmp_path: Path) -> None:
    numbers = lexicon().calibration + 0.25
    model = LexiconClassifier(numbers, 123, 90)
    model.save(tmp_path / "m.npz")
    back = best_classifier(tmp_path / "m.npz")
    assert isinstance(back, LexiconClassifier)
    assert back.name.startswith("lexicon-2-"), "readings by other numbers are another reader's"
    assert (back.name, back.fitted_until_ns, back.n_labelled) == (model.name, 123, 90)
    assert np.array_equal(back.probabilities(["Bitcoin hack"]), model.probabilities(["Bitcoin hack"]))


@pytest.mark.slow
@pytest.mark.real_data
@needs_labels
def test_fitting_on_the_past_helps_on_what_came_after() -> None:
    labelled = read_labelled(LABELLED / "cryptolin_dev.parquet")
    early = labelled.times_ns < parse_utc("2021-10-01")
    past, future = labelled.take(early), labelled.take(~early)
    fitted = evaluate_classifier(fit_classifier(past.titles, past.labels), future)
    word_list = evaluate_classifier(LexiconClassifier(), future)
    assert fitted.macro_f1 > word_list.macro_f1 > 0.60
    assert fitted.accuracy > 0.64


def toy(n: int = 90) -> tuple[list[str], np.ndarray]:
    kinds = [("zorg plunges", -1), ("zorg report", 0), ("zorg blooms", 1)]
    rows = [kinds[k % 3] for k in range(n)]
    return [f"{t} number {k}" for k, (t, _) in enumerate(rows)], np.array([y for _, y in rows])


def test_a_fitted_model_learns_saves_and_loads_bit_for_bit(tmp_path: Path) -> None:
    titles, labels = toy()
    model = fit_classifier(titles, labels, 123)
    assert evaluate_classifier(model, _labelled(titles, labels)).accuracy == 1.0
    assert best_classifier(tmp_path / "m.npz").name == "lexicon-2"
    model.save(tmp_path / "m.npz")
    back = best_classifier(tmp_path / "m.npz")
    assert isinstance(back, FittedClassifier)
    assert (back.name, back.fitted_until_ns) == (model.name, 123)
    assert np.array_equal(back.probabilities(titles), model.probabilities(titles))


def _labelled(titles: list[str], labels: np.ndarray) -> Labelled:
    return Labelled(tuple(titles), labels.astype(np.int64), np.zeros(labels.size, np.int64))


def test_too_little_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least"):
        fit_classifier(["a"] * 80, np.zeros(80, np.int64))
    (tmp_path / "m.npz").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="news fit"):
        best_classifier(tmp_path / "m.npz")


def test_quality_on_a_hand_worked_case() -> None:
    labels = np.array([1, 1, -1, 0])
    found = quality("x", np.array([1, 0, -1, 0]), np.array([0.9, 0.4, 0.8, 0.6]), labels)
    assert found.accuracy == 0.75
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1.0) / 3)
    assert (found.sure_share, found.sure_accuracy, found.majority) == (0.5, 1.0, 0.5)


def test_labels_of_entities_count_where_they_agree(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('title,entity_labels\na,"{""X"": ""positive""}"\nb,"{""X"": ""positive"", ""Y"": ""negative""}"\n')
    assert read_labelled(path).titles == ("a",)

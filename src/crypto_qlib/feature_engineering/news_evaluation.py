"""How well each reader's sentiment agrees with people: accuracy, macro-F1 and calibration on labelled headlines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from crypto_qlib.analytics.ic import calibration_error
from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.news import Article
from crypto_qlib.data_collector.news_text import TITLE_CHARACTERS, article_id, clean
from crypto_qlib.feature_engineering.llm_client import ChatModel
from crypto_qlib.feature_engineering.llm_prompt import SCHEMA, SYSTEM, ask, believed
from crypto_qlib.feature_engineering.news_calibration import CLASSES
from crypto_qlib.feature_engineering.news_classifier import Classifier

FloatArray = npt.NDArray[np.float64]
SURE: Final = 0.7
"""Confidence from which an answer counts as sure."""
_NEUTRAL: Final = 0.2
"""|sentiment| of a language model below which it counts as neutral."""
_WORDS: Final = {"negative": -1, "neutral": 0, "positive": 1}


@dataclass(frozen=True, slots=True)
class Labelled:
    """Headlines that people labelled.

    Parameters
    ----------
    titles : tuple of str
        Cleaned.
    labels : (n,) int64
        -1, 0, 1.
    times_ns : (n,) int64
        Time of publication; 0 where unknown.
    """

    titles: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    times_ns: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.bool_]) -> Labelled:
        """Return the headlines at ``rows``."""
        titles = tuple(t for t, keep in zip(self.titles, rows, strict=True) if keep)
        return Labelled(titles, self.labels[rows], self.times_ns[rows])


@dataclass(frozen=True, slots=True)
class NewsQuality:
    """Agreement of one reader with the labels.

    Parameters
    ----------
    reader : str
        Which reader.
    n : int
        Headlines.
    accuracy, macro_f1 : float
        Over the three classes.
    calibration_error : float
        Expected calibration error of the stated confidence, ten equal-count bins.
    sure_share, sure_accuracy : float
        Share of headlines with confidence of :data:`SURE` or more, and accuracy among them (NaN without any).
    majority : float
        Accuracy of always saying the commonest class.
    """

    reader: str
    n: int
    accuracy: float
    macro_f1: float
    calibration_error: float
    sure_share: float
    sure_accuracy: float
    majority: float

    def line(self) -> str:
        """Return the figures on one line."""
        return (
            f"{self.reader}: {self.n} headlines, accuracy {self.accuracy:.3f} (majority {self.majority:.3f}), macro-F1 "
            f"{self.macro_f1:.3f}, calibration error {self.calibration_error:.3f}; sure of {self.sure_share:.0%}, right in "
            f"{self.sure_accuracy:.3f} of those"
        )


def read_labelled(path: Path) -> Labelled:
    """Return labelled headlines from parquet or CSV.

    Parameters
    ----------
    path : Path
        Columns ``title`` and ``label`` (-1, 0, 1), or ``entity_labels`` (JSON of entity -> negative, neutral, positive; only
        headlines whose entities agree count); optional ``published_at``.

    Raises
    ------
    UserError
        If the file cannot be read or lacks a column.
    """
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}") from e
    if "entity_labels" in table and "label" not in table:
        table["label"] = [_agreed(text) for text in table["entity_labels"]]
        table = table[table["label"].notna()]
    if not {"title", "label"} <= set(table.columns):
        raise UserError(f"{path} needs the columns title and label (-1, 0, 1)")
    labels = table["label"].to_numpy().astype(np.int64)
    if not set(labels.tolist()) <= set(CLASSES):
        raise UserError(f"{path}: labels must be -1, 0 or 1, got {sorted(set(labels.tolist()))[:5]}")
    times = np.zeros(len(table), dtype=np.int64)
    if "published_at" in table:
        times = pd.DatetimeIndex(pd.to_datetime(table["published_at"], utc=True)).as_unit("ns").asi8.astype(np.int64)
    return Labelled(tuple(clean(str(t), TITLE_CHARACTERS) for t in table["title"]), labels, times)


def _agreed(text: str) -> float:
    values = {_WORDS[v] for v in json.loads(text).values() if v in _WORDS}
    return float(values.pop()) if len(values) == 1 else float("nan")


def evaluate_classifier(classifier: Classifier, labelled: Labelled) -> NewsQuality:
    """Return how well ``classifier`` agrees with the labels."""
    p = classifier.probabilities(labelled.titles)
    return quality(classifier.name, np.array(CLASSES)[p.argmax(axis=1)], p.max(axis=1), labelled.labels)


def evaluate_chat(chat: ChatModel, labelled: Labelled, batch_size: int) -> NewsQuality:
    """Return how well a language model agrees with the labels; headlines without a believable answer count as neutral, unsure.

    Raises
    ------
    RetryLater, OutcomeUnknown, DoNotRetry
        If the server does not answer.
    """
    guess, confidence = np.zeros(len(labelled.titles), dtype=np.int64), np.full(len(labelled.titles), 1.0 / 3.0)
    for start in range(0, len(labelled.titles), batch_size):
        titles = labelled.titles[start : start + batch_size]
        question = ask([_article(t) for t in titles], nonce=f"evaluation {start}")
        answer = chat.complete(SYSTEM, question.user, SCHEMA, question.tokens_out)
        items = believed(answer.text, question.ids)
        for k, item_id in enumerate(question.ids):
            if item_id in items:
                sentiment = float(items[item_id].sentiment)
                guess[start + k] = 0 if abs(sentiment) < _NEUTRAL else int(np.sign(sentiment))
                confidence[start + k] = float(items[item_id].confidence)
    return quality(chat.name, guess, confidence, labelled.labels)


def quality(reader: str, guess: npt.NDArray[np.int64], confidence: FloatArray, labels: npt.NDArray[np.int64]) -> NewsQuality:
    """Return the figures of guesses with stated confidence.

    Raises
    ------
    UserError
        If there is no headline.
    """
    if not labels.size:
        raise UserError("there is no labelled headline to compare with")
    right = guess == labels
    sure = confidence >= SURE
    return NewsQuality(
        reader=reader,
        n=int(labels.size),
        accuracy=float(right.mean()),
        macro_f1=float(np.mean([_f1(guess, labels, c) for c in CLASSES])),
        calibration_error=calibration_error(confidence.astype(np.float64), right.astype(np.float64)),
        sure_share=float(sure.mean()),
        sure_accuracy=float(right[sure].mean()) if sure.any() else float("nan"),
        majority=float(np.bincount(labels + 1).max() / labels.size),
    )


def _f1(guess: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], c: int) -> float:
    hits = int(np.sum((guess == c) & (labels == c)))
    named = int(np.sum(guess == c)) + int(np.sum(labels == c))
    return 2.0 * hits / named if named else 0.0


def _article(title: str) -> Article:
    return Article(article_id("labelled", "", title), "labelled", "", title, "", NS_PER_S, NS_PER_S)

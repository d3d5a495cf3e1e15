"""From weights of words to probabilities: the few numbers behind the word list, and how anybody fits them to his own headlines.

Logistic regression (softmax) of a headline's label on the five numbers of :meth:`Lexicon.sides`, under one rule: good and bad
words count alike. Every headline enters twice, once as it is and once with its sides and its label turned round, so what a set
of labels happens to hold more of (crypto headlines are mostly good news) leaves no mark, and nine numbers are free.

The numbers that come with the package were fitted on SEntFiN 1.1 (MIT licence; Sinha, Kedas, Kumar & Malo 2022), finance
headlines whose entities agree; no headline about crypto was read for them. ``crypto-qlib news calibrate FILE`` fits others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.news_lexicon import Lexicon

FloatArray = npt.NDArray[np.float64]

CLASSES: Final = (-1, 0, 1)
"""Columns of probabilities: negative, neutral, positive."""
MIN_LABELLED: Final = 60
_TURNED: Final = (1, 0, 2, 4, 3)
"""Order of :meth:`Lexicon.sides` with the positive and the negative side exchanged."""
_DECIMALS: Final = 2


def sides_of(words: Lexicon, titles: Sequence[str]) -> FloatArray:
    """Return the word list's numbers of each headline, shape ``(n, 5)``."""
    return np.array([words.sides(t) for t in titles], dtype=np.float64).reshape(len(titles), -1)


def check_labels(titles: Sequence[str], labels: npt.NDArray[np.int64]) -> None:
    """Refuse labels nothing can be learned from.

    Raises
    ------
    UserError
        If there are too few headlines or a class is missing.
    """
    if len(titles) < MIN_LABELLED or set(labels.tolist()) != set(CLASSES):
        raise UserError(f"{len(titles)} labelled headlines with labels {sorted(set(labels.tolist()))} cannot be learned from",
                        f"at least {MIN_LABELLED} with the labels -1, 0 and 1 are needed")  # fmt: skip


def fit_calibration(words: Lexicon, titles: Sequence[str], labels: npt.NDArray[np.int64]) -> FloatArray:
    """Return the calibration of :class:`Lexicon`, shape ``(3, 6)``, rounded to two decimals.

    Parameters
    ----------
    words : Lexicon
        The word list.
    titles : sequence of str
        Headlines.
    labels : (n,) int64
        -1, 0 or 1 each.

    Raises
    ------
    UserError
        If there are too few headlines or a class is missing.
    """
    check_labels(titles, labels)
    sides = sides_of(words, titles)
    both, turned = np.vstack([sides, sides[:, _TURNED]]), np.concatenate([labels, -labels])
    model = LogisticRegression(C=1.0, max_iter=5_000, tol=1e-8).fit(both, turned)
    result: FloatArray = np.round(np.column_stack([model.coef_, model.intercept_]), _DECIMALS)
    return result


def calibrated(sides: FloatArray, calibration: FloatArray) -> FloatArray:
    """Return probabilities of negative, neutral, positive from the word list's numbers, shape ``(n, 3)``."""
    return softmax(np.column_stack([sides, np.ones(sides.shape[0])]) @ calibration.T)


def softmax(scores: FloatArray) -> FloatArray:
    """Return ``exp(scores)`` of each row over its sum."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return result

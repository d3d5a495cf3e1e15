"""The light local model: sentiment of a headline by our lexicon alone, or by a classifier fitted here on labelled headlines.

The lexicon model comes with the package and needs no data. The fitted one adds hashed words and character pieces (TF-IDF
weights, logistic regression, no vocabulary, no pickle); it is trained by the user on headlines the user may train on, and its
scores must not be used before the last of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.news_lexicon import Lexicon, lexicon

FloatArray = npt.NDArray[np.float64]

CLASSES: Final = (-1, 0, 1)
"""Columns of probabilities: negative, neutral, positive."""
_WORD_BITS: Final = 15
_PIECE_BITS: Final = 17
_LEXICON_SCALE: Final = 0.5
_MIN_LABELLED: Final = 60
_FORMAT: Final = 1


class Classifier(Protocol):
    """Say how likely headlines are bad, neutral and good news."""

    @property
    def name(self) -> str:
        """Name the model and its version, for the record of who scored what."""
        ...

    def probabilities(self, titles: Sequence[str]) -> FloatArray:
        """Return probabilities of negative, neutral, positive, shape ``(n, 3)``."""
        ...


class LexiconClassifier:
    """Softmax of the lexicon's five numbers with its 18 measured weights."""

    name = "lexicon-1"

    def __init__(self) -> None:
        self._lexicon: Lexicon = lexicon()

    def probabilities(self, titles: Sequence[str]) -> FloatArray:
        """Return probabilities of negative, neutral, positive, shape ``(n, 3)``."""
        sides = _sides(self._lexicon, titles)
        return _softmax(np.column_stack([sides, np.ones(len(titles))]) @ self._lexicon.calibration.T)


@dataclass(frozen=True, slots=True)
class FittedClassifier:
    """Logistic regression on hashed words, character pieces and the lexicon's numbers.

    Parameters
    ----------
    coefficients : (3, n_terms) float32
        One row a class.
    intercepts : (3,) float64
        One a class.
    idf : (n_hashed,) float32
        Inverse document frequency of each hashed term in the training headlines.
    fitted_until_ns : int
        Time of the newest headline it learned from; 0 where the labels carry no time.
    n_labelled : int
        Headlines it learned from.
    """

    coefficients: npt.NDArray[np.float32]
    intercepts: FloatArray
    idf: npt.NDArray[np.float32]
    fitted_until_ns: int
    n_labelled: int

    @property
    def name(self) -> str:
        """Name the model by a digest of its weights."""
        return f"fitted-{hashlib.sha256(self.coefficients.tobytes()).hexdigest()[:8]}"

    def probabilities(self, titles: Sequence[str]) -> FloatArray:
        """Return probabilities of negative, neutral, positive, shape ``(n, 3)``."""
        weighted = TfidfTransformer(sublinear_tf=True)
        weighted.idf_ = self.idf.astype(np.float64)
        design = _design(weighted.transform(_hashed(titles)), titles)
        return _softmax(np.asarray(design @ self.coefficients.T.astype(np.float64)) + self.intercepts)

    def save(self, path: Path) -> None:
        """Write the model as plain arrays."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pending = path.with_suffix(".part.npz")
        meta = np.array([_FORMAT, self.fitted_until_ns, self.n_labelled], dtype=np.int64)
        np.savez_compressed(
            pending, coefficients=self.coefficients.astype(np.float16), intercepts=self.intercepts, idf=self.idf, meta=meta
        )
        pending.replace(path)

    @staticmethod
    def load(path: Path) -> FittedClassifier:
        """Read a model written by :meth:`save`; no code in it is run.

        Raises
        ------
        UserError
            If the file is absent or no such model.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                meta = arrays["meta"]
                if int(meta[0]) != _FORMAT:
                    raise UserError(f"{path} has another format", "run `crypto-qlib news fit` again")
                coefficients = arrays["coefficients"].astype(np.float32)
                return FittedClassifier(coefficients, arrays["intercepts"], arrays["idf"], int(meta[1]), int(meta[2]))
        except (OSError, ValueError, KeyError) as e:
            raise UserError(f"{path} is no fitted news model: {e}", "run `crypto-qlib news fit`") from e


def fit_classifier(titles: Sequence[str], labels: npt.NDArray[np.int64], fitted_until_ns: int = 0) -> FittedClassifier:
    """Fit the classifier.

    Parameters
    ----------
    titles : sequence of str
        Headlines.
    labels : (n,) int64
        -1, 0 or 1 each.
    fitted_until_ns : int
        Time of the newest headline.

    Raises
    ------
    UserError
        If there are too few headlines or a class is missing.
    """
    if len(titles) < _MIN_LABELLED or set(labels.tolist()) != set(CLASSES):
        raise UserError(f"{len(titles)} labelled headlines with labels {sorted(set(labels.tolist()))} cannot be learned from",
                        f"at least {_MIN_LABELLED} with the labels -1, 0 and 1 are needed")  # fmt: skip
    weighted = TfidfTransformer(sublinear_tf=True).fit(_hashed(titles))
    design = _design(weighted.transform(_hashed(titles)), titles)
    model = LogisticRegression(C=2.0, max_iter=2_000).fit(design, labels)
    # Half-precision is what is saved; rounding here makes a loaded model equal the fitted one.
    coefficients = model.coef_.astype(np.float16).astype(np.float32)
    return FittedClassifier(
        coefficients, model.intercept_.astype(np.float64), weighted.idf_.astype(np.float32), fitted_until_ns, len(titles)
    )


def best_classifier(path: Path) -> Classifier:
    """Return the classifier fitted here, if there is one, else the lexicon's."""
    return FittedClassifier.load(path) if path.exists() else LexiconClassifier()


def describe(classifier: Classifier) -> str:
    """Return one line about a classifier."""
    if isinstance(classifier, FittedClassifier):
        until = iso(classifier.fitted_until_ns) if classifier.fitted_until_ns else "an unknown time"
        return f"{classifier.name}: learned from {classifier.n_labelled} headlines until {until}"
    return f"{classifier.name}: our own word list, learned from nothing"


def _sides(words: Lexicon, titles: Sequence[str]) -> FloatArray:
    return np.array([words.sides(t) for t in titles], dtype=np.float64).reshape(len(titles), -1)


def _hashed(titles: Sequence[str]) -> Any:
    low = [t.lower() for t in titles]
    by_word = HashingVectorizer(n_features=2**_WORD_BITS, ngram_range=(1, 2), norm=None, alternate_sign=False)
    by_piece = HashingVectorizer(
        n_features=2**_PIECE_BITS, analyzer="char_wb", ngram_range=(3, 5), norm=None, alternate_sign=False
    )
    return hstack([by_word.transform(low), by_piece.transform(low)]).tocsr()


def _design(weighted: Any, titles: Sequence[str]) -> Any:
    return hstack([weighted, csr_matrix(_sides(lexicon(), titles) * _LEXICON_SCALE)]).tocsr()


def _softmax(scores: FloatArray) -> FloatArray:
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return result

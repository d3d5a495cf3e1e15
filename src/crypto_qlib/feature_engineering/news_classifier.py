"""The light local model: sentiment of a headline by our word list alone, or by a classifier fitted here on labelled headlines.

The word list comes with the package and needs no data; ``news calibrate`` refits the few numbers that turn its weights into
probabilities (:mod:`.news_calibration`). The fitted classifier adds hashed words and character pieces (TF-IDF
weights, logistic regression, no vocabulary, no pickle); it is trained by the user on headlines the user may train on, and its
scores must not be used before the last of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.news_calibration import calibrated, check_labels, sides_of, softmax
from crypto_qlib.feature_engineering.news_lexicon import lexicon

FloatArray = npt.NDArray[np.float64]

LEXICON: Final = "lexicon-2"
"""Word list and calibration of the package; another version of either is another number."""
_WORD_BITS: Final = 15
_PIECE_BITS: Final = 17
_LEXICON_SCALE: Final = 0.5
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


@dataclass(frozen=True, slots=True)
class LexiconClassifier:
    """Softmax of the word list's five numbers with a calibration.

    Parameters
    ----------
    calibration : (3, 6) float64, optional
        See :class:`Lexicon`; what comes with the package by default.
    fitted_until_ns, n_labelled : int
        As of :class:`FittedClassifier`; 0 for the calibration of the package, which no crypto headline entered.
    """

    calibration: FloatArray = field(default_factory=lambda: lexicon().calibration)
    fitted_until_ns: int = 0
    n_labelled: int = 0

    @property
    def name(self) -> str:
        """Name the word list, and its calibration where it is another than the package's."""
        if np.array_equal(self.calibration, lexicon().calibration):
            return LEXICON
        return f"{LEXICON}-{hashlib.sha256(self.calibration.tobytes()).hexdigest()[:8]}"

    def probabilities(self, titles: Sequence[str]) -> FloatArray:
        """Return probabilities of negative, neutral, positive, shape ``(n, 3)``."""
        return calibrated(sides_of(lexicon(), titles), self.calibration)

    def save(self, path: Path) -> None:
        """Write the calibration where :func:`best_classifier` finds it."""
        _write(path, calibration=self.calibration, meta=_meta(self.fitted_until_ns, self.n_labelled))


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
        return softmax(np.asarray(design @ self.coefficients.T.astype(np.float64)) + self.intercepts)

    def save(self, path: Path) -> None:
        """Write the model as plain arrays."""
        _write(
            path, coefficients=self.coefficients.astype(np.float16), intercepts=self.intercepts, idf=self.idf,
            meta=_meta(self.fitted_until_ns, self.n_labelled),
        )  # fmt: skip


def load_classifier(path: Path) -> FittedClassifier | LexiconClassifier:
    """Read what ``news fit`` or ``news calibrate`` saved; no code in it is run.

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
            until_ns, n_labelled = int(meta[1]), int(meta[2])
            if "calibration" in arrays:
                return LexiconClassifier(arrays["calibration"], until_ns, n_labelled)
            coefficients = arrays["coefficients"].astype(np.float32)
            return FittedClassifier(coefficients, arrays["intercepts"], arrays["idf"], until_ns, n_labelled)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{path} is no fitted news model: {e}", "run `crypto-qlib news fit` or `news calibrate`") from e


def _write(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pending = path.with_suffix(".part.npz")
    np.savez_compressed(pending, **arrays)
    pending.replace(path)


def _meta(until_ns: int, n_labelled: int) -> npt.NDArray[np.int64]:
    return np.array([_FORMAT, until_ns, n_labelled], dtype=np.int64)


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
    check_labels(titles, labels)
    weighted = TfidfTransformer(sublinear_tf=True).fit(_hashed(titles))
    design = _design(weighted.transform(_hashed(titles)), titles)
    model = LogisticRegression(C=2.0, max_iter=2_000).fit(design, labels)
    # Half-precision is what is saved; rounding here makes a loaded model equal the fitted one.
    coefficients = model.coef_.astype(np.float16).astype(np.float32)
    return FittedClassifier(
        coefficients, model.intercept_.astype(np.float64), weighted.idf_.astype(np.float32), fitted_until_ns, len(titles)
    )


def best_classifier(path: Path) -> Classifier:
    """Return the classifier fitted or calibrated here, if there is one, else the package's word list."""
    return load_classifier(path) if path.exists() else LexiconClassifier()


def describe(classifier: FittedClassifier | LexiconClassifier) -> str:
    """Return one line about a classifier."""
    if not classifier.n_labelled:
        return f"{classifier.name}: our own word list, as it comes with the package"
    what = "word list calibrated on" if isinstance(classifier, LexiconClassifier) else "learned from"
    until = iso(classifier.fitted_until_ns) if classifier.fitted_until_ns else "an unknown time"
    return f"{classifier.name}: {what} {classifier.n_labelled} headlines until {until}"


def _hashed(titles: Sequence[str]) -> Any:
    low = [t.lower() for t in titles]
    by_word = HashingVectorizer(n_features=2**_WORD_BITS, ngram_range=(1, 2), norm=None, alternate_sign=False)
    by_piece = HashingVectorizer(
        n_features=2**_PIECE_BITS, analyzer="char_wb", ngram_range=(3, 5), norm=None, alternate_sign=False
    )
    return hstack([by_word.transform(low), by_piece.transform(low)]).tocsr()


def _design(weighted: Any, titles: Sequence[str]) -> Any:
    return hstack([weighted, csr_matrix(sides_of(lexicon(), titles) * _LEXICON_SCALE)]).tocsr()

"""What a model says: expected return and win probability per symbol, stamped with when it was known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import iso
from crypto_qlib.core.errors import UserError

FloatArray = npt.NDArray[np.float64]


def _frozen(array: npt.ArrayLike) -> FloatArray:
    result = np.array(array, dtype=np.float64)
    result.setflags(write=False)
    return result


@dataclass(frozen=True, slots=True)
class Scores:
    """One moment's scores for all symbols.

    Parameters
    ----------
    as_of_ns : int
        Instant from which the scores are known (the close of the last bar used).
    symbols : tuple of str
        Length ``n_symbols``.
    expected_return : (n_symbols,) float64
        Expected return of holding *long* over the model's horizon, a fraction before costs; negative favours a
        short; NaN means no opinion.
    win_probability : (n_symbols,) float64
        Probability that a trade in the direction of ``expected_return`` ends with a gain, in [0, 1]; NaN as above.
    uncertainty : (n_symbols,) float64
        Standard deviation of ``expected_return``; NaN where unknown.
    """

    as_of_ns: int
    symbols: tuple[str, ...]
    expected_return: FloatArray
    win_probability: FloatArray
    uncertainty: FloatArray

    def __post_init__(self) -> None:
        for name in ("expected_return", "win_probability", "uncertainty"):
            value = _frozen(getattr(self, name))
            if value.shape != (len(self.symbols),):
                raise ValueError(f"Scores.{name} must have shape ({len(self.symbols)},), got {value.shape}")
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class ScorePanel:
    """Scores over time: row ``t`` is known from ``as_of_ns[t]`` on.

    Parameters
    ----------
    as_of_ns : (n_times,) int64
        Increasing instants.
    symbols : tuple of str
        Length ``n_symbols``.
    expected_return, win_probability, uncertainty : (n_times, n_symbols) float64
        As in :class:`Scores`.
    """

    as_of_ns: npt.NDArray[np.int64]
    symbols: tuple[str, ...]
    expected_return: FloatArray
    win_probability: FloatArray
    uncertainty: FloatArray

    def __post_init__(self) -> None:
        bad = np.flatnonzero(np.diff(self.as_of_ns) <= 0)
        if bad.size:
            at, again = (int(self.as_of_ns[bad[0] + k]) for k in (0, 1))
            kind = "are there twice" if at == again else f"come after those of {iso(at)}"
            raise UserError(f"the scores of {iso(again)} {kind}", "one row of scores for each instant, in order of time")
        shape = (self.as_of_ns.size, len(self.symbols))
        for name in ("expected_return", "win_probability", "uncertainty"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"ScorePanel.{name} must have shape {shape}, got {getattr(self, name).shape}")

    def at(self, row: int) -> Scores:
        """Return row ``row`` as :class:`Scores`."""
        return Scores(
            int(self.as_of_ns[row]),
            self.symbols,
            self.expected_return[row],
            self.win_probability[row],
            self.uncertainty[row],
        )

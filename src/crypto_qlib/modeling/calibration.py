"""Turn raw predictions into expected returns and win probabilities. Fitted on the validation segment only.

- Expected return: ``slope * prediction``, the slope of the least-squares line through the origin on validation. No intercept:
  a drift of the whole market in the validation months is not a forecast. A slope that is not positive says that the
  validation segment shows no skill; then :data:`NO_SKILL_RETURN` keeps the *order* of the scores for inspection and makes
  them too small to pay any cost.
- Win probability: the chance that a trade in the predicted direction earns more than zero before costs, as a non-decreasing
  function of ``|expected return|``: isotonic over equal-count bins, or Platt's logistic curve where the sample is small.
- Interval: conformal prediction (crepes) of ``realised - expected`` in bands of ``|expected return|``: a share of
  :data:`INTERVAL_LEVEL` of outcomes falls inside, whatever their distribution, as long as validation resembles what comes.
  Neighbouring labels overlap, so the promise holds on average over time, not bar by bar.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from crypto_qlib.core.jit import njit

FloatArray = npt.NDArray[np.float64]

NO_SKILL_RETURN: Final = 1e-5
"""Root mean square of the expected returns on validation where it shows no skill: a tenth of a basis point."""
MIN_PER_BIN: Final = 100
"""Independent (non-overlapping) outcomes wanted per isotonic bin."""
MAX_BINS: Final = 20
MIN_BINS: Final = 4
INTERVAL_LEVEL: Final = 0.9
"""Share of outcomes the interval is made to hold."""
INTERVAL_BANDS: Final = 3
_MIN_BAND: Final = 200
"""Fewest validation outcomes a band of its own may have."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Maps raw predictions to expected return and win probability.

    Parameters
    ----------
    slope : float
        Expected return per unit of prediction, > 0.
    validation_slope : float
        Least-squares slope as fitted, before the floor.
    uncertainty : float
        Root mean square of ``forward return - expected return`` on validation.
    method : str
        ``isotonic`` or ``platt``: how the win curve was fitted.
    knots : tuple of float
        ``|expected return|`` at which the win curve is given, increasing.
    win : tuple of float
        Win probability at the knots; linear in between, flat outside.
    band_edges : tuple of float
        ``|expected return|`` at which one band of the interval ends and the next begins, increasing.
    half_widths : tuple of float
        Half width of the interval in each band, one more than edges; NaN where too few outcomes were known.
    """

    slope: float
    validation_slope: float
    uncertainty: float
    method: str
    knots: tuple[float, ...]
    win: tuple[float, ...]
    band_edges: tuple[float, ...] = ()
    half_widths: tuple[float, ...] = (math.nan,)

    def interval(self, expected: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (low, high) of the realised return at :data:`INTERVAL_LEVEL`, shapes of ``expected``; NaN stays NaN."""
        half = np.array(self.half_widths)[np.digitize(np.abs(expected), self.band_edges)]
        return expected - half, expected + half

    def apply(self, prediction: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ``(expected_return, win_probability)``, both of the shape of ``prediction`` ``(n,)``; NaN stays NaN."""
        return _apply(np.ascontiguousarray(prediction), self.slope, np.array(self.knots), np.array(self.win))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"half_widths": [w if math.isfinite(w) else None for w in self.half_widths]}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> Calibration:
        """Return what :meth:`to_json` gave."""
        return Calibration(
            float(raw["slope"]),
            float(raw["validation_slope"]),
            float(raw["uncertainty"]),
            str(raw["method"]),
            tuple(map(float, raw["knots"])),
            tuple(map(float, raw["win"])),
            tuple(map(float, raw["band_edges"])),
            tuple(math.nan if w is None else float(w) for w in raw["half_widths"]),
        )


@njit
def _curve(x: float, knots: FloatArray, values: FloatArray) -> float:
    """Return the piecewise-linear curve at ``x``, flat outside the knots."""
    if x <= knots[0]:
        return float(values[0])
    for k in range(1, knots.size):
        if x <= knots[k]:
            share = (x - knots[k - 1]) / (knots[k] - knots[k - 1])
            return float(values[k - 1] + share * (values[k] - values[k - 1]))
    return float(values[-1])


@njit
def _apply(prediction: FloatArray, slope: float, knots: FloatArray, win: FloatArray) -> tuple[FloatArray, FloatArray]:
    expected = np.empty(prediction.size)
    probability = np.empty(prediction.size)
    for k in range(prediction.size):
        expected[k] = slope * prediction[k]
        probability[k] = math.nan if math.isnan(expected[k]) else _curve(abs(expected[k]), knots, win)
    return expected, probability


def fit_calibration(
    prediction: FloatArray,
    realised: FloatArray,
    forward_return: FloatArray,
    horizon_bars: int,
    trades: tuple[FloatArray, FloatArray] | None = None,
) -> Calibration:
    """Fit the calibration on validation rows.

    Parameters
    ----------
    prediction : (n,) float64
        Raw predictions.
    realised : (n,) float64
        The return an expected return stands for (``Labels.realised``).
    forward_return : (n,) float64
        What a long position earned before costs.
    horizon_bars : int
        Bars neighbouring labels overlap; divides the number of independent outcomes.
    trades : pair of (n,) float64, optional
        Net outcomes of a long and of a short trade: then a win is a trade that earned something, costs paid.
    """
    keep = np.isfinite(prediction) & np.isfinite(realised) & np.isfinite(forward_return)
    if trades is not None:
        keep &= np.isfinite(trades[0]) & np.isfinite(trades[1])
    x, y, r = prediction[keep], realised[keep], forward_return[keep]
    square = float(x @ x)
    fitted = float(x @ y) / square if square > 0.0 else 0.0
    # Relative to the predictions' own size: a probability's or a ranking's are not returns, and 1 % of them would pay costs.
    flat = NO_SKILL_RETURN / math.sqrt(square / x.size) if square > 0.0 else NO_SKILL_RETURN
    slope = fitted if fitted > 0.0 else flat
    expected = slope * x
    uncertainty = float(np.sqrt(np.mean((r - expected) ** 2))) if r.size else math.nan
    traded = expected != 0.0
    strength, side = np.abs(expected[traded]), np.sign(expected[traded])
    if trades is None:
        won = (side * r[traded] > 0.0).astype(np.float64)
    else:
        won = (np.where(side > 0.0, trades[0][keep][traded], trades[1][keep][traded]) > 0.0).astype(np.float64)
    method, knots, win = _fit_win_curve(strength, won, strength.size // max(horizon_bars, 1))
    return Calibration(slope, fitted, uncertainty, method, knots, win, *_fit_interval(expected, y - expected))


def _fit_win_curve(
    strength: FloatArray, won: FloatArray, n_independent: int
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Return method, knots and win probabilities; a constant curve where strengths or outcomes do not differ."""
    if strength.size == 0:
        return "constant", (0.0,), (0.5,)
    if np.unique(strength).size < MIN_BINS or np.unique(won).size == 1:
        return "constant", (0.0,), (float((won.sum() + 1.0) / (won.size + 2.0)),)
    bins = min(MAX_BINS, n_independent // MIN_PER_BIN)
    if bins >= MIN_BINS:
        parts = [p for p in np.array_split(np.argsort(strength, kind="stable"), bins) if p.size]
        centre = np.array([strength[p].mean() for p in parts])
        rate = np.array([won[p].mean() for p in parts])
        curve = IsotonicRegression(out_of_bounds="clip").fit_transform(centre, rate, sample_weight=[p.size for p in parts])
        distinct = np.concatenate(([True], np.diff(centre) > 0.0))
        return "isotonic", tuple(map(float, centre[distinct])), tuple(map(float, curve[distinct]))
    scale = float(strength.std())
    logistic = LogisticRegression(C=1.0).fit((strength / scale)[:, None], won)
    if float(logistic.coef_[0, 0]) <= 0.0:
        return "constant", (0.0,), (float((won.sum() + 1.0) / (won.size + 2.0)),)
    knots = np.quantile(strength, np.linspace(0.0, 1.0, MAX_BINS))
    knots = knots[np.concatenate(([True], np.diff(knots) > 0.0))]
    curve = logistic.predict_proba((knots / scale)[:, None])[:, 1]
    return "platt", tuple(map(float, knots)), tuple(map(float, curve))


def _fit_interval(expected: FloatArray, residual: FloatArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (band edges, half widths) of the conformal interval; one band where the outcomes are few."""
    from crepes import ConformalRegressor  # noqa: PLC0415 - only training needs it

    if residual.size < _MIN_BAND:
        return (), (math.nan,)
    strength = np.abs(expected)
    n_bands = min(INTERVAL_BANDS, residual.size // _MIN_BAND)
    edges = np.unique(np.quantile(strength, np.linspace(0.0, 1.0, n_bands + 1)[1:-1]))
    band = np.digitize(strength, edges)
    while edges.size and np.bincount(band, minlength=edges.size + 1).min() < _MIN_BAND:
        edges = edges[:-1]
        band = np.digitize(strength, edges)
    fitted = ConformalRegressor().fit(np.abs(residual), bins=band)
    bands = np.arange(edges.size + 1)
    high = fitted.predict_int(np.zeros(bands.size), bins=bands, confidence=INTERVAL_LEVEL)[:, 1]
    return tuple(map(float, edges)), tuple(map(float, high))

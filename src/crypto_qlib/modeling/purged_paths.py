"""Several histories out of one: combinatorial purged cross-validation, and how the figures of its test paths are spread.

1. Time is cut into ``n_blocks``; every choice of ``n_test`` of them is a test, the rest, purged on both sides, is learned from.
   Of what is learned from, the last fifth of the bars (a purge apart) is validation: stopping and calibration.
2. Each block is tested by ``C(n_blocks - 1, n_test - 1)`` models; the ``j``-th path takes each block's ``j``-th scores.
3. A path's figures: RankIC over all its bars, and the Sharpe ratio of holding the best fifth against the worst fifth for one
   horizon at a time, costs of a full turn paid each time.

A path learns from bars after those it is tested on. It says how much of a figure is chance, not what would have been earned.
Source: Lopez de Prado, Advances in Financial Machine Learning (2018), chapter 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.analytics.ic import quantile_spread, rank_information_coefficients, summarise
from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.modeling.families import new_model
from crypto_qlib.modeling.labels import Labels
from crypto_qlib.modeling.qlib_task import make_dataset
from crypto_qlib.modeling.row_batch import batch_of
from crypto_qlib.modeling.splits import MIN_SEGMENT_BARS, CombinatorialSplit, Segment, TimeSplit, combinatorial_splits
from crypto_qlib.settings.schema import ModelSettings

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Progress = Callable[[float], None]

VALID_SHARE: Final = 0.2
_DAYS: Final = 365.0


@dataclass(frozen=True, slots=True)
class PurgedPaths:
    """Figures of every path.

    Parameters
    ----------
    n_blocks, n_test, n_models : int
        How time was cut, and models trained.
    rank_ic, sharpe : tuple of float
        One a path: mean RankIC, and annualised Sharpe ratio of the best against the worst fifth, net of costs.
    """

    n_blocks: int
    n_test: int
    n_models: int
    rank_ic: tuple[float, ...]
    sharpe: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values with the spread of each figure over the paths; an unknown figure is ``None``."""
        known = {k: [v if math.isfinite(v) else None for v in getattr(self, k)] for k in ("rank_ic", "sharpe")}
        return asdict(self) | known | {"rank_ic_spread": spread(self.rank_ic), "sharpe_spread": spread(self.sharpe)}


def spread(values: tuple[float, ...]) -> dict[str, float | None]:
    """Return mean, standard deviation, minimum, median, maximum, and the share of values above zero."""
    known = np.array([v for v in values if math.isfinite(v)])
    if not known.size:
        return dict.fromkeys(("mean", "sd", "min", "median", "max", "positive"))
    figures = known.mean(), known.std(), known.min(), float(np.median(known)), known.max(), np.mean(known > 0.0)
    return {k: float(v) for k, v in zip(("mean", "sd", "min", "median", "max", "positive"), figures, strict=True)}


def purged_paths(
    frame: FeatureFrame,
    labels: Labels,
    settings: ModelSettings,
    *,
    n_blocks: int,
    n_test: int,
    cost: float,
    progress: Progress | None = None,
) -> PurgedPaths:
    """Train a model for every choice of test blocks and put the test scores together to paths.

    Parameters
    ----------
    frame, labels, settings
        As in :func:`~crypto_qlib.modeling.train_model.train_model`; one model for all coins.
    n_blocks, n_test : int
        As in :func:`~crypto_qlib.modeling.splits.combinatorial_splits`.
    cost : float
        Fees and half spreads of a round trip, a fraction of the notional.
    progress : callable, optional
        Told the fraction of the models just trained.

    Raises
    ------
    UserError
        If a choice leaves too few bars, or as a training.
    """
    if settings.per_symbol or settings.tuning.trials:
        raise UserError("combinatorial paths are for one model for all coins, without a search", "set them off")
    splits = combinatorial_splits(frame.n_bars, n_blocks, n_test, labels.horizon_bars, settings.embargo_bars)
    scored: dict[int, list[FloatArray]] = {b: [] for b in range(n_blocks)}
    edges = np.linspace(0, frame.n_bars, n_blocks + 1).astype(np.int64)
    for split in splits:
        model = _trained(frame, labels, settings, split)
        for block in split.test_blocks:
            scored[block].append(_scores(model, frame, int(edges[block]), int(edges[block + 1]), settings.threads))
        if progress is not None:
            progress(1.0 / len(splits))
    paths = [np.concatenate([scored[b][j] for b in range(n_blocks)]) for j in range(len(scored[0]))]
    ic = tuple(summarise(rank_information_coefficients(p, labels.values), labels.horizon_bars).mean for p in paths)
    return PurgedPaths(n_blocks, n_test, len(splits), ic, tuple(net_sharpe(p, labels, cost) for p in paths))


def learning_bars(split: CombinatorialSplit, gap: int) -> tuple[Int64Array, Int64Array]:
    """Return the bars to learn from and those to validate on: the last fifth, ``gap`` bars after the others.

    Raises
    ------
    UserError
        If either is left with too few.
    """
    first = split.train[round(split.train.size * (1.0 - VALID_SHARE))]
    train, valid = split.train[split.train < first - gap], split.train[split.train >= first]
    if min(train.size, valid.size) < MIN_SEGMENT_BARS:
        raise UserError("too little data: a choice of test blocks leaves too few bars to learn from", "cut fewer blocks")
    return train, valid


def _trained(frame: FeatureFrame, labels: Labels, settings: ModelSettings, split: CombinatorialSplit) -> Any:
    train, valid = learning_bars(split, labels.horizon_bars)
    kept = np.full(labels.values.shape, np.nan)
    for bars in (train, valid):
        kept[bars] = labels.values[bars]
    # Bars under test and purged ones lie between: without a label they are never learned from.
    inside = Segment("train", int(train[0]), int(train[-1]) + 1), Segment("valid", int(valid[0]), int(valid[-1]) + 1)
    breaks = np.flatnonzero(np.diff(train) > 1)
    unbroken = int(train[0]), int(train[breaks[0]] if breaks.size else train[-1]) + 1
    spans = TimeSplit(*inside, Segment("test", 0, frame.n_bars), labels.horizon_bars, unbroken)
    model = new_model(settings)
    model.fit(make_dataset(frame, replace(labels, values=kept), spans))
    return model


def _scores(model: Any, frame: FeatureFrame, start: int, stop: int, threads: int) -> FloatArray:
    """Return the scores of bars ``start:stop`` as a grid, NaN where there is no row."""
    batch = batch_of(frame, start, stop, model.context_bars)
    rows = frame.row_span(start, stop)
    grid = np.full((stop - start, len(frame.symbols)), np.nan)
    grid[frame.row_bar[rows] - start, frame.row_symbol[rows]] = model.predict_batch(batch, threads)
    return grid


def net_sharpe(scores: FloatArray, labels: Labels, cost: float) -> float:
    """Return the annualised Sharpe ratio of the best fifth against the worst, held one horizon at a time, ``cost`` a turn."""
    step = labels.horizon_bars
    earned = quantile_spread(scores[::step], labels.forward_return[::step]) - 2.0 * cost
    known = earned[np.isfinite(earned)]
    if known.size < 2 or not known.std(ddof=1) > 0.0:  # noqa: PLR2004 - a spread takes two
        return math.nan
    a_year = _DAYS * NS_PER_DAY / (step * labels.frame_ns)
    return float(known.mean() / known.std(ddof=1)) * math.sqrt(a_year)

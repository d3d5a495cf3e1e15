"""Train, validation and test in time order, kept apart so that no label of one touches the next.

Two gaps lie between neighbouring segments, both taken off the *end* of the earlier one:

purge
    ``horizon_bars``: the label of row ``t`` spans ``open[t + 1] .. open[t + 1 + N]``. Without the purge the last training
    labels are computed from prices inside the validation segment, and the score looks better than it is.
embargo
    ``embargo_bars`` more, because features of the first rows of a segment still look back into the one before.

Besides the one split by fractions there are :func:`combinatorial_splits`: every choice of test blocks out of equal blocks of
time, with the training blocks purged on *both* sides of each test block, so that one history gives several test paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.schema import ModelSettings

MIN_SEGMENT_BARS: Final = 24
"""Fewest decision bars a segment may hold after its gaps."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Decision bars ``start:stop`` (indices into the grid)."""

    name: str
    start: int
    stop: int

    @property
    def n_bars(self) -> int:
        """Return the number of bars."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Three segments in time order, and the label horizon they were kept apart for.

    Parameters
    ----------
    train, valid, test : Segment
        In time order.
    horizon_bars : int
        Longest label span they were kept apart for.
    bins : (int, int), optional
        Decision bars ``start:stop`` that histogram bins are placed on, so that all steps of a rolling run share them; the
        training segment if absent. They end no later than the training segment.
    """

    train: Segment
    valid: Segment
    test: Segment
    horizon_bars: int
    bins: tuple[int, int] | None = None

    @property
    def segments(self) -> tuple[Segment, Segment, Segment]:
        """Return train, validation, test."""
        return self.train, self.valid, self.test


def split_bars(n_bars: int, settings: ModelSettings, span_bars: int = 0) -> TimeSplit:
    """Return the split of ``n_bars`` decision bars by the fractions of ``settings``.

    ``span_bars`` is the longest label span (``Labels.horizon_bars``) where it is longer than ``settings.horizon_bars``.

    The test segment runs to the end of the grid; its last ``N + 1`` rows have scores but no labels yet.

    Raises
    ------
    UserError
        If a segment is left with fewer than :data:`MIN_SEGMENT_BARS` bars (for the test: labelled bars).
    """
    span = max(settings.horizon_bars, span_bars)
    gap = span + settings.embargo_bars
    first = round(n_bars * settings.train_fraction)
    second = round(n_bars * (settings.train_fraction + settings.valid_fraction))
    split = TimeSplit(
        Segment("train", 0, first - gap),
        Segment("valid", first, second - gap),
        Segment("test", second, n_bars),
        span,
    )
    usable = {s.name: s.n_bars for s in split.segments}
    usable["test"] -= span + 1
    short = {name: n for name, n in usable.items() if n < MIN_SEGMENT_BARS}
    if short:
        name, n = next(iter(short.items()))
        raise UserError(
            f"too little data: {n_bars} bars leave {max(n, 0)} labelled bars for the {name} segment after a horizon of "
            f"{span} and an embargo of {settings.embargo_bars} bars (at least {MIN_SEGMENT_BARS} are needed)",
            "raise data.history_days, or lower model.horizon_bars or model.embargo_bars",
        )
    check_no_leak(split)
    return split


def check_no_leak(split: TimeSplit) -> None:
    """Refuse a split in which a label of one segment spans into the next.

    The last label of a segment ends at ``open[stop + N]``; the next segment's first label starts at ``open[start + 1]``.

    Raises
    ------
    UserError
        If segments overlap, run backwards, a label span touches the next segment's first, or bins look beyond training.
    """
    if split.bins is not None and split.bins[1] > split.train.stop:
        raise UserError(f"leak: bins are placed on bars up to {split.bins[1]}, after the training segment ({split.train.stop})")
    for segment in split.segments:
        if segment.n_bars <= 0:
            raise UserError(f"the {segment.name} segment is empty or runs backwards ({segment.start}:{segment.stop})")
    for earlier, later in pairwise(split.segments):
        label_end = earlier.stop - 1 + 1 + split.horizon_bars
        if label_end >= later.start + 1:
            raise UserError(
                f"leak: labels of the {earlier.name} segment reach bar {label_end}, but {later.name} is traded from bar "
                f"{later.start + 1}",
                f"leave at least {split.horizon_bars} bars between the segments",
            )


@dataclass(frozen=True, slots=True)
class CombinatorialSplit:
    """One choice of test blocks.

    Parameters
    ----------
    train, test : (n,) int64
        Decision bars, increasing; no label of one spans a bar of the other.
    test_blocks : tuple of int
        Blocks under test.
    """

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    test_blocks: tuple[int, ...]


def combinatorial_splits(
    n_bars: int, n_blocks: int, n_test: int, span_bars: int, embargo_bars: int = 0
) -> tuple[CombinatorialSplit, ...]:
    """Return every choice of ``n_test`` test blocks out of ``n_blocks``, purged.

    A training bar ``t`` is dropped where its label span ``t + 1 .. t + 1 + N`` touches that of a test bar, and for
    ``embargo_bars`` more after each test block. Source: Lopez de Prado, Advances in Financial Machine Learning (2018),
    sections 7.4 and 12.4.

    Parameters
    ----------
    n_bars : int
        Decision bars.
    n_blocks, n_test : int
        Equal blocks of time, and how many are tested at once; each block is tested ``C(n_blocks - 1, n_test - 1)`` times.
    span_bars : int
        ``N``, the longest label span.
    embargo_bars : int
        Bars dropped after a test block besides the purge.

    Raises
    ------
    UserError
        If a choice leaves fewer than :data:`MIN_SEGMENT_BARS` bars for training or test.
    """
    if not 0 < n_test < n_blocks:
        raise UserError(
            f"{n_test} test blocks out of {n_blocks} is no choice", "test at least one block and leave one to train on"
        )
    edges = np.linspace(0, n_bars, n_blocks + 1).astype(np.int64)
    found = []
    for chosen in combinations(range(n_blocks), n_test):
        is_test = np.zeros(n_bars, dtype=np.bool_)
        is_barred = np.zeros(n_bars, dtype=np.bool_)
        for k in chosen:
            start, stop = int(edges[k]), int(edges[k + 1])
            is_test[start:stop] = True
            is_barred[max(start - span_bars, 0) : stop + span_bars + embargo_bars] = True
        split = CombinatorialSplit(np.flatnonzero(~is_barred), np.flatnonzero(is_test), chosen)
        if min(split.train.size, split.test.size) < MIN_SEGMENT_BARS:
            raise UserError(
                f"too little data: {n_bars} bars in {n_blocks} blocks leave {split.train.size} bars to train on and "
                f"{split.test.size} to test",
                "raise data.history_days, or lower the number of blocks",
            )
        found.append(split)
    return tuple(found)

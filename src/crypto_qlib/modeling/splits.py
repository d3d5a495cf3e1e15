"""Train, validation and test in time order, kept apart so that no label of one touches the next.

Two gaps lie between neighbouring segments, both taken off the *end* of the earlier one:

purge
    ``horizon_bars``: the label of row ``t`` spans ``open[t + 1] .. open[t + 1 + N]``. Without the purge the last training
    labels are computed from prices inside the validation segment, and the score looks better than it is.
embargo
    ``embargo_bars`` more, because features of the first rows of a segment still look back into the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

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
    """Three segments in time order, and the label horizon they were kept apart for."""

    train: Segment
    valid: Segment
    test: Segment
    horizon_bars: int

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
        If segments overlap, run backwards, or a label span touches the next segment's first.
    """
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

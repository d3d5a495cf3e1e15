"""Rolling retraining through Qlib's own task generator, on bars instead of trading days.

Qlib's ``RollingGen`` shifts a task's segments over a calendar of days. :class:`BarRollingGen` is the same generator over any
list of bar times; the segments it makes become our :class:`~crypto_qlib.modeling.splits.TimeSplit`, purge and embargo kept,
and the same tasks run in ``qrun`` or Qlib's trainers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.workflow.task.gen import RollingGen
from qlib.workflow.task.utils import TimeAdjuster

from crypto_qlib.core.errors import UserError
from crypto_qlib.modeling.splits import MIN_SEGMENT_BARS, Segment, TimeSplit, check_no_leak, split_bars
from crypto_qlib.settings.schema import ModelSettings

_KINDS = {"expanding": RollingGen.ROLL_EX, "sliding": RollingGen.ROLL_SD}


class BarAdjuster(TimeAdjuster):  # type: ignore[misc]
    """Qlib's time arithmetic on a list of bar times.

    Parameters
    ----------
    stamps : DatetimeIndex
        Bar open times, increasing.
    """

    def __init__(self, stamps: pd.DatetimeIndex) -> None:  # Qlib's own would ask its calendar of days
        self._future = False
        self.cals = list(stamps)

    def set_end_time(self, end_time: Any = None) -> None:
        """Drop the times after ``end_time``."""
        if end_time is not None:
            self.cals = [t for t in self.cals if t <= pd.Timestamp(end_time)]

    def shift(self, seg: tuple[Any, Any], step: int, rtype: str = TimeAdjuster.SHIFT_SD) -> tuple[Any, Any]:
        """Return ``seg`` moved by ``step`` bars.

        Raises
        ------
        KeyError
            If it would begin behind the last bar; Qlib's own lets a segment begin just there, as ``None``.
        """
        moved: tuple[Any, Any] = super().shift(seg, step, rtype)
        if moved[0] is None:
            raise KeyError("the segment begins behind the last bar")
        return moved


class BarRollingGen(RollingGen):  # type: ignore[misc]
    """Qlib's rolling task generator, a step being a number of bars.

    Parameters
    ----------
    stamps : DatetimeIndex
        Bar open times.
    step_bars : int
        Bars of each test segment.
    window : str
        ``expanding`` or ``sliding``.
    """

    def __init__(self, stamps: pd.DatetimeIndex, step_bars: int, window: str) -> None:
        self.step = step_bars
        self.rtype = _KINDS[window]
        self.ds_extra_mod_func: Callable[..., Any] | None = None
        self.ta = BarAdjuster(stamps)
        self.test_key, self.train_key = "test", "train"
        self.trunc_days = None
        self.task_copy_func = copy.deepcopy

    def generate(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the task with its first test step, then Qlib's following ones.

        Qlib's own first step looks the end of the test up in its calendar of days; all else is Qlib's.
        """
        first = self.task_copy_func(task)
        segments = copy.deepcopy(self.ta.align_seg(first["dataset"]["kwargs"]["segments"]))
        start, test_end = segments[self.test_key]
        at = self.ta.align_idx(start)
        segments[self.test_key] = (start, self.ta.get(at + self.step - 1))
        self._update_task_segs(first, segments)
        return [first, *self.gen_following_tasks(first, test_end)]


def rolling_tasks(task: Mapping[str, Any], stamps: pd.DatetimeIndex, step_bars: int, window: str) -> list[dict[str, Any]]:
    """Return Qlib tasks that retrain ``task`` every ``step_bars`` bars until the end of its test segment.

    Parameters
    ----------
    task : mapping
        A Qlib task with ``dataset.kwargs.segments`` of bar times.
    stamps, step_bars, window
        As in :class:`BarRollingGen`.
    """
    made: list[dict[str, Any]] = BarRollingGen(stamps, step_bars, window).generate(dict(task))
    return made


def rolling_splits(ts_open: npt.NDArray[np.int64], settings: ModelSettings, span_bars: int = 0) -> tuple[TimeSplit, ...]:
    """Return the splits of a rolling run: the first tests begin where the plain split's test does, the last ends with the grid.

    Parameters
    ----------
    ts_open : (n_bars,) int64
        Grid.
    settings : ModelSettings
        ``rolling.step_bars`` > 0, and the fractions of the first split.
    span_bars : int
        Longest label span, as in :func:`~crypto_qlib.modeling.splits.split_bars`.

    Raises
    ------
    UserError
        As ``split_bars``, or if a step is too short to hold a test.
    """
    step = settings.rolling.step_bars
    if step < MIN_SEGMENT_BARS:
        raise UserError(f"model.rolling.step_bars = {step} is too short", f"use at least {MIN_SEGMENT_BARS}")
    first = split_bars(ts_open.size, settings, span_bars)
    stamps = pd.DatetimeIndex(ts_open.astype("datetime64[ns]"))
    segments = {s.name: (stamps[s.start], stamps[s.stop - 1]) for s in first.segments}
    task = {"dataset": {"kwargs": {"segments": segments}}}
    splits = []
    for made in rolling_tasks(task, stamps, step, settings.rolling.window):
        cut = {
            name: Segment(name, int(stamps.searchsorted(a)), ts_open.size if b is None else int(stamps.searchsorted(b)) + 1)
            for name, (a, b) in made["dataset"]["kwargs"]["segments"].items()
        }
        split = TimeSplit(cut["train"], cut["valid"], cut["test"], first.horizon_bars, (first.train.start, first.train.stop))
        check_no_leak(split)
        splits.append(split)
    return tuple(splits)

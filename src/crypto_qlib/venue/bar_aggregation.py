"""Turn fine bars into coarse ones: first open, highest high, lowest low, last close, summed volumes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.market import BarBlock

FloatArray = npt.NDArray[np.float64]


def aggregate_bars(fine: BarBlock, frame_ns: int) -> BarBlock:
    """Return ``fine`` grouped into bars of ``frame_ns``, aligned to the epoch in UTC.

    A coarse bar exists where at least one fine bar lies in it (a listing may begin inside a bar). Volumes are summed
    from left to right, so a fine bar split differently may differ in the last bit; prices never do. NaN volumes stay NaN.

    Parameters
    ----------
    fine : BarBlock
        Increasing bars whose frame divides ``frame_ns``; gaps allowed.
    frame_ns : int
        Length of the coarse bars, nanoseconds.
    """
    if len(fine) == 0:
        return fine
    key = fine.ts_open - fine.ts_open % frame_ns
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    if first.size == key.size:
        return BarBlock(key, fine.open, fine.high, fine.low, fine.close, fine.volume, fine.quote_volume)
    last = np.r_[first[1:], key.size] - 1
    return BarBlock(
        key[first],
        fine.open[first],
        np.maximum.reduceat(fine.high, first),
        np.minimum.reduceat(fine.low, first),
        fine.close[last],
        np.add.reduceat(fine.volume, first),
        np.add.reduceat(fine.quote_volume, first),
    )


def rows_between(block: BarBlock, start_ns: int, end_ns: int) -> BarBlock:
    """Return the bars with ``start_ns <= ts_open < end_ns``, as views."""
    a, b = np.searchsorted(block.ts_open, [start_ns, end_ns])
    return BarBlock(
        block.ts_open[a:b],
        block.open[a:b],
        block.high[a:b],
        block.low[a:b],
        block.close[a:b],
        block.volume[a:b],
        block.quote_volume[a:b],
    )

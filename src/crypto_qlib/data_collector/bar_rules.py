"""What is wrong with a bar, and what is done about it. Pure functions on arrays.

Every rule that *changes* a value uses only what was known when the bar closed, so that research sees what a live session
would have seen; findings that need a later bar only set a flag. Raw bars stay in the lake beside the cleaned ones.

=================  ====================================================  =================================================
flag               found when                                            done
=================  ====================================================  =================================================
``DUPLICATE``      two bars of one open time                             the later one in the input is kept
``OUT_OF_ORDER``   a bar older than one before it                        sorted
``BAD_PRICE``      a price is NaN, infinite, zero or negative            all values of the bar become NaN
``BAD_RANGE``      high < max(open, close) or low > min(open, close)     high and low are widened to hold open and close
``BAD_VOLUME``     volume negative or infinite                           both volumes become NaN
``STALE``          at least a day (24 bars) of flat bars, no volume      from then on values become NaN
``OUTLIER``        the close jumped, the mark and other coins did not    prices far off the mark become the mark's
``SUSPECT``        a jump that reverts in the next bar, or a wick, that  nothing: told in the report
                   neither the mark nor other coins share
=================  ====================================================  =================================================

The rules about a series as a whole (``FROZEN``, ``VOLUME_UNIT``, ``RESCALED``, ``DELISTED``) are in :mod:`.series_rules`.

A *jump* is ``|ln(close_t / close_{t-1})| > k * sigma_t`` (``0.4 k`` where a mark is known), with
``sigma_t = 1.4826 * median |r|`` over the week before.
A crash that the mark or a tenth of the other coins share is never touched or flagged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.market import BarBlock, FloatArray

FlagArray = npt.NDArray[np.uint16]
BoolArray = npt.NDArray[np.bool_]

PRICES: Final = ("open", "high", "low", "close")

_MAD_TO_SIGMA: Final = 1.4826
_SIGMA_WINDOW: Final = 168
_SIGMA_STEP: Final = 24
_MIN_RETURNS: Final = 24
_MIN_SIGMA: Final = 1e-4
_REVERTS_TO: Final = 0.25
"""A jump reverts when the next close is back within this share of it."""
_SHARED_SIGMAS: Final = 5.0
_SHARED_FRACTION: Final = 0.1
_LEAST_SHARING: Final = 2.0
"""Two bad prints may fall into one bar by chance; three coins do not."""
_MIN_OTHERS: Final = 3
_WITH_MARK: Final = 0.4
"""Share of ``data.outlier_sigmas`` that makes a jump where a mark is there to contradict it."""
_MARK_SHARES: Final = 0.5
"""The mark shares a jump when it moved at least this share of it."""


class Flag(IntFlag):
    """Why a cleaned bar is not simply the raw one."""

    DUPLICATE = 1
    OUT_OF_ORDER = 2
    BAD_PRICE = 4
    BAD_RANGE = 8
    BAD_VOLUME = 16
    STALE = 32
    OUTLIER = 64
    SUSPECT = 128
    FROZEN = 256
    VOLUME_UNIT = 512
    RESCALED = 1024
    DELISTED = 2048


@dataclass(frozen=True, slots=True)
class Grid:
    """Prices of many symbols on one grid, for the rules that compare symbols; all ``(n_bars, n_symbols)``, NaN = missing."""

    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray


def in_order(block: BarBlock) -> tuple[BarBlock, FlagArray]:
    """Return the bars sorted by time, one a time stamp, and which of them were doubled or out of order."""
    ts = block.ts_open
    flags = np.zeros(ts.size, np.uint16)
    if ts.size:
        flags[ts < np.maximum.accumulate(ts)] |= np.uint16(Flag.OUT_OF_ORDER)
    order = np.argsort(ts, kind="stable")
    is_same_as_next = np.append(ts[order][1:] == ts[order][:-1], False) if ts.size else np.empty(0, np.bool_)
    keep = order[~is_same_as_next]
    kept = BarBlock(*(getattr(block, n)[keep] for n in BarBlock.__slots__))
    kept_flags = flags[keep]
    doubled = np.isin(kept.ts_open, ts[order][is_same_as_next])
    kept_flags[doubled] |= np.uint16(Flag.DUPLICATE)
    return kept, kept_flags


def repair(block: BarBlock, frame_ns: int) -> tuple[BarBlock, FlagArray]:
    """Apply the rules that look at one symbol only: bad prices, ranges, volumes and stale bars.

    Parameters
    ----------
    block : BarBlock
        In order, one bar a time stamp.
    frame_ns : int
        Bar length; a stale run is at least a day and at least 24 bars.

    Returns
    -------
    (BarBlock, (n_bars,) uint16)
        The same bars, mended, and their flags.
    """
    flags = np.zeros(len(block), np.uint16)
    prices = {n: getattr(block, n).copy() for n in PRICES}
    volumes = {n: getattr(block, n).copy() for n in ("volume", "quote_volume")}
    is_bad = ~np.all([np.isfinite(p) & (p > 0.0) for p in prices.values()], axis=0)
    top = np.maximum(prices["open"], prices["close"])
    bottom = np.minimum(prices["open"], prices["close"])
    is_narrow = ~is_bad & ((prices["high"] < top) | (prices["low"] > bottom))
    prices["high"][is_narrow] = np.maximum(prices["high"], top)[is_narrow]
    prices["low"][is_narrow] = np.minimum(prices["low"], bottom)[is_narrow]
    has_bad_volume = np.any([(v < 0.0) | np.isinf(v) for v in volumes.values()], axis=0)
    is_stale = _is_stale(block, max(24, -(-NS_PER_DAY // frame_ns))) & ~is_bad
    for price in prices.values():
        price[is_bad | is_stale] = np.nan
    for volume in volumes.values():
        volume[is_bad | is_stale | has_bad_volume] = np.nan
    flags[is_bad] |= np.uint16(Flag.BAD_PRICE)
    flags[is_narrow] |= np.uint16(Flag.BAD_RANGE)
    flags[has_bad_volume] |= np.uint16(Flag.BAD_VOLUME)
    flags[is_stale] |= np.uint16(Flag.STALE)
    return BarBlock(block.ts_open, **prices, **volumes), flags


def _is_stale(block: BarBlock, least: int) -> BoolArray:
    """Return which bars end a run of at least ``least`` bars without volume or movement: known at each bar's own close."""
    close = block.close
    is_flat = (block.open == close) & (block.high == close) & (block.low == close) & (block.volume == 0.0)
    is_flat[1:] &= close[1:] == close[:-1]
    position = np.arange(close.size)
    last_moving = np.maximum.accumulate(np.where(is_flat, -1, position)) if close.size else position
    stale: BoolArray = is_flat & (position - last_moving >= least)
    return stale


def trailing_sigma(returns: FloatArray) -> FloatArray:
    """Return ``1.4826 * median |r|`` of the 168 bars before each bar, renewed every 24 bars; NaN with fewer than 24 returns.

    Parameters
    ----------
    returns : (n_bars, n_symbols) float64
        Log returns, NaN where unknown. The result at bar t uses no return of bar t or later.
    """
    n_bars, n_symbols = returns.shape
    sigma = np.full_like(returns, np.nan)
    for start in range(_SIGMA_STEP, n_bars, _SIGMA_STEP):
        window = np.abs(returns[max(start - _SIGMA_WINDOW, 0) : start])
        n_known = np.count_nonzero(~np.isnan(window), axis=0)
        middle = np.sort(window, axis=0)[np.maximum(n_known - 1, 0) // 2, np.arange(n_symbols)]
        level = np.where(n_known >= _MIN_RETURNS, np.maximum(_MAD_TO_SIGMA * middle, _MIN_SIGMA), np.nan)
        sigma[start : start + _SIGMA_STEP] = level
    return sigma


def log_returns(close: FloatArray) -> FloatArray:
    """Return ``ln(close_t / close_{t-1})``, NaN in the first row and wherever one of the two is missing."""
    returns = np.full_like(close, np.nan)
    returns[1:] = np.diff(np.log(close), axis=0)
    return returns


def find_outliers(last: Grid, mark: Grid, sigmas: float) -> tuple[BoolArray, BoolArray, FloatArray]:
    """Return which bars are ``OUTLIER``, which are ``SUSPECT``, and the volatility the rule used.

    Parameters
    ----------
    last, mark : Grid
        Last and mark prices; mark NaN where none is known.
    sigmas : float
        Robust z-score of a jump (``data.outlier_sigmas``).
    """
    returns = log_returns(last.close)
    sigma = trailing_sigma(returns)
    with np.errstate(invalid="ignore"):
        mark_returns = log_returns(mark.close)
        off_mark = np.abs(np.log(last.close / mark.close))
        # A mark that stands still says more than any threshold: with one, a smaller jump is enough to look closer.
        needed = np.where(np.isfinite(off_mark) & np.isfinite(mark_returns), _WITH_MARK * sigmas, sigmas)
        is_jump = np.abs(returns) > needed * sigma
        is_shared = _shared_by_others(returns, sigma, is_jump)
        mark_shares = (np.sign(mark_returns) == np.sign(returns)) & (np.abs(mark_returns) >= _MARK_SHARES * np.abs(returns))
        is_outlier = is_jump & ~is_shared & ~mark_shares & (off_mark >= _MARK_SHARES * np.abs(returns))
        back = np.full_like(returns, np.nan)
        back[1:-1] = np.abs(np.log(last.close[2:] / last.close[:-2]))
        reverts = back < _REVERTS_TO * np.abs(returns)
        is_suspect = is_jump & reverts & ~is_shared & ~mark_shares & ~is_outlier
        is_suspect |= _is_lone_wick(last, mark, sigmas * sigma) & ~is_outlier
    return is_outlier, is_suspect, sigma


def _shared_by_others(returns: FloatArray, sigma: FloatArray, is_jump: BoolArray) -> BoolArray:
    """Return which jumps at least a tenth (and three) of the other symbols make in the same direction, at 5 sigmas."""
    scores = returns / sigma
    rises = np.count_nonzero(scores > _SHARED_SIGMAS, axis=1)[:, None]
    falls = np.count_nonzero(scores < -_SHARED_SIGMAS, axis=1)[:, None]
    others = np.where(returns > 0.0, rises, falls) - 1
    n_known = np.count_nonzero(~np.isnan(scores), axis=1)[:, None] - 1
    shared: BoolArray = is_jump & (others >= np.maximum(_SHARED_FRACTION * n_known, _LEAST_SHARING)) & (n_known >= _MIN_OTHERS)
    return shared


def _is_lone_wick(last: Grid, mark: Grid, limit: FloatArray) -> BoolArray:
    """Return bars whose high or low lies further than ``limit`` from open and close while the mark's does not."""
    top, bottom = np.maximum(last.open, last.close), np.minimum(last.open, last.close)
    up, down = np.log(last.high / top), np.log(bottom / last.low)
    mark_up = np.log(mark.high / np.maximum(mark.open, mark.close))
    mark_down = np.log(np.minimum(mark.open, mark.close) / mark.low)
    has_mark = ~np.isnan(mark.close)
    above = has_mark & (up > limit) & (mark_up < _MARK_SHARES * up)
    below = has_mark & (down > limit) & (mark_down < _MARK_SHARES * down)
    lone: BoolArray = above | below
    return lone


def follow_mark(last: Grid, mark: Grid, is_outlier: BoolArray, limit: FloatArray) -> Grid:
    """Return ``last`` with the prices of outlier bars that lie further than ``limit`` off the mark replaced by the mark's.

    The open of the bar after an outlier is treated likewise: it is often the same bad print.

    Parameters
    ----------
    last, mark : Grid
        Prices.
    is_outlier : (n_bars, n_symbols) bool
        From :func:`find_outliers`.
    limit : (n_bars, n_symbols) float64
        Log distance tolerated.
    """
    after = np.zeros_like(is_outlier)
    after[1:] = is_outlier[:-1]
    with np.errstate(invalid="ignore"):
        open_ = np.where((is_outlier | after) & (np.abs(np.log(last.open / mark.open)) > limit), mark.open, last.open)
        close = np.where(is_outlier & (np.abs(np.log(last.close / mark.close)) > limit), mark.close, last.close)
        top = np.fmax(np.maximum(open_, close), mark.high)
        bottom = np.fmin(np.minimum(open_, close), mark.low)
        touched = is_outlier | (after & (open_ != last.open))
        high = np.where(touched & (np.log(last.high / top) > limit), top, last.high)
        low = np.where(touched & (np.log(bottom / last.low) > limit), bottom, last.low)
    held = touched & ~np.isnan(close)
    high = np.where(held, np.maximum(high, np.maximum(open_, close)), high)
    low = np.where(held, np.minimum(low, np.minimum(open_, close)), low)
    return Grid(open_, high, low, close)

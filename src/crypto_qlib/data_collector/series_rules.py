"""Rules about one symbol's series as a whole: feeds that freeze, units that change, bars outside the contract's life.

=================  ========================================================  ==============================================
flag               found when                                                done
=================  ========================================================  ==============================================
``FROZEN``         prices and a volume above zero equal the bar before's     all values become NaN: a feed that repeats itself
``VOLUME_UNIT``    turnover says the volume is off by a power of ten, or     volume is worked out from turnover; where no
                   it *is* the turnover                                      turnover is known, a lasting jump is only told
``RESCALED``       the price *between* two bars jumps by a power of ten,     every bar before the newest such jump becomes NaN:
                   stays there, and the bars around it are calm              it is quoted in other units
``DELISTED``       the bar opens outside the contract's life                 all values become NaN
=================  ========================================================  ==============================================

A crash is never taken for a re-denomination: prices that fall do so inside bars, units change between two of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from crypto_qlib.core.market import BarBlock, FloatArray
from crypto_qlib.data_collector.bar_rules import PRICES, BoolArray, Flag, FlagArray

_LN10: Final = float(np.log(10.0))
_UNIT_SLACK: Final = 0.15
"""How far (log) a jump may lie from a power of ten and still be one."""
_CALM: Final = 0.2
"""Largest log range of the bars on both sides of a change of units."""
_DECADE_SLACK: Final = 0.2
"""How far (decades) turnover / (volume x price) may lie from a power of ten other than one and still say "another unit"."""
_SAME: Final = 0.02
_FAR_PRICE: Final = float(np.log(3.0))
_AROUND: Final = 24
_VOLUME_DECADES: Final = 1.5
"""A lasting change of the usual volume by more decades than this is told as a change of units."""


def check_series(block: BarBlock, listed_ns: int, delisted_ns: int | None) -> tuple[BarBlock, FlagArray]:
    """Apply the rules of this module to bars that are in order and repaired.

    Parameters
    ----------
    block : BarBlock
        One symbol.
    listed_ns, delisted_ns : int
        The contract's life; 0 and ``None`` where unknown.
    """
    flags = np.zeros(len(block), np.uint16)
    is_frozen = find_frozen(block)
    is_outside = (block.ts_open < listed_ns) | (False if delisted_ns is None else block.ts_open >= delisted_ns)
    breaks = find_rescaling(block)
    is_old = np.zeros(len(block), np.bool_)
    if breaks.any():
        is_old[: int(np.flatnonzero(breaks)[-1])] = True
    volume, is_unit = mend_volume(block)
    is_unit |= find_volume_steps(block)
    for is_found, flag in (
        (is_frozen, Flag.FROZEN),
        (is_outside, Flag.DELISTED),
        (breaks, Flag.RESCALED),
        (is_unit, Flag.VOLUME_UNIT),
    ):
        flags[is_found] |= np.uint16(flag)
    is_gone = is_frozen | is_outside | is_old
    fields = {n: np.where(is_gone, np.nan, getattr(block, n)) for n in (*PRICES, "quote_volume")}
    return BarBlock(block.ts_open, volume=np.where(is_gone, np.nan, volume), **fields), flags


def find_frozen(block: BarBlock) -> BoolArray:
    """Return which bars repeat the bar before in every price and in a volume above zero."""
    is_same = np.zeros(len(block), np.bool_)
    if len(block) > 1:
        equal = [getattr(block, n)[1:] == getattr(block, n)[:-1] for n in (*PRICES, "volume")]
        is_same[1:] = np.all(equal, axis=0) & (block.volume[1:] > 0.0)
    return is_same


def find_rescaling(block: BarBlock) -> BoolArray:
    """Return the bars that open by a power of ten off the close before, in calm bars, and close there."""
    is_break = np.zeros(len(block), np.bool_)
    if len(block) < 2:  # noqa: PLR2004
        return is_break
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.log(block.open[1:] / block.close[:-1])
        decades = np.rint(gap / _LN10)
        calm = np.log(block.high / block.low) < _CALM
        stays = np.abs(np.log(block.close[1:] / block.open[1:])) < _CALM
        is_break[1:] = (decades != 0.0) & (np.abs(gap - decades * _LN10) < _UNIT_SLACK) & calm[1:] & calm[:-1] & stays
    return _that_last(block.close, is_break)


def _that_last(close: FloatArray, is_break: BoolArray) -> BoolArray:
    """Return the breaks after which the price does not come back within the next bar: a bad print does."""
    kept = is_break.copy()
    for k in np.flatnonzero(is_break).tolist():
        after = close[k + 1 : k + 2]
        if after.size and abs(float(np.log(after[0] / close[k]))) > _LN10 - _UNIT_SLACK:
            kept[k] = False
            kept[k + 1 : k + 2] = False
    return kept


def mend_volume(block: BarBlock) -> tuple[FloatArray, BoolArray]:
    """Return the volume, taken from turnover where the two are off by a power of ten or equal, and where that is.

    Any other disagreement is the price's fault: a bad print does not change what was traded.
    """
    middle = (block.open + block.high + block.low + block.close) / 4.0
    with np.errstate(invalid="ignore", divide="ignore"):
        implied = block.quote_volume / middle
        decades = np.log10(block.volume / implied)
        is_decade = (np.abs(decades) > 0.5) & (np.abs(decades - np.rint(decades)) < _DECADE_SLACK)  # noqa: PLR2004
        is_quote = (np.abs(np.log(block.volume / block.quote_volume)) < _SAME) & (np.abs(np.log(middle)) > _FAR_PRICE)
        is_off = (is_decade | is_quote) & (block.volume > 0.0) & (implied > 0.0)
    return np.where(is_off, implied, block.volume), is_off


def find_volume_steps(block: BarBlock) -> BoolArray:
    """Return where the usual volume (24 bars before, 24 after) changes by decades in one bar, for blocks without turnover.

    It needs later bars and changes nothing: the report tells it.
    """
    is_step = np.zeros(len(block), np.bool_)
    n = len(block)
    if n < 2 * _AROUND or np.isfinite(block.quote_volume).any():
        return is_step
    with np.errstate(divide="ignore"):
        level = np.log10(np.where(block.volume > 0.0, block.volume, np.nan))
    windows = np.lib.stride_tricks.sliding_window_view(level, _AROUND)
    known = np.count_nonzero(np.isfinite(windows), axis=1) > _AROUND // 2
    middle = np.full(windows.shape[0], np.nan)
    middle[known] = np.nanmedian(windows[known], axis=1)
    change = np.abs(middle[_AROUND:] - middle[:-_AROUND])  # at k: bars k+24..k+47 against bars k..k+23
    single = np.abs(np.diff(level))[_AROUND - 1 : _AROUND - 1 + change.size]
    with np.errstate(invalid="ignore"):
        is_step[_AROUND : _AROUND + change.size] = (change > _VOLUME_DECADES) & (single > _VOLUME_DECADES / 2.0)
    return is_step

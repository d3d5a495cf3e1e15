"""Per-symbol series every feature rule reads, stacked as one array: ``data[symbol, series, bar]``.

Every entry of bar ``t`` depends on bars ``<= t`` only, and on at most :data:`EMA_BARS` of them, so the series of a short
panel that ends at ``t`` equal those of a long one bit for bit once the panel is longer than the look-back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.jit import njit
from crypto_qlib.core.market import MarketPanel
from crypto_qlib.feature_engineering.feature_frame import RowIndex, index_rows
from crypto_qlib.feature_engineering.side_data import SideData

Cube = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

OPEN: Final = 0
HIGH: Final = 1
LOW: Final = 2
CLOSE: Final = 3
VWAP: Final = 4
VOLUME: Final = 5
QUOTE_VOLUME: Final = 6
FUNDING: Final = 7
"""Rate settled at the bar's open instant; NaN where none was."""
BASIS: Final = 8
"""``mark_close / close - 1``; NaN where no mark is known."""
LOG_CLOSE: Final = 9
RETURN: Final = 10
"""Log return ``log(close[t] / close[t-1])``; NaN across a gap."""
TRUE_RANGE: Final = 11
LOG_VOLUME: Final = 12
"""``log(1 + quote volume)``."""
MACD: Final = 13
"""``EMA12(close) - EMA26(close)``, finite memory."""
BTC_RETURN: Final = 14
MARKET_RETURN: Final = 15
"""Mean log return of the universe at the bar."""
BREADTH: Final = 16
"""Share of the universe with a positive log return at the bar."""
N_SERIES: Final = 17

EMA_BARS: Final = 250
"""Memory of exponential averages, bars: weights older than this are dropped (below 1e-8 of the total for the spans used)."""
SIGNAL_BARS: Final = 80
"""Memory of the MACD signal line, bars."""


@dataclass(frozen=True, slots=True)
class FeatureInputs:
    """What the feature kernels read.

    Parameters
    ----------
    data : (n_symbols, N_SERIES, n_bars) float64
        Series per symbol, symbols in sorted-name order.
    rows : RowIndex
        Which pairs get a row.
    first_bar : int
        First bar rows are wanted for.
    frame_ns : int
        Bar length.
    ts_open : (n_bars,) int64
        Open times of all bars.
    names : tuple of str
        Symbols in sorted order.
    is_member : (n_symbols, n_bars) bool
        Whether the symbol belonged to the universe as known at the bar's close.
    side : SideData
        What is known beside the bars.
    """

    data: Cube
    rows: RowIndex
    first_bar: int
    frame_ns: int
    ts_open: npt.NDArray[np.int64]
    names: tuple[str, ...]
    is_member: npt.NDArray[np.bool_]
    side: SideData


@njit
def vwap_of(high: float, low: float, close: float, volume: float, quote_volume: float) -> float:
    """Return ``quote_volume / volume``, or ``(high + low + close) / 3`` where volume or turnover is zero or unknown."""
    if volume > 0.0 and quote_volume > 0.0:
        return quote_volume / volume
    return (high + low + close) / 3.0


@njit
def ema_at(series: npt.NDArray[np.float64], t: int, alpha: float, memory: int, min_count: int) -> float:
    """Return the exponential average of the last ``memory`` bars at ``t`` with weights ``(1 - alpha)^age``, normalised.

    Missing bars get no weight but age the others; NaN with fewer than ``min_count`` present bars. Equal to
    pandas ``ewm(alpha, adjust=True)`` cut to ``memory`` bars.
    """
    total = 0.0
    weight = 0.0
    count = 0
    for k in range(max(0, t - memory + 1), t + 1):
        total *= 1.0 - alpha
        weight *= 1.0 - alpha
        if not math.isnan(series[k]):
            total += series[k]
            weight += 1.0
            count += 1
    return total / weight if count >= min_count else math.nan


@njit
def fill_symbol_series(x: Matrix, macd_from: int, first: int = 0) -> None:
    """Fill one symbol's derived series from bar ``first`` on, in place; ``x`` is ``(N_SERIES, n_bars)``, raw fields set."""
    for t in range(first, x.shape[1]):
        close = x[CLOSE, t]
        previous = x[CLOSE, t - 1] if t > 0 else math.nan
        x[VWAP, t] = vwap_of(x[HIGH, t], x[LOW, t], close, x[VOLUME, t], x[QUOTE_VOLUME, t])
        turnover = x[QUOTE_VOLUME, t] if x[QUOTE_VOLUME, t] >= 0.0 else x[VOLUME, t] * x[VWAP, t]
        x[QUOTE_VOLUME, t] = turnover
        x[LOG_VOLUME, t] = math.log(1.0 + turnover)
        x[LOG_CLOSE, t] = math.log(close) if close > 0.0 else math.nan
        x[RETURN, t] = math.log(close / previous) if close > 0.0 and previous > 0.0 else math.nan
        x[TRUE_RANGE, t] = max(x[HIGH, t] - x[LOW, t], abs(x[HIGH, t] - previous), abs(x[LOW, t] - previous))
        if math.isnan(previous):
            x[TRUE_RANGE, t] = math.nan
    for t in range(max(0, macd_from), x.shape[1]):
        fast = ema_at(x[CLOSE], t, 2.0 / 13.0, EMA_BARS, 12)
        x[MACD, t] = fast - ema_at(x[CLOSE], t, 2.0 / 27.0, EMA_BARS, 26)


@njit
def _fill_market_series(data: Cube, is_member: npt.NDArray[np.bool_], btc: int, first: int) -> None:
    """Fill the series that look across the universe's members (in sorted-name order, so the panel's order does not matter)."""
    n_symbols, _, n_bars = data.shape
    for t in range(first, n_bars):
        total = 0.0
        rising = 0
        count = 0
        for s in range(n_symbols):
            r = data[s, RETURN, t]
            if is_member[s, t] and not math.isnan(r):
                total += r
                rising += 1 if r > 0.0 else 0
                count += 1
        for s in range(n_symbols):
            data[s, MARKET_RETURN, t] = total / count if count else math.nan
            data[s, BREADTH, t] = rising / count if count else math.nan
            data[s, BTC_RETURN, t] = data[btc, RETURN, t] if btc >= 0 else math.nan


@njit
def _fill_all(data: Cube, macd_from: int, first: int) -> None:
    for s in range(data.shape[0]):
        fill_symbol_series(data[s], macd_from, first)


def mark_is_known(panel: MarketPanel) -> npt.NDArray[np.bool_]:
    """Return where a bar has a mark of its own, shape ``(n_bars, n_symbols)``.

    A panel repeats the last prices where no mark is known. ``has_mark`` cannot tell bars apart and looks at the whole span, the
    future included; a bar whose four mark prices all equal its last prices is taken as having none.
    """
    pairs = (
        (panel.mark_open, panel.open),
        (panel.mark_high, panel.high),
        (panel.mark_low, panel.low),
        (panel.mark_close, panel.close),
    )
    known = np.zeros(panel.close.shape, dtype=np.bool_)
    for mark, last in pairs:
        known |= mark != last
    return known & np.isfinite(panel.mark_close)


def build_inputs(
    panel: MarketPanel,
    first_bar: int = 0,
    btc_symbol: str = "BTCUSDT",
    side: SideData | None = None,
    n_series: int = N_SERIES,
    *,
    with_macd: bool = True,
) -> FeatureInputs:
    """Return the stacked series of ``panel`` and the rows wanted from ``first_bar`` on.

    Parameters
    ----------
    panel : MarketPanel
        Bars; only this panel is read.
    first_bar : int
        Rows are wanted for bars ``first_bar ..``.
    btc_symbol : str
        The market leader; its series are NaN where the panel does not hold it.
    side : SideData, optional
        What is known beside the bars.
    n_series : int
        Series to make room for; those beyond :data:`N_SERIES` stay NaN (see :mod:`wide_series`).
    with_macd : bool
        Whether the MACD series is wanted: two averages of 250 bars at every bar are most of the work.
    """
    rows = index_rows(panel, first_bar)
    data = np.full((len(panel.symbols), n_series, panel.n_bars), np.nan)
    names = tuple(panel.symbols[k] for k in rows.order)
    is_member = np.ascontiguousarray(panel.is_member.T[rows.order])
    inputs = FeatureInputs(data, rows, first_bar, panel.frame_ns, panel.ts_open, names, is_member, side or SideData())
    fill_bars(inputs, panel, 0, btc_symbol, first_bar - SIGNAL_BARS if with_macd else panel.n_bars)
    return inputs


def fill_bars(inputs: FeatureInputs, panel: MarketPanel, first: int, btc_symbol: str, macd_from: int) -> None:
    """Fill the plain series of the bars of ``panel`` from ``first`` on, in place; those before them stand already.

    ``macd_from`` is the first bar whose MACD is wanted.
    """
    data, order = inputs.data, inputs.rows.order
    raw = {
        OPEN: panel.open,
        HIGH: panel.high,
        LOW: panel.low,
        CLOSE: panel.close,
        VOLUME: panel.volume,
        QUOTE_VOLUME: panel.quote_volume,
        FUNDING: panel.funding_rate,
    }
    for series, field in raw.items():
        data[:, series, first:] = field[first:].T[order]
    new = panel.rows(first, panel.n_bars)
    basis = np.where(mark_is_known(new), new.mark_close / new.close - 1.0, np.nan)
    data[:, BASIS, first:] = basis.T[order]
    _fill_all(data, macd_from, first)
    names = inputs.names
    _fill_market_series(data, inputs.is_member, names.index(btc_symbol) if btc_symbol in names else -1, first)

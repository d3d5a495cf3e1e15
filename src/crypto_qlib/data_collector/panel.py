"""From the lake to the aligned panel that features, backtest and Qlib share. Nothing is invented: what is missing is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, NS_PER_MINUTE, floor_ts, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, FloatArray, IntArray, MarketPanel
from crypto_qlib.store.lake import Kind, Lake, Series

_PRICES: Final = PANEL_FIELDS[:4]
_BAR: Final = PANEL_FIELDS[:6]
_FUNDING_SLACK_NS: Final = NS_PER_MINUTE


def load_panel(
    lake: Lake,
    symbols: Sequence[str],
    frame: str,
    start_ns: int | None = None,
    end_ns: int | None = None,
    kind: Kind = Kind.CLEAN,
) -> MarketPanel:
    """Return the bars of ``symbols`` on one regular grid.

    Parameters
    ----------
    lake : Lake
        Where bars, marks and funding lie.
    symbols : sequence of str
        Columns of the panel, in this order.
    frame : str
        Bar length, e.g. ``1h``.
    start_ns, end_ns : int, optional
        The grid holds bars with ``start_ns <= ts_open < end_ns``; by default all there are, from the first bar of any
        symbol to the last.
    kind : Kind
        ``CLEAN`` (default) or ``CANDLES`` (raw).

    Returns
    -------
    MarketPanel
        NaN where a symbol was not listed or a bar is missing. Where no mark bar is known the mark columns repeat the last
        prices (``has_mark`` is False for symbols without any). A settlement inside a bar is put on the first bar that opens
        at or after it (up to one minute of the exchange's jitter after an open counts as at the open), several on one bar
        add up; NaN where none took place or none is known.

    Raises
    ------
    UserError
        If there is no bar at all, or a file is damaged.
    """
    frame_ns = FRAME_NS[frame]
    bars = [lake.read_bars(kind, frame, s, start_ns, end_ns) for s in symbols]
    seen = [b.ts_open for b in bars if len(b)]
    if not seen:
        hint = "run `crypto-qlib data check`" if kind is Kind.CLEAN else "run `crypto-qlib data update`"
        raise UserError(
            f"the lake has no {kind} {frame} bars of {', '.join(symbols[:3]) or 'any symbol'}{_window(start_ns, end_ns)}", hint
        )
    first = min(int(ts[0]) for ts in seen) if start_ns is None else -(-start_ns // frame_ns) * frame_ns
    last = max(int(ts[-1]) for ts in seen) if end_ns is None else floor_ts(end_ns - 1, frame_ns)
    grid = first + frame_ns * np.arange((last - first) // frame_ns + 1, dtype=np.int64)
    columns = {name: np.full((grid.size, len(symbols)), np.nan) for name in PANEL_FIELDS}
    has_mark = np.zeros(len(symbols), dtype=np.bool_)
    for j, (symbol, block) in enumerate(zip(symbols, bars, strict=True)):
        rows = (block.ts_open - first) // frame_ns
        for name in _BAR:
            columns[name][rows, j] = getattr(block, name)
        has_mark[j] = _fill_mark(columns, j, lake, Series(Kind.MARK, frame, symbol), grid)
        settled = lake.read_funding(symbol, first - frame_ns, last + frame_ns)
        columns["funding_rate"][:, j] = funding_on_grid(settled.ts, settled.rate, grid, frame_ns)
    return MarketPanel(tuple(symbols), frame_ns, grid, has_mark=has_mark, **columns)


def _window(start_ns: int | None, end_ns: int | None) -> str:
    return (f" from {iso(start_ns)}" if start_ns is not None else "") + (f" to {iso(end_ns)}" if end_ns is not None else "")


def _fill_mark(columns: dict[str, FloatArray], j: int, lake: Lake, series: Series, grid: IntArray) -> bool:
    for name in _PRICES:
        columns[f"mark_{name}"][:, j] = columns[name][:, j]
    frame_ns = FRAME_NS[series.frame]
    mark = lake.read(series, int(grid[0]), int(grid[-1]) + frame_ns)
    is_whole = np.all([np.isfinite(mark[n]) & (mark[n] > 0.0) for n in _PRICES], axis=0)
    rows = (mark["ts"][is_whole] - grid[0]) // frame_ns
    for name in _PRICES:
        columns[f"mark_{name}"][rows, j] = mark[name][is_whole]
    return bool(rows.size)


def funding_on_grid(ts: IntArray, rate: FloatArray, grid: IntArray, frame_ns: int) -> FloatArray:
    """Return funding per bar: the sum of the rates of all settlements in ``(previous open, open]``, NaN where there is none.

    Parameters
    ----------
    ts : (n,) int64
        Settlement instants, ns; up to one minute (half a bar, if shorter) after an open counts as at the open.
    rate : (n,) float64
        Realised rates, fraction of mark notional.
    grid : (n_bars,) int64
        Open times, step ``frame_ns``.
    frame_ns : int
        Bar length.
    """
    per_bar = np.full(grid.size, np.nan)
    if not ts.size or not grid.size:
        return per_bar
    slack = min(_FUNDING_SLACK_NS, frame_ns // 2)
    rows = -((int(grid[0]) + slack - ts) // frame_ns)
    is_inside = (rows >= 0) & (rows < grid.size) & np.isfinite(rate)
    rows = rows[is_inside]
    total = np.zeros(grid.size)
    np.add.at(total, rows, rate[is_inside])
    per_bar[rows] = total[rows]
    return per_bar

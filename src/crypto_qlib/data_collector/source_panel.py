"""A panel straight from a market's history, without an exchange or a lake in between: for notebooks and studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, floor_ts, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock, FloatArray, IntArray, MarketPanel
from crypto_qlib.data_collector.panel import funding_on_grid
from crypto_qlib.venue.market_source import MarketSource

_LAST = ("open", "high", "low", "close", "volume", "quote_volume")


def panel_of_source(
    source: MarketSource, frame: str, symbols: Sequence[str] = (), start_ns: int | None = None, end_ns: int | None = None
) -> MarketPanel:
    """Return the bars of ``source`` on one regular grid.

    Parameters
    ----------
    source : MarketSource
        Simulated or replayed market.
    frame : str
        Bar length, a multiple of the source's base frame.
    symbols : sequence of str
        Columns; by default every instrument, in the source's order.
    start_ns, end_ns : int, optional
        The grid holds whole bars with ``start_ns <= ts_open`` that close at or before ``end_ns``; by default all.

    Returns
    -------
    MarketPanel
        NaN where a symbol has no bar; mark equals last where the source knows no mark; funding as in
        :func:`~crypto_qlib.data_collector.panel.load_panel`.

    Raises
    ------
    UserError
        If a symbol is unknown, the frame is finer than the source, or no bar is left.
    """
    frame_ns = FRAME_NS[frame]
    known = [item.symbol for item in source.instruments()]
    unknown = [s for s in symbols if s not in known]
    if unknown:
        raise UserError(f"the market has no {unknown[0]}", f"it has {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}")  # noqa: PLR2004
    if frame_ns % source.base_frame_ns:
        raise UserError(
            f"bars of {frame} cannot be made from bars of {source.base_frame_ns // 10**9} s", "choose a coarser frame"
        )
    first = floor_ts(max(source.start_ns, start_ns or source.start_ns) + frame_ns - 1, frame_ns)
    stop = floor_ts(min(source.end_ns, end_ns or source.end_ns), frame_ns)
    if stop <= first:
        raise UserError(
            f"no bar between {iso(first)} and {iso(stop)}", f"the data go from {iso(source.start_ns)} to {iso(source.end_ns)}"
        )
    grid = np.arange(first, stop, frame_ns, dtype=np.int64)
    columns = tuple(symbols) or tuple(known)
    fields = {name: np.full((grid.size, len(columns)), np.nan) for name in PANEL_FIELDS}
    has_mark = np.zeros(len(columns), dtype=np.bool_)
    for j, symbol in enumerate(columns):
        last = source.bars(symbol, frame_ns, first, stop)
        mark = source.mark_bars(symbol, frame_ns, first, stop)
        has_mark[j] = len(mark) > 0
        _fill(fields, j, grid, last, "")
        _fill(fields, j, grid, last, "mark_")
        _fill(fields, j, grid, mark, "mark_")
        settled = source.funding(symbol, first - frame_ns, stop)
        fields["funding_rate"][:, j] = funding_on_grid(settled.ts, settled.rate, grid, frame_ns)
    return MarketPanel(columns, frame_ns, grid, has_mark=has_mark, **fields)


def _fill(fields: dict[str, FloatArray], j: int, grid: IntArray, bars: BarBlock, prefix: str) -> None:
    rows = (bars.ts_open - grid[0]) // (grid[1] - grid[0] if grid.size > 1 else 1)
    for name in _LAST[:4] if prefix else _LAST:
        fields[prefix + name][rows, j] = getattr(bars, name)


def continued(panel: MarketPanel, source: MarketSource, frame: str, symbols: Sequence[str], end_ns: int) -> MarketPanel:
    """Return ``panel`` with the bars ``source`` has behind it up to ``end_ns``; columns of ``symbols`` it lacks are no members.

    For a market whose time went on after its bars were collected. The universe of the last bar goes on.
    """
    known_until = int(panel.ts_open[-1]) + panel.frame_ns
    if end_ns <= known_until:
        return panel
    names = (*panel.symbols, *(s for s in symbols if s not in panel.symbols))
    more = panel_of_source(source, frame, names, known_until, end_ns)
    past = np.full((panel.n_bars, len(names) - len(panel.symbols)), np.nan)
    fields = {
        name: np.concatenate([np.concatenate([getattr(panel, name), past], axis=1), getattr(more, name)])
        for name in PANEL_FIELDS
    }
    belonged = np.concatenate([panel.is_member, np.zeros(past.shape, np.bool_)], axis=1)
    is_member = np.concatenate([belonged, np.repeat(belonged[-1:], more.n_bars, axis=0)])
    ts_open = np.concatenate([panel.ts_open, more.ts_open])
    return MarketPanel(names, panel.frame_ns, ts_open, has_mark=more.has_mark, is_member=is_member, **fields)

"""What a running collector adds to the hot store: each bar that closed, as soon as the lake has it.

The rows that cleaning has vouched for stay as they are. A newer bar is mended by the rules that need its own symbol alone
(:func:`~crypto_qlib.data_collector.bar_rules.repair`), as a live session sees it; the rules that compare coins, or need the
whole series, come with the next ``crypto-qlib data check``, and the step after it puts the cleaned bars in place of these.

One writer at a time: the collector holds the store while it appends, the pipeline while it renews it, and each waits for the
other. Readers hold nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from crypto_qlib.core.clock import FRAME_NS
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, BarBlock, MarketPanel
from crypto_qlib.data_collector.bar_rules import repair
from crypto_qlib.data_collector.hot_panel import HotPanel
from crypto_qlib.data_collector.hot_store import HotStore, common_rows
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.store.lake import Kind, Lake, Series
from crypto_qlib.store.panel_store import read_layout

_CONTEXT_BARS: Final = 48
"""Bars before the first new one that :func:`repair` looks back on: a stale run is a day or 24 bars, whichever is more."""
_CORRECTED_BARS: Final = 3
"""Newest bars that are written again with each round: an exchange corrects its last bars at most."""


def follow_lake(lake: Lake, folder: Path, qlib_root: Path, frame: str) -> int:
    """Append to the hot store the bars of its symbols that the lake has beyond those vouched for; return how many are new.

    Does nothing where there is no hot store yet: the pipeline makes it.

    Raises
    ------
    HeldElsewhere
        If another process is writing to the store.
    UserError
        If a file of the lake is damaged, or the disk fails.
    """
    vouched_end = HotPanel(lake, folder, frame).vouched_end_ns
    try:
        layout = read_layout(folder)
    except UserError:
        return 0
    if vouched_end is None or layout.frame_ns != FRAME_NS[frame]:
        return 0
    with HotStore(folder, qlib_root) as store:
        end = layout.origin_ns + len(store.panel) * layout.frame_ns
        start = max(vouched_end, end - _CORRECTED_BARS * layout.frame_ns)
        panel = _newest(lake, layout.symbols, frame, start)
        if panel is None:
            return 0
        before = len(store.panel)
        for row in range(panel.n_bars):
            at = (int(panel.ts_open[row]) - layout.origin_ns) // layout.frame_ns
            if common_rows(store.panel, panel.rows(row, row + 1), at) == 0:
                store.append(int(panel.ts_open[row]), {name: getattr(panel, name)[row] for name in PANEL_FIELDS})
        return len(store.panel) - before


def _newest(lake: Lake, symbols: tuple[str, ...], frame: str, start_ns: int) -> MarketPanel | None:
    """Return the bars from ``start_ns`` on as a live session sees them, or ``None`` if there is none."""
    frame_ns = FRAME_NS[frame]
    newest = max((span[1] for s in symbols if (span := lake.span(Series(Kind.CANDLES, frame, s)))), default=0)
    if newest < start_ns:
        return None
    context = max(_CONTEXT_BARS, 2 * FRAME_NS["1d"] // frame_ns)
    first = start_ns - context * frame_ns
    raw = load_panel(lake, symbols, frame, first, newest + frame_ns, Kind.CANDLES)
    for j in range(len(symbols)):
        block = BarBlock(raw.ts_open, *(getattr(raw, n)[:, j] for n in BarBlock.__slots__[1:]))
        mended, _ = repair(block, frame_ns)
        for name in BarBlock.__slots__[1:]:
            getattr(raw, name)[:, j] = getattr(mended, name)
    return raw.rows(context, raw.n_bars)

"""Run a backtest on more bars than memory holds: the bars traded come in stretches, one after the other.

Decisions are made on bars coarse enough to keep (a year of hours for 50 symbols is 20 MB a column); execution takes place on
fine bars, of which only one stretch is in memory at a time. Account and positions go on from stretch to stretch, so the result
is that of all bars at once, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.backtest.desk import Bars
from crypto_qlib.backtest.engine import run_backtest, run_stretches
from crypto_qlib.backtest.inputs import BacktestInputs, bars_of, check_panel, prepare
from crypto_qlib.backtest.result import BacktestResult
from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import IntArray, MarketPanel
from crypto_qlib.data_collector.panel import load_panel
from crypto_qlib.portfolio.contract_table import NEVER_NS
from crypto_qlib.store.lake import Kind, Lake, Series

STRETCH_NS: Final = 14 * NS_PER_DAY
"""Time one stretch covers: two weeks of minutes for 50 symbols are 90 MB of prices."""


@dataclass(frozen=True, slots=True)
class BarStream:
    """Where the bars traded come from.

    Parameters
    ----------
    symbols : tuple of str
        Columns.
    frame_ns : int
        Length of the bars.
    start_ns, end_ns : int
        The first bar opens at ``start_ns``, the last one closes at ``end_ns``.
    last_open_ns : (n_symbols,) int64
        Open of the last bar of each symbol: a symbol that ends earlier than the others is delisted then.
    has_mark : (n_symbols,) bool
        Whether there are marks of the symbol's own.
    load : callable
        ``load(start_ns, end_ns)`` returns the bars that open in that time.
    """

    symbols: tuple[str, ...]
    frame_ns: int
    start_ns: int
    end_ns: int
    last_open_ns: IntArray
    has_mark: npt.NDArray[np.bool_]
    load: Callable[[int, int], MarketPanel]


def panel_stream(panel: MarketPanel) -> BarStream:
    """Return the bars of a panel as a stream; its columns may lie in files mapped into memory (``np.memmap``)."""

    def load(start_ns: int, end_ns: int) -> MarketPanel:
        start, stop = (int(np.searchsorted(panel.ts_open, ts)) for ts in (start_ns, end_ns))
        return panel.rows(start, stop)

    last = np.full(len(panel.symbols), panel.ts_open[0] - panel.frame_ns, np.int64)
    for j in range(len(panel.symbols)):
        there = np.flatnonzero(~np.isnan(panel.close[:, j]))
        last[j] = panel.ts_open[there[-1]] if there.size else last[j]
    end = int(panel.ts_open[-1]) + panel.frame_ns
    return BarStream(panel.symbols, panel.frame_ns, int(panel.ts_open[0]), end, last, panel.has_mark, load)


def lake_stream(lake: Lake, symbols: Sequence[str], frame: str, kind: Kind = Kind.CLEAN) -> BarStream:
    """Return the bars of ``symbols`` in the lake as a stream.

    Raises
    ------
    UserError
        If a symbol has no bars of that frame.
    """
    frame_ns = FRAME_NS[frame]
    spans = {s: lake.span(Series(kind, frame, s)) for s in symbols}
    missing = [s for s, span in spans.items() if span is None]
    if missing:
        hint = f"collect them (crypto-qlib data update --frames {frame}), or leave the symbol out"
        raise UserError(f"{missing[0]}: the lake has no {kind} {frame} bars", hint)
    known = [span for span in spans.values() if span is not None]
    last = np.array([span[1] for span in known], np.int64)
    has_mark = np.array([lake.span(Series(Kind.MARK, frame, s)) is not None for s in symbols])
    start, end = min(span[0] for span in known), int(last.max()) + frame_ns
    return BarStream(
        tuple(symbols), frame_ns, start, end, last, has_mark, lambda a, b: load_panel(lake, symbols, frame, a, b, kind)
    )


def run_on_bars_of(
    frame: str, inputs: BacktestInputs, lake: Path | None, progress: Callable[[int, int], None] | None = None
) -> BacktestResult:
    """Run a backtest on the bars ``backtest.execution_frame`` names: those it decides on, or finer ones of the lake.

    Parameters
    ----------
    frame : str
        Bar length; empty = that of ``inputs.panel``.
    inputs : BacktestInputs
        What is run.
    lake : Path, optional
        Root of the lake that has the finer bars.
    progress : callable, optional
        As in :func:`run_streamed`.

    Raises
    ------
    UserError
        If finer bars are asked for and there is no lake, or as :func:`run_on_finer_bars`.
    """
    if not frame or FRAME_NS[frame] == inputs.panel.frame_ns:
        return run_backtest(inputs)
    if lake is None:
        raise UserError(f"backtest.execution_frame = {frame}: finer bars are streamed from a lake, and none is named")
    return run_on_finer_bars(inputs, Lake(lake), frame, progress)


def run_on_finer_bars(
    inputs: BacktestInputs, lake: Lake, frame: str, progress: Callable[[int, int], None] | None = None
) -> BacktestResult:
    """Run a backtest that decides on ``inputs.panel`` and trades on the lake's collected bars of ``frame``, stretch by stretch.

    Raises
    ------
    UserError
        As :func:`run_streamed`; and where the finer bars of a symbol do not cover the time in which it is traded, naming both.
    """
    stream = lake_stream(lake, inputs.panel.symbols, frame, Kind.CANDLES)
    _require_cover(inputs, lake, frame)
    return run_streamed(inputs, stream, progress=progress)


def _require_cover(inputs: BacktestInputs, lake: Lake, frame: str) -> None:
    """Refuse finer bars that begin later or end earlier than the bars behind the decisions, within the time traded."""
    panel = inputs.panel
    start = int(inputs.scores.as_of_ns[0]) if inputs.start_ns is None else inputs.start_ns
    end = int(panel.ts_open[-1]) + panel.frame_ns if inputs.end_ns is None else inputs.end_ns
    for j, symbol in enumerate(panel.symbols):
        there = panel.ts_open[~np.isnan(panel.close[:, j])]
        there = there[(there >= start) & (there < end)]
        span = lake.span(Series(Kind.CANDLES, frame, symbol))
        if not there.size or span is None:
            continue
        first, last = int(there[0]), int(there[-1])
        if span[0] >= first + panel.frame_ns or span[1] < last:
            raise UserError(
                f"{symbol}: {frame} bars from {iso(span[0])} to {iso(span[1])} do not cover the time traded, "
                f"{iso(first)} to {iso(last + panel.frame_ns)}",
                f"collect the rest (crypto-qlib data update --frames {frame}), or empty backtest.execution_frame",
            )


def run_streamed(
    inputs: BacktestInputs,
    stream: BarStream,
    *,
    stretch_ns: int = STRETCH_NS,
    progress: Callable[[int, int], None] | None = None,
) -> BacktestResult:
    """Run a backtest that decides on ``inputs.panel`` and trades on the bars of ``stream``.

    Gives what ``run_backtest`` gives with the stream's bars as ``panel`` and ``inputs.panel`` as ``state_panel``. Contract
    rules, scores, the decision bars and the times are checked before the first bar; the prices of a stretch before it is run.

    Parameters
    ----------
    inputs : BacktestInputs
        ``panel`` holds the bars behind the decisions, ``rules.frame_ns`` long or shorter.
    stream : BarStream
        Bars traded, of the same symbols.
    stretch_ns : int
        Time of one stretch, rounded up to whole bars.
    progress : callable, optional
        Called with (bars done, bars to do) after each stretch.

    Raises
    ------
    UserError
        If the inputs cannot be right; it names symbol and time.
    """
    run = prepare(inputs)
    if stream.symbols != run.symbols:
        raise UserError("the bars behind decisions and the bars traded do not fit", "build both from the same symbols")
    if inputs.panel.frame_ns % stream.frame_ns:
        raise UserError("the bars traded do not divide the bars behind the decisions", "trade on finer bars, e.g. minutes")
    start = max(int(run.score_as_of[0]) if inputs.start_ns is None else inputs.start_ns, stream.start_ns)
    start += -(start - stream.start_ns) % stream.frame_ns
    end = min(stream.end_ns, NEVER_NS if inputs.end_ns is None else inputs.end_ns)
    if start >= end:
        raise UserError(
            f"no bar to trade lies between {iso(start)} and {iso(end)}", "check that scores and bars cover the same time"
        )
    delisted, ended = _ends(run.symbols, inputs, stream)
    run = replace(run, frame_ns=stream.frame_ns, delisted_ns=delisted, ended=ended, has_mark=stream.has_mark)
    step = max(-(-stretch_ns // stream.frame_ns), 1) * stream.frame_ns
    return run_stretches(run, _stretches(stream, start, end, step, progress))


def _stretches(
    stream: BarStream, start: int, end: int, step: int, progress: Callable[[int, int], None] | None
) -> Iterator[Bars]:
    n_bars = -(-(end - start) // stream.frame_ns)
    for at in range(start, end, step):
        panel = stream.load(at, min(at + step, end))
        check_panel(panel)
        yield bars_of(panel, panel.n_bars)
        if progress is not None:
            progress(min((at + step - start) // stream.frame_ns, n_bars), n_bars)


def _ends(symbols: tuple[str, ...], inputs: BacktestInputs, stream: BarStream) -> tuple[IntArray, tuple[str, ...]]:
    """Return (instant each symbol stops trading, symbols that stop before the stream's end)."""
    last = stream.last_open_ns + stream.frame_ns
    delisted = np.array([NEVER_NS if (d := inputs.instruments[s].delisted_ns) is None else d for s in symbols], np.int64)
    result = np.where(last < stream.end_ns, np.minimum(delisted, last), delisted)
    return result, tuple(s for s, ts in zip(symbols, result, strict=True) if ts < stream.end_ns)

"""Step 3: from raw to cleaned bars, with a report of every finding.

1. Each symbol alone: order, duplicates, bad prices, ranges, volumes, stale bars (:mod:`.bar_rules`), frozen feeds, changes of
   units, bars outside the contract's life (:mod:`.series_rules`).
2. All symbols side by side: outliers that neither the mark (the index, where no mark is known) nor other coins share.
3. Cleaned bars pass their schema (:mod:`.bar_schema`) and go to the lake beside the raw ones; month files whose rows stay the
   same are not touched.
4. Missing bars are measured on the raw bars and told apart by cause: nothing is filled in, a gap stays NaN in every panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from crypto_qlib.core.clock import FRAME_NS, iso
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.core.market import BarBlock, FloatArray, IntArray
from crypto_qlib.data_collector.bar_rules import (
    PRICES,
    BoolArray,
    Flag,
    FlagArray,
    Grid,
    find_outliers,
    follow_mark,
    in_order,
    repair,
)
from crypto_qlib.data_collector.bar_schema import require_bars
from crypto_qlib.data_collector.contract_archive import instrument_versions
from crypto_qlib.data_collector.series_rules import check_series
from crypto_qlib.settings.schema import DataSettings
from crypto_qlib.store.coverage import Range, missing_ranges, subtract_ranges
from crypto_qlib.store.lake import TIME, Columns, Kind, Lake, Series

_MARK_MISMATCH: Final = 0.05
_OUTAGE_SHARE: Final = 0.5
_OUTAGE_SYMBOLS: Final = 3
_AROUND: Final = 24
_THIN_SHARE: Final = 0.25
"""Share of bars without a trade around a gap from which the gap is put down to thin trading."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing bars between two bars of one symbol.

    Parameters
    ----------
    start_ns, end_ns : int
        Open time of the first missing bar and of the first bar after the gap.
    n_bars : int
        Missing bars.
    cause : str
        ``outage`` (at least half of the listed symbols, and three, miss the same bars), ``not listed`` (outside the
        contract's life), ``not collected`` (the exchange was never asked for it, or is asked again), ``illiquid`` (asked,
        nothing there, and little traded around it) or ``suspended`` (asked, nothing there, though it was traded before).
    """

    start_ns: int
    end_ns: int
    n_bars: int
    cause: str


@dataclass(frozen=True, slots=True)
class SymbolQuality:
    """Findings of one symbol.

    Parameters
    ----------
    symbol : str
        Compact name.
    n_bars : int
        Raw bars.
    first_ns, last_ns : int
        Open times of the first and last raw bar.
    gaps : tuple of Gap
        Missing bars in between.
    counts : dict
        Bars by :class:`~crypto_qlib.data_collector.bar_rules.Flag` name, lower case, zeros left out.
    n_marks, n_settlements : int
        Mark bars and funding settlements in the lake within the same span.
    notes : tuple of str
        Anything else worth knowing.
    """

    symbol: str
    n_bars: int
    first_ns: int
    last_ns: int
    gaps: tuple[Gap, ...]
    counts: dict[str, int]
    n_marks: int
    n_settlements: int
    notes: tuple[str, ...] = ()

    @property
    def n_missing(self) -> int:
        """Return the number of missing bars between the first and the last."""
        return sum(g.n_bars for g in self.gaps)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Findings of one cleaning.

    Parameters
    ----------
    frame : str
        Bar length.
    symbols : tuple of SymbolQuality
        In the order asked.
    failures : tuple of str
        One clear line for each gap longer than ``data.max_gap_bars``.
    """

    frame: str
    symbols: tuple[SymbolQuality, ...]
    failures: tuple[str, ...]

    def totals(self) -> dict[str, int]:
        """Return bars, missing bars and findings over all symbols."""
        totals = {"bars": sum(s.n_bars for s in self.symbols), "missing": sum(s.n_missing for s in self.symbols)}
        for symbol in self.symbols:
            for name, count in symbol.counts.items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def raise_if_unfit(self) -> None:
        """Stop for a human if there is a gap longer than allowed.

        Raises
        ------
        UserError
            With the first such gap and its times, the other coins that have one, and the setting that leaves them out.
        """
        if self.failures:
            unfit = list(dict.fromkeys(line.partition(":")[0] for line in self.failures))
            others = f"; {len(self.failures) - 1} more such, in {', '.join(unfit)}" if len(self.failures) > 1 else ""
            coins = ",".join(symbol.removesuffix("USDT") for symbol in unfit)
            raise UserError(
                self.failures[0] + others,
                "fetch again with `crypto-qlib data update`, leave them out with "
                f"--set universe.exclude=[{coins}], or raise data.max_gap_bars",
            )


@dataclass(frozen=True, slots=True)
class _Bars:
    """One symbol on its way through the rules."""

    symbol: str
    raw: BarBlock
    block: BarBlock
    flags: FlagArray
    mark: BarBlock
    contract: Instrument | None
    asked: tuple[Range, ...]


def clean(lake: Lake, symbols: Sequence[str], settings: DataSettings) -> QualityReport:
    """Clean the candles of ``symbols`` at ``data.frame``, store them and report; gaps are reported, not raised.

    Raises
    ------
    UserError
        If a symbol has no candles, or a file is damaged or cannot be written.
    """
    if not symbols:
        raise UserError("there is no symbol to clean", "check the universe: `crypto-qlib universe`")
    frame_ns = FRAME_NS[settings.frame]
    contracts = {symbol: versions[-1] for symbol, versions in instrument_versions(lake).items()}
    loaded = [_load(lake, symbol, settings.frame, frame_ns, contracts.get(symbol)) for symbol in symbols]
    mark_fits = [_mark_fits(bars) for bars in loaded]
    with lake.writing():
        for bars, cleaned in zip(loaded, _without_outliers(loaded, mark_fits, frame_ns, settings.outlier_sigmas), strict=True):
            require_bars(cleaned.block, frame_ns, bars.symbol, is_clean=True)
            rows: Columns = {TIME: cleaned.block.ts_open, "flag": cleaned.flags}
            rows |= {n: getattr(cleaned.block, n) for n in BarBlock.__slots__ if n != "ts_open"}
            lake.replace(Series(Kind.CLEAN, settings.frame, bars.symbol), rows)
            bars.flags[:] = cleaned.flags
    n_listed, n_present = _presence(loaded, frame_ns)
    newest = max(int(b.raw.ts_open[-1]) for b in loaded)
    first = min(int(b.raw.ts_open[0]) for b in loaded)
    found: list[SymbolQuality] = []
    for bars, fits in zip(loaded, mark_fits, strict=True):
        span = (int(bars.raw.ts_open[0]), int(bars.raw.ts_open[-1]))
        gaps = tuple(_gaps(bars, frame_ns, first, n_listed, n_present))
        notes = () if fits else ("the mark is on another scale than the last price and was not used",)
        if np.any(bars.flags & Flag.RESCALED):
            at = int(bars.block.ts_open[np.flatnonzero(bars.flags & Flag.RESCALED)[-1]])
            notes = (*notes, f"quoted in other units before {iso(at)}: those bars are left out")
        if newest - span[1] > settings.max_gap_bars * frame_ns:
            notes = (*notes, f"ends {iso(span[1])}, {(newest - span[1]) // frame_ns} bars before the newest symbol")
        counts = {f.name.lower(): n for f in Flag if f.name and (n := int(np.count_nonzero(bars.flags & f)))}
        n_settlements = len(lake.read_funding(bars.symbol, span[0], span[1] + frame_ns))
        found.append(SymbolQuality(bars.symbol, len(bars.raw), *span, gaps, counts, len(bars.mark), n_settlements, notes))
    return QualityReport(settings.frame, tuple(found), tuple(_failures(found, settings.max_gap_bars)))


def _load(lake: Lake, symbol: str, frame: str, frame_ns: int, contract: Instrument | None) -> _Bars:
    raw = lake.read_bars(Kind.CANDLES, frame, symbol)
    if not len(raw):
        raise UserError(f"no {frame} candles of {symbol} in the lake", "run `crypto-qlib data update`")
    block, order_flags = in_order(raw)
    block, flags = repair(block, frame_ns)
    # The listing time an exchange tells may lie after its first candles (pre-market trading): only the end is taken as a fact.
    block, series_flags = check_series(block, 0, None if contract is None else contract.delisted_ns)
    asked = tuple(lake.asked(Series(Kind.CANDLES, frame, symbol)))
    return _Bars(symbol, raw, block, order_flags | flags | series_flags, _reference(lake, frame, symbol), contract, asked)


def _reference(lake: Lake, frame: str, symbol: str) -> BarBlock:
    """Return mark bars, with index bars where no mark is known."""
    mark, index = lake.read_bars(Kind.MARK, frame, symbol), lake.read_bars(Kind.INDEX, frame, symbol)
    if not len(index):
        return mark
    is_new = ~np.isin(index.ts_open, mark.ts_open)
    joined = {n: np.concatenate((getattr(mark, n), getattr(index, n)[is_new])) for n in BarBlock.__slots__}
    order = np.argsort(joined["ts_open"], kind="stable")
    return BarBlock(**{n: v[order] for n, v in joined.items()})


def _mark_fits(bars: _Bars) -> bool:
    """Return whether the mark is on the last price's scale (it is not after a re-denomination of one of the two)."""
    _, at_last, at_mark = np.intersect1d(bars.block.ts_open, bars.mark.ts_open, assume_unique=True, return_indices=True)
    ratio = bars.block.close[at_last] / bars.mark.close[at_mark]
    ratio = ratio[np.isfinite(ratio) & (ratio > 0.0)]
    return ratio.size == 0 or abs(float(np.log(np.median(ratio)))) < _MARK_MISMATCH


def _without_outliers(loaded: Sequence[_Bars], mark_fits: Sequence[bool], frame_ns: int, sigmas: float) -> list[_Bars]:
    first = min(int(b.block.ts_open[0]) for b in loaded)
    n_bars = (max(int(b.block.ts_open[-1]) for b in loaded) - first) // frame_ns + 1
    shape = (n_bars, len(loaded))
    last = Grid(*(np.full(shape, np.nan) for _ in PRICES))
    mark = Grid(*(np.full(shape, np.nan) for _ in PRICES))
    slots = [(b.block.ts_open - first) // frame_ns for b in loaded]
    for j, (bars, fits) in enumerate(zip(loaded, mark_fits, strict=True)):
        mark_slots = (bars.mark.ts_open - first) // frame_ns
        is_inside = fits & (mark_slots >= 0) & (mark_slots < n_bars)
        for name in PRICES:
            getattr(last, name)[slots[j], j] = getattr(bars.block, name)
            getattr(mark, name)[mark_slots[is_inside], j] = getattr(bars.mark, name)[is_inside]
    is_outlier, is_suspect, sigma = find_outliers(last, mark, sigmas)
    mended = follow_mark(last, mark, is_outlier, sigmas * sigma * 0.5)
    return [_taken(b, slots[j], j, mended, is_outlier, is_suspect) for j, b in enumerate(loaded)]


def _taken(bars: _Bars, rows: IntArray, j: int, mended: Grid, is_outlier: BoolArray, is_suspect: BoolArray) -> _Bars:
    flags = bars.flags.copy()
    flags[is_outlier[rows, j]] |= np.uint16(Flag.OUTLIER)
    flags[is_suspect[rows, j]] |= np.uint16(Flag.SUSPECT)
    prices: dict[str, FloatArray] = {n: getattr(mended, n)[rows, j] for n in PRICES}
    block = BarBlock(bars.block.ts_open, **prices, volume=bars.block.volume, quote_volume=bars.block.quote_volume)
    return replace(bars, block=block, flags=flags)


def _presence(loaded: Sequence[_Bars], frame_ns: int) -> tuple[IntArray, IntArray]:
    """Return how many symbols were listed (between first and last bar) and how many have a bar, by slot of the grid."""
    first = min(int(b.raw.ts_open[0]) for b in loaded)
    n_bars = (max(int(b.raw.ts_open[-1]) for b in loaded) - first) // frame_ns + 1
    n_listed, n_present = np.zeros(n_bars, np.int64), np.zeros(n_bars, np.int64)
    for bars in loaded:
        slots = (bars.raw.ts_open - first) // frame_ns
        n_listed[slots[0] : slots[-1] + 1] += 1
        n_present[slots] += 1
    return n_listed, n_present


def _gaps(bars: _Bars, frame_ns: int, first: int, n_listed: IntArray, n_present: IntArray) -> list[Gap]:
    ts_open = bars.raw.ts_open
    gaps: list[Gap] = []
    for start, end in missing_ranges(ts_open, frame_ns, (int(ts_open[0]), int(ts_open[-1]))):
        slots = slice((start - first) // frame_ns, (end - first) // frame_ns)
        absent = n_listed[slots] - n_present[slots]
        is_outage = bool(np.median(absent / n_listed[slots]) >= _OUTAGE_SHARE and np.median(absent) >= _OUTAGE_SYMBOLS)
        cause = "outage" if is_outage else _own_cause(bars, start, end)
        gaps.append(Gap(start, end, (end - start) // frame_ns, cause))
    return gaps


def _own_cause(bars: _Bars, start: int, end: int) -> str:
    """Return why one symbol alone lacks bars, see :class:`Gap`."""
    contract = bars.contract
    if contract is not None and (end <= contract.listed_ns or not contract.is_listed(start)):
        return "not listed"
    if subtract_ranges((start, end), bars.asked):
        return "not collected"
    k = int(np.searchsorted(bars.raw.ts_open, start))
    around = bars.raw.volume[max(k - _AROUND, 0) : k + _AROUND]
    is_thin = np.count_nonzero(around == 0.0) >= _THIN_SHARE * max(around.size, 1)
    return "illiquid" if is_thin else "suspended"


def _failures(found: Sequence[SymbolQuality], max_gap_bars: int) -> list[str]:
    return [
        f"{s.symbol}: {g.n_bars} bars are missing from {iso(g.start_ns)} to {iso(g.end_ns)} ({g.cause}), "
        f"more than data.max_gap_bars = {max_gap_bars}"
        for s in found
        for g in s.gaps
        if g.n_bars > max_gap_bars
    ]

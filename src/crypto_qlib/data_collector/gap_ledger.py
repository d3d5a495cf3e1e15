"""The gap ledger: what is missing, why, and whether it can still be had.

``lake/gaps/ledger.parquet``: kind, frame, symbol, start_ns, end_ns, reason, is_lost, found_ns. A gap stays in the ledger with
the time it was first found until it is filled; one that is lost for good (the exchange keeps no more, or never had it) says so.
Three reasons:

- ``none``: asked, and the exchange has nothing there (an outage, no trade, before the listing was told);
- ``forgotten``: older than the exchange keeps (funding after about 3 months, statistics after days or weeks, depth, tiers and
  contract rules at once);
- ``open``: not fetched yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR
from crypto_qlib.core.instrument import Instrument
from crypto_qlib.data_collector.fetch_plan import SETTLED_AFTER_NS
from crypto_qlib.data_collector.series_collector import STATISTICS, Assignment
from crypto_qlib.exchange.okx_statistics import RETENTION_NS
from crypto_qlib.store.coverage import Range, missing_ranges, subtract_ranges
from crypto_qlib.store.lake import EVENT, Kind, Lake, Series, read_times

_LEDGER: Final = "ledger"
_SCHEMA: Final = pa.schema(
    [
        *((n, pa.string()) for n in ("kind", "frame", "symbol", "reason")),
        *((n, pa.int64()) for n in ("start_ns", "end_ns", "found_ns")),
        ("is_lost", pa.bool_()),
    ]
)
FUNDING_RETENTION_NS: Final = 92 * NS_PER_DAY
"""About how far back OKX serves settlements. Source: OKX API v5, ``funding-rate-history``: "up to three months"."""
_TIERS_LOOK_NS: Final = 2 * NS_PER_DAY
"""Two looks at the tiers further apart than this may have missed a change in between."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One hole in one series.

    Parameters
    ----------
    series : Series
        Which series.
    start_ns, end_ns : int
        Half-open span without data.
    reason : str
        ``none``, ``forgotten`` or ``open``.
    is_lost : bool
        Whether it can never be had from the exchange any more.
    found_ns : int
        When it was first noticed.
    """

    series: Series
    start_ns: int
    end_ns: int
    reason: str
    is_lost: bool
    found_ns: int


def read_ledger(lake: Lake) -> tuple[Gap, ...]:
    """Return all gaps known, by series and time."""
    found = lake.read_document(Kind.GAPS, _LEDGER)
    rows = [] if found is None else found[0].to_pylist()
    return tuple(
        Gap(
            Series(Kind(r["kind"]), r["frame"], r["symbol"]),
            r["start_ns"],
            r["end_ns"],
            r["reason"],
            r["is_lost"],
            r["found_ns"],
        )
        for r in rows
    )


def update_ledger(lake: Lake, job: Assignment, contracts: Iterable[Instrument]) -> tuple[Gap, ...]:
    """Look at the series of ``contracts`` again, keep the ledger and return it whole.

    Gaps of other symbols, and of spans outside this assignment's, stay as they were noted.
    """
    noted = {(g.series, g.start_ns, g.end_ns): g for g in read_ledger(lake)}
    looked: set[Series] = set()
    found: list[Gap] = []
    for contract in contracts:
        for series, span in (*job.series(contract.symbol), *job.statistics(contract.symbol)):
            looked.add(series)
            found += _grid_gaps(lake, job, contract, series, span)
        funding, tiers = Series(Kind.FUNDING, EVENT, contract.symbol), Series(Kind.TIERS, EVENT, contract.symbol)
        looked |= {funding, tiers}
        if job.settings.funding:
            found += _funding_gaps(lake, job, contract, funding)
        found += _unseen(lake.asked(tiers), tiers, job.now_ns)
    whole = [g for g in noted.values() if g.series not in looked]
    for gap in found:
        before = noted.get((gap.series, gap.start_ns, gap.end_ns))
        first = gap.found_ns if before is None else before.found_ns
        whole.append(Gap(gap.series, gap.start_ns, gap.end_ns, gap.reason, gap.is_lost, first))
    whole.sort(key=lambda g: (g.series, g.start_ns))
    _write(lake, whole)
    return tuple(whole)


def _life(contract: Instrument, span: Range) -> Range:
    end = span[1] if contract.delisted_ns is None else min(span[1], contract.delisted_ns)
    return max(span[0], contract.listed_ns), end


def _grid_gaps(lake: Lake, job: Assignment, contract: Instrument, series: Series, span: Range) -> list[Gap]:
    start, end = _life(contract, span)
    if start >= end:
        return []
    frame_ns = FRAME_NS[series.frame]
    holes = missing_ranges(read_times(lake, series, start, end), frame_ns, (start, end))
    asked = lake.asked(series)
    retention = RETENTION_NS[series.frame] if series.kind in STATISTICS else None
    gaps: list[Gap] = []
    for hole in holes:
        if not subtract_ranges(hole, asked):
            reason, lost = "none", hole[1] <= job.now_ns - SETTLED_AFTER_NS
        elif retention is not None and hole[1] <= job.now_ns - retention:
            reason, lost = "forgotten", True
        else:
            reason, lost = "open", False
        gaps.append(Gap(series, *hole, reason, lost, job.now_ns))
    return gaps


def _funding_gaps(lake: Lake, job: Assignment, contract: Instrument, series: Series) -> list[Gap]:
    """Return holes between settlements wider than one and a half of the usual interval around them, and before the first."""
    start, end = _life(contract, job.spans[job.settings.frame])
    ts = read_times(lake, series, start, job.now_ns + 1)
    usual = contract.funding_interval_h * NS_PER_HOUR
    if not ts.size:
        edges = [(start, end)] if end - start > usual else []
    else:
        steps = np.diff(ts)
        around = np.maximum(np.minimum.reduce([np.append(usual, steps[:-1]), np.append(steps[1:], usual)]), NS_PER_HOUR)
        wide = np.flatnonzero(steps > 1.5 * np.maximum(around, usual)) if steps.size else np.empty(0, np.int64)
        edges = [(int(ts[k]) + 1, int(ts[k + 1])) for k in wide]
        edges = ([(start, int(ts[0]))] if int(ts[0]) - start > usual else []) + edges
    forgotten = job.now_ns - FUNDING_RETENTION_NS
    return [Gap(series, a, b, "forgotten" if b <= forgotten else "none", b <= forgotten, job.now_ns) for a, b in edges]


def _unseen(looks: Sequence[Range], series: Series, now_ns: int) -> list[Gap]:
    """Return the spans between two looks in which a change would have gone unseen."""
    ends = [b for _, b in looks]
    starts = [a for a, _ in looks]
    return [
        Gap(series, b, a, "forgotten", True, now_ns)
        for b, a in zip(ends[:-1], starts[1:], strict=True)
        if a - b > _TIERS_LOOK_NS
    ]


def _write(lake: Lake, gaps: Sequence[Gap]) -> None:
    rows = [
        {
            "kind": g.series.kind, "frame": g.series.frame, "symbol": g.series.symbol, "reason": g.reason,
            "start_ns": g.start_ns, "end_ns": g.end_ns, "found_ns": g.found_ns, "is_lost": g.is_lost,
        }
        for g in gaps
    ]  # fmt: skip
    lake.write_document(Kind.GAPS, _LEDGER, pa.Table.from_pylist(rows, schema=_SCHEMA))

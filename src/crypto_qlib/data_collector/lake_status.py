"""What is in the lake: per series the first and last row, how many, how many are missing, how stale, where from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from crypto_qlib.core.clock import FRAME_NS, NS_PER_DAY, NS_PER_HOUR, NS_PER_MINUTE, iso
from crypto_qlib.data_collector.gap_ledger import read_ledger
from crypto_qlib.store.lake import EVENT, Kind, Lake, Series, read_times

_COLLECTED: Final = (
    Kind.CANDLES,
    Kind.MARK,
    Kind.INDEX,
    Kind.FUNDING,
    Kind.OPEN_INTEREST,
    Kind.INTEREST_HISTORY,
    Kind.TAKER_VOLUME,
    Kind.LONG_SHORT,
    Kind.FUNDING_QUOTES,
    Kind.ORDER_FLOW,
)
_SOURCES: Final = {
    Kind.CANDLES: "REST candles, last price",
    Kind.MARK: "REST candles, mark price",
    Kind.INDEX: "REST candles, index price",
    Kind.FUNDING: "REST settlements",
    Kind.OPEN_INTEREST: "REST snapshots",
    Kind.INTEREST_HISTORY: "REST statistics",
    Kind.TAKER_VOLUME: "REST statistics",
    Kind.LONG_SHORT: "REST statistics",
    Kind.FUNDING_QUOTES: "REST quotes",
    Kind.ORDER_FLOW: "websocket trades and books",
}


@dataclass(frozen=True, slots=True)
class SeriesStatus:
    """One series at a glance.

    Parameters
    ----------
    series : Series
        Which one.
    first_ns, last_ns : int
        Instants of its first and last row.
    n_rows, n_missing, n_lost : int
        Rows there; rows of the grid missing in between (0 for events); gaps the ledger calls lost for good.
    stale_ns : int
        How long ago the last row became complete, at the time of asking.
    source : str
        Where its rows come from.
    """

    series: Series
    first_ns: int
    last_ns: int
    n_rows: int
    n_missing: int
    n_lost: int
    stale_ns: int
    source: str


def lake_status(lake: Lake, now_ns: int, symbols: Iterable[str] | None = None) -> tuple[SeriesStatus, ...]:
    """Return every series of the lake (of ``symbols``, where given), by symbol, kind and frame."""
    wanted = None if symbols is None else frozenset(symbols)
    lost: dict[Series, int] = {}
    for gap in read_ledger(lake):
        lost[gap.series] = lost.get(gap.series, 0) + gap.is_lost
    every = (Series(k, f, s) for k in _COLLECTED for f in (EVENT, *FRAME_NS) for s in lake.symbols(k, f))
    found = [_status(lake, series, now_ns, lost) for series in every if wanted is None or series.symbol in wanted]
    return tuple(sorted(found, key=lambda s: (s.series.symbol, _COLLECTED.index(s.series.kind), s.series.frame)))


def _status(lake: Lake, series: Series, now_ns: int, lost: dict[Series, int]) -> SeriesStatus:
    ts = read_times(lake, series)
    step = FRAME_NS.get(series.frame, 0)
    first, last = int(ts[0]), int(ts[-1])
    missing = (last - first) // step + 1 - ts.size if step else 0
    return SeriesStatus(
        series, first, last, int(ts.size), int(missing), lost.get(series, 0), now_ns - last - step, _SOURCES[series.kind]
    )


def status_lines(statuses: Sequence[SeriesStatus]) -> list[str]:
    """Return a table for people, one line a series."""
    header = f"  {'symbol':<14}{'kind':<22}{'frame':<7}{'first':<18}{'last':<18}{'rows':>10}{'missing':>9}{'lost':>6}  stale"
    lines = [header]
    for s in statuses:
        first, last = iso(s.first_ns)[:16], iso(s.last_ns)[:16]
        lines.append(
            f"  {s.series.symbol:<14}{s.series.kind:<22}{s.series.frame:<7}{first:<18}{last:<18}"
            f"{s.n_rows:>10,}{s.n_missing:>9,}{s.n_lost:>6}  {_age(s.stale_ns)}  {s.source}"
        )
    return lines


def _age(ns: int) -> str:
    if ns < NS_PER_MINUTE:
        return "fresh"
    for unit, name in ((NS_PER_DAY, "d"), (NS_PER_HOUR, "h"), (NS_PER_MINUTE, "min")):
        if ns >= unit:
            return f"{ns / unit:.0f} {name}"
    return "fresh"

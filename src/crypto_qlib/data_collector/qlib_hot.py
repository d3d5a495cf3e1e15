"""Qlib's providers over its files and the bars they lack yet: calendar, instruments and features up to the newest bar.

Bars that were appended to the hot store are shown from its panel until Qlib's files have them. Qlib caches what it has read:
:func:`~crypto_qlib.data_collector.qlib_data_adapter.forget_cached_bars` makes it look again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data.data import LocalCalendarProvider, LocalInstrumentProvider
from qlib.data.storage.file_storage import FileFeatureStorage

from crypto_qlib.data_collector.qlib_store import MARKET
from crypto_qlib.data_collector.qlib_tail import HotTail


def hot_tail(freq: str) -> HotTail | None:
    """Return the hot panel behind ``freq`` of the store Qlib is pointed at, or ``None``."""
    return HotTail.of(Path(C.dpm.get_data_uri(freq)), freq)


class HotCalendarProvider(LocalCalendarProvider):  # type: ignore[misc]
    """The calendar, up to the newest bar."""

    def load_calendar(self, freq: str, future: bool) -> list[pd.Timestamp]:
        """Return the open times as naive UTC stamps."""
        stamps: list[pd.Timestamp] = super().load_calendar(freq, future)
        tail = None if future else hot_tail(freq)
        if tail is not None and tail.n_bars > len(stamps):
            stamps = stamps + [pd.Timestamp(int(t)) for t in tail.times(len(stamps))]
        return stamps


class HotInstrumentProvider(LocalInstrumentProvider):  # type: ignore[misc]
    """The instruments, their listing spans up to the newest bar."""

    def _load_instruments(self, market: Any, freq: str) -> dict[str, list[tuple[Any, Any]]]:
        spans: dict[str, list[tuple[Any, Any]]] = dict(super()._load_instruments(market, freq))
        tail = hot_tail(freq)
        if tail is None:
            return spans
        layout = tail.store.layout
        newest = max((pd.Timestamp(s[-1][1]).value for s in spans.values()), default=layout.origin_ns)
        # Of a market of members, only those who belonged at its last bar go on: who joins since, cleaning will tell.
        in_force = {s for s, known in spans.items() if pd.Timestamp(known[-1][1]).value == newest}
        start = max((newest - layout.origin_ns) // layout.frame_ns, 0)
        traded = np.isfinite(tail.store.field("close", start, tail.n_bars))
        for j in np.flatnonzero(traded.any(axis=0)):
            if market != MARKET and layout.symbols[j] not in in_force:
                continue
            rows = np.flatnonzero(traded[:, j]) + start
            first, last = (pd.Timestamp(layout.origin_ns + layout.frame_ns * int(r)) for r in (rows[0], rows[-1]))
            known = spans.get(layout.symbols[j])
            spans[layout.symbols[j]] = [(first, last)] if known is None else [*known[:-1], (known[-1][0], last)]
        return spans


class HotFeatureStorage(FileFeatureStorage):  # type: ignore[misc]
    """One bin, followed by the bars it lacks yet."""

    def __getitem__(self, i: Any) -> Any:
        found = super().__getitem__(i)
        tail = hot_tail(self.freq) if isinstance(i, slice) else None
        if tail is None:
            return found
        start = self.start_index
        if start is None:
            start = tail.first_bar(self.instrument)
            if start is None:
                return found
            end = start
        else:
            end = start + len(self)
        values = tail.after(self.instrument, self.field, end)
        low = max(end, i.start or 0)
        high = min(end + values.size, end + values.size if i.stop is None else i.stop)
        if low >= high:
            return found
        more = pd.Series(values[low - end : high - end], index=pd.RangeIndex(low, high))
        return more if found.empty else pd.concat([found, more])

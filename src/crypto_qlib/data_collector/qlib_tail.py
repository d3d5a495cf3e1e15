"""The bars Qlib's files lack yet, taken from the hot panel: what :mod:`.qlib_hot` shows Qlib (no Qlib import here).

``hot.json`` in Qlib's store names the panel of each frequency.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import IntArray
from crypto_qlib.data_collector.qlib_store import FIELDS, field_values
from crypto_qlib.store.panel_store import PanelStore
from crypto_qlib.store.parquet_file import write_atomic

_POINTER: Final = "hot.json"
Floats = npt.NDArray[np.float32]


def remember_hot_panel(qlib_root: Path, freq: str, folder: Path) -> None:
    """Name ``folder`` as the panel store behind frequency ``freq`` of Qlib's store."""
    known = _pointers(qlib_root)
    where = os.path.relpath(folder, qlib_root)
    write_atomic(qlib_root / _POINTER, json.dumps({**known, freq: where}, sort_keys=True).encode())


def _pointers(qlib_root: Path) -> dict[str, str]:
    try:
        return {str(k): str(v) for k, v in json.loads((qlib_root / _POINTER).read_text()).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


@dataclass(frozen=True, slots=True)
class HotTail:
    """The hot panel behind one frequency, as it is now.

    Parameters
    ----------
    store : PanelStore
        The panel.
    n_bars : int
        Bars it holds.
    """

    store: PanelStore
    n_bars: int

    @classmethod
    def of(cls, qlib_root: Path, freq: str) -> Self | None:
        """Return the panel behind ``freq``, or ``None`` if Qlib's files are all there is."""
        where = _pointers(qlib_root).get(freq)
        if where is None:
            return None
        try:
            store = PanelStore.open(qlib_root / where)
        except UserError:
            return None  # it is being built anew: Qlib's files are whole without it
        return cls(store, len(store))

    def column(self, symbol: str) -> int | None:
        """Return the column of ``symbol`` (any case), or ``None``."""
        names = [s.lower() for s in self.store.layout.symbols]
        return names.index(symbol.lower()) if symbol.lower() in names else None

    def after(self, symbol: str, field: str, end: int) -> Floats:
        """Return the values of ``field`` from row ``end`` up to the last bar of ``symbol``, as its bin would hold them.

        Parameters
        ----------
        symbol, field : str
            As Qlib spells them; a field the panel does not have is NaN.
        end : int
            Rows its bin holds already, counted from the calendar's beginning.
        """
        j = self.column(symbol)
        if j is None or end >= self.n_bars:
            return np.empty(0, np.float32)
        first = max(end - 1, 0)
        bars = self.store.market_panel(first, self.n_bars)
        traded = np.flatnonzero(np.isfinite(bars.close[end - first :, j]))
        n = int(traded[-1]) + 1 if traded.size else 0
        if field.lower() not in FIELDS:
            return np.full(n, np.nan, np.float32)
        return field_values(bars, j)[FIELDS.index(field.lower()), end - first : end - first + n, 0]

    def first_bar(self, symbol: str) -> int | None:
        """Return the first row ``symbol`` trades at, or ``None``."""
        j = self.column(symbol)
        if j is None:
            return None
        traded = np.flatnonzero(np.isfinite(self.store.field("close", 0, self.n_bars)[:, j]))
        return int(traded[0]) if traded.size else None

    def times(self, start: int) -> IntArray:
        """Return the open times of the rows from ``start`` on, ns."""
        layout = self.store.layout
        return layout.origin_ns + layout.frame_ns * np.arange(start, self.n_bars, dtype=np.int64)

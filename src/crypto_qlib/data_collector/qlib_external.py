"""External series as fields of every instrument in Qlib's store: ``$fear_greed``, ``$qqq_1h_close``, ``$active_addresses``.

A value stands at the bar at whose close it was known, so that an expression on it sees no later than one on ``$close`` does;
what was not known, or too old to be carried on, is NaN (no Qlib import here).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from crypto_qlib.core.clock import NS_PER_DAY
from crypto_qlib.core.market import FloatArray, MarketPanel
from crypto_qlib.data_collector.external_catalogue import CATALOGUE, series_on_bars
from crypto_qlib.data_collector.qlib_store import freq_of, listing_span, whole_days, write_bin
from crypto_qlib.store.series_store import SeriesStore

_MANY: Final = re.compile(r"^10{3,}(?=[A-Z])")
"""Contracts of a thousand coins and more are about the coin: 1000PEPEUSDT is about PEPE."""


def coin_of(symbol: str) -> str:
    """Return the coin a swap is about: ``PEPE`` for ``1000PEPEUSDT``."""
    return _MANY.sub("", symbol.removesuffix("USDT").removesuffix("USDC"))


def external_fields(store: SeriesStore, panel: MarketPanel) -> dict[str, FloatArray]:
    """Return every series the store has, as known at the closes of the panel's bars, ``(n_bars, n_symbols)`` by name."""
    closes = panel.ts_open + panel.frame_ns
    coins = [coin_of(s) for s in panel.symbols]
    names = [n for n in store.names() if n in CATALOGUE]
    shape = (panel.n_bars, len(panel.symbols))
    return {n: np.broadcast_to(series_on_bars(store, n, closes, coins).value, shape) for n in names}


def write_external_fields(root: Path, panel: MarketPanel, store: SeriesStore) -> list[Path]:
    """Write the external series beside the panel's own fields, days too; return files that do not hold what was written.

    Parameters
    ----------
    root : Path
        Qlib's store, written from ``panel`` before.
    panel : MarketPanel
        All history there is.
    store : SeriesStore
        External series; none is no field.
    """
    bad: list[Path] = []
    for part in [panel] if panel.frame_ns == NS_PER_DAY else [panel, whole_days(panel)]:
        fields = external_fields(store, part)
        freq = freq_of(part)
        for j, symbol in enumerate(part.symbols):
            span = listing_span(part, j)
            for name, values in fields.items() if span is not None else ():
                assert span is not None
                content = np.concatenate(([span[0]], values[span[0] : span[1] + 1, j])).astype("<f4").tobytes()
                path = root / "features" / symbol.lower() / f"{name}.{freq}.bin"
                write_bin(path, content)
                if path.read_bytes() != content:
                    bad.append(path)
    return bad

"""Recorded order books and trades, as they stood at any instant of a replay.

A book is followed message by message from its snapshot on; asked for an earlier instant, it starts over. Before the first
snapshot, after the last message, and in a hole of the recording it is not known, and whoever asks gets ``None``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from crypto_qlib.core.clock import NS_PER_S
from crypto_qlib.core.errors import UserError
from crypto_qlib.exchange.embedded.recording_import import BARS, BOOKS, TRADES
from crypto_qlib.venue.depth import Depth

KNOWN_AFTER_NS: Final = 5 * NS_PER_S
"""How long after its last message a book still counts as known."""
_LEVELS: Final = 400
"""Levels a side of OKX's full book channel."""


@dataclass(frozen=True, slots=True)
class BookView:
    """A book at one instant.

    Parameters
    ----------
    depth : Depth
        The best 400 levels of each side, sizes in base coins.
    seq : int
        Sequence id of its last message.
    """

    depth: Depth
    seq: int


@dataclass(frozen=True, slots=True)
class TapeRows:
    """Recorded trades of a span, oldest first; each array is ``(n,)``. ``side`` is +1 where the taker bought."""

    ts: npt.NDArray[np.int64]
    trade_id: npt.NDArray[np.int64]
    price: npt.NDArray[np.float64]
    qty: npt.NDArray[np.float64]
    side: npt.NDArray[np.int8]


class _Book:
    """Follow one symbol's book."""

    def __init__(self, path: Path) -> None:
        rows = pd.read_parquet(path)
        seq = rows["seq"].to_numpy()
        self._starts = np.flatnonzero(np.r_[True, seq[1:] != seq[:-1]])
        self._ends = np.r_[self._starts[1:], len(rows)]
        self._ts = rows["ts"].to_numpy()[self._starts]
        self._seq = seq[self._starts]
        self._is_snapshot = rows["snapshot"].to_numpy()[self._starts]
        self._side, self._price, self._qty = (rows[name].to_numpy() for name in ("side", "price", "qty"))
        self._done = 0
        self._sides: dict[int, dict[float, float]] = {1: {}, -1: {}}
        self._kept: tuple[int, BookView] | None = None

    def at(self, ts_ns: int) -> BookView | None:
        """Return the book after every message stamped at or before ``ts_ns``."""
        stop = int(np.searchsorted(self._ts, ts_ns, side="right"))
        if stop == 0 or ts_ns - int(self._ts[stop - 1]) > KNOWN_AFTER_NS:
            return None
        if stop < self._done:
            self._done, self._sides = 0, {1: {}, -1: {}}
        for k in range(self._done, stop):
            self._apply(k)
        self._done = stop
        if self._kept is None or self._kept[0] != stop:
            self._kept = (stop, BookView(Depth(self._best(1), self._best(-1)), int(self._seq[stop - 1])))
        return self._kept[1]

    def _apply(self, k: int) -> None:
        if self._is_snapshot[k]:
            self._sides = {1: {}, -1: {}}
        span = slice(self._starts[k], self._ends[k])
        levels = zip(self._side[span].tolist(), self._price[span].tolist(), self._qty[span].tolist(), strict=True)
        for side, price, qty in levels:
            if qty > 0.0:
                self._sides[side][price] = qty
            else:
                self._sides[side].pop(price, None)

    def _best(self, side: int) -> npt.NDArray[np.float64]:
        levels = sorted(self._sides[side].items(), reverse=side > 0)[:_LEVELS]
        return np.array(levels, dtype=np.float64).reshape(-1, 2)


class Recording:
    """The recordings of a folder that ``exchange import`` wrote.

    Parameters
    ----------
    folder : Path
        Has ``books``, ``trades`` and ``bars``, one file a symbol.

    Raises
    ------
    UserError
        If it has no book.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted((folder / BOOKS).glob("*.parquet"))
        if not files:
            raise UserError(f"{folder} holds no recorded book", "write one with `crypto-qlib exchange import`")
        self._books = {file.stem: _Book(file) for file in files}
        self._tapes = {file.stem: pd.read_parquet(file) for file in sorted((folder / TRADES).glob("*.parquet"))}

    def book(self, symbol: str, ts_ns: int) -> BookView | None:
        """Return the book of ``symbol`` at ``ts_ns``; ``None`` where none is known."""
        return self._books[symbol].at(ts_ns) if symbol in self._books else None

    def depths(self, ts_ns: int) -> dict[str, Depth]:
        """Return every book known at ``ts_ns``, by symbol."""
        found = ((symbol, book.at(ts_ns)) for symbol, book in self._books.items())
        return {symbol: view.depth for symbol, view in found if view is not None}

    def trades(self, symbol: str, start_ns: int, end_ns: int) -> TapeRows | None:
        """Return the trades with ``start_ns <= ts < end_ns``; ``None`` where the symbol's trades are not recorded then."""
        tape = self._tapes.get(symbol)
        if tape is None:
            return None
        ts = tape["ts"].to_numpy()
        if start_ns < ts[0] - NS_PER_S or end_ns > ts[-1] + NS_PER_S:
            return None
        a, b = np.searchsorted(ts, [start_ns, end_ns])
        return TapeRows(*(tape[name].to_numpy()[a:b] for name in TapeRows.__slots__))


def recorded_bars(folder: Path) -> Path | None:
    """Return the candles of a folder of recordings; ``None`` where ``folder`` is no such folder."""
    return folder / BARS if (folder / BOOKS).is_dir() and (folder / BARS).is_dir() else None

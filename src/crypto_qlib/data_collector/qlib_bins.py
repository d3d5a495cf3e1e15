"""Qlib's store grown bar by bar: values go to their place in every bin, whatever happened to the last try.

A value's place follows from its bar alone (``4 * (1 + row - start)`` bytes into the file), so writing a bar twice, or again
after a kill, ends in the same bytes, and these are the bytes ``qlib_store.write_qlib_store`` would write. Nothing is synced
here: durability is the log's work, and what a power cut takes is written again from it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import IntArray, MarketPanel
from crypto_qlib.data_collector.qlib_store import FIELDS, MARKET, field_values, instrument_bins, n_future, stamps

_VALUE: Final = 4
_HINT: Final = "free disk space or mend permissions"


@dataclass(slots=True)
class _Bins:
    """The files of one instrument, one descriptor a field, and the bars they hold."""

    files: list[int]
    start: int
    end: int
    """One past the last row held."""


class QlibBins:
    """Append bars to the bins, calendars and instruments of one frequency.

    Parameters
    ----------
    root : Path
        The store's folder (``Paths.qlib``).
    freq : str
        Qlib's name of the frequency.
    """

    def __init__(self, root: Path, freq: str) -> None:
        self._root = root
        self._freq = freq
        self._open: dict[str, _Bins] = {}

    def lacking_from(self, panel: MarketPanel, first_row: int) -> int:
        """Return the first row that instruments which trade in ``panel`` (it begins at ``first_row``) have not got yet."""
        ends = [bins.end for j in _trading(panel) if (bins := self._open.get(panel.symbols[j])) is not None]
        return min((*ends, first_row + panel.n_bars))

    def write(self, panel: MarketPanel, first_row: int) -> None:
        """Append to every instrument the bars of ``panel`` it lacks, up to the last one it trades at.

        Parameters
        ----------
        panel : MarketPanel
            Consecutive bars. The first only serves the ``change`` of the second, unless it is the first of all.
        first_row : int
            Place of the first bar in the calendar.

        Raises
        ------
        UserError
            If a file cannot be written.
        """
        values = field_values(panel)
        for j in _trading(panel):
            rows = np.flatnonzero(np.isfinite(panel.close[:, j])) + first_row
            bins = self._bins(panel.symbols[j], int(rows[0]))
            if rows[-1] >= bins.end:
                self._put(bins, values[:, bins.end - first_row : rows[-1] + 1 - first_row, j], bins.end)
                bins.end = int(rows[-1]) + 1

    def correct(self, panel: MarketPanel, row: int) -> None:
        """Write the last bar of ``panel``, which is ``row``, over what instruments listed then hold."""
        values = field_values(panel)[:, -1:]
        for j, symbol in enumerate(panel.symbols):
            bins = self._open.get(symbol)
            if bins is not None and bins.start <= row < bins.end:
                self._put(bins, values[:, :, j], row)

    def _put(self, bins: _Bins, values: npt.NDArray[np.float32], row: int) -> None:
        try:
            for k, file in enumerate(bins.files):
                os.pwrite(file, values[k].tobytes(), _VALUE * (1 + row - bins.start))
        except OSError as e:
            raise UserError(f"cannot write the Qlib store {self._root}: {e.strerror or e}", _HINT) from e

    def must_rebuild(self, panel: MarketPanel, j: int, row: int) -> bool:
        """Return whether a corrected ``row`` (the last of ``panel``) moves the listing span of symbol ``j``."""
        bins = self._open.get(panel.symbols[j])
        if bins is None or bins.end <= bins.start:
            return False
        is_trading = bool(np.isfinite(panel.close[-1, j]))
        return row < bins.start if is_trading else row in (bins.start, bins.end - 1)

    def rebuild(self, panel: MarketPanel, j: int) -> None:
        """Write all bins of symbol ``j`` anew from the whole ``panel``."""
        folder = self._folder(panel.symbols[j])
        content = instrument_bins(panel, j)
        for name in FIELDS:
            path = folder / f"{name}.{self._freq}.bin"
            if name in content:
                path.write_bytes(content[name].tobytes())
            else:
                path.unlink(missing_ok=True)
        self._forget(panel.symbols[j])

    def span(self, symbol: str) -> tuple[int, int] | None:
        """Return the first and last row held of ``symbol``."""
        bins = self._open.get(symbol)
        return None if bins is None or bins.end <= bins.start else (bins.start, bins.end - 1)

    def hold(self, symbols: Sequence[str]) -> None:
        """Open the files of those of ``symbols`` that have any."""
        for symbol in symbols:
            if (self._folder(symbol) / f"{FIELDS[0]}.{self._freq}.bin").exists():
                self._bins(symbol, 0)

    def _folder(self, symbol: str) -> Path:
        return self._root / "features" / symbol.lower()

    def _bins(self, symbol: str, row: int) -> _Bins:
        if symbol not in self._open:
            folder = self._folder(symbol)
            folder.mkdir(parents=True, exist_ok=True)
            files = [os.open(folder / f"{n}.{self._freq}.bin", os.O_RDWR | os.O_CREAT, 0o644) for n in FIELDS]
            self._open[symbol] = _held(files, row)
        return self._open[symbol]

    def _forget(self, symbol: str) -> None:
        bins = self._open.pop(symbol, None)
        for file in bins.files if bins is not None else ():
            os.close(file)

    def write_calendars(self, panel: MarketPanel, n_bars: int) -> None:
        """Bring the calendars up to ``n_bars`` bars.

        Parameters
        ----------
        panel : MarketPanel
            Ends with the last bar.
        n_bars : int
            Bars there are now.
        """
        folder = self._root / "calendars"
        folder.mkdir(parents=True, exist_ok=True)
        frame_ns = panel.frame_ns
        ahead = n_future(n_bars)
        _extend(folder / f"{self._freq}.txt", panel.ts_open[-1:], frame_ns, n_bars)
        _extend(folder / f"{self._freq}_future.txt", panel.ts_open[-1:] + ahead * frame_ns, frame_ns, n_bars + ahead)

    def sync(self) -> None:
        """Make every bin durable."""
        for bins in self._open.values():
            for file in bins.files:
                os.fsync(file)

    def close(self) -> None:
        """Close all files."""
        for symbol in list(self._open):
            self._forget(symbol)


def _trading(panel: MarketPanel) -> npt.NDArray[np.int64]:
    """Return the columns that trade at any bar of ``panel``."""
    return np.flatnonzero(np.isfinite(panel.close).any(axis=0))


def _held(files: list[int], row: int) -> _Bins:
    """Return what the files hold; a new instrument begins at ``row``, and files a kill left uneven end where all have bars."""
    sizes = [os.fstat(file).st_size // _VALUE for file in files]
    if min(sizes) < 2:  # noqa: PLR2004 - a start index and a value
        for file in files:
            os.ftruncate(file, 0)
            os.pwrite(file, struct.pack("<f", row), 0)
        return _Bins(files, row, row)
    start = int(struct.unpack("<f", os.pread(files[0], _VALUE, 0))[0])
    return _Bins(files, start, start + min(sizes) - 1)


def _extend(path: Path, last_ts: IntArray, frame_ns: int, n_lines: int) -> None:
    """Append to ``path`` the lines it lacks of ``n_lines``, the last of which is ``last_ts``; half a line is cut off."""
    length = len(stamps(last_ts, frame_ns)[0]) + 1
    size = path.stat().st_size if path.exists() else 0
    have = min(size // length, n_lines)
    if size == n_lines * length:
        return
    lacking = last_ts + frame_ns * np.arange(have - n_lines + 1, 1, dtype=np.int64)
    with path.open("r+b" if path.exists() else "w+b") as f:
        f.truncate(have * length)
        f.seek(have * length)
        f.write("".join(f"{line}\n" for line in stamps(lacking, frame_ns)).encode())


def write_instruments(root: Path, panel: MarketPanel, spans: dict[str, tuple[int, int]]) -> None:
    """Announce each instrument from its first to its last bar (open times, ns), in the order of the panel's symbols."""
    listed = [s for s in panel.symbols if s in spans]
    times = stamps(np.array([spans[s] for s in listed], np.int64).reshape(-1), 1)
    rows = [f"{s}\t{first}\t{last}\n" for s, first, last in zip(listed, times[::2], times[1::2], strict=True)]
    path = root / "instruments" / f"{MARKET}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text("".join(rows))
    scratch.replace(path)

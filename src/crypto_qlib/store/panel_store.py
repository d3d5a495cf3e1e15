"""The hot panel: one memory-mapped array a field, time by symbol, that readers of any process see grow.

::

    panels/1m/layout.json       frame, first open time, symbols, fields, dtype
    panels/1m/rows              int64: how many bars there are (mapped by readers)
    panels/1m/close             raw values, (capacity, width), NaN where nothing was written yet

1. Files are laid out ahead in blocks of rows filled with NaN, so a bar is a write into mapped memory, and a page that a power
   cut kept from the disk reads as a gap, never as a price.
2. The number of bars is raised after their values are in place: a reader that sees a bar sees all of it.
3. Durability is the log's work (:mod:`.append_log`); :meth:`PanelStore.sync` makes the mapped pages durable too.
4. A column more fits into the spare width; beyond it the store is written anew beside itself and swapped in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, IntArray, MarketPanel
from crypto_qlib.store.parquet_file import write_atomic

Array = npt.NDArray[Any]

LAYOUT_VERSION: Final = 1
ROWS_PER_BLOCK: Final = 4096
_COLUMNS_PER_STEP: Final = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """What a panel store holds.

    Parameters
    ----------
    frame_ns : int
        Bar length.
    origin_ns : int
        Open time of the first row.
    symbols : tuple of str
        Columns, in the order they joined.
    fields : tuple of str
        One file each.
    dtype : str
        ``<f8`` (exact) or ``<f4`` (half the memory).
    has_mark : tuple of bool
        Whether the mark columns of each symbol are real marks.
    version : int
        Version of this layout.
    """

    frame_ns: int
    origin_ns: int
    symbols: tuple[str, ...]
    fields: tuple[str, ...] = PANEL_FIELDS
    dtype: str = "<f8"
    has_mark: tuple[bool, ...] = ()
    version: int = LAYOUT_VERSION

    @property
    def width(self) -> int:
        """Return the number of columns laid out."""
        return -(-max(len(self.symbols), 1) // _COLUMNS_PER_STEP) * _COLUMNS_PER_STEP


class PanelStore:
    """One panel on disk; open it with :meth:`create` or :meth:`open`.

    Parameters
    ----------
    folder : Path
        The store's folder.
    layout : Layout
        What it holds.
    is_writable : bool
        Whether this process may write.
    """

    def __init__(self, folder: Path, layout: Layout, *, is_writable: bool) -> None:
        self.folder = folder
        self.layout = layout
        self._mode: Any = "r+" if is_writable else "r"
        self._rows = _counter(folder, self._mode)
        self._maps: dict[str, Array] = {}
        announced = len(self)  # before the maps are made: a writer announces rows only once they are laid out
        self._map()
        if announced > (capacity := self._maps[layout.fields[0]].shape[0]):
            raise ValueError(f"its files end at row {capacity:,} of {announced:,}")

    @classmethod
    def create(cls, folder: Path, layout: Layout) -> Self:
        """Make an empty store in ``folder``, in place of any that was there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "rows").write_bytes(np.zeros(1, "<i8").tobytes())
        for name in layout.fields:
            (folder / name).touch()
        _write_layout(folder, layout)
        return cls(folder, layout, is_writable=True)

    @classmethod
    def open(cls, folder: Path, *, is_writable: bool = False) -> Self:
        """Open the store in ``folder``.

        Raises
        ------
        UserError
            If there is none, or it is of another version or damaged.
        """
        layout = read_layout(folder)
        try:
            return cls(folder, layout, is_writable=is_writable)
        except (OSError, ValueError) as e:
            raise UserError(f"the panel store in {folder} is damaged: {e}", _REBUILD) from e

    def __len__(self) -> int:
        return int(self._rows[0])

    @property
    def ts_open(self) -> IntArray:
        """Return the open times of all bars, ns."""
        return self.layout.origin_ns + self.layout.frame_ns * np.arange(len(self), dtype=np.int64)

    def field(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Return rows ``start:stop`` of a field as a read-only view, ``(n_bars, n_symbols)``; no value is copied."""
        stop = len(self) if stop is None else min(stop, len(self))
        if stop > self._maps[name].shape[0]:
            self._map()
        view = self._maps[name][start:stop, : len(self.layout.symbols)]
        view.flags.writeable = False
        return view

    def market_panel(self, start: int = 0, stop: int | None = None) -> MarketPanel:
        """Return rows ``start:stop`` as a panel; views where the store holds float64, copies otherwise."""
        columns = {n: np.asarray(self.field(n, start, stop), np.float64) for n in self.layout.fields}
        n = columns["close"].shape[0]
        ts_open = self.ts_open[start : start + n]
        has_mark = np.array(self.layout.has_mark or (False,) * len(self.layout.symbols), np.bool_)
        return MarketPanel(self.layout.symbols, self.layout.frame_ns, ts_open, has_mark=has_mark, **columns)

    def write_rows(self, start: int, values: Mapping[str, Array]) -> None:
        """Write rows from ``start`` on, then announce them; fields not given are left as they are.

        Parameters
        ----------
        start : int
            First row; rows between the last one and it stay NaN.
        values : mapping of (n, n_symbols) arrays
            By field.
        """
        n = next(iter(values.values())).shape[0]
        self.reserve(start + n)
        for name, rows in values.items():
            self._maps[name][start : start + n, : rows.shape[1]] = rows
        if start + n > len(self):
            self._rows[0] = start + n

    def truncate(self, rows: int) -> None:
        """Forget the rows from ``rows`` on: their values become NaN, as if they had never been written."""
        n = len(self)
        if rows >= n:
            return
        self._rows[0] = rows
        for values in self._maps.values():
            values[rows:n] = np.nan

    def reserve(self, rows: int) -> None:
        """Lay out whole blocks so that ``rows`` rows fit."""
        capacity = self._maps[self.layout.fields[0]].shape[0]
        if rows <= capacity:
            return
        wanted = -(-rows // ROWS_PER_BLOCK) * ROWS_PER_BLOCK
        block = np.full((ROWS_PER_BLOCK, self.layout.width), np.nan, self.layout.dtype).tobytes()
        for name in self.layout.fields:
            with (self.folder / name).open("r+b") as f:
                # A writer killed here leaves files of different lengths, or half a row: all are brought to the same end.
                f.truncate(capacity * self._row_bytes)
                f.seek(0, os.SEEK_END)
                for _ in range((wanted - capacity) // ROWS_PER_BLOCK):
                    f.write(block)
                f.flush()
                os.fsync(f.fileno())
        self._map()

    def add_symbols(self, symbols: Sequence[str], has_mark: Sequence[bool]) -> None:
        """Add columns, NaN throughout the past."""
        layout = replace(
            self.layout,
            symbols=(*self.layout.symbols, *symbols),
            has_mark=(*(self.layout.has_mark or (False,) * len(self.layout.symbols)), *has_mark),
        )
        if layout.width != self.layout.width:
            self._widen(layout)
        self.layout = layout
        _write_layout(self.folder, layout)
        self._map()

    def _widen(self, layout: Layout) -> None:
        fresh = self.folder.with_name(f"{self.folder.name}.new")
        wider = PanelStore.create(fresh, layout)
        for start in range(0, len(self), ROWS_PER_BLOCK):
            wider.write_rows(start, {n: self.field(n, start, start + ROWS_PER_BLOCK) for n in layout.fields})
        wider.sync()
        swap_in(fresh, self.folder)
        self._rows = _counter(self.folder, self._mode)
        self._maps = {}

    def sync(self) -> None:
        """Make all mapped pages durable."""
        for name in (*self.layout.fields, "rows"):
            with (self.folder / name).open("rb") as f:
                os.fsync(f.fileno())

    @property
    def _row_bytes(self) -> int:
        return self.layout.width * np.dtype(self.layout.dtype).itemsize

    def _map(self) -> None:
        sizes = {name: (self.folder / name).stat().st_size // self._row_bytes for name in self.layout.fields}
        capacity = min(sizes.values()) // ROWS_PER_BLOCK * ROWS_PER_BLOCK
        shape = (capacity, self.layout.width)
        for name in self.layout.fields:
            self._maps[name] = (
                np.memmap(self.folder / name, np.dtype(self.layout.dtype), self._mode, shape=shape).view(np.ndarray)
                if capacity
                else np.empty(shape, self.layout.dtype)
            )


def swap_in(fresh: Path, folder: Path) -> None:
    """Put the finished store ``fresh`` in the place of ``folder``; readers of the old one keep what they have mapped."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _counter(folder: Path, mode: Any) -> Array:
    return np.memmap(folder / "rows", np.dtype("<i8"), mode, shape=(1,)).view(np.ndarray)


def read_layout(folder: Path) -> Layout:
    """Return the layout of the store in ``folder``; errors as :meth:`PanelStore.open`."""
    path = folder / "layout.json"
    try:
        found = json.loads(path.read_text())
        version = found.get("version")
        if version != LAYOUT_VERSION:
            raise UserError(f"{folder} has layout version {version}, this release reads {LAYOUT_VERSION}", _REBUILD)
        return Layout(**{**found, **{n: tuple(found[n]) for n in ("symbols", "fields", "has_mark")}})
    except FileNotFoundError as e:
        raise UserError(f"there is no panel store in {folder}", _REBUILD) from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"{path} is damaged: {e}", _REBUILD) from e


_REBUILD: Final = "run `crypto-qlib data check`: it is built anew from the lake"


def _write_layout(folder: Path, layout: Layout) -> None:
    write_atomic(folder / "layout.json", json.dumps(asdict(layout), sort_keys=True).encode())

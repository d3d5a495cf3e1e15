"""The feature store: built features kept by what they are made of, written in time blocks, extended by new bars, resumed.

::

    features/current            the folder built last
    features/3f2a9c.../         digest of settings, symbols, grid and code: one folder of :mod:`.feature_files`

1. The folder is named by what decides every row alike. What decides a row by its time (bars, side data known by then) is
   digested block by block.
2. Blocks whose digest still holds are kept; from the first that does not, everything later is built anew.
3. A block is built from its bars and the look-back before them, so that its rows equal those of one build over all bars bit for
   bit, and written before the next one is begun: memory holds one block, not the matrix.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from crypto_qlib.core.errors import UserError
from crypto_qlib.core.market import PANEL_FIELDS, IntArray, MarketPanel
from crypto_qlib.feature_engineering.feature_files import (
    CURRENT,
    LIST,
    BlockList,
    append_block,
    arrays_of,
    empty_list,
    load_feature_frame,
    read_list,
)
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.feature_engineering.feature_generator import (
    Progress,
    block_features,
    bytes_per_bar,
    lookback_bars,
)
from crypto_qlib.feature_engineering.side_data import SideData, side_digest
from crypto_qlib.settings.schema import FeatureSettings
from crypto_qlib.store.parquet_file import write_atomic

KEPT: Final = 2
"""Folders kept; the one used longest ago goes first."""
BLOCK_BYTES: Final = 512 * 2**20
"""Memory one block may take: its series and its rows."""
_MIN_BARS: Final = 64
_UNFINISHED: Final = ".part"
_EARLIER: Final = ("values.npy", "ts_open.npy", "row_bar.npy", "row_symbol.npy", "features.json", "made_of.json")
"""Files of releases that kept one frame in the root itself."""


@dataclass(frozen=True, slots=True)
class BarSource:
    """Bars that need not all be in memory.

    Parameters
    ----------
    symbols : tuple of str
        Columns.
    frame_ns : int
        Bar length.
    ts_open : (n_bars,) int64
        The whole grid.
    load : callable
        ``load(start, stop)`` returns bars ``start:stop`` of the grid.
    """

    symbols: tuple[str, ...]
    frame_ns: int
    ts_open: IntArray
    load: Callable[[int, int], MarketPanel]

    @property
    def n_bars(self) -> int:
        """Return the number of bars."""
        return int(self.ts_open.size)


def panel_source(panel: MarketPanel) -> BarSource:
    """Return the bars of a panel; those of the pipeline are files mapped into memory, so only what a block reads is there."""
    return BarSource(panel.symbols, panel.frame_ns, panel.ts_open, panel.rows)


def stored_features(
    root: Path,
    source: BarSource,
    settings: FeatureSettings,
    side: SideData | None = None,
    code: str = "",
    progress: Progress | None = None,
    block_bars: int | None = None,
) -> FeatureFrame:
    """Return the features of all bars of ``source``, memory-mapped, building only what ``root`` does not hold yet.

    Parameters
    ----------
    root : Path
        The store; afterwards its ``current`` names these features.
    source : BarSource
        Bars, oldest first.
    settings : FeatureSettings
        Which sets.
    side : SideData, optional
        What is known beside the bars.
    code : str
        Identity of the code: another one means a rebuild.
    progress : callable, optional
        Told the fraction just finished.
    block_bars : int, optional
        Bars a block; by default as many as :data:`BLOCK_BYTES` hold, and no fewer than the look-back.

    Raises
    ------
    UserError
        If there is no bar, or a set lacks what it needs.
    """
    if not source.n_bars:
        raise UserError("there are no bars to build features from", "run `crypto-qlib data update` first")
    known, tell = side or SideData(), progress or (lambda _share: None)
    folder = root / _key(source, settings, code)
    kept = _kept(folder, source, known)
    first = kept.n_bars if kept is not None else 0
    step = block_bars or _block_bars(source, settings)
    tell(first / source.n_bars)
    for start in range(first, source.n_bars, step):
        stop = min(start + step, source.n_bars)
        before = max(0, start + 1 - lookback_bars(settings, source.frame_ns))
        panel = source.load(before, stop)
        share = (stop - start) / source.n_bars
        part = block_features(panel, settings, start - before, known, lambda done, share=share: tell(done * share))  # type: ignore[misc]
        rows = {"values": part.values, "row_bar": part.row_bar + np.int32(before), "row_symbol": part.row_symbol}
        made_of = _made_of(panel.rows(start - before, panel.n_bars), known, start == 0)
        kept = kept or replace(empty_list(part), origin_ns=int(source.ts_open[0]))
        kept = append_block(folder, kept, rows, stop, made_of)
    if kept is None or not kept.n_rows:
        raise UserError("there are no prices to build features from", "run `crypto-qlib data update` first")
    write_atomic(root / CURRENT, folder.name.encode())
    os.utime(folder / LIST)
    _drop_old(root, folder)
    return load_feature_frame(folder)


def _key(source: BarSource, settings: FeatureSettings, code: str) -> str:
    parts = [source.symbols, source.frame_ns, int(source.ts_open[0]), settings.model_dump(mode="json"), code]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _block_bars(source: BarSource, settings: FeatureSettings) -> int:
    reach = lookback_bars(settings, source.frame_ns)
    room = BLOCK_BYTES // bytes_per_bar(len(source.symbols), settings, source.frame_ns) - reach
    return max(room, reach, _MIN_BARS)


def _made_of(panel: MarketPanel, side: SideData, is_first: bool) -> str:
    """Return the digest of a block's bars and of what became known beside them since the block before."""
    start_ns = None if is_first else int(panel.ts_open[0])
    return f"{panel_digest(panel)} {side_digest(side, start_ns, int(panel.ts_open[-1]) + panel.frame_ns)}"


def panel_digest(panel: MarketPanel) -> str:
    """Return a digest of every number of ``panel``; equal panels have equal digests on any machine."""
    digest = hashlib.sha256(repr((panel.symbols, panel.frame_ns)).encode())
    for array in (panel.ts_open, panel.is_member, *(getattr(panel, name) for name in PANEL_FIELDS)):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _kept(folder: Path, source: BarSource, side: SideData) -> BlockList | None:
    """Return the blocks of ``folder`` that still hold, ``None`` without any; nothing else is left in it."""
    try:
        kept = read_list(folder)
        arrays_of(folder, kept)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    good, start = 0, 0
    for block in kept.blocks:
        if block.stop_bar > source.n_bars:
            break
        if _made_of(source.load(start, block.stop_bar), side, start == 0) != block.made_of:
            break
        good, start = good + 1, block.stop_bar
    if good == len(kept.blocks):
        return kept
    if good:
        return _shortened(folder, kept, good)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _shortened(folder: Path, kept: BlockList, good: int) -> BlockList:
    """Copy the first ``good`` blocks beside ``folder`` and swap them in: whoever maps the old files keeps them whole."""
    fresh = folder.with_name(folder.name + _UNFINISHED)
    shutil.rmtree(fresh, ignore_errors=True)
    arrays, first, result = arrays_of(folder, kept, good), 0, replace(kept, blocks=())
    for block in kept.blocks[:good]:
        rows = {name: array[first : first + block.n_rows] for name, array in arrays.items()}
        result = append_block(fresh, result, rows, block.stop_bar, block.made_of)
        first += block.n_rows
    shutil.rmtree(folder)
    fresh.rename(folder)
    return result


def _drop_old(root: Path, folder: Path) -> None:
    """Remove all but the :data:`KEPT` folders used last, and what a killed run or an earlier release left behind."""
    found = [p for p in root.iterdir() if (p / LIST).is_file()]
    found.sort(key=lambda p: (p / LIST).stat().st_mtime, reverse=True)
    for path in (*found[KEPT:], *root.glob(f"*{_UNFINISHED}")):
        if path != folder:
            shutil.rmtree(path, ignore_errors=True)
    for name in _EARLIER:
        (root / name).unlink(missing_ok=True)

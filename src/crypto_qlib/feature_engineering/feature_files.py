"""Feature frames as files: plain ``.npy`` arrays that grow block by block, and a list of the blocks that count.

::

    features.json      names, symbols, grid, settings; of each block its last bar, its rows and its digests
    values.npy         (n_rows, n_features) float32
    row_bar.npy        (n_rows,) int32
    row_symbol.npy     (n_rows,) int32
    ../current         in the folder above: the name of the folder to read, where several are kept

1. The rows of a block are written behind those there are, made durable, and the arrays' headers are brought up to date.
2. Then the list of blocks is replaced in one step. Rows it does not speak of do not count and are written over.

A writer that is killed loses the block it was at; a reader never sees half a block, and keeps what it has mapped.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crypto_qlib.core.errors import UserError
from crypto_qlib.feature_engineering.feature_frame import FeatureFrame
from crypto_qlib.settings.schema import FeatureSettings
from crypto_qlib.store.parquet_file import write_atomic

LIST: Final = "features.json"
CURRENT: Final = "current"
_DTYPES: Final[dict[str, npt.DTypeLike]] = {"values": np.float32, "row_bar": np.int32, "row_symbol": np.int32}
_REBUILD: Final = "run `crypto-qlib features build`"


@dataclass(frozen=True, slots=True)
class Block:
    """Rows written in one go.

    Parameters
    ----------
    stop_bar : int
        One past its last bar.
    n_rows : int
        Its rows.
    made_of : str
        Digest of what it was computed from; empty where nobody keeps one.
    sha256 : mapping of str to str
        Digest of its part of each array.
    """

    stop_bar: int
    n_rows: int
    made_of: str
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BlockList:
    """What a folder of features holds.

    Parameters
    ----------
    names, symbols : tuple of str
        Columns, and symbols in the panel's order.
    frame_ns, origin_ns : int
        Bar length and open of the first bar.
    settings : FeatureSettings
        What the features were built from.
    blocks : tuple of Block
        In order of time; the first begins at bar 0.
    """

    names: tuple[str, ...]
    symbols: tuple[str, ...]
    frame_ns: int
    origin_ns: int
    settings: FeatureSettings
    blocks: tuple[Block, ...] = ()

    @property
    def n_rows(self) -> int:
        """Return the number of rows that count."""
        return sum(b.n_rows for b in self.blocks)

    @property
    def n_bars(self) -> int:
        """Return the number of bars the rows lie on."""
        return self.blocks[-1].stop_bar if self.blocks else 0


def read_list(folder: Path) -> BlockList:
    """Return the blocks of ``folder``.

    Raises
    ------
    UserError
        If there are none, or the list is damaged.
    """
    path = folder / LIST
    if not path.is_file():
        raise UserError(f"no features in {folder}", _REBUILD)
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        return BlockList(
            tuple(raw["names"]), tuple(raw["symbols"]), int(raw["frame_ns"]), int(raw["origin_ns"]),
            FeatureSettings.model_validate(raw["settings"]), tuple(Block(**b) for b in raw["blocks"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"the features in {folder} cannot be read: {e}", _REBUILD) from e


def append_block(folder: Path, kept: BlockList, arrays: Mapping[str, Any], stop_bar: int, made_of: str = "") -> BlockList:
    """Write one more block and return the list that holds it.

    Parameters
    ----------
    folder : Path
        Made where absent.
    kept : BlockList
        The blocks that count; rows behind them are written over.
    arrays : mapping
        ``values``, ``row_bar`` (counted from the grid's first bar) and ``row_symbol`` of the block.
    stop_bar : int
        One past its last bar.
    made_of : str
        See :class:`Block`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_rows = kept.n_rows + len(arrays["row_bar"])
    digests: dict[str, str] = {}
    for name, dtype in _DTYPES.items():
        part = np.ascontiguousarray(arrays[name], dtype=dtype)
        digests[name] = hashlib.sha256(part.data).hexdigest()
        shape = (n_rows, *part.shape[1:])
        header = _header(dtype, shape)
        row_bytes = part.itemsize * int(np.prod(part.shape[1:], dtype=np.int64))
        path = folder / f"{name}.npy"
        with path.open("r+b" if path.exists() else "w+b") as f:
            f.truncate(len(header) + kept.n_rows * row_bytes)
            f.seek(0)
            f.write(header)
            f.seek(0, os.SEEK_END)
            f.write(part.data)
            f.flush()
            os.fsync(f.fileno())
    grown = replace(kept, blocks=(*kept.blocks, Block(stop_bar, len(arrays["row_bar"]), made_of, digests)))
    _write_list(folder, grown)
    return grown


def _header(dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bytes:
    """Return an ``.npy`` header; numpy leaves room in it for the first axis to grow, so its length does not change."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def _write_list(folder: Path, kept: BlockList) -> None:
    document = {
        "names": kept.names, "symbols": kept.symbols, "frame_ns": kept.frame_ns, "origin_ns": kept.origin_ns,
        "settings": kept.settings.model_dump(mode="json"), "blocks": [asdict(b) for b in kept.blocks],
    }  # fmt: skip
    write_atomic(folder / LIST, json.dumps(document, indent=1).encode())


def arrays_of(folder: Path, kept: BlockList, blocks: int | None = None) -> dict[str, Any]:
    """Return the memory-mapped arrays of the first ``blocks`` blocks (all by default), read-only.

    Raises
    ------
    UserError
        If a file is absent or shorter than the list says.
    """
    n_rows = sum(b.n_rows for b in kept.blocks[:blocks])
    try:
        found = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)[:n_rows] for name in _DTYPES}
    except (OSError, EOFError, ValueError) as e:
        raise UserError(f"the features in {folder} cannot be read: {e}", _REBUILD) from e
    if any(array.shape[0] < n_rows for array in found.values()):
        raise UserError(f"the features in {folder} are shorter than their list says", _REBUILD)
    return found


def save_feature_frame(frame: FeatureFrame, folder: Path) -> None:
    """Write ``frame`` into ``folder`` as one block, in place of what was there."""
    arrays = {name: getattr(frame, name) for name in _DTYPES}
    append_block(folder, replace(empty_list(frame), blocks=()), arrays, frame.n_bars)


def empty_list(frame: FeatureFrame) -> BlockList:
    """Return the list of a folder for frames such as ``frame``, without blocks."""
    return BlockList(frame.names, frame.symbols, frame.frame_ns, int(frame.ts_open[0]), frame.settings)


def load_feature_frame(folder: Path, *, verify: bool = False) -> FeatureFrame:
    """Read features from ``folder``, or from the one its ``current`` names; the arrays are memory-mapped read-only.

    Parameters
    ----------
    folder : Path
        Where they were saved.
    verify : bool
        Also check every block against its SHA-256 (reads the whole matrix).

    Raises
    ------
    UserError
        If the frame is absent, incomplete, or does not match its digests.
    """
    if (folder / CURRENT).is_file():
        folder = folder / (folder / CURRENT).read_text().strip()
    kept = read_list(folder)
    arrays = arrays_of(folder, kept)
    first = 0
    for block in kept.blocks if verify else ():
        for name, array in arrays.items():
            part = np.ascontiguousarray(array[first : first + block.n_rows])
            if hashlib.sha256(part.data).hexdigest() != block.sha256[name]:
                raise UserError(f"{folder / name}.npy does not match its checksum", _REBUILD)
        first += block.n_rows
    return FeatureFrame(
        values=arrays["values"],
        names=kept.names,
        ts_open=kept.origin_ns + kept.frame_ns * np.arange(kept.n_bars, dtype=np.int64),
        frame_ns=kept.frame_ns,
        symbols=kept.symbols,
        row_bar=np.asarray(arrays["row_bar"]),
        row_symbol=np.asarray(arrays["row_symbol"]),
        settings=kept.settings,
    )

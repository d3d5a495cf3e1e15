"""Rows appended to a month file without rewriting it: small files beside it, until it is compacted.

::

    candles/1m/BTCUSDT/2025-01.parquet
    candles/1m/BTCUSDT/2025-01.parts/01738368000000000000.parquet      named by its first instant, ns
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from crypto_qlib.store.parquet_file import damaged_file, is_scratch, opened

_SUFFIX: Final = ".parts"
_DIGITS: Final = 20


def part_path(month_path: Path, first_ns: int) -> Path:
    """Return the path of the part of ``month_path`` whose first row is at ``first_ns``."""
    return month_path.with_name(f"{month_path.stem}{_SUFFIX}") / f"{first_ns:0{_DIGITS}d}.parquet"


def parts_of(month_path: Path) -> list[Path]:
    """Return the parts of a month file, oldest first; none if there are none."""
    folder = month_path.with_name(f"{month_path.stem}{_SUFFIX}")
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.glob("*.parquet") if not is_scratch(p)), key=str)


def is_part(path: Path) -> bool:
    """Return whether ``path`` is a part of a month file."""
    return path.parent.name.endswith(_SUFFIX) and not is_scratch(path)


def month_path_of(path: Path) -> Path:
    """Return the month file that ``path`` is a part of, or ``path`` itself."""
    if not path.parent.name.endswith(_SUFFIX):
        return path
    return path.parent.with_name(f"{path.parent.name.removesuffix(_SUFFIX)}.parquet")


def drop_parts(month_path: Path) -> bool:
    """Delete the parts of a month file that has their rows now; return whether there were any."""
    parts = parts_of(month_path)
    for part in parts:
        part.unlink()
    if parts and parts[0].parent.is_dir() and not any(parts[0].parent.iterdir()):
        parts[0].parent.rmdir()
    return bool(parts)


def last_instant(path: Path, column: str) -> int:
    """Return the last value of the time ``column`` of a file sorted by it, ns, from its footer alone.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    try:
        with opened(path) as f:
            footer = pq.read_metadata(f)
            at = footer.schema.names.index(column)
            return int(footer.row_group(footer.num_row_groups - 1).column(at).statistics.max_raw)
    except (pa.ArrowException, OSError, ValueError, AttributeError) as e:
        raise damaged_file(path, e) from e

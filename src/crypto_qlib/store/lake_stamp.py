"""Whether files of the lake are still the ones looked at before, in one ``stat`` a file.

The stamp is a hash over the name, size, inode and times of every file of the series asked for. A file that is replaced gets
another inode, one that is written in place another change time (which no program can set): as long as the stamp is the same,
nobody has written to these series.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from crypto_qlib.store.lake import Lake, Series
from crypto_qlib.store.parquet_file import is_local

_EXTENSION = ".parquet"


def lake_stamp(lake: Lake, series: Iterable[Series]) -> str:
    """Return the stamp of ``series`` as they are now, or an empty string where the lake's place does not tell.

    Parameters
    ----------
    lake : Lake
        The lake; an object store has no inodes and is never vouched for.
    series : iterable of Series
        Which ones; one that does not exist counts as such.
    """
    if not is_local(lake.root):
        return ""
    digest = hashlib.sha256()
    for one in series:
        digest.update(f"{one.kind} {one.frame} {one.symbol}\n".encode())
        for line in sorted(_facts(lake.folder(one))):
            digest.update(line.encode())
    return digest.hexdigest()[:32]


def _facts(folder: Path, below: str = "") -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _facts(folder / entry.name, f"{below}{entry.name}/")
        elif entry.name.endswith(_EXTENSION):
            s = entry.stat()
            yield f"{below}{entry.name} {s.st_size} {s.st_ino} {s.st_mtime_ns} {s.st_ctime_ns}\n"

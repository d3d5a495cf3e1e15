"""What is in the lake, as one short hash: the same rows give the same identity on any machine.

Checksums of files are kept in ``lake/checksums.json`` with size and modification time, so asking again costs
one ``stat`` a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from crypto_qlib.core.errors import UserError
from crypto_qlib.store.lake import Kind, Lake
from crypto_qlib.store.parquet_file import is_scratch, write_atomic

_SERIES_DEPTH: Final = 4
IDENTITY_KINDS: Final = (Kind.CANDLES, Kind.MARK, Kind.FUNDING, Kind.INSTRUMENTS, Kind.TIERS)
"""Kinds that decide results. Open interest and universe snapshots carry the time of asking and are not among them."""


def data_identity(lake: Lake, kinds: Iterable[Kind] = IDENTITY_KINDS, symbols: Iterable[str] | None = None) -> str:
    """Return a 16-digit hash over the names and checksums of the lake's files.

    Parameters
    ----------
    lake : Lake
        The lake.
    kinds : iterable of Kind
        Kinds that count.
    symbols : iterable of str, optional
        Only series and tiers of these symbols count; all by default.
    """
    wanted = None if symbols is None else frozenset(symbols)
    digest = hashlib.sha256()
    for name, checksum in sorted(checksums(lake).items()):
        parts = Path(name).parts
        owner = parts[2] if len(parts) >= _SERIES_DEPTH else (Path(name).stem if parts[0] == Kind.TIERS else None)
        if parts[0] in set(kinds) and (wanted is None or owner is None or owner in wanted):
            digest.update(f"{name} {checksum}\n".encode())
    return digest.hexdigest()[:16]


def checksums(lake: Lake) -> dict[str, str]:
    """Return the SHA-256 of every parquet file by its path below the lake, reading only files that changed."""
    book = lake.root / "checksums.json"
    known = _read(book)
    now: dict[str, tuple[int, int, str]] = {}
    for path in lake.root.rglob("*.parquet"):
        if is_scratch(path):
            continue
        name = path.relative_to(lake.root).as_posix()
        stat = path.stat()
        size, mtime, checksum = known.get(name, (-1, -1, ""))
        written_ns = int(getattr(stat, "st_mtime_ns", 0))
        # An object store that does not tell when an object was written is read each time.
        if not written_ns or (size, mtime) != (stat.st_size, written_ns):
            checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        now[name] = (stat.st_size, written_ns, checksum)
    if now != known and lake.root.is_dir():
        _keep(book, now)
    return {name: entry[2] for name, entry in now.items()}


def changed_behind_our_back(lake: Lake) -> list[Path]:
    """Read every file again and return those whose bytes are no longer what they were when last looked at.

    A file written since (its size or time differ) is not among them; one with the same size and time and other bytes is: the
    disk has changed it.
    """
    known = _read(lake.root / "checksums.json")
    found: list[Path] = []
    for name, (size, mtime, checksum) in sorted(known.items()):
        path = lake.root / name
        if not path.exists():
            continue
        stat = path.stat()
        is_as_seen = (stat.st_size, int(getattr(stat, "st_mtime_ns", 0))) == (size, mtime)
        if is_as_seen and hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            found.append(path)
    return found


def _read(book: Path) -> dict[str, tuple[int, int, str]]:
    try:
        return {str(k): (int(a), int(b), str(c)) for k, (a, b, c) in json.loads(book.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def _keep(book: Path, entries: dict[str, tuple[int, int, str]]) -> None:
    try:
        write_atomic(book, json.dumps(dict(sorted(entries.items()))).encode())
    except UserError:
        # The book only saves time: a lake on a read-only disk still has an identity.
        return

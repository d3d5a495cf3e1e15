"""One parquet file, written whole or not at all, the same bytes for the same rows.

A writer kills no reader: rows are encoded in memory, written to a hidden scratch file beside the target, synced to disk and
renamed over it; on an object store, where an object appears whole or not at all, they are put at once. Pages carry checksums,
so a flipped bit is found at reading and not in a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from crypto_qlib.core.errors import UserError

SCHEMA_VERSION: Final = "1"
UPGRADES: Final[dict[str, tuple[str, Callable[[pa.Table], pa.Table]]]] = {}
"""By older schema version: the version after it, and how its rows become that. Reading upgrades in memory, ``Lake.migrate`` on
disk. Empty as long as there has been one version."""
_VERSION_KEY: Final = b"crypto_qlib.schema"
_META_KEY: Final = b"crypto_qlib.meta"
_SCRATCH_SUFFIX: Final = ".tmp"
_ROWS_PER_GROUP: Final = 131_072


def encode(table: pa.Table, meta: Mapping[str, Any] | None = None) -> bytes:
    """Return ``table`` as parquet bytes (zstd, page checksums); equal tables give equal bytes.

    Parameters
    ----------
    table : pyarrow.Table
        Rows in their final order.
    meta : mapping, optional
        JSON-able facts about the file as a whole, see :func:`read_meta`.
    """
    marks = {_VERSION_KEY: SCHEMA_VERSION.encode()}
    if meta is not None:
        marks[_META_KEY] = json.dumps(meta, sort_keys=True).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(marks).combine_chunks(),
        sink,
        compression="zstd",
        compression_level=3,
        use_dictionary=[f.name for f in table.schema if pa.types.is_string(f.type)],
        write_page_checksum=True,
        row_group_size=_ROWS_PER_GROUP,
    )
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def write_atomic(path: Path, content: bytes) -> bool:
    """Write ``content`` to ``path`` atomically and durably; return whether the file changed.

    A file that already holds exactly ``content`` is left alone, its modification time included.

    Raises
    ------
    UserError
        If the folder cannot be created or the file cannot be written (permission, full disk).
    """
    if not is_local(path):
        return _put(path, content)
    scratch = path.with_name(f".{path.name}.{os.getpid()}{_SCRATCH_SUFFIX}")
    try:
        if path.exists() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        scratch.replace(path)
    except OSError as e:
        with suppress(OSError):  # the folder itself may be what cannot be written
            scratch.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {e.strerror or e}", "free disk space, mend permissions, or set store.root"
        ) from e
    return True


def is_local(path: Path) -> bool:
    """Return whether ``path`` lies on a disk of this machine, not on an object store."""
    return getattr(path, "protocol", "") in ("", "file", "local")


def _put(path: Path, content: bytes) -> bool:
    try:
        if path.exists() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}", "check store.lake and its credentials") from e
    return True


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open ``path`` for pyarrow, wherever it lies."""
    if is_local(path):
        yield path
    else:
        with path.open("rb") as f:
            yield f


def damaged_file(path: Path, reason: object) -> UserError:
    """Return the error that says ``path`` cannot be read, why, and how to mend it."""
    first_line = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return UserError(
        f"{path} is damaged: {first_line}", "run `crypto-qlib data repair`: it deletes damaged files and fetches them again"
    )


def read_table(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """Return the rows of ``path``, only ``columns`` where given.

    Raises
    ------
    UserError
        If the file is no readable parquet file of this package, naming it and the way to mend it.
    FileNotFoundError
        If there is no such file.
    """
    try:
        with opened(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as f:
            version = _version_of(path, f.metadata.metadata)
            if version == SCHEMA_VERSION:
                return f.read(columns=None if columns is None else list(columns), use_threads=False)
            upgraded = _upgraded(f.read(use_threads=False), version)
            return upgraded if columns is None else upgraded.select(list(columns))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise damaged_file(path, e) from e


def read_meta(path: Path) -> dict[str, Any]:
    """Return the facts given to :func:`encode` as ``meta`` (empty if none); errors as :func:`read_table`."""
    try:
        with opened(path) as source:
            marks = pq.read_metadata(source).metadata
        _version_of(path, marks)
        return dict(json.loads(marks.get(_META_KEY, b"{}")))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as e:
        raise damaged_file(path, e) from e


def schema_version(path: Path) -> str:
    """Return the schema version ``path`` was written with; errors as :func:`read_table`."""
    try:
        with opened(path) as source:
            return _version_of(path, pq.read_metadata(source).metadata)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise damaged_file(path, e) from e


def _version_of(path: Path, marks: Mapping[bytes, bytes] | None) -> str:
    found = (marks or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if found != SCHEMA_VERSION and found not in UPGRADES:
        if found.isdecimal() and int(found) > int(SCHEMA_VERSION):
            raise UserError(f"{path} has lake schema version {found}, written by a newer release", "install that release")
        raise damaged_file(path, f"lake schema version {found}, this release reads version {SCHEMA_VERSION}")
    return found


def _upgraded(table: pa.Table, version: str) -> pa.Table:
    """Return the rows of an older schema version in the current one, step by step."""
    while version != SCHEMA_VERSION:
        version, step = UPGRADES[version]
        table = step(table)
    return table


def is_scratch(path: Path) -> bool:
    """Return whether ``path`` is the scratch file of a write that never finished."""
    return path.name.startswith(".") and path.name.endswith(_SCRATCH_SUFFIX)

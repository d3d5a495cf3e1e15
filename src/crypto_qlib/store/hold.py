"""One writer at a time: a folder held by a lock file the operating system gives back when its holder dies."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crypto_qlib.core.errors import UserError
from crypto_qlib.store.parquet_file import is_local, is_scratch


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for writing; what killed writers left behind in it is swept away.

    A folder on an object store is held for the processes of this machine only: such stores have no locks.

    Raises
    ------
    UserError
        If another process holds the folder, or it is not writable.
    """
    if not is_local(folder):
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        with held(Path(tempfile.gettempdir()) / f"crypto_qlib_{name}.hold"):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as e:
        raise UserError(f"cannot write to {folder}: {e.strerror or e}", "choose another folder with store.root") from e
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"another process is writing to {folder}", "wait until it ends") from e
        for path in folder.rglob(".*.tmp"):
            if is_scratch(path):
                path.unlink(missing_ok=True)
        yield

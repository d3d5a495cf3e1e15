"""One writer at a time: a folder held by a lock file the operating system gives back when its holder dies."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from crypto_qlib.core.errors import UserError
from crypto_qlib.store.parquet_file import is_local, is_scratch

_NAP_S: Final = 0.05


class HeldElsewhere(UserError):
    """Another process is writing: what was asked for can be done once it ends."""


@contextmanager
def held(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for writing; what killed writers left behind in it is swept away.

    A folder on an object store is held for the processes of this machine only: such stores have no locks.

    Parameters
    ----------
    folder : Path
        What to hold.
    patience_s : float
        How long to wait for another process to let go of it.

    Raises
    ------
    HeldElsewhere
        If another process holds the folder.
    UserError
        If it is not writable.
    """
    if not is_local(folder):
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        with held(Path(tempfile.gettempdir()) / f"crypto_qlib_{name}.hold", patience_s):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as e:
        raise UserError(f"cannot write to {folder}: {e.strerror or e}", "choose another folder with store.root") from e
    with handle:
        _take(handle, folder, time.monotonic() + patience_s)
        for path in folder.rglob(".*.tmp"):
            if is_scratch(path):
                path.unlink(missing_ok=True)
        yield


def _take(handle: IO[Any], folder: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as e:
            if time.monotonic() >= until:
                raise HeldElsewhere(f"another process is writing to {folder}", "wait until it ends") from e
        time.sleep(_NAP_S)

"""A durable log: every record is on disk when its append returns, and a torn one is never read.

A record is ``crc32, length, payload``. A writer that died in the middle of one leaves a tail that fails its checksum; the next
writer cuts it off. One append is one ``write`` and one ``fsync``: nothing that has to be durable can cost less.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crypto_qlib.core.errors import UserError

_HEAD: Final = struct.Struct("<II")


class AppendLog:
    """Append records to the file ``path``; use it from one process at a time.

    Parameters
    ----------
    path : Path
        The log's file; created if it does not exist.

    Raises
    ------
    UserError
        If the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise UserError(f"cannot write {path}: {e.strerror or e}", "choose another folder with store.root") from e
        self._end = sum(_HEAD.size + len(payload) for payload in self.records())
        if os.fstat(self._file).st_size > self._end:
            os.ftruncate(self._file, self._end)

    @property
    def size(self) -> int:
        """Return the length of the log in bytes."""
        return self._end

    def append(self, payload: bytes) -> None:
        """Make ``payload`` durable.

        Raises
        ------
        UserError
            If the disk is full or fails; the log is then as it was.
        """
        record = _HEAD.pack(zlib.crc32(payload), len(payload)) + payload
        try:
            written = os.pwrite(self._file, record, self._end)
            if written != len(record):
                raise OSError(28, "No space left on device")
            os.fsync(self._file)
        except OSError as e:
            os.ftruncate(self._file, self._end)
            raise UserError(f"cannot write {self.path}: {e.strerror or e}", "free disk space") from e
        self._end += len(record)

    def records(self) -> Iterator[bytes]:
        """Yield the payload of every whole record, oldest first; a torn tail ends the iteration."""
        content = self.path.read_bytes()
        at = 0
        while at + _HEAD.size <= len(content):
            checksum, length = _HEAD.unpack_from(content, at)
            payload = content[at + _HEAD.size : at + _HEAD.size + length]
            if len(payload) != length or zlib.crc32(payload) != checksum:
                return
            yield payload
            at += _HEAD.size + length

    def clear(self) -> None:
        """Forget all records; call it only when what they say is durable elsewhere."""
        os.ftruncate(self._file, 0)
        os.fsync(self._file)
        self._end = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

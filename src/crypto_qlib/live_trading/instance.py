"""One session per workspace and mode, and one per account of an exchange, whatever the workspace, key or user.

Both are locks the operating system gives back when their holder dies; the first also says who holds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from crypto_qlib.core.errors import UserError

KILL_FILE: Final = "HALT"
MODES: Final = ("embedded", "demo", "live")


@dataclass(frozen=True, slots=True)
class SessionCard:
    """How to reach a session.

    Parameters
    ----------
    session_id : str
        Its name in the ledger.
    mode : str
        ``embedded``, ``demo`` or ``live``.
    ledger : str
        Path of the SQLite ledger, or address of the database, without a password.
    pid : int
        Its process.
    started_ns : int
        When it started, wall clock.
    """

    session_id: str
    mode: str
    ledger: str
    pid: int
    started_ns: int


@contextmanager
def one_instance(folder: Path, card: SessionCard) -> Iterator[None]:
    """Hold the session's place in ``folder`` and leave ``card`` in it for those who want to reach the session.

    Raises
    ------
    UserError
        If another session of this mode runs in this workspace, or the folder cannot be written.
    """
    path = _card_path(folder, card.mode)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except OSError as e:
        raise UserError(f"cannot write to {folder}: {e.strerror or e}", "choose another folder with store.root") from e
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(
                f"a session already trades this account ({path})", "look at it with `crypto-qlib live status`, or stop it"
            ) from e
        handle.truncate(0)
        handle.write(orjson.dumps(asdict(card)))
        handle.flush()
        yield


@contextmanager
def one_session_of(mode: str, account_id: str, folder: Path | None = None) -> Iterator[None]:
    """Hold the account for the sessions of this machine.

    Parameters
    ----------
    mode, account_id : str
        Which account; its id at the exchange.
    folder : Path, optional
        Where such locks lie; the machine's folder for temporary files, shared by its users.

    Raises
    ------
    UserError
        If another session trades the account.
    """
    name = hashlib.sha256(f"{mode}/{account_id}".encode()).hexdigest()[:16]
    path = (folder or Path(tempfile.gettempdir())) / f"crypto_qlib_{name}.lock"
    try:
        number = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as e:
        raise UserError(f"cannot lock the account: {path}: {e.strerror or e}", "remove that file, or make it readable") from e
    with os.fdopen(number, "rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"a session on this machine already trades this {mode} account", "end that one first") from e
        yield


def last_session(folder: Path, mode: str) -> tuple[SessionCard, bool] | None:
    """Return the card of the last session of ``mode`` and whether it runs now; ``None`` where there never was one.

    Raises
    ------
    UserError
        If the card cannot be read.
    """
    path = _card_path(folder, mode)
    try:
        with path.open("rb") as handle:
            text = handle.read()
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                is_running = True
            else:
                is_running = False
    except FileNotFoundError:
        return None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}", "run as the user of the session") from e
    try:
        return SessionCard(**orjson.loads(text)), is_running
    except (TypeError, ValueError) as e:
        raise UserError(f"{path} is damaged", "it is written anew by the next start of the session") from e


def session_asked_for(folder: Path, mode: str, *, is_chosen: bool) -> tuple[SessionCard, bool] | None:
    """Return the last session of ``mode``; where nobody chose the mode and none of it runs, the only one that runs.

    Whoever halts in a hurry must not have to know which mode the settings name.

    Raises
    ------
    UserError
        If a card cannot be read, or sessions of several other modes run.
    """
    found = last_session(folder, mode)
    if is_chosen or (found is not None and found[1]):
        return found
    others = [last_session(folder, other) for other in MODES if other != mode]
    running = [other for other in others if other is not None and other[1]]
    if len(running) > 1:
        names = " and ".join(card.mode for card, _ in running)
        raise UserError(f"sessions of {names} run", "say which with --set exchange.mode=...")
    if running:
        return running[0]
    known = [other for other in others if other is not None]
    return found or max(known, key=lambda other: other[0].started_ns, default=None)


def _card_path(folder: Path, mode: str) -> Path:
    return folder / f"{mode}.json"

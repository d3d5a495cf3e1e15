"""A PostgreSQL server of the tests' own, on loopback, with a user who has a password."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from crypto_qlib.store.ledger_database import LedgerPlace

USER, PASSWORD = "keeper", "planted-PG-password-7Q"


@dataclass(frozen=True)
class Postgres:
    """A running server; every place is a database of its own."""

    port: int
    binaries: Path
    folder: Path
    account: str | None

    @property
    def options(self) -> str:
        return f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -F"

    def place(self, name: str) -> LedgerPlace:
        with psycopg.connect(self._admin, autocommit=True) as db:
            db.execute(f'DROP DATABASE IF EXISTS "{name}"')
            db.execute(f'CREATE DATABASE "{name}"')
        return LedgerPlace(f"postgresql://{USER}@127.0.0.1:{self.port}/{name}", PASSWORD)

    @property
    def _admin(self) -> str:
        return f"host=127.0.0.1 port={self.port} user={USER} password={PASSWORD} dbname=postgres"

    def control(self, *words: str) -> None:
        """Run ``pg_ctl`` as the server's own user."""
        _run([str(self.binaries / "pg_ctl"), "-D", str(self.folder / "data"), "-w", *words], self.account)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(command: list[str], account: str | None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, user=account, cwd="/")
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-500:]}"


def _binaries() -> Path | None:
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (packaged[-1] if packaged else None)
    return None if found is None else Path(found).resolve().parent


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (initdb)")
    account = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        names = [line.partition(":")[0] for line in Path("/etc/passwd").read_text().splitlines()]
        account = next((name for name in ("postgres", "nobody") if name in names), None)
        if account is None:
            pytest.skip("no unprivileged user to run PostgreSQL as")
    folder = Path(tempfile.mkdtemp(prefix="cq-pg-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if account is not None:
            shutil.chown(folder, account)
            shutil.chown(folder / "password", account)
        server = Postgres(_free_port(), binaries, folder, account)
        setup = ["--no-sync", "-A", "scram-sha-256", "-U", USER, f"--pwfile={folder / 'password'}"]
        _run([str(binaries / "initdb"), "-D", str(folder / "data"), *setup], account)
        server.control("-l", str(folder / "log"), "-o", server.options, "start")
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""Run the command line in this process, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crypto_qlib.cli import main
from tests.cli.command_line import Ended, Run


@pytest.fixture(autouse=True)
def _clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("OKX_", "CRYPTO_QLIB", "COINGECKO", "TELEGRAM")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``crypto-qlib ARGUMENTS`` in this process."""

    def run(*arguments: str) -> Ended:
        code = main.run(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def process() -> Run:
    """Return a function that runs ``crypto-qlib ARGUMENTS`` as a process, as a shell would."""

    def run(*arguments: str) -> Ended:
        command = [str(Path(sys.executable).with_name("crypto-qlib")), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run

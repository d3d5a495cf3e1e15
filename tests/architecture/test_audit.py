"""``make audit`` says what is known of the libraries' vulnerabilities, and never takes knowing nothing for knowing of none."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOUND = {"name": "numpy", "version": "2.3.1", "vulns": []}
HOLE = {"id": "PYSEC-2026-1", "fix_versions": ["1.2.4"], "aliases": [], "description": "..."}
LEAKY = {"name": "leaky", "version": "1.2.3", "vulns": [HOLE]}
UNASKED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0+cpu)"}


@pytest.mark.parametrize(
    ("name", "answer", "code", "said"),
    [
        ("all is well", [SOUND], 0, "1 libraries audited; 0 with known vulnerabilities"),
        ("a build of its own is not on the index", [SOUND, UNASKED], 0, "1 libraries audited; 1 not (torch)"),
        ("a hole", [SOUND, LEAKY], 1, "leaky 1.2.3: PYSEC-2026-1, mended in 1.2.4"),
        ("a mirror without advisories", [UNASKED], 3, "none of 1 libraries could be audited, so nothing is known"),
        ("no network", "ConnectionError: refused", 3, "could not be asked, so nothing is known (ConnectionError: refused)"),
    ],
)
def test_what_is_known_decides_the_exit_code(name: str, answer: Any, code: int, said: str, tmp_path: Path) -> None:
    fake = tmp_path / "pip_audit.py"
    lines = (
        f"import sys; sys.exit({answer!r})" if isinstance(answer, str) else f"print({json.dumps({'dependencies': answer})!r})"
    )
    fake.write_text(lines)
    environment = os.environ | {"PIP_AUDIT": shlex.join([sys.executable, str(fake)])}
    done = subprocess.run([str(ROOT / ".ci" / "audit")], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), (name, done)

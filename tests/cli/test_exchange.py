"""``crypto-qlib exchange`` as its user meets it: serve, look, fund, break, kill, come back, start afresh."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command_line import Run

SMALL = ["--set", "exchange.simulated_symbols=2", "--set", "exchange.simulated_days=3"]


@contextlib.contextmanager
def served(root: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Serve from a process of its own; yield it with the lines it printed; killed without warning at the end."""
    command = [
        str(Path(sys.executable).with_name("crypto-qlib")),
        "exchange",
        "serve",
        *SMALL,
        "--set",
        f"store.root={root}",
        *more,
    ]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as server:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line.rstrip())
            if line.startswith("stop with"):
                break
        try:
            yield server, lines
        finally:
            server.kill()


@pytest.mark.slow
def test_a_served_exchange_is_looked_at_funded_broken_killed_and_comes_back(process: Run, tmp_path: Path) -> None:
    here = [*SMALL, "--set", f"store.root={tmp_path}"]
    with served(tmp_path) as (server, lines):
        assert lines[0].startswith("embedded exchange at http://127.0.0.1:")
        told = "\n".join(lines)
        assert "shown this once" in told
        assert "secret " in told
        shown = process("exchange", "status", *here)
        assert shown.code == 0, shown.err
        for part in ("prices are invented", "2 symbols", "equity 100,000.00", f"kept in {tmp_path}"):
            assert part in shown.out
        funded = process("exchange", "fund", *here, "--", "250")
        assert funded.out == "cash 100,250.00 USDT, equity 100,250.00 USDT\n"
        assert "200000 USDT out: 100250 are available" in process("exchange", "fund", *here, "--", "-200000").error_line
        broken = process("exchange", "fault", "timeout", "rate=0.5", "where=trade/", *here)
        assert broken.out == "timeout  rate 0.5, where trade/\n"
        assert "no fault 'gremlins'" in process("exchange", "fault", "gremlins", *here).error_line
        assert "another process serves" in process("exchange", "reset", "--yes", *here).error_line
        server.send_signal(signal.SIGKILL)
        server.wait(timeout=20)
    with served(tmp_path) as (server, lines):
        told = "\n".join(lines)
        assert "equity 100,250.00" in told
        assert "secret" not in told, "the key is printed once only"
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
    assert not (tmp_path / "exchange" / "address").exists()
    assert process("exchange", "reset", "--yes", *here).out.startswith("removed state.sqlite")
    assert not (tmp_path / "exchange" / "state.sqlite").exists()
    assert (tmp_path / "exchange" / "api_key.json").exists()
    assert process("exchange", "reset", "--yes", "--keys", *here).out == "removed api_key.json\n"


@pytest.mark.slow
def test_tls_is_served_with_a_certificate_of_its_own_that_clients_can_trust(process: Run, tmp_path: Path) -> None:
    with served(tmp_path, "--tls", "--host", "0.0.0.0", "--public") as (_, lines):
        url = lines[0].removeprefix("embedded exchange at ")
        assert url.startswith("https://127.0.0.1:")
        assert "2 symbols" in process("exchange", "status", *SMALL, "--set", f"store.root={tmp_path}").out
        trusting = ssl.create_default_context(cafile=tmp_path / "exchange" / "tls_certificate.pem")
        with urllib.request.urlopen(f"{url}/api/v5/public/time", context=trusting, timeout=10) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{url}/api/v5/public/time", timeout=10)


def test_a_live_market_that_cannot_be_reached_is_one_clear_line(cli: Run, tmp_path: Path) -> None:
    live = ["--market", "okx_public", "--set", "exchange.okx_url=http://127.0.0.1:9", "--set", f"store.root={tmp_path}"]
    refused = cli("exchange", "serve", *live)
    assert refused.code == 1
    assert "OKX's public data cannot be reached at http://127.0.0.1:9" in refused.error_line
    assert "exchange.okx_url" in refused.error_line
    # A market of the past has a start time, one of the present does not.
    assert "a live market has no start time" in cli("exchange", "serve", *live, "--start", "first").error_line
    assert not (tmp_path / "exchange" / "address").exists()

"""The runbook names every kind of alert, and the files of the deployment hold what they must."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from crypto_qlib.cli.main import app
from crypto_qlib.settings.secrets import Secrets
from crypto_qlib.store.live_events import EventKind

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield prefix + name
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


COMMANDS = set(commands(typer.main.get_command(app)))


def test_every_alert_says_in_the_runbook_what_it_means_and_what_to_do() -> None:
    section = RUNBOOK.partition("## What each alert means")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert all(len([cell for cell in row.split("|") if cell.strip()]) == 3 for row in rows)
    named = {kind for row in rows for kind in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert named == {kind.value for kind in EventKind}


@pytest.mark.parametrize("what", ["Stop trading", "Reconcile", "Rotate keys", "Move to another machine", "Telegram"])
def test_the_runbook_has_a_section_on(what: str) -> None:
    assert f"\n## {what}\n" in RUNBOOK


def started(unit: Path) -> list[str]:
    return re.findall(r"^ExecStart=.*crypto-qlib (.*)$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_exists_without_rights_and_with_secrets_from_a_file(unit: Path) -> None:
    text = unit.read_text()
    for line in started(unit):
        words = line.split()
        assert words[:2] == ["--config", "/etc/crypto-qlib/config.yaml"]
        assert " ".join(words[2:4]) in COMMANDS
    assert started(unit)
    for setting in (
        "User=trader",
        "EnvironmentFile=/etc/crypto-qlib/secrets.env",
        "NoNewPrivileges=true",
        "UMask=0077",
        "LimitCORE=0",
    ):
        assert setting in text, setting
    assert not any(f"{name.upper()}=" in text for name in Secrets.__dataclass_fields__), "no secret in a unit"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in (*UNITS, *DEPLOY.glob("*.timer")):
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(), flags=re.MULTILINE)  # not installed here
        text = re.sub(r"^(User|Group)=trader$", r"\1=root", text, flags=re.MULTILINE)  # nor is the user there
        (tmp_path / path.name).write_text(text)
    for path in sorted(tmp_path.iterdir()):
        done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if path.name in line]
        assert said == [], done.stderr


def test_compose_runs_the_session_and_the_bot_without_rights_and_with_secrets_from_a_file() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"session", "telegram", "ledger"}
    for name in ("session", "telegram"):
        service = services[name]
        assert " ".join(service["command"]) in COMMANDS
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert service["env_file"] == ["secrets.env"]
        assert any(volume.startswith("work:") for volume in service["volumes"])
    assert services["session"]["restart"] == "on-failure"
    assert services["session"]["depends_on"]["ledger"]["condition"] == "service_healthy"
    volumes = {volume.partition(":")[0] for s in services.values() for volume in s["volumes"] if not volume.startswith(".")}
    assert volumes == set(COMPOSE["volumes"])
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        done = subprocess.run(
            ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--no-env-resolution"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or "env file" in done.stderr, done.stderr


def test_the_image_runs_as_a_user_without_rights_says_how_it_is_and_holds_no_secret() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    last_user = [line for line in lines if line.startswith("USER ")][-1]
    assert last_user == "USER trader"
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert "live status" in " ".join(lines)
    assert not any(line.startswith(("ENV", "ARG")) and re.search("KEY|SECRET|TOKEN|PASS", line) for line in lines)


def test_the_example_of_secrets_names_them_all_and_holds_none() -> None:
    lines = [line for line in (DEPLOY / "secrets.env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.endswith("=") for line in lines)
    assert {line[:-1].lower() for line in lines} <= set(Secrets.__dataclass_fields__)

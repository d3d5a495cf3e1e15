"""The doctor's lines: what is so, how bad it is, and how to mend it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from crypto_qlib.cli import checks
from crypto_qlib.cli.asked import Asked
from crypto_qlib.cli.checks import GIB, State
from crypto_qlib.cli.doctor import diagnose
from crypto_qlib.cli.exchange_checks import exchange_checks, rights_check, skew_check
from crypto_qlib.exchange.key_rights import KeyRights
from crypto_qlib.settings.load import load_settings
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets
from tests.cli.command_line import Run

KEYS = Secrets("k", "s", "p")
PYTHONS = [((3, 10, 9), State.FAIL), ((3, 11, 0), State.OK), ((3, 12, 4), State.OK), ((3, 13, 0), State.FAIL)]
SKEWS = [(0.0, State.OK), (-1.9, State.OK), (2.0, State.WARN), (-24.9, State.WARN), (25.0, State.FAIL), (-40.0, State.FAIL)]
DISKS = [(GIB // 2, State.FAIL), (3 * GIB, State.WARN), (50 * GIB, State.OK)]


@pytest.mark.parametrize(("found", "state"), PYTHONS)
def test_python_must_be_one_qlib_has_wheels_for(found: tuple[int, ...], state: State) -> None:
    assert checks.python_check(found).state is state


@pytest.mark.parametrize(("skew_s", "state"), SKEWS)
def test_a_clock_too_far_from_the_exchange_fails_before_okx_refuses_it(skew_s: float, state: State) -> None:
    check = skew_check(skew_s)
    assert check.state is state
    assert ("ahead of" if skew_s >= 0 else "behind") in check.detail


@pytest.mark.parametrize(("free", "state"), DISKS)
def test_little_disk_warns_and_none_fails(free: int, state: State, tmp_path: Path) -> None:
    check = checks.disk_check(tmp_path / "not" / "there" / "yet", lambda _: free)
    assert check.state is state


def test_this_installation_is_in_range() -> None:
    lines = checks.package_checks()
    assert [line.state for line in lines] == [State.OK], lines


def test_a_version_out_of_range_and_a_missing_library_each_get_a_line() -> None:
    def installed(name: str) -> str:
        if name == "gone":
            raise metadata.PackageNotFoundError(name)
        return "3.1"

    lines = checks.package_checks(["pandas<3,>=2.2", "gone>=1", "fine>=3", 'dev-only>=9; extra == "dev"'], installed)
    assert [line.detail for line in lines] == ["pandas 3.1 is outside <3,>=2.2", "gone is not installed"]
    assert all(line.state is State.FAIL and line.mend.startswith("pip install") for line in lines)


def test_a_library_that_does_not_load_says_what_is_missing() -> None:
    def load(name: str) -> object:
        if name == "lightgbm":
            raise OSError("libgomp.so.1: cannot open shared object file")
        return name

    (line,) = checks.native_checks(load)
    assert line.state is State.FAIL
    assert "libgomp1" in line.mend


def test_little_memory_only_warns() -> None:
    assert checks.memory_check(4 * GIB).state is State.WARN
    assert checks.memory_check(16 * GIB).state is State.OK


def test_the_store_check_leaves_nothing_behind(tmp_path: Path) -> None:
    assert checks.store_check(tmp_path).state is State.OK
    assert checks.store_check(tmp_path / "new").state is State.OK
    assert list(tmp_path.iterdir()) == []


def test_a_store_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = checks.store_check(tmp_path / "file" / "store")
    assert check.state is State.FAIL
    assert "is a file" in check.detail


KEY_ROWS = [
    ("embedded needs none", "embedded", Secrets(), State.OK),
    ("demo can read without", "demo", Secrets(), State.WARN),
    ("part of a key is a mistake", "demo", Secrets(okx_api_key="k"), State.FAIL),
    ("live cannot do without", "live", Secrets(), State.FAIL),
    ("all there", "live", KEYS, State.OK),
]


@pytest.mark.parametrize(("reason", "mode", "secrets", "state"), KEY_ROWS, ids=[row[0] for row in KEY_ROWS])
def test_the_keys_a_mode_needs(reason: str, mode: str, secrets: Secrets, state: State) -> None:
    settings = Settings()
    settings = settings.model_copy(update={"exchange": settings.exchange.model_copy(update={"mode": mode})})
    assert checks.key_presence_check(settings, secrets).state is state, reason


RIGHTS = [
    ("trade and bound", KeyRights(True, True, False, True), "live", State.OK),
    ("trade, unbound, real money", KeyRights(True, True, False, False), "live", State.WARN),
    ("trade, unbound, play money", KeyRights(True, True, False, False), "demo", State.OK),
    ("may withdraw", KeyRights(True, True, True, True), "live", State.WARN),
    ("read only", KeyRights(True, False, False, True), "demo", State.FAIL),
    ("nothing", KeyRights(False, False, False, False), "demo", State.FAIL),
]


@pytest.mark.parametrize(("reason", "rights", "mode", "state"), RIGHTS, ids=[row[0] for row in RIGHTS])
def test_a_key_should_trade_and_not_withdraw(reason: str, rights: KeyRights, mode: str, state: State) -> None:
    assert rights_check(rights, mode).state is state, reason


def test_every_line_that_is_not_fine_says_how_to_mend_it() -> None:
    bad = [skew_check(60.0), rights_check(KeyRights(True, False, False, False), "demo"), checks.memory_check(GIB)]
    assert all(check.mend for check in bad)


def test_broken_settings_are_a_line_and_end_the_examination() -> None:
    lines = list(diagnose(Asked(None, ["strategy.levrage=5"])))
    assert (lines[-1].name, lines[-1].state) == ("settings", State.FAIL)
    assert "strategy.leverage" in lines[-1].mend


def test_an_unreachable_exchange_is_a_failed_line() -> None:
    settings = load_settings(None, ["exchange.market=replay", "exchange.replay_path=nowhere.parquet"], {})
    (line,) = exchange_checks(settings, Secrets())
    assert line.state is State.FAIL
    assert "nowhere.parquet" in line.detail


@pytest.mark.slow
def test_a_healthy_machine_gets_only_good_lines_and_exit_0(cli: Run) -> None:
    ended = cli("doctor")
    assert ended.code == 0, ended.out
    assert "embedded exchange starts and answers" in ended.out
    assert not Path("workspace").exists()


def test_a_failed_line_exits_with_1(cli: Run) -> None:
    ended = cli("doctor", "--set", "universe.size=0")
    assert ended.code == 1
    assert "to mend:" in ended.out

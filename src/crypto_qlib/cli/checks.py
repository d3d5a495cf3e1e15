"""The checks of ``crypto-qlib doctor`` that need no network: each returns lines that say what is so and how to mend it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import OKX_NAMES, Secrets

GIB = 1 << 30
DISK_FAIL_BYTES = 1 * GIB
DISK_WARN_BYTES = 5 * GIB
MEMORY_WARN_BYTES = 6 * GIB
"""What the default run (50 symbols, a year of hours) aims to stay below."""

_LOWEST, _HIGHEST = (3, 11), (3, 12)
_NATIVE = {
    "lightgbm": "install the OpenMP runtime (Debian/Ubuntu: apt install libgomp1; macOS: brew install libomp)",
    "talib": "reinstall TA-Lib: pip install --force-reinstall TA-Lib",
    "numba": "reinstall numba: pip install --force-reinstall numba",
}


class State(StrEnum):
    """How a check ended; only ``FAIL`` makes the doctor exit with 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor.

    Parameters
    ----------
    name : str
        What was looked at.
    state : State
        How it stands.
    detail : str
        What was found.
    mend : str
        How to mend it; empty where nothing needs mending.
    """

    name: str
    state: State
    detail: str
    mend: str = ""


def python_check(found: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Check that Python is one Qlib publishes wheels for."""
    words = ".".join(str(part) for part in found)
    if _LOWEST <= found[:2] <= _HIGHEST:
        return Check("python", State.OK, words)
    return Check("python", State.FAIL, f"{words} is not supported", "use Python 3.11 or 3.12: make distclean install")


def package_checks(
    requirements: Iterable[str] | None = None, installed: Callable[[str], str] = metadata.version
) -> list[Check]:
    """Check every dependency's version against the range this package names; one line when all are right."""
    declared = metadata.requires("crypto-qlib") or [] if requirements is None else requirements
    wanted = [r for r in map(Requirement, declared) if r.marker is None or r.marker.evaluate({"extra": ""})]
    problems = []
    for requirement in wanted:
        mend = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            found = installed(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(Check("packages", State.FAIL, f"{requirement.name} is not installed", mend))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            detail = f"{requirement.name} {found} is outside {requirement.specifier}"
            problems.append(Check("packages", State.FAIL, detail, mend))
    return problems or [Check("packages", State.OK, f"{len(wanted)} dependencies installed, all versions in range")]


def native_checks(load: Callable[[str], object] = importlib.import_module) -> list[Check]:
    """Check that the libraries with compiled parts can be loaded on this machine."""
    problems = []
    for name, mend in _NATIVE.items():
        try:
            load(name)
        except (ImportError, OSError) as e:
            problems.append(Check("native", State.FAIL, f"{name} does not load: {e}", mend))
    return problems or [Check("native", State.OK, f"{', '.join(_NATIVE)} load")]


def disk_check(root: Path, free: Callable[[Path], int] = lambda p: shutil.disk_usage(p).free) -> Check:
    """Check the space left where ``store.root`` is or will be."""
    space = free(_nearest_existing(root))
    detail = f"{space / GIB:.1f} GiB free at {root}"
    mend = "free some space, or set store.root to another disk"
    if space < DISK_FAIL_BYTES:
        return Check("disk", State.FAIL, detail, mend)
    if space < DISK_WARN_BYTES:
        return Check("disk", State.WARN, f"{detail}; a year of 50 coins wants {DISK_WARN_BYTES / GIB:.0f}", mend)
    return Check("disk", State.OK, detail)


def store_check(root: Path) -> Check:
    """Check that ``store.root`` can be written, or created; nothing is left behind."""
    place = _nearest_existing(root)
    mend = "choose a folder of yours: --set store.root=PATH"
    if not place.is_dir():
        return Check("store", State.FAIL, f"{place} is a file, not a folder", mend)
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as e:
        return Check("store", State.FAIL, f"cannot write to {place}: {e.strerror or e}", mend)
    return Check("store", State.OK, f"{root} is writable" if place == root else f"{root} can be created")


def memory_check(total: int | None = None) -> Check:
    """Check the machine's memory against what the default run takes."""
    bytes_ = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if total is None else total
    detail = f"{bytes_ / GIB:.1f} GiB"
    if bytes_ < MEMORY_WARN_BYTES:
        mend = "use a smaller universe.size or data.history_days"
        return Check("memory", State.WARN, f"{detail}; the default run wants {MEMORY_WARN_BYTES / GIB:.0f}", mend)
    return Check("memory", State.OK, detail)


def key_presence_check(settings: Settings, secrets: Secrets) -> Check:
    """Check that the keys the mode needs are in the environment (their rights are another check)."""
    mode, missing = settings.exchange.mode, secrets.missing_okx()
    if mode == "embedded":
        return Check("keys", State.OK, "the embedded exchange makes its own")
    if not missing:
        return Check("keys", State.OK, "OKX key, secret and passphrase are set")
    state = State.WARN if len(missing) == len(OKX_NAMES) and mode == "demo" else State.FAIL
    detail = f"{', '.join(missing)} not set; exchange.mode = {mode} cannot trade without"
    return Check("keys", state, detail, f"create an API key at OKX ({mode} trading) and export the three variables")


def _nearest_existing(path: Path) -> Path:
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place

"""What a run was made of, as one short id: data + code + settings + model + seed.

The same id means the same trades, bit for bit. So everything that can change a result is in it (the versions of the numeric
libraries count as code), and nothing else: where files lie, how many threads work and what is logged are left out by name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from crypto_qlib.settings.document import flat_values
from crypto_qlib.settings.schema import Settings

WITHOUT_EFFECT = (
    "store.",
    "monitoring.",
    "scheduler.",
    "data.concurrency",
    "model.threads",
    "model.tracking",
    "model.rolling.workers",
    "model.rolling.dask",
    "model.tuning.storage",
    "model.promotion.",
    "exchange.host",
    "exchange.port",
    "exchange.speed",
    "exchange.stale_s",
    "exchange.okx_url",
    "exchange.own_process",
    "exchange.rate_limits",
    "exchange.demo_key",
    "exchange.timeout_s",
    "exchange.tls",
    "exchange.tls_certificate",
    "exchange.tls_key",
    "exchange.allow_public",
    "exchange.persist",
    "exchange.survive_power_cut",
    "exchange.replay_path",
    "exchange.replay_market_caps",
    "exchange.replay_funding",
    "exchange.replay_mark",
    "live.confirm_live",
)
"""Settings (or whole sections, with a dot at the end) that cannot change a result.

Paths of a replay are left out because the data identity is taken from the content of what was read, not from where it lay.
"""

NUMERIC_LIBRARIES = ("lightgbm", "numba", "numpy", "pandas", "pyqlib", "scikit-learn", "scipy", "TA-Lib")
"""Libraries whose version can change a number."""

_DIGITS = 16
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Identity:
    """The five things a result depends on, each as a short hash or name.

    Parameters
    ----------
    data : str
        Identity of the data manifest.
    code : str
        :func:`code_identity`.
    settings : str
        :func:`settings_identity`.
    model : str
        Identity of the trained model; empty before there is one.
    seed : int
        Seed of the run.
    """

    data: str
    code: str
    settings: str
    model: str
    seed: int

    @property
    def run_id(self) -> str:
        """Return the run's id: 16 hex digits."""
        return _digest(json.dumps(asdict(self), sort_keys=True).encode())

    def stamp(self) -> dict[str, Any]:
        """Return what every JSON artefact of the run carries under the key ``run``."""
        return {"run_id": self.run_id, **asdict(self), "version": version()}


def identity(data_identity: str, settings: Settings, model_identity: str, seed: int) -> Identity:
    """Return the identity of a run of the installed code."""
    return Identity(data_identity, code_identity(), settings_identity(settings), model_identity, seed)


def run_identity(data_identity: str, code: str, settings: Settings, model_identity: str, seed: int) -> str:
    """Return the run's id (16 hex digits) from its five parts; ``code`` is normally :func:`code_identity`."""
    return Identity(data_identity, code, settings_identity(settings), model_identity, seed).run_id


def settings_identity(settings: Settings) -> str:
    """Return a hash of the settings that can change a result (see ``WITHOUT_EFFECT``)."""
    effective = {key: value for key, value in flat_values(settings).items() if not has_no_effect(key)}
    return _digest(json.dumps(effective, sort_keys=True).encode())


def has_no_effect(key: str) -> bool:
    """Return whether the setting ``key`` cannot change a result."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in WITHOUT_EFFECT)


@cache
def code_identity() -> str:
    """Return a hash of this package's sources and of the versions of the numeric libraries."""
    versions = "\n".join(f"{name}=={metadata.version(name)}" for name in NUMERIC_LIBRARIES)
    return _digest((source_identity(_PACKAGE) + versions).encode())


def source_identity(folder: Path) -> str:
    """Return a hash of all ``.py`` files below ``folder``: names and contents, independent of where the folder lies."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:_DIGITS]


def version() -> str:
    """Return the installed version of this package."""
    return metadata.version("crypto-qlib")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]

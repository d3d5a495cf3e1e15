"""Keys and tokens: read from the environment, or a file of their owner alone that it names; never written, never shown."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from crypto_qlib.core.errors import UserError

OKX_NAMES = ("OKX_API_KEY", "OKX_API_SECRET", "OKX_API_PASSPHRASE")
"""The three variables OKX needs together."""

SECRETS_FILE = "SECRETS_FILE"
"""Variable that names a file of ``NAME=value`` lines."""

_LEAST_SECRET = 8
"""Characters from which a part of an address may be a password: shorter words are all over any text."""

_SECRET_LOOKING = re.compile(
    r"secret|passphrase|passw(or)?d|token(?!s)|credential|(api|access|private)_?key|chat_?id", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Every secret the package knows; an empty string means "not given".

    The field ``okx_api_key`` is read from ``OKX_API_KEY``, and so on. ``repr`` and ``str`` say only which are set.
    """

    okx_api_key: str = ""
    okx_api_secret: str = ""
    okx_api_passphrase: str = ""
    coingecko_api_key: str = ""
    openai_api_key: str = ""
    coinmarketcap_api_key: str = ""
    telegram_bot_token: str = ""
    telegram_chat_id: str = ""
    alert_urls: str = ""
    ledger_password: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Secrets:
        """Read all secrets from ``environ``, and what it lacks from the file ``SECRETS_FILE`` names; blanks around are dropped.

        Raises
        ------
        UserError
            If that file cannot be read, or anybody but its owner may read it.
        """
        place = environ.get(SECRETS_FILE, "").strip()
        given = {**(_from_file(Path(place)) if place else {}), **{k: v for k, v in environ.items() if v.strip()}}
        return cls(**{f.name: given.get(f.name.upper(), "").strip() for f in fields(cls)})

    def pieces(self) -> Iterator[str]:
        """Yield every text that must not be shown: the values, and of addresses each one and the passwords in it."""
        for f in fields(self):
            value = getattr(self, f.name)
            for word in {value, *value.split()} - {""}:
                yield word
                yield from (part for part in re.split(r"[:/@?&=,]+", word) if len(part) >= _LEAST_SECRET and word != part)

    @property
    def has_okx_keys(self) -> bool:
        """Return whether key, secret and passphrase are all given."""
        return not self.missing_okx()

    def missing_okx(self) -> tuple[str, ...]:
        """Return the names of the OKX variables that are not set."""
        return tuple(name for name in OKX_NAMES if not getattr(self, name.lower()))

    def masked(self) -> dict[str, str]:
        """Return ``{"OKX_API_KEY": "set" | "not set", ...}``: all that may ever be shown."""
        return {f.name.upper(): "set" if getattr(self, f.name) else "not set" for f in fields(self)}

    def __repr__(self) -> str:
        return f"Secrets({', '.join(f'{name}: {state}' for name, state in self.masked().items())})"


def _from_file(path: Path) -> dict[str, str]:
    try:
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UserError(f"the file of secrets {path} can be read by others than its owner, you", f"chmod 600 {path}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise UserError(f"cannot read the file of secrets {path}: {e.strerror or e}", f"see the variable {SECRETS_FILE}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"the file of secrets {path} is no UTF-8 text", "write it as lines of NAME=value") from e
    pairs = [line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def looks_secret(name: str) -> bool:
    """Return whether a key called ``name`` seems to hold a secret, which a settings file must not."""
    return _SECRET_LOOKING.search(name) is not None

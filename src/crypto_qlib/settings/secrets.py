"""Keys and tokens: read from the environment only, never written, never shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

OKX_NAMES = ("OKX_API_KEY", "OKX_API_SECRET", "OKX_API_PASSPHRASE")
"""The three variables OKX needs together."""

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
        """Read all secrets from ``environ``; surrounding blanks are dropped."""
        return cls(**{f.name: environ.get(f.name.upper(), "").strip() for f in fields(cls)})

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


def looks_secret(name: str) -> bool:
    """Return whether a key called ``name`` seems to hold a secret, which a settings file must not."""
    return _SECRET_LOOKING.search(name) is not None

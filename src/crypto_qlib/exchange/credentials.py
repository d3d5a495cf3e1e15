"""Who are we at the exchange? API key, secret and passphrase, from the environment or a private file."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.secrets import OKX_NAMES, Secrets

_FILE_NAME: Final = "api_key.json"
_OWNER_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True)
class ApiCredentials:
    """One API key; its secret parts never show in ``repr``.

    Parameters
    ----------
    key : str
        Public part (``OK-ACCESS-KEY``).
    secret : str
        Signing secret.
    passphrase : str
        Passphrase chosen when the key was made (``OK-ACCESS-PASSPHRASE``).
    """

    key: str
    secret: str = field(repr=False)
    passphrase: str = field(repr=False)

    @staticmethod
    def generate() -> ApiCredentials:
        """Return a fresh random key, shaped like OKX's."""
        return ApiCredentials(
            key=_uuid_like(secrets.token_hex(16)), secret=secrets.token_hex(16).upper(), passphrase=secrets.token_urlsafe(12)
        )


def credentials_from(secrets_given: Secrets) -> ApiCredentials | None:
    """Return the OKX key among the environment's secrets; ``None`` if no part of it is set.

    Raises
    ------
    UserError
        If only some of its three parts are set.
    """
    missing = secrets_given.missing_okx()
    if len(missing) == len(OKX_NAMES):
        return None
    if missing:
        raise UserError(f"the environment holds only part of the OKX API key: {', '.join(missing)} missing", "set all three")
    return ApiCredentials(secrets_given.okx_api_key, secrets_given.okx_api_secret, secrets_given.okx_api_passphrase)


def key_file(folder: Path) -> Path:
    """Return where the embedded exchange's key is kept below ``folder``."""
    return folder / _FILE_NAME


def load_or_create_credentials(folder: Path) -> ApiCredentials:
    """Return the embedded exchange's key kept in ``folder``, making it on first use (file readable by the owner only).

    Raises
    ------
    UserError
        If the file cannot be written, or is not what this function wrote.
    """
    path = key_file(folder)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return _create(path)
    except OSError as e:
        raise UserError(f"cannot read the embedded exchange's key {path}: {e.strerror or e}") from e
    try:
        row = json.loads(text)
        return ApiCredentials(str(row["key"]), str(row["secret"]), str(row["passphrase"]))
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not an API key file", "delete it; a new key is made at the next start") from e


def _create(path: Path) -> ApiCredentials:
    made = ApiCredentials.generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The mode is given at creation: the secret is never world-readable, not even for an instant.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        with os.fdopen(handle, "w") as file:
            json.dump({"key": made.key, "secret": made.secret, "passphrase": made.passphrase}, file)
    except OSError as e:
        raise UserError(f"cannot write the embedded exchange's key to {path}: {e.strerror or e}") from e
    return made


def _uuid_like(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

"""Settings from all sources: defaults < settings file < environment < ``--set``; whatever is not known is refused.

1. read what each source gives (``sources``), with its origin;
2. refuse secrets and unknown keys, naming the nearest valid one;
3. merge, later sources over earlier ones, and validate with the schema;
4. say the first problem in one line: key, value given, where, and what is allowed;
5. real money needs its second confirmation and all keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.fields import Value, leaves, nearest, sections
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets, looks_secret
from crypto_qlib.settings.sources import Given, from_environ, from_file, from_flags

__all__ = ["DEFAULT_FILE", "Secrets", "load_settings", "require_okx_keys", "with_overrides"]

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/\s]*(?=@)|(?<=password=)[^&\s]+", re.IGNORECASE)
"""User and password in an address: a setting with one is refused, and shown without it."""

DEFAULT_FILE = Path("config.yaml")
"""Read from the current folder when no file is named and it is there."""


def load_settings(config: Path | None, overrides: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings asked for: defaults < ``config`` < ``CRYPTO_QLIB__SECTION__KEY`` < ``overrides``.

    Parameters
    ----------
    config : Path or None
        Settings file; ``None`` reads ``./config.yaml`` if there is one.
    overrides : sequence of str
        ``section.key=value``, later ones win.
    environ : mapping
        The process environment.

    Returns
    -------
    Settings
        Frozen and valid.

    Raises
    ------
    UserError
        One line that names the key, the value given, where it was given and what is allowed.
    """
    path = config if config is not None else DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    givens = (from_file(path) if path is not None else []) + from_environ(environ) + from_flags(overrides)
    latest: dict[str, Given] = {}
    for given in givens:
        _refuse_secret(given)
        _refuse_unknown(given)
        _refuse_boolean_number(given)
        latest[given.key] = given
    try:
        settings = Settings.model_validate(_tree(latest.values()))
    except ValidationError as e:
        raise _explain(e, latest) from e
    if settings.exchange.mode == "live":
        _require_second_confirmation(settings, Secrets.from_environ(environ))
    return settings


def with_overrides(settings: Settings, overrides: Sequence[str], origin: str) -> Settings:
    """Return ``settings`` with ``section.key=value`` overrides, checked like those of the command line.

    Parameters
    ----------
    settings : Settings
        Valid settings.
    overrides : sequence of str
        Later ones win.
    origin : str
        What an error says the values came from, e.g. ``--vary``.

    Raises
    ------
    UserError
        As :func:`load_settings`.
    """
    latest: dict[str, Given] = {}
    tree = settings.model_dump()
    for given in from_flags(overrides):
        named = replace(given, origin=origin)
        _refuse_unknown(named)
        _refuse_boolean_number(named)
        latest[named.key] = named
        *above, leaf = named.key.split(".")
        place = tree
        for name in above:
            place = place[name]
        place[leaf] = _home_expanded(named)
    try:
        return Settings.model_validate(tree)
    except ValidationError as e:
        raise _explain(e, latest) from e


def require_okx_keys(settings: Settings, secrets: Secrets) -> None:
    """Refuse to trade at OKX without all three keys; the embedded exchange needs none.

    Raises
    ------
    UserError
        Naming the variables that are missing.
    """
    missing = secrets.missing_okx()
    if settings.exchange.mode != "embedded" and missing:
        raise UserError(
            f"exchange.mode = {settings.exchange.mode} needs {', '.join(missing)} in the environment",
            "create an API key at OKX and export it, or use --set exchange.mode=embedded",
        )


def _require_second_confirmation(settings: Settings, secrets: Secrets) -> None:
    if not settings.live.confirm_live:
        raise UserError(
            "exchange.mode = live trades real money and needs a second confirmation: live.confirm_live = true",
            "try exchange.mode=demo first; confirm with --set live.confirm_live=true",
        )
    require_okx_keys(settings, secrets)


def _refuse_secret(given: Given) -> None:
    name = given.key.rpartition(".")[2]
    if given.key not in leaves() and looks_secret(name):
        raise UserError(
            f"{given.origin}: {given.key} looks like a secret, and secrets are never settings",
            "remove it there and export it instead, e.g. OKX_API_KEY, OKX_API_SECRET, OKX_API_PASSPHRASE",
        )


def _refuse_unknown(given: Given) -> None:
    if given.key in leaves():
        return
    if given.key in dict(sections()):
        raise UserError(f"{given.origin}: {given.key} is a section, not a setting", f"give one of its keys, {given.key}.KEY")
    near = nearest(given.key)
    hint = f"did you mean {near}?" if near else "`crypto-qlib config init` writes a file with all of them"
    raise UserError(f"{given.origin}: unknown setting {given.key}", hint)


def _refuse_boolean_number(given: Given) -> None:
    """Python takes ``true`` for 1; nobody who writes ``leverage: true`` means that."""
    leaf = leaves()[given.key]
    if isinstance(given.value, bool) and bool not in leaf.kinds:
        raise UserError(_problem(given.key, given, f"must be {leaf.allowed()}"))


def _tree(givens: Iterable[Given]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for given in givens:
        *path, name = given.key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = _home_expanded(given)
    return tree


def _home_expanded(given: Given) -> Value:
    """Return a path setting with ``~`` replaced by the user's home; any other value as it is."""
    if Path in leaves()[given.key].kinds and isinstance(given.value, str):
        return str(Path(given.value).expanduser())
    return given.value


def _explain(error: ValidationError, givens: Mapping[str, Given]) -> UserError:
    problems = [_one_problem(e, givens) for e in error.errors(include_url=False, include_context=False)]
    more = f"and {len(problems) - 1} more; `crypto-qlib config check` again after mending this" if len(problems) > 1 else ""
    return UserError(problems[0], more)


def _one_problem(error: Any, givens: Mapping[str, Given]) -> str:
    parts = [str(p) for p in error["loc"]]
    while parts and ".".join(parts) not in leaves() and ".".join(parts) not in dict(sections()):
        parts.pop()  # the index of a list's member
    key = ".".join(parts)
    leaf = leaves().get(key)
    own_words = str(error["msg"]).removeprefix("Value error, ")
    if leaf is None:
        return f"{key}: {own_words}"
    allowed = own_words if error["type"] == "value_error" else f"must be {leaf.allowed()}"
    return _problem(key, givens.get(key), allowed)


def _problem(key: str, given: Given | None, allowed: str) -> str:
    if given is None:
        return f"{key}: {allowed}"
    return f"{given.origin}: {key} = {_shown(given.value)} {allowed}"


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == "":
        return "empty"
    return _PASSWORD.sub("***", str(value))

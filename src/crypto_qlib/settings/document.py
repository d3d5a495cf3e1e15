"""The settings explained: a commented YAML file, a reference page, the settings in force, a JSON schema for editors."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml

from crypto_qlib.settings.fields import Leaf, Value, leaves, plain, sections
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets

_WIDTH = 110
_HEADER = """\
# Settings of crypto-qlib. Every setting is here with its default; delete what you do not change.
# Order: defaults < this file < CRYPTO_QLIB__SECTION__KEY in the environment < --set section.key=value.
# Secrets never belong here: export OKX_API_KEY, OKX_API_SECRET, OKX_API_PASSPHRASE, COINGECKO_API_KEY,
# OPENAI_API_KEY, TELEGRAM_BOT_TOKEN, TELEGRAM_CHAT_ID.
"""


def commented_yaml() -> str:
    """Return a settings file with every section, description, limit and default; loading it changes nothing."""
    return _HEADER + "\n" + _document({key: leaf.default for key, leaf in leaves().items()}, is_commented=True)


def values_yaml(settings: Settings) -> str:
    """Return ``settings`` as a settings file without comments."""
    return _document(flat_values(settings), is_commented=False)


def settings_markdown() -> str:
    """Return the reference page of all settings: one table a section."""
    lines = [
        "# Settings",
        "",
        "Written from the schema by `make docs`. Order: defaults < `config.yaml` < `CRYPTO_QLIB__SECTION__KEY` in the",
        "environment < `--set section.key=value`. `crypto-qlib config init` writes all of this as a commented file.",
        "Secrets are never settings; they are read from the environment:",
        ", ".join(f"`{name}`" for name in Secrets().masked()) + ".",
    ]
    for name, model in sections():
        lines += [
            "",
            f"## {name}",
            "",
            (model.__doc__ or "").strip().splitlines()[0],
            "",
            "| key | meaning | allowed | default |",
        ]
        lines.append("|---|---|---|---|")
        for leaf in leaves().values():
            if leaf.key.rpartition(".")[0] == name:
                cells = (f"`{leaf.key}`", leaf.info.description or "", leaf.allowed(), f"`{yaml_value(leaf.default)}`")
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def flat_values(settings: Settings) -> dict[str, Value]:
    """Return every setting's value by dotted key, as a settings file spells it."""
    values: dict[str, Value] = {}
    for key in leaves():
        node: Any = settings
        for part in key.split("."):
            node = getattr(node, part)
        values[key] = plain(node)
    return values


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a settings file; editors complete and check with it."""
    schema = Settings.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "crypto-qlib settings"}


def json_schema_text() -> str:
    """Return :func:`json_schema` as indented text."""
    return json.dumps(json_schema(), indent=2) + "\n"


def yaml_value(value: Value) -> str:
    """Return ``value`` as it stands on one line of a settings file."""
    if value is None:
        return "null"
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()


def _document(values: dict[str, Value], *, is_commented: bool) -> str:
    blocks: list[str] = []
    for name, model in sections():
        indent = "  " * name.count(".")
        lines = _comment((model.__doc__ or "").strip().splitlines()[0], indent) if is_commented else []
        lines.append(f"{indent}{_last(name)}:")
        for leaf in leaves().values():
            if leaf.key.rpartition(".")[0] == name:
                lines += _comment(_explained(leaf), indent + "  ") if is_commented else []
                lines += _assignment(_last(leaf.key), values[leaf.key], indent + "  ")
        separator = "\n" if is_commented and "." not in name and blocks else ""
        blocks.append(separator + "\n".join(lines) + "\n")
    return "".join(blocks)


def _assignment(name: str, value: Value, indent: str) -> list[str]:
    """Return ``name: value``, a list too long for a line with one entry a line."""
    line = f"{indent}{name}: {yaml_value(value)}"
    if len(line) <= _WIDTH or not isinstance(value, list):
        return [line]
    return [f"{indent}{name}:", *(f"{indent}  - {yaml_value(entry)}" for entry in value)]


def _explained(leaf: Leaf) -> str:
    default = yaml_value(leaf.default)
    shown = default if len(default) <= _WIDTH or not isinstance(leaf.default, list) else f"{len(leaf.default)} entries, below"
    return f"{leaf.info.description or ''} Allowed: {leaf.allowed()}. Default: {shown}."


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_on_hyphens=False)

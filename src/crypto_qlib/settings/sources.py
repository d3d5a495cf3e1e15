"""What was asked for, and where: a settings file, the environment and ``--set`` flags, each as a list of givens.

YAML is read with the rules of YAML 1.2 for scalars: dates stay text, only ``true`` and ``false`` are booleans (a coin called
``ON`` or ``NO`` stays a coin) and ``1e6`` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.fields import Value, leaves, sections

ENV_PREFIX = "CRYPTO_QLIB__"
"""Variables that start with this are settings: ``CRYPTO_QLIB__STRATEGY__LEVERAGE=5``."""


@dataclass(frozen=True, slots=True)
class Given:
    """One setting somebody asked for.

    Parameters
    ----------
    key : str
        Dotted name as given (not yet checked).
    value : Value
        As read from YAML.
    origin : str
        Where it was given, for messages: ``config.yaml line 3``, ``--set`` or the variable's name.
    """

    key: str
    value: Value
    origin: str


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar rules of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - replaces PyYAML's own table


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def from_file(path: Path) -> list[Given]:
    """Return what ``path`` asks for.

    Raises
    ------
    UserError
        If the file cannot be read, is no valid YAML, is no tree of sections, or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise UserError(f"there is no settings file {path}", "write one with `crypto-qlib config init`") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is no UTF-8 text (byte {e.start})", "save the settings file as UTF-8") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}", "check the path and its permissions") from e
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return list(_walk(loader, root, "", path)) if root is not None else []
    except yaml.YAMLError as e:
        raise _syntax_error(e, str(path)) from e


def from_environ(environ: Mapping[str, str]) -> list[Given]:
    """Return what the variables ``CRYPTO_QLIB__SECTION__KEY`` ask for, by name.

    Raises
    ------
    UserError
        If a variable is spelled almost like a setting (``CRYPTO_QLIB_SECTION_KEY``) or its value is no YAML value.
    """
    givens = []
    for name in sorted(environ):
        if name.upper().startswith(ENV_PREFIX):
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            givens.append(Given(key, _value(environ[name], name, key), name))
        elif name.upper().startswith("CRYPTO_QLIB_"):
            raise UserError(f"environment variable {name} is no setting", f"settings are spelled {ENV_PREFIX}SECTION__KEY")
    return givens


def from_flags(overrides: Sequence[str]) -> list[Given]:
    """Return what ``--set section.key=value`` flags ask for, in order.

    Raises
    ------
    UserError
        If a flag is not of that form.
    """
    givens = []
    for flag in overrides:
        key, equals, text = flag.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {flag} is not of the form section.key=value", "for example --set strategy.leverage=5")
        givens.append(Given(key, _value(text, f"--set {key}", key), "--set"))
    return givens


def _walk(loader: _Loader, node: yaml.Node, prefix: str, path: Path) -> Iterator[Given]:
    where = f"{path} line {node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode) and loader.construct_object(node) is None:
        return  # a section with nothing but comments
    if not isinstance(node, yaml.MappingNode):
        name = f"section {prefix}" if prefix else "the file"
        raise UserError(f"{where}: {name} must hold `key: value` lines", "see `crypto-qlib config init`")
    inner = {name for name, _ in sections()}
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        if name in seen:
            raise UserError(
                f"{path} line {line}: {prefix + '.' if prefix else ''}{name} is given twice (first on line {seen[name]})",
                "keep one of the two",
            )
        seen[name] = line
        key = f"{prefix}.{name}" if prefix else name
        if key in inner:
            yield from _walk(loader, value_node, key, path)
        elif isinstance(value_node, yaml.MappingNode) and value_node.value and key not in leaves():
            first = value_node.value[0][0]
            yield (
                Given(key, None, f"{path} line {line}")
                if not prefix
                else Given(f"{key}.{first.value}", None, f"{path} line {line}")
            )
        else:
            value: Value = loader.construct_object(value_node, deep=True)
            yield Given(key, value, f"{path} line {line}")


def _value(text: str, origin: str, key: str) -> Value:
    """Read one value as YAML would; a setting that takes a list also takes ``BTC,ETH``."""
    leaf = leaves().get(key)
    stripped = text.strip()
    if leaf is not None and leaf.is_list and not stripped.startswith("["):
        return [part.strip() for part in stripped.split(",") if part.strip()]
    if leaf is not None and leaf.kinds in {(str,), (Path,)} and stripped != "null":
        return stripped  # taken as it stands: the shell has its own quotes
    try:
        value: Value = _Loader(stripped).get_single_data()
    except yaml.YAMLError as e:
        raise _syntax_error(e, origin) from e
    return value


def _syntax_error(error: yaml.YAMLError, where: str) -> UserError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
    place = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return UserError(f"{where}{place}: no valid YAML: {problem}", "check indentation, colons and quotes there")

"""The leaves of the settings tree, by dotted key: type, default, limits in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from crypto_qlib.settings.schema import Section, Settings

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]
"""What a settings file may hold."""

_NEAR_ENOUGH = 0.6
_OTHER_SECTION = 0.05
"""How much less a likeness of the last word alone counts than one of the whole dotted key."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting.

    Parameters
    ----------
    key : str
        Dotted name, such as ``backtest.costs.taker_fee``.
    info : FieldInfo
        Its declaration: annotation, default, limits, description.
    """

    key: str
    info: FieldInfo

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Return the types it may take, without ``None``."""
        annotation = self.info.annotation
        members = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
        return tuple(m for m in members if m is not NoneType)

    @property
    def is_list(self) -> bool:
        """Return whether it takes a list."""
        return any(get_origin(kind) is tuple for kind in self.kinds)

    @property
    def default(self) -> Value:
        """Return the default in the words of a settings file."""
        return plain(self.info.default)

    def allowed(self) -> str:
        """Return in words what may be given."""
        words = " or ".join(_kind_in_words(kind) for kind in self.kinds)
        limits = _limits_in_words(self.info)
        return f"{words} {limits}" if limits else words


def plain(value: object) -> Value:
    """Return a setting's value as a settings file spells it (paths as text, tuples as lists)."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a setting cannot hold a {type(value).__name__}")


def sections(model: type[Section] = Settings, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield (dotted name, class) of every section, outer before inner."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield prefix + name, info.annotation
            yield from sections(info.annotation, f"{prefix}{name}.")


@cache
def leaves() -> dict[str, Leaf]:
    """Return every setting by its dotted key, in the order of the schema."""
    return {
        f"{prefix}.{name}": Leaf(f"{prefix}.{name}", info)
        for prefix, section in sections()
        for name, info in section.model_fields.items()
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, Section))
    }


def nearest(key: str) -> str:
    """Return the valid section or setting whose name is nearest to ``key``, or an empty string.

    A right name in a wrong section is found too: ``universe.leverage`` gives ``strategy.leverage``.
    """
    known = [*leaves(), *(name for name, _ in sections())]
    last = _last(key)
    moved = [k for k in known if _last(k) == last]
    if moved:
        return moved[0]
    likeness = {k: max(_ratio(key, k), _ratio(last, _last(k)) - _OTHER_SECTION) for k in known}
    best = max(likeness, key=lambda k: likeness[k])
    return best if likeness[best] >= _NEAR_ENOUGH else ""


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


def _kind_in_words(kind: object) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(v) or "empty" for v in get_args(kind))
    if get_origin(kind) is tuple:
        of_what = _kind_in_words(get_args(kind)[0]).removeprefix("one of ")
        return f"a list of {of_what.replace('text', 'names').replace('a whole number', 'whole numbers')}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return words[kind] if isinstance(kind, type) else str(kind)


def _limits_in_words(info: FieldInfo) -> str:
    limits = {
        name: getattr(m, name) for m in info.metadata for name in ("ge", "gt", "le", "lt") if getattr(m, name, None) is not None
    }
    low = f"{limits['ge']:g}" if "ge" in limits else f"above {limits['gt']:g}" if "gt" in limits else ""
    high = f"{limits['le']:g}" if "le" in limits else f"below {limits['lt']:g}" if "lt" in limits else ""
    if low and high:
        if "gt" in limits:
            return f"{low} and {high}" if "lt" in limits else f"{low} and up to {high}"
        return f"from {low} to {high}"
    if low:
        return low if "gt" in limits else f"of at least {low}"
    return high if "lt" in limits else f"of at most {high}" if high else ""

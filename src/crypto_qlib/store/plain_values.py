"""Values as JSON that loses nothing: enums by value, arrays as lists, and NaN and infinities by name.

JSON has no number for NaN, +inf and -inf; as null they would be one, and "no stop" could not be told from "infinite margin".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np


def plain(value: object) -> Any:
    """Return ``value`` made of dicts, lists, text, numbers and None; a number that is not finite is its name (``"nan"``).

    Raises
    ------
    TypeError
        If it holds something that cannot be written.
    """
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return _plain_collection(value)


def _plain_collection(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key.value if isinstance(key, Enum) else key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, frozenset | set):
        return sorted(plain(item) for item in value)
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written to the journal")


def decode(hint: Any, value: Any) -> Any:
    """Return what :func:`plain` was given, by its type; a float that is null (as older journals have it) is NaN.

    Parameters
    ----------
    hint : type
        A dataclass, an enum, a number, text, or a tuple, mapping, set, array or union of such.
    value : JSON value
        What ``plain`` returned, also after a way through JSON.

    Raises
    ------
    KeyError, TypeError, ValueError
        If ``value`` is none of that type.
    """
    if isinstance(hint, type) and (is_dataclass(hint) or hasattr(hint, "_fields")):
        hints = _hints(hint)
        return hint(**{name: decode(hints[name], item) for name, item in value.items()})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if hint is float:
        return math.nan if value is None else float(value)
    if hint in (str, int, bool, object, Any):
        return value
    return _decode_collection(hint, value)


def _decode_collection(hint: Any, value: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if NoneType in inner:
        return None if value is None else decode(next(kind for kind in inner if kind is not NoneType), value)
    if hint is np.ndarray or origin is np.ndarray:
        return _decode_array(value)
    if origin is tuple:
        each = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return tuple(decode(kind, item) for kind, item in zip(each, value, strict=True))
    if origin in (frozenset, set):
        return origin(decode(inner[0], item) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {decode(inner[0], key): decode(inner[1], item) for key, item in value.items()}
    raise TypeError(f"cannot decode {hint}")


def _decode_array(value: Any) -> Any:
    kinds = {type(item) for item in value}
    if kinds == {list}:
        return np.array([_decode_array(row) for row in value])
    return np.array(value if kinds <= {int, bool} and kinds else [decode(float, item) for item in value])


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)

"""How this package compiles small functions: one place for numba's options.

``njit`` compiles in nopython mode, releases the GIL, caches machine code on disk and never uses
fast-math, so results are the same bit for bit on every run and thread count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` on first call; NaN and infinity follow IEEE 754."""
    compiled: Any = numba.njit(cache=True, nogil=True, fastmath=False)(function)
    return compiled  # type: ignore[no-any-return]

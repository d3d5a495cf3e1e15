"""How this package compiles small functions: one place for numba's options.

``njit`` compiles in nopython mode, releases the GIL, caches machine code on disk and never uses
fast-math, so results are the same bit for bit on every run and thread count.

numba drops cached machine code when the function's *own* file changes, but not when a function it calls in another file
does, although that one is compiled into it. So the stamp of each cache also covers the stamps of the compiled functions,
and the values of the constants, that the function's module imports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

P = ParamSpec("P")
R = TypeVar("R")

_TO_READ, _KEEP, _DATA = 0, 3, 1
"""Arguments of LLVM's ``llvm.prefetch``: for a read, to stay in every cache, data rather than code."""


def njit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` on first call; NaN and infinity follow IEEE 754."""
    compiled: Any = numba.njit(cache=True, nogil=True, fastmath=False)(function)
    return _stamped(compiled, function)  # type: ignore[no-any-return]


def njit_lent(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` like :func:`njit`, without counting references to the arrays it is lent.

    For functions of a hot loop that pass many arrays on: counting references costs an atomic operation an array and call.
    Such a function must not create arrays (views are fine) nor keep any beyond the call.
    """
    compiled: Any = numba.njit(cache=True, nogil=True, fastmath=False, _nrt=False)(function)
    return _stamped(compiled, function)  # type: ignore[no-any-return]


_digests: dict[str, str] = {}
"""Digest of what each module imports, made at its first compiled function, when its imports are done."""


def njit_leaf(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` like :func:`njit_lent` and copy its machine code into every caller.

    For small steps of a hot loop that take many arrays: handing those over would cost more than the step itself.
    """
    compiled: Any = numba.njit(cache=True, nogil=True, fastmath=False, _nrt=False, forceinline=True)(function)
    return _stamped(compiled, function)  # type: ignore[no-any-return]


def _stamped(compiled: Any, function: Callable[..., Any]) -> Any:
    """Widen the stamp of the function's cache by what its module imports."""
    module = function.__module__
    if module not in _digests:
        _digests[module] = hashlib.sha256(repr(sorted(_imported_stamps(function))).encode()).hexdigest()
    cache_file = compiled._cache._cache_file
    cache_file._source_stamp = (*cache_file._source_stamp, _digests[module])
    return compiled


def _imported_stamps(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, stamp) of every compiled function of another module, and of every constant, among the globals."""
    for name, value in function.__globals__.items():
        if isinstance(value, bool | int | float | str) and not name.startswith("__"):
            yield name, repr(value)
        elif isinstance(value, ModuleType) and value.__name__.startswith("crypto_qlib"):
            for inner, attribute in vars(value).items():
                yield from _stamp_of(f"{name}.{inner}", attribute, function.__module__)
        else:
            yield from _stamp_of(name, value, function.__module__)


def _stamp_of(name: str, value: object, own_module: str) -> Iterator[tuple[str, str]]:
    if hasattr(value, "py_func") and value.py_func.__module__ != own_module:
        yield name, repr(value._cache._cache_file._source_stamp)  # type: ignore[attr-defined]


def _prefetch(_context: Any, table: Any, _row: Any, _column: Any) -> Any:
    """Return type and code of :data:`prefetch`."""

    def write_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        steps = cgutils.unpack_tuple(builder, array.strides)
        offset = builder.add(builder.mul(arguments[1], steps[0]), builder.mul(arguments[2], steps[1]))
        address = builder.gep(builder.bitcast(array.data, cgutils.voidptr_t), [offset])
        flag = cgutils.int32_t
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        builder.call(instruction, [address, flag(_TO_READ), flag(_KEEP), flag(_DATA)])
        return context.get_dummy_value()

    return types.void(table, types.intp, types.intp), write_code


prefetch: Callable[[Any, int, int], None] = intrinsic(_prefetch)
"""Ask the processor for ``table[row, column]`` of a 2-d array, to have it at hand when it is read; for compiled code only.

A loop that hops over the rows of a panel waits for memory most of its time otherwise. A place beyond the array does no harm.
"""

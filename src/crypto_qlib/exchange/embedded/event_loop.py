"""Run a server on the fastest event loop there is: uvloop where it is installed, asyncio's own elsewhere."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

try:
    import uvloop
except ImportError:  # it has no wheel for this platform
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")
_GC_THRESHOLDS: Final = (50_000, 20, 50)


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a fresh event loop, not running yet."""
    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop if uvloop is not None else asyncio.new_event_loop
    return make()


def settle_memory() -> None:
    """Tell the garbage collector that what exists now stays; call it once a server is built.

    A market and the libraries are millions of objects that never die; walking through them again and again is what makes
    single answers late.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def run_fast(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, as ``asyncio.run`` does."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)

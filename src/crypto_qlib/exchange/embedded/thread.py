"""Serve the embedded exchange from a background thread, for callers that have no event loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from crypto_qlib.core.errors import CryptoQlibError
from crypto_qlib.exchange.credentials import ApiCredentials
from crypto_qlib.exchange.embedded.event_loop import new_loop
from crypto_qlib.exchange.embedded.server import EmbeddedExchange

_T = TypeVar("_T")


class EmbeddedExchangeThread:
    """Run one :class:`EmbeddedExchange` on its own loop in a daemon thread.

    Parameters
    ----------
    exchange : EmbeddedExchange
        Not started yet; from now on only this object may touch it.
    """

    def __init__(self, exchange: EmbeddedExchange) -> None:
        self.exchange = exchange
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def credentials(self) -> ApiCredentials:
        """Return the key of the paper account."""
        return self.exchange.credentials

    @property
    def base_url(self) -> str:
        """Return the URL served; empty before :meth:`start`."""
        return self.exchange.base_url

    def start(self) -> str:
        """Start serving; return the base URL. Errors of the start are raised here."""
        loop = new_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="embedded-exchange", daemon=True)
        self._thread.start()
        self._loop = loop
        try:
            return self._run(self.exchange.start())
        except CryptoQlibError:
            self._end_loop()
            raise

    def step(self, n_bars: int = 1) -> int:
        """Move the market on; return the new time, nanoseconds since the epoch."""
        return self._run(self.exchange.step(n_bars))

    def stop(self) -> None:
        """Stop serving and end the thread; harmless when not running."""
        if self._loop is not None:
            self._run(self.exchange.stop())
            self._end_loop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            work.close()
            raise RuntimeError("the embedded exchange is not running; call start() first")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        self._loop = self._thread = None

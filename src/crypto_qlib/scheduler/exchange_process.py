"""The embedded exchange in a process of its own, for callers that have work of their own to do while it answers.

A server in a thread of the same process shares one interpreter with the client: requests and answers wait for each other. In a
process of its own it uses the second core. It ends with its parent, however that ends: it reads from a pipe that then closes.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final
from urllib.parse import urlsplit

from crypto_qlib.core.clock import NS_PER_MS
from crypto_qlib.core.errors import CryptoQlibError, UserError
from crypto_qlib.exchange.credentials import ApiCredentials, load_or_create_credentials
from crypto_qlib.exchange.embedded.event_loop import run_fast
from crypto_qlib.exchange.embedded.server import EmbeddedExchange
from crypto_qlib.settings.schema import Settings
from crypto_qlib.store.paths import Paths

_STARTED_WITHIN_S: Final = 120.0
_STOPPED_WITHIN_S: Final = 20.0


class EmbeddedExchangeProcess:
    """Run the embedded exchange of ``settings`` in a child process.

    Parameters
    ----------
    settings : Settings
        The market and how it is served; accounts live in memory.
    make : callable
        Makes the exchange in the child; a function of a module, so that the child can import it.
    """

    def __init__(self, settings: Settings, make: Callable[[Settings], EmbeddedExchange]) -> None:
        self._settings = settings
        self._make = make
        self._pipe: Connection | None = None
        self._child: Any = None
        self.base_url = ""

    @property
    def credentials(self) -> ApiCredentials:
        """Return the key of the paper account."""
        return load_or_create_credentials(Paths(self._settings.store.root).exchange)

    def start(self) -> str:
        """Start serving; return the base URL.

        Raises
        ------
        CryptoQlibError
            If the exchange refuses to start, as it says it, or does not answer in time.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_child, args=(self._settings, self._make, theirs), daemon=True)
        self._child.start()
        theirs.close()
        told = self._pipe.recv() if self._pipe.poll(_STARTED_WITHIN_S) else ("refused", "it did not answer in time", "")
        if told[0] != "serves":
            self.stop()
            raise UserError(f"the embedded exchange did not start: {told[1]}", str(told[2]))
        self.base_url = str(told[1])
        return self.base_url

    def step(self, n_bars: int = 1) -> int:
        """Move the market on; return the new time, nanoseconds since the epoch.

        Raises
        ------
        CryptoQlibError
            If the market's data end here.
        """
        wire = http.client.HTTPConnection(urlsplit(self.base_url).netloc)
        try:
            wire.request("POST", "/admin/step", json.dumps({"bars": n_bars}))
            answer = wire.getresponse()
            told = json.loads(answer.read())
        finally:
            wire.close()
        if "error" in told:
            raise UserError(str(told["error"]))
        return int(told["now_ms"]) * NS_PER_MS

    def stop(self) -> None:
        """Stop serving and end the process; harmless when not running."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._child is not None:
            self._child.join(_STOPPED_WITHIN_S)
            if self._child.is_alive():
                self._child.kill()
            self._child = None


def _child(settings: Settings, make: Callable[[Settings], EmbeddedExchange], pipe: Connection) -> None:
    try:
        exchange = make(settings)
    except CryptoQlibError as e:
        pipe.send(("refused", e.message, e.hint or ""))
        return
    run_fast(_serve(exchange, pipe))


async def _serve(exchange: EmbeddedExchange, pipe: Connection) -> None:
    try:
        async with exchange:
            pipe.send(("serves", exchange.base_url))
            await asyncio.to_thread(_until_closed, pipe)
    except CryptoQlibError as e:
        pipe.send(("refused", e.message, e.hint or ""))


def _until_closed(pipe: Connection) -> None:
    """Wait until the parent closes its end, or is gone."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        return
